//! How a broker and its subscriptions are, as a look at them shows.

use jiff::Timestamp;

/// Whether a broker can be reached.
///
/// A broker connects again by itself; this is for whoever wants to know why nothing happens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Connection {
    /// As far as is known.
    Up,
    /// Not now.
    Lost {
        /// Since when.
        since: Timestamp,
        /// Why, as the last try to connect has shown.
        error: String,
    },
    /// It answers, and takes less than it is asked for: it wants fewer calls, or has no room for more. What waits is tried
    /// again.
    Slowed {
        /// Since when.
        since: Timestamp,
        /// What it says.
        error: String,
    },
}

/// Whether an open subscription gets deliveries, where one process at a time handles a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It gets what there is.
    Active,
    /// Another process, or another subscription of this one, has the group; this one takes over when that ends or
    /// leaves.
    StandingBy,
}

/// What becomes of the streams, queues and consumers that a broker with a server needs.
///
/// In an address it is the option `topology`: `nats://host?topology=check`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// They are made where they are missing. What is there with other settings is an error that names both values.
    #[default]
    Create,
    /// They have to be there as they should be; what is missing or different is an error.
    Check,
}

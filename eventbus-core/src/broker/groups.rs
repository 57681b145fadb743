//! Groups: which logical subscribers a broker knows, and how far each has come.

use super::{BrokerFuture, Offset, SubscribeRequest};
use crate::error::BrokerError;
use jiff::Timestamp;

/// What a broker knows of one group on one pattern.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupState {
    /// The group.
    pub group: String,
    /// The pattern that it listens on.
    pub pattern: String,
    /// Its cursor: everything up to here is settled. None before the first event.
    pub cursor: Option<Offset>,
    /// How many events it has yet to settle, as well as the broker [knows](super::Features::backlog).
    pub backlog: u64,
    /// When the oldest of them was stored, where the broker can tell.
    pub oldest: Option<Timestamp>,
    /// How many of them wait for their next attempt.
    pub parked: u64,
    /// How many dead letters it has.
    pub dead_letters: u64,
    /// Whether some process handles its events now.
    pub active: bool,
    /// When the broker last saw a sign of a process that handles it, where it keeps that: a lease that was held, a delivery,
    /// or a settlement. So it is not later than the end of the last process, and may be earlier.
    pub last_active: Option<Timestamp>,
}

impl GroupState {
    /// A group that has nothing yet; set what it has.
    #[must_use]
    pub fn new(group: impl Into<String>, pattern: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            pattern: pattern.into(),
            cursor: None,
            backlog: 0,
            oldest: None,
            parked: 0,
            dead_letters: 0,
            active: false,
            last_active: None,
        }
    }
}

/// A broker that knows its groups.
///
/// A group whose subscription was renamed or removed leaves its cursor behind; here it is moved or dropped. A broker whose
/// groups are queues, from which what is settled is gone, lists and drops them, and declines what its
/// [`Features`](super::Features) do not declare.
///
/// ```
/// # async fn look(bus: eventbus::Bus) -> eventbus::Result<()> {
/// let groups = bus.groups()?;
/// for state in groups.list().await? {
///     println!("{} on {}: {} to handle", state.group, state.pattern, state.backlog);
/// }
/// // The function was renamed: its group goes on under the new name.
/// groups.rename("shop.charge", "shop.charge_card").await?;
/// # Ok(())
/// # }
/// ```
///
/// All methods may be called from any thread, at once, also where other processes have the groups. `Ok(true)` means that
/// the change is stored, as a whole.
///
/// # Errors
/// A group that some process handles is not changed; nor is anything where the broker cannot write, or the name is none.
///
/// # Cancel safety
/// A future that is dropped may have taken effect, wholly or not at all.
pub trait Groups: Send + Sync + 'static {
    /// All groups, by name, as they are at one moment.
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>>;

    /// At least those of these subscriptions, which this broker has open: what the health of a bus asks for again and again.
    ///
    /// All of them by default; a broker for which each group costs a call asks for these only.
    fn list_of(
        &self,
        subscriptions: &[SubscribeRequest],
    ) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let _ = subscriptions;
        self.list()
    }

    /// Moves the cursor of a group to behind `offset` on all of its patterns, or with none before the first
    /// event. What was unfinished before counts as settled.
    ///
    /// Fails while a process handles the group. `Ok(false)` means that there is no such group.
    ///
    /// Fails by default and changes nothing, for brokers without [`Features::seek`](super::Features::seek).
    fn seek(&self, group: &str, offset: Option<Offset>) -> BrokerFuture<Result<bool, BrokerError>> {
        let _ = offset;
        BrokerFuture::ready(Err(cannot_seek(group)))
    }

    /// As [`seek`](Self::seek), on one of its patterns only.
    ///
    /// Fails by default, where the broker only moves groups as a whole.
    fn seek_on(
        &self,
        group: &str,
        pattern: &str,
        offset: Option<Offset>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let _ = offset;
        BrokerFuture::ready(Err(as_a_whole("move", group, pattern)))
    }

    /// Gives the cursor, the unfinished deliveries and the dead letters of the group `from` to the group `to`,
    /// whose own cursor they replace.
    ///
    /// Fails while a process handles either. `Ok(false)` means that there is no group `from`.
    ///
    /// Fails by default and changes nothing, for brokers without [`Features::rename`](super::Features::rename).
    fn rename(&self, from: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Err(cannot_rename(from, to)))
    }

    /// Gives what the group `from` has on one pattern to the group `to`, whose own on that pattern it replaces. What it
    /// has on other patterns stays, and so do its dead letters.
    ///
    /// Fails by default, where the broker only renames groups as a whole.
    fn rename_on(&self, from: &str, pattern: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let _ = to;
        BrokerFuture::ready(Err(as_a_whole("rename", from, pattern)))
    }

    /// Forgets a group: its cursor and its unfinished deliveries. Its dead letters stay.
    ///
    /// Fails while a process handles it. `Ok(false)` means that there is no such group (any more).
    fn remove(&self, group: &str) -> BrokerFuture<Result<bool, BrokerError>>;

    /// Forgets what a group has on one pattern, most likely one that it listened on once: the cursor and the
    /// unfinished deliveries. What it has on other patterns stays, and so do its dead letters.
    ///
    /// Fails while a process handles it on that pattern, and, by default, where the broker only forgets groups as a
    /// whole. `Ok(false)` means that there is nothing of it (any more).
    fn remove_on(&self, group: &str, pattern: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Err(as_a_whole("forget", group, pattern)))
    }
}

/// Why a group does not go on at another place, where the broker has none of those that are settled.
pub(crate) fn cannot_seek(group: &str) -> BrokerError {
    BrokerError::new(format!(
        "this broker cannot move the group `{group}` to another place: what was settled is gone from its queue; publish \
         again what it is to handle once more"
    ))
}

/// Why what a group has does not become another group's.
pub(crate) fn cannot_rename(from: &str, to: &str) -> BrokerError {
    BrokerError::new(format!(
        "this broker cannot give what the group `{from}` has to `{to}`: a queue keeps its name; let a subscription have \
         the group `{from}` until its backlog is handled, and drop it then"
    ))
}

fn as_a_whole(what: &str, group: &str, pattern: &str) -> BrokerError {
    BrokerError::new(format!(
        "this broker cannot {what} the group `{group}` on \"{pattern}\" alone; {what} it as a whole"
    ))
}

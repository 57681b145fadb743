//! What a broker declares that it can do.

/// The abilities of a broker. A subscription that needs one that is missing fails at start-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// What `publish` confirmed survives the end of the process.
    pub durable: bool,
    /// Events with one key reach a subscription in publish order.
    pub key_order: bool,
    /// Patterns with wildcards can be subscribed to.
    pub patterns: bool,
    /// A new group can begin at the oldest event that is kept.
    pub start_earliest: bool,
    /// Several processes may have a group. Unless one of the next two says otherwise, one at a time handles it, and the
    /// others stand by.
    pub multi_process: bool,
    /// All processes that have a group handle it at once, where it
    /// [competes](super::SubscribeRequest::competing).
    pub competing: bool,
    /// Processes that have a group share it by key: order by key holds across all of them.
    pub shared_by_key: bool,
    /// An event that is published again, with the source and the id of one that is stored, is not stored again.
    pub deduplicates: bool,
    /// A group can be moved to another place of what is kept ([`Groups::seek`](super::Groups::seek)).
    pub seek: bool,
    /// What a group has can be given to another one ([`Groups::rename`](super::Groups::rename)).
    pub rename: bool,
    /// What a handler returns is published together with the settlement of its event, both or neither
    /// ([`Settler::ack_with`](super::Settler::ack_with)). Otherwise it is published first, and published again where the
    /// process ends before the event is settled.
    pub transactions: bool,
    /// What is known of an event's attempts after a crash.
    pub attempts: Attempts,
    /// An event whose handler ends the process, by an abort or because it is killed for its memory, is found out and
    /// charged with an attempt each time; beyond its retries it is given up
    /// ([`Crashed`](super::FailureKind::Crashed)). Otherwise it is delivered again after each start.
    pub counts_crashes: bool,
    /// How well the broker knows what a group has yet to settle.
    pub backlog: Backlog,
    /// The largest payload, in bytes, where there is a limit.
    pub max_payload: Option<usize>,
}

/// What a broker knows, after the process that had an event has ended, of the attempts that were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attempts {
    /// Nothing: they are counted from 1.
    Lost,
    /// How often it has delivered the event, whether or not a handler was called: attempts may be counted that were not
    /// made.
    Counted,
    /// What was noted when the event was [parked](super::Settler::park).
    Noted,
}

/// How well a broker knows what a group has yet to settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backlog {
    /// Not at all.
    Unknown,
    /// About: there may be fewer or more.
    Nearly,
    /// To the event.
    Exactly,
}

impl Features {
    /// Nothing beyond moving envelopes; set what the broker has.
    ///
    /// ```
    /// use eventbus_core::broker::Features;
    ///
    /// let mut features = Features::none();
    /// features.key_order = true;
    /// ```
    #[must_use]
    pub const fn none() -> Self {
        Self {
            durable: false,
            key_order: false,
            patterns: false,
            start_earliest: false,
            multi_process: false,
            competing: false,
            shared_by_key: false,
            deduplicates: false,
            seek: false,
            rename: false,
            transactions: false,
            attempts: Attempts::Lost,
            counts_crashes: false,
            backlog: Backlog::Unknown,
            max_payload: None,
        }
    }

    /// Which of the processes that have a group handle it, in words, where several may have it.
    pub(crate) fn sharing(self, competing: bool) -> Option<&'static str> {
        if !self.multi_process {
            return None;
        }
        Some(match (self.shared_by_key, self.competing && competing) {
            (true, _) => "each handles the events of some keys, in their order",
            (_, true) => "all handle it at once; order by key holds within each",
            (false, false) => "one at a time handles it, in order by key, and the others stand by",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_handles_a_group_is_told_where_several_may_have_it() {
        let mut features = Features::none();
        assert_eq!(features.sharing(true), None);
        features.multi_process = true;
        assert!(features.sharing(true).unwrap().contains("stand by"), "this broker knows no other way");
        features.competing = true;
        assert!(features.sharing(true).unwrap().contains("at once"));
        assert!(features.sharing(false).unwrap().contains("stand by"));
        features.shared_by_key = true;
        assert!(features.sharing(true).unwrap().contains("some keys"));
    }
}

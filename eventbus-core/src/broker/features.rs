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
    /// Several processes may share a group.
    pub multi_process: bool,
    /// The largest payload, in bytes, where there is a limit.
    pub max_payload: Option<usize>,
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
            max_payload: None,
        }
    }
}

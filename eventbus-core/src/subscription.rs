//! Subscriptions: pattern, group and options, as plain data.

use crate::backoff::Backoff;
use crate::broker::Start;
use crate::event::EventMeta;
use std::any::TypeId;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// Who listens on what, and how: what `#[subscribe]` leaves behind, and what the census lists.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The function's name, or `Type.method`.
    pub name: Cow<'static, str>,
    /// The logical subscriber: each group receives each event. `<package>.<function>` by default.
    pub group: Cow<'static, str>,
    /// The topics that it listens on.
    pub pattern: Cow<'static, str>,
    /// The event that the handler takes; none for a handler of any payload.
    pub event: Option<&'static EventMeta>,
    /// The event that the handler returns.
    pub publishes: Option<&'static EventMeta>,
    /// The types that the handler takes as `State`.
    pub states: &'static [Option<StateType>],
    /// What the attribute sets; the bus fills in the rest.
    pub options: Options,
    /// The package that declares the handler.
    pub package: &'static str,
    /// The module that declares the handler.
    pub module: &'static str,
    /// The source file that declares the handler.
    pub file: &'static str,
    /// The line in that file, from 1.
    pub line: u32,
    /// The handler's documentation.
    pub docs: &'static str,
}

impl Subscription {
    /// Where the handler stands in the source, as `file:line`.
    #[must_use]
    pub fn location(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// The handler with its module and its place in the source, for logs and dead letters.
    #[must_use]
    pub fn handler(&self) -> String {
        let separator = if self.module.is_empty() { "" } else { "::" };
        format!("{}{separator}{} ({})", self.module, self.name, self.location())
    }
}

/// A type that a handler takes as `State`.
#[derive(Clone, Copy)]
pub struct StateType {
    /// The type.
    pub id: TypeId,
    /// Its name, for messages.
    pub name: fn() -> &'static str,
}

impl fmt::Debug for StateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str((self.name)())
    }
}

/// The options of one subscription; `None` leaves an option to the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// See [`Policy::retries`].
    pub retries: Option<u32>,
    /// See [`Policy::backoff`].
    pub backoff: Option<Backoff>,
    /// See [`Policy::timeout`].
    pub timeout: Option<Duration>,
    /// See [`Policy::concurrency`].
    pub concurrency: Option<usize>,
    /// See [`Policy::start`].
    pub start: Option<Start>,
    /// See [`Policy::dead_letter`].
    pub dead_letter: Option<bool>,
    /// See [`Policy::replay`].
    pub replay: Option<bool>,
    /// See [`Policy::batch`].
    pub batch: Option<usize>,
    /// See [`Policy::linger`].
    pub linger: Option<Duration>,
}

impl Options {
    /// Every option left to the bus.
    pub const DEFAULT: Self = Self {
        retries: None,
        backoff: None,
        timeout: None,
        concurrency: None,
        start: None,
        dead_letter: None,
        replay: None,
        batch: None,
        linger: None,
    };
}

/// The rules that a subscription runs by: its own options over those of the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// How many attempts may follow the first. Default: 4.
    pub retries: u32,
    /// How long to wait between attempts. Default: 100 ms, doubling to 30 s.
    pub backoff: Backoff,
    /// How long one attempt may take. Default: 60 s. A handler can be dropped only where it waits: one that computes or
    /// blocks until it answers is not stopped, and its answer counts.
    pub timeout: Duration,
    /// How many deliveries (or batches) are handled at once. Default: the number of cores, at least 4.
    pub concurrency: usize,
    /// How many deliveries are handled, or at hand to be handled, at once. Default: 1,024; never fewer than
    /// `concurrency` or `batch`.
    pub in_flight: usize,
    /// How many deliveries are held back beside them: behind an unfinished one of their key, or for a retry. While as
    /// many are, nothing more is taken from the broker. Default: 16,384; never fewer than `in_flight`.
    pub held_back: usize,
    /// Where a new group begins. Default: [`Start::Latest`].
    pub start: Start,
    /// Whether events that are given up are kept; without, they are logged and dropped. Default: true.
    pub dead_letter: bool,
    /// Whether the handler may be part of a replay; false for one with effects outside, such as an email.
    /// Default: true.
    pub replay: bool,
    /// How many events a batch may have. Default: 1; batch handlers say more. It has several of one key, in publish
    /// order, where one answer stands for all members; no other batch has events of that key until they are settled.
    pub batch: usize,
    /// How old the oldest member of a batch may get before the batch is handled as it is. Default: 50 ms.
    pub linger: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retries: 4,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            timeout: Duration::from_secs(60),
            concurrency: std::thread::available_parallelism().map_or(4, usize::from).max(4),
            in_flight: 1_024,
            held_back: 16_384,
            start: Start::Latest,
            dead_letter: true,
            replay: true,
            batch: 1,
            linger: Duration::from_millis(50),
        }
    }
}

impl Policy {
    /// These rules, with what `options` sets in place of them.
    #[must_use]
    pub fn with(self, options: &Options) -> Self {
        let concurrency = options.concurrency.unwrap_or(self.concurrency).max(1);
        let batch = options.batch.unwrap_or(self.batch).max(1);
        let in_flight = self.in_flight.max(concurrency).max(batch);
        Self {
            retries: options.retries.unwrap_or(self.retries),
            backoff: options.backoff.unwrap_or(self.backoff),
            timeout: options.timeout.unwrap_or(self.timeout),
            concurrency,
            in_flight,
            held_back: self.held_back.max(in_flight),
            start: options.start.unwrap_or(self.start),
            dead_letter: options.dead_letter.unwrap_or(self.dead_letter),
            replay: options.replay.unwrap_or(self.replay),
            batch,
            linger: options.linger.unwrap_or(self.linger),
        }
    }
}

//! Subscriptions: pattern, group and options, as plain data.

use crate::backoff::Backoff;
use crate::broker::{Start, SubscribeRequest};
use crate::event::EventMeta;
use crate::topic::{Pattern, TopicError};
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

    /// The rules that it runs by: its own options over those of the bus, `rules`.
    pub(crate) fn policy(&self, rules: Policy) -> Policy {
        // Where no event has a key, there is no order that several processes could break.
        let keyless = self.event.is_some_and(|event| !event.keyed);
        let competing = self.options.competing.unwrap_or(rules.competing || keyless);
        Policy { competing, ..rules.with(&self.options) }
    }

    /// What it asks of a broker, by the rules that it runs by.
    pub(crate) fn request(&self, policy: &Policy) -> Result<SubscribeRequest, TopicError> {
        let Policy { start, competing, in_flight, held_back, retries, timeout, .. } = *policy;
        let mut request = SubscribeRequest::new(&*self.group, Pattern::new(&self.pattern)?);
        (request.start, request.competing, request.retries, request.timeout) =
            (start, competing, retries, timeout);
        request.hold = in_flight.saturating_add(held_back);
        Ok(request)
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

/// Hands every option of a subscription to a macro: its documentation, its name and its type. First those of every
/// handler, which the builder of a bus and `Bus::on` set as well, then those of batches.
macro_rules! with_options {
    ($use_them:ident) => {
        $use_them! {
            every {
                /// How many attempts may follow the first. Default: 4.
                retries: u32,
                /// How long to wait between attempts. Default: 100 ms, doubling to 30 s.
                backoff: $crate::backoff::Backoff,
                /// How long one attempt may take. Default: 60 s. A handler can be dropped only where it waits: one that
                /// computes or blocks until it answers, as with the option `blocking`, is not stopped, and its answer
                /// counts.
                timeout: ::std::time::Duration,
                /// How many deliveries (or batches) one subscription handles at once. Default: the number of cores, at
                /// least 4.
                concurrency: usize,
                /// Where a new group begins; one that the broker knows goes on where it was. Default:
                /// [`Start::Latest`](crate::broker::Start::Latest).
                start: $crate::broker::Start,
                /// Whether all processes that have the group handle it at once, where the broker is of a kind that has
                /// one process at a time handle it otherwise: order by key then holds within each process only. Default:
                /// whether the handler takes an event type without a key.
                competing: bool,
                /// Whether events that are given up are kept; without, they are logged and dropped. Default: true.
                dead_letter: bool,
                /// Whether the handler may be part of a replay; false for one with effects outside, such as an email.
                /// Default: true.
                replay: bool,
            }
            batch {
                /// How many events a batch may have. Default: 1; batch handlers say more. It has several of one key, in
                /// publish order, where one answer stands for all members; no other batch has events of that key until
                /// they are settled.
                batch: usize,
                /// How old the oldest member of a batch may get before the batch is handled as it is. Default: 50 ms.
                linger: ::std::time::Duration,
            }
        }
    };
}
pub(crate) use with_options;

macro_rules! options_and_policy {
    (every { $($(#[$every_doc:meta])* $every:ident: $every_type:ty,)* }
     batch { $($(#[$batch_doc:meta])* $batch:ident: $batch_type:ty,)* }) => {
        /// The options of one subscription; `None` leaves an option to the bus.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Options {
            $($(#[$every_doc])* pub $every: Option<$every_type>,)*
            $($(#[$batch_doc])* pub $batch: Option<$batch_type>,)*
        }

        impl Options {
            /// Every option left to the bus.
            pub const DEFAULT: Self = Self { $($every: None,)* $($batch: None,)* };
        }

        /// The rules that a subscription runs by: its own options over those of the bus.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Policy {
            $($(#[$every_doc])* pub $every: $every_type,)*
            $($(#[$batch_doc])* pub $batch: $batch_type,)*
            /// How many deliveries are handled, or at hand to be handled, at once. Default: 1,024; never fewer than
            /// `concurrency` or `batch`.
            pub in_flight: usize,
            /// How many deliveries are held back beside them: behind an unfinished one of their key, or for a retry.
            /// While as many are, nothing more is taken from the broker. Default: 16,384; never fewer than `in_flight`.
            pub held_back: usize,
        }

        impl Policy {
            /// These rules, with what `options` sets in place of them.
            fn with(self, options: &Options) -> Self {
                let policy = Self {
                    $($every: options.$every.unwrap_or(self.$every),)*
                    $($batch: options.$batch.unwrap_or(self.$batch),)*
                    ..self
                };
                policy.consistent()
            }
        }
    };
}
with_options!(options_and_policy);

impl Default for Policy {
    fn default() -> Self {
        Self {
            retries: 4,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            timeout: Duration::from_secs(60),
            concurrency: std::thread::available_parallelism().map_or(4, usize::from).max(4),
            start: Start::Latest,
            competing: false,
            dead_letter: true,
            replay: true,
            batch: 1,
            linger: Duration::from_millis(50),
            in_flight: 1_024,
            held_back: 16_384,
        }
    }
}

impl Policy {
    fn consistent(mut self) -> Self {
        self.concurrency = self.concurrency.max(1);
        self.batch = self.batch.max(1);
        self.in_flight = self.in_flight.max(self.concurrency).max(self.batch);
        self.held_back = self.held_back.max(self.in_flight);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(keyed: bool) -> EventMeta {
        EventMeta { topic: "a.b", name: "", version: 1, keyed, schema: 0, package: "", file: "", line: 0 }
    }

    static KEYED: std::sync::LazyLock<EventMeta> = std::sync::LazyLock::new(|| meta(true));
    static KEYLESS: std::sync::LazyLock<EventMeta> = std::sync::LazyLock::new(|| meta(false));

    fn subscription(event: Option<&'static EventMeta>, competing: Option<bool>) -> Subscription {
        Subscription {
            name: "mail".into(),
            group: "shop.mail".into(),
            pattern: "a.b".into(),
            event,
            publishes: None,
            states: &[],
            options: Options { competing, ..Options::DEFAULT },
            package: "shop",
            module: "shop",
            file: "",
            line: 0,
            docs: "",
        }
    }

    #[test]
    fn what_has_no_key_is_handled_by_all_processes_unless_it_says_otherwise() {
        let competes = |event, competing| subscription(event, competing).policy(Policy::default()).competing;
        assert!(competes(Some(&KEYLESS), None));
        assert!(!competes(Some(&KEYLESS), Some(false)));
        assert!(!competes(Some(&KEYED), None));
        assert!(competes(Some(&KEYED), Some(true)));
        assert!(!competes(None, None), "any payload may have a key");
    }

    #[test]
    fn the_defaults_of_a_request_are_those_of_a_subscription() {
        let asked = subscription(Some(&KEYED), None).request(&Policy::default()).unwrap();
        assert_eq!(asked, SubscribeRequest::new("shop.mail", Pattern::new("a.b").unwrap()));
    }
}

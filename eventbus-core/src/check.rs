//! What generated code checks in a `const`. Each function is called at the place of its culprit, and panics there:
//! the compiler shows the message with its caret on that place.

use crate::event::{EventMeta, Key};
use crate::outcome::Outcome;
use crate::registry::Catalog;
use crate::subscription::with_options;
use eventbus_grammar::{Text, check_pattern, check_topic, distance, is_group, is_near, matches, overlap};
use std::fmt::Display;
use std::time::Duration;

/// Compares one argument with the topic; returns the event that the subscriber takes so far.
#[track_caller]
pub const fn argument(
    pattern: Option<&str>,
    literal: bool,
    event: Option<&'static EventMeta>,
    before: Option<&'static EventMeta>,
) -> Option<&'static EventMeta> {
    let Some(event) = event else { return before };
    if let Some(before) = before {
        fail(
            Text::new()
                .push("a subscriber takes one event, and `")
                .push(before.name)
                .push("` is already an argument; make `")
                .push(event.name)
                .push("` a subscriber of its own"),
        );
    }
    if let Some(pattern) = pattern
        && !covers(pattern, event.topic)
        && !(literal && is_near(pattern, event.topic))
    {
        fail(
            Text::new()
                .push("`")
                .push(event.name)
                .push("` is published on ")
                .push_quoted(event.topic)
                .push(", which this subscriber's ")
                .push_quoted(pattern)
                .push(" does not match"),
        );
    }
    Some(event)
}

/// Compares a literal with the event: what is so near must be a slip.
#[track_caller]
pub const fn literal(pattern: &str, event: Option<&'static EventMeta>) {
    if let Some(event) = event
        && !covers(pattern, event.topic)
    {
        fail(
            Text::new()
                .push_quoted(pattern)
                .push(" is not the topic of `")
                .push(event.name)
                .push("`; did you mean ")
                .push_quoted(event.topic)
                .push("?"),
        );
    }
}

/// Checks that a subscription whose argument is an event listens on the topic of that event and on no other: of all
/// others, every event would become a dead letter.
#[track_caller]
pub const fn exact(pattern: &str, event: Option<&'static EventMeta>, batch: bool) {
    if let Some(event) = event
        && covers(pattern, event.topic)
        && !event.topic.is_empty()
        && !same(pattern, event.topic)
    {
        let text = Text::new()
            .push("`")
            .push(event.name)
            .push("` is published on ")
            .push_quoted(event.topic)
            .push(" only, and ")
            .push_quoted(pattern)
            .push(" matches other topics too; subscribe to ")
            .push_quoted(event.topic);
        // A batch is made of events of one type.
        fail(if batch { text } else { text.push(", or take `&Envelope`") });
    }
}

/// Checks a pattern that comes from a constant.
#[track_caller]
pub const fn constant(pattern: &str) {
    if let Err(fault) = check_pattern(pattern) {
        fail(fault.explain(pattern));
    }
}

/// Checks a topic that comes from a constant.
#[track_caller]
pub const fn topic(topic: &str) {
    if let Err(fault) = check_topic(topic) {
        fail(fault.explain(topic));
    }
}

/// Checks that a topic can be inferred; `json` is the name of what an argument takes out of JSON.
#[track_caller]
pub const fn inferred(event: Option<&'static EventMeta>, json: Option<&str>) {
    if event.is_none() {
        let text = Text::new().push("no topic: name one, as in `#[subscribe(\"order.placed\")]`, or take ");
        fail(match json {
            Some(json) => {
                text.push("the event itself: `").push(json).push("` in place of `Json<").push(json).push(">`")
            }
            None => text.push("an event as an argument"),
        });
    }
}

/// Checks a group that comes from an expression.
#[track_caller]
pub const fn group(group: &str) {
    if !is_group(group) {
        fail(Text::new().push("names of groups are 1 to 200 characters of [A-Za-z0-9_.-]"));
    }
}

/// Checks a literal without an event type against the topics that the crate knows.
#[track_caller]
pub const fn catalog(catalog: &Catalog, pattern: &str, event: Option<&'static EventMeta>) {
    if event.is_some() || catalog.is_open() || catalog.knows(pattern) {
        return;
    }
    let text = Text::new()
        .push("no topic matches ")
        .push_quoted(pattern)
        .push(" in catalog `")
        .push(catalog.package)
        .push("`");
    fail(match catalog.nearest(pattern) {
        Some(near) if is_near(pattern, near) => text.push("; did you mean ").push_quoted(near).push("?"),
        _ => text,
    });
}

/// Checks that a version reads the one right before it, on the same topic.
#[track_caller]
pub const fn upcast(new: &EventMeta, old: &EventMeta) {
    let text = Text::new().push("`").push(new.name).push("` ");
    if !new.topic.is_empty() && !old.topic.is_empty() && !same(new.topic, old.topic) {
        fail(
            text.push("upcasts from `")
                .push(old.name)
                .push("`, but they are different topics: ")
                .push_quoted(new.topic)
                .push(" and ")
                .push_quoted(old.topic),
        );
    }
    if old.version + 1 != new.version {
        fail(
            text.push("is v")
                .push_number(new.version as usize)
                .push(" and upcasts from `")
                .push(old.name)
                .push("` v")
                .push_number(old.version as usize)
                .push("; the chain needs v")
                .push_number(new.version as usize - 1),
        );
    }
}

/// A duration out of a literal that the macro has checked.
#[track_caller]
pub const fn duration(text: &str) -> Duration {
    match eventbus_grammar::duration(text) {
        Ok(duration) => duration,
        Err(fault) => fail(fault.explain(text)),
    }
}

/// The event among the arguments. It never panics: what is wrong is said once, by the checks.
pub const fn event_of(events: &[Option<&'static EventMeta>]) -> Option<&'static EventMeta> {
    let mut at = 0;
    while at < events.len() {
        if events[at].is_some() {
            return events[at];
        }
        at += 1;
    }
    None
}

/// The topic of the event among the arguments.
pub const fn topic_of(events: &[Option<&'static EventMeta>]) -> &'static str {
    match event_of(events) {
        Some(event) => event.topic,
        None => "",
    }
}

/// `From`, as a version of an event needs it to read the one before.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how to read `{Old}`",
    label = "add `impl From<{Old}> for {Self}`"
)]
pub trait Upcast<Old> {
    /// The older version as this one.
    fn upcast(old: Old) -> Self;
}

#[diagnostic::do_not_recommend]
impl<Old, New: From<Old>> Upcast<Old> for New {
    fn upcast(old: Old) -> Self {
        old.into()
    }
}

/// `Display`, as the field of a key or a subject needs it.
#[diagnostic::on_unimplemented(
    message = "a field of type `{Self}` cannot be the key or the subject of an event",
    label = "has no `Display`",
    note = "a key and a subject are texts: name a field such as a `String` or a number; where they may be absent or are \
            made of several fields, implement `Event` by hand, with `key` and `subject`"
)]
pub trait Shown {
    /// The field as a key.
    fn key(&self) -> Key;

    /// The field as a subject.
    fn subject(&self) -> String;
}

#[diagnostic::do_not_recommend]
impl<T: Display> Shown for T {
    fn key(&self) -> Key {
        Key::new(self)
    }

    fn subject(&self) -> String {
        self.to_string()
    }
}

macro_rules! option_types {
    (every { $($(#[$every_doc:meta])* $every:ident: $every_type:ty,)* }
     batch { $($(#[$batch_doc:meta])* $batch:ident: $batch_type:ty,)* }) => {
        /// What each option of `#[subscribe]` is, under its own word, so that the compiler's message points at the word.
        #[allow(non_camel_case_types, reason = "named after the options")]
        pub mod option {
            $(pub type $every = $every_type;)*
            $(pub type $batch = $batch_type;)*
        }
    };
}
with_options!(option_types);

/// One outcome for every member of a batch.
pub fn all(members: usize, outcome: Outcome) -> Vec<Outcome> {
    vec![outcome; members]
}

impl Catalog {
    /// The catalog of a crate that declares none.
    pub const OPEN: Self = Self { package: "", topics: &[], extends: &[] };

    const fn is_open(&self) -> bool {
        self.package.is_empty()
    }

    const fn knows(&self, pattern: &str) -> bool {
        let mut at = 0;
        while at < self.topics.len() {
            if overlap(pattern, self.topics[at]) {
                return true;
            }
            at += 1;
        }
        let mut at = 0;
        while at < self.extends.len() {
            if self.extends[at].knows(pattern) {
                return true;
            }
            at += 1;
        }
        false
    }

    const fn nearest(&self, pattern: &str) -> Option<&'static str> {
        let mut nearest = None;
        let mut at = 0;
        while at < self.topics.len() {
            nearest = nearer(pattern, nearest, Some(self.topics[at]));
            at += 1;
        }
        let mut at = 0;
        while at < self.extends.len() {
            nearest = nearer(pattern, nearest, self.extends[at].nearest(pattern));
            at += 1;
        }
        nearest
    }
}

const fn nearer(
    pattern: &str,
    left: Option<&'static str>,
    right: Option<&'static str>,
) -> Option<&'static str> {
    match (left, right) {
        (Some(near), Some(other)) if distance(pattern, other) < distance(pattern, near) => Some(other),
        (Some(near), _) => Some(near),
        (None, other) => other,
    }
}

/// Whether a pattern matches a topic. One that the derive macro could not understand is empty; that was told there.
const fn covers(pattern: &str, topic: &str) -> bool {
    topic.is_empty() || same(pattern, topic) || matches(pattern, topic)
}

const fn same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let mut at = 0;
    while at < left.len() && at < right.len() && left[at] == right[at] {
        at += 1;
    }
    at == left.len() && at == right.len()
}

#[track_caller]
const fn fail(text: Text) -> ! {
    panic!("{}", text.as_str())
}

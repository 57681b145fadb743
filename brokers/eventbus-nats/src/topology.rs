//! Streams and consumers: made where they are missing, or found to be as they should.

use crate::config::{Settings, Storage};
use crate::connection::{Link, Nothing, Refusal};
use crate::subscribe::EXPIRES;
use crate::subscription::{AHEAD, BYTES};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PriorityPolicy, ReplayPolicy};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use eventbus_core::broker::{Start, SubscribeRequest, Topology};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, Pattern};
use serde::Serialize;
use serde::de::IgnoredAny;
use std::time::Duration;

/// The priority group of each consumer that one process handles at a time.
pub(crate) const PRIORITY_GROUP: &str = "eventbus";
/// Under these a consumer says whose it is.
const GROUP: &str = "eventbus-group";
const PATTERN: &str = "eventbus-pattern";

/// The names of what a broker has at the server.
impl Settings {
    /// The stream of dead letters.
    pub(crate) fn dead(&self) -> String {
        format!("{}-DEAD", self.stream)
    }

    /// The bucket of what is known of retries that wait.
    pub(crate) fn parked(&self) -> String {
        format!("{}-PARKED", self.stream)
    }

    /// The subject of a topic, or of a pattern.
    pub(crate) fn subject(&self, topic: &str) -> String {
        format!("{}.{topic}", self.prefix)
    }

    /// The subjects of what is delivered again to one consumer only.
    pub(crate) fn again(&self, consumer: &str, topic: &str) -> String {
        format!("{}-again.{consumer}.{topic}", self.prefix)
    }

    /// The subjects of all dead letters.
    pub(crate) fn dead_subjects(&self) -> String {
        format!("{}-dead.>", self.prefix)
    }

    /// The part of these subjects that stands for a group.
    pub(crate) fn dead_token(&self, group: &str) -> String {
        group.replace('.', "/")
    }

    /// The subject of a dead letter.
    pub(crate) fn dead_subject(&self, group: &str, topic: &str) -> String {
        format!("{}-dead.{}.{topic}", self.prefix, self.dead_token(group))
    }

    /// The topic of a subject of any of these kinds.
    pub(crate) fn topic_of<'a>(&self, subject: &'a str) -> &'a str {
        let Some(rest) = subject.strip_prefix(&self.prefix) else { return subject };
        match rest.strip_prefix('.') {
            Some(topic) => topic,
            None => rest
                .strip_prefix("-again.")
                .or_else(|| rest.strip_prefix("-dead."))
                .and_then(|rest| rest.split_once('.'))
                .map_or(subject, |(_, topic)| topic),
        }
    }

    /// The subject under which the bucket keeps the consumer that is being made again, while it is. It is none of its
    /// notes.
    pub(crate) fn moved_subject(&self, consumer: &str) -> String {
        format!("$KV.{}.moved.{consumer}", self.parked())
    }

    /// The subjects under which the bucket keeps what is known of events of a consumer.
    pub(crate) fn notes_subject(&self, consumer: &str) -> String {
        format!("$KV.{}.{consumer}.>", self.parked())
    }

    /// The subject under which the bucket keeps that a handler is called with an event of a consumer.
    pub(crate) fn begun_subject(&self, consumer: &str, sequence: u64) -> String {
        format!("$KV.{}.{consumer}.{sequence}.begun", self.parked())
    }

    /// The subject under which the bucket keeps what is known of an event of a consumer.
    pub(crate) fn note_subject(&self, consumer: &str, sequence: u64) -> String {
        format!("$KV.{}.{consumer}.{sequence}", self.parked())
    }
}

/// The text as one token of a subject.
fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// The name of the consumer of a group on a pattern: readable, and one for each.
pub(crate) fn consumer_name(group: &str, pattern: &str) -> String {
    let mut readable = safe(group);
    readable.truncate(80);
    // FNV-1a: the name is the same whatever built the program.
    let bytes = group.bytes().chain([0]).chain(pattern.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{readable}-{hash:016x}")
}

/// Whose a consumer is: its group and its pattern. None, where it is not one of ours.
pub(crate) fn owner(config: &consumer::Config) -> Option<(&str, &str)> {
    Some((config.metadata.get(GROUP)?, config.metadata.get(PATTERN)?))
}

impl Link {
    /// Makes the streams, or finds them as they should be. `true`: that of the events was made.
    pub(crate) async fn ensure_streams(&self) -> Result<bool, BrokerError> {
        let Settings { prefix, .. } = &self.settings;
        let events = stream::Config {
            name: self.settings.stream.clone(),
            description: Some("events of eventbus".to_owned()),
            subjects: vec![format!("{prefix}.>"), format!("{prefix}-again.>")],
            max_age: self.settings.retention_age.unwrap_or_default(),
            max_bytes: self
                .settings
                .retention_size
                .map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            duplicate_window: self.settings.duplicate_window(),
            ..self.stream()
        };
        let dead = stream::Config {
            name: self.settings.dead(),
            description: Some("dead letters of eventbus".to_owned()),
            subjects: vec![format!("{prefix}-dead.>")],
            ..self.stream()
        };
        let bucket = self.settings.parked();
        let parked = stream::Config {
            name: format!("KV_{bucket}"),
            description: Some("retries of eventbus that wait".to_owned()),
            subjects: vec![format!("$KV.{bucket}.>")],
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            ..self.stream()
        };
        let mut made = false;
        for (config, is_first) in [(events, true), (dead, false), (parked, false)] {
            made |= self.ensure_stream(config, is_first).await? && is_first;
        }
        Ok(made)
    }

    /// Makes streams again that are gone, where this program makes any.
    pub(crate) async fn make_streams_again(&self) -> Result<(), BrokerError> {
        if self.settings.topology == Topology::Create && self.ensure_streams().await? {
            log::error!(
                target: "eventbus", stream = %printable(&self.settings.stream),
                "the stream of the events was gone: somebody has removed it, or the server has lost its data; it was made \
                 again, and what was in it is lost"
            );
        }
        Ok(())
    }

    fn stream(&self) -> stream::Config {
        stream::Config {
            retention: RetentionPolicy::Limits,
            storage: match self.settings.storage.unwrap_or_default() {
                Storage::File => StorageType::File,
                Storage::Memory => StorageType::Memory,
            },
            num_replicas: self.settings.replicas.unwrap_or(1),
            max_bytes: -1,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            max_message_size: -1,
            allow_direct: true,
            ..stream::Config::default()
        }
    }

    async fn ensure_stream(&self, wanted: stream::Config, is_first: bool) -> Result<bool, BrokerError> {
        let name = wanted.name.clone();
        let info = |refusal| self.explain(format_args!("look at the stream `{name}`"), refusal);
        let found = match self.api::<stream::Info>(format!("STREAM.INFO.{name}"), &Nothing {}).await {
            Ok(found) => found.config,
            Err(refusal) if refusal.is(ErrorCode::STREAM_NOT_FOUND) => {
                if self.settings.topology == Topology::Check {
                    return Err(BrokerError::new(format!(
                        "there is no stream `{name}`; make it with the subjects {:?}, or let this program do so \
                         (`?topology=create`)",
                        wanted.subjects
                    )));
                }
                let make = self.api::<stream::Info>(format!("STREAM.CREATE.{name}"), &wanted).await;
                match make {
                    Ok(_) => return Ok(true),
                    // Another program has made it just now.
                    Err(refusal) if refusal.is(ErrorCode::STREAM_NAME_EXIST) => {
                        self.api::<stream::Info>(format!("STREAM.INFO.{name}"), &Nothing {})
                            .await
                            .map_err(info)?
                            .config
                    }
                    Err(refusal) => {
                        return Err(self.explain(format_args!("make the stream `{name}`"), refusal));
                    }
                }
            }
            Err(refusal) => return Err(info(refusal)),
        };
        let differences = self.differences_of_stream(&wanted, &found, is_first);
        if differences.is_empty() {
            return Ok(false);
        }
        Err(BrokerError::new(format!(
            "the stream `{name}` is there with other settings: {}; change the stream (`nats stream edit {name}`), or the \
             settings of this program",
            differences.join(", ")
        )))
    }

    fn differences_of_stream(
        &self,
        wanted: &stream::Config,
        found: &stream::Config,
        is_first: bool,
    ) -> Vec<String> {
        let mut differences = Differences::default();
        let covered = |subject: &String| found.subjects.iter().any(|other| covers(other, subject));
        if !wanted.subjects.iter().all(covered) {
            differences.add("subjects", &wanted.subjects, &found.subjects);
        }
        differences.compare("retention", &wanted.retention, &found.retention);
        differences.compare("no_ack", &false, &found.no_ack);
        differences.compare("sealed", &false, &found.sealed);
        if is_first {
            if self.settings.retention_age.is_some() {
                differences.compare("max_age", &wanted.max_age, &found.max_age);
            }
            if self.settings.retention_size.is_some() {
                differences.compare("max_bytes", &wanted.max_bytes, &found.max_bytes);
            }
            if self.settings.duplicate_window.is_some() {
                differences.compare("duplicate_window", &wanted.duplicate_window, &found.duplicate_window);
            } else if found.duplicate_window < self.settings.publish_timeout {
                let at_least = format!("at least {:?}", self.settings.publish_timeout);
                differences
                    .0
                    .push(format!("duplicate_window is {:?}, and not {at_least}", found.duplicate_window));
            }
        }
        if self.settings.storage.is_some() {
            differences.compare("storage", &wanted.storage, &found.storage);
        }
        if self.settings.replicas.is_some() {
            differences.compare("replicas", &wanted.num_replicas, &found.num_replicas);
        }
        differences.0
    }

    /// Looks for the consumer of a subscription, where none is made.
    pub(crate) async fn check(&self, request: &SubscribeRequest) -> Result<(), BrokerError> {
        if self.settings.topology == Topology::Create {
            return Ok(());
        }
        let wanted = Wanted {
            group: &request.group,
            pattern: &request.pattern,
            from: first(request.start),
            again: false,
            competing: request.competing,
        };
        self.find_consumer(&wanted, true).await.map(drop)
    }

    /// Makes the consumer of a group on a pattern, or finds it as it should be. `true`: it was made.
    pub(crate) async fn ensure_consumer(
        &self,
        wanted: &Wanted<'_>,
    ) -> Result<(bool, consumer::Info), BrokerError> {
        self.find_consumer(wanted, false).await
    }

    /// The same. Whoever only `looks` changes nothing, also not what is of no use any more.
    async fn find_consumer(
        &self,
        wanted: &Wanted<'_>,
        looks: bool,
    ) -> Result<(bool, consumer::Info), BrokerError> {
        let name = consumer_name(wanted.group, wanted.pattern.as_str());
        let whose = format!("the group `{}` on \"{}\"", wanted.group, wanted.pattern);
        let mut config = self.consumer(&name, wanted);
        let found = match self.consumer_info(&name).await {
            Ok(found) => found,
            Err(refusal) if refusal.is(ErrorCode::CONSUMER_NOT_FOUND) => {
                if self.settings.topology == Topology::Check {
                    return Err(BrokerError::new(format!(
                        "there is no consumer `{name}` for {whose}; make it in the stream `{}` with the settings {}, or let \
                         this program do so (`?topology=create`)",
                        self.settings.stream,
                        settings_of(&config)
                    )));
                }
                let moved = self.place_of(&name).await?;
                let is_new = moved.is_none();
                if let Some(moved) = moved {
                    config.deliver_policy = moved.deliver_policy;
                    config.filter_subject = moved.filter_subject;
                    config.filter_subjects = moved.filter_subjects;
                } else if !wanted.again {
                    self.remove_notes_of_former(&name).await?;
                }
                match self.set_consumer(config.clone(), "create").await {
                    Ok(info) => {
                        if !is_new {
                            self.forget_place(&name).await?;
                        }
                        return Ok((is_new, info));
                    }
                    // Another process of the group has made it just now.
                    Err(refusal)
                        if refusal.is(ErrorCode::CONSUMER_NAME_EXIST)
                            || refusal.is(ErrorCode::CONSUMER_ALREADY_EXISTS) =>
                    {
                        self.consumer_info(&name).await.map_err(|refusal| {
                            self.explain(format_args!("look at the consumer of {whose}"), refusal)
                        })?
                    }
                    Err(refusal) => {
                        return Err(
                            self.explain(format_args!("make the consumer `{name}` of {whose}"), refusal)
                        );
                    }
                }
            }
            Err(refusal) => {
                return Err(self.explain(format_args!("look at the consumer of {whose}"), refusal));
            }
        };
        if !looks && !wanted.again && self.place_of(&name).await?.is_some() {
            // It was made again, or was not removed yet: whoever opens the group goes on with it.
            self.forget_place(&name).await?;
        }
        let mut differences = differences_of_consumer(&config, &found.config);
        // How long a process may be silent, and how many processes handle the group, may change while it goes on.
        let changes = [
            found.config.ack_wait != config.ack_wait,
            found.config.priority_policy != config.priority_policy,
            found.config.priority_timeout != config.priority_timeout,
            found.config.priority_groups != config.priority_groups,
        ];
        if differences.is_empty() && changes.contains(&true) {
            if self.settings.topology == Topology::Check {
                let mut different = Differences::default();
                different.compare("ack_wait", &config.ack_wait, &found.config.ack_wait);
                different.compare("priority_policy", &config.priority_policy, &found.config.priority_policy);
                different.compare(
                    "priority_timeout",
                    &config.priority_timeout,
                    &found.config.priority_timeout,
                );
                different.compare("priority_groups", &config.priority_groups, &found.config.priority_groups);
                differences = different.0;
            } else {
                config.deliver_policy = found.config.deliver_policy;
                config.filter_subject.clone_from(&found.config.filter_subject);
                config.filter_subjects.clone_from(&found.config.filter_subjects);
                match self.set_consumer(config, "update").await {
                    Ok(info) => return Ok((false, info)),
                    Err(refusal) => {
                        return Err(
                            self.explain(format_args!("change the consumer `{name}` of {whose}"), refusal)
                        );
                    }
                }
            }
        }
        if differences.is_empty() {
            return Ok((false, found));
        }
        Err(BrokerError::new(format!(
            "the consumer `{name}` of {whose} is there with other settings: {}; change the consumer, or drop the group \
             (`eventbus groups drop {}`), which forgets how far it has come",
            differences.join(", "),
            wanted.group
        )))
    }

    /// The consumer that was being made again as somebody crashed.
    pub(crate) async fn place_of(&self, name: &str) -> Result<Option<consumer::Config>, BrokerError> {
        let subject = self.settings.moved_subject(name);
        let found = self.noted(&subject).await.map_err(|refusal| {
            self.explain(format_args!("look where the group of `{name}` was to go on"), refusal)
        })?;
        let Some(payload) = found else { return Ok(None) };
        serde_json::from_slice(&payload).map(Some).map_err(|error| {
            let bucket = self.settings.parked();
            BrokerError::new(format!(
                "the group of the consumer `{name}` was being moved, and what the bucket `{bucket}` says of its place cannot \
                 be read; move it again, or remove that (`nats kv del {bucket} moved.{name}`), and it begins as a new one"
            ))
            .with_cause(error)
        })
    }

    /// The consumer is made again.
    pub(crate) async fn forget_place(&self, name: &str) -> Result<(), BrokerError> {
        self.purge_notes(&self.settings.moved_subject(name), None).await
    }

    /// Removes what was noted under these subjects, of all or of those before a place in the bucket.
    pub(crate) async fn purge_notes(&self, filter: &str, before: Option<u64>) -> Result<(), BrokerError> {
        #[derive(Serialize)]
        struct Request<'a> {
            filter: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            seq: Option<u64>,
        }

        let bucket = self.settings.parked();
        let request = Request { filter, seq: before };
        let purge = self.api::<IgnoredAny>(format!("STREAM.PURGE.KV_{bucket}"), &request);
        match purge.await {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.is(ErrorCode::STREAM_NOT_FOUND) => Ok(()),
            Err(refusal) => {
                Err(self.explain(format_args!("remove `{filter}` from the bucket `{bucket}`"), refusal))
            }
        }
    }

    /// Removes what was noted of events of a consumer of this name that is gone: whoever has removed it may have crashed
    /// before that. What another process notes that makes it anew just now stays.
    pub(crate) async fn remove_notes_of_former(&self, name: &str) -> Result<(), BrokerError> {
        let bucket = format!("KV_{}", self.settings.parked());
        let failed = |refusal| self.explain(format_args!("look at the stream `{bucket}`"), refusal);
        let info = self.api::<stream::Info>(format!("STREAM.INFO.{bucket}"), &Nothing {}).await;
        let last = match info {
            Ok(info) => info.state.last_sequence,
            Err(refusal) if refusal.is(ErrorCode::STREAM_NOT_FOUND) => return Ok(()),
            Err(refusal) => return Err(failed(refusal)),
        };
        match self.consumer_info(name).await {
            Err(refusal) if refusal.is(ErrorCode::CONSUMER_NOT_FOUND) => {
                self.purge_notes(&self.settings.notes_subject(name), Some(last + 1)).await
            }
            // It is there by now, with notes of its own; what it is otherwise is said as it is made.
            _ => Ok(()),
        }
    }

    /// What the server knows of a consumer.
    pub(crate) async fn consumer_info(&self, name: &str) -> Result<consumer::Info, Refusal> {
        self.api(format!("CONSUMER.INFO.{}.{name}", self.settings.stream), &Nothing {}).await
    }

    /// Makes or changes a consumer of the events.
    pub(crate) async fn set_consumer(
        &self,
        config: consumer::Config,
        action: &'static str,
    ) -> Result<consumer::Info, Refusal> {
        self.set_consumer_of(&self.settings.stream, config, action).await
    }

    pub(crate) async fn set_consumer_of(
        &self,
        stream: &str,
        config: consumer::Config,
        action: &'static str,
    ) -> Result<consumer::Info, Refusal> {
        #[derive(Serialize)]
        struct Request<'a> {
            stream_name: &'a str,
            config: &'a consumer::Config,
            action: &'a str,
        }

        let name = config.name.as_deref().unwrap_or_default();
        let subject = format!("CONSUMER.CREATE.{stream}.{name}");
        self.api(subject, &Request { stream_name: stream, config: &config, action }).await
    }

    /// How a consumer is made.
    pub(crate) fn consumer(&self, name: &str, wanted: &Wanted<'_>) -> consumer::Config {
        let subject = self.settings.subject(wanted.pattern.as_str());
        let (filter_subject, filter_subjects) = match wanted.again {
            true => (String::new(), vec![subject, self.settings.again(name, ">")]),
            false => (subject, Vec::new()),
        };
        let metadata = [(GROUP, wanted.group), (PATTERN, wanted.pattern.as_str())];
        consumer::Config {
            durable_name: Some(name.to_owned()),
            name: Some(name.to_owned()),
            description: Some(format!("the group {} on {}", wanted.group, wanted.pattern)),
            deliver_policy: wanted.from,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.settings.ack_wait,
            // It is our own limits that end first.
            max_deliver: -1,
            max_ack_pending: -1,
            filter_subject,
            filter_subjects,
            replay_policy: ReplayPolicy::Instant,
            metadata: metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            priority_policy: if wanted.competing {
                PriorityPolicy::None
            } else {
                PriorityPolicy::PinnedClient
            },
            priority_groups: if wanted.competing { Vec::new() } else { vec![PRIORITY_GROUP.to_owned()] },
            priority_timeout: if wanted.competing { Duration::ZERO } else { self.settings.ack_wait },
            ..consumer::Config::default()
        }
    }
}

/// The consumer that a group is to have on a pattern.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) group: &'a str,
    pub(crate) pattern: &'a Pattern,
    /// Where it begins, if it is made.
    pub(crate) from: DeliverPolicy,
    /// It was there before, and may have had events that go back to this group only.
    pub(crate) again: bool,
    /// Whether several processes handle it at once.
    pub(crate) competing: bool,
}

/// Where a new group begins.
pub(crate) fn first(start: Start) -> DeliverPolicy {
    match start {
        Start::Earliest => DeliverPolicy::All,
        _ => DeliverPolicy::New,
    }
}

/// The subjects that a consumer takes.
pub(crate) fn filters(config: &consumer::Config) -> Vec<String> {
    match config.filter_subject.as_str() {
        "" => config.filter_subjects.clone(),
        subject => vec![subject.to_owned()],
    }
}

/// What a consumer is made with, as the server reads it and `nats consumer add --config` does.
fn settings_of(config: &consumer::Config) -> String {
    serde_json::to_string(config).unwrap_or_else(|error| format!("(they cannot be written: {error})"))
}

/// What is other than it should be, and what nobody may change while the consumer goes on.
fn differences_of_consumer(wanted: &consumer::Config, found: &consumer::Config) -> Vec<String> {
    let mut differences = Differences::default();
    // A second one is for what is delivered again.
    let (subject, subjects) = (filters(wanted).into_iter().next().unwrap_or_default(), filters(found));
    if subjects.first() != Some(&subject) {
        differences.add("filter_subject", &subject, &subjects);
    }
    differences.compare("ack_policy", &wanted.ack_policy, &found.ack_policy);
    if found.max_deliver > 0 {
        differences.compare("max_deliver", &wanted.max_deliver, &found.max_deliver);
    }
    if found.max_ack_pending > 0 && found.max_ack_pending < 1_000 {
        differences.compare("max_ack_pending", &wanted.max_ack_pending, &found.max_ack_pending);
    }
    // Of as much it is asked at once.
    let at_most =
        |found: i64, asked: usize| found > 0 && usize::try_from(found).is_ok_and(|found| found < asked);
    if at_most(found.max_batch, AHEAD) {
        differences.compare("max_batch", &wanted.max_batch, &found.max_batch);
    }
    if at_most(found.max_bytes, BYTES) {
        differences.compare("max_bytes", &wanted.max_bytes, &found.max_bytes);
    }
    if !found.max_expires.is_zero() && found.max_expires < EXPIRES {
        differences.compare("max_expires", &wanted.max_expires, &found.max_expires);
    }
    // A group that nobody handles for a while would be gone, with its place.
    differences.compare("inactive_threshold", &wanted.inactive_threshold, &found.inactive_threshold);
    differences.compare("replay_policy", &wanted.replay_policy, &found.replay_policy);
    differences.compare("headers_only", &false, &found.headers_only);
    differences.compare("deliver_subject", &None, &found.deliver_subject);
    differences.0
}

/// What is other than it should be, with both values.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn compare<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, wanted: &T, found: &T) {
        if wanted != found {
            self.add(what, wanted, found);
        }
    }

    fn add(&mut self, what: &str, wanted: &impl std::fmt::Debug, found: &impl std::fmt::Debug) {
        self.0.push(format!("{what} is {found:?}, and not {wanted:?}"));
    }
}

/// Whether every subject of `narrow` is one of `wide`; both may have wildcards.
pub(crate) fn covers(wide: &str, narrow: &str) -> bool {
    let (mut wide, mut narrow) = (wide.split('.'), narrow.split('.'));
    loop {
        match (wide.next(), narrow.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(token), Some(other)) if token == other => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_consumers_are_readable_and_differ_for_groups_and_patterns() {
        let name = consumer_name("shop.charge", "order.>");
        assert!(name.starts_with("shop_charge-") && name.len() == "shop_charge-".len() + 16, "{name}");
        assert_eq!(name, consumer_name("shop.charge", "order.>"));
        for (group, pattern) in
            [("shop_charge", "order.>"), ("shop.charge", "order.*"), ("shop.charg", "eorder.>")]
        {
            assert_ne!(consumer_name(group, pattern), name);
        }
        assert!(consumer_name(&"x".repeat(200), ">").len() < 200);
    }

    #[test]
    fn a_topic_is_found_in_each_kind_of_subject() {
        let settings = crate::config::NatsBrokerBuilder::parse("nats://a?prefix=shop.v1").unwrap().0;
        for subject in [
            settings.subject("order.placed"),
            settings.again("group-1", "order.placed"),
            settings.dead_subject("a.b", "order.placed"),
        ] {
            assert_eq!(settings.topic_of(&subject), "order.placed", "{subject}");
        }
        assert_eq!(settings.topic_of("other.subject"), "other.subject");
    }

    #[test]
    fn a_stream_covers_the_subjects_that_it_takes() {
        for (wide, narrow, expected) in [
            ("a.>", "a.>", true),
            (">", "a.>", true),
            ("a.>", "a.b.*", true),
            ("a.*", "a.b", true),
            ("a.*", "a.>", false),
            ("a.b", "a.*", false),
            ("a.>", "a", false),
            ("b.>", "a.>", false),
            ("a", "a", true),
        ] {
            assert_eq!(covers(wide, narrow), expected, "{wide} {narrow}");
        }
    }
}

//! Topics of Kafka: which there are, those that are made or have to be there, and what they are called.

use crate::config::OWN;
use crate::connection::{CALL, Link, blocking, cannot, drain, explain, patience};
use crate::place::hash;
use eventbus_core::broker::{SubscribeRequest, Topology};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::waiters::Waiters;
use eventbus_core::{BrokerError, Pattern};
use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// As long as a name may be.
const MAX_NAME: usize = 249;
/// A topic that was not in so many looks in a row is gone: a look may have begun before it was made.
const GONE: u8 = 2;
/// How long to wait until a topic that was made can be used.
const SETTLE: Duration = Duration::from_millis(20);

/// Who wants to know of new topics.
pub(crate) trait Listener: Send + Sync {
    /// There are others than before.
    fn topics_changed(&self);
}

/// The topics that are known, by their names in Kafka.
pub(crate) struct Topics {
    known: Lock<Known>,
    listeners: Lock<Vec<Weak<dyn Listener>>>,
    /// Groups leave marks, so their topic is to be there.
    marks: AtomicBool,
    changes: AtomicU64,
    pub(crate) changed: Waiters,
}

#[derive(Default)]
struct Known {
    /// With how many partitions each has, and in how many looks in a row it was missing.
    topics: BTreeMap<Arc<str>, (i32, u8)>,
    /// Those whose settings were compared with what is asked for.
    checked: BTreeMap<Arc<str>, ()>,
}

impl Topics {
    pub(crate) fn new() -> Self {
        Self {
            known: Lock::new(Rank::BROKER_LAST, Known::default()),
            listeners: Lock::new(Rank::BROKER, Vec::new()),
            marks: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            changed: Waiters::new(),
        }
    }

    /// Tells this one of changes, as long as it is there.
    pub(crate) fn listen(&self, listener: Weak<dyn Listener>) {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(listener);
    }

    /// How often they have changed: whoever has looked at them need not look again before that is another number.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn tell(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        let listeners: Vec<_> = self.listeners.lock().iter().filter_map(Weak::upgrade).collect();
        listeners.iter().for_each(|listener| listener.topics_changed());
        self.changed.tell();
    }

    /// The topics whose names are such, with how many partitions they have.
    pub(crate) fn which(&self, mut is_such: impl FnMut(&str) -> bool) -> Vec<(Arc<str>, i32)> {
        let known = self.known.lock();
        let such = known.topics.iter().filter(|(name, _)| is_such(name));
        such.map(|(name, (partitions, _))| (Arc::clone(name), *partitions)).collect()
    }

    /// How many partitions a topic has, where it is known.
    pub(crate) fn partitions(&self, name: &str) -> Option<i32> {
        self.known.lock().topics.get(name).map(|(partitions, _)| *partitions)
    }

    fn add(&self, name: &str, partitions: i32) {
        let is_new = {
            let mut known = self.known.lock();
            known.checked.insert(name.into(), ());
            known.topics.insert(name.into(), (partitions, 0)).is_none_or(|(before, _)| before != partitions)
        };
        if is_new {
            self.tell();
        }
    }

    /// A topic is not there, as a server says: it is looked for again before it is used.
    pub(crate) fn forget(&self, name: &str) {
        let gone = {
            let mut known = self.known.lock();
            known.checked.remove(name);
            known.topics.remove(name)
        };
        if gone.is_some() {
            self.tell();
        }
    }

    /// These are all there are, with how many partitions each has; none of one of which that is not known now.
    fn look(&self, found: BTreeMap<Arc<str>, i32>) {
        let changed = {
            let mut known = self.known.lock();
            let mut changed = false;
            for (name, partitions) in &found {
                if *partitions == 0 {
                    if let Some((_, missing)) = known.topics.get_mut(name) {
                        *missing = 0;
                    }
                    continue;
                }
                let before = known.topics.insert(Arc::clone(name), (*partitions, 0));
                changed |= before.is_none_or(|(before, _)| before != *partitions);
            }
            let Known { topics, checked } = &mut *known;
            topics.retain(|name, (_, missing)| {
                *missing += u8::from(!found.contains_key(name));
                let is_gone = *missing >= GONE;
                if is_gone {
                    checked.remove(name);
                }
                changed |= is_gone;
                !is_gone
            });
            changed
        };
        if changed {
            self.tell();
        }
    }

    fn is_checked(&self, name: &str) -> bool {
        let known = self.known.lock();
        known.checked.contains_key(name) && known.topics.contains_key(name)
    }
}

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Events.
    Events,
    /// The groups that there are: nothing is ever in it.
    Groups,
    /// Dead letters, by their names.
    DeadLetters,
    /// Events that are published again for one group.
    Again,
}

impl Link {
    /// Where groups leave a mark, so that one is known which has no event yet.
    pub(crate) fn groups_topic(&self) -> String {
        format!("{}{OWN}groups", self.settings.prefix)
    }

    /// Where the dead letters of a group are.
    pub(crate) fn dead_letters_topic(&self, group: &str) -> String {
        self.named("dead-letters", group)
    }

    /// Where the dead letters of a group go that are published again.
    pub(crate) fn again_topic(&self, group: &str) -> String {
        self.named("again", group)
    }

    /// What the names of topics of dead letters begin with.
    pub(crate) fn dead_letters_begin(&self) -> String {
        format!("{}{OWN}dead-letters.", self.settings.prefix)
    }

    fn named(&self, what: &str, group: &str) -> String {
        let begin = format!("{}{OWN}{what}.", self.settings.prefix);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if group.chars().all(is_plain) && begin.len() + group.len() <= MAX_NAME {
            return format!("{begin}{group}");
        }
        let room = MAX_NAME.saturating_sub(begin.len() + 17).min(150);
        let plain: String = group.chars().map(|c| if is_plain(c) { c } else { '_' }).take(room).collect();
        format!("{begin}{plain}-{:016x}", hash(group))
    }

    /// The Kafka topics that a pattern covers.
    pub(crate) fn covered(&self, topics: &Topics, pattern: &Pattern) -> Vec<(Arc<str>, i32)> {
        topics.which(|name| self.settings.topic_of(name).is_some_and(|topic| pattern.matches(topic)))
    }

    /// Looks which topics there are.
    pub(crate) async fn look_for_topics(&self, topics: &Topics) -> Result<(), KafkaError> {
        let client = Arc::clone(&self.client);
        let answer = blocking(move || {
            drain(&client);
            client.fetch_metadata(None, CALL / 2)
        });
        let answer = answer.await;
        self.heard(&answer);
        let metadata = answer?;
        let found = metadata.topics().iter().filter(|topic| topic.name().starts_with(&self.settings.prefix));
        let found = found.filter_map(|topic| {
            let partitions = match topic.error().map(RDKafkaErrorCode::from) {
                Some(RDKafkaErrorCode::UnknownTopicOrPartition) => return None,
                // It is there, and no more is known of it now.
                Some(_) => 0,
                None => count(topic.partitions().len()),
            };
            Some((topic.name().into(), partitions))
        });
        topics.look(found.collect());
        Ok(())
    }

    /// A topic for events is there.
    pub(crate) async fn topic(&self, topics: &Topics, topic: &str) -> Result<(), BrokerError> {
        let name = self.settings.kafka_topic(topic);
        if topics.is_checked(&name) {
            return Ok(());
        }
        if topic.starts_with(OWN) {
            return Err(BrokerError::new(format!(
                "`{topic}` cannot be a topic on Kafka: names that begin with `{OWN}` are for the server and the bus; take \
                 another name"
            )));
        }
        if name.len() > MAX_NAME {
            return Err(BrokerError::new(format!(
                "`{name}` cannot be a topic of Kafka: it has {} characters, and {MAX_NAME} are allowed; take a shorter name \
                 or `prefix`",
                name.len()
            )));
        }
        self.has(topics, &name, Use::Events).await
    }

    /// What a subscription needs is there.
    pub(crate) async fn has_for(&self, topics: &Topics, pattern: &Pattern) -> Result<(), BrokerError> {
        self.has_groups(topics).await?;
        if pattern.is_exact() {
            return self.topic(topics, pattern.as_str()).await;
        }
        let look = self.look_for_topics(topics).await;
        look.map_err(|error| cannot("look which topics there are", &error))
    }

    /// Looks for what a subscription needs, where none is made.
    pub(crate) async fn check(&self, topics: &Topics, request: &SubscribeRequest) -> Result<(), BrokerError> {
        if self.settings.topology == Topology::Create {
            return Ok(());
        }
        self.has_for(topics, &request.pattern).await
    }

    /// The topic in which groups leave their marks is there.
    pub(crate) async fn has_groups(&self, topics: &Topics) -> Result<(), BrokerError> {
        self.has(topics, &self.groups_topic(), Use::Groups).await?;
        topics.marks.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the topic in which groups leave their marks again, where somebody has removed it: with it all commits are refused.
    pub(crate) async fn keeps_groups(&self, topics: &Topics) -> Result<(), BrokerError> {
        let is_missing = topics.marks.load(Ordering::Relaxed) && !topics.is_checked(&self.groups_topic());
        if is_missing && self.settings.topology == Topology::Create {
            self.has_groups(topics).await?;
            log::warn!(
                target: "eventbus", topic = %printable(self.groups_topic()),
                "somebody has removed the topic without which no group can commit; it is made again"
            );
        }
        Ok(())
    }

    /// The topic for dead letters of a group is there.
    pub(crate) async fn has_dead_letters(&self, topics: &Topics, group: &str) -> Result<(), BrokerError> {
        self.has(topics, &self.dead_letters_topic(group), Use::DeadLetters).await
    }

    /// The topic for what is published again for a group is there.
    pub(crate) async fn has_again(&self, topics: &Topics, group: &str) -> Result<(), BrokerError> {
        self.has(topics, &self.again_topic(group), Use::Again).await
    }

    async fn has(&self, topics: &Topics, name: &str, purpose: Use) -> Result<(), BrokerError> {
        if topics.is_checked(name) {
            return Ok(());
        }
        if self.settings.topology == Topology::Create && topics.partitions(name).is_none() {
            self.make(name, purpose).await?;
        }
        let deadline = tokio::time::Instant::now() + self.settings.connect_timeout.max(CALL);
        loop {
            let problem = match self.describe(name).await {
                Ok(Described::There { partitions, copies }) => {
                    if purpose == Use::Events {
                        self.compare(name, partitions, copies)?;
                    }
                    topics.add(name, partitions);
                    return Ok(());
                }
                Ok(Described::Missing) if self.settings.topology == Topology::Check => {
                    return Err(BrokerError::new(format!(
                        "the topic `{name}` is not there, and `topology=check` makes none; make it, or leave the option out"
                    )));
                }
                Ok(Described::Missing) => "it is not there yet".to_owned(),
                Ok(Described::Settling(said)) => said,
                Err(error) => explain(&error),
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(BrokerError::new(format!("the topic `{name}` cannot be used: {problem}")));
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// Says that a topic is otherwise than it is asked for.
    fn compare(&self, name: &str, partitions: i32, copies: i32) -> Result<(), BrokerError> {
        let settings = &self.settings;
        for (option, wanted, there, what) in [
            ("partitions", settings.partitions, partitions, "partitions"),
            ("replication", settings.replication, copies, "copies"),
        ] {
            if let Some(wanted) = wanted
                && i32::from(wanted) != there
            {
                return Err(BrokerError::new(format!(
                    "the topic `{name}` has {there} {what}, and `{option}` says {wanted}; change the topic with Kafka's own \
                     tools, or the option"
                )));
            }
        }
        Ok(())
    }

    async fn make(&self, name: &str, purpose: Use) -> Result<(), BrokerError> {
        let settings = &self.settings;
        let number = |number: Option<u16>| number.map_or(-1, i32::from);
        let partitions = if purpose == Use::Events { number(settings.partitions) } else { 1 };
        let largest = settings.max_message().to_string();
        let kept = settings.retention_age.map_or_else(|| "-1".to_owned(), |age| age.as_millis().to_string());
        let mut topic =
            NewTopic::new(name, partitions, TopicReplication::Fixed(number(settings.replication)));
        topic = match purpose {
            // The time of a record is when it was stored: it never goes back in a partition, so that places by time are an
            // order.
            Use::Events => topic.set("message.timestamp.type", "LogAppendTime").set("retention.ms", &kept),
            Use::Groups => topic,
            Use::DeadLetters => topic.set("cleanup.policy", "compact").set("max.message.bytes", &largest),
            // What was mended is part of the history.
            Use::Again => topic
                .set("message.timestamp.type", "LogAppendTime")
                .set("retention.ms", "-1")
                .set("max.message.bytes", &largest),
        };
        let answer = self.admin.create_topics([&topic], &patience()).await;
        self.heard(&answer);
        let refused = |code: RDKafkaErrorCode| {
            let hint = match code {
                RDKafkaErrorCode::InvalidTopic => {
                    "; Kafka takes no two names that differ in `.` and `_` only, such as `a.b` and `a_b`"
                }
                RDKafkaErrorCode::InvalidReplicationFactor => {
                    "; there are fewer servers than `replication` says"
                }
                RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed => {
                    "; give the user of this program the right, or make the topic and write `topology=check`"
                }
                _ => "",
            };
            BrokerError::new(format!("cannot make the topic `{name}`: {code}{hint}"))
        };
        match answer {
            Ok(results) => match results.into_iter().next() {
                Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => Err(refused(code)),
                _ => Ok(()),
            },
            Err(error) => Err(cannot(format_args!("make the topic `{name}`"), &error)),
        }
    }

    async fn describe(&self, name: &str) -> Result<Described, KafkaError> {
        let (client, asked) = (Arc::clone(&self.client), name.to_owned());
        let answer = blocking(move || client.fetch_metadata(Some(&asked), CALL)).await;
        self.heard(&answer);
        Ok(described(&answer?, name))
    }
}

enum Described {
    There {
        partitions: i32,
        copies: i32,
    },
    Missing,
    /// It is being made.
    Settling(String),
}

fn described(metadata: &Metadata, name: &str) -> Described {
    let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
        return Described::Missing;
    };
    match topic.error().map(RDKafkaErrorCode::from) {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => return Described::Missing,
        Some(code) => return Described::Settling(code.to_string()),
        None => {}
    }
    let partitions = topic.partitions();
    if partitions.is_empty() || partitions.iter().any(|partition| partition.leader() < 0) {
        return Described::Settling("a partition has no leader".to_owned());
    }
    let copies = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or_default();
    Described::There { partitions: count(partitions.len()), copies: count(copies) }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

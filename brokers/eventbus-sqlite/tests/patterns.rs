//! Subscriptions whose patterns change between two versions of a program: what was unfinished is handled, or named as
//! left over, and nothing is handled twice for it.

mod support;

use eventbus::broker::{Broker, Deliveries, GroupState, Parked, Received, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus::{Backoff, Bus, Delivery, Envelope, Topic};
use eventbus_sqlite::{Durability, SqliteBroker};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use support::{Log, Seen, settled, until};

/// A program of one group: handles what comes on its patterns, and notes it.
async fn program(log: &Log, patterns: &[&str]) -> (Bus, Seen<(String, u32)>) {
    let bus = log.bus().await;
    let seen = Seen::new();
    for pattern in patterns {
        let noted = seen.clone();
        let note = move |delivery: Delivery| {
            let noted = noted.clone();
            async move {
                let payload = delivery.envelope().payload().unwrap();
                noted.push((serde_json::from_slice(payload).unwrap(), delivery.attempt()));
            }
        };
        bus.on_topic(*pattern, note).group("mail").await.unwrap();
    }
    bus.start().unwrap();
    (bus, seen)
}

/// A log whose group `mail` on `shop.*` has a retry of `shop.b` parked, and a backlog on both of its topics.
async fn log_with_unfinished() -> Log {
    let log = Log::new();
    let bus = log.bus().await;
    let pause = Duration::from_millis(300);
    bus.on_topic("shop.*", |_: Delivery| async { Err::<(), _>("the service is down") })
        .group("mail")
        .retries(100)
        .backoff(Backoff::new(pause, pause))
        .await
        .unwrap();
    bus.start().unwrap();
    bus.publish_to("shop.b", "retry").await.unwrap();
    until("it is parked", async || states(&bus).await.iter().any(|state| state.parked == 1)).await;
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    bus.publish_to("shop.a", "backlog a").await.unwrap();
    bus.publish_to("shop.b", "backlog b").await.unwrap();
    bus.shutdown().await.unwrap();
    log
}

async fn states(bus: &Bus) -> Vec<GroupState> {
    bus.groups().unwrap().list().await.unwrap()
}

fn texts(seen: &Seen<(String, u32)>) -> Vec<String> {
    seen.sorted().into_iter().map(|(text, _)| text).collect()
}

#[tokio::test]
async fn what_waited_is_handled_after_a_pattern_was_split_and_attempts_count_on() {
    for patterns in [["shop.a", "shop.b"], ["shop.b", "shop.a"]] {
        let log = log_with_unfinished().await;
        let (bus, seen) = program(&log, &patterns).await;
        until("all is handled", async || seen.len() == 3).await;
        assert_eq!(texts(&seen), ["backlog a", "backlog b", "retry"]);
        let retried = seen.all().into_iter().find(|(text, _)| text == "retry").unwrap();
        assert!(retried.1 > 1, "{retried:?}");
        settled(&bus).await;
        bus.shutdown().await.unwrap();
        let (bus, again) = program(&log, &patterns).await;
        settled(&bus).await;
        assert_eq!(again.len(), 0, "once only");
        let patterns: Vec<_> = states(&bus).await.into_iter().map(|state| state.pattern).collect();
        assert_eq!(patterns, ["shop.a", "shop.b"], "and nothing is left of the earlier pattern");
    }
}

#[tokio::test]
async fn what_a_narrowed_pattern_leaves_is_counted_and_handled_once_it_is_put_back() {
    let log = log_with_unfinished().await;
    let (bus, seen) = program(&log, &["shop.a"]).await;
    until("its own is handled", async || seen.len() == 1).await;
    settled(&bus).await;
    assert_eq!(texts(&seen), ["backlog a"]);
    let left = states(&bus).await.into_iter().find(|state| state.pattern == "shop.*").unwrap();
    assert_eq!((left.backlog, left.parked, left.active), (2, 1, false));
    bus.publish_to("shop.a", "meanwhile").await.unwrap();
    settled(&bus).await;
    bus.shutdown().await.unwrap();
    let (bus, seen) = program(&log, &["shop.*"]).await;
    until("the rest is handled", async || seen.len() == 2).await;
    settled(&bus).await;
    assert_eq!(texts(&seen), ["backlog b", "retry"], "and nothing twice");
    assert_eq!(states(&bus).await.len(), 1);
    bus.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_left_over_can_be_dropped_while_the_group_goes_on() {
    let log = log_with_unfinished().await;
    let (bus, seen) = program(&log, &["shop.a"]).await;
    until("its own is handled", async || seen.len() == 1).await;
    let groups = bus.groups().unwrap();
    assert!(groups.remove_on("mail", "shop.a").await.is_err(), "a process handles it");
    assert!(groups.remove_on("mail", "shop.*").await.unwrap());
    assert!(!groups.remove_on("mail", "shop.*").await.unwrap());
    bus.publish_to("shop.a", "next").await.unwrap();
    until("it goes on", async || seen.len() == 2).await;
    let left: Vec<_> = states(&bus).await.into_iter().map(|state| state.pattern).collect();
    assert_eq!(left, ["shop.a"]);
}

#[tokio::test]
async fn a_pattern_of_a_group_is_moved_and_given_away_by_itself() {
    let log = Log::new();
    let (bus, seen) = program(&log, &["shop.a", "shop.b"]).await;
    bus.publish_to("shop.a", "1").await.unwrap();
    bus.publish_to("shop.b", "2").await.unwrap();
    settled(&bus).await;
    let groups = bus.groups().unwrap();
    assert!(groups.seek_on("mail", "shop.a", None).await.is_err(), "a process handles it");
    assert!(groups.rename_on("mail", "shop.a", "post").await.is_err(), "a process handles it");
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    let groups = bus.groups().unwrap();
    assert!(groups.seek_on("mail", "shop.b", None).await.unwrap());
    assert!(!groups.seek_on("mail", "shop.c", None).await.unwrap());
    let backlogs = async || {
        let states = states(&bus).await;
        states.into_iter().map(|state| (state.group, state.pattern, state.backlog)).collect::<Vec<_>>()
    };
    let row = |group: &str, pattern: &str, backlog| (group.to_owned(), pattern.to_owned(), backlog);
    assert_eq!(backlogs().await, [row("mail", "shop.a", 0), row("mail", "shop.b", 1)]);
    assert!(groups.rename_on("mail", "shop.b", "post").await.unwrap());
    assert!(!groups.rename_on("mail", "shop.b", "post").await.unwrap());
    assert_eq!(backlogs().await, [row("mail", "shop.a", 0), row("post", "shop.b", 1)]);
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_new_version_waits_until_the_old_one_has_left_and_the_other_way_round() {
    let log = Log::new();
    let (old, old_seen) = program(&log, &["shop.*"]).await;
    let (new, new_seen) = program(&log, &["shop.a", "shop.b"]).await;
    old.publish_to("shop.a", "1").await.unwrap();
    settled(&old).await;
    old.shutdown().await.unwrap();
    new.publish_to("shop.b", "2").await.unwrap();
    until("the new version has taken over", async || new_seen.len() == 1).await;
    let (old, late) = program(&log, &["shop.*"]).await;
    new.publish_to("shop.b", "3").await.unwrap();
    until("the new version handles it", async || new_seen.len() == 2).await;
    settled(&new).await;
    new.shutdown().await.unwrap();
    old.publish_to("shop.a", "4").await.unwrap();
    until("the old version has taken over", async || late.len() == 1).await;
    assert_eq!(
        (texts(&old_seen), texts(&new_seen), texts(&late)),
        (vec!["1".into()], vec!["2".into(), "3".into()], vec!["4".into()])
    );
}

/// A log with a dead letter of the group `mail` on `topic`, whose program listened on `pattern`.
async fn log_with_dead_letter(pattern: &str, topic: &str) -> Log {
    let log = Log::new();
    let bus = log.bus().await;
    bus.on_topic(pattern, |_: Delivery| async { Err::<(), _>("no") }).group("mail").retries(0).await.unwrap();
    bus.start().unwrap();
    bus.publish_to(topic, "again").await.unwrap();
    settled(&bus).await;
    bus.shutdown().await.unwrap();
    log
}

#[tokio::test]
async fn a_dead_letter_goes_to_the_subscription_that_listens_now() {
    let log = log_with_dead_letter("shop.*", "shop.b").await;
    let (bus, seen) = program(&log, &["shop.a", "shop.b"]).await;
    let letters = bus.dead_letters().unwrap();
    let (id, _) = letters.list().await.unwrap().pop().unwrap();
    assert!(letters.republish(&id, None).await.unwrap());
    until("it is handled", async || seen.len() == 1).await;
    assert_eq!(texts(&seen), ["again"]);
}

#[tokio::test]
async fn a_dead_letter_of_a_topic_that_the_group_has_given_up_is_kept_and_the_error_says_so() {
    for narrow in ["shop.a", "other.a"] {
        let log = log_with_dead_letter("shop.*", "shop.b").await;
        let (bus, seen) = program(&log, &[narrow]).await;
        let letters = bus.dead_letters().unwrap();
        let (id, _) = letters.list().await.unwrap().pop().unwrap();
        let error = letters.republish(&id, None).await.unwrap_err().to_string();
        assert!(error.contains("`mail` does not listen on \"shop.b\" any more"), "{error}");
        bus.shutdown().await.unwrap();
        let (bus, late) = program(&log, &["shop.*"]).await;
        let letters = bus.dead_letters().unwrap();
        assert!(letters.republish(&id, None).await.unwrap(), "its pattern was put back");
        until("it is handled", async || late.len() == 1).await;
        assert_eq!(seen.len(), 0);
    }
}

const TOPICS: [&str; 5] = ["a.x", "a.y", "b.x", "b.y", "c.x.z"];
/// Versions of a program, each with patterns that do not overlap.
const PROGRAMS: [&[&str]; 10] = [
    &[">"],
    &["*.*"],
    &["a.*", "b.*"],
    &["*.x", "*.y"],
    &["a.x"],
    &["a.x", "a.y"],
    &["a.>", "c.>"],
    &["b.*", "a.x", "c.x.*"],
    &["b.y"],
    &["*.y", "*.x.>"],
];

/// One subscription of a run, and the place of the latest event of each topic that it was handed for the first time.
struct Reader {
    deliveries: Box<dyn Deliveries>,
    latest: BTreeMap<String, u128>,
}

impl Reader {
    /// What is at hand within a moment.
    async fn receive(&mut self) -> Vec<Received> {
        let mut received = Vec::new();
        let polled = poll_fn(|context| match self.deliveries.poll_receive(context, &mut received, 3) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Pending,
        });
        if let Ok(result) = tokio::time::timeout(Duration::from_millis(4), polled).await {
            result.unwrap();
        }
        received
    }
}

/// What has become of the events of a run.
#[derive(Default)]
struct Model {
    /// Published while some row of the group covered the topic.
    owed: BTreeSet<u128>,
    handled: BTreeMap<u128, u32>,
    topics: BTreeMap<u128, String>,
    /// Handled on topics that the group had given up, so that nothing of it is known any more.
    forgotten: BTreeSet<u128>,
    /// The attempt that comes next, where one was noted.
    attempts: BTreeMap<u128, u32>,
    published: u128,
}

impl Model {
    async fn publish(&mut self, broker: &SqliteBroker, topic: &str) {
        let groups = broker.groups().unwrap().list().await.unwrap();
        let envelope = Envelope::from_json(Topic::new(topic).unwrap(), &0).unwrap();
        broker.publish(Arc::new(envelope)).await.unwrap();
        self.published += 1;
        self.topics.insert(self.published, topic.to_owned());
        if groups.iter().any(|state| Pattern::new(&state.pattern).unwrap().matches(topic)) {
            self.owed.insert(self.published);
        }
    }

    /// What is said of a topic that no row of the group covers is forgotten.
    async fn forget(&mut self, broker: &SqliteBroker) {
        let groups = broker.groups().unwrap().list().await.unwrap();
        let known =
            |topic: &str| groups.iter().any(|state| Pattern::new(&state.pattern).unwrap().matches(topic));
        self.forgotten.extend(self.topics.iter().filter(|(_, topic)| !known(topic)).map(|(at, _)| *at));
    }

    /// Settles a delivery in a random way.
    async fn settle(&mut self, random: &mut fastrand::Rng, received: Received, finish: bool) {
        let Received { receipt, settler, .. } = received;
        let offset = receipt.offset.get();
        if !self.forgotten.contains(&offset) {
            assert_eq!(receipt.attempt, self.attempts.get(&offset).copied().unwrap_or(1), "{offset}");
        }
        match random.u8(..10) {
            0..3 if !finish => {
                let now = Timestamp::now();
                let parked = Parked { first_failed_at: now, last_failed_at: now, due: now };
                let next = eventbus::broker::Receipt { attempt: receipt.attempt + 1, ..receipt };
                settler.park(&next, parked).await.unwrap();
                self.attempts.insert(offset, next.attempt);
            }
            3..5 if !finish => {}
            _ => {
                settler.ack(receipt).await.unwrap();
                *self.handled.entry(offset).or_default() += 1;
            }
        }
    }
}

async fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let log = Log::new();
    let mut model = Model::default();
    let mut told = Vec::new();
    for step in 0..9 {
        let last = step == 8;
        let program = if step == 0 || last { PROGRAMS[0] } else { PROGRAMS[random.usize(..PROGRAMS.len())] };
        told.push(program);
        let broker = SqliteBroker::builder(log.path()).durability(Durability::Off).open().await.unwrap();
        let mut patterns = program.to_vec();
        random.shuffle(&mut patterns);
        let mut readers = Vec::new();
        for pattern in patterns {
            for _ in 0..random.usize(..3) {
                model.publish(&broker, TOPICS[random.usize(..TOPICS.len())]).await;
            }
            let request = SubscribeRequest::new("mail", Pattern::new(pattern).unwrap());
            let deliveries = broker.subscribe(request).await.unwrap();
            readers.push(Reader { deliveries, latest: BTreeMap::new() });
        }
        for _ in 0..random.usize(..6) {
            model.publish(&broker, TOPICS[random.usize(..TOPICS.len())]).await;
        }
        let backlog = async || {
            let states = broker.groups().unwrap().list().await.unwrap();
            states.iter().filter(|state| state.active).map(|state| state.backlog).sum::<u64>()
        };
        for _ in 0..random.usize(..6) {
            for reader in &mut readers {
                for received in reader.receive().await {
                    let topic = received.receipt.envelope.topic().to_string();
                    let offset = received.receipt.offset.get();
                    let latest = reader.latest.insert(topic, offset);
                    assert!(latest.is_none_or(|latest| latest < offset), "order of {offset}: {told:?}");
                    model.settle(&mut random, received, last).await;
                }
            }
        }
        if last {
            until("all is handled", async || {
                for received in readers[0].receive().await {
                    model.settle(&mut random, received, true).await;
                }
                backlog().await == 0
            })
            .await;
        }
        drop(readers);
        broker.close().await.unwrap();
        let broker = SqliteBroker::builder(log.path()).durability(Durability::Off).open().await.unwrap();
        assert_eq!(broker.verify().await.unwrap(), [] as [&str; 0]);
        model.forget(&broker).await;
        broker.close().await.unwrap();
    }
    for offset in &model.owed {
        let count = model.handled.get(offset).copied().unwrap_or_default();
        let right = count == 1 || (count > 1 && model.forgotten.contains(offset));
        assert!(right, "{offset} of {} was handled {count} times: {told:?}", model.published);
    }
}

#[tokio::test]
async fn whatever_the_patterns_become_every_event_is_handled_once_and_in_order() {
    let seed = std::env::var("EVENTBUS_PATTERN_SEED").map(|seed| seed.parse().unwrap());
    let (first, count) = seed.map_or_else(|_| (fastrand::u64(..1 << 60), 40), |seed| (seed, 1));
    for seed in first..first + count {
        println!("EVENTBUS_PATTERN_SEED={seed}");
        run(seed).await;
    }
}

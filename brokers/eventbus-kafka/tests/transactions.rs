//! Transactions: each event has exactly one answer, whatever becomes of the process that gives it.

mod support;

use eventbus::broker::{Broker, Received, Start};
use eventbus::{Bus, Delivery, Envelope, Outcome, PublishError, Topic};
use eventbus_kafka::KafkaBroker;
use eventbus_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use eventbus_kafka::rdkafka::error::KafkaError;
use eventbus_kafka::rdkafka::message::Message;
use eventbus_kafka::rdkafka::producer::{BaseProducer, Producer};
use eventbus_kafka::rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{event, number, receive, request, until};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const KEYS: u64 = 16;
const PARTITIONS: u16 = 4;
/// How long a process that has ended keeps its partitions, and its transaction.
const SESSION: Duration = Duration::from_secs(3);
/// How long a handler takes.
const TAKES: Duration = Duration::from_millis(10);

/// The moments of a transaction, as its lines of the log name them.
const RETURNED: &str = "a transaction has what handlers have returned";
const SETTLES: &str = "a transaction has what it settles";
const COMMITTED: &str = "a transaction is committed";
const NEVER: &str = "never";

/// How long a call to the server may take.
const CALL: Duration = Duration::from_secs(10);

async fn connect(prefix: &str, transactions: bool) -> KafkaBroker {
    let builder = support::builder(prefix).partitions(PARTITIONS).session_timeout(SESSION);
    builder.transactions(transactions).max_payload(4 << 20).connect().await.unwrap()
}

fn answer(number: u64) -> Envelope {
    let answer = Envelope::from_json(Topic::new("load.answered").unwrap(), &number).unwrap();
    answer.with_key((number % KEYS).to_string())
}

/// Sends the process a signal at a line of the log, when it comes for so many times.
struct Ending {
    line: String,
    signal: String,
    left: AtomicUsize,
}

impl Subscriber for Ending {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "eventbus"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Line<'a>(&'a str, bool);
        impl Visit for Line<'_> {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.1 |= field.name() == "message" && format!("{value:?}") == self.0;
            }
        }

        let mut line = Line(&self.line, false);
        event.record(&mut line);
        if line.1 && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            signal(std::process::id(), &self.signal);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn signal(process: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

/// Answers what its group has; started by the tests below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other test starts it as a process of its own"]
async fn a_process_of_its_own() {
    let Ok(settings) = std::env::var("EVENTBUS_KAFKA_TRANSACTIONS") else { return };
    let [prefix, transactions, signal, times, line] = settings.splitn(5, ' ').collect::<Vec<_>>()[..] else {
        panic!("{settings}")
    };
    let left = AtomicUsize::new(times.parse().unwrap());
    let ending = Ending { line: line.to_owned(), signal: signal.to_owned(), left };
    tracing::subscriber::set_global_default(ending).unwrap();
    let broker = connect(prefix, transactions == "true").await;
    let bus = Bus::builder().only([] as [&str; 0]).broker(broker).await.unwrap();
    let handler = |delivery: Delivery| async move {
        tokio::time::sleep(TAKES).await;
        let number: u64 = serde_json::from_slice(delivery.envelope().payload().unwrap()).unwrap();
        println!("handled {number}");
        Outcome::Publish(vec![answer(number)])
    };
    bus.on_topic("load.a", handler).group("answer").start(Start::Earliest).concurrency(4).await.unwrap();
    bus.run().await.unwrap();
}

/// A process that answers, until it is dropped.
struct Process {
    child: Child,
    handled: Arc<AtomicUsize>,
}

impl Process {
    fn start(prefix: &str, transactions: bool, (name, times, line): (&str, usize, &str)) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "a_process_of_its_own", "--nocapture"]);
        command.env("EVENTBUS_KAFKA_TRANSACTIONS", format!("{prefix} {transactions} {name} {times} {line}"));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let handled = Arc::new(AtomicUsize::new(0));
        let (lines, count) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&handled));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                count.fetch_add(usize::from(line.contains("handled ")), Ordering::SeqCst);
            }
        });
        Self { child, handled }
    }

    fn handled(&self) -> usize {
        self.handled.load(Ordering::SeqCst)
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn publish(broker: &KafkaBroker, numbers: std::ops::Range<u64>) {
    let events = numbers.map(|number| event("load.a", &(number % KEYS).to_string(), number)).collect();
    for stored in broker.publish_all(events).await {
        stored.unwrap();
    }
}

/// All answers that a reader of committed records has, by key.
fn answers(prefix: &str) -> BTreeMap<u64, Vec<u64>> {
    let mut config = support::client();
    config.set("group.id", format!("{prefix}reader")).set("enable.partition.eof", "true");
    let reader: BaseConsumer = config.set("isolation.level", "read_committed").create().unwrap();
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let topic = format!("{prefix}load.answered");
        all.add_partition_offset(&topic, partition.into(), Offset::Beginning).unwrap();
    }
    reader.assign(&all).unwrap();
    let (mut by_key, mut ended) = (BTreeMap::<_, Vec<u64>>::new(), BTreeSet::new());
    while ended.len() < usize::from(PARTITIONS) {
        match reader.poll(Duration::from_secs(1)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => _ = ended.insert(partition),
            // There is no such topic yet.
            Some(Err(_)) => return by_key,
            Some(Ok(record)) => {
                let number: u64 = serde_json::from_slice(record.payload().unwrap()).unwrap();
                by_key.entry(number % KEYS).or_default().push(number);
            }
        }
    }
    by_key
}

async fn all_answered(prefix: &str, events: u64) {
    until("everything is answered", async || {
        let prefix = prefix.to_owned();
        let answers = tokio::task::spawn_blocking(move || answers(&prefix)).await.unwrap();
        answers.values().flatten().collect::<BTreeSet<_>>().len() as u64 >= events
    })
    .await;
}

/// What is answered once each, in order by key.
fn once(events: u64) -> BTreeMap<u64, Vec<u64>> {
    (0..KEYS).map(|key| (key, (0..events).filter(|number| number % KEYS == key).collect())).collect()
}

/// Kills processes in the middle, one after the other; the last one answers the rest.
async fn killed(transactions: bool, kills: &[(usize, &str)]) {
    const EVENTS: u64 = 600;
    let prefix = support::prefix();
    let broker = connect(&prefix, transactions).await;
    publish(&broker, 0..EVENTS).await;
    for (after, line) in kills {
        let mut process = Process::start(&prefix, transactions, ("-KILL", *after, line));
        until("it is killed, or has handled what it is to", async || {
            process.has_ended() || (*line == NEVER && process.handled() >= *after)
        })
        .await;
        drop(process);
    }
    let process = Process::start(&prefix, transactions, ("-KILL", 0, NEVER));
    all_answered(&prefix, EVENTS).await;
    drop(process);
    let answered = answers(&prefix);
    broker.close().await.unwrap();
    support::remove(&prefix).await;
    assert_eq!(answered, once(EVENTS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_has_exactly_one_answer_however_often_the_process_is_killed() {
    let random = || 20 + fastrand::usize(..80);
    // Twelve kills: three at each moment of a transaction, and three at any.
    let kills = |chain: usize| {
        [(2 + chain, RETURNED), (3 + chain, SETTLES), (1 + chain, COMMITTED), (random(), NEVER)]
    };
    let [one, two, three] = [0, 1, 2].map(kills);
    tokio::join!(killed(true, &one), killed(true, &two), killed(true, &three));
}

/// The server gives its partitions to another process meanwhile, and aborts what it had begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_still_in_the_middle_of_a_transaction_cannot_commit_it() {
    const EVENTS: u64 = 300;
    let prefix = support::prefix();
    let broker = connect(&prefix, true).await;
    publish(&broker, 0..EVENTS).await;
    let one = Process::start(&prefix, true, ("-STOP", 3, SETTLES));
    until("it answers", async || one.handled() >= 8).await;
    let other = Process::start(&prefix, true, ("-KILL", 0, NEVER));
    all_answered(&prefix, EVENTS).await;
    let before = one.handled();
    signal(one.child.id(), "-CONT");
    let mut published = EVENTS;
    until("the first one answers again", async || {
        publish(&broker, published..published + KEYS).await;
        published += KEYS;
        one.handled() > before + 20
    })
    .await;
    all_answered(&prefix, published).await;
    drop((one, other));
    assert_eq!(answers(&prefix), once(published));
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

async fn settle(
    received: &Received,
    answer: Envelope,
) -> Result<Result<(), eventbus::error::BrokerError>, PublishError> {
    let answers = [Arc::new(answer)];
    received.settler.ack_with(&received.receipt, &answers).expect("it takes both in one").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_kafka_does_not_take_fails_its_attempt_alone() {
    const EVENTS: u64 = 16;
    let prefix = support::prefix();
    let broker = connect(&prefix, true).await;
    assert!(broker.features().transactions);
    let mut deliveries = broker.subscribe(request("answer", "load.a")).await.unwrap();
    publish(&broker, 0..EVENTS).await;
    let received = receive(&mut deliveries, EVENTS as usize).await;
    // Larger than the topic takes, and than a client of this broker minds.
    let too_large = "x".repeat(2 << 20);
    let settling = received.into_iter().map(|received| {
        let too_large = too_large.clone();
        tokio::spawn(async move {
            let number = number(&received);
            let small = answer(number);
            let answer = match number % 8 {
                3 => Envelope::from_json(Topic::new("load.answered").unwrap(), &too_large).unwrap(),
                _ => small.clone(),
            };
            let answered = settle(&received, answer).await;
            let failed = match (number % 8, answered) {
                (3, Err(error)) => {
                    assert!(error.to_string().contains("max.message.bytes"), "{error}");
                    true
                }
                (_, answered) => {
                    answered.expect("it is taken").expect("it is settled");
                    false
                }
            };
            if failed {
                assert!(received.settler.holds(&received.receipt));
                settle(&received, small).await.expect("it is taken").expect("it is settled");
            }
            failed
        })
    });
    let mut failed = 0;
    for settled in settling.collect::<Vec<_>>() {
        failed += usize::from(settled.await.unwrap());
    }
    assert_eq!((failed, answers(&prefix)), (2, once(EVENTS)));
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

/// What a process leaves that is killed in the middle of a transaction: `first` is said to be settled in it.
fn left_open(prefix: &str, first: i64) -> BaseProducer {
    let id = format!("{prefix}killed");
    let mut config = support::client();
    config
        .set("transactional.id", &id)
        .set("transaction.timeout.ms", support::PATIENCE.as_millis().to_string());
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(CALL).unwrap();
    producer.begin_transaction().unwrap();
    let member: BaseConsumer =
        support::client().set("group.id", format!("{prefix}answer@load.a")).create().unwrap();
    let mut settled = TopicPartitionList::new();
    settled.add_partition_offset(&format!("{prefix}load.a"), 0, Offset::Offset(first)).unwrap();
    let group = member.group_metadata().unwrap();
    producer.send_offsets_to_transaction(&settled, &group, CALL).unwrap();
    producer
}

/// Where a group stands is not known before the server has given that transaction up, which may take as long as it takes to
/// give up a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_a_killed_process_leaves_open_keeps_nobody_from_starting_or_from_looking() {
    let prefix = support::prefix();
    let open = async || support::builder(&prefix).partitions(1).transactions(true).connect().await.unwrap();
    let broker = open().await;
    let mut deliveries = broker.subscribe(request("answer", "load.a")).await.unwrap();
    publish(&broker, 0..3).await;
    let first = receive(&mut deliveries, 1).await.remove(0);
    settle(&first, answer(0)).await.expect("it is taken").expect("it is settled");
    broker.close().await.unwrap();
    drop(deliveries);
    let left = tokio::task::spawn_blocking({
        let prefix = prefix.clone();
        move || left_open(&prefix, 2)
    });
    let left = left.await.unwrap();
    let broker = open().await;
    let groups = broker.groups().unwrap().list().await.expect("they are listed");
    let backlogs: Vec<_> = groups.iter().map(|state| (&*state.group, state.backlog)).collect();
    assert_eq!(backlogs, [("answer", 2)], "what was settled before is");
    let mut deliveries = broker.subscribe(request("answer", "load.a")).await.expect("the program starts");
    left.abort_transaction(CALL).unwrap();
    let numbers: Vec<_> = receive(&mut deliveries, 2).await.iter().map(number).collect();
    assert_eq!(numbers, [1, 2], "nothing of that transaction is settled");
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_finishes_the_transaction_that_is_open() {
    let prefix = support::prefix();
    let broker = connect(&prefix, true).await;
    let mut deliveries = broker.subscribe(request("answer", "load.a")).await.unwrap();
    publish(&broker, 0..KEYS).await;
    let received = receive(&mut deliveries, KEYS as usize).await;
    let mut settling = Vec::new();
    for received in received {
        let answer = answer(number(&received));
        settling.push(tokio::spawn(async move { settle(&received, answer).await }));
    }
    let closing = tokio::spawn(async move { broker.close().await });
    for settled in settling {
        settled.await.unwrap().expect("it is taken").expect("it is settled");
    }
    closing.await.unwrap().unwrap();
    drop(deliveries);
    assert_eq!(answers(&prefix), once(KEYS));
    let broker = connect(&prefix, true).await;
    let mut deliveries = broker.subscribe(request("answer", "load.a")).await.unwrap();
    publish(&broker, KEYS..KEYS + 1).await;
    assert_eq!(number(&receive(&mut deliveries, 1).await[0]), KEYS, "the others are settled");
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

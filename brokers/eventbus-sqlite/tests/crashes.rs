//! Events whose handler ends the process: attempts are counted over restarts, and in the end they are dead letters.
//!
//! Processes that end are this binary again, which then runs nothing but `a_process_of_its_own`.

mod support;

use eventbus::broker::{Begin, Broker, Deliveries, FailureKind, Received, Start, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus::{Batch, Bus, Delivery, Event, Outcome, State, subscribe};
use eventbus_sqlite::SqliteBroker;
use serde::{Deserialize, Deserializer, Serialize};
use std::fs::{self, File};
use std::future::poll_fn;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::{Log, OrderPlaced, PATIENCE, Ping, Seen, pings, publish_pings, settled, until};

/// The event whose handler ends the process.
const CULPRIT: u64 = 13;
/// So long a process waits for its handlers when it is shut down: longer than any test.
const DRAIN: Duration = Duration::from_secs(600);
/// Shorter than what some tests hold processes up for.
const LEASE: Duration = Duration::from_millis(500);
/// How many attempts may follow the first.
const RETRIES: u32 = 2;

/// What handlers have begun and done, in a file, each by one `write`.
#[derive(Clone)]
struct Notes(Arc<File>, PathBuf);

impl Notes {
    fn beside(log: &Path) -> Self {
        let path = log.with_extension("notes");
        Self(Arc::new(File::options().create(true).append(true).open(&path).unwrap()), path)
    }

    fn push(&self, note: &str) {
        (&*self.0).write_all(format!("{note}\n").as_bytes()).unwrap();
    }

    fn count(&self, note: &str) -> usize {
        fs::read_to_string(&self.1).unwrap().lines().filter(|line| *line == note).count()
    }

    fn all(&self, prefix: &str) -> Vec<String> {
        let notes = fs::read_to_string(&self.1).unwrap();
        notes.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
    }
}

/// What a group does with an event. All but those that are named here end the process when they get the culprit.
async fn handle(notes: &Notes, group: &str, number: u64) {
    match group {
        // It takes longer than the culprit next to it.
        "slow" => tokio::time::sleep(Duration::from_millis(40)).await,
        // Nobody waits for it for so long.
        "slower" => tokio::time::sleep(Duration::from_secs(3)).await,
        "stuck" | "still" | "frozen" => std::future::pending().await,
        "quick" => {}
        _ if number == CULPRIT => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            end(group);
        }
        "crowd" => tokio::time::sleep(Duration::from_millis(40)).await,
        _ => {}
    }
    notes.push(&format!("{group} {number} done"));
}

/// Ends the process as this group does it.
fn end(group: &str) {
    match group {
        "exiting" => std::process::exit(1),
        "overflowing" => _ = std::hint::black_box(overflow(1)),
        "killed" => {
            Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status().unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
        _ => std::process::abort(),
    }
}

#[expect(unconditional_recursion, reason = "on purpose")]
fn overflow(depth: u64) -> u64 {
    std::hint::black_box(overflow(std::hint::black_box(depth) + 1)) + 1
}

#[subscribe(group = "batched", batch = 8, linger = "10ms", retries = 2)]
async fn batched(pings: Batch<Ping>, notes: State<Notes>) {
    for (ping, _) in pings.iter() {
        handle(&notes, "batched", ping.number).await;
    }
}

#[subscribe(group = "blocking", blocking, retries = 2)]
fn blocking(ping: &Ping, notes: State<Notes>) {
    if ping.number == CULPRIT {
        end("blocking");
    }
    notes.push(&format!("blocking {} done", ping.number));
}

/// A ping that ends the process when it is read.
#[derive(Event, Clone, Debug, Serialize)]
#[event(topic = "ping.sent")]
struct Spiteful {
    number: u64,
}

impl<'de> Deserialize<'de> for Spiteful {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Ping { number } = Ping::deserialize(deserializer)?;
        if number == CULPRIT {
            end("reading");
        }
        Ok(Self { number })
    }
}

#[subscribe(group = "reading", retries = 2)]
async fn reading(ping: &Spiteful, notes: State<Notes>) {
    notes.push(&format!("reading {} done", ping.number));
}

/// An `on_publish` hook ends the process when it gets this answer.
#[subscribe(group = "answering", retries = 2)]
async fn answering(ping: &Ping, notes: State<Notes>) -> Vec<OrderPlaced> {
    if ping.number != CULPRIT {
        notes.push(&format!("answering {} done", ping.number));
        return Vec::new();
    }
    vec![OrderPlaced { customer: 1, number: ping.number }]
}

#[subscribe(group = "keyed", retries = 2)]
async fn keyed(order: &OrderPlaced, notes: State<Notes>) {
    if order.number == CULPRIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
        end("keyed");
    }
    notes.push(&format!("keyed {}", order.number));
}

/// The groups whose subscriptions are found by themselves.
const FOUND: [&str; 5] = ["batched", "blocking", "reading", "answering", "keyed"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the others start it as a process of its own"]
async fn a_process_of_its_own() {
    let log = PathBuf::from(std::env::var_os("EVENTBUS_CRASHES_LOG").expect("the others say where"));
    let groups = std::env::var("EVENTBUS_CRASHES").expect("the others say which");
    let notes = Notes::beside(&log);
    let mut settings = SqliteBroker::builder(&log);
    if groups == "frozen" {
        settings = settings.lease(LEASE);
    }
    let broker = settings.open().await.unwrap();
    let builder = Bus::builder().state(notes.clone()).drain(DRAIN).on_publish(|envelope| {
        if envelope.topic().as_str() == "order.placed" {
            end("answering");
        }
    });
    let found = FOUND.into_iter().filter(|found| groups.split(' ').any(|group| group == *found));
    let bus = builder.only(found).broker(broker).await.unwrap();
    for group in groups.split(' ').filter(|group| !FOUND.contains(group)) {
        let (notes, name) = (notes.clone(), group.to_owned());
        bus.on_topic("ping.sent", move |delivery: Delivery| {
            let (notes, name) = (notes.clone(), name.clone());
            async move {
                let number = delivery.event::<Ping>().unwrap().number;
                notes.push(&format!("{name} {number} attempt {}", delivery.attempt()));
                handle(&notes, &name, number).await;
            }
        })
        .group(group)
        .concurrency(if group == "crowd" { 1_000 } else { 4 })
        .retries(RETRIES)
        .await
        .unwrap();
    }
    if groups.contains("stuck") {
        return bus.run().await.unwrap();
    }
    bus.start().unwrap();
    settled(&bus).await;
    bus.shutdown().await.unwrap();
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap().success());
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a process that handles these groups.
fn start(log: &Log, groups: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "a_process_of_its_own", "--nocapture"]);
    command.env("EVENTBUS_CRASHES", groups).env("EVENTBUS_CRASHES_LOG", log.path());
    Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// Starts the process until it ends in order; how often it did not.
fn crashes(log: &Log, groups: &str) -> usize {
    for crashes in 0..16 {
        if start(log, groups).0.wait().unwrap().success() {
            return crashes;
        }
    }
    panic!("each process is ended");
}

/// A log whose groups have yet to handle pings of these numbers.
async fn waiting(groups: &str, numbers: std::ops::Range<u64>) -> Log {
    let log = Log::new();
    let bus = log.bus().await;
    for group in groups.split(' ') {
        bus.on_topic("ping.sent", |_: Delivery| async {}).group(group).await.unwrap();
    }
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    publish_pings(&bus, numbers).await;
    bus.shutdown().await.unwrap();
    log
}

/// The group, the kind, the number and the attempts of each dead letter.
async fn letters(log: &Log) -> Vec<(String, FailureKind, u64, u32)> {
    let bus = log.bus().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let told = |letter: &eventbus::broker::DeadLetter| {
        assert!(letter.reason.contains("the process ended"), "{}", letter.reason);
        let number = letter.envelope.event::<Ping>().unwrap().number;
        (letter.group.clone(), letter.kind, number, letter.attempts)
    };
    letters.iter().map(|(_, letter)| told(letter)).collect()
}

#[tokio::test]
async fn an_event_that_ends_the_process_is_a_dead_letter_once_its_attempts_are_spent() {
    let log = waiting("culprit", CULPRIT..CULPRIT + 1).await;
    assert_eq!(crashes(&log, "culprit"), 5, "two until it is the suspect, one attempt, and two retries");
    assert_eq!(letters(&log).await, [("culprit".to_owned(), FailureKind::Crashed, CULPRIT, 3)]);
    let attempts = Notes::beside(&log.path()).all(&format!("culprit {CULPRIT} attempt "));
    assert_eq!(attempts, ["1", "1", "1", "2", "3"], "the handler is told");
    assert_eq!(crashes(&log, "culprit"), 0);
}

#[tokio::test]
async fn however_and_wherever_an_event_ends_the_process_it_is_given_up() {
    for group in ["exiting", "overflowing", "killed", "blocking", "reading", "answering"] {
        let log = waiting(group, CULPRIT - 2..CULPRIT + 3).await;
        assert!(crashes(&log, group) >= 5, "{group} ends the process");
        assert_eq!(letters(&log).await, [(group.to_owned(), FailureKind::Crashed, CULPRIT, 3)]);
        let notes = Notes::beside(&log.path());
        for number in [CULPRIT - 2, CULPRIT - 1, CULPRIT + 1, CULPRIT + 2] {
            assert!(notes.count(&format!("{group} {number} done")) >= 1, "{number} of {group}");
        }
    }
}

#[tokio::test]
async fn one_event_among_many_that_are_handled_at_once_is_found() {
    let log = waiting("crowd", 0..300).await;
    assert!(crashes(&log, "crowd") >= 5);
    assert_eq!(letters(&log).await, [("crowd".to_owned(), FailureKind::Crashed, CULPRIT, 3)]);
    let notes = Notes::beside(&log.path());
    let left = (0..300).filter(|number| notes.count(&format!("crowd {number} done")) == 0);
    assert_eq!(left.collect::<Vec<_>>(), [CULPRIT]);
}

#[tokio::test]
async fn what_follows_it_in_its_lane_is_handled_in_order_and_not_charged() {
    let log = Log::new();
    let bus = log.bus().await;
    bus.on_topic("order.placed", |_: Delivery| async {}).group("keyed").await.unwrap();
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    let orders = (CULPRIT - 2..CULPRIT + 8).map(|number| Arc::new(OrderPlaced { customer: 1, number }));
    for result in bus.publish_all(orders).await {
        result.unwrap();
    }
    bus.shutdown().await.unwrap();
    assert_eq!(crashes(&log, "keyed"), 5);
    let bus = log.bus().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let number =
        |letter: &eventbus::broker::DeadLetter| letter.envelope.event::<OrderPlaced>().unwrap().number;
    assert_eq!(letters.iter().map(|(_, letter)| number(letter)).collect::<Vec<_>>(), [CULPRIT]);
    let mut handled = Notes::beside(&log.path()).all("keyed ");
    // What was not saved before the first end is repeated.
    handled.dedup();
    let followers: Vec<_> = (CULPRIT + 1..CULPRIT + 8).map(|number| number.to_string()).collect();
    assert!(handled.ends_with(&followers), "{handled:?}");
    assert!(handled.iter().filter(|number| followers.contains(number)).count() == followers.len());
}

#[tokio::test]
async fn an_event_that_ends_the_process_again_after_it_was_published_again_is_given_up_again() {
    let log = waiting("culprit", CULPRIT..CULPRIT + 1).await;
    crashes(&log, "culprit");
    let bus = log.bus().await;
    let again = bus.dead_letters().unwrap();
    for (id, _) in again.list().await.unwrap() {
        again.republish(&id, None).await.unwrap();
    }
    bus.shutdown().await.unwrap();
    assert!(crashes(&log, "culprit") >= 4);
    assert_eq!(letters(&log).await, [("culprit".to_owned(), FailureKind::Crashed, CULPRIT, 3)]);
}

#[tokio::test]
async fn a_process_that_is_killed_while_it_is_shut_down_counts_nothing() {
    let log = waiting("stuck", 0..1).await;
    // Now it is a suspect.
    kill(&log, "stuck", 2).await;
    let notes = Notes::beside(&log.path());
    let begun = || notes.all("stuck 0 attempt ");
    for _ in 0..6 {
        let before = begun().len();
        let mut process = start(&log, "stuck");
        until("it is handled", async || begun().len() > before).await;
        process.signal("-TERM");
        let file = rusqlite::Connection::open(log.path()).unwrap();
        let shut_down = || file.query_row("select unclean from subscription", [], |row| row.get(0));
        until("the log knows", async || shut_down() == Ok(2)).await;
        process.kill();
    }
    assert_eq!(begun().last().unwrap(), "1");
    assert_eq!(letters(&log).await, []);
}

#[tokio::test]
async fn an_event_that_ended_the_process_is_handled_anew_when_it_is_published_again() {
    let log = waiting("culprit", CULPRIT..CULPRIT + 1).await;
    crashes(&log, "culprit");
    let bus = log.bus().await;
    let seen = pings(&bus, "culprit").await;
    bus.start().unwrap();
    let letters = bus.dead_letters().unwrap();
    for (id, _) in letters.list().await.unwrap() {
        letters.republish(&id, None).await.unwrap();
    }
    settled(&bus).await;
    assert_eq!(seen.all(), [CULPRIT]);
    bus.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_events_beside_it_and_after_it_are_handled() {
    for groups in ["culprit", "batched"] {
        let log = waiting(groups, 0..60).await;
        assert_eq!(crashes(&log, groups), 5);
        let letters = letters(&log).await;
        assert_eq!(letters, [(groups.to_owned(), FailureKind::Crashed, CULPRIT, 3)]);
        let notes = Notes::beside(&log.path());
        for number in (0..60).filter(|number| *number != CULPRIT) {
            assert!(notes.count(&format!("{groups} {number} done")) >= 1, "{number} of {groups}");
        }
    }
}

#[tokio::test]
async fn the_events_of_other_groups_do_not_become_dead_letters() {
    for slow in ["slow", "slower"] {
        let log = waiting(&format!("culprit {slow}"), CULPRIT..CULPRIT + 1).await;
        crashes(&log, &format!("{slow} culprit"));
        assert_eq!(letters(&log).await, [("culprit".to_owned(), FailureKind::Crashed, CULPRIT, 3)]);
        // The process may end again before that is saved.
        assert!(Notes::beside(&log.path()).count(&format!("{slow} {CULPRIT} done")) >= 1, "{slow}");
    }
}

/// Kills processes that have an event of each of `groups` in a handler.
async fn kill(log: &Log, groups: &str, times: usize) {
    let notes = Notes::beside(&log.path());
    let begun =
        || groups.split(' ').map(|group| notes.all(&format!("{group} 0 attempt ")).len()).sum::<usize>();
    for _ in 0..times {
        let before = begun();
        let mut process = start(log, groups);
        until("each group has begun", async || begun() == before + groups.split(' ').count()).await;
        process.kill();
    }
}

#[tokio::test]
async fn a_process_that_leaves_in_order_counts_nothing() {
    let log = waiting("stuck", 0..1).await;
    // Now it is a suspect, and charged with one end.
    kill(&log, "stuck", 3).await;
    for _ in 0..4 {
        let bus = log.bus_with(Bus::builder().drain(Duration::from_millis(10))).await;
        let seen = Seen::new();
        let begun = seen.clone();
        let handler = move |delivery: Delivery| {
            begun.push(delivery.attempt());
            std::future::pending::<Outcome>()
        };
        bus.on_topic("ping.sent", handler).group("stuck").retries(0).await.unwrap();
        bus.start().unwrap();
        until("it is handled", async || seen.len() == 1).await;
        assert_eq!(seen.all(), [2]);
        assert!(bus.shutdown().await.is_err(), "the handler is cut off");
    }
    assert_eq!(letters(&log).await, []);
}

/// What comes first, in time.
async fn first(deliveries: &mut Box<dyn Deliveries>) -> Received {
    let mut received = Vec::new();
    let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, 1));
    tokio::time::timeout(PATIENCE, receiving).await.expect("it comes in time").unwrap();
    received.remove(0)
}

/// Tells the log that the handler is called with the delivery. Whether that was noted.
async fn is_noted(log: &Log, delivery: &Received) -> bool {
    let Some(begun) = delivery.settler.begin(&delivery.receipt) else { return false };
    assert_eq!(begun.await, Begin::Now { crashes: 0 });
    let file = rusqlite::Connection::open(log.path()).unwrap();
    let offset = i64::try_from(delivery.receipt.offset.get()).unwrap();
    file.query_row("select begun > 0 from suspect where offset = ?1", [offset], |row| row.get(0)).unwrap()
}

fn request(group: &str) -> SubscribeRequest {
    let mut request = SubscribeRequest::new(group, Pattern::new("ping.sent").unwrap());
    request.start = Start::Earliest;
    request
}

#[tokio::test]
async fn a_process_that_stands_still_and_loses_its_group_counts_as_one_that_has_ended() {
    let log = waiting("frozen", 0..1).await;
    let mut process = start(&log, "frozen");
    let notes = Notes::beside(&log.path());
    until("it is handled", async || !notes.all("frozen 0 attempt ").is_empty()).await;
    process.signal("-STOP");
    let broker = log.broker().await;
    let mut deliveries = broker.subscribe(request("frozen")).await.unwrap();
    let delivery = first(&mut deliveries).await;
    assert!(is_noted(&log, &delivery).await);
    process.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_noted_of_an_event_outlives_a_lease_that_has_run_out() {
    let log = waiting("held-up", 0..1).await;
    let file = rusqlite::Connection::open(log.path()).unwrap();
    // As after an unclean end.
    file.execute_batch("update subscription set unclean = 1").unwrap();
    let broker = log.broker_with(|settings| settings.lease(LEASE)).await;
    let mut deliveries = broker.subscribe(request("held-up")).await.unwrap();
    let delivery = first(&mut deliveries).await;
    assert!(is_noted(&log, &delivery).await);
    file.execute_batch("begin immediate").unwrap();
    until("the lease is over", async || !delivery.settler.holds(&delivery.receipt)).await;
    file.execute_batch("rollback").unwrap();
    let again = first(&mut deliveries).await;
    let noted: u8 = file.query_row("select begun from suspect", [], |row| row.get(0)).unwrap();
    assert_eq!(noted, 1, "it may still be in a handler");
    assert!(is_noted(&log, &again).await);
}

#[tokio::test]
async fn a_suspect_that_does_not_end_holds_up_others_for_a_while_only() {
    let log = waiting("stuck still", 0..1).await;
    kill(&log, "stuck still", 2).await;
    let bus = log.bus().await;
    let stuck = Seen::new();
    let begun = stuck.clone();
    let handler = move |_: Delivery| {
        begun.push(());
        std::future::pending::<Outcome>()
    };
    bus.on_topic("ping.sent", handler).group("stuck").await.unwrap();
    bus.start().unwrap();
    until("the suspect is handled", async || stuck.len() == 1).await;
    let seen = pings(&bus, "still").await;
    publish_pings(&bus, 1..2).await;
    until("the other group goes on", async || seen.sorted() == [0, 1]).await;
}

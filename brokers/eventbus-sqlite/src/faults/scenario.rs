//! Everything that the writer does, once, while some of it fails.

use super::crash::Crash;
use super::{Fault, Faults};
use crate::{Durability, Retention, SqliteBroker};
use eventbus_core::broker::{
    Begin, Broker, DeadLetter, DeadLetterQuery, Deliveries, FailureKind, Offset, Parked, Received, Start,
    SubscribeRequest,
};
use eventbus_core::{Envelope, Pattern, Topic};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How long to wait for what comes by itself, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);
/// Shorter than what the scenario holds the file up for.
const LEASE: Duration = Duration::from_millis(400);
const HELD_UP: Duration = Duration::from_millis(500);

/// What is known of a log from outside.
#[derive(Clone, Default)]
pub(super) struct Notes(Arc<Mutex<Noted>>);

#[derive(Clone, Default)]
pub(super) struct Noted {
    /// The events whose publish was acknowledged.
    pub(super) acknowledged: BTreeSet<u64>,
    /// What each group has settled, or is about to.
    pub(super) settled: BTreeSet<(String, u64)>,
    /// What has become a dead letter.
    pub(super) letters: BTreeSet<(String, u64)>,
    /// What handlers are busy with.
    busy: BTreeSet<(String, u64)>,
    /// Nothing is given up any more.
    forgiving: bool,
}

impl Notes {
    fn change(&self, change: impl FnOnce(&mut Noted)) {
        change(&mut self.0.lock().unwrap());
    }

    pub(super) fn now(&self) -> Noted {
        self.0.lock().unwrap().clone()
    }
}

impl Noted {
    fn has_settled(&self, group: &str, numbers: impl IntoIterator<Item = u64>) -> bool {
        numbers.into_iter().all(|number| self.settled.contains(&(group.to_owned(), number)))
    }
}

pub(super) fn number(envelope: &Envelope) -> u64 {
    std::str::from_utf8(envelope.payload().unwrap()).unwrap().trim().parse().unwrap()
}

fn is_held(number: u64) -> bool {
    number % 5 == 4
}

/// Handlers are busy with these for a while.
const BUSY: std::ops::Range<u64> = 20..24;
/// The first of them that is done.
const DONE_FIRST: u64 = 22;

/// How far a scenario has come, for the handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Some deliveries are held before they are handled.
    Holding,
    /// They are handled, and one of those that take long is done.
    Letting,
    /// All are done.
    Done,
}

fn is_given_up(number: u64) -> bool {
    number % 5 == 3
}

pub(crate) fn request(group: &str) -> SubscribeRequest {
    let mut request = SubscribeRequest::new(group, Pattern::new("number.counted").unwrap());
    request.start = Start::Earliest;
    request
}

/// A reader of a group.
struct Reader {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Reader {
    /// Subscribes, however often that fails.
    async fn start(
        broker: &SqliteBroker,
        group: &'static str,
        notes: &Notes,
        stage: &watch::Sender<Stage>,
    ) -> Self {
        let since = Instant::now();
        let deliveries = loop {
            match broker.subscribe(request(group)).await {
                Ok(deliveries) => break deliveries,
                Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
            }
        };
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(read(deliveries, group, notes.clone(), stage.subscribe(), stopped));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

pub(super) async fn receive(deliveries: &mut Box<dyn Deliveries>) -> Vec<Received> {
    let mut received = Vec::new();
    // After an error it can be polled again.
    let _ = poll_fn(|context| deliveries.poll_receive(context, &mut received, 4)).await;
    received
}

async fn read(
    mut deliveries: Box<dyn Deliveries>,
    group: &'static str,
    notes: Notes,
    mut stage: watch::Receiver<Stage>,
    mut stopped: watch::Receiver<bool>,
) {
    let (mut held, mut busy) = (Vec::new(), Vec::<Received>::new());
    loop {
        let now = *stage.borrow_and_update();
        if now >= Stage::Letting {
            for delivery in held.drain(..) {
                handle(delivery, group, &notes).await;
            }
        }
        let (done, still): (Vec<_>, Vec<_>) = busy.into_iter().partition(|delivery| {
            let first = number(&delivery.receipt.envelope) == DONE_FIRST;
            now == Stage::Done || (first && now == Stage::Letting)
        });
        busy = still;
        for delivery in done {
            notes.change(|notes| {
                notes.settled.insert((group.to_owned(), number(&delivery.receipt.envelope)));
            });
            let _ = delivery.settler.ack(delivery.receipt).await;
        }
        tokio::select! {
            received = receive(&mut deliveries) => {
                for delivery in received {
                    let number = number(&delivery.receipt.envelope);
                    if is_held(number) && now < Stage::Letting {
                        held.push(delivery);
                    } else if BUSY.contains(&number) && now < Stage::Done {
                        if may_begin(&delivery).await {
                            notes.change(|notes| _ = notes.busy.insert((group.to_owned(), number)));
                            busy.push(delivery);
                        }
                    } else {
                        handle(delivery, group, &notes).await;
                    }
                }
            }
            _ = stage.changed() => {}
            _ = stopped.changed() => return,
        }
    }
}

/// Asks whether a delivery may be handled until it may, or is not held any more.
pub(super) async fn may_begin(delivery: &Received) -> bool {
    let Received { receipt, settler, .. } = delivery;
    while settler.holds(receipt) {
        let Some(begun) = settler.begin(receipt) else { return true };
        match begun.await {
            Begin::Later(delay) => tokio::time::sleep(delay).await,
            Begin::Now { crashes } => {
                assert!(crashes <= 2, "{crashes} crashes count for {}", number(&receipt.envelope));
                return settler.holds(receipt);
            }
            other => panic!("{other:?}"),
        }
    }
    false
}

/// Handles a delivery as a worker does.
async fn handle(delivery: Received, group: &str, notes: &Notes) {
    if !may_begin(&delivery).await {
        return;
    }
    let Received { mut receipt, settler, .. } = delivery;
    let number = number(&receipt.envelope);
    let now = Timestamp::now();
    if number % 5 == 2 && receipt.attempt == 1 {
        receipt.attempt = 2;
        let parked = Parked { first_failed_at: now, last_failed_at: now, due: now };
        let _ = settler.park(&receipt, parked).await;
    }
    let mut gives_up = false;
    notes.change(|notes| {
        gives_up = is_given_up(number) && !notes.forgiving;
        notes.settled.insert((group.to_owned(), number));
    });
    if !gives_up {
        let _ = settler.ack(receipt).await;
        return;
    }
    let letter = DeadLetter {
        envelope: Arc::clone(&receipt.envelope),
        group: group.to_owned(),
        handler: "scenario".to_owned(),
        kind: FailureKind::Rejected,
        reason: "on purpose".to_owned(),
        attempts: receipt.attempt,
        first_failed_at: now,
        last_failed_at: now,
        offset: receipt.offset,
    };
    match settler.reject(receipt.clone(), letter).await {
        Ok(()) => notes.change(|notes| _ = notes.letters.insert((group.to_owned(), number))),
        Err(_) => settler.release(receipt),
    }
}

async fn publish(broker: &SqliteBroker, numbers: std::ops::Range<u64>, notes: &Notes) {
    let envelope = |number: u64| {
        let envelope = Envelope::from_json(Topic::from_static("number.counted"), &number).unwrap();
        // So large that the file has to grow.
        Arc::new(envelope.with_payload(format!("{number:2000}").into()))
    };
    let middle = numbers.start + (numbers.end - numbers.start) / 2;
    let single: Vec<_> =
        (numbers.start..middle).map(|number| (number, broker.publish(envelope(number)))).collect();
    for (number, published) in single {
        if published.await.is_ok() {
            notes.change(|notes| _ = notes.acknowledged.insert(number));
        }
    }
    let published = broker.publish_all((middle..numbers.end).map(envelope).collect()).await;
    for (number, published) in (middle..numbers.end).zip(published) {
        if published.is_ok() {
            notes.change(|notes| _ = notes.acknowledged.insert(number));
        }
    }
}

/// Waits until `condition` holds of the notes.
async fn until(what: &str, notes: &Notes, condition: impl Fn(&Noted) -> bool) {
    let since = Instant::now();
    while !condition(&notes.now()) {
        assert!(since.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Both groups have settled all that they do not hold.
async fn until_idle(notes: &Notes) {
    until("the groups have settled what they do not hold", notes, |notes| {
        let expected = || notes.acknowledged.iter().copied().filter(|number| !is_held(*number));
        notes.has_settled("a", expected()) && notes.has_settled("b", expected())
    })
    .await;
}

fn builder(path: &Path) -> crate::SqliteBrokerBuilder {
    let retention = Retention { count: Some(8), ..Default::default() };
    SqliteBroker::builder(path)
        .durability(Durability::Off)
        .lease(LEASE)
        .poll_interval(Duration::from_millis(5))
        .retention(retention)
        .retention_interval(Duration::from_millis(20))
}

/// What handlers had as earlier processes ended. The first of them was alone in one.
const SUSPECTS: std::ops::Range<u64> = 41..44;

/// A log whose groups have not been left in order, twice.
async fn after_crashes(path: &Path, notes: &Notes) {
    let broker = builder(path).open().await.unwrap();
    for group in ["a", "b"] {
        drop(broker.subscribe(request(group)).await.unwrap());
    }
    publish(&broker, SUSPECTS, notes).await;
    broker.close().await.unwrap();
    let file = rusqlite::Connection::open(path).unwrap();
    file.execute_batch(
        "update subscription set unclean = 1;
         insert into suspect (\"group\", offset, begun)
         select \"group\", offset, iif(\"group\" = 'a' and offset = 1, 2, 1) from subscription, event;",
    )
    .unwrap();
}

/// Goes on after crashes, publishes, settles, parks, gives up, publishes again, loses a lease, hands over, and moves groups.
async fn run(faults: Faults) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let (notes, stage) = (Notes::default(), watch::Sender::new(Stage::Holding));
    after_crashes(&path, &notes).await;
    let broker = builder(&path).faults(faults.clone()).open().await.unwrap();
    faults.turn_on();
    let first = Reader::start(&broker, "a", &notes, &stage).await;
    let _other = Reader::start(&broker, "b", &notes, &stage).await;
    let _stands_by = Reader::start(&broker, "a", &notes, &stage).await;
    publish(&broker, 1..16, &notes).await;
    // Another program publishes to the log, too.
    let another = builder(&path).open().await.unwrap();
    publish(&another, 16..20, &notes).await;
    until_idle(&notes).await;
    until("what was given up has become dead letters", &notes, |notes| {
        let given_up = || notes.acknowledged.iter().copied().filter(|number| is_given_up(*number));
        let letter = |group: &str, number| notes.letters.contains(&(group.to_owned(), number));
        given_up().all(|number| letter("a", number) && letter("b", number))
    })
    .await;
    let crashed = Crash::now(&path, &notes);

    // Each of them publishes half of the dead letters again, of which none comes back.
    notes.change(|notes| notes.forgiving = true);
    publish_again(&broker, 0).await;
    publish_again(&another, 1).await;
    move_groups(&broker).await;
    until_idle(&notes).await;
    Crash::now(&path, &notes).check();

    // Handlers are busy, and one of them is done while another program holds the file and the leases run out. What was
    // held is not handled then, so both groups begin again from what is saved.
    publish(&broker, BUSY, &notes).await;
    until("handlers are busy", &notes, |notes| {
        let acknowledged = BUSY.filter(|number| notes.acknowledged.contains(number));
        let all: Vec<u64> = acknowledged.collect();
        ["a", "b"]
            .iter()
            .all(|group| all.iter().all(|number| notes.busy.contains(&((*group).to_owned(), *number))))
    })
    .await;
    let other = rusqlite::Connection::open(&path).unwrap();
    other.busy_timeout(PATIENCE).unwrap();
    tokio::task::block_in_place(|| other.execute_batch("begin immediate").unwrap());
    tokio::time::sleep(HELD_UP).await;
    stage.send_replace(Stage::Letting);
    // Here they are refused; whatever is still busy then is not settled.
    tokio::time::sleep(HELD_UP).await;
    other.execute_batch("rollback").unwrap();
    drop(other);
    publish(&broker, 24..26, &notes).await;
    until("what was held is handled after all", &notes, |notes| {
        let held = || notes.acknowledged.iter().copied().filter(|number| is_held(*number));
        notes.has_settled("a", held()) && notes.has_settled("b", held())
    })
    .await;
    tokio::time::sleep(HELD_UP).await;
    let busy = Crash::now(&path, &notes);
    busy.check();
    stage.send_replace(Stage::Done);

    first.stop().await;
    publish(&broker, 26..32, &notes).await;
    until_idle(&notes).await;
    faults.turn_off();

    // Whatever has failed, everything is handled by itself.
    until("everything is settled", &notes, |notes| {
        let all = || notes.acknowledged.iter().copied();
        notes.has_settled("a", all()) && notes.has_settled("b", all())
    })
    .await;
    let settled = broker.settled().unwrap();
    tokio::time::timeout(PATIENCE, settled).await.expect("the log is settled in time");
    Crash::now(&path, &notes).check();
    another.close().await.unwrap();
    broker.close().await.unwrap();
    crashed.check();
    crashed.resume().await;
    busy.resume().await;
}

/// Publishes every second dead letter again, mended.
async fn publish_again(broker: &SqliteBroker, which: u64) {
    let dead_letters = broker.dead_letters().unwrap();
    for (id, letter) in dead_letters.find(DeadLetterQuery::default()).await.unwrap() {
        let number = number(&letter.envelope);
        if number % 2 == which {
            let _ = dead_letters.republish(&id, Some(format!(" {number}").into())).await;
        }
    }
}

/// Seeks, renames and removes a group that nobody handles.
async fn move_groups(broker: &SqliteBroker) {
    drop(broker.subscribe(request("x")).await);
    let groups = broker.groups().unwrap();
    let _ = groups.seek("x", Some(Offset::new(3))).await;
    let _ = groups.rename("x", "y").await;
    let _ = (groups.remove("x").await, groups.remove("y").await);
}

/// Runs the scenario so many times, each with another place where faults begin: spread over as many as a run without
/// faults comes to, others each time. With `EVENTBUS_FAULTS=1` there is one run for each place, with 2 for every second.
async fn in_turn(fault: Fault, runs: i64) {
    /// So many at once, since most of the time is spent waiting.
    const BESIDE: usize = 8;

    let none = Faults::new(fault, i64::MAX, 1);
    run(none.clone()).await;
    let places = none.passed();
    // Runs with faults are longer.
    let every = |stride: String| 2 * places / stride.parse::<i64>().unwrap();
    let runs = std::env::var("EVENTBUS_FAULTS").map_or(runs, every);
    let mut beside = JoinSet::new();
    for number in 0..runs {
        let first = (places * number / runs + fastrand::i64(1..=(places / runs).max(1))).max(1);
        let burst = [1, 3, 12][usize::try_from(number % 3).unwrap()];
        if beside.len() == BESIDE {
            beside.join_next().await.unwrap().unwrap();
        }
        beside.spawn(async move {
            let run = tokio::spawn(run(Faults::new(fault, first, burst)));
            run.await.unwrap_or_else(|panic| panic!("{fault:?} {first}, and {burst} in a row: {panic}"));
        });
    }
    beside.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_statement_fails_nothing_is_lost_and_the_groups_go_on() {
    in_turn(Fault::Statement, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_row_is_refused_nothing_is_lost_and_the_groups_go_on() {
    in_turn(Fault::Row, 18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_commit_fails_nothing_is_lost_and_the_groups_go_on() {
    in_turn(Fault::Commit, 15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_the_disk_is_full_nothing_is_lost_and_the_groups_go_on() {
    in_turn(Fault::Full, 12).await;
}

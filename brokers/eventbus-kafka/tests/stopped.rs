//! SIGSTOP: a process that stands still for longer than its session, and comes back.

mod support;

use eventbus::broker::{Broker, Received, Start};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};
use support::{event, receive, request, until};

const KEYS: u64 = 16;
/// How long a handler takes.
const TAKES: Duration = Duration::from_millis(30);

fn now() -> u128 {
    UNIX_EPOCH.elapsed().unwrap().as_millis()
}

/// A call of a handler, from one moment to another.
#[derive(Clone, Copy, Debug)]
struct Handled {
    number: u64,
    begun: u128,
    ended: u128,
}

/// Handles what its group has, and tells of it; started by the test below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other test starts it as a process of its own"]
async fn a_process_of_its_own() {
    let Ok(prefix) = std::env::var("EVENTBUS_KAFKA_STOPPED") else { return };
    let broker = support::builder(&prefix).partitions(4).connect().await.unwrap();
    let mut request = request("group", "load.a");
    request.start = Start::Earliest;
    let mut deliveries = broker.subscribe(request).await.unwrap();
    loop {
        for Received { receipt, settler, .. } in receive(&mut deliveries, 1).await {
            // As a worker does, which asks again where it is told to wait.
            while let Some(later) = settler.holds(&receipt).then(|| settler.begin(&receipt)).flatten() {
                later.await;
                tokio::time::sleep(TAKES).await;
            }
            if !settler.holds(&receipt) {
                continue;
            }
            let begun = now();
            tokio::time::sleep(TAKES).await;
            let number: u64 = serde_json::from_slice(receipt.envelope.payload().unwrap()).unwrap();
            println!("handled {number} {begun} {}", now());
            drop(settler.ack(receipt).await);
        }
    }
}

/// A process that handles, until it is dropped.
struct Process {
    child: Child,
    handled: Arc<Mutex<Vec<Handled>>>,
}

impl Process {
    fn start(prefix: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "a_process_of_its_own", "--nocapture"]);
        let mut child = command.env("EVENTBUS_KAFKA_STOPPED", prefix).stdout(Stdio::piped()).spawn().unwrap();
        let handled = Arc::new(Mutex::new(Vec::new()));
        let (lines, notes) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&handled));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // The first one is behind what the test's own program prints.
                let Some((_, told)) = line.split_once("handled ") else { continue };
                let [number, begun, ended] = told.split(' ').collect::<Vec<_>>()[..] else { continue };
                let (number, begun) = (number.parse().unwrap(), begun.parse().unwrap());
                notes.lock().unwrap().push(Handled { number, begun, ended: ended.parse().unwrap() });
            }
        });
        Self { child, handled }
    }

    fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success()
        );
    }

    fn handled(&self) -> Vec<Handled> {
        self.handled.lock().unwrap().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server gives its partitions to another process meanwhile. What a handler had in hand as it was stopped is handled
/// twice; of nothing else is a key in two handlers at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_still_for_longer_than_its_session_begins_nothing_that_another_one_has() {
    let prefix = support::prefix();
    let broker = support::builder(&prefix).partitions(4).connect().await.unwrap();
    let (one, other) = (Process::start(&prefix), Process::start(&prefix));
    let published = Arc::new(Mutex::new(0_u64));
    let publishing = tokio::spawn({
        let (broker, published) = (broker.clone(), Arc::clone(&published));
        async move {
            for number in 0.. {
                broker.publish(event("load.a", &(number % KEYS).to_string(), number)).await.unwrap();
                *published.lock().unwrap() = number + 1;
                tokio::time::sleep(TAKES).await;
            }
        }
    });
    until("both handle", async || one.handled().len() > 20 && other.handled().len() > 20).await;
    one.signal("-STOP");
    let stopped = now();
    let seen = || other.handled().into_iter().filter(|one| one.begun > stopped).map(|one| one.number % KEYS);
    until("the other one has all keys", async || seen().collect::<BTreeSet<_>>().len() == KEYS as usize)
        .await;
    let before = other.handled().len();
    until("it goes on", async || other.handled().len() > before + 20).await;
    let continued = now();
    one.signal("-CONT");
    let again = || one.handled().iter().filter(|one| one.begun > continued).count();
    until("the first one handles again", async || again() > 20).await;
    publishing.abort();
    drop(publishing.await);
    let published = *published.lock().unwrap();
    let all = || [one.handled(), other.handled()].concat();
    let numbers = || all().into_iter().map(|one| one.number).collect::<BTreeSet<_>>();
    until("nothing is lost", async || numbers().len() as u64 >= published).await;
    let in_hand = |one: &Handled| one.begun <= stopped && one.ended >= continued;
    let mut by_key: BTreeMap<u64, Vec<(Handled, bool)>> = BTreeMap::new();
    for (process, is_one) in [(&one, true), (&other, false)] {
        for handled in process.handled().into_iter().filter(|one| !in_hand(one)) {
            by_key.entry(handled.number % KEYS).or_default().push((handled, is_one));
        }
    }
    for (key, mut handled) in by_key {
        handled.sort_by_key(|(handled, _)| handled.begun);
        for two in handled.windows(2) {
            let [(former, first), (latter, second)] = two else { unreachable!("windows of two") };
            let together = first != second && latter.begun < former.ended;
            assert!(!together, "key {key} is in two handlers at once: {former:?}, {latter:?}");
        }
    }
    drop((one, other));
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

//! The shop on several machines, which share nothing but the bus: under load one is killed and comes back, a third one
//! joins, and one is switched off. It needs servers, which `cargo xtask brokers up` begins.
//!
//! ```text
//! cargo test -p shop --features kafka,nats,rabbitmq --test machines -- --nocapture --test-threads 1
//! ```
//!
//! It prints how long each change took.

mod support;

use shop::database::Database;
use shop::events::OrderPlaced;
use shop::order::NewOrder;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::machine::{Machine, now, until};
use support::{address, pens};
use tokio::task::JoinHandle;

/// Between two orders of the load.
const PACE: Duration = Duration::from_millis(15);
const CUSTOMERS: u64 = 24;

/// How a broker shares a group whose events have an order between machines.
#[derive(Clone, Copy, PartialEq)]
enum Sharing {
    /// Each has some keys.
    ByKey,
    /// One has all of them, and the others stand by.
    OneAtATime,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_on_kafka_lose_nothing_and_share_by_key() {
    several_machines("Kafka", &format!("{}&partitions=6", address::kafka()), Sharing::ByKey).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_on_nats_lose_nothing_and_stand_by() {
    several_machines("NATS", &address::nats(), Sharing::OneAtATime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_on_rabbitmq_lose_nothing_and_stand_by() {
    several_machines("RabbitMQ", &address::rabbitmq(), Sharing::OneAtATime).await;
}

async fn several_machines(broker: &str, url: &str, sharing: Sharing) {
    let folder = tempfile::tempdir().unwrap();
    let tell = |what: &str, since: i64, at: i64| {
        println!("{broker}: {what} after {:.2} s", (at - since) as f64 / 1e3);
    };
    // The same role three times, and another one.
    let mut offices = Vec::new();
    for name in ["first", "second", "third"] {
        let groups = ["shop.send_confirmation", "shop.reserve"];
        offices.push(Machine::new(folder.path(), name, url, &groups).await);
    }
    let mut books = Machine::new(folder.path(), "books", url, &["shop.count_sales"]).await;
    books.start().await;
    offices[0].start().await;
    offices[1].start().await;
    let load = Load::begin(url, folder.path()).await;

    until("orders are confirmed on the machines that may", async || {
        let (first, second) = (offices[0].done("mail", 0).await, offices[1].done("mail", 0).await);
        let each = first.len().min(second.len());
        first.len() + second.len() > 100 && (sharing == Sharing::OneAtATime || each > 30)
    })
    .await;
    let killed = owner_of_most(&offices).await;
    let keys = keys_of(&offices, killed).await;
    offices[killed].kill();
    let since = now();
    let taken_over = first_mail(&offices, killed, &keys, since).await;
    tell("a killed machine's orders go on", since, taken_over);

    let since = now();
    offices[killed].start().await;
    offices[2].start().await;
    for (which, name) in [(killed, "the machine that came back"), (2, "a third machine")] {
        let reserves = first_of(&offices[which], "reservation", since).await;
        tell(&format!("{name} reserves items"), since, reserves);
        if sharing == Sharing::ByKey {
            let confirms = first_of(&offices[which], "mail", since).await;
            tell(&format!("{name} confirms orders"), since, confirms);
        }
    }

    let ended = owner_of_most(&offices).await;
    let keys = keys_of(&offices, ended).await;
    let since = now();
    offices[ended].ask_to_end();
    let handed_over = first_mail(&offices, ended, &keys, since).await;
    offices[ended].ended().await;
    tell("the orders of a machine that is switched off go on", since, handed_over);

    let confirmed = load.end().await;
    until("every order that the broker has confirmed is handled", async || {
        let (mailed, reserved) = (all(&offices, "mail").await, all(&offices, "reservation").await);
        let counted = books.count("select count(*) from inbox").await;
        mailed.is_superset(&confirmed)
            && reserved.is_superset(&confirmed)
            && counted == confirmed.len() as u64
    })
    .await;
    let handled = in_order_by_key(&offices).await;
    let orders = confirmed.len();
    println!("{broker}: {orders} orders, {} of them confirmed by two machines", handled - orders);

    // Each had its part of what order means nothing for, and its role and no other.
    for office in &offices {
        assert!(!office.done("reservation", 0).await.is_empty(), "{} reserves", office.name);
    }
    assert_eq!(books.count("select ordered from sales where sku = 'pen'").await, orders as u64);
    assert_eq!(books.count("select count(*) from journal").await, 0);
    for machine in offices.iter_mut().chain([&mut books]) {
        if machine.runs() {
            machine.ask_to_end();
            machine.ended().await;
        }
    }
    for office in &offices {
        assert_eq!(office.count("select count(*) from inbox").await, 0, "{} counts nothing", office.name);
    }
}

/// Which machine confirmed the latest order of each customer.
async fn owners(offices: &[Machine]) -> BTreeMap<String, usize> {
    let mut latest = BTreeMap::new();
    for (which, office) in offices.iter().enumerate() {
        for mail in office.done("mail", 0).await {
            let known = latest.entry(mail.customer).or_insert((mail.at, which));
            *known = (*known).max((mail.at, which));
        }
    }
    latest.into_iter().map(|(customer, (_, which))| (customer, which)).collect()
}

/// The machine that has the most customers.
async fn owner_of_most(offices: &[Machine]) -> usize {
    let owners = owners(offices).await;
    let has = |which: &usize| owners.values().filter(|owner| *owner == which).count();
    (0..offices.len()).max_by_key(has).expect("there are machines")
}

async fn keys_of(offices: &[Machine], which: usize) -> BTreeSet<String> {
    let owned = owners(offices).await.into_iter().filter(|(_, owner)| *owner == which);
    owned.map(|(customer, _)| customer).collect()
}

/// When another machine than this one confirmed an order of these customers for the first time since then.
async fn first_mail(offices: &[Machine], but: usize, customers: &BTreeSet<String>, since: i64) -> i64 {
    let mut first = None;
    until("another machine goes on", async || {
        for (_, other) in offices.iter().enumerate().filter(|(which, _)| *which != but) {
            let mails = other.done("mail", since).await;
            let theirs = mails.iter().filter(|mail| customers.contains(&mail.customer)).map(|mail| mail.at);
            first = theirs.chain(first).min();
        }
        first.is_some()
    })
    .await;
    first.expect("it was waited for")
}

/// When a machine did something for the first time since then.
async fn first_of(office: &Machine, what: &'static str, since: i64) -> i64 {
    let mut first = None;
    until(&format!("{} has a {what} to do", office.name), async || {
        first = office.done(what, since).await.first().map(|done| done.at);
        first.is_some()
    })
    .await;
    first.expect("it was waited for")
}

/// Everything that was done with orders, on whichever machine.
async fn all(offices: &[Machine], what: &'static str) -> BTreeSet<(String, u64)> {
    let mut all = BTreeSet::new();
    for office in offices {
        all.extend(office.done(what, 0).await.into_iter().map(|done| (done.customer, done.number)));
    }
    all
}

/// Looks at all mails of all machines by their times: no order is confirmed before an earlier one of its customer was,
/// whatever came twice. How many mails there are.
async fn in_order_by_key(offices: &[Machine]) -> usize {
    let mut mails = Vec::new();
    for office in offices {
        mails.extend(office.done("mail", 0).await);
    }
    // Where two machines wrote in one millisecond, either may have been first.
    mails.sort_by_key(|mail| (mail.at, mail.number));
    let mut latest = BTreeMap::new();
    for mail in &mails {
        let latest = latest.entry(&mail.customer).or_insert(0);
        assert!(mail.number <= *latest + 1, "{mail:?} comes before {} of its customer", *latest + 1);
        *latest = mail.number.max(*latest);
    }
    mails.len()
}

/// Orders that are placed one after the other until somebody ends it.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<BTreeSet<(String, u64)>>,
}

impl Load {
    async fn begin(url: &str, folder: &Path) -> Self {
        let database = Database::open(folder.join("web.db")).unwrap();
        let bus = shop::bus(&database, url).without_subscriptions().connect(url).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut confirmed = BTreeSet::new();
            for round in 1.. {
                for customer in 0..CUSTOMERS {
                    if stopped.load(Ordering::Relaxed) {
                        bus.shutdown().await.unwrap();
                        return confirmed;
                    }
                    let customer = format!("c{customer:02}");
                    let order: NewOrder =
                        serde_json::from_value(pens(&format!("{customer}-{round}"), 1)).unwrap();
                    // The orders of a customer are in their order.
                    let placed = OrderPlaced::envelope(order.check().unwrap()).with_key(&customer);
                    bus.publish_envelope(placed).await.unwrap();
                    confirmed.insert((customer, round));
                    tokio::time::sleep(PACE).await;
                }
            }
            unreachable!("rounds do not end")
        });
        Self { stop, task }
    }

    /// The orders that the broker has confirmed: all.
    async fn end(self) -> BTreeSet<(String, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

//! How long it takes until another process has all that one had open, and what that costs. Names are promises.

mod support;

use async_nats::Client;
use eventbus::broker::{Broker, Deliveries};
use eventbus::{Envelope, Topic};
use eventbus_nats::NatsBroker;
use futures_util::{StreamExt, stream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::{PATIENCE, Place, ack, early, id, own, receive, until};

/// Times and memory are those of the process, so one test at a time measures them.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn broker(place: &Place, lease: Duration) -> NatsBroker {
    place.builder().ack_wait(lease).connect().await.unwrap()
}

/// Publishes events with their places as ids.
async fn publish(broker: &NatsBroker, count: usize, size: usize) {
    let payload = bytes::Bytes::from(vec![7; size]);
    let publishing = (1..=count).map(|number| {
        let event = Envelope::from_bytes(Topic::from_static("a.b"), "x/y", payload.clone());
        broker.publish(Arc::new(event.with_id(id(&number.to_string()))))
    });
    stream::iter(publishing).buffered(8).for_each(|answer| async { answer.unwrap() }).await;
}

/// How many bytes are asked for at once: the server ends the connection of a client for which more than 64 MiB wait.
const AT_ONCE: usize = 32 << 20;

/// Takes all that a consumer has, as a process does that is killed then; how long that took.
async fn take(client: &Client, place: &Place, consumer: &str, count: usize, size: usize) -> Duration {
    let inbox = client.new_inbox();
    let mut taken = client.subscribe(inbox.clone()).await.unwrap();
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", place.name);
    let (mut left, mut pin) = (count, String::new());
    let begun = Instant::now();
    while left > 0 {
        let batch = left.min((AT_ONCE / size).max(1));
        let ask = serde_json::json!({
            "batch": batch, "expires": 60_000_000_000_u64, "group": "eventbus", "id": pin,
        });
        client.publish_with_reply(subject.clone(), inbox.clone(), ask.to_string().into()).await.unwrap();
        let mut came = 0;
        while came < batch {
            let message = tokio::time::timeout(PATIENCE, taken.next()).await.expect("it comes").unwrap();
            // What ends an ask has no event.
            let Some(headers) = message.headers.filter(|_| message.reply.is_some()) else { continue };
            pin = headers.get("Nats-Pin-Id").map(ToString::to_string).unwrap_or(pin);
            came += 1;
        }
        left -= batch;
    }
    begun.elapsed()
}

/// The consumer of a group, once nobody asks it for anything.
async fn consumer_of(client: &Client, place: &Place, group: &str) -> String {
    let stream = async_nats::jetstream::new(client.clone()).get_stream(&place.name).await.unwrap();
    let name = std::cell::RefCell::new(String::new());
    until("nobody has the group", async || {
        let infos: Vec<_> = stream.consumers().collect().await;
        let mut infos = infos.into_iter().map(Result::unwrap);
        let info = infos.find(|info| info.config.metadata["eventbus-group"] == group).unwrap();
        let pin = &info.priority_groups[0].pinned_client_id;
        name.replace(info.name.clone());
        info.num_waiting == 0 && pin.as_ref().is_none_or(|pin| pin.is_empty())
    })
    .await;
    name.into_inner()
}

/// Handles everything, in order.
async fn handle(deliveries: &mut Box<dyn Deliveries>, count: usize) {
    let mut next = 1;
    while next <= count {
        for received in receive(deliveries, 10).await {
            assert_eq!(received.receipt.envelope.id(), &id(&next.to_string()));
            next += 1;
            ack(received).await;
        }
    }
}

/// How often JetStream was asked for something, by whomever.
async fn asked(client: &Client) -> u64 {
    async_nats::jetstream::new(client.clone()).query_account().await.unwrap().requests.total
}

/// What a takeover costs.
struct Cost {
    /// How long it takes from the end of a process until another one has handled all that it had open, without the lease.
    taken: Duration,
    /// How long a client takes that only reads that.
    reading: Duration,
    /// How often JetStream was asked for something meanwhile, but for messages.
    asked: u64,
}

async fn measure(count: usize, size: usize, lease: Duration) -> Cost {
    let place = Place::new();
    let standing_by = broker(&place, lease).await;
    drop(standing_by.subscribe(early("g", ">")).await.unwrap());
    publish(&standing_by, count, size).await;
    let other = broker(&place, lease).await;
    let consumer = consumer_of(&other.client(), &place, "g").await;
    let reading = take(&other.client(), &place, &consumer, count, size).await;
    let killed = Instant::now();
    drop(other);
    let before = asked(&standing_by.client()).await;
    let mut deliveries = standing_by.subscribe(early("g", ">")).await.unwrap();
    handle(&mut deliveries, count).await;
    let taken = killed.elapsed().saturating_sub(lease);
    let asked = asked(&standing_by.client()).await - before;
    println!(
        "{count} open events of {size} bytes: handled {taken:.2?} after the lease of {lease:?}, with {asked} requests; to \
         read them takes {reading:.2?}"
    );
    Cost { taken, reading, asked }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_takes_a_lease_and_what_it_takes_to_read_what_was_open() {
    let _alone = ALONE.lock().await;
    // To read large events takes a part of the lease already.
    let leases = [(50, 100, 2), (500, 100, 2), (50, 1 << 20, 8), (150, 1 << 20, 8)];
    for (count, size, lease) in leases {
        let Cost { taken, reading, asked } = measure(count, size, Duration::from_secs(lease)).await;
        assert!(taken < reading * 8 + Duration::from_secs(3), "{count} of {size}: {taken:?}, {reading:?}");
        // What was noted of events is not asked for one by one.
        assert!(asked < 100 + count as u64 / 8, "{count} of {size}: {asked} requests");
    }
}

/// How many bytes of memory this process has.
fn memory() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_groups_that_are_taken_over_at_once_have_a_bound_of_memory_together_and_ask_little() {
    const GROUPS: usize = 24;
    const COUNT: usize = 48;
    let _alone = ALONE.lock().await;
    // Of the size of the largest message each has a few at any rate.
    let server = own::Server::begin("max_payload: 1MB", "").await;
    let place = Place::at(format!("nats://{}", server.address));
    let lease = Duration::from_secs(8);
    let first = broker(&place, lease).await;
    let groups: Vec<_> = (0..GROUPS).map(|number| format!("g{number}")).collect();
    for group in &groups {
        drop(first.subscribe(early(group, ">")).await.unwrap());
    }
    publish(&first, COUNT, 512 << 10).await;
    let other = broker(&place, lease).await;
    let (client, mut consumers) = (other.client(), Vec::new());
    for group in &groups {
        consumers.push(consumer_of(&client, &place, group).await);
    }
    let mut reading = Duration::ZERO;
    for consumer in &consumers {
        reading += take(&client, &place, consumer, COUNT, 512 << 10).await;
    }
    let killed = Instant::now();
    drop((client, other));
    let second = broker(&place, lease).await;
    let (statistics, before) = (second.client().statistics(), memory());
    let out_before = statistics.out_messages.load(Ordering::Relaxed);
    let asked_before = asked(&second.client()).await;
    let mut taken = Vec::new();
    for group in &groups {
        taken.push(second.subscribe(early(group, ">")).await.unwrap());
    }
    let most = Arc::new(AtomicUsize::new(0));
    let watching = tokio::spawn({
        let most = Arc::clone(&most);
        async move {
            loop {
                most.fetch_max(memory().saturating_sub(before), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    // Each has all that was open, as far as it has room, before any is handled.
    for deliveries in &mut taken {
        let received = receive(deliveries, 1).await;
        received.into_iter().for_each(|one| one.settler.release(one.receipt));
    }
    for deliveries in &mut taken {
        handle(deliveries, COUNT).await;
    }
    let (took, most) = (killed.elapsed(), most.load(Ordering::Relaxed) >> 20);
    watching.abort();
    let sent = statistics.out_messages.load(Ordering::Relaxed) - out_before;
    let asked = asked(&second.client()).await - asked_before;
    println!(
        "{GROUPS} groups with {} MiB open each: all handled after {took:.2?}, with {most} MiB, {sent} messages and {asked} \
         requests; to read them takes {reading:.2?}",
        COUNT / 2
    );
    // Each may be a few messages of 1 MiB beyond its share.
    assert!(most < 256 + GROUPS * 4 + 64, "{most} MiB of {}", GROUPS * COUNT / 2);
    // A look-up, an ack and a few words of each event, and what keeps a group.
    assert!(sent < (GROUPS * COUNT * 8) as u64 + 200 * took.as_secs(), "{sent} messages");
}

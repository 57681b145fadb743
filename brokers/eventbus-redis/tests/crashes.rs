//! Events beside which processes end: which of them is charged with that. Processes that end are brokers that are cut off here;
//! real ones are cases of the conformance suite.

mod support;

use eventbus::Start;
use eventbus::broker::{Begin, Broker, Deliveries, Received, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus_redis::RedisBroker;
use std::collections::BTreeMap;
use std::time::Duration;
use support::proxy::Proxy;
use support::{Place, ack, event, give_back, number, publish, receive_all, until};

const LEASE: Duration = Duration::from_secs(1);

/// A process that can be cut off.
struct Process {
    proxy: Proxy,
    broker: RedisBroker,
    deliveries: Box<dyn Deliveries>,
}

impl Process {
    async fn begin(place: &Place, competing: bool) -> Self {
        let proxy = Proxy::to(&place.url).await;
        let builder = RedisBroker::builder(&proxy.url()).unwrap().prefix(&place.prefix).lease(LEASE);
        let broker = builder.open().await.unwrap();
        let deliveries = broker.subscribe(request(competing)).await.unwrap();
        Self { proxy, broker, deliveries }
    }

    /// What it gets, by the numbers.
    async fn receive(&mut self, count: usize) -> BTreeMap<u64, Received> {
        let received = receive_all(&mut self.deliveries, count).await;
        received.into_iter().map(|received| (number(&received), received)).collect()
    }

    /// Nothing of it reaches the server any more.
    fn end(self) {
        self.proxy.refuse(true);
        self.proxy.cut();
        // Nor does it leave in order.
        std::mem::forget(self.deliveries);
    }
}

fn request(competing: bool) -> SubscribeRequest {
    let mut request = SubscribeRequest::new("group", Pattern::new("order.placed").unwrap());
    (request.start, request.competing) = (Start::Earliest, competing);
    request
}

/// Begins an attempt, once others have had theirs; how often a process has ended beside the event.
async fn begin(received: &Received) -> u32 {
    loop {
        match received.settler.begin(&received.receipt) {
            None => return 0,
            Some(begin) => match begin.await {
                Begin::Now { crashes } => return crashes,
                Begin::Later(delay) => tokio::time::sleep(delay).await,
                other => panic!("{other:?}"),
            },
        }
    }
}

#[tokio::test]
async fn only_the_event_beside_which_alone_processes_end_is_charged_each_time() {
    for competing in [false, true] {
        let place = Place::new();
        let mut process = Process::begin(&place, competing).await;
        for number in 1..=4 {
            publish(&process.broker, event("order.placed", number)).await;
        }
        let received = process.receive(4).await;
        begin(&received[&1]).await;
        process.end();
        // After one unclean end, what is in handlers is noted.
        let mut process = Process::begin(&place, competing).await;
        let mut received = process.receive(4).await;
        assert!(received.values().all(|one| one.receipt.attempt == 1 && !one.alone), "{competing}");
        for number in [1, 2, 3] {
            assert_eq!(begin(&received[&number]).await, 0);
        }
        ack(received.remove(&3).unwrap()).await;
        until("it is saved", async || {
            let pending = redis::cmd("XPENDING").arg(place.key("topic:order.placed")).arg("group").clone();
            matches!(place.command(&pending), redis::Value::Array(parts) if parts[0] == redis::Value::Int(3))
        })
        .await;
        process.end();
        // After the second one, these are suspects, and have turns.
        for crashes in 0..3 {
            let mut process = Process::begin(&place, competing).await;
            let received = process.receive(3).await;
            let alone: Vec<_> = received.values().map(|one| one.alone).collect();
            assert_eq!(alone, [true, true, false], "{competing} {crashes}");
            let attempts: Vec<_> = received.values().map(|one| one.receipt.attempt).collect();
            assert_eq!(attempts, [1 + crashes, 1, 1], "{competing}");
            assert_eq!(begin(&received[&1]).await, crashes);
            let other = received[&2].settler.begin(&received[&2].receipt).unwrap().await;
            assert!(matches!(other, Begin::Later(_)), "the first one has its turn: {other:?}");
            process.end();
        }
        // One that leaves in order charges nobody.
        let mut process = Process::begin(&place, competing).await;
        let received = process.receive(3).await;
        assert_eq!(begin(&received[&1]).await, 3);
        process.broker.close().await.unwrap();
        // What has ended an attempt is no suspect any more, and the next one has its turn.
        let mut process = Process::begin(&place, competing).await;
        let mut received = process.receive(3).await;
        assert_eq!(begin(&received[&1]).await, 3);
        ack(received.remove(&1).unwrap()).await;
        assert_eq!(begin(&received[&2]).await, 0);
        give_back(received.into_values().collect());
    }
}

#[tokio::test]
async fn a_process_that_is_killed_while_it_shuts_down_is_no_events_fault() {
    for competing in [false, true] {
        let place = Place::new();
        publish(&place.broker().await, event("order.placed", 1)).await;
        for _ in 0..3 {
            let mut process = Process::begin(&place, competing).await;
            let received = process.receive(1).await;
            assert_eq!(begin(&received[&1]).await, 0);
            process.end();
        }
        for _ in 0..2 {
            let mut process = Process::begin(&place, competing).await;
            let received = process.receive(1).await;
            assert_eq!(begin(&received[&1]).await, 1, "{competing}");
            process.broker.drain(&[request(competing)]).await;
            until("that is noted", async || {
                let notes: Vec<String> = place.command(redis::cmd("HVALS").arg(place.key("suspects:group")));
                notes.iter().all(|note| note.split(' ').nth(1) == Some("0"))
            })
            .await;
            process.end();
        }
    }
}

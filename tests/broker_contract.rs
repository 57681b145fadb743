//! The contract of brokers, from the outside: replay of the in-process broker, and a broker of this test's own.

#[path = "support/keeper.rs"]
mod keeper;
mod support;

use eventbus::broker::{
    AuditQuery, Broker, BrokerFuture, DeadLetter, Deliveries, Features, GroupState, Groups, Offset, Parked,
    Receipt, Received, ReplayFrom, ReplayRequest, ReplayUntil, Settler, SubscribeRequest,
};
use eventbus::bus::{BusBuilder, On};
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::subscription::Pattern;
use eventbus::{Bus, Envelope, Error, PublishError, Start, subscribe};
use keeper::Keeper;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use support::around::Around;
use support::{OrderPlaced, Ping, Seen};
use tokio::time::Instant;

#[subscribe(start = "earliest", group = "early")]
async fn early(ping: Ping, seen: eventbus::State<Seen<u64>>) {
    seen.push(ping.number);
}

async fn published(broker: &MemoryBroker, numbers: std::ops::Range<u64>) -> Bus {
    let bus = Bus::builder().only([] as [&str; 0]).broker(broker.clone()).await.unwrap();
    for number in numbers {
        bus.publish(&Ping { number }).await.unwrap();
    }
    bus
}

#[tokio::test]
async fn a_new_group_can_begin_with_the_oldest_event_that_is_kept() {
    let broker = MemoryBroker::builder().history(3).build();
    published(&broker, 0..5).await;
    let seen: Seen<u64> = Seen::new();
    let builder = Bus::builder().state(seen.clone()).concurrency(1).only([early::SUBSCRIBER]);
    let bus = builder.broker(broker.clone()).await.unwrap();
    bus.publish(&Ping { number: 5 }).await.unwrap();
    bus.start().unwrap();
    broker.settled().await;
    assert_eq!(seen.all(), [2, 3, 4, 5]);
}

async fn replayed(broker: &MemoryBroker, from: ReplayFrom, until: ReplayUntil) -> Vec<u64> {
    let request =
        ReplayRequest { group: "again".into(), pattern: Pattern::new("ping.*").unwrap(), from, until };
    let mut deliveries = broker.replayable().unwrap().replay(request).await.unwrap().deliveries;
    let mut numbers = Vec::new();
    loop {
        let mut received = Vec::new();
        poll_fn(|context| deliveries.poll_receive(context, &mut received, 2)).await.unwrap();
        if received.is_empty() {
            return numbers;
        }
        for Received { receipt, replayed, settler, .. } in received {
            assert!(replayed);
            numbers.push(receipt.envelope.event::<Ping>().unwrap().number);
            settler.ack(receipt).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_replay_delivers_a_part_of_the_history_and_moves_nobody() {
    let broker = MemoryBroker::builder().history(10).build();
    let seen = Seen::new();
    let bus = Bus::builder().only([] as [&str; 0]).broker(broker.clone()).await.unwrap();
    let live = seen.clone();
    let pings = move |ping: Arc<Ping>| {
        let live = live.clone();
        async move { live.push(ping.number) }
    };
    bus.on(pings).group("again").concurrency(1).await.unwrap();
    bus.start().unwrap();
    published(&broker, 0..5).await;
    broker.settled().await;
    assert_eq!(replayed(&broker, ReplayFrom::Earliest, ReplayUntil::Now).await, [0, 1, 2, 3, 4]);
    let middle = (ReplayFrom::Offset(Offset::new(1)), ReplayUntil::Offset(Offset::new(3)));
    assert_eq!(replayed(&broker, middle.0, middle.1).await, [1, 2, 3]);
    let future = ReplayFrom::Time(jiff::Timestamp::MAX);
    assert!(replayed(&broker, future, ReplayUntil::Now).await.is_empty());
    bus.publish(&Ping { number: 5 }).await.unwrap();
    broker.settled().await;
    assert_eq!(seen.all(), [0, 1, 2, 3, 4, 5], "the live group of the same name saw each event once");
    assert!(MemoryBroker::new().replayable().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_is_released_before_a_handler_begins_comes_again_as_the_same_attempt() {
    let broker = MemoryBroker::new();
    let mut deliveries = broker.subscribe(pings_of("g")).await.unwrap();
    published(&broker, 0..1).await;
    let mut next = async || {
        let mut received = Vec::new();
        poll_fn(|context| deliveries.poll_receive(context, &mut received, 1)).await.unwrap();
        received.pop().unwrap()
    };
    let first = next().await;
    assert_eq!(first.receipt.attempt, 1);
    first.settler.release(first.receipt);
    let second = next().await;
    assert_eq!(second.receipt.attempt, 1);
    second.settler.ack(second.receipt).await.unwrap();
    broker.settled().await;
}

fn pings_of(group: &str) -> SubscribeRequest {
    SubscribeRequest::new(group, Pattern::new("ping.sent").unwrap())
}

#[subscribe(group = "single", concurrency = 1)]
async fn single(ping: Ping, begun: eventbus::State<Seen<u64>>) {
    begun.push(ping.number);
    std::future::pending().await
}

#[subscribe(group = "batched", batch = 2, concurrency = 1)]
async fn batched(pings: Vec<Ping>, begun: eventbus::State<Seen<u64>>) {
    pings.iter().for_each(|ping| begun.push(ping.number));
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn only_an_attempt_that_a_handler_has_begun_counts_where_it_is_cut_off() {
    for (subscriber, group, at_once) in
        [(single::SUBSCRIBER, "single", 1), (batched::SUBSCRIBER, "batched", 2)]
    {
        let (broker, begun) = (MemoryBroker::new(), Seen::<u64>::new());
        let builder = Bus::builder().state(begun.clone()).drain(Duration::from_millis(10));
        let bus = builder.only([subscriber]).broker(broker.clone()).await.unwrap();
        published(&broker, 0..5).await;
        bus.start().unwrap();
        while begun.len() < at_once {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What is given back comes to this reader of the same group.
        let mut other = broker.subscribe(pings_of(group)).await.unwrap();
        bus.shutdown().await.unwrap_err();
        let mut received = Vec::new();
        while received.len() < 5 {
            poll_fn(|context| other.poll_receive(context, &mut received, 8)).await.unwrap();
        }
        for one in received {
            let number = one.receipt.envelope.event::<Ping>().unwrap().number;
            let expected = if begun.all().contains(&number) { 2 } else { 1 };
            assert_eq!(one.receipt.attempt, expected, "{number} of `{group}`");
            one.settler.ack(one.receipt).await.unwrap();
        }
    }
}

/// A broker of our own: one queue for everything, no patterns, and a connection that can break.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<PipeState>>, Arc<AtomicBool>);

#[derive(Default)]
struct PipeState {
    waiting: VecDeque<Receipt>,
    reader: Option<Waker>,
    acked: usize,
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pipe")
    }
}

impl Pipe {
    fn put(&self, receipt: Receipt) {
        let mut state = self.0.lock().unwrap();
        state.waiting.push_back(receipt);
        state.reader.take().into_iter().for_each(Waker::wake);
    }

    fn is_broken(&self) -> bool {
        self.1.load(Ordering::SeqCst)
    }
}

impl Broker for Pipe {
    fn name(&self) -> &str {
        "pipe"
    }

    fn features(&self) -> Features {
        Features::none()
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        let pipe = self.clone();
        BrokerFuture::new(async move {
            if pipe.is_broken() {
                let topic = envelope.topic().to_string();
                return Err(PublishError::Broker { topic, cause: "the pipe is broken".into() });
            }
            pipe.put(Receipt { envelope, offset: Offset::new(0), attempt: 1, token: 0 });
            Ok(())
        })
    }

    fn subscribe(&self, _: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        BrokerFuture::ready(Ok(Box::new(self.clone())))
    }
}

impl Deliveries for Pipe {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        if self.is_broken() {
            return Poll::Ready(Err(BrokerError::new("the pipe is broken")));
        }
        let mut state = self.0.lock().unwrap();
        if state.waiting.is_empty() {
            state.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let settler: Arc<dyn Settler> = Arc::new(self.clone());
        let count = limit.min(state.waiting.len());
        into.extend(state.waiting.drain(..count).map(|receipt| Received {
            receipt,
            replayed: false,
            parked: None,
            alone: false,
            settler: Arc::clone(&settler),
        }));
        Poll::Ready(Ok(()))
    }
}

impl Settler for Pipe {
    fn ack(&self, _: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.lock().unwrap().acked += 1;
        BrokerFuture::ready(Ok(()))
    }

    fn reject(&self, receipt: Receipt, _: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.ack(receipt)
    }

    fn release(&self, receipt: Receipt) {
        self.put(receipt);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_from_outside_runs_the_same_handlers_and_recovers_by_itself() {
    let pipe = Pipe::default();
    let bus = Bus::builder().only([] as [&str; 0]).dead_letter(false).broker(pipe.clone()).await.unwrap();
    let seen = Seen::new();
    let pings = seen.clone();
    bus.on(move |ping: Arc<Ping>| {
        let pings = pings.clone();
        async move { pings.push(ping.number) }
    })
    .await
    .unwrap();
    pipe.1.store(true, Ordering::SeqCst);
    bus.start().unwrap();
    let error = bus.publish(&Ping { number: 0 }).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot publish to \"ping.sent\": the pipe is broken");
    tokio::time::sleep(Duration::from_secs(10)).await;
    pipe.1.store(false, Ordering::SeqCst);
    bus.publish(&Ping { number: 1 }).await.unwrap();
    while seen.len() == 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bus.shutdown().await.unwrap();
    assert_eq!((seen.all(), pipe.0.lock().unwrap().acked), (vec![1], 1));
    assert!(matches!(bus.dead_letters(), Err(Error::Broker(_))), "this broker keeps none, and says so");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_finishes_what_is_handled_and_leaves_the_rest_to_a_broker_that_keeps_it() {
    let pipe = Pipe::default();
    let bus = Bus::builder().only([] as [&str; 0]).dead_letter(false).broker(pipe.clone()).await.unwrap();
    bus.on(|_: Arc<Ping>| tokio::time::sleep(Duration::from_secs(1))).concurrency(2).await.unwrap();
    for number in 0..10 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    bus.start().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    bus.shutdown().await.unwrap();
    let state = pipe.0.lock().unwrap();
    assert_eq!((state.acked, state.waiting.len()), (2, 8));
}

#[tokio::test]
async fn what_a_broker_has_not_is_refused_at_start_up_and_everything_of_it_is_named() {
    let refused = async |builder: BusBuilder, option: fn(On) -> On| {
        let bus = builder.without_subscriptions().broker(Pipe::default()).await.unwrap();
        let error = option(bus.on_topic("ping.*", |_| async {})).await.unwrap_err();
        let Error::Startup(mistakes) = error else { panic!("{error}") };
        for mistake in mistakes.mistakes() {
            assert!(
                mistake.contains("tests/broker_contract.rs") && mistake.contains("the pipe broker"),
                "{mistake}"
            );
        }
        mistakes.mistakes().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let all = refused(Bus::builder(), |on| on.start(Start::Earliest)).await;
    let by_the_bus = refused(Bus::builder().start(Start::Earliest), |on| on).await;
    for mistakes in [&all, &by_the_bus] {
        let words = ["`start = \"earliest\"`", "\"ping.*\"", "`competing`", "`dead_letter = false`"];
        assert_eq!(mistakes.len(), words.len(), "{mistakes:?}");
        for (mistake, word) in mistakes.iter().zip(words) {
            assert!(mistake.contains(word), "{word}: {mistake}");
        }
    }
    assert!(!all[0].contains("as the bus says") && by_the_bus[0].contains("as the bus says"));
    let modest = Bus::builder().start(Start::Earliest).dead_letter(false);
    let pattern = refused(modest, |on| on.start(Start::Latest).competing(true)).await;
    assert_eq!(pattern.len(), 1, "what it says itself counts: {pattern:?}");
}

#[tokio::test]
async fn the_audit_log_of_the_in_process_broker_finds_what_is_kept_in_either_order_and_page_by_page() {
    let broker = MemoryBroker::builder().history(5).build();
    let bus = published(&broker, 0..6).await;
    bus.publish_to("order.placed", &1).key("ada").await.unwrap();
    let log = bus.audit_log().unwrap();
    let places = async |change: &dyn Fn(&mut AuditQuery)| {
        let mut query = AuditQuery::default();
        change(&mut query);
        let found = log.query(query).await.unwrap();
        found.iter().map(|event| event.offset.get()).collect::<Vec<_>>()
    };
    assert_eq!(places(&|_| {}).await, [2, 3, 4, 5, 6], "the oldest two are forgotten");
    assert_eq!(places(&|query| query.limit = 2).await, [2, 3]);
    assert_eq!(places(&|query| query.after = Some(Offset::new(4))).await, [5, 6]);
    assert_eq!(places(&|query| query.key = Some("ada".into())).await, [6]);
    assert_eq!(places(&|query| query.offset = Some(Offset::new(4))).await, [4]);
    assert_eq!(places(&|query| query.offset = Some(Offset::new(1))).await, []);
    let latest_two = |query: &mut AuditQuery| {
        (query.newest_first, query.limit, query.after) = (true, 2, Some(Offset::new(5)));
    };
    assert_eq!(places(&latest_two).await, [4, 3]);
    assert_eq!(log.latest().await.unwrap(), Some(Offset::new(6)));
    assert!(matches!(
        Bus::builder().only([] as [&str; 0]).connect("memory:").await.unwrap().audit_log(),
        Err(Error::Broker(_))
    ));
}

#[tokio::test]
async fn whoever_follows_the_audit_log_is_woken_by_the_next_event() {
    let broker = MemoryBroker::builder().history(5).build();
    let log = broker.audit_log().unwrap();
    let first = tokio::spawn(log.wait(None));
    tokio::task::yield_now().await;
    assert!(!first.is_finished());
    published(&broker, 0..1).await;
    first.await.unwrap().unwrap();
    log.wait(None).await.unwrap();
    let second = tokio::spawn(log.wait(Some(Offset::new(0))));
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    published(&broker, 1..2).await;
    second.await.unwrap().unwrap();
}

/// A broker as an earlier process has left it: three orders of two customers for the group `orders`.
async fn left_behind() -> Keeper {
    let keeper = Keeper::default();
    keeper.leave("orders", "order.placed", 0);
    let bus = Bus::builder().only([] as [&str; 0]).broker(keeper.clone()).await.unwrap();
    for (customer, number) in [(1, 0), (1, 1), (2, 2)] {
        bus.publish(&OrderPlaced { customer, number }).await.unwrap();
    }
    keeper
}

fn seconds(seconds: i64) -> jiff::SignedDuration {
    jiff::SignedDuration::from_secs(seconds)
}

/// Handles what was left behind: the number and the attempt of each delivery, and the second it came in. The order
/// with the number 0 fails.
async fn taken_up(keeper: &Keeper) -> Vec<(u64, u32, u64)> {
    let bus = Bus::builder().only([] as [&str; 0]).broker(keeper.clone()).await.unwrap();
    let (seen, begun) = (Seen::new(), Instant::now());
    let handled = seen.clone();
    bus.on_topic("order.placed", move |delivery: eventbus::Delivery| {
        let order = delivery.arc_event::<OrderPlaced>().unwrap();
        handled.push((order.number, delivery.attempt(), begun.elapsed().as_secs_f64().round() as u64));
        async move { if order.number == 0 { Err("still not") } else { Ok(()) } }
    })
    .group("orders")
    .retries(2)
    .await
    .unwrap();
    bus.start().unwrap();
    while keeper.cursor("orders") < 3 && begun.elapsed() < Duration::from_secs(3_600) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bus.shutdown().await.unwrap();
    seen.all()
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_comes_back_parked_keeps_its_lane_closed_until_it_is_due() {
    let keeper = left_behind().await;
    let now = jiff::Timestamp::now();
    let parked = Parked { first_failed_at: now - seconds(60), last_failed_at: now, due: now + seconds(10) };
    keeper.state().groups.get_mut("orders").unwrap().parked.insert(0, (3, parked));
    assert_eq!(taken_up(&keeper).await, [(2, 1, 0), (0, 3, 10), (1, 1, 10)]);
    let state = keeper.state();
    let letter = &state.dead_letters[0];
    assert_eq!((letter.attempts, letter.first_failed_at), (3, parked.first_failed_at), "attempts count on");
    assert!(letter.last_failed_at >= now);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_back_makes_nobody_wait_longer_than_was_meant() {
    let keeper = left_behind().await;
    let ahead = jiff::Timestamp::now() + seconds(36_000);
    let parked = Parked { first_failed_at: ahead, last_failed_at: ahead, due: ahead + seconds(5) };
    keeper.state().groups.get_mut("orders").unwrap().parked.insert(0, (2, parked));
    let first = taken_up(&keeper).await.into_iter().find(|(number, ..)| *number == 0);
    assert_eq!(first, Some((0, 2, 5)));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_somebody_else_may_have_been_given_is_not_handled_and_its_lane_goes_on() {
    let keeper = left_behind().await;
    keeper.state().groups.get_mut("orders").unwrap().lost.insert(0);
    let mut handled = taken_up(&keeper).await;
    handled.sort_unstable();
    assert_eq!(handled.iter().map(|(number, ..)| *number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(keeper.cursor("orders"), 0, "nor is it settled here");
}

/// A broker of bad manners: it rings while it is asked and under a lock of its own, and panics now and then.
#[derive(Clone, Debug, Default)]
struct Rude {
    pipe: Pipe,
    asked: usize,
}

impl Broker for Rude {
    fn name(&self) -> &str {
        "rude"
    }

    fn features(&self) -> Features {
        Features::none()
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        self.pipe.publish(envelope)
    }

    fn subscribe(&self, _: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        BrokerFuture::ready(Ok(Box::new(self.clone())))
    }
}

impl Deliveries for Rude {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        self.asked += 1;
        let state = self.pipe.0.lock().unwrap();
        context.waker().wake_by_ref();
        drop(state);
        match self.asked % 4 {
            // As a timer does whose task has spent its budget.
            1 | 2 => return Poll::Pending,
            3 => panic!("not now"),
            _ => {}
        }
        let before = into.len();
        let polled = self.pipe.poll_receive(context, into, limit.min(1));
        for received in &mut into[before..] {
            received.settler = Arc::new(self.clone());
        }
        polled
    }
}

impl Settler for Rude {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        self.pipe.ack(receipt)
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.pipe.reject(receipt, letter)
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        let number = receipt.envelope.event::<Ping>().unwrap().number;
        assert!(receipt.attempt > 1 || !number.is_multiple_of(5), "who knows");
        true
    }

    fn release(&self, mut receipt: Receipt) {
        receipt.attempt += 1;
        self.pipe.release(receipt);
        panic!("let go");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_may_ring_while_it_is_asked_and_its_panics_stop_nobody() {
    std::panic::set_hook(Box::new(|_| {}));
    let rude = Rude::default();
    let bus = Bus::builder().only([] as [&str; 0]).dead_letter(false).broker(rude.clone()).await.unwrap();
    let seen = support::pings(&bus, "pings").await;
    for number in 0..20 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    bus.start().unwrap();
    while seen.len() < 20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bus.shutdown().await.unwrap();
    let _ = std::panic::take_hook();
    let mut numbers = seen.all();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..20));
    assert_eq!(rude.pipe.0.lock().unwrap().acked, 20);
}

/// The groups of a broker that does not say which it keeps.
struct Unlisted;

impl Groups for Unlisted {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        BrokerFuture::ready(Err(BrokerError::new("you may not list queues")))
    }

    fn remove(&self, _: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Ok(false))
    }
}

#[tokio::test]
async fn a_broker_that_does_not_list_its_groups_is_a_warning_at_the_start_and_no_error() {
    let silent = || Around::new("silent", MemoryBroker::builder().history(3).build()).groups(Unlisted);
    let builder = || Bus::builder().state(Seen::<u64>::new()).only([early::SUBSCRIBER]);
    let bus = builder().broker(silent()).await.expect("who may not list groups may have one");
    bus.start().unwrap();
    let error = builder().strict().broker(silent()).await.unwrap_err().to_string();
    assert!(error.contains("is not known: you may not list queues"), "{error}");
}

//! Rebuilds: a read model is built anew beside the live one, and takes its place.

#[path = "support/keeper.rs"]
mod keeper;
mod support;

use eventbus::broker::Broker;
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::middleware::HandlerService;
use eventbus::{Bus, Delivery, Envelope, Error, State, subscribe};
use keeper::Keeper;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{OrderPlaced, Ping, Seen};
use tokio::sync::Notify;
use tokio::time::sleep;

/// A read model that can be exchanged: the places of the pings that it has seen.
#[derive(Clone)]
struct Model(Arc<Mutex<Seen<u64>>>);

impl Model {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Seen::new())))
    }

    fn now(&self) -> Seen<u64> {
        self.0.lock().unwrap().clone()
    }
}

#[subscribe("ping.sent", group = "model", concurrency = 1)]
async fn model(delivery: &Delivery, model: State<Model>) -> Result<(), String> {
    let ping = delivery.event::<Ping>().map_err(|error| error.to_string())?;
    if delivery.replayed() && ping.number == BAD {
        return Err("the new handler cannot".to_owned());
    }
    // One await, so that others come in between.
    tokio::task::yield_now().await;
    model.now().push(delivery.offset().get() as u64);
    Ok(())
}

#[subscribe(group = "mail", replay = false)]
async fn mail(_ping: Ping) {}

const BAD: u64 = u64::MAX;

async fn bus_on(keeper: &Keeper, model: &Model) -> Bus {
    let builder = Bus::builder().state(model.clone()).only(["model"]).retries(0);
    let bus = builder.broker(keeper.clone()).await.unwrap();
    bus.start().unwrap();
    bus
}

async fn publish(bus: &Bus, count: u64) {
    for number in 0..count {
        bus.publish(&Ping { number }).await.unwrap();
    }
}

async fn until(reached: impl Fn() -> bool) {
    while !reached() {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Puts what was built in place of the live model.
fn exchange(
    live: &Model,
    built: &Model,
) -> impl FnOnce() -> std::future::Ready<Result<(), BrokerError>> + use<> {
    let (live, built) = (live.clone(), built.clone());
    move || {
        *live.0.lock().unwrap() = built.now();
        std::future::ready(Ok(()))
    }
}

/// Publishes one more ping, which the live subscription handles; then the model holds exactly these places.
async fn goes_on(bus: &Bus, model: &Model, places: u64) {
    publish(bus, 1).await;
    until(|| model.now().len() as u64 > places).await;
    assert_eq!(model.now().all(), (0..=places).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_new_model_has_each_event_once_though_events_are_published_all_the_while() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    publish(&bus, 2_000).await;
    let built = Model::new();
    let publisher = tokio::spawn({
        let bus = bus.clone();
        async move {
            for number in 0..3_000 {
                bus.publish(&Ping { number }).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let old = live.now();
    let told = Seen::new();
    let tell = told.clone();
    let report = bus
        .rebuild(model::SUBSCRIBER)
        .state(built.clone())
        .on_progress(move |progress| tell.push(progress.handled))
        .swap(exchange(&live, &built))
        .await
        .unwrap();
    assert!(report.events >= 2_000 && report.is_complete(), "{report:?}");
    assert!(told.all().is_sorted() && told.all().last() == Some(&report.events), "{:?}", told.all());
    publisher.await.unwrap();
    until(|| live.now().len() >= 5_000).await;
    assert_eq!(live.now().all(), (0..5_000).collect::<Vec<_>>());
    assert!(old.all().is_sorted(), "the old model was live until the swap");
    until(|| keeper.cursor("model") == 5_000).await;
    goes_on(&bus, &live, 5_000).await;
    bus.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_published_while_it_catches_up_is_in_the_new_model_before_the_swap() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    publish(&bus, 3).await;
    let (built, mut late) = (Model::new(), Some(Envelope::from_event(&Ping { number: 3 })));
    let broker = keeper.clone();
    let (exchange, at_swap) = (exchange(&live, &built), Seen::new());
    let (new, seen) = (built.clone(), at_swap.clone());
    bus.rebuild("model")
        .state(built)
        // Told for the first time when the first pass is over.
        .on_progress(move |_| {
            late.take().into_iter().for_each(|late| drop(broker.publish(Arc::new(late))));
        })
        .swap(move || {
            seen.push(new.now().all());
            exchange()
        })
        .await
        .unwrap();
    assert_eq!(at_swap.all(), [[0, 1, 2, 3]]);
    goes_on(&bus, &live, 4).await;
}

#[tokio::test]
async fn a_backlog_of_the_live_subscription_is_in_the_new_model_and_is_not_handled_again() {
    let (keeper, live) = (Keeper::default(), Model::new());
    keeper.leave("model", "ping.sent", 0);
    let builder = Bus::builder().state(live.clone()).only(["model"]);
    let bus = builder.broker(keeper.clone()).await.unwrap();
    publish(&bus, 10).await;
    let built = Model::new();
    bus.rebuild("model").state(built.clone()).swap(exchange(&live, &built)).await.unwrap();
    assert_eq!(keeper.cursor("model"), 10);
    bus.start().unwrap();
    goes_on(&bus, &live, 10).await;
}

#[tokio::test]
async fn an_event_that_fails_ends_the_rebuild_before_the_swap_with_the_ways_out() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    publish(&bus, 3).await;
    bus.publish(&Ping { number: BAD }).await.unwrap();
    until(|| live.now().len() == 4).await;
    let swap = async || -> Result<(), BrokerError> { panic!("it must not be called") };
    let error = bus.rebuild("model").state(Model::new()).swap(swap).await.unwrap_err();
    assert!(matches!(error, Error::Rebuild { swapped: false, .. }), "{error}");
    for words in [
        "1 of 4 events failed",
        "\"ping.sent\" at 3 (failed: the new handler cannot)",
        ".skip_failures()",
        "payloads",
    ] {
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    assert!(keeper.state().dead_letters.is_empty(), "published again, it would be handled live once more");
    goes_on(&bus, &live, 4).await;
}

#[tokio::test]
async fn a_rebuild_that_skips_failures_swaps_and_says_what_the_new_model_lacks() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    publish(&bus, 2).await;
    bus.publish(&Ping { number: BAD }).await.unwrap();
    publish(&bus, 2).await;
    until(|| live.now().len() == 5).await;
    let built = Model::new();
    let rebuild = bus.rebuild("model").state(built.clone()).skip_failures();
    let report = rebuild.swap(exchange(&live, &built)).await.unwrap();
    assert_eq!((report.events, report.acked, report.failed), (5, 4, 1));
    assert_eq!(report.failures[0].offset.get(), 2);
    assert!(keeper.state().dead_letters.is_empty());
    publish(&bus, 1).await;
    until(|| live.now().len() == 5).await;
    assert_eq!(live.now().all(), [0, 1, 3, 4, 5]);
}

#[tokio::test]
async fn a_swap_that_fails_leaves_the_live_subscription_and_its_model_as_they_were() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    publish(&bus, 5).await;
    until(|| live.now().len() == 5).await;
    let swap = async || Err("the table is locked");
    let error = bus.rebuild("model").state(Model::new()).swap(swap).await.unwrap_err();
    assert!(matches!(error, Error::Rebuild { swapped: false, .. }), "{error}");
    assert!(error.to_string().contains("the table is locked"), "{error}");
    goes_on(&bus, &live, 5).await;
}

#[tokio::test]
async fn a_rebuild_that_is_dropped_during_the_swap_leaves_the_live_subscription_running() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    publish(&bus, 5).await;
    until(|| live.now().len() == 5).await;
    let swapping = Arc::new(Notify::new());
    let begun = Arc::clone(&swapping);
    let swap = async move || {
        begun.notify_one();
        std::future::pending::<Result<(), BrokerError>>().await
    };
    let rebuild = tokio::spawn(bus.rebuild("model").state(Model::new()).swap(swap).into_future());
    swapping.notified().await;
    assert_eq!(keeper.state().groups["model"].readers, 0, "the live subscription waits for the swap");
    rebuild.abort();
    assert!(rebuild.await.unwrap_err().is_cancelled());
    goes_on(&bus, &live, 5).await;
}

#[tokio::test]
async fn a_cursor_that_cannot_be_moved_is_told_apart_and_events_come_again() {
    let (keeper, live) = (Keeper::default(), Model::new());
    keeper.leave("model", "ping.sent", 0);
    let builder = Bus::builder().state(live.clone()).only(["model"]);
    let bus = builder.broker(keeper.clone()).await.unwrap();
    publish(&bus, 3).await;
    keeper.state().refuses_seek = true;
    let built = Model::new();
    let error = bus.rebuild("model").state(built.clone()).swap(exchange(&live, &built)).await.unwrap_err();
    assert!(matches!(error, Error::Rebuild { swapped: true, .. }), "{error}");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    bus.start().unwrap();
    until(|| live.now().len() >= 6).await;
    assert_eq!(live.now().all(), [0, 1, 2, 0, 1, 2]);
}

#[tokio::test]
async fn where_no_group_can_be_moved_nothing_is_rebuilt() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    publish(&bus, 3).await;
    keeper.state().declines = true;
    let built = Model::new();
    let swap = async || -> Result<(), BrokerError> { panic!("it must not be called") };
    let error = bus.rebuild("model").state(built.clone()).swap(swap).await.unwrap_err();
    assert!(error.to_string().contains("the keeper broker cannot move a group"), "{error}");
    assert!(built.now().all().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_group_that_another_process_handles_is_not_swapped() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    let other = bus_on(&keeper, &Model::new()).await;
    let swap = async || -> Result<(), BrokerError> { panic!("it must not be called") };
    let error = bus.rebuild("model").state(Model::new()).swap(swap).await.unwrap_err();
    assert!(error.to_string().contains("another process handles the group"), "{error}");
    assert_eq!(keeper.state().groups["model"].readers, 2, "both go on");
    drop(other);
}

#[tokio::test]
async fn a_subscription_of_run_time_is_rebuilt_and_stopped_by_its_handle() {
    let keeper = Keeper::default();
    let bus = Bus::builder().only([] as [&str; 0]).broker(keeper.clone()).await.unwrap();
    let seen = Seen::new();
    let numbers = seen.clone();
    let note = move |order: Arc<OrderPlaced>| {
        numbers.push(order.number);
        std::future::ready(())
    };
    let handle = bus.on(note).group("orders").await.unwrap();
    bus.start().unwrap();
    bus.publish(&OrderPlaced { customer: 1, number: 1 }).await.unwrap();
    until(|| seen.len() == 1).await;
    bus.rebuild("orders").swap(async || Ok::<(), BrokerError>(())).await.unwrap();
    assert_eq!(seen.all(), [1, 1]);
    assert_eq!((bus.subscriptions().len(), keeper.state().groups["orders"].readers), (1, 1));
    handle.stop().await;
    assert_eq!((bus.subscriptions().len(), keeper.state().groups["orders"].readers), (0, 0));
}

#[tokio::test]
async fn what_is_missing_for_a_rebuild_is_named() {
    let swap = async || Ok::<(), BrokerError>(());
    let broker = MemoryBroker::builder().history(10).build();
    let builder = Bus::builder().state(Model::new()).only(["model", "mail"]);
    let bus = builder.broker(broker).await.unwrap();
    let error = bus.rebuild("model").swap(swap).await.unwrap_err().to_string();
    assert!(error.contains("in-process") && error.contains("no cursors"), "{error}");
    let error = bus.rebuild("model").await.unwrap_err().to_string();
    assert!(error.contains("`.swap(…)`"), "{error}");
    let error = bus.rebuild("mail").swap(swap).await.unwrap_err().to_string();
    assert!(error.contains("replay = false"), "{error}");
}

/// A layer that panics once as it is put around a handler: the first time after so many.
#[derive(Clone)]
struct Moody(Arc<AtomicUsize>, usize);

impl tower::Layer<HandlerService> for Moody {
    type Service = HandlerService;

    fn layer(&self, inner: HandlerService) -> HandlerService {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        assert!(before != self.1, "moody");
        inner
    }
}

#[subscribe(batch = 5, linger = "1ms", group = "in_batches")]
async fn in_batches(pings: Vec<Ping>, seen: State<Seen<u64>>) {
    pings.iter().for_each(|ping| seen.push(ping.number));
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_panics_as_it_is_put_around_a_handler_is_an_error_and_ends_no_subscription() {
    // It is put around the live subscription, twice around passes over the log, and around the live one again.
    for panics in 0..4 {
        let (keeper, seen, layer) = (Keeper::default(), Seen::<u64>::new(), Moody(Arc::default(), panics));
        let builder = Bus::builder().only(["in_batches"]).state(seen.clone()).layer(layer);
        let connected = builder.broker(keeper.clone()).await;
        if panics == 0 {
            let refused = connected.unwrap_err().to_string();
            assert!(refused.contains("a layer panicked: moody, as it was put around `"), "{refused}");
            continue;
        }
        let bus = connected.unwrap();
        bus.start().unwrap();
        publish(&bus, 3).await;
        until(|| seen.len() == 3).await;
        let rebuilding = bus.rebuild("in_batches").state(Seen::<u64>::new());
        let rebuilt = rebuilding.swap(|| std::future::ready(Ok::<(), BrokerError>(()))).await;
        let error = rebuilt.unwrap_err().to_string();
        assert_eq!(error.contains("the new model is in place"), panics == 3, "{error}");
        publish(&bus, 1).await;
        until(|| seen.len() == 4).await;
    }
}

#[tokio::test]
async fn a_group_is_rebuilt_once_at_a_time_so_that_neither_model_lacks_an_event() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    publish(&bus, 3).await;
    let (first, other) = (Model::new(), Model::new());
    let (go, at_swap) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (goes, is_at_swap, put) = (Arc::clone(&go), Arc::clone(&at_swap), exchange(&live, &first));
    let slow = bus.rebuild("model").state(first).swap(move || async move {
        is_at_swap.notify_one();
        goes.notified().await;
        put().await
    });
    let slow = tokio::spawn(slow.into_future());
    at_swap.notified().await;
    let second = bus.rebuild("model").state(other.clone()).swap(exchange(&live, &other)).await;
    let said = second.map(drop).map_err(|error| error.to_string());
    // Whoever has the group now handles this one.
    publish(&bus, 1).await;
    go.notify_one();
    slow.await.unwrap().unwrap();
    until(|| keeper.cursor("model") == 4).await;
    goes_on(&bus, &live, 4).await;
    assert!(said.unwrap_err().contains("rebuilt already"));
    bus.rebuild("model").swap(async || Ok::<(), BrokerError>(())).await.unwrap();
    bus.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_broker_that_panics_as_the_live_subscription_begins_again_does_not_end_it_for_good() {
    let (keeper, live) = (Keeper::default(), Model::new());
    let bus = bus_on(&keeper, &live).await;
    publish(&bus, 3).await;
    keeper.state().panics = 2;
    let built = Model::new();
    let error = bus.rebuild("model").state(built.clone()).swap(exchange(&live, &built)).await.unwrap_err();
    assert!(matches!(error, Error::Rebuild { swapped: true, .. }), "{error}");
    goes_on(&bus, &live, 3).await;
    bus.shutdown().await.unwrap();
}

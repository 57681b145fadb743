//! A test bus knows when a cascade is over, and what happened in it.

use eventbus::observe::Attempted;
use eventbus::{Attempt, Backoff, Bus, Event, Start, subscribe};
use eventbus_testing::TestBus;
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "order.placed")]
struct OrderPlaced {
    id: u64,
}

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "order.packed")]
struct OrderPacked {
    id: u64,
}

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "order.shipped")]
struct OrderShipped {
    id: u64,
}

#[subscribe(retries = 3, backoff = "1h..1h")]
async fn pack(order: OrderPlaced, Attempt(attempt): Attempt) -> Result<OrderPacked, String> {
    if attempt < 3 {
        return Err(format!("attempt {attempt}"));
    }
    Ok(OrderPacked { id: order.id })
}

#[subscribe]
async fn ship(order: OrderPacked) -> OrderShipped {
    tokio::time::sleep(Duration::from_secs(1)).await;
    OrderShipped { id: order.id }
}

#[subscribe(retries = 0)]
async fn refuse(_order: OrderShipped) -> Result<(), &'static str> {
    Err("nobody is at home")
}

#[tokio::test(start_paused = true)]
async fn publishing_resolves_when_the_whole_cascade_is_over() {
    let bus = TestBus::start(Bus::builder().only([pack::SUBSCRIBER, ship::SUBSCRIBER])).await;
    let (before, real) = (Instant::now(), std::time::Instant::now());
    let id = bus.publish(&OrderPlaced { id: 7 }).await;
    bus.assert_published(&OrderShipped { id: 7 });
    assert_eq!(bus.published::<OrderPacked>().len(), 1);
    let attempts = bus.handled(pack::SUBSCRIBER);
    assert_eq!(attempts.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(attempts.iter().all(|attempt| attempt.event == id));
    assert!(matches!(&attempts[0].result, Attempted::Retrying { reason, .. } if reason == "attempt 1"));
    assert!(matches!(attempts[2].result, Attempted::Acked));
    bus.assert_no_dead_letters();
    assert!(before.elapsed() >= Duration::from_secs(2 * 3600), "two retries of an hour at least");
    assert!(real.elapsed() < Duration::from_secs(60), "and they took no time");
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_found() {
    let bus = TestBus::start(Bus::builder()).await;
    bus.publish(OrderPlaced { id: 7 }).await;
    let letters = bus.dead_letters();
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "nobody is at home"));
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no such event was published on \"order.shipped\"")]
async fn a_failed_assertion_shows_what_was_published() {
    let bus = TestBus::start(Bus::builder().only([ship::SUBSCRIBER])).await;
    bus.publish(&OrderPacked { id: 7 }).await;
    bus.assert_published(&OrderShipped { id: 8 });
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "nobody is at home")]
async fn an_unexpected_dead_letter_is_shown_with_its_reason() {
    let bus = TestBus::start(Bus::builder().only([refuse::SUBSCRIBER])).await;
    bus.publish(&OrderShipped { id: 7 }).await;
    bus.assert_no_dead_letters();
}

#[tokio::test]
#[should_panic(expected = "did you mean \"eventbus-testing.ship\"?")]
async fn a_bus_that_does_not_start_says_why() {
    TestBus::start(Bus::builder().only(["eventbus-testing.shpi"])).await;
}

#[tokio::test]
async fn a_subscription_of_the_test_itself_is_part_of_the_cascade() {
    let bus = TestBus::start(Bus::builder().only([] as [&str; 0])).await;
    let late = bus.bus().on_topic("greeting.sent", |_| async { tokio::task::yield_now().await });
    late.group("late").backoff(Backoff::parse("1ms..1s")).await.unwrap();
    bus.bus().start().unwrap();
    bus.publish_to("greeting.sent", "hello").await;
    assert_eq!(bus.attempts("late"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_group_that_begins_at_the_earliest_event_can_be_tested() {
    let bus = TestBus::start(Bus::builder().without_subscriptions()).await;
    bus.publish(&OrderPlaced { id: 7 }).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let orders = Arc::clone(&seen);
    let note = move |order: Arc<OrderPlaced>| {
        let orders = Arc::clone(&orders);
        async move { orders.lock().unwrap().push(order.id) }
    };
    bus.bus().on(note).start(Start::Earliest).await.unwrap();
    bus.bus().start().unwrap();
    bus.settled().await;
    assert_eq!(*seen.lock().unwrap(), [7]);
}

#[test]
fn an_event_that_is_refused_names_the_line_of_the_test() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let bus = runtime.block_on(TestBus::start(Bus::builder().without_subscriptions()));
    let line = line!() + 1;
    let publish = bus.publish_to("not a topic", &1);
    let panic = catch_unwind(AssertUnwindSafe(|| runtime.block_on(publish))).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains(&format!("{}:{line}", file!())) && text.contains("not a topic"), "{text}");
}

#[tokio::test]
async fn a_group_that_is_not_there_is_no_group_without_attempts() {
    let bus = TestBus::start(Bus::builder().only([pack::SUBSCRIBER])).await;
    assert_eq!(bus.attempts(pack::SUBSCRIBER), 0);
    let panic = catch_unwind(AssertUnwindSafe(|| bus.attempts("eventbus-testing.pakc"))).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(
        text.contains("`eventbus-testing.pakc`") && text.contains("did you mean \"eventbus-testing.pack\"?"),
        "{text}"
    );
}

/// What nobody links is in no registry, and a constant that names its group does not link it.
#[tokio::test]
async fn a_group_of_a_package_that_is_not_linked_says_how_to_link_it() {
    let bus = TestBus::start(Bus::builder().only([pack::SUBSCRIBER])).await;
    let panic = catch_unwind(AssertUnwindSafe(|| bus.attempts("shop-handlers.take"))).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("write `eventbus::link!(shop_handlers);`"), "{text}");
    let error = Bus::builder().only(["shop-handlers.take"]).connect("memory:").await.unwrap_err();
    assert!(error.to_string().contains("write `eventbus::link!(shop_handlers);`"), "{error}");
    let error = bus.bus().replay("shop-handlers.take").await.unwrap_err();
    assert!(error.to_string().contains("write `eventbus::link!(shop_handlers);`"), "{error}");
    let panic = catch_unwind(AssertUnwindSafe(|| bus.attempts("eventbus-testing.pakc"))).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(!text.contains("link!"), "its package is linked: {text}");
}

//! A log that panics: whoever subscribes to `tracing` is code of others. A subscriber that writes to standard error
//! panics at each line once nobody reads that any more.
//!
//! The subscriber is that of the whole process, since brokers write from threads of their own.

mod support;

use eventbus::{Bus, Delivery, Outcome, subscribe};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use support::{Ping, bus, pings};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Panics wherever it is called.
struct Panicking;

fn panic_at(place: &str) {
    PANICS.fetch_add(1, Relaxed);
    panic!("{place} could not be written");
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Panicking {
    fn on_new_span(&self, _: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        panic_at("a span");
    }

    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        panic_at("a line");
    }
}

/// Leaves spans alone when they are made, and panics when they are entered, left and closed.
struct PanickingLater;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for PanickingLater {
    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        panic_at("the beginning of a span");
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        panic_at("the end of a span");
    }

    fn on_close(&self, _: Id, _: Context<'_, S>) {
        panic_at("a span that is closed");
    }
}

fn panic_from_now_on() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|_| {}));
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Panicking)).unwrap();
    });
}

#[subscribe("ping.sent", group = "blocks", blocking, retries = 0)]
fn block(ping: &Ping) -> Result<(), &'static str> {
    if ping.number.is_multiple_of(2) { Ok(()) } else { Err("odd") }
}

/// Handlers that succeed, fail, give up, panic and drop, of which all but the first cause lines.
async fn goes_on(bus: Bus) {
    let fail = |_: Delivery| async { Err::<(), _>("no") };
    let short = Duration::from_millis(1);
    let backoff = eventbus::Backoff::new(short, short);
    bus.on_topic("ping.sent", fail).group("fails").retries(2).backoff(backoff).await.unwrap();
    bus.on_topic("ping.sent", fail).group("drops").retries(0).dead_letter(false).await.unwrap();
    let give_up = |_: Delivery| async { Outcome::Reject("never".into()) };
    bus.on_topic("ping.sent", give_up).group("gives.up").await.unwrap();
    let panic = |ping: Arc<Ping>| async move { assert!(ping.number > 100, "small") };
    bus.on(panic).group("panics").retries(0).await.unwrap();
    let seen = pings(&bus, "succeeds").await;
    bus.start().unwrap();
    for number in 0..20 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    let settled = tokio::time::timeout(Duration::from_secs(20), bus.settled());
    settled.await.expect("every group goes on").unwrap();
    assert_eq!(seen.len(), 20);
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let of = |group: &str| letters.iter().filter(|(_, letter)| letter.group == group).count();
    let counts = ["fails", "gives.up", "panics", "drops"].map(of);
    assert_eq!(counts, [20, 20, 20, 0]);
    bus.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_panics_costs_lines_and_nothing_else_in_process() {
    panic_from_now_on();
    goes_on(bus().await.0).await;
    assert!(PANICS.load(Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_panics_costs_lines_and_nothing_else_on_the_embedded_log() {
    panic_from_now_on();
    let folder = tempfile::tempdir().unwrap();
    let address = format!("sqlite:{}", folder.path().join("log.db").display());
    goes_on(Bus::builder().only([] as [&str; 0]).connect(&address).await.unwrap()).await;
    assert!(PANICS.load(Relaxed) > 0);
}

#[tokio::test]
async fn a_log_that_panics_at_the_ends_of_spans_costs_no_delivery() {
    panic_from_now_on();
    let later = tracing_subscriber::registry().with(PanickingLater);
    let _later = tracing::subscriber::set_default(later);
    goes_on(bus().await.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_panics_costs_a_blocking_handler_nothing() {
    panic_from_now_on();
    let broker = eventbus::memory::MemoryBroker::new();
    let bus = Bus::builder().only(["blocks"]).broker(broker).await.unwrap();
    bus.start().unwrap();
    for number in 0..20 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    let settled = tokio::time::timeout(Duration::from_secs(20), bus.settled());
    settled.await.expect("the group goes on").unwrap();
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 10);
    bus.shutdown().await.unwrap();
}

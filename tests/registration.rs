//! What the registry holds for each kind of handler, as the linker assembled it.

#![deny(clippy::pedantic, clippy::nursery, unreachable_pub, unused_qualifications)]
#![allow(
    clippy::missing_const_for_fn,
    clippy::unused_self,
    clippy::duration_suboptimal_units,
    clippy::non_minimal_cfg,
    reason = "the handlers are empty, and say what they would say in a program"
)]

use eventbus::__private::subscribers;
use eventbus::subscription::{Subscriber, Subscription};
use eventbus::{
    Backoff, Batch, Bus, Envelope, Event, Outcome, Publisher, Start, State, subscribe, subscriber,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
}

#[derive(Event, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[event(topic = "order.shipped", key = id)]
struct OrderShipped {
    id: u64,
}

struct Stock;
struct Shop;

const SHIP_LINE: u32 = line!() + 6;

/// Ships what was ordered.
///
/// At once.
#[subscribe("order.placed")]
async fn ship(
    order: OrderPlaced,
    _stock: State<Stock>,
    _publisher: Publisher,
) -> Result<OrderShipped, String> {
    std::future::ready(Ok(OrderShipped { id: order.id })).await
}

#[subscribe(
    "order.>",
    group = "ledger",
    name = "book",
    retries = 8,
    backoff = "200ms..1m",
    timeout = "2m",
    concurrency = 16,
    start = "earliest",
    competing = true,
    dead_letter = false,
    replay = false
)]
async fn with_all_options(_envelope: &Envelope) {
    std::future::ready(()).await;
}

#[subscribe]
async fn inferred(order: Arc<OrderPlaced>) -> Option<OrderShipped> {
    std::future::ready(Some(OrderShipped { id: order.id })).await
}

#[subscribe("order.placed")]
#[subscribe("order.shipped", group = "shipped", retries = 1)]
#[subscribe("stock.*", group = "stock")]
fn listens_thrice(_envelope: &Envelope) {}

#[subscribe]
fn in_place(_order: &OrderPlaced) -> Outcome {
    Outcome::Ack
}

#[subscribe(blocking)]
fn blocks(_order: OrderPlaced) {}

#[subscribe(batch = 100, linger = "200ms")]
async fn gathers(_orders: Vec<OrderPlaced>, _stock: State<Stock>) {
    std::future::ready(()).await;
}

#[subscribe("order.shipped", batch = 7)]
async fn gathers_with_envelopes(_orders: Batch<OrderShipped>) -> Result<(), String> {
    std::future::ready(Ok(())).await
}

#[subscriber]
impl Shop {
    /// Greets.
    #[subscribe(retries = 2)]
    async fn greet(&self, _order: OrderPlaced, _stock: State<Stock>) {
        std::future::ready(()).await;
    }

    #[subscribe]
    #[subscribe("order.shipped", group = "goodbye")]
    fn part(&self, _shipped: OrderShipped) {}

    #[subscribe]
    #[cfg(any())]
    async fn absent_method(&self, _order: OrderPlaced) {}
}

mod private {
    mod deeper {
        #[eventbus::subscribe]
        async fn in_private_modules(_order: crate::OrderPlaced) {
            std::future::ready(()).await;
        }
    }
}

#[allow(dead_code, reason = "what is inside is registered though nobody calls this")]
fn never_called() {
    #[subscribe]
    fn in_a_function(_order: OrderPlaced) {}

    let _ = || {
        #[subscribe("order.placed", name = "in_a_closure")]
        fn in_a_function(_order: OrderPlaced) {}
    };
}

#[cfg(all())]
#[subscribe]
fn behind_a_true_cfg(_order: OrderPlaced) {}

#[cfg(any())]
#[subscribe]
fn behind_a_false_cfg(_order: NoSuchType) {}

#[subscribe]
#[cfg(any())]
fn above_a_false_cfg(_order: NoSuchType) {}

#[subscribe]
fn r#type(_order: OrderPlaced) {}

/// All subscriptions of this program with this name.
fn found(name: &str) -> Vec<&'static Subscriber> {
    subscribers().iter().copied().filter(|subscriber| subscriber.subscription.name == name).collect()
}

/// The one subscription of this program with this name.
fn one(name: &str) -> &'static Subscription {
    let found = found(name);
    assert_eq!(found.len(), 1, "`{name}` is registered once");
    &found[0].subscription
}

fn states(subscription: &Subscription) -> Vec<&'static str> {
    let path = |state: &eventbus::extract::StateType| (state.name)();
    subscription.states.iter().flatten().map(path).map(|path| path.rsplit("::").next().unwrap()).collect()
}

#[test]
fn the_registry_holds_each_handler_once_and_in_order_of_lines() {
    let names: Vec<_> = subscribers().iter().map(|subscriber| &*subscriber.subscription.name).collect();
    let expected = [
        "ship",
        "book",
        "inferred",
        // One line, so by group.
        "listens_thrice",
        "listens_thrice",
        "listens_thrice",
        "in_place",
        "blocks",
        "gathers",
        "gathers_with_envelopes",
        "Shop.greet",
        "Shop.part",
        "Shop.part",
        "in_private_modules",
        "in_a_function",
        "in_a_closure",
        "behind_a_true_cfg",
        "type",
    ];
    assert_eq!(names, expected);
    assert!(subscribers().iter().is_sorted_by_key(|subscriber| subscriber.subscription.line));
}

#[test]
fn a_function_is_described_as_it_was_written() {
    let ship = one("ship");
    assert_eq!((&*ship.pattern, &*ship.group), ("order.placed", "eventbus.ship"));
    assert_eq!((ship.package, ship.module), ("eventbus", "registration"));
    assert_eq!((ship.file, ship.line), (file!(), SHIP_LINE));
    assert_eq!(ship.docs, "Ships what was ordered.\n\nAt once.");
    assert_eq!(ship.event.unwrap().name, "OrderPlaced");
    assert_eq!(ship.publishes.unwrap().topic, "order.shipped");
    assert_eq!(states(ship), ["Stock"]);
    assert_eq!(ship.options, eventbus::subscription::Options::DEFAULT);
}

#[test]
fn each_option_reaches_the_registry() {
    let book = one("book");
    assert_eq!((&*book.pattern, &*book.group), ("order.>", "ledger"));
    assert!(book.event.is_none() && book.publishes.is_none() && book.docs.is_empty());
    // Each by its name, so that a new one has to be written above.
    let options = eventbus::subscription::Options {
        retries: Some(8),
        backoff: Some(Backoff::new(Duration::from_millis(200), Duration::from_secs(60))),
        timeout: Some(Duration::from_secs(120)),
        concurrency: Some(16),
        start: Some(Start::Earliest),
        competing: Some(true),
        dead_letter: Some(false),
        replay: Some(false),
        batch: None,
        linger: None,
    };
    assert_eq!(book.options, options);
}

#[test]
fn a_topic_is_inferred_from_the_event() {
    let inferred = one("inferred");
    assert_eq!(inferred.pattern, "order.placed");
    assert_eq!(inferred.publishes.unwrap().name, "OrderShipped");
}

#[test]
fn each_attribute_of_a_function_is_a_subscription() {
    let groups: Vec<_> = found("listens_thrice")
        .iter()
        .map(|subscriber| (&*subscriber.subscription.group, &*subscriber.subscription.pattern))
        .collect();
    let expected =
        [("eventbus.listens_thrice", "order.placed"), ("shipped", "order.shipped"), ("stock", "stock.*")];
    assert_eq!(groups, expected);
    let options: Vec<_> = listens_thrice::SUBSCRIBERS
        .iter()
        .map(|subscriber| subscriber.subscription.options.retries)
        .collect();
    assert_eq!(options, [None, Some(1), None]);
}

#[test]
fn plain_functions_are_handlers_in_place_or_where_they_may_block() {
    for name in ["in_place", "blocks", "type"] {
        assert_eq!(one(name).event.unwrap().name, "OrderPlaced");
    }
}

#[test]
fn a_batch_handler_takes_the_event_of_its_members() {
    let gathers = one("gathers");
    assert_eq!((&*gathers.pattern, states(gathers)), ("order.placed", vec!["Stock"]));
    let options = gathers.options;
    assert_eq!((options.batch, options.linger), (Some(100), Some(Duration::from_millis(200))));
    let with_envelopes = one("gathers_with_envelopes");
    assert_eq!((with_envelopes.event.unwrap().name, with_envelopes.options.batch), ("OrderShipped", Some(7)));
}

#[test]
fn a_method_takes_its_receiver_from_the_state() {
    let greet = one("Shop.greet");
    assert_eq!((&*greet.group, greet.docs), ("eventbus.Shop.greet", "Greets."));
    assert_eq!(states(greet), ["Shop", "Stock"]);
    assert_eq!(greet.options.retries, Some(2));
    assert_eq!(Shop::PART_SUBSCRIBERS.len(), 2);
}

#[test]
fn the_constant_of_a_handler_is_the_registered_one() {
    for constant in [ship::SUBSCRIBER, inferred::SUBSCRIBER, r#type::SUBSCRIBER, Shop::GREET_SUBSCRIBER] {
        let registered = found(&constant.subscription.name);
        assert!(std::ptr::eq(registered[0], constant), "{}", constant.subscription.name);
    }
}

#[test]
fn a_handler_is_found_where_nobody_names_it() {
    assert_eq!(one("in_private_modules").module, "registration::private::deeper");
    assert_eq!(one("in_a_function").group, "eventbus.in_a_function");
    assert_eq!(one("in_a_closure").group, "eventbus.in_a_closure");
}

#[test]
fn cfg_decides_what_is_registered() {
    assert!(found("behind_a_true_cfg").len() == 1);
    for absent in ["behind_a_false_cfg", "above_a_false_cfg", "Shop.absent_method"] {
        assert!(found(absent).is_empty(), "{absent}");
    }
}

#[tokio::test]
async fn a_handler_is_still_a_function() {
    let order = OrderPlaced { id: 7 };
    assert_eq!(inferred(Arc::new(order.clone())).await, Some(OrderShipped { id: 7 }));
    assert!(matches!(in_place(&order), Outcome::Ack));
    blocks(order.clone());
    gathers(vec![order.clone()], State::new(Stock)).await;
    Shop.greet(order, State::new(Stock)).await;
}

#[tokio::test]
async fn a_broker_of_another_crate_is_found_by_the_scheme_of_its_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("log.db").display());
    let bus = Bus::builder().without_subscriptions().connect(&url).await.unwrap();
    assert!(format!("{bus:?}").contains("SQLite"));
}

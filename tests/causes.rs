//! What an event led to, out of the audit log.

mod support;

use eventbus::broker::CauseTree;
use eventbus::memory::MemoryBroker;
use eventbus::{Bus, Event, EventId, subscribe};
use serde::{Deserialize, Serialize};
use support::{OrderPlaced, Ping};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.confirmed")]
struct OrderConfirmed {
    number: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "mail.sent")]
struct MailSent {
    number: u64,
}

#[subscribe]
async fn confirm(order: OrderPlaced) -> OrderConfirmed {
    OrderConfirmed { number: order.number }
}

#[subscribe]
async fn mail(order: OrderConfirmed) -> MailSent {
    MailSent { number: order.number }
}

/// More than one page of the audit log.
#[subscribe]
async fn burst(ping: Ping) -> Vec<MailSent> {
    (0..ping.number).map(|number| MailSent { number }).collect()
}

async fn bus(history: usize) -> (Bus, MemoryBroker) {
    let broker = MemoryBroker::builder().history(history).build();
    let bus = Bus::builder().concurrency(1).broker(broker.clone()).await.unwrap();
    bus.start().unwrap();
    (bus, broker)
}

fn drawn(trees: &[CauseTree]) -> String {
    let draw = |tree: &CauseTree| format!("{}({})", tree.event.envelope.topic(), drawn(&tree.effects));
    trees.iter().map(draw).collect::<Vec<_>>().join(" ")
}

const CHAIN: &str = "order.placed(order.confirmed(mail.sent()))";

#[tokio::test]
async fn the_whole_chain_is_found_from_any_of_its_events() {
    let (bus, broker) = bus(100).await;
    let first = bus.publish(&OrderPlaced { customer: 1, number: 1 }).await.unwrap();
    bus.publish(&OrderPlaced { customer: 2, number: 2 }).await.unwrap();
    broker.settled().await;
    let trees = bus.causes(&first).await.unwrap();
    assert_eq!(drawn(&trees), CHAIN);
    let last = trees[0].effects[0].effects[0].event.envelope.id();
    assert_eq!(drawn(&bus.causes(last).await.unwrap()), CHAIN);
    assert!(bus.causes(&EventId::new("nobody's")).await.unwrap().is_empty());
}

#[tokio::test]
async fn effects_are_found_whose_first_cause_is_no_longer_kept() {
    let (bus, broker) = bus(2).await;
    let first = bus.publish(&OrderPlaced { customer: 1, number: 1 }).await.unwrap();
    broker.settled().await;
    assert_eq!(drawn(&bus.causes(&first).await.unwrap()), "order.confirmed(mail.sent())");
}

#[tokio::test]
async fn a_chain_is_read_page_by_page_to_its_end() {
    let (bus, broker) = bus(10_000).await;
    let ping = bus.publish(&Ping { number: 2_500 }).await.unwrap();
    broker.settled().await;
    let trees = bus.causes(&ping).await.unwrap();
    assert_eq!((trees.len(), trees[0].effects.len()), (1, 2_500));
}

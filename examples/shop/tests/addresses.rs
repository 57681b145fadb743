//! One program, and every address: the shop tells one story on each broker. It needs their servers, which
//! `cargo xtask brokers up` begins.

mod support;

use eventbus::broker::{AuditQuery, DeadLetterQuery, FailureKind};
use eventbus::observe::{Attempted, Observer};
use eventbus::{Bus, Delivery, Start};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use support::{Shop, address, pens};

/// The consumers of the shop, by their groups.
const GROUPS: [&str; 5] = [
    "shop.count_sales",
    "shop.mark_reserved",
    "shop.orders_by_day",
    "shop.reserve",
    "shop.send_confirmation",
];

/// What the brokers do not have in common: what one declines, it has to decline in words.
#[derive(Clone, Copy)]
struct Keeps {
    /// Events that were handled: for replays, for groups that begin early, and to be asked for.
    history: bool,
    /// Of two events with one id the first.
    one_of_an_id: bool,
    /// Groups that can be listed.
    groups: bool,
}

const LOG: Keeps = Keeps { history: true, one_of_an_id: true, groups: true };

/// The shop on each address, as a test of its own.
macro_rules! the_shop_tells_its_story_on {
    ($($name:ident: $address:expr, $keeps:expr;)*) => {
        mod the_shop_tells_its_story_on {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let folder = tempfile::tempdir().unwrap();
                    let address: fn(&Path) -> String = $address;
                    story(folder.path(), &address(folder.path()), $keeps).await;
                }
            )*
        }
    };
}

the_shop_tells_its_story_on! {
    memory: |_| "memory:".to_owned(), Keeps { history: false, one_of_an_id: false, groups: false };
    sqlite: address::log, LOG;
    nats: |_| address::nats(), LOG;
    redis: |_| address::redis(), LOG;
    valkey: |_| address::valkey(), LOG;
    kafka: |_| address::kafka(), Keeps { one_of_an_id: false, ..LOG };
    rabbitmq: |_| address::rabbitmq(), Keeps { history: false, one_of_an_id: false, groups: true };
    sns_and_sqs: |_| address::aws(), Keeps { history: false, one_of_an_id: true, groups: true };
}

/// Orders are placed, a mail is wanted later, one order cannot be reserved and is mended, the past is replayed, and the
/// shop is opened again.
async fn story(folder: &Path, url: &str, keeps: Keeps) {
    let attempts = Attempts::default();
    let shop = Shop::open_on(folder, url, |bus| bus.observer(attempts.clone())).await;

    orders_are_placed(&shop, &attempts, keeps).await;
    what_was_rejected_is_mended(&shop, &attempts).await;
    the_past_is_replayed(&shop, keeps).await;
    what_is_kept_is_shown(&shop, url, keeps).await;

    // The last order may be handled before the end or after it.
    assert_eq!(shop.post(&pens("web-8", 1)).await.0, 201);
    shop.close().await;
    let shop = Shop::open_on(folder, url, |bus| bus).await;
    assert_eq!(shop.post(&pens("web-9", 1)).await.0, 201);
    shop.settled().await;
    assert_eq!(shop.get("/orders-by-day").await.1, day(9, 6_490));
    for order in ["web-7", "web-8", "web-9"] {
        assert_eq!(status_of(&shop, order).await, "reserved");
    }
    assert_eq!(shop.count("select count(*) from sent_mail").await, 9);
    shop.close().await;
}

/// Seven orders, of which the mail for one has to be tried again, and one is not in stock.
async fn orders_are_placed(shop: &Shop, attempts: &Attempts, keeps: Keeps) {
    for number in 1..=7 {
        let mut order = pens(&format!("web-{number}"), 2);
        match number {
            2 => order["customer"]["email"] = json!("ada@greylisting.example"),
            7 => order["items"].as_array_mut().unwrap().push(umbrella()),
            _ => {}
        }
        assert_eq!(shop.post(&order).await.0, 201);
    }
    // The client has lost its answer.
    assert_eq!(shop.post(&pens("web-1", 2)).await.0, 200);
    shop.settled().await;

    assert_eq!(shop.get("/orders-by-day").await.1, day(7, 5_990));
    let sales = json!([
        { "sku": "pen", "ordered": 14, "revenue_cents": 3_500 },
        { "sku": "umbrella", "ordered": 1, "revenue_cents": 2_490 },
    ]);
    assert_eq!(shop.get("/sales").await.1, sales);
    assert_eq!(shop.count("select left from stock where sku = 'pen'").await, 100_000 - 12);
    for number in 1..=6 {
        assert_eq!(status_of(shop, &format!("web-{number}")).await, "reserved");
    }
    assert_eq!(shop.count("select count(*) from sent_mail").await, 7);

    let mails = attempts.of("shop.send_confirmation", "web-2");
    assert!(mails.len() >= 2, "{mails:?}");
    assert_eq!(mails[0], (1, "451 greylisted, try again later".to_owned()));
    let (last, result) = mails.last().unwrap();
    assert!(*last >= 2 && result == "acked", "{mails:?}");
    if !keeps.one_of_an_id {
        // Then the consumers look after themselves: see `inbox`.
        assert!(attempts.of("shop.orders_by_day", "web-1").len() >= 2);
    }
}

/// The one order that was rejected is a dead letter of one consumer, and goes back to this one alone.
async fn what_was_rejected_is_mended(shop: &Shop, attempts: &Attempts) {
    assert_eq!(status_of(shop, "web-7").await, "placed");
    let (_, told) = shop.get("/dead-letters").await;
    assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
    for (field, expected) in [
        ("group", json!("shop.reserve")),
        ("topic", json!("order.placed")),
        ("key", json!("web-7")),
        ("kind", json!("rejected")),
        ("reason", json!("the order cannot be reserved: umbrella: 1 ordered, 0 in stock")),
        ("attempts", json!(1)),
    ] {
        assert_eq!(told[0][field], expected, "{field}");
    }

    let dead_letters = shop.bus.dead_letters().unwrap();
    let mut query = DeadLetterQuery::default();
    query.group = Some("shop.reserve".to_owned());
    let mut found = dead_letters.find(query).await.unwrap();
    let (id, letter) = found.pop().expect("it is found by its group");
    assert!(found.is_empty() && letter.kind == FailureKind::Rejected, "{letter:?}");
    let mut order: Value = serde_json::from_slice(letter.envelope.payload().unwrap()).unwrap();
    assert_eq!(order["items"].as_array_mut().unwrap().pop(), Some(umbrella()));
    let before = attempts.count();
    let mended = serde_json::to_vec(&order).unwrap().into();
    assert!(dead_letters.republish(&id, Some(mended)).await.unwrap());
    shop.settled().await;

    assert_eq!(status_of(shop, "web-7").await, "reserved");
    assert_eq!(shop.count("select left from stock where sku = 'pen'").await, 100_000 - 14);
    assert_eq!(
        attempts.groups_since(before),
        BTreeSet::from(["shop.mark_reserved", "shop.reserve"].map(str::to_owned))
    );
    assert_eq!(shop.get("/dead-letters").await.1, json!([]));
    assert!(!dead_letters.republish(&id, None).await.unwrap(), "it is gone");
}

/// A projection has all orders again, and counts none of them twice; mails are not sent again.
async fn the_past_is_replayed(shop: &Shop, keeps: Keeps) {
    let replay = shop.bus.replay("shop.orders_by_day").await;
    if keeps.history {
        let orders = if keeps.one_of_an_id { 7 } else { 8 };
        assert_eq!(replay.unwrap().acked, orders);
        let refused = shop.bus.replay("shop.send_confirmation").await.unwrap_err().to_string();
        assert!(refused.contains("`replay = false`"), "{refused}");
    } else {
        let declined = replay.unwrap_err().to_string();
        assert!(declined.contains("keeps no events after they were handled"), "{declined}");
    }
    assert_eq!(shop.get("/orders-by-day").await.1, day(7, 5_990));
    assert_eq!(shop.count("select count(*) from sent_mail").await, 7);
}

/// The audit log, the groups, and where a new group may begin.
async fn what_is_kept_is_shown(shop: &Shop, url: &str, keeps: Keeps) {
    match shop.bus.audit_log() {
        Ok(log) => {
            let mut query = AuditQuery::default();
            query.key = Some("web-3".to_owned());
            let events = log.query(query).await.unwrap();
            let topics: BTreeSet<_> = events.iter().map(|event| event.envelope.topic().to_string()).collect();
            assert_eq!(topics, BTreeSet::from(["inventory.reserved", "order.placed"].map(str::to_owned)));
            assert_eq!(events.len(), 2);
            assert!(keeps.history);
        }
        Err(declined) => {
            assert!(declined.to_string().contains("keeps no log that can be asked"), "{declined}");
            assert!(!keeps.history);
        }
    }

    match shop.bus.groups() {
        Ok(groups) => {
            let groups = groups.list().await.unwrap();
            assert_eq!(groups.iter().map(|state| state.group.as_str()).collect::<Vec<_>>(), GROUPS);
            assert!(groups.iter().all(|state| state.active && state.parked == 0), "{groups:?}");
            assert!(keeps.groups);
        }
        Err(declined) => {
            assert!(declined.to_string().contains("keeps no cursors of groups"), "{declined}");
            assert!(!keeps.groups);
        }
    }

    let earliest = Bus::builder().state(shop.database.clone()).start(Start::Earliest);
    let mistakes = earliest.check(url).await.unwrap().mistakes;
    if keeps.history {
        assert!(mistakes.is_empty(), "{mistakes:#?}");
    } else {
        assert_eq!(mistakes.len(), GROUPS.len(), "{mistakes:#?}");
        assert!(mistakes.iter().all(|said| said.contains("keeps no earlier events")), "{mistakes:#?}");
    }
}

/// What the shop tells of the one day on which all orders are placed.
fn day(orders: u64, revenue_cents: u64) -> Value {
    json!([{ "day": "2026-03-01", "orders": orders, "revenue_cents": revenue_cents }])
}

fn umbrella() -> Value {
    json!({ "sku": "umbrella", "quantity": 1, "price_cents": 2_490 })
}

async fn status_of(shop: &Shop, order: &str) -> Value {
    shop.get(&format!("/orders/{order}")).await.1["status"].clone()
}

/// Every attempt that a bus has made.
#[derive(Clone, Default)]
struct Attempts(Arc<Mutex<Vec<Attempt>>>);

/// One of them: who, of which key, the how manieth, and what came of it.
type Attempt = (String, Option<String>, u32, String);

impl Attempts {
    /// Those of a group with the events of a key, by their numbers and their results.
    fn of(&self, group: &str, key: &str) -> Vec<(u32, String)> {
        let all = self.0.lock().unwrap();
        let of_it = all.iter().filter(|(of, with, ..)| of == group && with.as_deref() == Some(key));
        of_it.map(|(_, _, number, result)| (*number, result.clone())).collect()
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn groups_since(&self, before: usize) -> BTreeSet<String> {
        self.0.lock().unwrap()[before..].iter().map(|(group, ..)| group.clone()).collect()
    }
}

impl Observer for Attempts {
    fn attempted(&self, delivery: &Delivery, result: &Attempted) {
        let result = match result {
            Attempted::Acked => "acked".to_owned(),
            Attempted::Retrying { reason, .. } | Attempted::Dropped { reason } => reason.clone(),
            Attempted::DeadLettered(letter) => letter.reason.clone(),
            other => format!("{other:?}"),
        };
        let key = delivery.envelope().key().map(str::to_owned);
        let attempt = (delivery.subscription().group.to_string(), key, delivery.attempt(), result);
        self.0.lock().unwrap().push(attempt);
    }
}

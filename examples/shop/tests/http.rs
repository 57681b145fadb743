//! The HTTP API, over a socket.

mod support;

use serde_json::json;
use shop::order::NewOrder;
use shop::orders::{Orders, PlaceError};
use support::{Shop, pens};

#[tokio::test]
async fn an_order_is_saved_and_every_consumer_does_its_part() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    let (status, receipt) = shop.post(&pens("web-1", 2)).await;
    assert_eq!(
        (status, &receipt),
        (201, &json!({ "id": "web-1", "total_cents": 500, "placed_at": "2026-03-01T12:00:00Z" }))
    );
    shop.settled().await;
    let (status, order) = shop.get("/orders/web-1").await;
    assert_eq!((status, &order["status"]), (200, &json!("reserved")));
    let (_, days) = shop.get("/orders-by-day").await;
    assert_eq!(days, json!([{ "day": "2026-03-01", "orders": 1, "revenue_cents": 500 }]));
    let (_, sales) = shop.get("/sales").await;
    assert_eq!(sales, json!([{ "sku": "pen", "ordered": 2, "revenue_cents": 500 }]));
    let (_, stock) = shop.get("/stock").await;
    assert!(stock.as_array().unwrap().contains(&json!({ "sku": "pen", "left": 99_998 })), "{stock}");
    assert_eq!(shop.count("select count(*) from sent_mail where recipient = 'ada@example.com'").await, 1);
    assert_eq!(shop.get("/dead-letters").await, (200, json!([])));
    let (status, health) = shop.get("/health").await;
    assert_eq!((status, &health["connection"]["state"]), (200, &json!("up")));
    let states: Vec<_> =
        health["subscriptions"].as_array().unwrap().iter().map(|one| &one["state"]).collect();
    assert!(!states.is_empty() && states.iter().all(|state| *state == "idle"), "{health}");
    shop.close().await;
}

#[tokio::test]
async fn an_order_that_is_sent_again_is_placed_once() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    let (first, receipt) = shop.post(&pens("web-1", 2)).await;
    let (second, again) = shop.post(&pens("web-1", 2)).await;
    assert_eq!((first, second), (201, 200));
    assert_eq!(receipt, again);
    shop.settled().await;
    assert_eq!(shop.count("select count(*) from orders").await, 1);
    assert_eq!(shop.count("select sum(orders) from orders_by_day").await, 1);
    shop.close().await;
}

#[tokio::test]
async fn an_order_that_was_saved_but_not_published_is_published_when_it_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    let orders = Orders::new(shop.database.clone(), shop.bus.publisher());
    shop.close().await;
    let order: NewOrder = serde_json::from_value(pens("web-1", 2)).unwrap();
    let failed = orders.place(order.check().unwrap()).await;
    assert!(matches!(failed, Err(PlaceError::Publish(_))), "the bus has ended: {failed:?}");
    let shop = Shop::open(folder.path()).await;
    shop.settled().await;
    assert_eq!(shop.get("/orders-by-day").await, (200, json!([])), "nobody knows of it");
    assert_eq!(shop.post(&pens("web-1", 2)).await.0, 200);
    shop.settled().await;
    assert_eq!(shop.count("select sum(orders) from orders_by_day").await, 1);
    shop.close().await;
}

#[tokio::test]
async fn the_id_of_another_order_is_a_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    shop.post(&pens("web-1", 2)).await;
    let (status, answer) = shop.post(&pens("web-1", 3)).await;
    assert_eq!((status, answer), (409, json!({ "error": "there is another order with the id `web-1`" })));
    shop.close().await;
}

#[tokio::test]
async fn requests_that_cannot_be_met_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    let (status, answer) = shop.post(&pens("web-1", 0)).await;
    assert_eq!((status, &answer["problems"]), (422, &json!(["pen: the quantity is from 1 to 100, not 0"])));
    for (method, path, body, expected) in [
        ("POST", "/orders", "{", 400),
        ("POST", "/orders", "{}", 422),
        ("PUT", "/orders", "{}", 405),
        ("GET", "/orders/nobody", "", 404),
        ("GET", "/nowhere", "", 404),
        ("GET", "/orders-by-day?days=many", "", 400),
    ] {
        let (status, answer) = shop.request(method, path, body).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert!(answer["error"].is_string(), "{answer}");
    }
    assert_eq!(shop.count("select count(*) from orders").await, 0);
    shop.close().await;
}

#[tokio::test]
async fn what_is_out_of_stock_is_a_dead_letter_of_the_inventory_alone() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    let mut order = pens("web-1", 2);
    let umbrella = json!({ "sku": "umbrella", "quantity": 1, "price_cents": 2_490 });
    order["items"].as_array_mut().unwrap().push(umbrella);
    shop.post(&order).await;
    shop.settled().await;
    let (_, letters) = shop.get("/dead-letters").await;
    assert_eq!(letters.as_array().unwrap().len(), 1, "{letters}");
    assert_eq!(letters[0]["group"], "shop.reserve");
    assert_eq!(letters[0]["reason"], "the order cannot be reserved: umbrella: 1 ordered, 0 in stock");
    assert_eq!(letters[0]["attempts"], 1);
    let after = format!("/dead-letters?after={}", letters[0]["id"].as_str().unwrap());
    assert_eq!(shop.get(&after).await, (200, json!([])));
    let pens_left = "select left from stock where sku = 'pen'";
    assert_eq!(shop.count(pens_left).await, 100_000, "all items of an order are reserved, or none");
    assert_eq!(shop.get("/orders/web-1").await.1["status"], "placed");
    assert_eq!(shop.count("select count(*) from sent_mail").await, 1);
    shop.close().await;
}

#[tokio::test]
async fn a_mail_that_is_wanted_later_is_sent_later() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    let mut order = pens("web-1", 2);
    order["customer"]["email"] = json!("ada@greylisting.example");
    shop.post(&order).await;
    shop.settled().await;
    assert_eq!(shop.count("select count(*) from sent_mail").await, 1);
    assert_eq!(shop.get("/dead-letters").await, (200, json!([])));
    shop.close().await;
}

#[tokio::test]
async fn what_is_delivered_again_is_counted_once_and_mailed_once() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    shop.post(&pens("web-1", 2)).await;
    shop.settled().await;
    for group in ["shop.orders_by_day", "shop.count_sales"] {
        let report = shop.bus.replay(group).await.unwrap();
        assert_eq!(report.acked, 1, "{group}");
    }
    shop.bus.replay("shop.send_confirmation").await.expect_err("it takes no part in replays");
    let (_, days) = shop.get("/orders-by-day").await;
    assert_eq!(days, json!([{ "day": "2026-03-01", "orders": 1, "revenue_cents": 500 }]));
    let (_, sales) = shop.get("/sales").await;
    assert_eq!(sales, json!([{ "sku": "pen", "ordered": 2, "revenue_cents": 500 }]));
    shop.close().await;
}

#[tokio::test]
async fn a_restart_keeps_the_read_model_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    shop.post(&pens("web-1", 2)).await;
    // Ended before the consumers are known to be done: what is left is handled after the restart.
    shop.close().await;
    let shop = Shop::open(folder.path()).await;
    shop.post(&pens("web-2", 1)).await;
    shop.settled().await;
    let (_, days) = shop.get("/orders-by-day").await;
    assert_eq!(days, json!([{ "day": "2026-03-01", "orders": 2, "revenue_cents": 750 }]));
    shop.close().await;
}

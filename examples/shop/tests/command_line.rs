//! The program `shop`, as people call it.

mod support;

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use support::{Shop, pens};

/// Runs `shop` in `folder`.
fn shop(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
    command.args(arguments).current_dir(folder).env_remove("EVENTBUS_URL").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_file_that_is_imported_twice_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let generated = shop(folder.path(), &["generate", "--orders", "1200", "--seed", "7"]);
    fs::write(folder.path().join("orders.jsonl"), generated.stdout).unwrap();
    for expected in ["1200 new, 0 known, 0 failed", "0 new, 1200 known, 0 failed"] {
        let imported = shop(folder.path(), &["import", "orders.jsonl"]);
        assert!(imported.status.success(), "{imported:?}");
        assert!(text(&imported.stdout).starts_with(expected), "{imported:?}");
    }
    // The consumers come later, and begin with the first order.
    let shop = Shop::open(folder.path()).await;
    shop.settled().await;
    assert_eq!(shop.count("select sum(orders) from orders_by_day").await, 1_200);
    assert_eq!(shop.count("select count(*) from sent_mail").await, 1_200);
    let (reserved, rejected) = (
        shop.count("select count(*) from orders where status = 'reserved'").await,
        shop.bus.dead_letters().unwrap().list().await.unwrap().len() as u64,
    );
    assert_eq!(reserved + rejected, 1_200);
    shop.close().await;
}

#[tokio::test]
async fn a_line_that_is_no_order_is_named_and_the_others_are_imported() {
    let folder = tempfile::tempdir().unwrap();
    let mut nameless = pens("x", 1);
    nameless.as_object_mut().unwrap().remove("id");
    let lines = [
        pens("till-1", 1).to_string().into_bytes(),
        b"{ \"customer\"".to_vec(),
        b"".to_vec(),
        b"\xff\xfe".to_vec(),
        nameless.to_string().into_bytes(),
        pens("till-1", 2).to_string().into_bytes(),
        pens("till-2", 0).to_string().into_bytes(),
        pens("till-3", 1).to_string().into_bytes(),
    ];
    fs::write(folder.path().join("orders.jsonl"), lines.join(&b"\n"[..])).unwrap();
    let imported = shop(folder.path(), &["import", "orders.jsonl"]);
    assert_eq!(imported.status.code(), Some(1), "{imported:?}");
    assert!(text(&imported.stdout).starts_with("2 new, 0 known, 5 failed"), "{imported:?}");
    let complaints = text(&imported.stderr);
    for expected in [
        "orders.jsonl:2: ",
        "orders.jsonl:4: ",
        "orders.jsonl:5: the order has no id",
        "orders.jsonl:6: there is another order with the id `till-1`",
        "orders.jsonl:7: pen: the quantity is from 1 to 100, not 0",
    ] {
        assert!(complaints.contains(expected), "{expected} is not in\n{complaints}");
    }
    let shop = Shop::open(folder.path()).await;
    shop.settled().await;
    let (_, days) = shop.get("/orders-by-day").await;
    assert_eq!(days, json!([{ "day": "2026-03-01", "orders": 2, "revenue_cents": 500 }]));
    shop.close().await;
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let imported = shop(folder.path(), &["import", "nowhere.jsonl"]);
    assert_eq!(imported.status.code(), Some(1));
    assert!(text(&imported.stderr).contains("nowhere.jsonl"), "{imported:?}");
}

#[test]
fn a_seed_gives_the_same_file_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let generate = |seed| shop(folder.path(), &["generate", "--orders", "500", "--seed", seed]).stdout;
    let first = generate("1");
    assert_eq!(text(&first).lines().count(), 500);
    assert!(first == generate("1"));
    assert!(first != generate("2"));
}

#[test]
fn the_verbs_of_eventbus_look_into_the_log_of_the_shop() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("orders.jsonl"), pens("till-1", 1).to_string()).unwrap();
    assert!(shop(folder.path(), &["import", "orders.jsonl"]).status.success());
    let log = shop(folder.path(), &["log", "--json"]);
    assert!(text(&log.stdout).contains("order-till-1/placed"), "{log:?}");
}

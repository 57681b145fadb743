//! The tables of the documentation say what the broker declares.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;
mod support;

use eventbus::broker::Broker;
use support::Place;

#[tokio::test]
async fn the_tables_of_semantics_say_what_the_broker_declares() {
    let broker = Place::new().broker().await;
    let max_payload = match broker.features().max_payload {
        Some(8_388_608) => "8 MiB",
        _ => "another limit",
    };
    semantics::page_tells(include_str!("../src/lib.rs"), 0, &broker, max_payload);
    semantics::readme_tells("`redis:`", &broker, max_payload);
}

//! The table of the documentation says what the broker declares.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;
mod support;

use eventbus::broker::Broker;

#[tokio::test]
async fn the_tables_of_semantics_say_what_the_broker_declares() {
    let broker = support::builder(&support::prefix()).max_payload(70_000).connect().await.unwrap();
    let max_payload = match broker.features().max_payload {
        Some(70_000) => "of `max_payload`",
        _ => "another limit",
    };
    semantics::page_tells(include_str!("../src/lib.rs"), 0, &broker, max_payload);
    semantics::readme_tells("`kafka:`", &broker, max_payload);
}

//! The table of the documentation says what the broker declares.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;
mod support;

use eventbus::broker::Broker;

#[tokio::test]
async fn the_table_of_semantics_says_what_the_broker_declares() {
    let features =
        support::builder(&support::prefix()).max_payload(70_000).connect().await.unwrap().features();
    let max_payload = match features.max_payload {
        Some(70_000) => "of `max_payload`",
        _ => "another limit",
    };
    let said = semantics::said(include_str!("../src/lib.rs"), 0);
    assert_eq!(said, semantics::declared(&features, max_payload));
}

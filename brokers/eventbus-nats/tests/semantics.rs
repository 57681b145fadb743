//! The table of the documentation says what the broker declares.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;
mod support;

use eventbus::broker::Broker;
use support::Place;

#[tokio::test]
async fn the_table_of_semantics_says_what_the_broker_declares() {
    let place = Place::new();
    let features = place.broker().await.features();
    let said = semantics::said(include_str!("../src/lib.rs"), 0);
    assert_eq!(said, semantics::declared(&features, "of the server"));
}

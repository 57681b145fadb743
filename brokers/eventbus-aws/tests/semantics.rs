//! The table of the documentation says what the broker declares.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;
mod support;

use eventbus::broker::Broker;

#[tokio::test]
async fn the_table_of_semantics_says_what_the_broker_declares() {
    for (column, fifo) in [(0, false), (1, true)] {
        let broker = support::builder(&support::prefix(), fifo).connect().await.unwrap();
        let features = broker.features();
        let max_payload = match features.max_payload {
            Some(184_320) => "180 KiB",
            _ => "another limit",
        };
        let said = semantics::said(include_str!("../src/lib.rs"), column);
        assert_eq!(said, semantics::declared(&features, max_payload), "fifo: {fifo}");
    }
}

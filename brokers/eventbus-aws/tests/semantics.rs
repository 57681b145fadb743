//! The table of the documentation says what the broker declares.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;
mod support;

use eventbus::broker::Broker;

#[tokio::test]
async fn the_tables_of_semantics_say_what_the_broker_declares() {
    for (column, fifo, heading) in [(0, false, "`sns:`"), (1, true, "`sns:` FIFO")] {
        let broker = support::builder(&support::prefix(), fifo).connect().await.unwrap();
        let max_payload = match broker.features().max_payload {
            Some(184_320) => "180 KiB",
            _ => "another limit",
        };
        semantics::page_tells(include_str!("../src/lib.rs"), column, &broker, max_payload);
        semantics::readme_tells(heading, &broker, max_payload);
    }
}

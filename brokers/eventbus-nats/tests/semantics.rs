//! The table of the documentation says what the broker declares.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;
mod support;

use support::Place;

#[tokio::test]
async fn the_tables_of_semantics_say_what_the_broker_declares() {
    let broker = Place::new().broker().await;
    semantics::page_tells(include_str!("../src/lib.rs"), 0, &broker, "of the server");
    semantics::readme_tells("`nats:`", &broker, "of the server");
}

//! The README's table of brokers says what the two declare that need no server.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;

use eventbus::broker::Broker;
use eventbus::memory::MemoryBroker;
use eventbus_sqlite::SqliteBroker;

#[tokio::test]
async fn the_table_of_brokers_says_what_the_in_process_broker_declares() {
    let broker = MemoryBroker::new();
    let max_payload = match broker.features().max_payload {
        None => "none",
        _ => "another limit",
    };
    semantics::readme_tells("`memory:`", &broker, max_payload);
}

#[tokio::test]
async fn the_table_of_brokers_says_what_the_log_declares() {
    let folder = tempfile::tempdir().unwrap();
    let broker = SqliteBroker::builder(folder.path().join("log.db")).open().await.unwrap();
    let max_payload = match broker.features().max_payload {
        Some(8_388_608) => "8 MiB",
        _ => "another limit",
    };
    semantics::readme_tells("`sqlite:`", &broker, max_payload);
}

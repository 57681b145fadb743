//! The broker passes the conformance suite, on a real server.

mod support;

use eventbus_kafka::KafkaBroker;
use eventbus_testing::conformance::Fixture;
use std::time::Duration;

struct Kafka;

impl Fixture for Kafka {
    type Broker = KafkaBroker;

    const LEASE: Duration = support::SESSION;

    async fn place() -> String {
        support::prefix()
    }

    async fn open(place: &str) -> KafkaBroker {
        support::builder(place).connect().await.expect("the broker connects")
    }

    async fn clean_up(place: &str) {
        support::remove(place).await;
    }
}

eventbus_testing::conformance!(Kafka);

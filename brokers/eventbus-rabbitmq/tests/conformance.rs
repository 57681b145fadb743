//! The broker passes the conformance suite, on a real server.

mod support;

use eventbus_rabbitmq::{QueueType, RabbitMqBroker};
use eventbus_testing::conformance::Fixture;

mod quorum {
    use super::*;

    struct Quorum;

    impl Fixture for Quorum {
        type Broker = RabbitMqBroker;

        async fn place() -> String {
            support::exchange()
        }

        async fn open(place: &str) -> RabbitMqBroker {
            support::builder(place).connect().await.expect("the broker connects")
        }

        async fn clean_up(place: &str) {
            support::remove(place).await;
        }
    }

    eventbus_testing::conformance!(Quorum);
}

mod streams {
    use super::*;

    struct Streams;

    impl Fixture for Streams {
        type Broker = RabbitMqBroker;

        async fn place() -> String {
            support::exchange()
        }

        async fn open(place: &str) -> RabbitMqBroker {
            support::builder(place).streams(true).connect().await.expect("the broker connects")
        }

        async fn clean_up(place: &str) {
            support::remove(place).await;
        }
    }

    eventbus_testing::conformance!(Streams);
}

mod classic {
    use super::*;

    struct Classic;

    impl Fixture for Classic {
        type Broker = RabbitMqBroker;

        async fn place() -> String {
            support::exchange()
        }

        async fn open(place: &str) -> RabbitMqBroker {
            let classic = support::builder(place).queue_type(QueueType::Classic);
            classic.connect().await.expect("the broker connects")
        }

        async fn clean_up(place: &str) {
            support::remove(place).await;
        }
    }

    eventbus_testing::conformance!(Classic);
}

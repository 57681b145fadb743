//! The tables of the documentation say what the broker declares.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;
mod support;

use eventbus::broker::Broker;
use eventbus_rabbitmq::QueueType;

#[tokio::test]
async fn the_tables_of_semantics_say_what_the_broker_declares() {
    let exchange = support::exchange();
    for (column, queue_type) in [(0, QueueType::Quorum), (1, QueueType::Classic)] {
        let broker = support::builder(&exchange).queue_type(queue_type).connect().await.unwrap();
        let max_payload = match broker.features().max_payload {
            Some(16_777_216) => "16 MiB",
            _ => "another limit",
        };
        semantics::page_tells(include_str!("../src/lib.rs"), column, &broker, max_payload);
        if queue_type == QueueType::Quorum {
            semantics::readme_tells("`amqp:`", &broker, max_payload);
        }
    }
    support::remove(&exchange).await;
}

//! The tables of the documentation say what the broker declares.

#[path = "../../eventbus-server/tests/support/semantics.rs"]
mod semantics;
mod support;

use eventbus::broker::Broker;
use eventbus_rabbitmq::QueueType;

#[tokio::test]
async fn the_tables_of_semantics_say_what_the_broker_declares() {
    let exchange = support::exchange();
    for (column, queue_type, streams) in
        [(0, QueueType::Quorum, false), (1, QueueType::Classic, false), (2, QueueType::Quorum, true)]
    {
        let builder = support::builder(&exchange).queue_type(queue_type).streams(streams);
        let broker = builder.connect().await.unwrap();
        let max_payload = match broker.features().max_payload {
            Some(16_777_216) => "16 MiB",
            _ => "another limit",
        };
        semantics::page_tells(include_str!("../src/lib.rs"), column, &broker, max_payload);
        if column == 0 {
            semantics::readme_tells("`amqp:`", &broker, max_payload);
        }
    }
    support::remove(&exchange).await;
}

//! RustStream's adapters beside ours and the clients that both are made of, doing the same work with the same settings, in
//! one run: `cargo run --release --bin brokers --features brokers -- --bench`. What may follow, and where the servers are,
//! is as in `benches/brokers.rs`, whose parts these are.

#[path = "../../../brokers/kafka.rs"]
mod kafka;
#[allow(dead_code, reason = "slow servers are another benchmark's")]
#[path = "../../../brokers/measure.rs"]
mod measure;
#[path = "../../../brokers/nats.rs"]
mod nats;
#[path = "../../../brokers/ours.rs"]
mod ours;
#[path = "../../../brokers/rabbitmq.rs"]
mod rabbitmq;
#[path = "../../../brokers/reader.rs"]
mod reader;
mod stream;
#[path = "../../../brokers/work.rs"]
mod work;

use kafka::{KafkaRaw, OnKafka};
use measure::{Chosen, compare, server};
use nats::{NatsRaw, OnNats};
use ours::{Bare, Whole};
use rabbitmq::{LapinRaw, OnRabbitMq};
use stream::{Stream, kafka::StreamKafka, nats::StreamNats, rabbitmq::StreamRabbitMq};

fn main() {
    let chosen = Chosen::from_arguments();
    // What is handled and published is the work of two threads, whatever the machine has.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        if let Some(url) = server(&chosen, "nats", "NATS") {
            compare!(
                chosen,
                "NATS JetStream",
                &url,
                NatsRaw,
                Bare<OnNats>,
                Whole<OnNats>,
                Stream<StreamNats>
            );
        }
        if let Some(url) = server(&chosen, "kafka", "KAFKA") {
            compare!(chosen, "Kafka", &url, KafkaRaw, Bare<OnKafka>, Whole<OnKafka>, Stream<StreamKafka>);
        }
        if let Some(url) = server(&chosen, "rabbitmq", "AMQP") {
            compare!(
                chosen,
                "RabbitMQ",
                &url,
                LapinRaw,
                Bare<OnRabbitMq>,
                Whole<OnRabbitMq>,
                Stream<StreamRabbitMq>
            );
        }
    });
}

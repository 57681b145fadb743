//! Brokers with a server beside the client that they are made of, doing the same work with the same settings, in one
//! run: `cargo bench --bench brokers --features nats,redis,kafka,rabbitmq,aws`, or some of it with `… -- nats latency`
//! (brokers: nats, redis, valkey, kafka, rabbitmq, aws; parts: rates, latency; options: `--rounds=3`, `--events=2000`,
//! `--seconds=0.5`, `--size=256`). `nats` and `redis` are always built, the others where the command names their features.
//!
//! Servers are those of `EVENTBUS_TEST_NATS_URL` and so on, or else those that `cargo xtask brokers up` has begun.

#[cfg(feature = "aws")]
#[path = "brokers/aws.rs"]
mod aws;
#[cfg(feature = "kafka")]
#[path = "brokers/kafka.rs"]
mod kafka;
#[path = "brokers/measure.rs"]
mod measure;
#[path = "brokers/nats.rs"]
mod nats;
#[path = "brokers/ours.rs"]
mod ours;
#[cfg(feature = "rabbitmq")]
#[path = "brokers/rabbitmq.rs"]
mod rabbitmq;
#[path = "brokers/reader.rs"]
mod reader;
#[path = "brokers/redis.rs"]
mod redis;
#[path = "brokers/work.rs"]
mod work;

use measure::{Chosen, compare, server};
use nats::{NatsRaw, OnNats};
use ours::{Bare, Whole};
use redis::{OnRedis, RedisPlain, RedisRaw};

fn main() {
    let chosen = Chosen::from_arguments();
    // What is handled and published is the work of two threads, whatever the machine has.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        if let Some(url) = server(&chosen, "nats", "NATS") {
            compare!(chosen, "NATS JetStream", &url, NatsRaw, Bare<OnNats>, Whole<OnNats>);
        }
        for (name, variable) in [("redis", "REDIS"), ("valkey", "VALKEY")] {
            if let Some(url) = server(&chosen, name, variable) {
                compare!(chosen, name, &url, RedisRaw, RedisPlain, Bare<OnRedis>, Whole<OnRedis>);
            }
        }
        #[cfg(feature = "kafka")]
        if let Some(url) = server(&chosen, "kafka", "KAFKA") {
            use kafka::{KafkaRaw, OnKafka};
            compare!(chosen, "Kafka", &url, KafkaRaw, Bare<OnKafka>, Whole<OnKafka>);
        }
        #[cfg(feature = "rabbitmq")]
        if let Some(url) = server(&chosen, "rabbitmq", "AMQP") {
            use rabbitmq::{LapinRaw, OnRabbitMq};
            compare!(chosen, "RabbitMQ", &url, LapinRaw, Bare<OnRabbitMq>, Whole<OnRabbitMq>);
        }
        #[cfg(feature = "aws")]
        if let Some(url) = server(&chosen, "aws", "AWS") {
            use aws::{AwsRaw, OnAws};
            let fewer = chosen.fewer(10);
            compare!(fewer, "SNS and SQS", &url, AwsRaw, Bare<OnAws>, Whole<OnAws>);
        }
    });
}

//! Brokers with a server beside the client that they are made of, doing the same work with the same settings, in one
//! run: `cargo bench --bench brokers --features nats,redis`, or some of it with `… -- nats latency` (brokers: nats, redis,
//! valkey; parts: rates, latency).
//!
//! Servers are those of `EVENTBUS_TEST_NATS_URL`, `EVENTBUS_TEST_REDIS_URL` and `EVENTBUS_TEST_VALKEY_URL`, or else those
//! that `cargo xtask brokers up nats redis` has begun.

#[path = "brokers/measure.rs"]
mod measure;
#[path = "brokers/nats.rs"]
mod nats;
#[path = "brokers/ours.rs"]
mod ours;
#[path = "brokers/redis.rs"]
mod redis;
#[path = "brokers/work.rs"]
mod work;

use measure::{Chosen, server};
use nats::{NatsRaw, OnNats};
use ours::{Bare, Whole};
use redis::{OnRedis, RedisPlain, RedisRaw};

fn main() {
    let chosen = Chosen::from_arguments();
    // What is handled and published is the work of two threads, whatever the machine has.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    if chosen.has("nats") {
        match server("NATS") {
            Some(url) => runtime.block_on(async {
                measure::compare!(chosen, "NATS JetStream", &url, NatsRaw, Bare<OnNats>, Whole<OnNats>);
            }),
            None => println!("NATS is left out: no server; run `cargo xtask brokers up nats`"),
        }
    }
    for (name, variable) in [("redis", "REDIS"), ("valkey", "VALKEY")] {
        if !chosen.has(name) {
            continue;
        }
        match server(variable) {
            Some(url) => runtime.block_on(async {
                measure::compare!(chosen, name, &url, RedisRaw, RedisPlain, Bare<OnRedis>, Whole<OnRedis>);
            }),
            None => println!("{name} is left out: no server; run `cargo xtask brokers up {name}`"),
        }
    }
}

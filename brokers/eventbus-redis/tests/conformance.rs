//! Redis and Valkey pass the conformance suite.

mod support;

use eventbus_redis::RedisBroker;
use eventbus_testing::conformance::Fixture;
use std::time::Duration;

/// Opens a broker in a part of the server of this kind that has this prefix.
async fn open(kind: &str, prefix: &str) -> RedisBroker {
    let builder = RedisBroker::builder(&support::server(kind)).expect("an address");
    builder
        .prefix(prefix)
        .lease(Duration::from_secs(5))
        .open()
        .await
        .expect("the server takes the connection")
}

mod redis_server {
    use super::*;

    struct Redis;

    impl Fixture for Redis {
        type Broker = RedisBroker;

        async fn place() -> String {
            support::prefix()
        }

        async fn open(place: &str) -> RedisBroker {
            open("REDIS", place).await
        }

        async fn clean_up(place: &str) {
            support::remove(&support::server("REDIS"), place);
        }
    }

    eventbus_testing::conformance!(Redis);
}

mod valkey_server {
    use super::*;

    struct Valkey;

    impl Fixture for Valkey {
        type Broker = RedisBroker;

        async fn place() -> String {
            support::prefix()
        }

        async fn open(place: &str) -> RedisBroker {
            open("VALKEY", place).await
        }

        async fn clean_up(place: &str) {
            support::remove(&support::server("VALKEY"), place);
        }
    }

    eventbus_testing::conformance!(Valkey);
}

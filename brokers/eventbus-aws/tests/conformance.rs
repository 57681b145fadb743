//! The broker passes the conformance suite, on an emulator.

mod support;

use eventbus_aws::AwsBroker;
use eventbus_testing::conformance::Fixture;
use std::time::Duration;

/// An emulator takes a few hundred events in a second.
const MANY: u64 = 1_000;

mod standard {
    use super::*;

    struct Standard;

    impl Fixture for Standard {
        type Broker = AwsBroker;

        const PATIENCE: Duration = Duration::from_secs(120);
        const MANY: u64 = MANY;

        async fn place() -> String {
            support::prefix()
        }

        async fn open(place: &str) -> AwsBroker {
            support::builder(place, false).connect().await.expect("the broker connects")
        }
    }

    eventbus_testing::conformance!(Standard);
}

mod fifo {
    use super::*;

    struct Fifo;

    impl Fixture for Fifo {
        type Broker = AwsBroker;

        const PATIENCE: Duration = Duration::from_secs(120);
        const MANY: u64 = MANY;

        async fn place() -> String {
            support::prefix()
        }

        async fn open(place: &str) -> AwsBroker {
            support::builder(place, true).connect().await.expect("the broker connects")
        }
    }

    eventbus_testing::conformance!(Fifo);
}

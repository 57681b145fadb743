//! The in-process broker passes the conformance suite: with a history, without one, and with everything hidden that a
//! broker may lack.

use eventbus_core::broker::{Broker, BrokerFuture, Deliveries, Features, SubscribeRequest};
use eventbus_core::memory::MemoryBroker;
use eventbus_core::{BrokerError, Envelope, PublishError};
use eventbus_testing::conformance::Fixture;
use std::sync::Arc;
use std::time::Duration;

mod with_a_history {
    use super::*;

    struct History;

    impl Fixture for History {
        type Broker = MemoryBroker;

        const LEASE: Duration = Duration::ZERO;

        async fn place() -> String {
            String::new()
        }

        async fn open(_place: &str) -> MemoryBroker {
            MemoryBroker::builder().history(100_000).build()
        }
    }

    eventbus_testing::conformance!(History);
}

mod without_one {
    use super::*;

    struct Queues;

    impl Fixture for Queues {
        type Broker = MemoryBroker;

        const LEASE: Duration = Duration::ZERO;

        async fn place() -> String {
            String::new()
        }

        async fn open(_place: &str) -> MemoryBroker {
            MemoryBroker::new()
        }
    }

    eventbus_testing::conformance!(Queues);
}

mod that_lacks_everything {
    use super::*;

    /// Moves envelopes, and nothing else.
    struct Bare(MemoryBroker);

    impl Broker for Bare {
        fn name(&self) -> &str {
            "bare"
        }

        fn features(&self) -> Features {
            Features::none()
        }

        fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
            self.0.publish(envelope)
        }

        fn subscribe(
            &self,
            request: SubscribeRequest,
        ) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
            self.0.subscribe(request)
        }

        fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
            self.0.drain(subscriptions)
        }
    }

    impl Fixture for Bare {
        type Broker = Self;

        const LEASE: Duration = Duration::ZERO;

        async fn place() -> String {
            String::new()
        }

        async fn open(_place: &str) -> Self {
            Self(MemoryBroker::new())
        }
    }

    eventbus_testing::conformance!(Bare);
}

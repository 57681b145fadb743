//! The in-process broker passes the conformance suite: with a history, and without one.

use eventbus_core::memory::MemoryBroker;
use eventbus_testing::conformance::Fixture;

mod with_a_history {
    use super::*;

    struct History;

    impl Fixture for History {
        type Broker = MemoryBroker;

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

        async fn place() -> String {
            String::new()
        }

        async fn open(_place: &str) -> MemoryBroker {
            MemoryBroker::new()
        }
    }

    eventbus_testing::conformance!(Queues);
}

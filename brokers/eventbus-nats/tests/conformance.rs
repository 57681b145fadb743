//! The broker passes the conformance suite, on a real server.

mod support;

use eventbus_nats::NatsBroker;
use eventbus_testing::conformance::Fixture;
use support::Place;

struct JetStream;

impl Fixture for JetStream {
    type Broker = NatsBroker;

    async fn place() -> String {
        Place::new().keep()
    }

    async fn open(place: &str) -> NatsBroker {
        Place::named(place).builder().connect().await.expect("the broker connects")
    }

    async fn clean_up(place: &str) {
        Place::named(place).remove();
    }
}

eventbus_testing::conformance!(JetStream);

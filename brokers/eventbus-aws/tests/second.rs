//! What a second emulator (fauxqs) is right about and the first is not: the numbers of what a FIFO topic hands on, calls that
//! bring one message of each group, the twelve hours, and the names of topics. Names are promises.

mod support;

use eventbus::broker::{Begin, Broker, Deliveries, Received};
use eventbus_aws::AwsBroker;
use eventbus_testing::conformance::Fixture;
use std::time::Duration;
use support::{ack, connect, event, number, prefix, receive, request, setting, url_at};

/// The address of the second emulator.
fn server() -> String {
    setting("EVENTBUS_TEST_FAUXQS_URL").unwrap_or_else(|| {
        panic!(
            "there is no second server of SNS and SQS for tests; run `cargo xtask brokers up fauxqs`, or set \
             EVENTBUS_TEST_FAUXQS_URL to the address of one"
        )
    })
}

mod fifo {
    use super::*;

    struct Fifo;

    impl Fixture for Fifo {
        type Broker = AwsBroker;

        const PATIENCE: Duration = Duration::from_secs(120);
        const MANY: u64 = 1_000;

        async fn place() -> String {
            prefix()
        }

        async fn open(place: &str) -> AwsBroker {
            connect(&url_at(&server(), place, true)).await
        }
    }

    /// The rooms of the suite where it counts what a queue gives out, and in which order. The others pass too, and take long.
    macro_rules! rooms {
        ($fixture:ty => $($room:ident $cases:tt)*) => {
            $(room! { $room $cases $fixture })*
        };
    }

    macro_rules! room {
        (ordering $cases:tt $fixture:ty) => {
            room! { in ordering $cases $fixture }
        };
        (failing $cases:tt $fixture:ty) => {
            room! { in failing $cases $fixture }
        };
        (dead_letters $cases:tt $fixture:ty) => {
            room! { in dead_letters $cases $fixture }
        };
        (ending $cases:tt $fixture:ty) => {
            room! { in ending $cases $fixture }
        };
        (in $room:ident $cases:tt $fixture:ty) => {
            mod $room {
                use super::*;

                eventbus_testing::__conformance_tests! { $fixture => $room $cases }
            }
        };
        ($other:ident $cases:tt $fixture:ty) => {};
    }

    eventbus_testing::__conformance_cases! { [rooms] Fifo => }
}

/// The next delivery of a group, which is not begun with, and goes back to the queue with its subscription.
async fn look(broker: &AwsBroker) -> Received {
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    received.settler.release(received.receipt.clone());
    received
}

#[tokio::test]
async fn the_place_of_an_event_is_its_number_in_the_queue_however_often_it_comes() {
    let broker = connect(&url_at(&server(), &prefix(), true)).await;
    drop(broker.subscribe(request("mail", "a.b")).await.unwrap());
    for number in 1..=3 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let first = look(&broker).await;
    let mut deliveries: Box<dyn Deliveries> = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let mut places = Vec::new();
    for expected in 1..=3 {
        let received = receive(&mut deliveries, 1).await.remove(0);
        assert_eq!(number(&received), expected);
        places.push(received.receipt.offset.get());
        ack(received).await;
    }
    assert_eq!(places[0], first.receipt.offset.get(), "it came before");
    // Without a number it would be the time of the message, and by far larger.
    assert!(places.is_sorted() && places[2] < 10_u128.pow(20), "{places:?}");
}

#[tokio::test]
async fn what_has_its_turn_is_hidden_for_no_longer_than_sqs_hides_anything() {
    let at = url_at(&server(), &prefix(), true).replace("visibility_timeout=10s", "visibility_timeout=12h");
    let broker = connect(&at).await;
    drop(broker.subscribe(request("mail", "a.b")).await.unwrap());
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    // The last call of a reader that has ended may have had it between two of these.
    while look(&broker).await.receipt.attempt < 2 {}
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let third = receive(&mut deliveries, 1).await.remove(0);
    assert!(third.receipt.attempt >= 3, "{third:?}");
    let begin = third.settler.begin(&third.receipt).expect("it takes its turn");
    let begin = begin.await;
    assert!(matches!(begin, Begin::Now { .. }), "SQS has refused to hide it: {begin:?}");
    ack(third).await;
}

#[tokio::test]
async fn topics_and_groups_of_any_name_have_names_that_amazon_takes() {
    for fifo in [false, true] {
        let broker = connect(&url_at(&server(), &prefix(), fifo)).await;
        let mut deliveries = broker.subscribe(request("mail.of-x_y", "a-b_c.d-.>")).await.unwrap();
        broker.publish(event("a-b_c.d-.e_", "k", 1)).await.unwrap();
        let received = receive(&mut deliveries, 1).await.remove(0);
        assert_eq!(received.receipt.envelope.topic().as_str(), "a-b_c.d-.e_");
        ack(received).await;
    }
}

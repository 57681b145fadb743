//! A server whose storage is full refuses, and takes again once there is room. Names are promises.

mod support;

use async_nats::jetstream;
use eventbus::broker::{Broker, Parked};
use eventbus::{Envelope, PublishError, Topic};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::own::Server;
use support::{Place, ack, early, event, number, receive_all};

#[tokio::test]
async fn a_full_server_refuses_what_it_cannot_store_and_goes_on_once_there_is_room() {
    let server = Server::begin("", "max_file_store: 4MB").await;
    let place = Place::at(format!("nats://{}", server.address));
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(early("g", ">")).await.unwrap();
    let large = |number: u64| {
        let topic = Topic::from_static("a.b");
        let large = Envelope::from_bytes(topic, "x/y", vec![7; 256 << 10].into());
        Arc::new(large.with_id(support::id(&number.to_string())))
    };
    let mut stored = 0;
    let error = loop {
        match broker.publish(large(stored)).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 64, "the server takes more than it may");
    };
    assert!(matches!(error, PublishError::Broker { .. }), "it is not stored, and that is known: {error:?}");
    // What is stored is handled and settled all the same.
    let received = receive_all(&mut deliveries, usize::try_from(stored).unwrap()).await;
    let second = |second| Timestamp::from_second(second).unwrap();
    let parked = Parked { first_failed_at: second(1), last_failed_at: second(2), due: second(3) };
    let noted = received[0].settler.park(&received[0].receipt, parked).await;
    for received in received {
        ack(received).await;
    }
    if let Err(error) = noted {
        assert!(error.to_string().contains("cannot store the time of the next attempt"), "{error}");
    }
    let stream = jetstream::new(broker.client()).get_stream(&place.name).await.unwrap();
    stream.purge().await.unwrap();
    let begun = Instant::now();
    broker.publish(event("a.b", "k", 7)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let received = receive_all(&mut deliveries, 1).await.remove(0);
    assert_eq!(number(&received), 7);
    ack(received).await;
    broker.close().await.unwrap();
}

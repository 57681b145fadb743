//! What is charged with the end of a process, step by step. Names are promises.

mod support;

use eventbus::broker::{Begin, Broker, Received};
use eventbus_nats::NatsBroker;
use std::time::Instant;
use support::{PATIENCE, Place, ack, early, event, receive_all, until};

/// What the next process is handed, with its broker, once the earlier one has ended without a word.
async fn next_process(place: &Place) -> (NatsBroker, Received) {
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(early("g", ">")).await.unwrap();
    let received = receive_all(&mut deliveries, 1).await.remove(0);
    // Dropped, it would give the event back.
    std::mem::forget(deliveries);
    (broker, received)
}

/// A handler is called with it; how often a process has ended over it.
async fn begin(received: &Received) -> u32 {
    let begun = Instant::now();
    loop {
        match received.settler.begin(&received.receipt) {
            None => return 0,
            Some(begin) => match begin.await {
                Begin::Now { crashes } => return crashes,
                Begin::Later(later) => tokio::time::sleep(later).await,
                never => panic!("{never:?}"),
            },
        }
        assert!(begun.elapsed() < PATIENCE, "others go first for ever");
    }
}

/// The process ends in the middle of the handler.
fn crash((broker, received): (NatsBroker, Received)) {
    std::mem::forget(received);
    drop(broker);
}

/// Ends processes until the event is alone in a handler, and then once more.
async fn end_three(place: &Place, in_a_shutdown: bool) {
    for process in 0..3 {
        let (broker, received) = next_process(place).await;
        assert_eq!((received.receipt.attempt, received.alone), (1, process == 2), "process {process}");
        assert_eq!(begin(&received).await, 0);
        if process == 2 && in_a_shutdown {
            broker.drain(&[early("g", ">")]).await;
        }
        crash((broker, received));
    }
}

#[tokio::test]
async fn an_event_that_was_alone_in_a_handler_as_the_process_ended_is_charged_until_it_succeeds() {
    let place = Place::new();
    place.broker().await.publish(event("a.b", "k", 1)).await.unwrap();
    end_three(&place, false).await;
    let (broker, received) = next_process(&place).await;
    assert_eq!((received.receipt.attempt, received.alone), (2, true));
    assert_eq!(begin(&received).await, 1);
    ack(received).await;
    let context = async_nats::jetstream::new(broker.client());
    let bucket = format!("KV_{}-PARKED", place.name);
    until("nothing is noted of it any more", || async {
        context.get_stream(&bucket).await.unwrap().cached_info().state.messages == 0
    })
    .await;
}

#[tokio::test]
async fn a_process_that_is_killed_after_its_shutdown_has_begun_charges_nothing() {
    let place = Place::new();
    place.broker().await.publish(event("a.b", "k", 1)).await.unwrap();
    end_three(&place, true).await;
    let (_broker, received) = next_process(&place).await;
    assert_eq!((received.receipt.attempt, received.alone), (1, false));
    ack(received).await;
}

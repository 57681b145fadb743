//! Wakers of publishers are code of others, which may panic.

mod support;

use eventbus::broker::Broker;
use std::sync::Arc;
use std::task::Poll;
use support::alarm::Alarm;
use support::{builder, event, prefix, until};

#[tokio::test]
async fn a_publisher_whose_waker_panics_keeps_no_other_one_of_its_batch_from_its_answer() {
    for fifo in [false, true] {
        let broker = builder(&prefix(), fifo).connect().await.unwrap();
        let alarms: Vec<Arc<Alarm>> = (0..20).map(|_| Arc::default()).collect();
        let mut publishing: Vec<_> =
            (0..20).map(|number| Box::pin(broker.publish(event("a.b", "k", number)))).collect();
        for (publishing, alarm) in publishing.iter_mut().zip(&alarms) {
            assert!(alarm.poll(publishing).is_pending());
        }
        until("all are woken", async || alarms.iter().all(|alarm| alarm.rings() > 0)).await;
        for (number, (publishing, alarm)) in publishing.iter_mut().zip(&alarms).enumerate() {
            let answer = alarm.poll(publishing);
            assert!(matches!(answer, Poll::Ready(Ok(()))), "fifo {fifo}, {number}: {answer:?}");
        }
        broker.close().await.unwrap();
    }
}

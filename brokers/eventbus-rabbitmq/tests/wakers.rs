//! Wakers of publishers are code of others, which may panic.

mod support;

use eventbus::PublishError;
use eventbus::broker::Broker;
use std::sync::Arc;
use std::task::Poll;
use support::alarm::Alarm;
use support::{behind_proxy, builder, connect, event, exchange, remove, server, until, url_at};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_whose_waker_panics_keeps_no_other_one_from_its_answer() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let alarm = Arc::<Alarm>::default();
    let mut publishing = Box::pin(broker.publish(event("a.b", "k", 0)));
    assert!(alarm.poll(&mut publishing).is_pending());
    until("it is woken", async || alarm.rings() > 0).await;
    assert!(matches!(alarm.poll(&mut publishing), Poll::Ready(Ok(()))));
    for answer in broker.publish_all((1..50).map(|number| event("a.b", "k", number)).collect()).await {
        answer.unwrap();
    }
    broker.close().await.unwrap();
    remove(&exchange).await;
}

/// More publishes than may be open at once.
const MANY: u64 = 2_100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_tells_every_publisher_whichever_waker_panics() {
    let exchange = exchange();
    let (proxy, url) = behind_proxy(&server()).await;
    let broker = connect(&format!("{}&heartbeat=60s", url_at(&url, &exchange))).await;
    proxy.swallow(true);
    let alarms: Vec<Arc<Alarm>> = (0..MANY).map(|_| Arc::default()).collect();
    let mut publishing: Vec<_> =
        (0..MANY).map(|number| Box::pin(broker.publish(event("a.b", "k", number)))).collect();
    for (publishing, alarm) in publishing.iter_mut().zip(&alarms) {
        assert!(alarm.poll(publishing).is_pending());
    }
    let error = broker.close().await.unwrap_err().to_string();
    assert!(error.contains("publishes"), "{error}");
    until("all are woken", async || alarms.iter().all(|alarm| alarm.rings() > 0)).await;
    for (number, publishing) in publishing.into_iter().enumerate() {
        let answer = publishing.await;
        let is_right = match &answer {
            Err(PublishError::Unconfirmed { .. }) => number < 2_048,
            Err(PublishError::Closed { .. }) => number >= 2_048,
            _ => false,
        };
        assert!(is_right, "{number}: {answer:?}");
    }
    proxy.swallow(false);
    remove(&exchange).await;
}

//! Records that the client cannot read: they are events all the same, and nobody who reads ends by them.

mod support;

use eventbus::broker::{AuditQuery, Broker, ReplayFrom, ReplayRequest, ReplayUntil};
use eventbus::subscription::Pattern;
use support::{ack, number, raw, receive};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_whose_name_is_no_text_is_left_out_and_its_event_arrives() {
    let prefix = support::prefix();
    let broker = support::builder(&prefix).partitions(1).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    broker.publish(support::event("order.placed", "k", 1)).await.unwrap();
    let topic = format!("{prefix}order.placed");
    raw::produce(&topic, b"2", (b"gr\xff\xfeen", b"of another program")).await;
    raw::produce(&topic, b"3", (b"note", b"gr\xff")).await;
    broker.publish(support::event("order.placed", "k", 4)).await.unwrap();
    let received = receive(&mut deliveries, 4).await;
    assert_eq!(received.iter().map(number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let headers = |one: usize| received[one].receipt.envelope.headers().iter().collect::<Vec<_>>();
    assert_eq!((headers(1), headers(2)), (vec![], vec![("note", "gr\u{fffd}")]));
    for one in received {
        ack(one).await;
    }
    let pattern = Pattern::new("order.placed").unwrap();
    let (group, from, until) = ("mail".to_owned(), ReplayFrom::Beginning, ReplayUntil::Now);
    let request = ReplayRequest { group, pattern, from, until };
    let mut replay = broker.replayable().unwrap().replay(request).await.unwrap();
    let again = receive(&mut replay.deliveries, 4).await;
    assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let recorded = broker.audit_log().unwrap().query(AuditQuery::default()).await.unwrap();
    assert_eq!(recorded.len(), 4);
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

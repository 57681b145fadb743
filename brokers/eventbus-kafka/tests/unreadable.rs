//! Records and commits that the client cannot read: the records are events all the same, and nobody who reads ends by them.

mod support;

use eventbus::broker::{AuditQuery, Broker, ReplayFrom, ReplayRequest, ReplayUntil};
use eventbus::subscription::Pattern;
use support::rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use support::rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use support::{ack, number, raw, receive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
    let (group, from, until) = ("mail".to_owned(), ReplayFrom::Earliest, ReplayUntil::Now);
    let request = ReplayRequest { group, pattern, from, until };
    let mut replay = broker.replayable().unwrap().replay(request).await.unwrap();
    let again = receive(&mut replay.deliveries, 4).await;
    assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let recorded = broker.audit_log().unwrap().query(AuditQuery::default()).await.unwrap();
    assert_eq!(recorded.len(), 4);
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

/// What another program commits beside an offset.
const TEXT: &str = "what-it-has-committed";

/// The server's address, as one that keeps any bytes beside an offset: in its answers that text is none.
async fn keeping_bytes() -> String {
    let server = support::server().trim_start_matches("kafka://").to_owned();
    let (host, port) = server.rsplit_once(':').unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = listener.local_addr().unwrap();
    let place = |port: u16| [host.as_bytes(), &i32::from(port).to_be_bytes()].concat();
    let mangled = [b"\xff\xff\xff\xff", &TEXT.as_bytes()[4..]].concat();
    let changes = [(place(port.parse().unwrap()), place(ours.port())), (TEXT.as_bytes().to_vec(), mangled)];
    let shown = format!("kafka://{host}:{}", ours.port());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = TcpStream::connect(&server).await.unwrap().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            let changes = changes.clone();
            tokio::spawn(async move {
                while let Ok(length) = from_server.read_u32().await {
                    let mut answer = vec![0; length as usize];
                    from_server.read_exact(&mut answer).await?;
                    for (from, to) in &changes {
                        let places = (0..answer.len()).filter(|at| answer[*at..].starts_with(from));
                        for at in places.collect::<Vec<_>>() {
                            answer[at..at + to.len()].copy_from_slice(to);
                        }
                    }
                    to_client.write_u32(length).await?;
                    to_client.write_all(&answer).await?;
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
    shown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_another_program_that_is_no_text_keeps_nobody_from_reading_and_listing_the_group() {
    let prefix = support::prefix();
    let topic = format!("{prefix}order.placed");
    let broker = support::builder(&prefix).partitions(1).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    for number in 1..=3 {
        broker.publish(support::event("order.placed", "k", number)).await.unwrap();
    }
    ack(receive(&mut deliveries, 1).await.remove(0)).await;
    drop(deliveries);
    broker.close().await.unwrap();
    let group = format!("{prefix}mail@order.placed");
    let other: BaseConsumer = support::client().set("group.id", &group).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition(&topic, 0).set_offset(Offset::Offset(2)).unwrap();
    list.find_partition(&topic, 0).unwrap().set_metadata(TEXT);
    support::until("the group is nobody's", async || other.commit(&list, CommitMode::Sync).is_ok()).await;
    let url = keeping_bytes().await;
    let broker = eventbus_kafka::KafkaBroker::builder(&url).unwrap().prefix(&prefix);
    let broker = broker.session_timeout(support::SESSION).connect().await.unwrap();
    let states = broker.groups().unwrap().list().await.unwrap();
    assert_eq!((states[0].group.as_str(), states[0].backlog), ("mail", 1));
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 3);
    drop(deliveries);
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

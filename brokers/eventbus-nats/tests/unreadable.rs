//! Messages that the client of NATS cannot read are events all the same. Names are promises.

mod support;

use eventbus::Envelope;
use eventbus::broker::{AuditQuery, Broker, Connection, Received};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use support::{PATIENCE, Place, ack, early, event, number, receive_all, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Publishes what no client lets through, in the words of the protocol.
async fn publish_raw(place: &Place, subject: &[u8], headers: &[u8], payload: &[u8]) {
    let address = place.server.trim_start_matches("nats://").split('?').next().unwrap().to_owned();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut bytes =
        b"CONNECT {\"verbose\":false,\"headers\":true,\"lang\":\"raw\",\"version\":\"1\"}\r\n".to_vec();
    let (header_size, size) = (headers.len(), headers.len() + payload.len());
    bytes.extend(b"HPUB ");
    bytes.extend(subject);
    bytes.extend(format!(" {header_size} {size}\r\n").bytes());
    bytes.extend([headers, payload, b"\r\nPING\r\n"].concat());
    socket.write_all(&bytes).await.unwrap();
    let mut said = Vec::new();
    while !said.windows(4).any(|part| part == b"PONG") {
        assert!(socket.read_buf(&mut said).await.unwrap() > 0, "{}", String::from_utf8_lossy(&said));
    }
    assert!(!String::from_utf8_lossy(&said).contains("-ERR"), "{}", String::from_utf8_lossy(&said));
}

/// One group gets a message of another program between two events, and comes to its end; how it came.
async fn comes(subject: &[u8], headers: &[u8], competing: bool) -> Arc<Envelope> {
    let place = Place::new();
    let broker = place.broker().await;
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let subject = [place.name.as_bytes(), b".", subject].concat();
    publish_raw(&place, &subject, headers, b"7").await;
    broker.publish(event("a.b", "k", 3)).await.unwrap();
    let mut wanted = early("g", ">");
    wanted.competing = competing;
    let mut deliveries = broker.subscribe(wanted).await.unwrap();
    let (mut numbers, mut foreign) = (BTreeSet::new(), None);
    // What was handed out as the connection ended may come once more.
    while numbers.len() < 3 {
        let received = receive_all(&mut deliveries, 1).await.remove(0);
        let number = number(&received);
        let Received { receipt, settler, .. } = received;
        let envelope = Arc::clone(&receipt.envelope);
        if settler.ack(receipt).await.is_ok() && numbers.insert(number) && number == 7 {
            foreign = Some(envelope);
        }
    }
    assert_eq!(numbers, BTreeSet::from([1, 3, 7]));
    let settled = broker.settled().unwrap();
    tokio::time::timeout(PATIENCE, settled).await.expect("the server has every ack");
    assert_eq!(broker.connection(), Connection::Up);
    foreign.unwrap()
}

#[tokio::test]
async fn a_header_that_is_not_utf_8_comes_with_its_bytes_as_latin_1() {
    for competing in [false, true] {
        let event = comes(b"order.placed", b"NATS/1.0\r\ntown: K\xf6ln\r\n\r\n", competing).await;
        assert_eq!(event.headers().get("town"), Some("Köln"));
        assert_eq!(event.topic().as_str(), "order.placed");
    }
}

#[tokio::test]
async fn headers_that_are_none_are_left_out_and_the_event_comes() {
    for headers in [
        &b"NATS/1.0\r\nno colon\r\nplain: x\r\n\r\n"[..],
        b"NATS/1.0\r\n no name: y\r\nplain: x\r\n\r\n",
        b"HTTP/1.1\r\nplain: x\r\n\r\n",
        b"NATS/1.0 nonsense\r\nplain: x\r\n\r\n",
    ] {
        let event = comes(b"order.placed", headers, false).await;
        assert_eq!(event.headers().get("plain"), Some("x"), "{}", String::from_utf8_lossy(headers));
    }
}

#[tokio::test]
async fn a_message_with_a_status_of_the_server_is_an_event() {
    for status in ["100", "404", "408", "409 Consumer Deleted", "423", "503"] {
        let headers = format!("NATS/1.0 {status}\r\nplain: x\r\n\r\n");
        let event = comes(b"order.placed", headers.as_bytes(), false).await;
        assert_eq!(event.headers().get("plain"), Some("x"), "{status}");
    }
}

#[tokio::test]
async fn a_subject_that_is_not_utf_8_comes_under_the_nearest_topic() {
    let event = comes(b"order.gr\xf6", b"NATS/1.0\r\nplain: x\r\n\r\n", false).await;
    assert_eq!(event.topic().as_str(), "order.gr_");
}

#[tokio::test]
async fn what_was_published_is_listed_with_what_cannot_be_read_among_it() {
    let place = Place::new();
    let broker = place.broker().await;
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let subject = format!("{}.order.placed", place.name);
    for headers in
        [&b"NATS/1.0\r\ntown: K\xf6ln\r\n\r\n"[..], b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\nx\r\n\r\n"]
    {
        publish_raw(&place, subject.as_bytes(), headers, b"7").await;
    }
    broker.publish(event("a.b", "k", 3)).await.unwrap();
    let query = broker.audit_log().unwrap().query(AuditQuery::default());
    let found = tokio::time::timeout(PATIENCE, query).await.unwrap().unwrap();
    let offsets: Vec<_> = found.iter().map(|one| one.offset.get()).collect();
    assert_eq!(offsets.len(), 5, "{offsets:?}");
    assert!(found.iter().any(|one| one.envelope.headers().get("town") == Some("Köln")));
}

#[tokio::test]
async fn a_message_that_ends_the_client_does_not_stop_the_group_of_the_next_process() {
    let place = Place::new();
    let broker = place.builder().publish_timeout(Duration::from_secs(2)).connect().await.unwrap();
    let mut deliveries = broker.subscribe(early("g", ">")).await.unwrap();
    let subject = format!("{}.order.placed", place.name);
    publish_raw(&place, subject.as_bytes(), b"NATS/1.0\r\nlines: one\rtwo\r\n\r\n", b"7").await;
    let late = broker.publish(event("a.b", "k", 8));
    let mut none = Vec::new();
    let ended = poll_fn(|context| deliveries.poll_receive(context, &mut none, 9));
    let error = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("the client of NATS has ended"), "{error}");
    // Nobody waits for ever.
    tokio::time::timeout(PATIENCE, late).await.unwrap().unwrap_err();
    assert!(matches!(broker.connection(), Connection::Lost { .. }));
    drop((deliveries, broker));

    let next = place.broker().await;
    let group = || async { next.groups().unwrap().list().await.unwrap().iter().all(|group| !group.active) };
    until("the server has the group back", group).await;
    let mut deliveries = next.subscribe(early("g", ">")).await.unwrap();
    let received = receive_all(&mut deliveries, 1).await.remove(0);
    assert_eq!((number(&received), received.receipt.envelope.headers().get("lines")), (7, Some("one two")));
    ack(received).await;
    next.publish(event("a.b", "k", 9)).await.unwrap();
    ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
    assert_eq!(next.connection(), Connection::Up);
}

//! Messages that the client of NATS cannot read are events all the same. Names are promises.

mod support;

use eventbus::Envelope;
use eventbus::broker::{AuditQuery, Broker, Connection, Received, ReplayFrom, ReplayRequest, ReplayUntil};
use eventbus::subscription::Pattern;
use std::collections::BTreeSet;
use std::sync::Arc;
use support::{PATIENCE, Place, ack, early, event, number, receive_all};
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

/// What no client publishes, and the client of NATS does not read, with the number that the message has.
const UNREADABLE: [(&[u8], u64); 7] = [
    // Over these the client panics.
    (b"NATS/1.0\r\nlines: one\rtwo\r\n\r\n", 1),
    (b"NATS/1.0\r\nlines: one\r\r\r\n\ttwo\r\n\r\n", 2),
    (b"NATS/1.0\r\na: b\r\nlines: \rone\rtwo\r\n\r\n", 3),
    // Over these it ends the connection.
    (b"NATS/1.0\r\nli\rnes: one\r\n\r\n", 4),
    (b"NATS/1.0\r\n: one\r\n\r\n", 5),
    (b"NATS/1.0 12345\r\n\r\n", 6),
    (b"HTTP/1.1 200 OK\r\n\r\n", 7),
];

#[tokio::test]
async fn a_message_that_ends_the_client_does_not_end_the_program() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(early("g", ">")).await.unwrap();
    let mut other = broker.subscribe(early("other", "user.*")).await.unwrap();
    let subject = format!("{}.order.placed", place.name);
    for (headers, number) in UNREADABLE {
        let publishing = broker.publish(event("user.created", "k", number));
        publish_raw(&place, subject.as_bytes(), headers, number.to_string().as_bytes()).await;
        tokio::time::timeout(PATIENCE, publishing).await.unwrap().unwrap();
    }
    let mut numbers = BTreeSet::new();
    while numbers.len() < UNREADABLE.len() {
        for received in receive_all(&mut deliveries, 1).await {
            if received.receipt.envelope.topic().as_str() == "order.placed" {
                numbers.insert(number(&received));
            }
            ack(received).await;
        }
    }
    for (received, (_, expected)) in
        receive_all(&mut other, UNREADABLE.len()).await.into_iter().zip(UNREADABLE)
    {
        assert_eq!(number(&received), expected, "each once, in order");
        ack(received).await;
    }
    broker.publish(event("order.shipped", "k", 9)).await.unwrap();
    let received = receive_all(&mut deliveries, 1).await.remove(0);
    assert_eq!(received.receipt.envelope.topic().as_str(), "order.shipped");
    ack(received).await;
    assert_eq!(broker.connection(), Connection::Up);
    assert!(broker.client().flush().await.is_ok(), "who asks for the client has one that works");
    tokio::time::timeout(PATIENCE, broker.settled().unwrap()).await.unwrap();
    broker.close().await.unwrap();
}

#[tokio::test]
async fn processes_that_compete_go_on_behind_messages_that_end_the_client() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut request = early("g", ">");
    request.competing = true;
    let mut deliveries = broker.subscribe(request).await.unwrap();
    let subject = format!("{}.order.placed", place.name);
    let nbsp = format!("{}.order.pla\u{a0}ced", place.name);
    for (headers, number) in UNREADABLE {
        publish_raw(&place, subject.as_bytes(), headers, number.to_string().as_bytes()).await;
    }
    publish_raw(&place, nbsp.as_bytes(), b"NATS/1.0\r\na: b\r\n\r\n", b"8").await;
    broker.publish(event("a.b", "k", 9)).await.unwrap();
    let mut numbers = BTreeSet::new();
    while numbers.len() < 9 {
        for received in receive_all(&mut deliveries, 1).await {
            numbers.insert(number(&received));
            ack(received).await;
        }
    }
}

#[tokio::test]
async fn a_replay_and_the_audit_log_read_over_what_ends_the_client() {
    let place = Place::new();
    let broker = place.broker().await;
    let subject = format!("{}.order.placed", place.name);
    for round in 0..3 {
        broker.publish(event("a.b", "k", round)).await.unwrap();
        for (headers, number) in UNREADABLE {
            publish_raw(&place, subject.as_bytes(), headers, number.to_string().as_bytes()).await;
        }
    }
    broker.publish(event("a.b", "k", 9)).await.unwrap();
    let all = 3 * (UNREADABLE.len() + 1) + 1;
    let query = broker.audit_log().unwrap().query(AuditQuery::default());
    assert_eq!(tokio::time::timeout(PATIENCE, query).await.unwrap().unwrap().len(), all);
    let request = ReplayRequest {
        group: "g".to_owned(),
        pattern: Pattern::new(">").unwrap(),
        from: ReplayFrom::Earliest,
        until: ReplayUntil::default(),
    };
    let mut replay = broker.replayable().unwrap().replay(request).await.unwrap();
    let replayed = receive_all(&mut replay.deliveries, all).await;
    let offsets: Vec<_> = replayed.iter().map(|one| one.receipt.offset).collect();
    assert!(offsets.is_sorted() && number(replayed.last().unwrap()) == 9);
    assert_eq!(broker.connection(), Connection::Up);
}

//! What an event is on its way.

use crate::conformance::case::{Case, publish};
use eventbus_core::jiff::Timestamp;
use eventbus_core::{Delivery, Envelope, EventId, Topic};
use std::sync::Arc;

/// Payloads of any bytes and any size up to the limit, none included, arrive as they were sent.
pub(super) async fn payloads_arrive_byte_for_byte(case: Arc<Case>) {
    let limit = case.features().max_payload.unwrap_or(usize::MAX);
    let mut payloads: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0],
        (0..=u8::MAX).cycle().take(1_000).collect(),
        b"\xff\xfe not UTF-8 \xc3\x28".to_vec(),
        "größer, \u{1f980}\r\n\0".into(),
        (0..=u8::MAX).rev().cycle().take(limit.min(1 << 20)).collect(),
    ];
    let topic = case.topic("scan.stored");
    let binary = |payload: &Vec<u8>| envelope(&topic, "application/octet-stream", payload.clone());
    let received = sent_as_they_are(&case, payloads.iter().map(binary).collect()).await;
    let mut received: Vec<_> = received.iter().map(|envelope| envelope.payload().unwrap().to_vec()).collect();
    received.sort();
    payloads.sort();
    assert!(received == payloads, "sizes sent: {:?}, received: {:?}", sizes(&payloads), sizes(&received));
}

fn sizes(payloads: &[Vec<u8>]) -> Vec<usize> {
    payloads.iter().map(Vec::len).collect()
}

/// An event of these bytes, with what a bus would fill in.
fn envelope(topic: &Topic, content_type: &str, payload: Vec<u8>) -> Envelope {
    Envelope::from_bytes(topic.clone(), content_type, payload.into()).with_source("/conformance")
}

/// Publishes envelopes at the broker itself, since a bus fills in what is not set, and gives back what arrived: in another
/// process, where there may be one, so that nothing is handed over in memory.
async fn sent_as_they_are(case: &Case, envelopes: Vec<Envelope>) -> Vec<Arc<Envelope>> {
    let here = case.broker().await;
    let there = if case.features().multi_process { case.broker().await } else { Arc::clone(&here) };
    let (bus, seen) = (case.bus_on(&there).await, case.seen());
    let noting = seen.noting(|delivery: &Delivery| Arc::clone(delivery.envelope()));
    bus.on_topic(envelopes[0].topic(), noting).group(case.group("scans")).await.unwrap();
    bus.start_quietly().unwrap();
    let count = envelopes.len();
    for envelope in envelopes {
        case.in_time("it is published", here.publish(Arc::new(envelope))).await.unwrap();
    }
    seen.reach(count).await;
    case.quiet(&bus).await;
    seen.all()
}

/// Everything that an event says of itself arrives: what is set, what is not, and each header, in order, with names and
/// values of any letters. So does the context of a trace.
pub(super) async fn attributes_and_headers_arrive_as_they_were_sent(case: Arc<Case>) {
    let topic = case.topic("scan.stored");
    let time: Timestamp = "2001-02-03T04:05:06.789Z".parse().unwrap();
    let mut full = Envelope::from_bytes(topic.clone(), "image/png; q=\"a b\"", vec![0, 159, 146, 150].into())
        .with_id(EventId::new("scan/1 é"))
        .with_source("/conformance?a=b%20c")
        .with_type("com.example.scan")
        .with_version(3)
        .with_time(time)
        .with_subject("door é / 7")
        .with_key("größe 7")
        .with_causes(EventId::new("chain-1"), Some(EventId::new("cause-1")), 2)
        .with_header("Tenant", "acmé \u{1f980}")
        .with_header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .with_header("tracestate", "a=1,b=2");
    full.headers_mut().append("tag", "one");
    full.headers_mut().append("tag", "two");
    let bare = envelope(&topic, "application/json", b"1".to_vec());
    let received = sent_as_they_are(&case, vec![full.clone(), bare.clone()]).await;
    for sent in [full, bare] {
        let arrived = received.iter().find(|arrived| arrived.id() == sent.id());
        let arrived = arrived.unwrap_or_else(|| panic!("no id is {}: {received:?}", sent.id()));
        assert_eq!(described(arrived), described(&sent));
        assert_eq!(arrived.payload().unwrap(), sent.payload().unwrap());
    }
}

/// All attributes and headers.
fn described(envelope: &Envelope) -> String {
    // The places of headers with different names mean nothing; what one name has keeps its order.
    let mut headers: Vec<_> =
        envelope.headers().iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    headers.sort_by(|one, other| one.0.cmp(&other.0));
    format!(
        "{} {} {} {} {} {} {:?} {:?} {} {} {:?} {} {headers:?}",
        envelope.topic(),
        envelope.id(),
        envelope.source(),
        envelope.event_type(),
        envelope.version(),
        envelope.time(),
        envelope.subject(),
        envelope.key(),
        envelope.content_type(),
        envelope.correlation_id(),
        envelope.causation_id(),
        envelope.causation_depth(),
    )
}

/// A header that a protocol cannot carry is refused as it is published. What is taken arrives as it was.
pub(super) async fn a_header_value_is_carried_or_refused_and_never_changed(case: Arc<Case>) {
    let (here, topic, seen) =
        (case.broker().await, case.topic("scan.stored"), case.seen::<(String, String)>());
    let there = if case.features().multi_process { case.broker().await } else { Arc::clone(&here) };
    let bus = case.bus_on(&there).await;
    let noting = seen.noting(|delivery| {
        let envelope = delivery.envelope();
        (envelope.id().to_string(), envelope.headers().get("note").unwrap_or("(none)").to_owned())
    });
    bus.on_topic(&topic, noting).group(case.group("scans")).await.unwrap();
    bus.start_quietly().unwrap();
    let long = "x".repeat(64 << 10);
    let values = [
        "",
        " ",
        " before",
        "after ",
        "two\nlines",
        "two\r\nheaders: one",
        "a\ttab",
        "a zero \0",
        "50 %",
        "%41",
        "a+b=c&d",
        "\"quoted\"",
        "größe \u{1f980}",
        "\u{7f}\u{80}\u{feff}",
        &long,
    ];
    let mut taken = Vec::new();
    for value in values {
        let envelope = envelope(&topic, "text/plain", b"1".to_vec()).with_header("note", value);
        let id = envelope.id().to_string();
        if case.in_time("it is answered", here.publish(Arc::new(envelope))).await.is_ok() {
            taken.push((id, value.to_owned()));
        }
    }
    assert!(taken.len() > values.len() / 2, "the broker takes {} of {} values", taken.len(), values.len());
    // Refused or not, it troubles nothing that follows.
    publish(&bus, &topic, 0..1).await;
    seen.reach(taken.len() + 1).await;
    for sent in taken {
        let arrived = seen.find("it arrives", |(id, _)| *id == sent.0).await;
        assert_eq!(arrived.1, sent.1);
    }
}

/// An event that is published again, with the source and the id of one that is stored, is not stored again, and that is no
/// error: whoever did not see the answer may ask again. A broker that cannot tell says so in its `Features`, and delivers
/// both.
pub(super) async fn an_event_that_is_published_twice_with_one_id_is_stored_once(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let seen = case.notes(&bus, &topic, "mail").await;
    bus.start_quietly().unwrap();
    for number in [1, 1, 2] {
        bus.publish_to(&topic, &number).id(EventId::new(format!("{topic}-{number}"))).await.unwrap();
    }
    let stored = if case.features().deduplicates { vec![1, 2] } else { vec![1, 1, 2] };
    seen.reach(stored.len()).await;
    case.quiet(&bus).await;
    assert_eq!(seen.sorted(), stored);
}

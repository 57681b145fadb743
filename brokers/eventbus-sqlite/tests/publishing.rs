//! What the log refuses as it is published, and what it does not.

mod support;

use eventbus::broker::AuditQuery;
use eventbus::{Bus, Envelope, EventId, PublishError, Topic};
use support::Log;

#[tokio::test]
async fn an_event_with_the_id_of_another_one_is_refused_and_others_in_its_batch_are_not() {
    let log = Log::new();
    let bus = log.bus().await;
    let id = EventId::new("order-7");
    bus.publish_to("order.placed", &1).id(id.clone()).await.unwrap();
    let error = bus.publish_to("order.paid", &1).id(id.clone()).await.unwrap_err().to_string();
    assert!(error.contains("`order-7`") && error.contains("on \"order.placed\""), "{error}");
    let paid = |id| Envelope::from_json(Topic::new("order.paid").unwrap(), &1).unwrap().with_id(id);
    let both = bus.publish_envelopes([paid(id.clone()), paid(EventId::new("order-8"))]).await;
    assert_eq!(both.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    bus.publish_to("order.placed", &1).id(id).await.expect("it is there");
    assert_eq!(bus.audit_log().unwrap().query(AuditQuery::default()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_event_above_the_limit_is_refused_and_others_in_its_batch_are_not() {
    let log = Log::new();
    let broker = log.broker_with(|settings| settings.max_payload(100)).await;
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let error = bus.publish_to("a.b", &"x".repeat(99)).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { size: 101, limit: 100, .. }), "{error}");
    assert!(error.to_string().contains("max_payload"), "{error}");
    bus.publish_to("a.b", &"x".repeat(98)).await.unwrap();
    let envelope = || Envelope::from_json(Topic::from_static("a.b"), &1).unwrap();
    let error =
        bus.publish_envelope(envelope().with_key("k".repeat(64 << 10))).await.unwrap_err().to_string();
    for part in ["key and the other attributes have", "65,536 are allowed", "max_payload"] {
        assert!(error.contains(part), "{error}");
    }
    let large = |count: usize| envelope().with_header("name", "v".repeat(count));
    let results = bus.publish_envelopes([large(70_000), large(60_000)]).await;
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
}

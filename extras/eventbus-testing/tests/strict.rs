//! A test bus refuses what a log would refuse, though it keeps events in memory.

use eventbus::{Bus, Event, PublishError, Topic, subscribe};
use eventbus_testing::TestBus;
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "page.scanned")]
struct PageScanned {
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
    darkness: f64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "scan.asked")]
struct ScanAsked {
    letters: usize,
}

#[subscribe]
async fn scan(asked: ScanAsked) -> PageScanned {
    PageScanned { text: "x".repeat(asked.letters), darkness: 0.5 }
}

fn page(letters: usize, darkness: f64) -> PageScanned {
    PageScanned { text: "x".repeat(letters), darkness }
}

#[tokio::test(start_paused = true)]
async fn what_a_log_could_not_keep_or_give_back_is_refused() {
    let bus = TestBus::start(Bus::builder().only([scan::SUBSCRIBER])).await;
    // Not only among the first events of a type, whatever the build.
    for letters in 1..100 {
        bus.publish(page(letters, 0.5)).await;
    }
    let error = bus.bus().publish(page(0, 0.5)).await.unwrap_err();
    assert!(
        matches!(error, PublishError::Unreadable { .. }) && error.to_string().contains("`text`"),
        "{error}"
    );
    let error = bus.bus().publish(page(1, f64::NAN)).await.unwrap_err();
    assert!(
        matches!(error, PublishError::Encode { .. }) && error.to_string().contains("`darkness`"),
        "{error}"
    );
    let error = bus.bus().publish(page(8 << 20, 0.5)).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { limit: 8_388_608, .. }), "{error}");
    let bytes = vec![0; (8 << 20) + 1];
    let envelope = eventbus::Envelope::from_bytes(Topic::from_static("a"), "image/png", bytes.into());
    let error = bus.bus().publish_envelope(envelope).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { size: 8_388_609, .. }), "{error}");
    let envelope =
        eventbus::Envelope::from_json(Topic::from_static("a"), &1).unwrap().with_key("k".repeat(8 << 20));
    let error = bus.bus().publish_envelope(envelope).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { part: "key", .. }), "{error}");
    assert_eq!(bus.published::<PageScanned>().len(), 99);
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_returns_is_refused_as_well_and_told_by_a_dead_letter() {
    let bus = TestBus::start(Bus::builder().only([scan::SUBSCRIBER])).await;
    bus.publish(&ScanAsked { letters: 0 }).await;
    let letters = bus.dead_letters();
    assert!(letters.len() == 1 && letters[0].reason.contains("`PageScanned`"), "{letters:?}");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "NaN has no form in JSON")]
async fn publishing_it_in_a_test_panics_with_the_reason() {
    let bus = TestBus::start(Bus::builder().only([scan::SUBSCRIBER])).await;
    bus.publish(page(1, f64::NAN)).await;
}

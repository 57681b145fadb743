//! Two event types that claim one topic: a binary of its own, since no bus of it starts.

use eventbus::{Bus, Event};
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "order.placed")]
struct OrderPlaced {
    id: u64,
}

mod billing {
    use super::*;

    #[derive(Event, Clone, Serialize, Deserialize)]
    #[event(topic = "order.placed")]
    pub(super) struct OrderPlaced {
        pub(super) id: String,
    }
}

#[tokio::test]
async fn two_event_types_of_different_shape_on_one_topic_are_refused_with_both_source_lines() {
    let lines =
        [OrderPlaced::META, billing::OrderPlaced::META].map(|meta| format!("{}:{}", meta.file, meta.line));
    let error = Bus::connect("memory:").await.unwrap_err().to_string();
    assert!(
        error.contains("claim \"order.placed\" v1") && lines.iter().all(|line| error.contains(line)),
        "{error}"
    );
    let _ = (OrderPlaced { id: 1 }.id, billing::OrderPlaced { id: String::new() }.id);
}

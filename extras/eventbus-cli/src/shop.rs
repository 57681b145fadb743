//! The program of the tests: what it publishes, and who listens.

use eventbus::{Event, Outcome, subscribe};
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
pub(crate) struct OrderPlaced {
    pub(crate) id: u64,
    pub(crate) item: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "item.reserved", key = order)]
pub(crate) struct ItemReserved {
    pub(crate) order: u64,
}

/// A parcel as it was at first.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "parcel.sent", key = order)]
pub(crate) struct ParcelSentV1 {
    pub(crate) order: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "parcel.sent", version = 2, upcast_from = ParcelSentV1, key = id)]
pub(crate) struct ParcelSent {
    pub(crate) id: u64,
    pub(crate) carrier: String,
}

impl From<ParcelSentV1> for ParcelSent {
    fn from(ParcelSentV1 { order }: ParcelSentV1) -> Self {
        Self { id: order, carrier: "post".to_owned() }
    }
}

/// Gives up what is not in stock.
#[subscribe(group = "stock")]
async fn reserve(order: &OrderPlaced) -> Outcome {
    match order.item.as_str() {
        "unicorn" => Outcome::Reject("no \u{1b}[2J unicorns".into()),
        _ => Outcome::publish(ItemReserved { order: order.id }),
    }
}

#[subscribe(group = "mail", replay = false)]
async fn confirm(_item: &ItemReserved) {}

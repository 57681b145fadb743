//! The events that the cases share.

use eventbus::Event;
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
pub struct OrderPlaced {
    pub id: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.shipped", key = id)]
pub struct OrderShipped {
    pub id: u64,
}

//! Records that come for a subscription, and the events in them.

use crate::held::{Arrival, Partition};
use crate::records::{read_event, record, time_of};
use crate::subscription::Subscription;
use crate::wire;
use rdkafka::message::{BorrowedMessage, Message};
use std::sync::Arc;

/// A record came.
pub(crate) fn arrive(subscription: &Subscription, message: &BorrowedMessage<'_>) {
    let partition: Partition = (message.topic().into(), message.partition());
    let Ok(at) = u64::try_from(message.offset()) else { return };
    let mut state = subscription.state.lock();
    // Most records are read without the lock.
    if !state.held.has(&partition) {
        return;
    }
    drop(state);
    let arrival = read(subscription, message);
    state = subscription.state.lock();
    state.held.arrive(&partition, at, |latest| {
        let mut arrival = arrival?;
        // The places of one partition rise, whatever clocks say.
        if arrival.origin.offset == at {
            arrival.origin.time = arrival.origin.time.max(latest);
        }
        Some(arrival)
    });
}

fn read(subscription: &Subscription, message: &BorrowedMessage<'_>) -> Option<Arrival> {
    let Subscription { link, group, pattern, .. } = subscription;
    let (envelope, origin) = if message.topic() == link.again_topic(group) {
        let (envelope, origin, _) = wire::read_again(record(message), time_of(message))?;
        // Another pattern of the group has it.
        if !pattern.matches(envelope.topic().as_str()) {
            return None;
        }
        (envelope, origin)
    } else {
        read_event(link, message)?
    };
    let size = message.payload_len() + message.key_len() + 512;
    Some(Arrival { envelope: Arc::new(envelope), origin, size })
}

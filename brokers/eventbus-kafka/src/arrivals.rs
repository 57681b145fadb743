//! Records that come for a subscription, and the events in them.

use crate::held::{Arrival, Partition};
use crate::records::{read_event, record, time_of};
use crate::subscription::Subscription;
use crate::wire;
use rdkafka::message::{BorrowedMessage, Message};
use std::sync::Arc;

/// Records that were read and not handed over yet: they are read without the lock of the subscription, and handed over
/// together under it.
pub(crate) struct Arrivals {
    /// The topic with what is published again for the group.
    again: String,
    /// Where the last record was, since the next one mostly is there too.
    partition: Option<Partition>,
    read: Vec<(Partition, u64, Option<Arrival>)>,
    size: usize,
}

impl Arrivals {
    pub(crate) fn new(subscription: &Subscription) -> Self {
        let again = subscription.link.again_topic(&subscription.group);
        Self { again, partition: None, read: Vec::new(), size: 0 }
    }

    /// How many there are, and how much memory they take.
    pub(crate) const fn len(&self) -> (usize, usize) {
        (self.read.len(), self.size)
    }

    /// A record came.
    pub(crate) fn read(&mut self, subscription: &Subscription, message: &BorrowedMessage<'_>) {
        let Ok(at) = u64::try_from(message.offset()) else { return };
        let former = self.partition.take();
        let is_there =
            |(topic, number): &Partition| **topic == *message.topic() && *number == message.partition();
        let partition = former.filter(is_there);
        let partition = partition.unwrap_or_else(|| (message.topic().into(), message.partition()));
        let arrival = self.event(subscription, message);
        self.size += arrival.as_ref().map_or(0, |arrival| arrival.size);
        self.read.push((partition.clone(), at, arrival));
        self.partition = Some(partition);
    }

    /// Gives them to the subscription, which takes those of partitions that it has. No, where there are none.
    pub(crate) fn hand_over(&mut self, subscription: &Subscription) -> bool {
        let is_some = !self.read.is_empty();
        self.size = 0;
        let mut state = subscription.state.lock();
        for (partition, at, arrival) in self.read.drain(..) {
            state.held.arrive(&partition, at, |latest| {
                let mut arrival = arrival?;
                // The places of one partition rise, whatever clocks say.
                if arrival.origin.offset == at {
                    arrival.origin.time = arrival.origin.time.max(latest);
                }
                Some(arrival)
            });
        }
        is_some
    }

    fn event(&self, subscription: &Subscription, message: &BorrowedMessage<'_>) -> Option<Arrival> {
        let Subscription { link, pattern, .. } = subscription;
        let (envelope, origin) = if message.topic() == self.again {
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
}

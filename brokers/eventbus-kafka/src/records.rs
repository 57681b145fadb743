//! Records as the client gives them, and the events in them.

use crate::connection::Link;
use crate::place::Origin;
use crate::wire::{self, Record};
use bytes::Bytes;
use eventbus_core::printable::printable;
use eventbus_core::{Envelope, foreign, log};
use jiff::Timestamp;
use rdkafka::message::{Header, Headers, Message};

/// The event in a record of a topic; none, where the topic is no bus's.
pub(crate) fn read_event<M: Message>(link: &Link, message: &M) -> Option<(Envelope, Origin)> {
    let topic = link.settings.topic_of(message.topic())?;
    let time = time_of(message);
    let place = wire::Place { topic, partition: message.partition(), offset: message.offset(), time };
    let Record { key, headers, payload } = record(message);
    let origin = Origin {
        topic: message.topic().into(),
        partition: message.partition(),
        offset: u64::try_from(message.offset()).ok()?,
        time: u64::try_from(time.as_millisecond()).unwrap_or_default(),
    };
    Some((wire::read(place, key, headers, payload), origin))
}

/// A message of the client, as it is read here.
///
/// A header whose name is no UTF-8 text is left out: the client panics where it is to give one, and gives none of its bytes.
pub(crate) fn record<M: Message>(message: &M) -> Record<'_> {
    let headers = message.headers();
    let read = |headers, number| {
        let header = foreign::call("the Kafka client", || M::Headers::try_get(headers, number));
        header.unwrap_or_else(|_| {
            log::warn!(
                target: "eventbus", topic = %printable(message.topic()), partition = message.partition(),
                offset = message.offset(),
                "a header whose name is no UTF-8 text is left out; have its producer take another name"
            );
            None
        })
    };
    let headers = headers.into_iter().flat_map(|headers| {
        (0..headers.count()).filter_map(move |number| {
            let Header { key, value } = read(headers, number)?;
            Some((key, value))
        })
    });
    Record {
        key: message.key(),
        headers: headers.collect(),
        payload: message.payload().map(Bytes::copy_from_slice).unwrap_or_default(),
    }
}

/// When a record was stored, or says that it was.
pub(crate) fn time_of<M: Message>(message: &M) -> Timestamp {
    let millis = message.timestamp().to_millis().filter(|millis| *millis >= 0);
    millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

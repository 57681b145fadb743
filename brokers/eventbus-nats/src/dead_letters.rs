//! Dead letters: a stream of their own, each the bytes of its event with the reason beside it.

use crate::connection::Link;
use crate::publish::Other;
use crate::wire;
use async_nats::header::{HeaderName, HeaderValue};
use eventbus_core::BrokerError;
use eventbus_core::broker::DeadLetter;
use eventbus_server::cloudevents::percent_encode;

/// The message that keeps a dead letter.
pub(crate) fn dead_letter(link: &Link, letter: &DeadLetter, consumer: &str) -> Result<Other, BrokerError> {
    let mode = link.settings.content_mode;
    let written = wire::write(&letter.envelope, mode)
        .map_err(|error| BrokerError::new("cannot write the dead letter").with_cause(error))?;
    let mut headers = written.headers;
    for (name, value) in letter.headers().iter() {
        if let (Ok(name), Ok(value)) =
            (name.parse::<HeaderName>(), percent_encode(value).parse::<HeaderValue>())
        {
            headers.insert(name, value);
        }
    }
    // Where the process ends between this and the ack, the event fails once more, and is not kept twice.
    headers.insert("Nats-Msg-Id", format!("{consumer}/{}", letter.offset));
    let subject = link.settings.dead_subject(&letter.group, letter.envelope.topic().as_str());
    Ok(Other { subject, headers, payload: written.payload })
}

//! Messages that the client cannot read, such as with a header that is not UTF-8: where one comes the client ends the
//! connection, or itself. They are asked for in another form, and sent again in one that it reads.

use crate::connection::{Link, Refusal};
use crate::publish::{Other, Outlet};
use crate::subscription::ACK;
use crate::topology::{covers, filters};
use crate::wire::{self, AGAIN};
use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::Info;
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_server::cloudevents::base64_decode;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// How many messages are looked at, at most, from the first that is open.
const MOST: u64 = 20_000;
/// How many are asked for at once.
const AT_ONCE: usize = 16;

/// A message of a stream, asked for by its place.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) time: Timestamp,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    /// Whether the client reads it where it is delivered.
    pub(crate) is_readable: bool,
}

/// Which message of a stream.
#[derive(Debug, Serialize)]
pub(crate) struct Which<'a> {
    pub(crate) seq: u64,
    /// The first from that place on under these subjects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_by_subj: Option<&'a str>,
}

/// A message as the server writes it where it is asked for by its place.
#[derive(Debug, Deserialize)]
struct Raw {
    subject: String,
    seq: u64,
    time: String,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

impl Raw {
    /// The headers as far as they can be read, and whether the client reads the message where it is delivered.
    fn headers(&self) -> Result<(HeaderMap, bool), Refusal> {
        let (headers, is_readable) = read_headers(&bytes(&self.hdrs)?);
        // In place of bytes that are not UTF-8 the server writes this; and the client parts a line with headers at every
        // white space, of which the server lets some into subjects.
        let is_text = !self.subject.contains(|c: char| c == char::REPLACEMENT_CHARACTER || c.is_whitespace());
        Ok((headers, is_readable && is_text))
    }

    fn stored(self) -> Result<Stored, Refusal> {
        let (headers, is_readable) = self.headers()?;
        Ok(Stored {
            is_readable,
            payload: bytes(&self.data)?.into(),
            subject: self.subject,
            sequence: self.seq,
            time: self.time.parse().unwrap_or(Timestamp::UNIX_EPOCH),
            headers,
        })
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, Refusal> {
    base64_decode(text).ok_or_else(|| Refusal::Unreadable("a message is not in base64".to_owned()))
}

impl Link {
    /// A message of a stream; none, where it is not there (any more).
    pub(crate) async fn stored(&self, stream: &str, which: Which<'_>) -> Result<Option<Stored>, Refusal> {
        self.raw(stream, which).await?.map(Raw::stored).transpose()
    }

    /// A message that the client is known to read, in the form in which it was stored: the other one costs both sides several
    /// times as much. None, where it is not to be had like this: a stream of somebody else's may not allow it, and who is
    /// asked may lag behind.
    pub(crate) async fn stored_as_it_is(&self, stream: &str, sequence: u64) -> Option<Stored> {
        let subject = self.api_subject(&format!("DIRECT.GET.{stream}"));
        let message = self.request(subject, format!("{{\"seq\":{sequence}}}").into()).await.ok()?;
        let headers = message.headers?;
        let fact = |name: &str| headers.get(name).map(|value| value.as_str());
        if fact("Nats-Sequence")?.parse() != Ok(sequence) {
            return None;
        }
        Some(Stored {
            subject: fact("Nats-Subject")?.to_owned(),
            sequence,
            time: fact("Nats-Time-Stamp")?.parse().ok()?,
            headers,
            payload: message.payload,
            is_readable: true,
        })
    }

    /// The same, where the client cannot read it. The payload of one that it reads is not looked at.
    async fn unreadable(&self, stream: &str, which: Which<'_>) -> Result<Option<Stored>, Refusal> {
        let Some(raw) = self.raw(stream, which).await? else { return Ok(None) };
        if raw.headers()?.1 { Ok(None) } else { raw.stored().map(Some) }
    }

    async fn raw(&self, stream: &str, which: Which<'_>) -> Result<Option<Raw>, Refusal> {
        #[derive(Deserialize)]
        struct Answer {
            message: Raw,
        }

        match self.api::<Answer>(format!("STREAM.MSG.GET.{stream}"), &which).await {
            Ok(answer) => Ok(Some(answer.message)),
            Err(refusal) if refusal.is(ErrorCode::NO_MESSAGE_FOUND) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Of what a consumer has open, sends again to it what the client cannot read, and settles that. What `is_here` was read.
    pub(crate) async fn mend_unreadable(
        &self,
        outlet: &Outlet,
        info: &Info,
        is_here: impl Fn(u64) -> bool,
    ) -> Result<(), BrokerError> {
        if info.num_ack_pending == 0 {
            return Ok(());
        }
        let (stream, from) = (&self.settings.stream, info.ack_floor.stream_sequence + 1);
        let to = info.delivered.stream_sequence.min(from.saturating_add(MOST));
        let look = |seq| self.unreadable(stream, Which { seq, next_by_subj: None });
        let mut found =
            stream::iter((from..=to).filter(|sequence| !is_here(*sequence))).map(look).buffered(AT_ONCE);
        let filters = filters(&info.config);
        while let Some(stored) = found.next().await {
            let stored = stored.map_err(|refusal| {
                self.explain(format_args!("look for what cannot be read in `{stream}`"), refusal)
            })?;
            let Some(stored) = stored else { continue };
            if filters.iter().any(|filter| covers(filter, &stored.subject)) {
                self.mend(outlet, &info.name, stored).await?;
            }
        }
        Ok(())
    }

    async fn mend(&self, outlet: &Outlet, consumer: &str, stored: Stored) -> Result<(), BrokerError> {
        let settings = &self.settings;
        let sequence = stored.sequence;
        let again = self.listen_again(consumer).await?;
        let first =
            stored.headers.get(AGAIN).and_then(|first| first.as_str().parse().ok()).unwrap_or(sequence);
        let topic = settings.topic_of(&stored.subject);
        let headers = Some(&stored.headers);
        let event = wire::read(&settings.stream, topic, sequence, stored.time, headers, stored.payload);
        let written = wire::write(&event, settings.content_mode)
            .map_err(|error| BrokerError::new("cannot write the event").with_cause(error))?;
        let mut headers = written.headers;
        headers.insert("Nats-Msg-Id", format!("{consumer}/readable/{sequence}"));
        headers.insert(AGAIN, first.to_string());
        let subject = again.replace('>', event.topic().as_str());
        outlet.store("the event", Other { subject, headers, payload: written.payload }).await?;
        // Of such a subject the server reads the stream, the consumer and the place.
        let ack = format!("$JS.ACK.{}.{consumer}.1.{sequence}.{sequence}.0.0", settings.stream);
        let acked = self.request(ack, ACK).await;
        acked
            .map_err(|refusal| self.explain(format_args!("ack what was sent again, {sequence}"), refusal))?;
        log::warn!(
            target: "eventbus", stream = %printable(&settings.stream), sequence, consumer = %printable(consumer),
            "a message of another program cannot be read by the client of NATS, as its headers or its subject are not as NATS \
             wants them; it was sent again to this group with what could be read"
        );
        Ok(())
    }
}

/// The headers as far as they can be read, and whether the client reads them.
fn read_headers(bytes: &[u8]) -> (HeaderMap, bool) {
    let mut headers = HeaderMap::new();
    if bytes.is_empty() {
        return (headers, true);
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        // Latin-1, so that no byte is lost.
        Err(_) => Cow::Owned(bytes.iter().copied().map(char::from).collect()),
    };
    let mut is_readable = matches!(text, Cow::Borrowed(_));
    let mut lines = text.lines().peekable();
    let version = lines.next().and_then(|line| line.strip_prefix("NATS/1.0"));
    is_readable &= version.is_some_and(|status| {
        let status = status.trim().split(' ').next().unwrap_or_default();
        status.is_empty() || status.parse::<async_nats::StatusCode>().is_ok()
    });
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let mut value = line.split_once(':').map_or("", |(_, value)| value).trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        let is_one_line = !value.trim_end().contains('\r');
        let value = value.trim_end().replace('\r', " ").parse::<HeaderValue>();
        let name = line.split_once(':').and_then(|(name, _)| name.parse::<HeaderName>().ok());
        is_readable &= name.is_some() && is_one_line;
        if let (Some(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    (headers, is_readable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_reads_is_told_from_what_it_does_not() {
        for (bytes, reads) in [
            (&b""[..], true),
            (b"NATS/1.0\r\n\r\n", true),
            (b"NATS/1.0\r\nx: y\r\n z\r\n\r\n", true),
            (b"NATS/1.0 503\r\n\r\n", true),
            (b"NATS/1.0 5\r\n\r\n", false),
            (b"NATS/1.0\r\nx: \xff\r\n\r\n", false),
            (b"NATS/1.0\r\nx: a\rb\r\n\r\n", false),
            (b"NATS/1.0\r\nx\r\n\r\n", false),
            (b"NATS/1.0\r\nx y: z\r\n\r\n", false),
            (b"x: y\r\n\r\n", false),
        ] {
            assert_eq!(read_headers(bytes).1, reads, "{}", String::from_utf8_lossy(bytes));
        }
        let (headers, _) = read_headers(b"NATS/1.0\r\nno\r\nx: \xf6\rb\r\n c\r\n\r\n");
        assert_eq!((headers.len(), headers.get("x").map(HeaderValue::as_str)), (1, Some("ö b c")));
    }
}

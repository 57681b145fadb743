//! Context attributes as names and texts: what a broker writes beside the payload, and reads back.

use super::Envelope;
use super::payload::Payload;
use crate::event::Key;
use crate::headers::Headers;
use crate::id::EventId;
use crate::topic::Topic;
use bytes::Bytes;
use jiff::Timestamp;
use smol_str::SmolStr;
use std::borrow::Cow;

/// The version of CloudEvents that envelopes follow.
const SPEC_VERSION: &str = "1.0";

impl Envelope {
    /// The context attributes in the order of the specification, under their CloudEvents names.
    ///
    /// Brokers write them as native headers with the prefix of their protocol binding (`ce_`, `ce-`, …).
    /// `eventversion` and `causationdepth` are extensions of our own; the others are the specification's and
    /// its documented extensions.
    ///
    /// ```
    /// use eventbus_core::{Envelope, Topic};
    ///
    /// let envelope = Envelope::from_json(Topic::from_static("user.created"), &7)?.with_key("ada");
    /// let names: Vec<_> = envelope.attributes().map(|(name, _)| name).collect();
    /// assert_eq!(names, ["specversion", "id", "source", "type", "time", "datacontenttype", "eventversion", "partitionkey"]);
    /// # Ok::<(), eventbus_core::PublishError>(())
    /// ```
    pub fn attributes(&self) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
        let text =
            |name: &'static str, value: Option<&'_ str>| value.map(|value| (name, value.to_owned().into()));
        [
            Some(("specversion", Cow::Borrowed(SPEC_VERSION))),
            Some(("id", self.id.to_string().into())),
            Some(("source", Cow::Borrowed(self.source()))),
            Some(("type", Cow::Borrowed(self.event_type()))),
            Some(("time", self.time.to_string().into())),
            text("subject", self.subject()),
            text("datacontenttype", Some(self.content_type())),
            Some(("eventversion", self.version.to_string().into())),
            text("partitionkey", self.key()),
            self.correlation_id.as_ref().map(|id| ("correlationid", id.to_string().into())),
            self.causation_id.as_ref().map(|id| ("causationid", id.to_string().into())),
            (self.causation_depth > 0).then(|| ("causationdepth", self.causation_depth.to_string().into())),
        ]
        .into_iter()
        .flatten()
    }

    /// An envelope out of what a broker carried: attributes under their CloudEvents names, other headers, payload.
    ///
    /// An event from outside may lack any of them: its topic and its bytes are enough. What is missing, or is not
    /// what its name promises, is filled from the broker's own metadata through the `with_` methods, or left at
    /// its default; an attribute without a meaning here is kept as a header.
    #[must_use]
    pub fn from_attributes<'a>(
        topic: Topic,
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
        headers: Headers,
        payload: Bytes,
    ) -> Self {
        let mut envelope = Self::new(topic, SmolStr::new_static(""), Payload::Bytes(payload));
        envelope.headers = headers;
        for (name, value) in attributes {
            envelope.read(name, value);
        }
        envelope
    }

    fn read(&mut self, name: &str, value: &str) {
        match name {
            "specversion" => {}
            "id" => self.id = EventId::new(value),
            "source" => self.source = SmolStr::new(value),
            "type" => self.event_type = (value != self.topic.as_str()).then(|| SmolStr::new(value)),
            "time" => self.time = value.parse::<Timestamp>().unwrap_or(self.time),
            "subject" => self.subject = Some(SmolStr::new(value)),
            "datacontenttype" => self.content_type = SmolStr::new(value),
            "eventversion" => self.version = value.parse().unwrap_or(self.version),
            "partitionkey" => self.key = Some(Key::new(value)),
            "correlationid" => self.correlation_id = Some(EventId::new(value)),
            "causationid" => self.causation_id = Some(EventId::new(value)),
            "causationdepth" => self.causation_depth = value.parse().unwrap_or(self.causation_depth),
            other => self.headers.append(other, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_the_way_over_a_wire() {
        let cause = Envelope::from_json(Topic::from_static("a"), &1).unwrap();
        let sent = Envelope::from_json(Topic::from_static("b"), &2)
            .unwrap()
            .with_source("/shop")
            .with_subject("order 7")
            .with_key(7)
            .with_version(3)
            .caused_by(&cause);
        let attributes: Vec<_> = sent.attributes().map(|(name, value)| (name, value.into_owned())).collect();
        let received = Envelope::from_attributes(
            sent.topic().clone(),
            attributes.iter().map(|(name, value)| (*name, value.as_str())),
            Headers::new(),
            sent.payload().unwrap().clone(),
        );
        let again: Vec<_> = received.attributes().map(|(name, value)| (name, value.into_owned())).collect();
        assert_eq!(attributes, again);
        assert_eq!(received.causation_id(), Some(cause.id()));
        assert_eq!(received.causation_depth(), 1);
    }

    #[test]
    fn an_event_from_outside_needs_its_topic_and_bytes_only() {
        let strange = [("time", "yesterday"), ("eventversion", "two"), ("myextension", "kept")];
        let received = Envelope::from_attributes(
            Topic::from_static("a"),
            strange,
            Headers::new(),
            Bytes::from_static(b"{}"),
        );
        assert_eq!((received.event_type(), received.version()), ("a", 1));
        assert_eq!(received.headers().get("myextension"), Some("kept"));
    }
}

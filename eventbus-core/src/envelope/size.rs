//! How large an envelope is: its payload, and what stands around it.

use super::Envelope;
use crate::error::PublishError;

/// So many bytes may stand around a payload, however small payloads are to be.
const ROOM: usize = 64 << 10;

impl Envelope {
    /// How many bytes everything but the payload has: the attributes, and the headers with their names.
    #[doc(hidden)]
    #[must_use]
    pub fn attributes_size(&self) -> usize {
        self.attribute_sizes().iter().map(|(_, size)| size).sum()
    }

    /// Refuses an envelope that is too large where payloads may have `max_payload` bytes: its `payload`, or everything
    /// else together, which may have as many, and 64 KiB in any case.
    #[doc(hidden)]
    pub fn check_size(&self, payload: usize, max_payload: usize) -> Result<(), PublishError> {
        let refuse = |part, size, limit| {
            Err(PublishError::TooLarge { topic: self.topic.to_string(), part, size, limit })
        };
        if payload > max_payload {
            return refuse("payload", payload, max_payload);
        }
        let (sizes, limit) = (self.attribute_sizes(), max_payload.max(ROOM));
        let size = sizes.iter().map(|(_, size)| size).sum();
        match sizes.iter().max_by_key(|(_, size)| *size) {
            Some((part, _)) if size > limit => refuse(*part, size, limit),
            _ => Ok(()),
        }
    }

    fn attribute_sizes(&self) -> [(&'static str, usize); 9] {
        let ids = [self.correlation_id.as_ref(), self.causation_id.as_ref()];
        [
            ("key", self.key().map_or(0, str::len)),
            ("headers", self.headers.iter().map(|(name, value)| name.len() + value.len()).sum()),
            ("subject", self.subject().map_or(0, str::len)),
            ("topic", self.topic.as_str().len()),
            ("id", self.id.size()),
            ("source", self.source.len()),
            ("type", self.event_type().len()),
            ("content type", self.content_type.len()),
            ("ids of its causes", ids.into_iter().flatten().map(|id| id.size()).sum()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EventId;
    use crate::topic::Topic;

    fn refused(envelope: &Envelope) -> Option<&'static str> {
        match envelope.check_size(0, ROOM) {
            Ok(()) => None,
            Err(PublishError::TooLarge { part, size, limit, .. }) if size > limit => Some(part),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn whatever_stands_around_a_payload_counts_and_the_largest_part_is_named() {
        let large = "x".repeat(ROOM);
        let plain = || Envelope::from_json(Topic::from_static("a.b"), &()).unwrap();
        let id = || EventId::new(&large);
        for (part, envelope) in [
            ("key", plain().with_key(&large)),
            ("headers", plain().with_header("name", &large)),
            ("headers", plain().with_header(&large, "value")),
            (
                "headers",
                (0..999)
                    .fold(plain(), |envelope, n| envelope.with_header(format!("name-{n}"), "v".repeat(70))),
            ),
            ("subject", plain().with_subject(&large)),
            ("id", plain().with_id(id())),
            ("source", plain().with_source(&large)),
            ("type", plain().with_type(&large)),
            ("content type", plain().with_content_type(&large)),
            ("ids of its causes", plain().with_causes(id(), None, 1)),
            ("ids of its causes", plain().with_causes(EventId::new("a"), Some(id()), 1)),
        ] {
            assert_eq!(refused(&envelope), Some(part));
        }
        let halves = plain().with_key(&large[..ROOM / 2 + 1]).with_subject(&large[..ROOM / 2]);
        assert_eq!(refused(&halves), Some("key"), "they count together");
        assert_eq!(refused(&plain().with_key(&large[..ROOM / 2])), None);
    }

    #[test]
    fn there_is_room_around_a_payload_however_small_it_has_to_be() {
        let envelope =
            Envelope::from_json(Topic::from_static("a.b"), &()).unwrap().with_key("k".repeat(1_000));
        assert!(envelope.check_size(1, 1).is_ok());
        let error = envelope.check_size(2, 1).unwrap_err().to_string();
        assert!(error.contains("its payload has 2 bytes, and 1 are allowed"), "{error}");
    }
}

//! By what Amazon tells events apart, and by what it keeps them in order.

use eventbus_core::Envelope;
use eventbus_server::cloudevents::percent_encode;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// The longest id by which Amazon tells messages apart, or groups them.
const LONGEST_ID: usize = 128;

/// By this Amazon knows an event again that is published twice: ids are unique within their source.
pub(crate) fn deduplication_id(envelope: &Envelope) -> String {
    let id = envelope.id().to_string();
    let named = format!("{}#{}", percent_encode(envelope.source()), percent_encode(&id));
    if named.len() <= LONGEST_ID {
        return named;
    }
    let digest = Sha256::digest(named.as_bytes());
    digest.iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a text takes what is written");
        text
    })
}

/// The group of messages that are delivered in order: those with one key. What has no key is in no order, and each is a
/// group of its own.
pub(crate) fn message_group(envelope: &Envelope) -> String {
    let Some(key) = envelope.key() else {
        return format!("~{:016x}", crate::names::hash(&[envelope.source(), &envelope.id().to_string()]));
    };
    let plain = percent_encode(key);
    // Two long keys of one hash wait for each other, and nothing else.
    if plain.is_empty() || plain.len() > LONGEST_ID - 1 {
        return format!("#{:016x}", crate::names::hash(&[key]));
    }
    format!("={plain}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::{any, any_text};

    #[test]
    fn ids_for_amazon_are_of_its_alphabet_and_length_and_tell_events_apart() {
        let mut random = fastrand::Rng::with_seed(8);
        let mut seen = std::collections::HashMap::new();
        for _ in 0..2_000 {
            let long = "ü".repeat(random.usize(..60));
            let event = any(&mut random)
                .with_source(any_text(&mut random) + &long)
                .with_key(any_text(&mut random) + &long);
            let id = deduplication_id(&event);
            for text in [&id, &message_group(&event)] {
                assert!(
                    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()),
                    "{text}"
                );
            }
            let named = (event.source().to_owned(), event.id().to_string());
            let other = seen.insert(id, named.clone());
            assert!(other.is_none_or(|other| other == named));
        }
        let of = |key: &str| message_group(&any(&mut fastrand::Rng::with_seed(1)).with_key(key));
        assert_eq!(of("door 7"), "=door%207");
        assert_eq!(of(""), of(""));
    }
}

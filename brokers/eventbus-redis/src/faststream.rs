//! Entries of FastStream, a framework for services in Python: it writes one field, in which headers and payload stand
//! together. Pure functions.
//!
//! Since its version 0.6 that is binary: eight bytes that say so, the version of the format, where the headers and the
//! payload begin, how many headers there are, and these as names and values, each behind its length. Before, and by
//! option, it was the JSON object `{"data": "…", "headers": {…}}`. A field of another program may have the same name, and
//! is the payload then, as FastStream itself takes it.

use bytes::Bytes;
use serde_json::Value as Json;

/// The one field of an entry.
pub(crate) const FIELD: &str = "__data__";

/// What the binary format begins with.
const MAGIC: &[u8] = b"\x89BIN\r\n\x1a\n";
const VERSION: u16 = 1;

/// What FastStream has put together.
#[derive(Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) payload: Bytes,
}

/// Reads the field of an entry.
pub(crate) fn read(field: Bytes) -> Message {
    binary(&field).or_else(|| json(&field)).unwrap_or(Message { headers: Vec::new(), payload: field })
}

fn binary(field: &Bytes) -> Option<Message> {
    let mut rest = field.strip_prefix(MAGIC)?;
    if short(&mut rest)? != VERSION {
        return None;
    }
    let (begin, end) = (long(&mut rest)?, long(&mut rest)?);
    let mut headers = field.get(begin..end)?;
    let count = short(&mut headers)?;
    // FastStream counts the characters of a text where it should count its bytes. Both are the same, or only one of them
    // ends where the payload begins.
    let headers =
        pairs(headers, count, bytes).or_else(|| pairs(headers, count, characters)).unwrap_or_default();
    Some(Message { headers, payload: field.slice(end..) })
}

/// Names and values, as many as there should be and nothing behind them.
fn pairs(
    mut from: &[u8],
    count: u16,
    length: fn(&[u8], usize) -> Option<usize>,
) -> Option<Vec<(String, String)>> {
    let text = |from: &mut &[u8]| {
        let count = short(from)?;
        let text = from.split_off(..length(from, count.into())?)?;
        Some(str::from_utf8(text).ok()?.to_owned())
    };
    let pairs = (0..count).map(|_| Some((text(&mut from)?, text(&mut from)?))).collect::<Option<Vec<_>>>()?;
    from.is_empty().then_some(pairs)
}

/// How many bytes so many bytes are.
fn bytes(_: &[u8], count: usize) -> Option<usize> {
    Some(count)
}

/// How many bytes so many characters are.
fn characters(from: &[u8], count: usize) -> Option<usize> {
    let begins = |byte: &u8| byte & 0xc0 != 0x80;
    let mut begins = (0..from.len()).filter(|at| begins(&from[*at])).chain([from.len()]);
    begins.nth(count)
}

fn short(from: &mut &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*from.split_off(..2)?.as_array()?))
}

fn long(from: &mut &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(*from.split_off(..4)?.as_array()?)).ok()
}

fn json(field: &Bytes) -> Option<Message> {
    let Json::Object(mut both) = serde_json::from_slice(field).ok()? else { return None };
    let (Json::String(data), Json::Object(headers)) = (both.remove("data")?, both.remove("headers")?) else {
        return None;
    };
    let text = |value| if let Json::String(text) = value { text } else { value.to_string() };
    let headers = headers.into_iter().map(|(name, value)| (name, text(value))).collect();
    Some(Message { headers, payload: data.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `BinaryMessageFormatV1` of FastStream 0.7.8 writes it.
    fn written(headers: &[(&str, &str)], payload: &[u8], length: fn(&str) -> usize) -> Bytes {
        let mut texts = Vec::new();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            texts.extend(u16::try_from(length(text)).unwrap().to_be_bytes());
            texts.extend(text.as_bytes());
        }
        let begin = MAGIC.len() + 2 + 8;
        let end = begin + 2 + texts.len();
        let [begin, end] = [begin, end].map(|place| u32::try_from(place).unwrap().to_be_bytes());
        let count = u16::try_from(headers.len()).unwrap().to_be_bytes();
        [MAGIC, &VERSION.to_be_bytes(), &begin, &end, &count, &texts, payload].concat().into()
    }

    fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn headers_and_payload_come_back_whether_lengths_are_of_bytes_or_of_characters() {
        let payload = b"\xff\0{}";
        for headers in [
            &[][..],
            &[("", "")],
            &[("ce-id", "7"), ("content-type", "application/json")],
            &[("ce-partitionkey", "Fühler 7 日本 🦀"), ("größe", "")],
        ] {
            for length in [str::len, |text: &str| text.chars().count()] {
                let read = read(written(headers, payload, length));
                assert_eq!((read.headers, &read.payload[..]), (owned(headers), &payload[..]));
            }
        }
    }

    #[test]
    fn what_was_captured_of_faststream_is_read() {
        // `BinaryMessageFormatV1.encode(message={"n": 1}, headers={"ce-id": "é"}, correlation_id="c", …)`
        let captured = b"\x89BIN\r\n\x1a\n\0\x01\0\0\0\x12\0\0\0\x52\0\x03\0\x0ecorrelation_id\0\x01c\
            \0\x0ccontent-type\0\x10application/json\0\x05ce-id\0\x01\xc3\xa9{\"n\": 1}";
        let read = read(Bytes::from_static(captured));
        let headers = [("correlation_id", "c"), ("content-type", "application/json"), ("ce-id", "é")];
        assert_eq!((read.headers, &read.payload[..]), (owned(&headers), &br#"{"n": 1}"#[..]));
    }

    #[test]
    fn the_older_format_is_read_and_anything_else_is_the_payload() {
        let older = br#"{"data": "{\"n\": 1}", "headers": {"correlation_id": "c", "n": 1}}"#;
        let read_older = read(Bytes::from_static(older));
        assert_eq!(read_older.headers, owned(&[("correlation_id", "c"), ("n", "1")]));
        assert_eq!(&read_older.payload[..], br#"{"n": 1}"#);
        for other in [&b""[..], b"text", b"\xff", br#"{"data": 1}"#, br#"{"n": 1}"#, MAGIC] {
            let read = read(Bytes::copy_from_slice(other));
            assert_eq!((read.headers.len(), &read.payload[..]), (0, other));
        }
    }

    #[test]
    fn no_bytes_end_in_a_panic_and_headers_that_are_damaged_leave_the_payload() {
        let whole = written(&[("ce-id", "7"), ("é", "ü")], b"payload", str::len);
        for at in 0..whole.len() {
            read(whole.slice(..at));
            for bits in [1, 0x80, 0xff] {
                let mut damaged = whole.to_vec();
                damaged[at] ^= bits;
                read(damaged.into());
            }
        }
        let mut damaged = whole.to_vec();
        damaged[MAGIC.len() + 2 + 8 + 2] = 0xff;
        let read = read(damaged.into());
        assert_eq!((read.headers.len(), &read.payload[..]), (0, &b"payload"[..]));
    }
}

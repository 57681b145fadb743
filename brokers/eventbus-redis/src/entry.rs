//! Entries of streams, as the server hands them over.

use crate::place::Place;
use redis::Value;

/// An entry: its place, and the names and values of its fields.
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The entries of one stream (`XRANGE`, `XCLAIM`). What is none is left out, such as an entry that was removed.
pub(crate) fn entries(answer: Value) -> Vec<Entry> {
    let Value::Array(entries) = answer else { return Vec::new() };
    entries.into_iter().filter_map(entry).collect()
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Array(parts) = value else { return None };
    let [place, Value::Array(texts)] = <[Value; 2]>::try_from(parts).ok()? else { return None };
    let place = place_of(&place)?;
    let mut fields = Vec::with_capacity(texts.len() / 2);
    let mut texts = texts.into_iter();
    while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
        fields.push((bytes(name)?, bytes(value)?));
    }
    Some(Entry { place, fields })
}

/// The entries of several streams (`XREAD`, `XREADGROUP`), each with the name of its stream.
pub(crate) fn streams(answer: Value) -> Vec<(Vec<u8>, Vec<Entry>)> {
    let Value::Array(streams) = answer else { return Vec::new() };
    let stream = |value| {
        let Value::Array(parts) = value else { return None };
        let [name, found] = <[Value; 2]>::try_from(parts).ok()?;
        Some((bytes(name)?, entries(found)))
    };
    streams.into_iter().filter_map(stream).collect()
}

/// A delivery that is not settled (`XPENDING` with a range).
pub(crate) struct Pending {
    pub(crate) place: Place,
    pub(crate) consumer: String,
}

pub(crate) fn pending(answer: Value) -> Vec<Pending> {
    let Value::Array(rows) = answer else { return Vec::new() };
    let row = |value| {
        let Value::Array(parts) = value else { return None };
        let [place, consumer, _idle, _count] = <[Value; 4]>::try_from(parts).ok()?;
        Some(Pending { place: place_of(&place)?, consumer: text(consumer)? })
    };
    rows.into_iter().filter_map(row).collect()
}

pub(crate) fn place_of(value: &Value) -> Option<Place> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        Value::SimpleString(text) => text.parse().ok(),
        _ => None,
    }
}

pub(crate) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        Value::Okay => Some(b"OK".to_vec()),
        Value::Int(number) => Some(number.to_string().into_bytes()),
        _ => None,
    }
}

pub(crate) fn text(value: Value) -> Option<String> {
    String::from_utf8(bytes(value)?).ok()
}

/// The parts of a list.
pub(crate) fn list(value: Value) -> Vec<Value> {
    if let Value::Array(parts) = value { parts } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn entries_are_read_and_what_is_none_is_left_out() {
        let good =
            Value::Array(vec![bulk("5-1"), Value::Array(vec![bulk("a"), bulk("1"), bulk("b"), bulk("2")])]);
        let gone = Value::Array(vec![bulk("5-2"), Value::Nil]);
        let answer = Value::Array(vec![Value::Array(vec![
            bulk("stream"),
            Value::Array(vec![good, gone, Value::Nil, Value::Int(3)]),
        ])]);
        let read = streams(answer);
        assert_eq!((read.len(), read[0].1.len()), (1, 1));
        let entry = &read[0].1[0];
        assert_eq!((entry.place, entry.fields.len()), (Place { millis: 5, number: 1 }, 2));
        assert!(streams(Value::Nil).is_empty() && pending(Value::Okay).is_empty());
    }
}

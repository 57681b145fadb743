//! How texts, times and numbers are written for people.

pub(crate) use eventbus_core::counted::{count, counted};
use eventbus_core::printable::printable;
use jiff::Timestamp;

/// The text of many lines, fit for a terminal line by line.
pub(crate) fn printable_lines(text: &str) -> String {
    text.lines().map(|line| printable(line).to_string()).collect::<Vec<_>>().join("\n")
}

/// A time to the millisecond, in a form that `--since` takes.
pub(crate) fn time(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// How long ago a time was, in its largest unit.
pub(crate) fn ago(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(time.as_second());
    match seconds {
        ..0 => "in the future".to_owned(),
        0..60 => format!("{seconds}s ago"),
        60..3_600 => format!("{}m ago", seconds / 60),
        3_600..86_400 => format!("{}h ago", seconds / 3_600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The bytes in base64 (RFC 4648, with padding).
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}

/// The bytes behind a base64 text, whose padding may be missing; none for another text.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let (padding, left) = (text.len() - digits.len(), digits.len() % 4);
    if left == 1 || (padding > 0 && (padding > 2 || !text.len().is_multiple_of(4))) {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.as_bytes().chunks(4) {
        let mut bits = 0;
        for digit in chunk {
            let value = ALPHABET.iter().position(|letter| letter == digit)?;
            bits = bits << 6 | u32::try_from(value).ok()?;
        }
        let whole = (bits << (6 * (4 - chunk.len()))).to_be_bytes();
        bytes.extend(&whole[1..chunk.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_many_lines_keeps_its_lines() {
        assert_eq!(printable_lines("{\n  \u{7}\r\n}"), "{\n  \\u{7}\n}");
    }

    #[test]
    fn times_are_written_for_people() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(ago(at(0), at(59)), "59s ago");
        assert_eq!(ago(at(0), at(7_200)), "2h ago");
        assert_eq!(ago(at(0), at(200_000)), "2d ago");
    }

    #[test]
    fn bytes_are_written_in_base64_and_read_back() {
        // The vectors of RFC 4648, section 10.
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()));
            assert_eq!(from_base64(text.trim_end_matches('=')).as_deref(), Some(bytes.as_bytes()));
        }
        for text in ["Z", "Zg=", "Zg===", "Zm9vY", "Zm 9", "-_==", "Z=g="] {
            assert_eq!(from_base64(text), None, "{text}");
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}

//! Percent-encoding of attributes, as the bindings of
//! [HTTP](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md#3132-http-header-values)
//! and NATS ask for it.

use std::borrow::Cow;
use std::fmt::Write;

/// The text in printable ASCII: a space, a double quote, a percent sign, and every byte beyond `!` to `~` are encoded.
///
/// ```
/// use eventbus_server::cloudevents::percent_encode;
/// assert_eq!(percent_encode("Zoë 50%"), "Zo%C3%AB%2050%25");
/// ```
#[must_use]
pub fn percent_encode(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| matches!(byte, b'!'..=b'~') && byte != b'"' && byte != b'%';
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if is_plain(byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a text takes what is written to it");
        }
    }
    Cow::Owned(encoded)
}

/// The text that was encoded so. What is no encoding stands for itself, and so does the whole text where it would not be
/// UTF-8: a program that does not encode is understood too.
///
/// ```
/// use eventbus_server::cloudevents::percent_decode;
/// assert_eq!(percent_decode("Zo%c3%ab%2050%25"), "Zoë 50%");
/// assert_eq!(percent_decode("100%"), "100%");
/// ```
#[must_use]
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    String::from_utf8(percent_bytes(text)).map_or(Cow::Borrowed(text), Cow::Owned)
}

/// The bytes that a text stands for once its percent-encoding is undone.
pub(crate) fn percent_bytes(text: &str) -> Vec<u8> {
    let (bytes, mut decoded, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let digit = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (*byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::tests_support::any_text;

    #[test]
    fn any_text_becomes_printable_ascii_and_comes_back() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..5_000 {
            let text = any_text(&mut random);
            let encoded = percent_encode(&text);
            assert!(encoded.bytes().all(|byte| matches!(byte, b'!'..=b'~')), "{encoded:?}");
            assert_eq!(percent_decode(&encoded), text);
        }
    }

    #[test]
    fn what_is_no_encoding_stands_for_itself() {
        for text in ["%", "%4", "%zz", "a%", "%ff", "é%"] {
            assert_eq!(percent_decode(text), text);
        }
        assert_eq!(percent_decode("%41%"), "A%");
    }
}

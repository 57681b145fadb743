//! A text that can be composed at compile time, for messages of `panic!` in a `const`.

/// A text of at most [`Text::CAPACITY`] bytes; what does not fit is cut off.
///
/// ```
/// use eventbus_grammar::Text;
///
/// const MESSAGE: Text = Text::new().push("no topic ").push_quoted("order.plcaed");
/// assert_eq!(MESSAGE.as_str(), r#"no topic "order.plcaed""#);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Text {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Text {
    /// The longest text, in bytes: enough for a sentence with two topics in it.
    pub const CAPACITY: usize = 768;

    /// An empty text.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY], len: 0 }
    }

    /// The text so far.
    pub const fn as_str(&self) -> &str {
        match str::from_utf8(self.bytes.split_at(self.len).0) {
            Ok(text) => text,
            Err(_) => unreachable!(),
        }
    }

    /// Appends `text`.
    #[must_use]
    pub const fn push(self, text: &str) -> Self {
        self.push_range(text, 0, text.len())
    }

    /// Appends `text` between double quotes.
    #[must_use]
    pub const fn push_quoted(self, text: &str) -> Self {
        self.push("\"").push(text).push("\"")
    }

    /// Appends `number` in decimal digits.
    #[must_use]
    pub const fn push_number(mut self, number: usize) -> Self {
        if number >= 10 {
            self = self.push_number(number / 10);
        }
        self.push_byte(b'0' + (number % 10) as u8)
    }

    /// Appends one ASCII character.
    #[must_use]
    pub const fn push_byte(mut self, byte: u8) -> Self {
        if self.len < Self::CAPACITY && byte.is_ascii() {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        self
    }

    /// Appends the character of `text` that starts at byte `at`.
    #[must_use]
    pub(crate) const fn push_char_at(self, text: &str, at: usize) -> Self {
        let mut end = at + 1;
        while !text.is_char_boundary(end) {
            end += 1;
        }
        self.push_range(text, at, end)
    }

    /// Appends the segment of the topic `text` that starts at byte `at`.
    #[must_use]
    pub(crate) const fn push_segment_at(self, text: &str, at: usize) -> Self {
        let mut end = at;
        while end < text.len() && text.as_bytes()[end] != b'.' {
            end += 1;
        }
        self.push_range(text, at, end)
    }

    const fn push_range(mut self, text: &str, start: usize, mut end: usize) -> Self {
        let room = Self::CAPACITY - self.len;
        if end - start > room {
            end = start + room;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
        }
        let mut at = start;
        while at < end {
            self.bytes[self.len] = text.as_bytes()[at];
            self.len += 1;
            at += 1;
        }
        self
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters() {
        let text = Text::new().push("a").push(&"é".repeat(Text::CAPACITY));
        assert_eq!(text.as_str().len(), Text::CAPACITY - 1);
        assert!(text.as_str().ends_with('é'));
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        assert_eq!(Text::new().push_number(0).push(" ").push_number(1_249).as_str(), "0 1249");
    }
}

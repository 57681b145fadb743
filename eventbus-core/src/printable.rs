//! Text of others, made fit for a line of a log or of a terminal.
//!
//! Reasons, panics, keys, ids, sources, header values and errors hold what somebody else wrote. A line feed in one
//! would begin a line that the program never wrote, and an escape sequence would be an order to the terminal. So every
//! line that is written passes what it quotes through [`printable`]. What is kept, sent or handed over stays as it is.

use std::fmt::{self, Write};

/// The text, with every character that a terminal obeys or hides written out (`\n`, `\u{1b}`).
///
/// ```
/// # use eventbus_core::printable::printable;
/// assert_eq!(printable("naïve 日本").to_string(), "naïve 日本");
/// assert_eq!(printable("gone\n\u{1b}[2J").to_string(), "gone\\n\\u{1b}[2J");
/// ```
pub fn printable<T: fmt::Display>(text: T) -> Printable<T> {
    Printable(text)
}

/// What [`printable`] returns.
#[derive(Clone, Copy)]
pub struct Printable<T>(T);

impl<T: fmt::Display> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

impl<T: fmt::Display> fmt::Debug for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a terminal obeys or hides the character: control characters (C0, DEL and C1, which begin escape sequences),
/// line separators, and what turns the direction of writing around or takes no room.
#[must_use]
pub fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Hands text on in pieces as long as possible; most text is one piece.
struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return self.0.write_str(text);
        }
        let mut written = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| is_hostile(*c)) {
            self.0.write_str(&text[written..at])?;
            match c {
                '\n' => self.0.write_str("\\n")?,
                '\r' => self.0.write_str("\\r")?,
                '\t' => self.0.write_str("\\t")?,
                c => write!(self.0, "{}", c.escape_unicode())?,
            }
            written = at + c.len_utf8();
        }
        self.0.write_str(&text[written..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_or_hides_is_written_out() {
        let hostile = "\0\u{1b}[2Ja\u{9b}2Jb\u{7f}c\u{202e}d\u{2066}e\u{2028}f\u{e0041}";
        let written = r"\u{0}\u{1b}[2Ja\u{9b}2Jb\u{7f}c\u{202e}d\u{2066}e\u{2028}f\u{e0041}";
        assert_eq!(printable(hostile).to_string(), written);
        assert_eq!(printable("\r\n\tend\n").to_string(), r"\r\n\tend\n");
        assert_eq!(format!("{:?}", printable("a\nb")), r"a\nb");
    }

    #[test]
    fn no_character_that_is_hostile_is_left_and_no_other_is_changed() {
        for c in (0..=u32::from(char::MAX)).filter_map(char::from_u32) {
            let text = format!("<{c}>");
            let written = printable(&text).to_string();
            assert_eq!(written == text, !is_hostile(c), "{:x}", u32::from(c));
            assert!(!written.chars().any(is_hostile), "{:x}", u32::from(c));
        }
    }

    #[test]
    fn what_was_written_out_is_not_written_out_again() {
        let once = printable("a\nb\u{1b}").to_string();
        assert_eq!(printable(&once).to_string(), once);
    }
}

//! JSON to the letter: payloads are shown and passed on without reading a number or a key anew.

use eventbus_core::media_type;
use eventbus_core::printable::is_hostile;
use serde::de::IgnoredAny;
use std::fmt::Write;
use std::io::{self, BufRead, Cursor, Read};

/// Whether a payload of this media type is JSON. Without a type, CloudEvents takes it for JSON.
pub(crate) fn is_json(content_type: &str) -> bool {
    content_type.trim().is_empty() || media_type::is_json(content_type)
}

/// Checks that the bytes are one JSON value.
pub(crate) fn check(bytes: &[u8]) -> Result<&str, serde_json::Error> {
    serde_json::from_slice::<IgnoredAny>(bytes)?;
    // Whatever passes is UTF-8, but for what stands in strings that nobody looked at.
    std::str::from_utf8(bytes).map_err(serde::de::Error::custom)
}

/// A text that is to be JSON, without the mark that editors and shells of Windows put before it.
///
/// # Errors
/// Where the mark is that of UTF-16, in which they write as well.
pub(crate) fn unmarked(mut text: impl BufRead + 'static) -> io::Result<Box<dyn BufRead>> {
    const MARKS: [&[u8]; 3] = ["\u{feff}".as_bytes(), b"\xff\xfe", b"\xfe\xff"];
    let (mut first, mut byte) = (Vec::new(), [0]);
    // No further than it may be one: whoever writes the text may take its time.
    while MARKS.iter().any(|mark| mark.starts_with(&first) && mark.len() > first.len())
        && text.read_exact(&mut byte).is_ok()
    {
        first.extend(byte);
    }
    match MARKS.iter().position(|mark| *mark == first) {
        Some(0) => Ok(Box::new(text)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is in UTF-16, and JSON is in UTF-8")),
        None => Ok(Box::new(Cursor::new(first).chain(text))),
    }
}

/// The value in one line, without room between its parts; none for what is not JSON.
pub(crate) fn compact(bytes: &[u8]) -> Option<String> {
    check(bytes).ok().map(|text| rewrite(text, None))
}

/// The value in lines, indented by its depth; none for what is not JSON.
pub(crate) fn pretty(bytes: &[u8]) -> Option<String> {
    check(bytes).ok().map(|text| rewrite(text, Some("  ")))
}

fn rewrite(json: &str, indent: Option<&str>) -> String {
    let mut into = String::with_capacity(json.len());
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    let line = |into: &mut String, depth: usize| {
        if let Some(indent) = indent {
            into.push('\n');
            into.extend(std::iter::repeat_n(indent, depth));
        }
    };
    let mut all = json.chars();
    while let Some(c) = all.next() {
        if in_string {
            push(&mut into, c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        if c.is_ascii_whitespace() {
            continue;
        }
        match c {
            '{' | '[' => {
                into.push(c);
                let close = all.clone().find(|c| !c.is_ascii_whitespace());
                if matches!(close, Some('}' | ']')) {
                    into.extend(close);
                    while all.next().is_some_and(|c| c.is_ascii_whitespace()) {}
                } else {
                    depth += 1;
                    line(&mut into, depth);
                }
            }
            '}' | ']' => {
                depth -= 1;
                line(&mut into, depth);
                into.push(c);
            }
            ',' => {
                into.push(c);
                line(&mut into, depth);
            }
            ':' => into.push_str(if indent.is_some() { ": " } else { ":" }),
            c => {
                in_string = c == '"';
                into.push(c);
            }
        }
    }
    into
}

/// Writes a character of a string; what a terminal obeys is written as an escape, which is the same JSON.
fn push(into: &mut String, c: char) {
    if is_hostile(c) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(into, "\\u{unit:04x}");
        }
    } else {
        into.push(c);
    }
}

/// An object that is written in one line, with its members in the order in which they were set.
#[derive(Debug, Default)]
pub(crate) struct Object(String);

impl Object {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Sets a member to a JSON text.
    pub(crate) fn raw(mut self, name: &str, json: &str) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&string(name));
        self.0.push(':');
        self.0.push_str(json);
        self
    }

    pub(crate) fn text(self, name: &str, text: impl AsRef<str>) -> Self {
        let json = string(text.as_ref());
        self.raw(name, &json)
    }

    /// A text where there is one, otherwise `null`.
    pub(crate) fn optional(self, name: &str, text: Option<impl AsRef<str>>) -> Self {
        match text {
            Some(text) => self.text(name, text),
            None => self.raw(name, "null"),
        }
    }

    pub(crate) fn number(self, name: &str, number: impl Into<u64>) -> Self {
        self.raw(name, &number.into().to_string())
    }

    pub(crate) fn flag(self, name: &str, flag: bool) -> Self {
        self.raw(name, if flag { "true" } else { "false" })
    }

    pub(crate) fn object(self, name: &str, object: Self) -> Self {
        self.raw(name, &object.finish())
    }

    pub(crate) fn list(self, name: &str, items: impl IntoIterator<Item = String>) -> Self {
        let items: Vec<_> = items.into_iter().collect();
        self.raw(name, &format!("[{}]", items.join(",")))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn finish(self) -> String {
        format!("{{{}}}", self.0)
    }
}

/// A text as a JSON string.
pub(crate) fn string(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    rewrite(&json, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_letters_and_loses_its_room() {
        let json = br#" { "b" : [ 1.0000000000000000000001 , { } , [ ] ], "a" : "x \" { , \\" } "#;
        assert_eq!(compact(json).unwrap(), r#"{"b":[1.0000000000000000000001,{},[]],"a":"x \" { , \\"}"#);
        let lines = "{\n  \"b\": [\n    1.0000000000000000000001,\n    {},\n    []\n  ],\n  \"a\": \"x \\\" { , \\\\\"\n}";
        assert_eq!(pretty(json).unwrap(), lines);
        assert_eq!(compact(pretty(json).unwrap().as_bytes()), compact(json));
    }

    #[test]
    fn what_is_not_json_is_none() {
        for bytes in [&b"{"[..], b"", b"{} {}", b"\"\xff\"", b"'a'"] {
            assert_eq!(compact(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn json_holds_nothing_that_a_terminal_obeys() {
        let text = "\u{1b}[2J\u{9b}2J\u{202e}\u{e0041}\"";
        let json = Object::new().text("text", text).finish();
        assert!(!json.chars().any(is_hostile), "{json:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["text"], text);
        assert!(!compact("\"\u{9b}\"".as_bytes()).unwrap().chars().any(is_hostile));
    }

    #[test]
    fn json_is_told_by_its_media_type() {
        for json in
            ["", "application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json"]
        {
            assert!(is_json(json), "{json}");
        }
        assert!(!is_json("text/plain") && !is_json("application/jsonish"));
    }

    #[test]
    fn a_mark_before_a_text_is_no_part_of_it_and_what_is_like_one_is() {
        for (text, read) in [
            (&b"\xef\xbb\xbf{}"[..], &b"{}"[..]),
            (b"\xef\xbb\xbf\xef\xbb\xbf{}", b"\xef\xbb\xbf{}"),
            (b"\xef\xbb", b"\xef\xbb"),
            (b"\xff", b"\xff"),
            (b"{}", b"{}"),
            (b"", b""),
        ] {
            let mut rest = Vec::new();
            unmarked(text).unwrap().read_to_end(&mut rest).unwrap();
            assert_eq!(rest, read);
        }
        assert!(unmarked(&b"\xff\xfe{\0}\0"[..]).is_err() && unmarked(&b"\xfe\xff\0{\0}"[..]).is_err());
    }
}

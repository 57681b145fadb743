//! Topics and patterns: what may be written, and which topics a pattern covers.
//!
//! A topic is segments of `[A-Za-z0-9_-]` joined by `.`; a pattern may also hold `*` (one whole segment) and a
//! final `>` (one or more segments), the wildcards of NATS. All brokers can carry such names unchanged; the
//! length limit is Kafka's.

use crate::text::Text;

/// The longest topic, in bytes.
pub const MAX_LEN: usize = 249;

/// What is wrong with a topic or a pattern; [`TopicFault::explain`] says it in a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicFault {
    /// The text is empty.
    Empty,
    /// The text has this many bytes, more than [`MAX_LEN`].
    TooLong(usize),
    /// A segment is empty: a dot stands first, last, or beside another dot.
    EmptySegment,
    /// The byte at this position is not allowed.
    Character(usize),
    /// The segment that starts at this position mixes a wildcard with text.
    MixedWildcard(usize),
    /// A `>` stands before the last segment.
    EarlyTail,
    /// A wildcard stands in a topic, where only a pattern may have one.
    Wildcard(u8),
}

impl TopicFault {
    /// One sentence: what is wrong with `text`, and what is allowed instead.
    pub const fn explain(self, text: &str) -> Text {
        match self {
            Self::Empty => Text::new().push("a topic cannot be empty; write one like \"order.placed\""),
            Self::TooLong(len) => Text::new()
                .push("this topic has ")
                .push_number(len)
                .push(" bytes; the limit is ")
                .push_number(MAX_LEN)
                .push(", the longest that every broker accepts"),
            Self::EmptySegment => Text::new()
                .push_quoted(text)
                .push(" has an empty segment; segments are [A-Za-z0-9_-]+, joined by single dots"),
            Self::Character(at) => Text::new()
                .push("`")
                .push_char_at(text, at)
                .push("` cannot be in a topic; segments are [A-Za-z0-9_-]+, joined by `.`"),
            Self::MixedWildcard(at) => Text::new()
                .push("a wildcard stands for whole segments, and `")
                .push_segment_at(text, at)
                .push("` mixes one with text; write `*` for one segment, or a final `>` for one or more"),
            Self::EarlyTail => Text::new().push(
                "`>` stands for all remaining segments, so it must be the last; `*` stands for one segment",
            ),
            Self::Wildcard(wildcard) => Text::new()
                .push("`")
                .push_byte(wildcard)
                .push("` is a wildcard, which belongs in `#[subscribe]`; an event has one exact topic"),
        }
    }
}

/// Checks a topic: the address of an event, without wildcards.
///
/// # Errors
/// The first fault, from the left.
pub const fn check_topic(topic: &str) -> Result<(), TopicFault> {
    match check_pattern(topic) {
        Ok(()) => {}
        Err(fault) => return Err(fault),
    }
    let bytes = topic.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if matches!(bytes[at], b'*' | b'>') {
            return Err(TopicFault::Wildcard(bytes[at]));
        }
        at += 1;
    }
    Ok(())
}

/// Checks a pattern: a topic that may hold wildcards.
///
/// # Errors
/// The first fault, from the left.
pub const fn check_pattern(pattern: &str) -> Result<(), TopicFault> {
    let bytes = pattern.as_bytes();
    if bytes.is_empty() {
        return Err(TopicFault::Empty);
    }
    if bytes.len() > MAX_LEN {
        return Err(TopicFault::TooLong(bytes.len()));
    }
    let mut start = 0;
    loop {
        let end = segment_end(bytes, start);
        match check_segment(bytes, start, end) {
            Ok(()) => {}
            Err(fault) => return Err(fault),
        }
        if end == bytes.len() {
            return Ok(());
        }
        start = end + 1;
    }
}

const fn check_segment(bytes: &[u8], start: usize, end: usize) -> Result<(), TopicFault> {
    if start == end {
        return Err(TopicFault::EmptySegment);
    }
    let mut at = start;
    while at < end {
        match bytes[at] {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => {}
            b'*' | b'>' if end - start > 1 => return Err(TopicFault::MixedWildcard(start)),
            b'*' => {}
            b'>' if end < bytes.len() => return Err(TopicFault::EarlyTail),
            b'>' => {}
            _ => return Err(TopicFault::Character(at)),
        }
        at += 1;
    }
    Ok(())
}

/// Whether `pattern` covers `topic`. Both must be well-formed.
pub const fn matches(pattern: &str, topic: &str) -> bool {
    let (pattern, topic) = (pattern.as_bytes(), topic.as_bytes());
    let (mut at, mut of) = (0, 0);
    loop {
        let (end, topic_end) = (segment_end(pattern, at), segment_end(topic, of));
        if is_wildcard(pattern, at, end, b'>') {
            return true;
        }
        if !is_wildcard(pattern, at, end, b'*') && !same(pattern, at, end, topic, of, topic_end) {
            return false;
        }
        match (end == pattern.len(), topic_end == topic.len()) {
            (true, true) => return true,
            (false, false) => (at, of) = (end + 1, topic_end + 1),
            _ => return false,
        }
    }
}

/// Whether some topic is covered by both patterns. Both must be well-formed.
pub const fn overlap(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let (mut at, mut of) = (0, 0);
    loop {
        let (end, right_end) = (segment_end(left, at), segment_end(right, of));
        if is_wildcard(left, at, end, b'>') || is_wildcard(right, of, right_end, b'>') {
            return true;
        }
        let free = is_wildcard(left, at, end, b'*') || is_wildcard(right, of, right_end, b'*');
        if !free && !same(left, at, end, right, of, right_end) {
            return false;
        }
        match (end == left.len(), right_end == right.len()) {
            (true, true) => return true,
            (false, false) => (at, of) = (end + 1, right_end + 1),
            _ => return false,
        }
    }
}

const fn segment_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    while at < bytes.len() && bytes[at] != b'.' {
        at += 1;
    }
    at
}

const fn is_wildcard(bytes: &[u8], start: usize, end: usize, wildcard: u8) -> bool {
    end - start == 1 && bytes[start] == wildcard
}

const fn same(left: &[u8], start: usize, end: usize, right: &[u8], of: usize, right_end: usize) -> bool {
    if end - start != right_end - of {
        return false;
    }
    let mut at = 0;
    while at < end - start {
        if left[start + at] != right[of + at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_topics_are_accepted() {
        for topic in ["a", "order.placed", "Order_1.placed-now", &"x".repeat(MAX_LEN)] {
            assert_eq!(check_topic(topic), Ok(()), "{topic}");
        }
    }

    #[test]
    fn each_fault_is_named() {
        for (text, fault) in [
            ("", TopicFault::Empty),
            (".a", TopicFault::EmptySegment),
            ("a.", TopicFault::EmptySegment),
            ("a..b", TopicFault::EmptySegment),
            ("a b", TopicFault::Character(1)),
            ("café", TopicFault::Character(3)),
            ("order.pla*", TopicFault::MixedWildcard(6)),
            ("order.>.x", TopicFault::EarlyTail),
        ] {
            assert_eq!(check_pattern(text), Err(fault), "{text}");
        }
        assert_eq!(check_topic("order.*"), Err(TopicFault::Wildcard(b'*')));
        assert_eq!(check_topic(&"x".repeat(MAX_LEN + 1)), Err(TopicFault::TooLong(MAX_LEN + 1)));
    }

    #[test]
    fn explanations_quote_the_culprit() {
        let explain = |text: &str| check_pattern(text).unwrap_err().explain(text).as_str().to_owned();
        assert!(explain("café").starts_with("`é` cannot be in a topic"));
        assert!(explain("order.pla*.x").contains("`pla*` mixes"));
        assert!(explain("order..x").starts_with("\"order..x\" has an empty segment"));
    }

    /// The plain recursive definition of a match, to hold the loop against.
    fn oracle(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            (["*", pattern @ ..], [_, topic @ ..]) => oracle(pattern, topic),
            ([segment, pattern @ ..], [other, topic @ ..]) => segment == other && oracle(pattern, topic),
            _ => false,
        }
    }

    fn every(words: &[&'static str], length: usize) -> Vec<Vec<&'static str>> {
        let mut all = vec![vec![]];
        let mut last = all.clone();
        for _ in 0..length {
            last = last
                .iter()
                .flat_map(|prefix| words.iter().map(move |word| [prefix.as_slice(), &[*word]].concat()))
                .collect();
            all.extend(last.iter().cloned());
        }
        all.retain(|segments| !segments.is_empty());
        all
    }

    #[test]
    fn matching_and_overlap_agree_with_their_definitions_on_every_small_case() {
        let topics = every(&["a", "b", "ab"], 4);
        let mut patterns = every(&["a", "b", "*", ">"], 4);
        patterns.retain(|segments| check_pattern(&segments.join(".")).is_ok());
        let mut covers = Vec::new();
        for pattern in &patterns {
            let joined = pattern.join(".");
            covers.push(topics.iter().map(|topic| oracle(pattern, topic)).collect::<Vec<_>>());
            for (topic, expected) in topics.iter().zip(covers.last().unwrap()) {
                assert_eq!(matches(&joined, &topic.join(".")), *expected, "{joined} ~ {topic:?}");
            }
        }
        for (left, of_left) in patterns.iter().zip(&covers) {
            for (right, of_right) in patterns.iter().zip(&covers) {
                let common = of_left.iter().zip(of_right).any(|(left, right)| *left && *right);
                assert_eq!(overlap(&left.join("."), &right.join(".")), common, "{left:?} ~ {right:?}");
            }
        }
    }
}

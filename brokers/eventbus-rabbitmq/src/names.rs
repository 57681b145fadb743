//! What queues are called. Pure functions.

use eventbus_core::Pattern;
use std::fmt::Write;

/// The longest name that AMQP knows.
const LONGEST: usize = 255;

/// What the names of a bus begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names(pub(crate) String);

impl Names {
    /// The queue of a group on a pattern.
    pub(crate) fn group(&self, group: &str, pattern: &Pattern) -> String {
        bounded(format!("{}:group:{}:{}", self.0, word(group), pattern.as_str()), &[group, pattern.as_str()])
    }

    /// The queue of a group's dead letters.
    pub(crate) fn dead(&self, group: &str) -> String {
        bounded(format!("{}:dead-letters:{}", self.0, word(group)), &[group])
    }

    /// The queue in which what is to come to another queue in so many seconds waits.
    pub(crate) fn delay(&self, queue: &str, seconds: u64) -> String {
        bounded(format!("{}:delay:{seconds}s:{}", self.0, word(queue)), &[queue, &seconds.to_string()])
    }

    /// The stream that keeps every event.
    pub(crate) fn events(&self) -> String {
        format!("{}:events", self.0)
    }

    /// The stream that says which groups there are.
    pub(crate) fn groups(&self) -> String {
        format!("{}:groups", self.0)
    }
}

/// What `binding` is to the matcher of a topic exchange: there `#` stands for any number of words, also for none.
pub(crate) fn binding(pattern: &Pattern) -> String {
    match pattern.as_str().strip_suffix('>') {
        Some(before) => format!("{before}*.#"),
        None => pattern.as_str().to_owned(),
    }
}

/// A text without what parts the words of a name.
fn word(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut word, letter| {
        if matches!(letter, ':' | '%') || letter.is_control() {
            write!(word, "%{:02X}", letter as u32).expect("a text takes what is written");
        } else {
            word.push(letter);
        }
        word
    })
}

/// The name, or as much of it as fits with a hash of what it is about.
fn bounded(mut name: String, about: &[&str]) -> String {
    if name.len() > LONGEST {
        let end = (0..=LONGEST - 17).rev().find(|at| name.is_char_boundary(*at)).unwrap_or_default();
        name.truncate(end);
        write!(name, "#{:016x}", hash(about)).expect("a text takes what is written");
    }
    name
}

/// FNV-1a over texts that are kept apart.
pub(crate) fn hash(texts: &[&str]) -> u64 {
    fnv(texts.iter().flat_map(|text| text.bytes().chain([0xff])))
}

/// The same over bytes.
pub(crate) fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let bytes = bytes.into_iter();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text).unwrap()
    }

    /// The matcher of a topic exchange, as its makers describe it.
    fn matches(binding: &[&str], key: &[&str]) -> bool {
        match (binding, key) {
            ([], []) => true,
            (["#", rest @ ..], _) => matches(rest, key) || (!key.is_empty() && matches(binding, &key[1..])),
            (["*", rest @ ..], [_, left @ ..]) => matches(rest, left),
            ([word, rest @ ..], [first, left @ ..]) => word == first && matches(rest, left),
            _ => false,
        }
    }

    #[test]
    fn a_binding_takes_what_its_pattern_takes() {
        for of in ["order.placed", "order.*", "order.>", "*.placed", ">", "*.*.>", "order.*.paid"] {
            for topic in ["order", "order.placed", "order.placed.twice", "order.x.paid", "a.b.c.d", "a"] {
                let (binding, of) = (binding(&pattern(of)), pattern(of));
                let (words, key): (Vec<_>, Vec<_>) =
                    (binding.split('.').collect(), topic.split('.').collect());
                assert_eq!(matches(&words, &key), of.matches(topic), "{binding} {topic}");
            }
        }
    }

    #[test]
    fn names_differ_where_what_they_name_differs_and_are_never_too_long() {
        let names = Names("eventbus".to_owned());
        assert_eq!(names.group("shop.mail", &pattern("order.>")), "eventbus:group:shop.mail:order.>");
        assert_eq!(names.dead("shop.mail"), "eventbus:dead-letters:shop.mail");
        let groups =
            ["a", "b", "a:b", "a%3Ab", "größer", &"g".repeat(300), &"g".repeat(301), &"日".repeat(200)];
        let patterns = ["a", "a.b", "b.>", &"p".repeat(249)];
        let all: Vec<_> = groups
            .iter()
            .flat_map(|group| {
                patterns.iter().map(|on| names.group(group, &pattern(on))).chain([names.dead(group)])
            })
            .collect();
        assert!(all.iter().all(|name| name.len() <= LONGEST), "{all:?}");
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "{all:?}");
    }
}

//! Names of topics and queues: what SNS and SQS call what has names of its own here. Pure functions.

use eventbus_core::{Pattern, Topic};

/// The longest name of a topic of SNS, and of a queue of SQS.
const LONGEST_TOPIC: usize = 256;
const LONGEST_QUEUE: usize = 80;
/// What ends the names of FIFO topics and queues, which Amazon asks for.
const FIFO: &str = ".fifo";

/// How topics and queues are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// What stands before each.
    pub(crate) prefix: String,
    pub(crate) fifo: bool,
}

/// What a queue is for, which is a part of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The events of a group on one topic.
    Group,
    /// Those on a pattern with wildcards: whoever makes a topic looks for these.
    Any,
    /// The dead letters of a group.
    Dead,
}

impl Role {
    const fn word(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Any => "any",
            Self::Dead => "dead",
        }
    }
}

impl Names {
    const fn suffix(&self) -> &'static str {
        if self.fifo { FIFO } else { "" }
    }

    /// The name of a topic: dots are `-`, and what would be mistaken for one has `_` before it. None, where it is too long.
    pub(crate) fn topic(&self, topic: &str) -> Option<String> {
        let mut name = format!("{}-", self.prefix);
        for letter in topic.chars() {
            match letter {
                '.' => name.push('-'),
                '-' | '_' => name.extend(['_', letter]),
                other => name.push(other),
            }
        }
        name.push_str(self.suffix());
        (name.len() <= LONGEST_TOPIC).then_some(name)
    }

    /// The topic that has this name; none, where it is none of ours.
    pub(crate) fn topic_of(&self, name: &str) -> Option<Topic> {
        let rest = name.strip_prefix(&self.prefix)?.strip_prefix('-')?;
        let rest = if self.fifo { rest.strip_suffix(FIFO)? } else { rest };
        let (mut topic, mut letters) = (String::with_capacity(rest.len()), rest.chars());
        while let Some(letter) = letters.next() {
            topic.push(match letter {
                '-' => '.',
                '_' => letters.next().filter(|escaped| matches!(escaped, '-' | '_'))?,
                other => other,
            });
        }
        Topic::new(topic).ok()
    }

    /// What begins the names of all queues of a role.
    pub(crate) fn queues(&self, role: Role) -> String {
        format!("{}-{}-", self.prefix, role.word())
    }

    /// The name of the queue of a group on a pattern.
    pub(crate) fn queue(&self, group: &str, pattern: &Pattern) -> String {
        let role = if pattern.is_exact() { Role::Group } else { Role::Any };
        self.named(role, group, Some(pattern.as_str()), self.suffix())
    }

    /// The name of the queue of a group's dead letters. It needs no order, so it is a standard queue.
    pub(crate) fn dead(&self, group: &str) -> String {
        self.named(Role::Dead, group, Some(self.suffix()), "")
    }

    fn named(&self, role: Role, group: &str, of: Option<&str>, suffix: &str) -> String {
        let hash = hash(&[group, of.unwrap_or_default()]);
        let begin = self.queues(role);
        // People look for the group; the hash tells apart what is cut off.
        let room = LONGEST_QUEUE.saturating_sub(begin.len() + 1 + 16 + suffix.len());
        let plain = |letter: char| if letter.is_ascii_alphanumeric() || letter == '_' { letter } else { '-' };
        let group: String = group.chars().map(plain).take(room).collect();
        format!("{begin}{group}-{hash:016x}{suffix}")
    }
}

/// A pattern as the value of a tag, which has neither `*` nor `>`.
pub(crate) fn tag_of(pattern: &str) -> String {
    pattern.replace('*', "+").replace('>', "@")
}

/// The pattern that a tag stands for.
pub(crate) fn pattern_of(tag: &str) -> Option<Pattern> {
    Pattern::new(tag.replace('+', "*").replace('@', ">")).ok()
}

/// A group as the value of a tag, which takes letters, digits, spaces and `_.:/+-@` only: others are their numbers between
/// `=`.
pub(crate) fn tag_of_group(group: &str) -> String {
    let mut tag = String::with_capacity(group.len());
    for letter in group.chars() {
        if letter.is_alphanumeric() || " _.:/+-@".contains(letter) {
            tag.push(letter);
        } else {
            tag.push_str(&format!("={:x}=", u32::from(letter)));
        }
    }
    tag
}

/// The group that a tag stands for.
pub(crate) fn group_of(tag: &str) -> Option<String> {
    let mut group = String::with_capacity(tag.len());
    for (number, part) in tag.split('=').enumerate() {
        if number % 2 == 0 {
            group.push_str(part);
        } else {
            group.push(char::from_u32(u32::from_str_radix(part, 16).ok()?)?);
        }
    }
    Some(group)
}

/// FNV-1a over texts that are kept apart.
pub(crate) fn hash(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What is behind the last colon of a resource's name, or the last slash of an address.
pub(crate) fn last_part(text: &str) -> &str {
    text.rsplit([':', '/']).next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn names(fifo: bool) -> Names {
        Names { prefix: "shop".to_owned(), fifo }
    }

    #[test]
    fn a_topic_has_a_name_that_people_recognize() {
        assert_eq!(names(false).topic("order.placed").unwrap(), "shop-order-placed");
        assert_eq!(
            names(true).topic("order.card-charged.v_2").unwrap(),
            "shop-order-card_-charged-v__2.fifo"
        );
        assert_eq!(names(false).topic(&"x".repeat(300)), None);
    }

    #[test]
    fn no_two_topics_share_a_name_and_each_is_read_back() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut seen = HashMap::new();
        for _ in 0..20_000 {
            let topic: String =
                (0..random.usize(1..7)).map(|_| random.choice(['a', '-', '_', '.', 'B']).unwrap()).collect();
            if Topic::new(&topic).is_err() {
                continue;
            }
            for fifo in [false, true] {
                let name = names(fifo).topic(&topic).unwrap();
                assert_eq!(names(fifo).topic_of(&name).unwrap().as_str(), topic);
                let other = seen.insert(name, topic.clone());
                assert!(other.is_none_or(|other| other == topic), "{topic}");
            }
        }
        for other in ["other-order", "shop", "shop-", "shop-a_b", "shop-a_", "shop-a..b"] {
            assert_eq!(names(false).topic_of(other), None, "{other}");
        }
        assert_eq!(names(true).topic_of("shop-a"), None);
    }

    #[test]
    fn queues_have_names_that_sqs_takes_and_none_is_used_twice() {
        let long = "a.very-long_group".repeat(12);
        let pattern = |text| Pattern::new(text).unwrap();
        for fifo in [false, true] {
            let names = Names { prefix: "p".repeat(30), fifo };
            let mut all = vec![names.dead("mail"), names.dead(&long)];
            for group in ["mail", "ma.il", "ma-il", &long] {
                all.extend(["order.placed", "order.>", "order.*"].map(|on| names.queue(group, &pattern(on))));
            }
            for name in &all {
                let stem = name.strip_suffix(".fifo").unwrap_or(name);
                let is_plain = stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                assert!(name.len() <= 80 && is_plain, "{name}");
            }
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count);
        }
        let names = names(true);
        assert!(names.queue("mail", &pattern("a.b")).starts_with("shop-group-mail-"));
        assert!(names.queue("mail", &pattern("a.>")).starts_with(&names.queues(Role::Any)));
    }

    #[test]
    fn a_group_comes_back_from_its_tag_which_sqs_takes() {
        for group in ["mail", "shop.charge-card", "größe", "a#b=c (1)%", "=", "\u{1f600}", ""] {
            let tag = tag_of_group(group);
            let is_taken = |letter: char| letter.is_alphanumeric() || " _.:/=+-@".contains(letter);
            assert!(tag.chars().all(is_taken), "{tag}");
            assert_eq!(group_of(&tag).as_deref(), Some(group));
        }
        assert_eq!(group_of("a=zz=b"), None);
    }

    #[test]
    fn a_pattern_comes_back_from_its_tag() {
        for text in ["a.b", "a.*", "*.b.>", ">"] {
            let tag = tag_of(text);
            assert!(!tag.contains(['*', '>']) && pattern_of(&tag).unwrap().as_str() == text);
        }
    }
}

//! Who reads a queue, as its tags say: SQS itself does not know. Each process has a tag there that holds for some minutes, and
//! writes it again while it reads. Pure functions.

use std::collections::HashMap;

/// What the names of these tags begin with.
const TAG: &str = "eventbus-reader-";
/// How many there may be at one queue, which has room for fifty tags. Where more processes read, some share one.
const PLACES: usize = 20;
/// For how many seconds a tag holds. Clocks of machines may be apart by what is left of it when it is written again.
const HOLDS: i64 = 300;
/// After how many seconds it is written again.
pub(crate) const AGAIN: u64 = 120;

/// The tag of one process at one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reader {
    pub(crate) tag: String,
    id: String,
}

impl Reader {
    /// A new one, in a place that nobody has.
    pub(crate) fn among(tags: &HashMap<String, String>, now: i64) -> Self {
        let is_free =
            |place: &usize| tags.get(&format!("{TAG}{place:02}")).is_none_or(|value| until(value) <= now);
        let place = (0..PLACES).find(is_free).unwrap_or_else(|| fastrand::usize(..PLACES));
        Self { tag: format!("{TAG}{place:02}"), id: format!("{:016x}", fastrand::u64(..)) }
    }

    /// What the tag says from now on.
    pub(crate) fn value(&self, now: i64) -> String {
        format!("{} {}", now + HOLDS, self.id)
    }

    /// Whether the tag is still this one's: another process may have taken its place.
    pub(crate) fn is_in(&self, tags: &HashMap<String, String>) -> bool {
        tags.get(&self.tag).is_some_and(|value| value.ends_with(&self.id))
    }
}

/// Whether some process reads the queue with these tags.
pub(crate) fn is_read(tags: &HashMap<String, String>, now: i64) -> bool {
    tags.iter().any(|(tag, value)| tag.starts_with(TAG) && until(value) > now)
}

/// When the latest of those who read the queue has last written its tag, in seconds since 1970; none where all have left.
pub(crate) fn last_read(tags: &HashMap<String, String>) -> Option<i64> {
    let ends = tags.iter().filter(|(tag, _)| tag.starts_with(TAG)).map(|(_, value)| until(value));
    ends.max().filter(|end| *end > 0).map(|end| end - HOLDS)
}

fn until(value: &str) -> i64 {
    value.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_read_while_some_reader_has_written_its_tag_lately() {
        let mut tags = HashMap::from([("eventbus-group".to_owned(), "mail".to_owned())]);
        assert!(!is_read(&tags, 1_000));
        assert_eq!(last_read(&tags), None);
        let first = Reader::among(&tags, 1_000);
        tags.insert(first.tag.clone(), first.value(1_000));
        let second = Reader::among(&tags, 1_100);
        assert_ne!(first.tag, second.tag);
        tags.insert(second.tag.clone(), second.value(1_100));
        assert!(first.is_in(&tags) && second.is_in(&tags));
        tags.remove(&first.tag);
        assert!(!first.is_in(&tags) && is_read(&tags, 1_399) && !is_read(&tags, 1_400));
        assert_eq!(last_read(&tags), Some(1_100));
        let third = Reader::among(&tags, 1_400);
        tags.insert(third.tag.clone(), third.value(1_400));
        assert!(is_read(&tags, 1_400));
    }

    #[test]
    fn there_are_never_more_tags_than_places_and_one_that_was_taken_over_is_no_more_ones_own() {
        let mut tags = HashMap::new();
        let all: Vec<_> = (0..100)
            .map(|_| {
                let reader = Reader::among(&tags, 0);
                tags.insert(reader.tag.clone(), reader.value(0));
                reader
            })
            .collect();
        assert_eq!(tags.len(), PLACES);
        assert_eq!(all.iter().filter(|reader| reader.is_in(&tags)).count(), PLACES);
        let value = tags["eventbus-reader-00"].clone();
        assert!(value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b' '), "SQS takes it: {value}");
        let odd = HashMap::from([("eventbus-reader-00".to_owned(), "odd".to_owned())]);
        assert!(!is_read(&odd, 0) && last_read(&odd).is_none());
    }
}

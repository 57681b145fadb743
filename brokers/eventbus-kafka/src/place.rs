//! Where a record stands, and how that is one number: by time, then by partition, then by offset.

use eventbus_core::broker::Offset;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Where a record stands, for the order of all of them: earlier ones first, and those of one moment by their partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// In milliseconds.
    pub(crate) time: u64,
    /// Of its partition: a hash of 24 bits.
    pub(crate) tag: u32,
    pub(crate) offset: u64,
}

impl Place {
    /// A place before this one, from which on nothing is missed that stands here or behind it.
    pub(crate) fn before(self) -> Self {
        match self.offset.checked_sub(1) {
            Some(offset) => Self { offset, ..self },
            // No place of its partition is before it, so it is one of none.
            None => Self { time: self.time.saturating_sub(1), tag: 0, offset: 0 },
        }
    }
}

impl From<Place> for Offset {
    fn from(place: Place) -> Self {
        Self::of_partition(place.time, place.tag, place.offset)
    }
}

impl From<Offset> for Place {
    fn from(offset: Offset) -> Self {
        // Who writes another number means one before everything that there is.
        let (time, tag, offset) = offset.in_partition().unwrap_or_default();
        Self { time, tag, offset }
    }
}

/// What a partition is called in places.
pub(crate) fn tag_of(topic: &str, partition: i32) -> u32 {
    let hash = hash(topic) ^ u64::from(partition.unsigned_abs()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 40) as u32 ^ (hash as u32 & 0xff_ffff)
}

/// FNV-1a with its bits mixed, the same for every program of ours.
pub(crate) fn hash(text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// Where a record was published, in Kafka's words: `order.placed/3/70@1700000000000` is offset 70 of partition 3, stored at
/// that millisecond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The Kafka topic.
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: u64,
    /// In milliseconds.
    pub(crate) time: u64,
}

impl Origin {
    pub(crate) fn place(&self) -> Place {
        Place { time: self.time, tag: tag_of(&self.topic, self.partition), offset: self.offset }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}@{}", self.topic, self.partition, self.offset, self.time)
    }
}

impl FromStr for Origin {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let read = || {
            let (place, time) = text.rsplit_once('@')?;
            let (place, offset) = place.rsplit_once('/')?;
            let (topic, partition) = place.rsplit_once('/')?;
            let (partition, time) = (partition.parse().ok()?, time.parse().ok()?);
            Some(Self { topic: topic.into(), partition, offset: offset.parse().ok()?, time })
        };
        read().ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_number_and_comes_back_from_it() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut places: Vec<_> = (0..500)
            .map(|_| Place {
                time: random.u64(..1 << 43),
                tag: random.u32(..1 << 24),
                offset: random.u64(..1 << 60),
            })
            .collect();
        for place in &places {
            assert_eq!(Place::from(Offset::from(*place)), *place);
        }
        places.sort();
        assert!(places.windows(2).all(|two| Offset::from(two[0]) <= Offset::from(two[1])));
    }

    #[test]
    fn partitions_have_tags_of_their_own() {
        let mut tags = std::collections::BTreeSet::new();
        for topic in ["order.placed", "order.paid", "a", "b", ""] {
            tags.extend((0..20).map(|partition| tag_of(topic, partition)));
        }
        assert!(tags.len() == 100 && tags.last().is_some_and(|tag| *tag < 1 << 24), "{}", tags.len());
    }

    #[test]
    fn an_origin_is_what_tools_show_and_is_read_again() {
        let origin = Origin { topic: "a/b.c".into(), partition: 3, offset: 70, time: 1_700_000_000_000 };
        assert_eq!(origin.to_string(), "a/b.c/3/70@1700000000000");
        assert_eq!(origin.to_string().parse(), Ok(origin));
        for text in ["", "a", "a/1", "a/1/2", "a/x/2@3", "a/1/x@3", "a/1/2@x", "a/1/-2@3"] {
            assert_eq!(text.parse::<Origin>(), Err(()), "{text}");
        }
    }
}

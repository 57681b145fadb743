//! Places of records, and how they are written.

use std::fmt;
use std::str::FromStr;

/// A record's place in a broker: opaque, and ordered within one topic (and partition, where there are any).
///
/// It is written as a number, as two with `-` between where it takes more than 64 bits, and as three with `.` where it is
/// [of a partition](Self::of_partition); it is read as it is written, and a plain number of any size is read as well.
///
/// ```
/// use eventbus_core::broker::Offset;
///
/// assert_eq!(Offset::new(70).to_string(), "70");
/// assert_eq!(Offset::new(1_700_000_000_000 << 64 | 3).to_string(), "1700000000000-3");
/// let place = Offset::of_partition(1_700_000_000_000, 42, 70);
/// assert_eq!(place.to_string(), "1700000000000.42.70");
/// assert_eq!("1700000000000.42.70".parse(), Ok(place));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(u128);

/// What places of partitions have and no others, and the widths of two of their numbers.
const OF_PARTITION: u128 = 1 << 127;
const PARTITION_BITS: u32 = 24;
const NUMBER_BITS: u32 = 60;
const TIME_BITS: u32 = 127 - PARTITION_BITS - NUMBER_BITS;

impl Offset {
    /// A place, in a form that the broker chooses: a sequence number, or two numbers side by side.
    #[must_use]
    pub const fn new(place: u128) -> Self {
        Self(place)
    }

    /// A place among all partitions of all topics: earlier ones are first, those of one millisecond are in the order of their
    /// partitions, and those of one partition in that of their numbers in it. Of the time 43 bits count, in milliseconds
    /// since 1970, of the partition 24, and of the number 60; what is larger counts as the largest there is.
    #[must_use]
    pub const fn of_partition(time: u64, partition: u32, number: u64) -> Self {
        let time = at_most(time, TIME_BITS) << (PARTITION_BITS + NUMBER_BITS);
        let partition = at_most(partition as u64, PARTITION_BITS) << NUMBER_BITS;
        Self(OF_PARTITION | time | partition | at_most(number, NUMBER_BITS))
    }

    /// The time, the partition and the number of a place [of a partition](Self::of_partition); none, where it has another
    /// form.
    #[must_use]
    pub const fn in_partition(self) -> Option<(u64, u32, u64)> {
        if self.0 & OF_PARTITION == 0 {
            return None;
        }
        let partition = self.0 >> NUMBER_BITS & ((1 << PARTITION_BITS) - 1);
        let time = self.0 >> (PARTITION_BITS + NUMBER_BITS) & ((1 << TIME_BITS) - 1);
        Some((time as u64, partition as u32, (self.0 & ((1 << NUMBER_BITS) - 1)) as u64))
    }

    /// The form that the broker chose.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }
}

const fn at_most(number: u64, bits: u32) -> u128 {
    let largest = (1 << bits) - 1;
    (if number < largest { number } else { largest }) as u128
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = (self.0 >> 64, self.0 as u64);
        match self.in_partition() {
            Some((time, partition, number)) => f.pad(&format!("{time}.{partition}.{number}")),
            None if first > 0 => f.pad(&format!("{first}-{second}")),
            None => fmt::Display::fmt(&second, f),
        }
    }
}

/// A text that is no [`Offset`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseOffsetError(());

impl fmt::Display for ParseOffsetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "it is no offset; write it as it is shown: `70`, `1700000000000-3` or `1700000000000.42.70`",
        )
    }
}

impl std::error::Error for ParseOffsetError {}

impl FromStr for Offset {
    type Err = ParseOffsetError;

    fn from_str(text: &str) -> Result<Self, ParseOffsetError> {
        read(text).ok_or(ParseOffsetError(()))
    }
}

fn read(text: &str) -> Option<Offset> {
    if let Some((first, second)) = text.split_once('-') {
        // The highest bit is that of places in partitions.
        let first = digits::<u64>(first).filter(|first| *first > 0 && first >> 63 == 0)?;
        return Some(Offset(u128::from(first) << 64 | u128::from(digits::<u64>(second)?)));
    }
    if let Some((time, rest)) = text.split_once('.') {
        let (partition, number) = rest.split_once('.')?;
        let place = (digits(time)?, digits(partition)?, digits(number)?);
        let offset = Offset::of_partition(place.0, place.1, place.2);
        return (offset.in_partition() == Some(place)).then_some(offset);
    }
    digits(text).map(Offset)
}

/// A number without the sign that Rust would take as well.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_read_as_it_is_written_and_as_a_plain_number() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2_000 {
            let offset = Offset(random.u128(..) >> random.u32(..128));
            assert_eq!(offset.to_string().parse(), Ok(offset));
            assert_eq!(offset.get().to_string().parse(), Ok(offset));
        }
    }

    #[test]
    fn places_of_partitions_are_in_the_order_of_time_partition_and_number() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut places: Vec<_> =
            (0..500).map(|_| (random.u64(..1 << 43), random.u32(..1 << 24), random.u64(..1 << 60))).collect();
        places.sort_unstable();
        let offsets: Vec<_> =
            places.iter().map(|place| Offset::of_partition(place.0, place.1, place.2)).collect();
        assert!(offsets.is_sorted());
        assert!(offsets.iter().map(|offset| offset.in_partition().unwrap()).eq(places));
        assert_eq!(Offset::of_partition(u64::MAX, u32::MAX, u64::MAX), Offset(u128::MAX));
        assert_eq!(Offset::new(70).in_partition(), None);
    }

    #[test]
    fn what_is_no_offset_is_refused() {
        for text in
            ["", "-1", "+1", "1-", "-", "0-1", "1-+2", "1.2", "1.2.", "1.2.3.4", "1.99999999999.3", "x", "1 "]
        {
            assert!(text.parse::<Offset>().is_err(), "{text}");
        }
        // Days and times are none.
        for text in ["2026-01-31", "2026-01-31T09:30:00Z", "2h", "1d 12h"] {
            assert!(text.parse::<Offset>().is_err(), "{text}");
        }
    }
}

//! Places: the ids of entries in streams, and the offsets that they are outside.

use eventbus_core::broker::Offset;
use jiff::Timestamp;
use std::fmt;
use std::str::FromStr;

/// The id of an entry: the millisecond in which it was added, and its number in that.
///
/// Ids of events rise over all topics of a bus, since one script gives them (`scripts/publish.lua`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) millis: u64,
    pub(crate) number: u64,
}

impl Place {
    /// Before the first entry.
    pub(crate) const START: Self = Self { millis: 0, number: 0 };
    /// Behind the last entry there can be.
    pub(crate) const END: Self = Self { millis: u64::MAX, number: u64::MAX };

    /// The place right behind this one; behind the last one there is none.
    pub(crate) fn next(self) -> Self {
        match (self.millis.checked_add(1), self.number.checked_add(1)) {
            (_, Some(number)) => Self { number, ..self },
            (Some(millis), None) => Self { millis, number: 0 },
            (None, None) => self,
        }
    }

    /// The place right before this one.
    pub(crate) fn before(self) -> Self {
        match (self.millis, self.number) {
            (0, 0) => self,
            (millis, 0) => Self { millis: millis - 1, number: u64::MAX },
            (_, number) => Self { number: number - 1, ..self },
        }
    }

    /// When the entry was added.
    pub(crate) fn time(self) -> Timestamp {
        let millis = i64::try_from(self.millis).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }
}

impl From<Place> for Offset {
    fn from(place: Place) -> Self {
        Self::new(u128::from(place.millis) << 64 | u128::from(place.number))
    }
}

impl From<Offset> for Place {
    fn from(offset: Offset) -> Self {
        let place = offset.get();
        // Each half has 64 bits.
        Self { millis: (place >> 64) as u64, number: place as u64 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

/// What is no id of an entry.
#[derive(Debug)]
pub(crate) struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (millis, number) = text.split_once('-').ok_or(NoPlace)?;
        let digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
        if !digits(millis) || !digits(number) {
            return Err(NoPlace);
        }
        let read = |text: &str| text.parse().map_err(|_| NoPlace);
        Ok(Self { millis: read(millis)?, number: read(number)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_offset_that_sorts_alike_and_comes_back() {
        let mut random = fastrand::Rng::with_seed(5);
        let any = |random: &mut fastrand::Rng| {
            let few = |random: &mut fastrand::Rng| *random.choice(&[0, 1, 7, u64::MAX]).unwrap();
            Place { millis: few(random), number: few(random) }
        };
        for _ in 0..200 {
            let (one, two) = (any(&mut random), any(&mut random));
            assert_eq!(one.cmp(&two), Offset::from(one).cmp(&Offset::from(two)));
            assert_eq!(Place::from(Offset::from(one)), one);
            assert_eq!(one.to_string().parse::<Place>().unwrap(), one);
            assert!(one == Place::START || one.before().next() == one);
            assert!(one == Place::END || one.next() > one, "{one}");
        }
        assert_eq!(Place::END.next(), Place::END);
    }

    #[test]
    fn what_is_no_place_is_told_from_one() {
        for text in ["", "-", "1", "1-", "-1", "1-2-3", "+1-2", "a-b", "1-18446744073709551616"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}

//! Durations as people write them in an attribute: `"500ms"`, `"30s"`, `"2m"`, `"1h"`, and ranges of them.

use crate::text::Text;
use core::time::Duration;

/// What is wrong with a duration; [`DurationFault::explain`] says it in a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationFault {
    /// The text is not a whole number with a unit.
    Malformed,
    /// The number is larger than fits.
    TooLarge,
    /// The text is not two durations joined by `..`.
    NotARange,
    /// The range starts after its end.
    Backwards,
    /// The range starts at zero, where doubling leads nowhere.
    StartsAtZero,
}

impl DurationFault {
    /// One sentence: what is wrong with `text`, and what is allowed instead.
    pub const fn explain(self, text: &str) -> Text {
        let quoted = Text::new().push_quoted(text);
        match self {
            Self::Malformed => quoted.push(
                " is not a duration; write a whole number and a unit (ms, s, m or h), as in \"500ms\" or \"30s\"",
            ),
            Self::TooLarge => quoted.push(" is longer than a duration can be"),
            Self::NotARange => quoted
                .push(" is not a backoff; write the first and the longest delay, as in \"200ms..1m\""),
            Self::Backwards => quoted.push(" ends before it starts; the first delay comes first, as in \"200ms..1m\""),
            Self::StartsAtZero => quoted.push(" starts at zero, which doubles to zero; start at \"1ms\" or more"),
        }
    }
}

/// Reads a whole number with one of the units `ms`, `s`, `m` and `h`.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(eventbus_grammar::duration("500ms"), Ok(Duration::from_millis(500)));
/// ```
///
/// # Errors
/// A number without a unit, a unit without a number, anything else around them, or a number that does not fit.
pub const fn duration(text: &str) -> Result<Duration, DurationFault> {
    part(text.as_bytes(), 0, text.len())
}

/// Reads two durations joined by `..`: the first delay of a backoff, and its longest.
///
/// # Errors
/// As [`duration`]; also a missing `..`, a start of zero, and an end before the start.
pub const fn duration_range(text: &str) -> Result<(Duration, Duration), DurationFault> {
    let bytes = text.as_bytes();
    let mut dots = 0;
    while dots + 1 < bytes.len() && !(bytes[dots] == b'.' && bytes[dots + 1] == b'.') {
        dots += 1;
    }
    if dots + 1 >= bytes.len() {
        return Err(DurationFault::NotARange);
    }
    let (first, longest) = match (part(bytes, 0, dots), part(bytes, dots + 2, bytes.len())) {
        (Ok(first), Ok(longest)) => (first, longest),
        (Err(fault), _) | (_, Err(fault)) => return Err(fault),
    };
    if first.is_zero() {
        Err(DurationFault::StartsAtZero)
    } else if first.as_nanos() > longest.as_nanos() {
        Err(DurationFault::Backwards)
    } else {
        Ok((first, longest))
    }
}

const fn part(bytes: &[u8], start: usize, end: usize) -> Result<Duration, DurationFault> {
    let mut number: u64 = 0;
    let mut at = start;
    while at < end && bytes[at].is_ascii_digit() {
        let digit = (bytes[at] - b'0') as u64;
        number = match number.checked_mul(10) {
            Some(tens) if tens <= u64::MAX - digit => tens + digit,
            _ => return Err(DurationFault::TooLarge),
        };
        at += 1;
    }
    if at == start {
        return Err(DurationFault::Malformed);
    }
    let seconds = match end - at {
        2 if bytes[at] == b'm' && bytes[at + 1] == b's' => return Ok(Duration::from_millis(number)),
        1 if bytes[at] == b's' => Some(number),
        1 if bytes[at] == b'm' => number.checked_mul(60),
        1 if bytes[at] == b'h' => number.checked_mul(3600),
        _ => return Err(DurationFault::Malformed),
    };
    match seconds {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err(DurationFault::TooLarge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read() {
        for (text, millis) in [("0s", 0), ("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "s", "5", "5 s", "-5s", "1.5s", "5sec", "5S", "ms"] {
            assert_eq!(duration(text), Err(DurationFault::Malformed), "{text}");
        }
        assert_eq!(duration("99999999999999999999s"), Err(DurationFault::TooLarge));
        assert_eq!(duration("18446744073709551615h"), Err(DurationFault::TooLarge));
    }

    #[test]
    fn a_range_has_two_ends_in_order() {
        assert_eq!(duration_range("200ms..1m"), Ok((Duration::from_millis(200), Duration::from_secs(60))));
        assert_eq!(duration_range("1s"), Err(DurationFault::NotARange));
        assert_eq!(duration_range("1s..200ms"), Err(DurationFault::Backwards));
        assert_eq!(duration_range("0s..1s"), Err(DurationFault::StartsAtZero));
        assert_eq!(duration_range("1s.."), Err(DurationFault::Malformed));
    }
}

//! The name of a dead letter: opaque, and in the order of its store.

use smol_str::SmolStr;
use std::cmp::Ordering;
use std::fmt;

/// The name of a dead letter in its store: a text that the broker chooses, such as `17`, `1732690000123-4` or `2/8041`.
///
/// It is one word, so that it can be typed. Names sort as their store does: runs of digits by their value, whatever is
/// between them byte by byte.
///
/// ```
/// use eventbus_core::broker::DeadLetterId;
///
/// assert!(DeadLetterId::new("9") < DeadLetterId::new("10"));
/// assert!(DeadLetterId::new("1732690000123-4") < DeadLetterId::new("1732690000123-11"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeadLetterId(SmolStr);

impl DeadLetterId {
    /// The name as its store writes it.
    #[must_use]
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(SmolStr::new(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<u64> for DeadLetterId {
    fn from(number: u64) -> Self {
        use smol_str::ToSmolStr;
        Self(number.to_smolstr())
    }
}

impl PartialOrd for DeadLetterId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DeadLetterId {
    fn cmp(&self, other: &Self) -> Ordering {
        // Names that differ in leading zeros only are two names.
        by_value(&self.0, &other.0).then_with(|| self.0.cmp(&other.0))
    }
}

/// Compares runs of digits by their value, and the rest byte by byte.
fn by_value(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    loop {
        let (digits, other_digits) = (digits(one), digits(other));
        let ordering = if digits > 0 && other_digits > 0 {
            let (run, rest) = one.split_at(digits);
            let (other_run, other_rest) = other.split_at(other_digits);
            (one, other) = (rest, other_rest);
            let (run, other_run) = (without_zeros(run), without_zeros(other_run));
            run.len().cmp(&other_run.len()).then_with(|| run.cmp(other_run))
        } else {
            let (Some((first, rest)), Some((other_first, other_rest))) =
                (one.split_first(), other.split_first())
            else {
                return one.len().cmp(&other.len());
            };
            (one, other) = (rest, other_rest);
            first.cmp(other_first)
        };
        if ordering.is_ne() {
            return ordering;
        }
    }
}

/// How many digits come first.
fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn without_zeros(run: &[u8]) -> &[u8] {
    let zeros = run.iter().take_while(|digit| **digit == b'0').count();
    &run[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_the_numbers_in_them() {
        let sorted = ["", "0", "00", "9", "10", "10-2", "10-10", "10/1", "a", "a2", "a02b", "a2b", "a10"];
        let mut names: Vec<_> = sorted.iter().rev().map(DeadLetterId::new).collect();
        names.sort();
        assert_eq!(names.iter().map(DeadLetterId::as_str).collect::<Vec<_>>(), sorted);
    }

    #[test]
    fn the_order_of_any_names_is_an_order() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut name = || {
            let length = random.usize(..6);
            DeadLetterId::new(
                (0..length).map(|_| random.choice(['0', '1', '9', '-', 'a']).unwrap()).collect::<String>(),
            )
        };
        for _ in 0..20_000 {
            let (a, b, c) = (name(), name(), name());
            assert_eq!(a.cmp(&b), b.cmp(&a).reverse(), "{a} {b}");
            assert_eq!(a == b, a.cmp(&b).is_eq(), "{a} {b}");
            assert!(!(a < b && b < c) || a < c, "{a} {b} {c}");
        }
    }

    #[test]
    fn numbers_name_what_they_are_written_as() {
        assert_eq!(DeadLetterId::from(17), DeadLetterId::new("17"));
    }
}

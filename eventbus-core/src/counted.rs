//! Numbers of things, as sentences say them.

use std::fmt::Display;

/// A whole number with its thousands apart: `16,384`.
pub fn count(number: impl Display) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things, of which `thing` names one.
///
/// ```
/// # use eventbus_core::counted::counted;
/// assert_eq!(counted(1, "delivery"), "1 delivery");
/// assert_eq!(counted(2_000, "delivery"), "2,000 deliveries");
/// ```
pub fn counted(number: impl Display, thing: &str) -> String {
    match count(number) {
        one if one == "1" => format!("1 {thing}"),
        many => format!("{many} {}", plural(thing)),
    }
}

/// Several of a thing. Nouns with a plural of their own are none of ours.
fn plural(thing: &str) -> String {
    match thing.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ if ["s", "x", "ch", "sh"].iter().any(|end| thing.ends_with(end)) => format!("{thing}es"),
        _ => format!("{thing}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_one_and_others_are_many() {
        for (number, thing, said) in [
            (0, "event", "0 events"),
            (1, "event", "1 event"),
            (2, "delivery", "2 deliveries"),
            (3, "retry", "3 retries"),
            (4, "key", "4 keys"),
            (5, "batch", "5 batches"),
            (6, "process", "6 processes"),
            (1_234_567, "dead letter", "1,234,567 dead letters"),
        ] {
            assert_eq!(counted(number, thing), said);
        }
        assert_eq!((count(999), count(1_000)), ("999".to_owned(), "1,000".to_owned()));
    }
}

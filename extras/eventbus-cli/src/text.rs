//! How texts, times and numbers are written for people.

use console::measure_text_width;
pub(crate) use eventbus_core::counted::{count, counted};
use eventbus_core::printable::printable;
use jiff::Timestamp;

/// The text of many lines, fit for a terminal line by line.
pub(crate) fn printable_lines(text: &str) -> String {
    text.lines().map(|line| printable(line).to_string()).collect::<Vec<_>>().join("\n")
}

/// A time to the millisecond, in a form that `--since` takes.
pub(crate) fn time(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// A time for who follows what happens: the time of the day, where it is today's.
pub(crate) fn moment(time: Timestamp, now: Timestamp) -> String {
    let (time, now) = (format!("{time:.3}"), format!("{now:.3}"));
    match (time.split_once('T'), now.split_once('T')) {
        (Some((day, of_day)), Some((today, _))) if day == today => of_day.to_owned(),
        (Some((day, of_day)), _) => format!("{day}T{}Z", of_day.get(..5).unwrap_or_default()),
        _ => time,
    }
}

/// How long ago a time was, in its largest unit; the day, where that is a month ago.
pub(crate) fn ago(time: Timestamp, now: Timestamp) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = now.as_second().saturating_sub(time.as_second());
    let span = match seconds.unsigned_abs() {
        0 => return "now".to_owned(),
        span @ ..MINUTE => format!("{span} s"),
        span @ ..HOUR => format!("{} min", span / MINUTE),
        span @ ..DAY => format!("{} h", span / HOUR),
        span if span < 30 * DAY => format!("{} d", span / DAY),
        _ => {
            let time = time.to_string();
            return time.split_once('T').map_or(time.clone(), |(day, _)| day.to_owned());
        }
    };
    if seconds > 0 { format!("{span} ago") } else { format!("in {span}") }
}

/// The text in lines of at most `width` columns, broken between words where there is a place to.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_inclusive(' ') {
        let fits = |line: &str| measure_text_width(line) + measure_text_width(word.trim_end()) <= width;
        if !fits(&line) && !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        if fits(&line) {
            line.push_str(word);
            continue;
        }
        for c in word.chars() {
            line.push(c);
            if measure_text_width(&line) > width && line.len() > c.len_utf8() {
                line.pop();
                // A path or an id is broken where one of its parts ends.
                let parts = line.rfind(['/', '-', ':', ',', ';', '.', '_', '=', '&']).map(|at| at + 1);
                let rest = line.split_off(parts.filter(|at| *at > line.len() / 2).unwrap_or(line.len()));
                lines.push(std::mem::replace(&mut line, rest));
                line.push(c);
            }
        }
    }
    lines.push(line);
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The bytes in base64 (RFC 4648, with padding).
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}

/// The bytes behind a base64 text, whose padding may be missing; none for another text.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let (padding, left) = (text.len() - digits.len(), digits.len() % 4);
    if left == 1 || (padding > 0 && (padding > 2 || !text.len().is_multiple_of(4))) {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.as_bytes().chunks(4) {
        let mut bits = 0;
        for digit in chunk {
            let value = ALPHABET.iter().position(|letter| letter == digit)?;
            bits = bits << 6 | u32::try_from(value).ok()?;
        }
        let whole = (bits << (6 * (4 - chunk.len()))).to_be_bytes();
        bytes.extend(&whole[1..chunk.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_many_lines_keeps_its_lines() {
        assert_eq!(printable_lines("{\n  \u{7}\r\n}"), "{\n  \\u{7}\n}");
    }

    #[test]
    fn times_are_written_for_people() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for (before, said) in [
            (0, "now"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (7_199, "1 h ago"),
            (7_200, "2 h ago"),
            (200_000, "2 d ago"),
            (-90, "in 1 min"),
            (1_000_000_000, "1970-01-01"),
        ] {
            let now = 1_000_000_000;
            assert_eq!(ago(at(now - before), at(now)), said);
        }
        assert_eq!(moment(at(61), at(86_399)), "00:01:01.000Z");
        assert_eq!(moment(at(61), at(86_400)), "1970-01-01T00:01Z");
    }

    #[test]
    fn text_is_broken_between_words_and_long_words_between_their_parts() {
        assert_eq!(wrapped("the stock service is down", 12), ["the stock", "service is", "down"]);
        assert_eq!(wrapped("at src/orders/stock.rs:127", 14), ["at", "src/orders/", "stock.rs:127"]);
        assert_eq!(wrapped("在庫がありません", 6), ["在庫が", "ありま", "せん"]);
        assert_eq!(wrapped("", 6), [""]);
        for width in 1..40 {
            for line in wrapped(
                "a-b http://localhost:8080/orders?id=1042 品切れ🦄 ❤️☎️✌️❤️☎️✌️🇩🇪🇩🇪 aaaaaaaaaaaaaaaaaaa",
                width,
            ) {
                assert!(measure_text_width(&line) <= width.max(2), "{width}: {line}");
            }
        }
    }

    #[test]
    fn bytes_are_written_in_base64_and_read_back() {
        // The vectors of RFC 4648, section 10.
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()));
            assert_eq!(from_base64(text.trim_end_matches('=')).as_deref(), Some(bytes.as_bytes()));
        }
        for text in ["Z", "Zg=", "Zg===", "Zm9vY", "Zm 9", "-_==", "Z=g="] {
            assert_eq!(from_base64(text), None, "{text}");
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}

//! Times and places as they are written on the command line.

use eventbus_core::broker::{Offset, ReplayFrom, ReplayUntil};
use jiff::civil::Date;
use jiff::{SpanRelativeTo, Timestamp};

/// Reads a time: RFC 3339, a day, or how long ago.
pub(crate) fn time(text: &str) -> Result<Timestamp, String> {
    time_before(text, Timestamp::now())
}

fn time_before(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    // Longer texts are a time without a zone, which is no time.
    if text.len() == "2026-01-31".len()
        && let Ok(day) = text.parse::<Date>()
    {
        return format!("{day}T00:00:00Z").parse().map_err(|_| wrong(text));
    }
    let ago = text.parse::<jiff::Span>().ok().and_then(|span| {
        let days = SpanRelativeTo::days_are_24_hours();
        span.abs().to_duration(days).ok()
    });
    let time = ago.and_then(|ago| now.checked_sub(ago).ok());
    time.ok_or_else(|| wrong(text))
}

fn wrong(text: &str) -> String {
    format!(
        "`{}` is no time; write how long ago (`90s`, `2h`, `7d`), a day (`2026-01-31`, UTC) or RFC 3339 \
         (`2026-01-31T09:30:00Z`)",
        text.escape_debug()
    )
}

/// Reads an offset.
pub(crate) fn offset(text: &str) -> Result<Offset, String> {
    text.parse().map_err(|_| {
        format!("`{}` is no offset; write one as it is shown, such as `70`", text.escape_debug())
    })
}

/// Where a group goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cursor {
    Earliest,
    Behind(Offset),
    Latest,
}

/// Reads where a group goes on: behind an offset, at the `earliest` event or behind the `latest`.
pub(crate) fn cursor(text: &str) -> Result<Cursor, String> {
    match text {
        "earliest" | "beginning" => Ok(Cursor::Earliest),
        "latest" | "end" => Ok(Cursor::Latest),
        text => offset(text).map(Cursor::Behind).map_err(|error| format!("{error}, `earliest` or `latest`")),
    }
}

/// Reads where a replay begins.
pub(crate) fn from(text: &str) -> Result<ReplayFrom, String> {
    match text {
        "earliest" | "beginning" => Ok(ReplayFrom::Earliest),
        text => match offset(text) {
            Ok(offset) => Ok(ReplayFrom::Offset(offset)),
            Err(_) => {
                time(text).map(ReplayFrom::Time).map_err(|error| format!("{error}, an offset or `earliest`"))
            }
        },
    }
}

/// Reads where a replay ends.
pub(crate) fn until(text: &str) -> Result<ReplayUntil, String> {
    match text {
        "now" => Ok(ReplayUntil::Now),
        "live" => Ok(ReplayUntil::Live),
        text => match offset(text) {
            Ok(offset) => Ok(ReplayUntil::Offset(offset)),
            Err(_) => time(text)
                .map(ReplayUntil::Time)
                .map_err(|error| format!("{error}, an offset, `now` or `live`")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_an_instant_as_a_day_or_as_how_long_ago() {
        let now: Timestamp = "2026-07-01T12:00:00Z".parse().unwrap();
        for (text, time) in [
            ("2026-06-30T10:00:00+02:00", "2026-06-30T08:00:00Z"),
            ("2026-06-30", "2026-06-30T00:00:00Z"),
            ("90s", "2026-07-01T11:58:30Z"),
            ("2h", "2026-07-01T10:00:00Z"),
            ("1d 12h", "2026-06-30T00:00:00Z"),
            ("7d", "2026-06-24T12:00:00Z"),
        ] {
            assert_eq!(time_before(text, now), Ok(time.parse().unwrap()), "{text}");
        }
        for text in ["", "yesterday", "2", "2026-06-30T10:00:00", "999999999y"] {
            assert!(time_before(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_goes_on_behind_an_offset_or_at_an_end() {
        assert_eq!(cursor("7"), Ok(Cursor::Behind(Offset::new(7))));
        assert_eq!((cursor("earliest"), cursor("latest")), (Ok(Cursor::Earliest), Ok(Cursor::Latest)));
        assert_eq!((cursor("beginning"), cursor("end")), (Ok(Cursor::Earliest), Ok(Cursor::Latest)));
        let refused = cursor("2h").unwrap_err();
        assert!(
            refused.ends_with("such as `70`, `earliest` or `latest`") && cursor("-1").is_err(),
            "{refused}"
        );
    }

    #[test]
    fn a_replay_begins_and_ends_at_an_offset_a_time_or_a_word() {
        assert_eq!(
            (from("earliest"), from("beginning")),
            (Ok(ReplayFrom::Earliest), Ok(ReplayFrom::Earliest))
        );
        assert_eq!(from("120"), Ok(ReplayFrom::Offset(Offset::new(120))));
        // As brokers with several numbers show theirs.
        for place in
            [Offset::new(1_700_000_000_000 << 64 | 3), Offset::of_partition(1_700_000_000_000, 42, 70)]
        {
            assert_eq!(from(&place.to_string()), Ok(ReplayFrom::Offset(place)), "{place}");
        }
        assert!(matches!(from("2026-01-31"), Ok(ReplayFrom::Time(_))), "a day is no offset");
        assert!(matches!(from("2h"), Ok(ReplayFrom::Time(_))));
        assert_eq!(until("live"), Ok(ReplayUntil::Live));
        assert!(from("live").is_err() && until("earliest").is_err());
    }
}

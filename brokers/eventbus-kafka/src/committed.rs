//! What a group commits of a partition beside the offset: what is finished beyond it, and the retries that wait.
//!
//! The offset that Kafka keeps is the first one that is not finished. The text that it keeps beside it says how far the
//! group has come beyond that, and what of it is open, so that a restart repeats little and attempts go on counting:
//!
//! ```text
//! eventbus1;1700000000000;5;3*4;1@2,0,0,9c4;=7
//! ```
//!
//! is, from the offset on: 5 finished and one open, 3 finished and four open in a row, 1 finished and one that waits for its
//! second attempt, 7 finished. Numbers are hexadecimal but for the time that the others are counted from, in milliseconds.
//! Pure functions.

use eventbus_core::broker::{Offset, Parked, Saved};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What a text of this form begins with.
const VERSION: &str = "eventbus1";
/// As long as a text may be where the server's `offset.metadata.max.bytes` is the default.
pub(crate) const MAX_LENGTH: usize = 4_096;
/// So many open deliveries a text may speak of: a run of them takes few bytes, and reading it takes memory for each.
const MAX_OPEN: u64 = 1 << 16;

/// What is noted of an open delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// The next attempt.
    pub(crate) attempt: u32,
    /// Its wait, where it waits for that.
    pub(crate) parked: Option<Parked>,
}

impl Note {
    /// Of a delivery with which nothing has happened.
    pub(crate) const FIRST: Self = Self { attempt: 1, parked: None };
}

/// The text for a commit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) text: String,
    /// The first offset that the text says nothing of, where it would have become too long: from there on everything is
    /// delivered again after a crash, and attempts count anew.
    pub(crate) cut_at: Option<Offset>,
}

/// Writes what is open and finished from the cursor on, in at most `max_length` bytes.
///
/// What does not fit is left out from the end. Times are kept to the millisecond, and no retry comes to be due earlier.
pub(crate) fn write(saved: &Saved<Note>, max_length: usize) -> Written {
    let parked = saved.notes.values().filter_map(|note| note.parked);
    let base = parked.map(|parked| parked.first_failed_at.as_millisecond()).min().unwrap_or(0);
    let mut text = format!("{VERSION};{base};");
    let (mut at, mut open, mut cut_at) = (saved.cursor.get(), 0, None);
    let mut notes = saved.notes.range(saved.cursor..).peekable();
    let mut item = String::new();
    while let Some((first, note)) = notes.next() {
        let first = first.get();
        let mut length = 1;
        if *note == Note::FIRST {
            let next = |length: u64| (Offset::new(first + u128::from(length)), Note::FIRST);
            while notes.next_if(|(at, note)| (**at, **note) == next(length)).is_some() {
                length += 1;
            }
        }
        item.clear();
        write_item(&mut item, first - at, length, note, base);
        // What is finished behind the last item has to fit as well.
        let fits = text.len() + item.len() + "=".len() + 2 * size_of::<u64>() <= max_length;
        if !fits || open + length > MAX_OPEN {
            cut_at = Some(Offset::new(first));
            break;
        }
        text.push_str(&item);
        open += length;
        at = first + u128::from(length);
    }
    let reached = cut_at.unwrap_or(saved.reached).get();
    let finished = reached.saturating_sub(at);
    if open == 0 && finished == 0 && cut_at.is_none() {
        // The offset alone says everything.
        return Written { text: String::new(), cut_at };
    }
    write!(text, "={finished:x}").expect("a text takes what is written to it");
    if text.len() > max_length {
        return Written { text: String::new(), cut_at: Some(saved.cursor) };
    }
    Written { text, cut_at }
}

fn write_item(item: &mut String, finished: u128, length: u64, note: &Note, base: i64) {
    let mut push = |text: std::fmt::Arguments<'_>| {
        item.write_fmt(text).expect("a text takes what is written to it");
    };
    push(format_args!("{finished:x}"));
    if length > 1 {
        push(format_args!("*{length:x}"));
    }
    if *note != Note::FIRST {
        push(format_args!("@{:x}", note.attempt));
    }
    if let Some(Parked { first_failed_at, last_failed_at, due }) = note.parked {
        let first = first_failed_at.as_millisecond();
        let last = last_failed_at.as_millisecond();
        let due = due.as_millisecond() + i64::from(due.subsec_nanosecond() % 1_000_000 > 0);
        for (time, before) in [(first, base), (last, first), (due, last)] {
            // A clock that was set back makes it negative.
            let sign = if time < before { "-" } else { "" };
            push(format_args!(",{sign}{:x}", time.abs_diff(before)));
        }
    }
    push(format_args!(";"));
}

/// Reads what was committed at `cursor`. A text that is not of this form, such as another program's, says nothing: what is
/// finished beyond the offset is delivered again then.
pub(crate) fn read(cursor: Offset, text: &str) -> Saved<Note> {
    let nothing = Saved { cursor, reached: cursor, notes: BTreeMap::new() };
    read_text(cursor, text).unwrap_or(nothing)
}

fn read_text(cursor: Offset, text: &str) -> Option<Saved<Note>> {
    let (base, rest) = text.strip_prefix(VERSION)?.strip_prefix(';')?.split_once(';')?;
    let base: i64 = base.parse().ok()?;
    let (items, finished) = rest.split_once('=')?;
    let mut at = u64::try_from(cursor.get()).ok()?;
    let mut notes = BTreeMap::new();
    for item in items.split_terminator(';') {
        let (run, note) = item.split_once('@').map_or((item, None), |(run, note)| (run, Some(note)));
        let (finished, length) = run.split_once('*').unwrap_or((run, "1"));
        let (finished, length) = (hexadecimal(finished)?, hexadecimal(length)?);
        let note = note.map_or(Some(Note::FIRST), |note| read_note(note, base))?;
        let first = at.checked_add(finished)?;
        at = first.checked_add(length)?;
        if notes.len() as u64 + length > MAX_OPEN {
            return None;
        }
        notes.extend((first..at).map(|at| (Offset::new(at.into()), note)));
    }
    let reached = at.checked_add(hexadecimal(finished)?)?;
    Some(Saved { cursor, reached: Offset::new(reached.into()), notes })
}

fn read_note(text: &str, base: i64) -> Option<Note> {
    let mut fields = text.split(',');
    let attempt = u32::try_from(hexadecimal(fields.next()?)?).ok()?.max(1);
    let mut before = base;
    let mut times = Vec::with_capacity(3);
    for field in fields {
        let (sign, digits) = field.strip_prefix('-').map_or((1, field), |digits| (-1, digits));
        let distance = i64::try_from(hexadecimal(digits)?).ok()? * sign;
        before = before.checked_add(distance)?;
        times.push(Timestamp::from_millisecond(before).ok()?);
    }
    let parked = match times[..] {
        [] => None,
        [first_failed_at, last_failed_at, due] => Some(Parked { first_failed_at, last_failed_at, due }),
        _ => return None,
    };
    Some(Note { attempt, parked })
}

/// A number as it is written here: without the sign that Rust would take as well.
fn hexadecimal(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::broker::Progress;

    fn at(offset: u64) -> Offset {
        Offset::new(offset.into())
    }

    fn millisecond(time: i64) -> Timestamp {
        Timestamp::from_millisecond(time).unwrap()
    }

    fn waits(attempt: u32, first: i64, last: i64, due: i64) -> Note {
        let parked = Parked {
            first_failed_at: millisecond(first),
            last_failed_at: millisecond(last),
            due: millisecond(due),
        };
        Note { attempt, parked: Some(parked) }
    }

    fn any_note(random: &mut fastrand::Rng) -> Note {
        match random.u8(..10) {
            0 => Note { attempt: random.u32(1..), parked: None },
            1 => {
                let mut time = || 1_700_000_000_000 + random.i64(-10_000_000..10_000_000);
                let (first, last, due) = (time(), time(), time());
                waits(random.u32(1..9), first, last, due)
            }
            _ => Note::FIRST,
        }
    }

    fn any_saved(random: &mut fastrand::Rng, most: usize) -> Saved<Note> {
        let cursor = random.u64(..1 << 40);
        let mut next = cursor;
        let notes: BTreeMap<_, _> = (0..random.usize(..=most))
            .map(|_| {
                next += if random.bool() { 0 } else { random.u64(..1_000) };
                next += 1;
                (at(next - 1), any_note(random))
            })
            .collect();
        Saved { cursor: at(cursor), reached: at(next + random.u64(..2) * random.u64(..50)), notes }
    }

    #[test]
    fn the_example_in_the_docs_is_what_is_written() {
        let base = 1_700_000_000_000;
        let mut notes: BTreeMap<_, _> = [105, 109, 110, 111, 112].map(|open| (at(open), Note::FIRST)).into();
        notes.insert(at(114), waits(2, base, base, base + 2_500));
        let saved = Saved { cursor: at(100), reached: at(122), notes };
        let written = write(&saved, MAX_LENGTH);
        assert_eq!(written.text, "eventbus1;1700000000000;5;3*4;1@2,0,0,9c4;=7");
        assert_eq!((written.cut_at, read(at(100), &written.text)), (None, saved));
    }

    #[test]
    fn any_state_of_a_partition_comes_back_from_its_commit() {
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..2_000 {
            let saved = any_saved(&mut random, 60);
            let written = write(&saved, MAX_LENGTH);
            assert_eq!((written.cut_at, read(saved.cursor, &written.text)), (None, saved));
        }
    }

    #[test]
    fn what_does_not_fit_is_delivered_again_and_nothing_is_lost() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut cut = 0;
        for _ in 0..300 {
            let saved = any_saved(&mut random, 3_000);
            let max_length = random.usize(..=MAX_LENGTH);
            let written = write(&saved, max_length);
            assert!(written.text.len() <= max_length, "{} of {max_length}", written.text.len());
            let read = read(saved.cursor, &written.text);
            let end = written.cut_at.unwrap_or(saved.reached);
            cut += u32::from(written.cut_at.is_some());
            assert_eq!((read.cursor, read.reached), (saved.cursor, end));
            let kept: BTreeMap<_, _> = saved.notes.range(..end).map(|(at, note)| (*at, *note)).collect();
            assert_eq!(read.notes, kept);
        }
        assert!(cut > 100, "{cut} were cut");
    }

    #[test]
    fn a_full_window_of_deliveries_in_a_row_fits() {
        let notes: BTreeMap<_, _> = (0..17_408).map(|open| (at(open), Note::FIRST)).collect();
        let saved = Saved { cursor: at(0), reached: at(17_409), notes };
        let written = write(&saved, MAX_LENGTH);
        assert!(written.text.len() < 30 && written.cut_at.is_none(), "{written:?}");
    }

    #[test]
    fn two_hundred_waiting_retries_fit() {
        let base = 1_700_000_000_000;
        let notes = (0..200).map(|n: u32| {
            let first = base + i64::from(n) * 7_919;
            (at(u64::from(n) * 3), waits(3, first, first + 900, first + 60_900))
        });
        let saved = Saved { cursor: at(0), reached: at(600), notes: notes.collect() };
        assert_eq!(write(&saved, MAX_LENGTH).cut_at, None);
    }

    #[test]
    fn a_retry_is_not_due_earlier_than_it_was_asked_for() {
        let nanos = |nanos| Timestamp::from_nanosecond(nanos).unwrap();
        for due in [1_700_000_000_000_000_001, -1, -999_999, 1_000_000] {
            let parked = Parked { first_failed_at: nanos(1), last_failed_at: nanos(2), due: nanos(due) };
            let notes = [(at(7), Note { attempt: 2, parked: Some(parked) })].into();
            let saved = Saved { cursor: at(7), reached: at(8), notes };
            let read = read(at(7), &write(&saved, MAX_LENGTH).text).notes[&at(7)].parked.unwrap();
            let late = read.due.as_nanosecond() - due;
            assert!((0..1_000_000).contains(&late), "{due}: {late} ns late");
        }
    }

    /// Due times are those of the clock of whoever noted them, and whoever reads them has another one.
    #[test]
    fn a_retry_waits_no_longer_than_was_meant_whatever_the_clocks_say() {
        let (hour, real) = (3_600_000, 1_700_000_000_000);
        for (noting, reading) in [(hour, 0), (-hour, 0), (0, hour), (0, -hour), (hour, -hour), (-hour, hour)]
        {
            // The clock stepped between the first failure and the last one.
            for first in [real, real + noting] {
                for meant in [0, 1, 900, 60_000] {
                    let noted = waits(3, first, real + noting, real + noting + meant);
                    let saved = Saved { cursor: at(7), reached: at(8), notes: [(at(7), noted)].into() };
                    let read = read(at(7), &write(&saved, MAX_LENGTH).text).notes[&at(7)];
                    assert_eq!(read, noted, "and the attempt counts on");
                    let wait = read.parked.unwrap().delay(millisecond(real + reading)).as_millis();
                    // Where the reader's clock is behind, all of it; where it is ahead, nothing: then the next attempt is
                    // made at once, and counted.
                    let expected = if reading <= noting { meant } else { 0 };
                    assert_eq!(wait, u128::try_from(expected).unwrap(), "{noting}, {reading}, {meant}");
                }
            }
        }
    }

    #[test]
    fn a_text_of_another_program_says_nothing() {
        for other in [
            "",
            "mirror-maker",
            "eventbus1",
            "eventbus1;0;",
            "eventbus1;0;1",
            "eventbus1;0;1;",
            "eventbus2;0;1;=0",
            "eventbus1;0;x;=0",
            "eventbus1;0;+1;=0",
            "eventbus1;0;;=0",
            "eventbus1;0;1;=",
            "eventbus1;0;1@2,0,0;=0",
            "eventbus1;0;1@2,0,0,0,0;=0",
            "eventbus1;0;1*ffffffff;=0",
            "eventbus1;0;ffffffffffffffff;=0",
            "eventbus1;0;1;=ffffffffffffffff",
            "eventbus1;9223372036854775807;0@2,1,1,1;=0",
        ] {
            let read = read(at(9), other);
            assert_eq!((read.reached, read.notes.len()), (at(9), 0), "{other}");
        }
    }

    #[test]
    fn no_text_ends_in_a_panic() {
        let mut random = fastrand::Rng::with_seed(6);
        for _ in 0..20_000 {
            let mut text = write(&any_saved(&mut random, 5), MAX_LENGTH).text.into_bytes();
            for _ in 0..random.usize(..4) {
                let byte = *random.choice(b"0f;*@,-=x9").unwrap();
                if let Some(place) = random.choice(&mut text) {
                    *place = byte;
                }
            }
            read(at(random.u64(..)), &String::from_utf8(text).unwrap());
        }
    }

    /// Runs a group over a partition in which compaction and transactions have left gaps, crashes it at any moment, and
    /// looks whether what was committed leads to every event.
    #[test]
    fn a_group_that_crashes_gets_what_it_had_not_finished_and_counts_on() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let records: Vec<u64> = (0..400).filter(|_| random.u8(..3) > 0).collect();
            let mut finished = std::collections::BTreeSet::new();
            let mut committed = (at(0), String::new());
            for _life in 0..4 {
                let saved = read(committed.0, &committed.1);
                let (reached, noted) = (saved.reached, saved.notes.clone());
                let mut open: Vec<u64> = noted.keys().map(|at| at.get() as u64).collect();
                let mut progress = Progress::resume(saved);
                let mut rest: Vec<u64> =
                    records.iter().copied().filter(|r| at(*r) >= reached).rev().collect();
                let before = |offset: u64| at(offset) < reached && !noted.contains_key(&at(offset));
                let lost: Vec<_> = records.iter().filter(|r| before(**r) && !finished.contains(*r)).collect();
                assert!(lost.is_empty(), "seed {seed}: {lost:?} were never handled");
                for _ in 0..random.usize(..300) {
                    match random.u8(..8) {
                        0..=3 => {
                            if let Some(next) = rest.pop() {
                                assert!(progress.open(at(next), Note::FIRST));
                                open.push(next);
                            }
                        }
                        4..=5 if !open.is_empty() => {
                            let next = open.swap_remove(random.usize(..open.len()));
                            assert!(progress.settle(at(next)));
                            finished.insert(next);
                        }
                        6 => {
                            if let Some(parked) = random.choice(&open) {
                                assert!(progress.note(at(*parked), waits(2, 5, 6, 7)));
                            }
                        }
                        _ => {}
                    }
                }
                // A commit holds everything there is to know, not the difference to the last one.
                if let Some(save) = progress.begin_save(&[]) {
                    let notes = open.iter().map(|open| (at(*open), *progress.get(at(*open)).unwrap()));
                    let notes = notes.filter(|(at, _)| *at < save.reached()).collect();
                    let saved = Saved { cursor: save.cursor(), reached: save.reached(), notes };
                    let written = write(&saved, *random.choice(&[60, 200, MAX_LENGTH]).unwrap());
                    committed = (save.cursor(), written.text);
                    progress.end_save(save, true);
                }
            }
        }
    }
}

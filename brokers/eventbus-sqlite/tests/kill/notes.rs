//! What processes write down, and what can be read off it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// An event, as notes know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number {
    pub(crate) key: u64,
    pub(crate) number: u64,
}

/// The files of one experiment.
#[derive(Clone, Debug)]
pub(crate) struct Notes {
    folder: PathBuf,
}

/// Appends lines to a file, each by one `write`.
pub(crate) struct Pen(File);

impl Pen {
    pub(crate) fn note(&self, line: &str) {
        (&self.0).write_all(format!("{line}\n").as_bytes()).expect("the note is written");
    }
}

impl Notes {
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log.db")
    }

    pub(crate) fn pen(&self, file: &str) -> Pen {
        let mut options = File::options();
        Pen(options.create(true).append(true).open(self.folder.join(file)).expect("the notes open"))
    }

    fn lines(&self, file: &str) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        // The last line may be half there while somebody writes it.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    /// Whether the process of this name has its subscriptions.
    pub(crate) fn is_ready(&self, run: &str) -> bool {
        self.lines("ready").iter().any(|line| line[0] == run)
    }

    /// What was about to be published, or what was acknowledged.
    pub(crate) fn numbers(&self, file: &str) -> BTreeSet<Number> {
        self.lines(file).iter().map(|line| number(&line[0], &line[1])).collect()
    }

    /// What handlers did, in order.
    pub(crate) fn handled(&self) -> Vec<Handled> {
        let lines = self.lines("handled");
        lines
            .iter()
            .map(|line| Handled {
                run: line[0].clone(),
                what: match line[1].as_str() {
                    "begun" => What::Begun,
                    "failed" => What::Failed,
                    "done" => What::Done,
                    other => panic!("`{other}` is no note"),
                },
                group: line[2].clone(),
                event: number(&line[3], &line[4]),
                attempt: line[5].parse().expect("an attempt"),
            })
            .collect()
    }
}

fn number(key: &str, number: &str) -> Number {
    Number { key: key.parse().expect("a key"), number: number.parse().expect("a number") }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Begun,
    Failed,
    Done,
}

/// How many kills beside an event may count as its attempts.
pub(crate) const KILLS: u32 = 2;

/// One note of a handler.
#[derive(Clone, Debug)]
pub(crate) struct Handled {
    /// Which process.
    pub(crate) run: String,
    pub(crate) what: What,
    pub(crate) group: String,
    pub(crate) event: Number,
    pub(crate) attempt: u32,
}

/// What one group has done in all.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) done: BTreeSet<Number>,
    pub(crate) handled: usize,
    /// Events that were done again, in each run.
    pub(crate) repeats: BTreeMap<String, usize>,
    /// Events that were done before an earlier one of their key.
    pub(crate) reordered: Vec<Number>,
    /// Attempts that do not follow from the ones before them.
    pub(crate) miscounted: Vec<(Number, u32, u32)>,
}

impl Told {
    pub(crate) fn of(handled: &[Handled], group: &str) -> Self {
        let mut told = Self::default();
        let mut last_of: BTreeMap<u64, u64> = BTreeMap::new();
        let mut attempts: BTreeMap<Number, (u32, &str)> = BTreeMap::new();
        for note in handled.iter().filter(|note| note.group == group && note.what != What::Begun) {
            // The same attempt is made again where nothing was saved of it. Kills that met an event in a handler may
            // count as well, but not so often that it is given up.
            let (before, run) = attempts.insert(note.event, (note.attempt, &note.run)).unwrap_or((1, ""));
            let most = before + if run == note.run { 1 } else { 1 + KILLS };
            if !(before..=most).contains(&note.attempt) {
                told.miscounted.push((note.event, before, note.attempt));
            }
            if note.what == What::Failed {
                continue;
            }
            told.handled += 1;
            if !told.done.insert(note.event) {
                *told.repeats.entry(note.run.clone()).or_default() += 1;
                continue;
            }
            let last = last_of.entry(note.event.key).or_default();
            if note.event.number < *last {
                told.reordered.push(note.event);
            }
            *last = note.event.number.max(*last);
        }
        told
    }
}

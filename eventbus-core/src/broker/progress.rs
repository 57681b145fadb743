//! How far a group has come in an ordered source: what is settled, what is not, and what of it is saved.

use super::Offset;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included};

/// How far a group has come in one ordered source (a log, a partition), for a broker that saves a cursor.
///
/// Deliveries are opened in the order of the source and settled in any order. What is saved is a cursor that never
/// passes an unfinished delivery, and a note for each unfinished delivery that others have overtaken or that has
/// something to be remembered, such as its attempts: `N`. A save is the difference to the last one that was committed,
/// so it costs what has changed, however much is open.
///
/// It is a plain value, without a lock, a clock or a task: it lives under the lock of the subscription that it belongs
/// to. A save that failed changes nothing; what it held is part of the next one.
///
/// ```
/// use eventbus_core::broker::{Offset, Progress, Saved};
///
/// let mut progress = Progress::resume(Saved { cursor: Offset::new(1), reached: Offset::new(1), notes: [].into() });
/// for place in 1..=3 {
///     progress.open(Offset::new(place), "first attempt");
/// }
/// progress.settle(Offset::new(2));
///
/// let save = progress.begin_save(&[]).unwrap();
/// assert_eq!(save.cursor(), Offset::new(1), "1 is unfinished");
/// assert_eq!(save.reached(), Offset::new(3), "2 is settled, and is not to be delivered again");
/// assert_eq!(save.changed(), [(Offset::new(1), "first attempt")]);
/// // … the broker writes it …
/// progress.end_save(save, true);
/// ```
#[derive(Debug)]
pub struct Progress<N> {
    /// What was opened and is not settled.
    open: BTreeMap<Offset, Open<N>>,
    /// Everything below was opened, or is not the group's.
    seen: Offset,
    /// Everything that was settled or noted is below.
    touched: Offset,
    /// The cursor of the last committed save, and how far that one has reached.
    saved: (Offset, Offset),
    /// Open deliveries that have another note than the saved one.
    changed: BTreeSet<Offset>,
    /// Settled deliveries that may have a saved note.
    gone: BTreeSet<Offset>,
    /// How many were settled or noted since the last committed save began.
    unsaved: usize,
    saving: bool,
}

#[derive(Debug)]
struct Open<N> {
    note: N,
    /// The note may be saved, or is part of a save that is under way.
    saved: bool,
}

/// What is saved of a [`Progress`], as it is read again after a take-over, a restart or a rebalance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved<N> {
    /// Everything below is settled.
    pub cursor: Offset,
    /// Everything below that has no note is settled; nothing from here on is.
    pub reached: Offset,
    /// What was unfinished below `reached`.
    pub notes: BTreeMap<Offset, N>,
}

/// One save: what has changed since the last one that was committed. It goes back to [`Progress::end_save`].
#[derive(Debug)]
#[must_use = "a save that is not ended keeps every other from beginning"]
pub struct Save<N> {
    cursor: Offset,
    reached: Offset,
    changed: Vec<(Offset, N)>,
    gone: Vec<Offset>,
    settled_by_it: Vec<Offset>,
    unsaved: usize,
}

impl<N> Save<N> {
    /// Everything below is settled, once this is committed.
    #[must_use]
    pub fn cursor(&self) -> Offset {
        self.cursor
    }

    /// Everything below that has no note is settled, once this is committed.
    #[must_use]
    pub fn reached(&self) -> Offset {
        self.reached
    }

    /// The notes to write, over earlier ones of the same deliveries.
    #[must_use]
    pub fn changed(&self) -> &[(Offset, N)] {
        &self.changed
    }

    /// The notes to remove, where they are there.
    #[must_use]
    pub fn gone(&self) -> &[Offset] {
        &self.gone
    }
}

impl<N: Clone> Progress<N> {
    /// Goes on from what was saved. What has a note there is open.
    #[must_use]
    pub fn resume(saved: Saved<N>) -> Self {
        let Saved { cursor, reached, notes } = saved;
        Self {
            open: notes.into_iter().map(|(at, note)| (at, Open { note, saved: true })).collect(),
            seen: reached,
            touched: reached,
            saved: (cursor, reached),
            changed: BTreeSet::new(),
            gone: BTreeSet::new(),
            unsaved: 0,
            saving: false,
        }
    }

    /// Opens the delivery at `at`; whatever else of the source is before it is not the group's. `false`: it was opened
    /// or skipped before, and is not to be handed out once more.
    pub fn open(&mut self, at: Offset, note: N) -> bool {
        if at < self.seen {
            return false;
        }
        self.seen = after(at);
        match self.open.entry(at) {
            // It was resumed from a note behind what was reached.
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(Open { note, saved: false });
                true
            }
        }
    }

    /// Remembers something of an open delivery. `false`: it is not open here.
    pub fn note(&mut self, at: Offset, note: N) -> bool {
        let Some(open) = self.open.get_mut(&at) else { return false };
        open.note = note;
        self.changed.insert(at);
        self.touched = self.touched.max(after(at));
        self.unsaved += 1;
        true
    }

    /// Settles an open delivery. `false`: it is not open here.
    pub fn settle(&mut self, at: Offset) -> bool {
        let settled = self.close(at);
        self.unsaved += usize::from(settled);
        settled
    }

    /// Everything below `at` was opened, or is not the group's.
    pub fn skip_to(&mut self, at: Offset) {
        self.seen = self.seen.max(at);
    }

    /// Begins a save, of which `settled_by_it` are settled as well if it is committed: their dead letters are part of
    /// the same transaction. None where nothing has changed, and while another save is under way.
    pub fn begin_save(&mut self, settled_by_it: &[Offset]) -> Option<Save<N>> {
        if self.saving {
            return None;
        }
        let by_it: BTreeSet<Offset> =
            settled_by_it.iter().copied().filter(|at| self.open.contains_key(at)).collect();
        let cursor = self.cursor_without(&by_it);
        let touched = by_it.last().map_or(self.touched, |at| self.touched.max(after(*at)));
        // What was not seen yet is neither settled nor noted, wherever a note may stand.
        let reached = touched.min(self.seen).max(cursor);
        // What lies below where the last save has reached has a note already.
        let overtaken = self.open.range((Included(self.saved.1), Excluded(reached))).map(|(at, _)| *at);
        let mut noted: BTreeSet<Offset> = overtaken.collect();
        noted.append(&mut self.changed);
        let mut changed = Vec::with_capacity(noted.len());
        for at in noted.difference(&by_it) {
            if let Some(open) = self.open.get_mut(at) {
                open.saved = true;
                changed.push((*at, open.note.clone()));
            }
        }
        let mut gone: Vec<Offset> = std::mem::take(&mut self.gone).into_iter().collect();
        gone.extend(by_it.iter().filter(|at| self.open.get(at).is_some_and(|open| open.saved)));
        if changed.is_empty() && gone.is_empty() && by_it.is_empty() && self.saved == (cursor, reached) {
            self.unsaved = 0;
            return None;
        }
        self.saving = true;
        let settled_by_it = by_it.into_iter().collect();
        Some(Save { cursor, reached, changed, gone, settled_by_it, unsaved: self.unsaved })
    }

    /// Ends a save, which was committed or has failed.
    pub fn end_save(&mut self, save: Save<N>, committed: bool) {
        self.saving = false;
        if committed {
            self.saved = (save.cursor, save.reached);
            self.unsaved -= save.unsaved;
            for at in &save.settled_by_it {
                self.close(*at);
                // Its note was removed by the save.
                self.gone.remove(at);
            }
            return;
        }
        let still_open = save.changed.into_iter().map(|(at, _)| at).chain(save.settled_by_it);
        // What is behind where the last committed save has reached is found again by the next one.
        self.changed.extend(still_open.filter(|at| *at < self.saved.1 && self.open.contains_key(at)));
        self.gone.extend(save.gone.into_iter().filter(|at| !self.open.contains_key(at)));
    }

    /// What is remembered of an open delivery; none where it is not open here.
    #[must_use]
    pub fn get(&self, at: Offset) -> Option<&N> {
        self.open.get(&at).map(|open| &open.note)
    }

    /// How many deliveries are open.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.open.len()
    }

    /// How many deliveries were settled or noted since the last committed save began: what a crash would repeat.
    #[must_use]
    pub fn unsaved(&self) -> usize {
        self.unsaved
    }

    /// Whether a save would move the cursor.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.cursor_without(&BTreeSet::new()) > self.saved.0
    }

    /// The first unfinished delivery that is not among `settled`, or what comes behind everything that was seen.
    fn cursor_without(&self, settled: &BTreeSet<Offset>) -> Offset {
        let first = self.open.keys().find(|at| !settled.contains(at));
        first.map_or(self.seen, |first| self.seen.min(*first)).max(self.saved.0)
    }

    fn close(&mut self, at: Offset) -> bool {
        let Some(open) = self.open.remove(&at) else { return false };
        self.changed.remove(&at);
        self.touched = self.touched.max(after(at));
        if open.saved {
            self.gone.insert(at);
        }
        true
    }
}

fn after(at: Offset) -> Offset {
    Offset::new(at.get().saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(place: u128) -> Offset {
        Offset::new(place)
    }

    fn fresh() -> Saved<u32> {
        Saved { cursor: at(0), reached: at(0), notes: BTreeMap::new() }
    }

    /// Writes a save as a broker does.
    fn write(file: &mut Saved<u32>, save: &Save<u32>) {
        (file.cursor, file.reached) = (save.cursor(), save.reached());
        save.gone().iter().for_each(|gone| _ = file.notes.remove(gone));
        file.notes.extend(save.changed().iter().copied());
    }

    /// What a crash at this moment would deliver again, out of the first `seen` of the source.
    fn again(file: &Saved<u32>, seen: u128) -> BTreeSet<u128> {
        let behind = (file.reached.get()..seen).filter(|place| is_ours(*place));
        file.notes.keys().map(|noted| noted.get()).chain(behind).collect()
    }

    /// Some places of the source are not the group's.
    fn is_ours(place: u128) -> bool {
        place % 5 != 3
    }

    #[test]
    fn what_was_overtaken_is_noted_once_and_its_note_goes_when_it_is_settled() {
        let mut progress = Progress::resume(fresh());
        (0..4).for_each(|place| assert!(progress.open(at(place), 1)));
        assert!(!progress.open(at(2), 1), "it is open");
        assert!(progress.settle(at(2)) && !progress.settle(at(2)));
        let save = progress.begin_save(&[]).unwrap();
        assert_eq!((save.cursor(), save.reached()), (at(0), at(3)));
        assert_eq!(save.changed(), [(at(0), 1), (at(1), 1)]);
        assert!(progress.begin_save(&[]).is_none(), "one at a time");
        progress.end_save(save, true);
        assert!(progress.begin_save(&[]).is_none(), "nothing has changed");
        progress.settle(at(0));
        progress.settle(at(1));
        let save = progress.begin_save(&[]).unwrap();
        assert_eq!((save.cursor(), save.reached()), (at(3), at(3)));
        assert_eq!((save.changed(), save.gone()), (&[][..], &[at(0), at(1)][..]));
        progress.end_save(save, true);
    }

    #[test]
    fn a_dead_letter_is_settled_by_the_save_that_holds_it_or_stays_open() {
        let mut progress = Progress::resume(fresh());
        (0..3).for_each(|place| assert!(progress.open(at(place), 1)));
        let save = progress.begin_save(&[at(1)]).unwrap();
        assert_eq!((save.cursor(), save.reached()), (at(0), at(2)), "1 is not delivered again");
        assert_eq!(save.changed(), [(at(0), 1)]);
        progress.end_save(save, false);
        assert_eq!(progress.get(at(1)), Some(&1));
        let save = progress.begin_save(&[at(1)]).unwrap();
        progress.end_save(save, true);
        assert_eq!((progress.get(at(1)), progress.unfinished()), (None, 2));
    }

    #[test]
    fn a_note_behind_what_was_reached_hides_nothing_before_it() {
        let mut progress = Progress::resume(Saved { notes: [(at(5), 3)].into(), ..fresh() });
        progress.note(at(5), 4);
        let save = progress.begin_save(&[]).unwrap();
        assert_eq!((save.cursor(), save.reached()), (at(0), at(0)));
        progress.end_save(save, true);
        (0..5).for_each(|place| assert!(progress.open(at(place), 1)));
        assert!(!progress.open(at(5), 1), "it was resumed");
    }

    #[test]
    fn a_save_costs_what_has_changed_however_much_is_open() {
        let mut progress = Progress::resume(fresh());
        (0..20_000).for_each(|place| assert!(progress.open(at(place), 1)));
        progress.settle(at(19_999));
        let save = progress.begin_save(&[]).unwrap();
        assert_eq!(save.changed().len(), 19_999);
        progress.end_save(save, true);
        progress.note(at(7), 2);
        progress.settle(at(8));
        let save = progress.begin_save(&[]).unwrap();
        assert_eq!((save.changed(), save.gone()), (&[(at(7), 2)][..], &[at(8)][..]));
        progress.end_save(save, true);
    }

    /// What is true, in a few lines: what was settled, and what was noted of the rest.
    #[derive(Clone, Default)]
    struct Model {
        seen: u128,
        settled: BTreeSet<u128>,
        notes: BTreeMap<u128, u32>,
    }

    impl Model {
        fn unfinished(&self) -> BTreeSet<u128> {
            (0..self.seen).filter(|place| is_ours(*place) && !self.settled.contains(place)).collect()
        }
    }

    /// One random life of a group, with saves that fail and crashes at any moment.
    fn live(seed: u64, steps: usize) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut model, mut file) = (Model::default(), fresh());
        let mut progress = Progress::resume(file.clone());
        // A save under way: with what was true when it began, and what it settles.
        let mut saving: Option<(Save<u32>, Model, Vec<u128>)> = None;
        for step in 0..steps {
            let open: Vec<u128> = model.unfinished().into_iter().collect();
            let context = format!("seed {seed}, step {step}");
            let leaves = |place: &u128| saving.as_ref().is_some_and(|(.., leaving)| leaving.contains(place));
            match random.u32(0..12) {
                0..4 => {
                    if is_ours(model.seen) {
                        assert!(progress.open(at(model.seen), 1), "{context}");
                    } else {
                        progress.skip_to(at(model.seen + 1));
                    }
                    model.seen += 1;
                }
                4..7 => {
                    if let Some(place) = random.choice(&open).filter(|place| !leaves(place)) {
                        assert!(progress.settle(at(*place)), "{context}");
                        model.settled.insert(*place);
                    }
                }
                7 => {
                    if let Some(place) = random.choice(&open) {
                        let note = random.u32(2..100);
                        assert!(progress.note(at(*place), note), "{context}");
                        model.notes.insert(*place, note);
                    }
                }
                8 if saving.is_none() => {
                    let leaving: Vec<u128> = open.into_iter().filter(|_| random.u32(0..8) == 0).collect();
                    let by_it: Vec<Offset> = leaving.iter().map(|place| at(*place)).collect();
                    if let Some(save) = progress.begin_save(&by_it) {
                        saving = Some((save, model.clone(), leaving));
                    } else {
                        assert_eq!(
                            again(&file, model.seen),
                            model.unfinished(),
                            "{context}: nothing to save"
                        );
                    }
                }
                9 | 10 => {
                    let Some((save, mut then, leaving)) = saving.take() else { continue };
                    let committed = random.bool();
                    if committed {
                        write(&mut file, &save);
                        model.settled.extend(&leaving);
                        then.settled.extend(&leaving);
                        // Exactly what was unfinished when the save began, with its notes, is delivered again.
                        assert_eq!(again(&file, then.seen), then.unfinished(), "{context}");
                        for (noted, note) in &file.notes {
                            let expected = then.notes.get(&noted.get()).unwrap_or(&1);
                            assert_eq!(note, expected, "{context}: the note of {noted}");
                        }
                    }
                    progress.end_save(save, committed);
                }
                11 if random.u32(0..8) == 0 => {
                    let again = again(&file, model.seen);
                    assert!(model.unfinished().is_subset(&again), "{context}: something is lost");
                    let repeats = again.difference(&model.unfinished()).count();
                    assert!(repeats <= progress.unsaved(), "{context}: {repeats} are repeated");
                    assert!(
                        model.unfinished().first().is_none_or(|first| at(*first) >= file.cursor),
                        "{context}"
                    );
                    // What is behind what was reached is read again, as if it were new.
                    progress = Progress::resume(file.clone());
                    saving = None;
                    model.settled.retain(|place| !again.contains(place));
                    model.notes = file.notes.iter().map(|(noted, note)| (noted.get(), *note)).collect();
                    model.seen = file.reached.get();
                }
                _ => {}
            }
            let unfinished: Vec<u128> = progress.open.keys().map(|open| open.get()).collect();
            assert_eq!(unfinished, Vec::from_iter(model.unfinished()), "{context}");
        }
    }

    #[test]
    fn nothing_is_lost_or_repeated_without_need_whatever_comes_between() {
        let seed: u64 =
            std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
        // Short lives first, so that what fails is short.
        for steps in [5, 10, 20, 50, 200] {
            (0..400).for_each(|life| live(seed.wrapping_add(life), steps));
        }
    }
}

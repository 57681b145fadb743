//! Dead letters of a subscription that were published again: deliveries that are settled one by one, beside the cursor.

use super::rows::Noted;
use std::collections::{BTreeMap, BTreeSet};

/// So many are known at most, those included that wait for a retry.
const MOST: usize = 16_384;

/// What was published again and is known here.
#[derive(Default)]
pub(super) struct Letters {
    open: BTreeMap<i64, Noted>,
    /// Open ones that have another note than the saved one.
    changed: BTreeSet<i64>,
    /// Settled ones whose rows are still there.
    gone: BTreeSet<i64>,
    unsaved: usize,
    /// Where there are some that are not known here.
    expected: BTreeSet<i64>,
    /// There may be some elsewhere, too.
    more: bool,
}

/// What a save writes of them.
#[derive(Default)]
pub(super) struct LettersSave {
    pub(super) changed: Vec<(i64, Noted)>,
    /// Whose rows are removed.
    pub(super) gone: Vec<i64>,
    unsaved: usize,
}

impl Letters {
    /// Opens one that was found. `false`: it is known already.
    pub(super) fn open(&mut self, at: i64, noted: Noted) -> bool {
        let unknown = !self.open.contains_key(&at) && !self.gone.contains(&at);
        if unknown {
            self.open.insert(at, noted);
        }
        unknown
    }

    pub(super) fn get(&self, at: i64) -> Option<Noted> {
        self.open.get(&at).copied()
    }

    pub(super) fn note(&mut self, at: i64, noted: Noted) -> bool {
        let Some(known) = self.open.get_mut(&at) else { return false };
        *known = noted;
        self.changed.insert(at);
        self.unsaved += 1;
        true
    }

    pub(super) fn settle(&mut self, at: i64) -> bool {
        let settled = self.open.remove(&at).is_some();
        if settled {
            self.changed.remove(&at);
            self.gone.insert(at);
            self.unsaved += 1;
        }
        settled
    }

    /// How many are open.
    pub(super) fn unfinished(&self) -> usize {
        self.open.len()
    }

    /// How many rows are known here, or are about to be.
    pub(super) fn known(&self) -> usize {
        self.open.len() + self.gone.len() + self.expected.len()
    }

    /// Whether there is room for more: fewer than `enough` are under way. Those that wait for a retry are not, since they
    /// may do so for long; they have a limit of their own.
    pub(super) fn has_room(&self, enough: usize) -> bool {
        let waits = |noted: &&Noted| noted.parked.is_some();
        self.known() < enough.max(MOST) && self.known() - self.open.values().filter(waits).count() < enough
    }

    pub(super) fn unsaved(&self) -> usize {
        self.unsaved
    }

    /// Whether there may be some that are not known here.
    pub(super) fn has_more(&self) -> bool {
        self.more || !self.expected.is_empty()
    }

    /// Whether to look for some: where they are expected, or elsewhere with room for more.
    pub(super) fn wants_more(&self, enough: usize) -> bool {
        !self.expected.is_empty() || (self.more && self.has_room(enough))
    }

    /// Whether there may be some that are not known here, and nobody knows where.
    pub(super) fn has_more_elsewhere(&self) -> bool {
        self.more
    }

    pub(super) fn set_more(&mut self, more: bool) {
        self.more = more;
    }

    /// There is one at `at`.
    pub(super) fn expect(&mut self, at: i64) {
        self.expected.insert(at);
    }

    /// Where some are that are not known here.
    pub(super) fn expected(&self) -> Vec<i64> {
        self.expected.iter().copied().collect()
    }

    /// It was looked there.
    pub(super) fn looked(&mut self, at: &[i64]) {
        at.iter().for_each(|at| _ = self.expected.remove(at));
    }

    /// Begins a save that settles `settled_by_it` as well.
    pub(super) fn begin_save(&mut self, settled_by_it: &[i64]) -> LettersSave {
        let changed = std::mem::take(&mut self.changed).into_iter().filter(|at| !settled_by_it.contains(at));
        let changed = changed.filter_map(|at| Some((at, self.get(at)?))).collect();
        let settled_by_it = settled_by_it.iter().filter(|at| self.open.contains_key(at));
        let gone = self.gone.iter().chain(settled_by_it).copied().collect();
        LettersSave { changed, gone, unsaved: self.unsaved }
    }

    pub(super) fn end_save(&mut self, save: LettersSave, committed: bool) {
        if !committed {
            let changed = save.changed.into_iter().map(|(at, _)| at).chain(save.gone);
            self.changed.extend(changed.filter(|at| self.open.contains_key(at)));
            return;
        }
        for at in save.gone {
            self.gone.remove(&at);
            self.open.remove(&at);
            self.changed.remove(&at);
        }
        self.unsaved -= save.unsaved;
    }
}

impl LettersSave {
    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::broker::Parked;
    use jiff::Timestamp;

    const FIRST: Noted = Noted::FIRST;
    const SECOND: Noted = Noted { attempt: 2, ..Noted::FIRST };

    #[test]
    fn what_is_settled_is_not_found_again_until_its_row_is_gone() {
        let mut letters = Letters::default();
        assert!(letters.open(7, FIRST) && !letters.open(7, FIRST));
        assert!(letters.settle(7) && !letters.settle(7));
        assert!(!letters.open(7, FIRST), "its row is still there");
        let save = letters.begin_save(&[]);
        assert_eq!(save.gone, [7]);
        letters.end_save(save, false);
        assert!(!letters.open(7, FIRST), "its row is still there");
        let save = letters.begin_save(&[]);
        letters.end_save(save, true);
        assert_eq!(letters.unsaved(), 0);
        assert!(letters.open(7, FIRST), "it was published again once more");
    }

    #[test]
    fn what_is_expected_is_looked_for_however_much_is_known() {
        let mut letters = Letters::default();
        (1..=4).for_each(|at| letters.expect(at));
        assert!(letters.wants_more(2));
        letters.looked(&letters.expected());
        assert!(!letters.wants_more(2));
        letters.set_more(true);
        assert!(letters.wants_more(2));
        (1..=4).for_each(|at| assert!(letters.open(at, FIRST)));
        assert!(!letters.wants_more(2), "enough is known for now");
    }

    #[test]
    fn those_that_wait_for_a_retry_keep_no_others_out_up_to_a_limit() {
        let due = Timestamp::MAX;
        let parked = Parked { first_failed_at: due, last_failed_at: due, due };
        let mut letters = Letters::default();
        letters.set_more(true);
        let waiting = Noted { parked: Some(parked), ..SECOND };
        (0..1_000).for_each(|at| assert!(letters.open(at, FIRST) && letters.note(at, waiting)));
        assert!(letters.wants_more(2));
        assert!(letters.open(1_000, FIRST) && letters.wants_more(2));
        assert!(letters.open(1_001, FIRST) && !letters.wants_more(2), "enough are under way");
        assert!(letters.settle(1_000) && letters.settle(1_001));
        let save = letters.begin_save(&[]);
        letters.end_save(save, true);
        (1_000..MOST as i64).for_each(|at| assert!(letters.open(at, waiting)));
        assert!(!letters.wants_more(2), "memory is bounded");
    }

    #[test]
    fn a_save_that_failed_is_part_of_the_next_one() {
        let mut letters = Letters::default();
        for at in [1, 2] {
            assert!(letters.open(at, FIRST) && letters.note(at, SECOND));
        }
        let save = letters.begin_save(&[2]);
        assert_eq!((&save.changed[..], &save.gone[..]), (&[(1, SECOND)][..], &[2][..]));
        letters.end_save(save, false);
        let save = letters.begin_save(&[]);
        assert_eq!((&save.changed[..], &save.gone[..]), (&[(1, SECOND), (2, SECOND)][..], &[][..]));
        letters.end_save(save, true);
        assert!(letters.begin_save(&[]).is_empty());
        assert_eq!((letters.unfinished(), letters.unsaved()), (2, 0));
    }
}

//! Merging what was read of several streams into one order.
//!
//! A read takes so many entries of each stream at most, and all streams at one moment. Where one had more, entries of
//! others that stand behind its last one have to wait for what comes of it next. A stream of which some wait need not be
//! read: so no more wait than a read takes of each.

use crate::place::Place;
use std::collections::{BTreeMap, BTreeSet};

/// What was read and has to wait, by its place and its stream.
pub(crate) struct Merge<T> {
    waiting: BTreeMap<(Place, usize), T>,
}

impl<T> Merge<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: BTreeMap::new() }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Of which streams some wait.
    pub(crate) fn streams(&self) -> BTreeSet<usize> {
        self.waiting.keys().map(|(_, stream)| *stream).collect()
    }

    /// Lets an entry wait that stands behind some that are not read yet.
    pub(crate) fn hold(&mut self, stream: usize, place: Place, entry: T) {
        self.waiting.insert((place, stream), entry);
    }

    /// Takes what one read has found, `limit` entries of each stream at most, by the number of its stream and in its
    /// order; gives what has its place in the order of all now. A stream of which some wait may be left out.
    pub(crate) fn take(
        &mut self,
        read: impl IntoIterator<Item = (usize, Vec<(Place, T)>)>,
        limit: usize,
    ) -> Vec<(usize, Place, T)> {
        let mut bound = Place::END;
        // The last ones of those that are not read, of which nobody knows what follows.
        let mut unread: BTreeMap<usize, Place> =
            self.waiting.keys().map(|(place, stream)| (*stream, *place)).collect();
        for (stream, entries) in read {
            unread.remove(&stream);
            if entries.len() >= limit
                && let Some((last, _)) = entries.last()
            {
                bound = bound.min(*last);
            }
            self.waiting.extend(entries.into_iter().map(|(place, entry)| ((place, stream), entry)));
        }
        bound = unread.into_values().fold(bound, Place::min);
        let later = match bound {
            Place::END => BTreeMap::new(),
            bound => self.waiting.split_off(&(bound.next(), 0)),
        };
        let ready = std::mem::replace(&mut self.waiting, later);
        ready.into_iter().map(|((place, stream), entry)| (stream, place, entry)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `limit` entries of each stream; `spares`: of those only of which none wait.
    fn read(merge: &mut Merge<()>, left: &mut [Vec<Place>], limit: usize, spares: bool, came: &mut Vec<u64>) {
        let waiting = if spares { merge.streams() } else { BTreeSet::new() };
        let streams = left.iter_mut().enumerate().filter(|(stream, _)| !waiting.contains(stream));
        let read = streams.map(|(stream, left)| {
            let count = left.len().min(limit);
            (stream, left.drain(..count).map(|place| (place, ())).collect())
        });
        let read: Vec<(usize, Vec<(Place, ())>)> = read.collect();
        came.extend(merge.take(read, limit).into_iter().map(|(_, place, ())| place.millis));
    }

    #[test]
    fn entries_come_in_one_order_and_none_is_left_out_whatever_each_read_finds() {
        let mut random = fastrand::Rng::with_seed(9);
        for _ in 0..300 {
            let (streams, limit) = (random.usize(1..5), random.usize(1..4));
            let mut left: Vec<Vec<Place>> = vec![Vec::new(); streams];
            let (mut merge, mut published, mut came) = (Merge::new(), 0, Vec::new());
            // Some of one stream were read before, and are behind what is not read yet of the others.
            for _ in 0..if streams > 1 { random.usize(..4) } else { 0 } {
                published += 1;
                left[streams - 1].push(Place { millis: published, number: 0 });
                published += 1;
                merge.hold(0, Place { millis: published, number: 0 }, ());
            }
            for step in 0..60 {
                // Some are published between two reads, but not at the end.
                for _ in 0..if step < 30 { random.usize(..6) } else { 0 } {
                    published += 1;
                    left[random.usize(..streams)].push(Place { millis: published, number: 0 });
                }
                read(&mut merge, &mut left, limit, random.bool(), &mut came);
            }
            while left.iter().any(|left| !left.is_empty()) || merge.len() > 0 {
                let before = came.len();
                read(&mut merge, &mut left, limit, true, &mut came);
                assert!(came.len() > before, "each read gets on");
                assert!(merge.len() <= (limit + 1) * streams + 4, "{} wait", merge.len());
            }
            assert_eq!(came, Vec::from_iter(1..=published));
        }
    }
}

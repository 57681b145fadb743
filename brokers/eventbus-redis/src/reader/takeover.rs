//! Taking over: what is unfinished comes first, in its order, whoever had it.

use super::Reader;
use crate::delivery::read_note;
use crate::entry::{self, Pending};
use crate::keeper::millis;
use crate::merge::Merge;
use crate::place::Place;
use crate::script;
use crate::suspects::{Found, Note};
use crate::trouble::Trouble;
use redis::Value;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How many unfinished deliveries are listed at once.
const PAGE: usize = 1_000;

/// An unfinished delivery.
pub(super) struct Left {
    place: Place,
    source: usize,
    /// It is ours already.
    own: bool,
}

impl Reader<'_> {
    /// Finds what is unfinished: that comes first, in its order, whoever had it.
    pub(super) async fn take_over(&mut self) -> Result<(), Trouble> {
        let (claim, what) = (self.claim, "cannot take a group over");
        let keys = &claim.store.keys;
        if !claim.competing && !self.fence().await? {
            claim.lose();
            return Ok(());
        }
        self.merge = Merge::new();
        // What is known here is not to come twice.
        let known: HashSet<_> = claim.known().into_iter().collect();
        self.read_notes().await?;
        let suspected = self.suspected().await?;
        let mended = self.send(what, redis::cmd("HKEYS").arg(keys.mended(&claim.group))).await?;
        self.mended = entry::list(mended).into_iter().filter_map(entry::text).collect();
        let (mut left, found) = self.pending(&suspected).await?;
        left.retain(|left| !known.contains(&(left.source, left.place)));
        if !claim.competing {
            self.remove_notes(&suspected, &left, &known).await?;
        }
        claim.state().suspects.retain(|spot| known.contains(&spot));
        self.suspect(found).await?;
        self.left = left.into();
        self.unread = if claim.competing { Place::END } else { self.first_unread().await? };
        self.tidy().await
    }

    /// The first entry of any stream that was not delivered yet.
    async fn first_unread(&mut self) -> Result<Place, Trouble> {
        let mut first = Place::END;
        for (number, source) in self.sources() {
            let mut command = redis::cmd("XRANGE");
            command.arg(&source.key).arg(self.seen[number].next().to_string()).arg("+").arg("COUNT").arg(1);
            let found = entry::entries(self.send("cannot take a group over", &command).await?);
            first = found.first().map_or(first, |entry| first.min(entry.place));
        }
        Ok(first)
    }

    /// Reads what is known of retries that waited.
    async fn read_notes(&mut self) -> Result<(), Trouble> {
        let parked = self.claim.store.keys.parked(&self.claim.group);
        let notes = self.send("cannot read the notes of retries", redis::cmd("HGETALL").arg(parked)).await?;
        let notes: Vec<_> = entry::list(notes).into_iter().filter_map(entry::text).collect();
        let note = |pair: &[String]| Some((pair[0].clone(), read_note(pair.get(1)?)?));
        self.notes = notes.chunks(2).filter_map(note).collect();
        Ok(())
    }

    /// Reads what is noted of events that may have ended a process.
    async fn suspected(&mut self) -> Result<HashMap<String, Note>, Trouble> {
        let key = self.claim.store.keys.suspects(&self.claim.group);
        let notes = self.send("cannot read the notes of suspects", redis::cmd("HGETALL").arg(key)).await?;
        let notes: Vec<_> = entry::list(notes).into_iter().filter_map(entry::text).collect();
        let note = |pair: &[String]| Some((pair[0].clone(), Note::read(pair.get(1)?)?));
        Ok(notes.chunks(2).filter_map(note).collect())
    }

    /// Removes the notes of what is not unfinished any more.
    async fn remove_notes(
        &mut self,
        suspected: &HashMap<String, Note>,
        left: &[Left],
        known: &HashSet<(usize, Place)>,
    ) -> Result<(), Trouble> {
        if suspected.is_empty() {
            return Ok(());
        }
        let sources: HashMap<_, _> = self.sources().into_iter().collect();
        let unfinished = left.iter().map(|left| (left.source, left.place)).chain(known.iter().copied());
        let fields = unfinished.filter_map(|(source, place)| Some(sources.get(&source)?.field(place)));
        let unfinished: HashSet<_> = fields.collect();
        let of_ours: Vec<_> = sources.values().map(|source| source.fields()).collect();
        let is_ours = |field: &str| of_ours.iter().any(|fields| field.starts_with(fields.as_str()));
        let gone = suspected.keys().filter(|field| !unfinished.contains(*field) && is_ours(field));
        let removes = gone.cloned().collect();
        self.suspect(Found { removes, ..Found::default() }).await
    }

    /// Takes note of what was found of events that may have ended a process, before they are taken over.
    async fn suspect(&mut self, found: Found) -> Result<(), Trouble> {
        let (claim, what) = (self.claim, "cannot note suspects");
        let Found { suspects, crashed, writes, removes } = found;
        let key = claim.store.keys.suspects(&claim.group);
        if !writes.is_empty() {
            self.send(what, redis::cmd("HSET").arg(&key).arg(writes)).await?;
        }
        if !removes.is_empty() {
            self.send(what, redis::cmd("HDEL").arg(&key).arg(removes)).await?;
        }
        let mut state = claim.state();
        if crashed {
            state.suspects.be_careful();
        }
        suspects.into_iter().for_each(|(spot, suspect)| state.suspects.add(spot, suspect));
        claim.careful.store(state.suspects.are_there(), Ordering::Release);
        Ok(())
    }

    /// Lists unfinished deliveries in their order: all of them, or where processes compete, our own.
    async fn pending(&mut self, suspected: &HashMap<String, Note>) -> Result<(Vec<Left>, Found), Trouble> {
        let claim = self.claim;
        let (mut left, mut found) = (Vec::new(), Found::default());
        for (number, source) in self.sources() {
            let mut from = "-".to_owned();
            loop {
                let mut command = redis::cmd("XPENDING");
                command.arg(&source.key).arg(&claim.group).arg(&from).arg("+").arg(PAGE);
                if claim.competing {
                    command.arg(&claim.consumer);
                }
                let page = entry::pending(self.send("cannot list unfinished deliveries", &command).await?);
                let full = page.len() == PAGE;
                if let Some(last) = page.last() {
                    from = format!("({}", last.place);
                }
                for Pending { place, consumer } in page {
                    let (spot, field) = ((number, place), || source.field(place));
                    found.look_at(spot, field, (&consumer, &claim.consumer), suspected);
                    left.push(Left { place, source: number, own: consumer == claim.consumer });
                }
                if !full {
                    break;
                }
            }
        }
        left.sort_unstable_by_key(|left| (left.place, left.source));
        Ok((left, found))
    }

    /// Removes consumers of processes that are gone.
    async fn tidy(&mut self) -> Result<(), Trouble> {
        let claim = self.claim;
        let mut call = script::TIDY.call(&claim.store.keys);
        call.arg(&claim.group).arg(claim.pattern.as_str()).arg(&claim.consumer);
        // Nobody else reads a group that is ours.
        call.arg(if claim.competing { millis(claim.store.settings.lease * 2) } else { 0 });
        self.sources().iter().for_each(|(_, source)| _ = call.arg(&source.key));
        self.send("cannot remove consumers", &call).await.map(drop)
    }

    /// Whether something is pending that is not known here, for whatever reason: it would wait for the next connection.
    pub(super) async fn has_strays(&mut self) -> Result<bool, Trouble> {
        let mut pending = 0;
        for (_, source) in self.sources() {
            let mut command = redis::cmd("XPENDING");
            command.arg(&source.key).arg(&self.claim.group);
            let summary = self.send("cannot count unfinished deliveries", &command).await?;
            if let Some(Value::Int(count)) = entry::list(summary).first() {
                pending += usize::try_from(*count).unwrap_or(0);
            }
        }
        Ok(pending > self.claim.known().len())
    }

    /// Takes over some of what is unfinished.
    pub(super) async fn claim_left(&mut self, count: usize) -> Result<(), Trouble> {
        let claim = self.claim;
        let taken: Vec<Left> = self.left.drain(..count.min(self.left.len())).collect();
        let idle = if claim.competing { claim.store.settings.lease } else { Duration::ZERO };
        let (mut commands, mut numbers) = (Vec::new(), Vec::new());
        for (number, source) in self.sources() {
            for own in [true, false] {
                let of_source = taken.iter().filter(|left| left.source == number && left.own == own);
                let mut of_source = of_source.peekable();
                if of_source.peek().is_none() {
                    continue;
                }
                let mut command = redis::cmd("XCLAIM");
                let idle = if own || idle.is_zero() { 0 } else { millis(idle) };
                command.arg(&source.key).arg(&claim.group).arg(&claim.consumer).arg(idle);
                of_source.for_each(|left| _ = command.arg(left.place.to_string()));
                commands.push(command);
                numbers.push(number);
            }
        }
        let Some(answers) = self.guarded("cannot take deliveries over", commands).await? else {
            taken.into_iter().rev().for_each(|left| self.left.push_front(left));
            return Ok(());
        };
        let mut missing: HashSet<_> = taken.iter().map(|left| (left.source, left.place)).collect();
        let mut deliveries = Vec::new();
        for (number, answer) in numbers.into_iter().zip(answers) {
            let entries = entry::entries(answer);
            self.weigh(&entries);
            for entry in entries {
                missing.remove(&(number, entry.place));
                match entry.place < self.unread {
                    true => deliveries.push(self.delivery(number, entry, true).await?),
                    false => self.merge.hold(number, entry.place, (entry, true)),
                }
            }
        }
        // They were removed, or are with somebody else.
        missing.into_iter().for_each(|spot| _ = claim.state().suspects.forget(spot));
        claim.put_at_hand(deliveries);
        // Whoever had them has nothing any more.
        if self.left.is_empty() { self.tidy().await } else { Ok(()) }
    }

    /// Where processes compete: what others have let lie, since they are gone.
    pub(super) async fn take_from_others(&mut self, idle: Duration) -> Result<(), Trouble> {
        let (claim, sources) = (self.claim, self.sources());
        let mut call = script::STRAYS.call(&claim.store.keys);
        call.arg(&claim.group).arg(claim.pattern.as_str()).arg(&claim.consumer).arg(millis(idle)).arg(PAGE);
        sources.iter().for_each(|(_, source)| _ = call.arg(&source.key));
        let strays = entry::list(self.send("cannot look for unfinished deliveries", &call).await?);
        if !strays.is_empty() {
            self.read_notes().await?;
            let (suspected, mut found) = (self.suspected().await?, Found::default());
            for stray in strays.chunks(3) {
                if let [Value::Int(stream), place, consumer] = stray
                    && let Some((number, source)) =
                        usize::try_from(*stream).ok().and_then(|at| sources.get(at))
                    && let (Some(place), Some(consumer)) =
                        (entry::place_of(place), entry::text(consumer.clone()))
                {
                    let (spot, field) = ((*number, place), || source.field(place));
                    found.look_at(spot, field, (&consumer, &claim.consumer), &suspected);
                    self.left.push_back(Left { place, source: *number, own: false });
                }
            }
            self.suspect(found).await?;
        }
        self.tidy().await
    }
}

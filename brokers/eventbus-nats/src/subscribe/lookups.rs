//! What was noted of events that come again. In a takeover they may be hundreds, of which few have a note, so it is asked once
//! which have one at all.

use super::Task;
use crate::intake::Waiting;
use crate::notes::{self, Noted};
use crate::subscription::Subscription;
use crate::suspects::Begun;
use eventbus_core::broker::BrokerFuture;
use eventbus_core::log;
use eventbus_core::printable::printable;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::{HashMap, VecDeque};
use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How many notes are asked for at once.
const AT_ONCE: usize = 64;
/// The notes of so many events are asked for one by one: a group may have many notes, and which there are is then more than
/// what these events have.
const FEW: usize = 2;

/// Events that wait for their notes.
#[derive(Default)]
pub(super) struct Lookups {
    /// Of which nothing was asked yet.
    queued: Vec<Lookup>,
    /// Which may have a note, that is asked for when it is their turn.
    noted: VecDeque<(Lookup, Noted)>,
    /// It is asked which have one.
    lists: bool,
    /// What was open elsewhere comes.
    takes_over: bool,
    /// Which events had notes as the first of them came. What is not here, nobody notes anything of from then on.
    known: Option<HashMap<u64, Noted>>,
    asked: FuturesUnordered<BrokerFuture<LookedUp>>,
}

/// An event whose note is looked for.
pub(super) struct Lookup {
    epoch: u64,
    waiting: Waiting,
    /// How often the server has delivered it.
    deliveries: u64,
}

/// What comes of that.
pub(super) enum LookedUp {
    /// Which of these events have notes.
    Listed(Vec<Lookup>, HashMap<u64, Noted>),
    Found(Note),
}

/// A note that was looked for.
pub(super) struct Note {
    epoch: u64,
    waiting: Waiting,
    noted: bool,
    /// That a handler was called with it.
    begun: Option<Begun>,
}

impl Lookups {
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// The next answer.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost.
    pub(super) async fn next(&mut self) -> Option<LookedUp> {
        self.asked.next().await
    }

    /// An event has come again.
    pub(super) fn queue(&mut self, epoch: u64, waiting: Waiting, deliveries: u64) {
        self.queued.push(Lookup { epoch, waiting, deliveries });
    }

    /// What waits is not held any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What was open elsewhere comes from now on, all of it at once.
    pub(super) fn begin_takeover(&mut self) {
        (self.takes_over, self.known) = (true, None);
    }

    pub(super) fn end_takeover(&mut self) {
        (self.takes_over, self.known) = (false, None);
    }

    /// Asks for the notes of what has come. What is known to have none comes back.
    fn ask(&mut self, subscription: &Arc<Subscription>) -> Vec<Lookup> {
        let mut without = Vec::new();
        if let Some(known) = self.known.take() {
            let queued = take(&mut self.queued);
            without = self.sort(queued, &known);
            self.known = Some(known);
        } else if !self.lists && (self.queued.len() > FEW || (self.takes_over && !self.queued.is_empty())) {
            self.lists = true;
            let (asked, subscription) = (take(&mut self.queued), Arc::clone(subscription));
            self.asked.push(BrokerFuture::new(async move {
                let noted = subscription.which_are_noted().await;
                LookedUp::Listed(asked, noted)
            }));
        } else if self.asked.is_empty() {
            // What comes while something is asked for waits for that, and is then asked for together.
            self.noted.extend(self.queued.drain(..).map(|lookup| (lookup, Noted::ALL)));
        }
        while self.asked.len() < AT_ONCE
            && let Some((lookup, noted)) = self.noted.pop_front()
        {
            let subscription = Arc::clone(subscription);
            self.asked.push(BrokerFuture::new(async move {
                LookedUp::Found(lookup.find(&subscription, noted).await)
            }));
        }
        without
    }

    /// It is known which events have notes.
    fn listed(&mut self, asked: Vec<Lookup>, noted: HashMap<u64, Noted>) -> Vec<Lookup> {
        self.lists = false;
        let without = self.sort(asked, &noted);
        self.known = Some(noted).filter(|_| self.takes_over);
        without
    }

    /// The notes of those that have one are asked for; the others come back.
    fn sort(&mut self, lookups: Vec<Lookup>, noted: &HashMap<u64, Noted>) -> Vec<Lookup> {
        let mut without = Vec::new();
        for lookup in lookups {
            match noted.get(&lookup.waiting.sequence) {
                Some(noted) => self.noted.push_back((lookup, *noted)),
                None => without.push(lookup),
            }
        }
        without
    }
}

impl Lookup {
    async fn find(self, subscription: &Subscription, noted: Noted) -> Note {
        let Self { epoch, mut waiting, deliveries } = self;
        let deliveries = u32::try_from(deliveries).unwrap_or(u32::MAX);
        let (note, begun) = subscription.note(epoch, waiting.sequence, noted).await;
        let noted = note.is_some();
        if let Some(note) = note {
            (waiting.attempt, waiting.parked) = notes::read(&note).unwrap_or_else(|attempt| {
                log::warn!(
                    target: "eventbus", group = %printable(&subscription.group), sequence = waiting.sequence,
                    "what was noted of the attempts at an event cannot be read; they count as often as it was delivered"
                );
                (attempt.unwrap_or(deliveries), None)
            });
        }
        Note { epoch, waiting, noted, begun }
    }
}

impl Task {
    /// Asks for the notes of what has come again.
    pub(super) fn look_up(&mut self) {
        let without = self.lookups.ask(&self.subscription);
        self.found_nothing(without);
    }

    pub(super) fn looked_up(&mut self, looked_up: LookedUp) {
        match looked_up {
            LookedUp::Listed(asked, noted) => {
                let without = self.lookups.listed(asked, noted);
                self.found_nothing(without);
            }
            LookedUp::Found(note) => self.found(note),
        }
        self.look_up();
        if self.lookups.is_empty() {
            self.look_if_waiting();
        }
        self.subscription.state.wake();
    }

    fn found_nothing(&mut self, lookups: Vec<Lookup>) {
        for Lookup { epoch, waiting, .. } in lookups {
            self.found(Note { epoch, waiting, noted: false, begun: None });
        }
    }

    fn found(&mut self, Note { epoch, waiting, noted, begun }: Note) {
        let process = self.subscription.link.turns.lock().process.clone();
        let sequence = waiting.sequence;
        let mut state = self.subscription.state.lock();
        if state.intake.found(epoch, waiting, noted) {
            state.suspects.find(sequence, begun.as_ref(), &process);
            self.subscription.careful.store(true, Ordering::Release);
        }
    }
}

//! A broker of the tests' own: a log in memory, with cursors that outlive their subscriptions.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use eventbus::broker::{
    Broker, BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters, Deliveries,
    Features, GroupState, Groups, Offset, Parked, Receipt, Received, Replay, ReplayFrom, ReplayRequest,
    ReplayUntil, Replayable, Settler, SubscribeRequest,
};
use eventbus::bytes::Bytes;
use eventbus::error::BrokerError;
use eventbus::subscription::Pattern;
use eventbus::{Envelope, PublishError};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The log and the groups.
#[derive(Clone, Default)]
pub struct Keeper(Arc<Mutex<State>>);

#[derive(Default)]
pub struct State {
    log: Vec<Arc<Envelope>>,
    pub groups: BTreeMap<String, Group>,
    pub dead_letters: Vec<DeadLetter>,
    /// It cannot move its groups, and says so.
    pub declines: bool,
    /// What this fails with is asked of `seek`.
    pub refuses_seek: bool,
    /// So many times it panics as it is asked to subscribe.
    pub panics: usize,
}

pub struct Group {
    pub pattern: Pattern,
    /// The place of the first event that is not settled.
    pub cursor: u64,
    pub settled: BTreeSet<u64>,
    /// What waits for its next attempt, as a process that ended has left it.
    pub parked: BTreeMap<u64, (u32, Parked)>,
    /// What another process has been given since.
    pub lost: BTreeSet<u64>,
    pub readers: usize,
    waker: Option<Waker>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}

impl Keeper {
    pub fn state(&self) -> MutexGuard<'_, State> {
        // A test that fails while it looks must not fail once more in a destructor.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A group as an earlier process has left it.
    pub fn leave(&self, group: &str, pattern: &str, cursor: u64) {
        let group_state = Group {
            pattern: Pattern::new(pattern).unwrap(),
            cursor,
            settled: BTreeSet::new(),
            parked: BTreeMap::new(),
            lost: BTreeSet::new(),
            readers: 0,
            waker: None,
        };
        self.state().groups.insert(group.to_owned(), group_state);
    }

    pub fn cursor(&self, group: &str) -> u64 {
        self.state().groups[group].cursor
    }
}

impl State {
    fn backlog(&self, group: &Group) -> u64 {
        let left = self.log[group.cursor as usize..].iter().zip(group.cursor..);
        left.filter(|(event, place)| {
            group.pattern.matches(event.topic().as_str()) && !group.settled.contains(place)
        })
        .count() as u64
    }

    fn settle(&mut self, group: &str, place: u64) {
        let end = self.log.len() as u64;
        let group = self.groups.get_mut(group).unwrap();
        group.settled.insert(place);
        group.parked.remove(&place);
        while group.cursor < end
            && (group.settled.remove(&group.cursor)
                || !group.pattern.matches(self.log[group.cursor as usize].topic().as_str()))
        {
            group.cursor += 1;
        }
    }
}

impl Broker for Keeper {
    fn name(&self) -> &str {
        "keeper"
    }

    fn features(&self) -> Features {
        let mut features = Features::none();
        (features.durable, features.key_order, features.patterns) = (true, true, true);
        (features.seek, features.rename) = (!self.state().declines, true);
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        let mut state = self.state();
        state.log.push(envelope);
        let wakers: Vec<_> = state.groups.values_mut().filter_map(|group| group.waker.take()).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        BrokerFuture::ready(Ok(()))
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let (known, end) = {
            let mut state = self.state();
            if let Some(left) = state.panics.checked_sub(1) {
                state.panics = left;
                drop(state);
                panic!("at subscribe of a broker");
            }
            (state.groups.contains_key(&request.group), state.log.len() as u64)
        };
        if !known {
            self.leave(&request.group, request.pattern.as_str(), end);
        }
        let mut state = self.state();
        let group = state.groups.get_mut(&request.group).unwrap();
        group.readers += 1;
        let next = group.cursor;
        let settler = Arc::new(Cursor(self.clone(), request.group.clone()));
        BrokerFuture::ready(Ok(Box::new(Reader {
            keeper: self.clone(),
            group: request.group,
            next,
            settler,
        })))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::new(self.clone()))
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        Some(Arc::new(self.clone()))
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        Some(Arc::new(self.clone()))
    }
}

/// It is looked at, and nothing is done to it.
impl DeadLetters for Keeper {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let state = self.state();
        let named = (0..).map(DeadLetterId::from).zip(state.dead_letters.iter().cloned().map(Arc::new));
        BrokerFuture::ready(Ok(named.filter(|(id, letter)| query.matches(id, letter)).collect()))
    }

    fn republish(&self, _: &DeadLetterId, _: Option<Bytes>) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Err(BrokerError::new("the keeper only keeps")))
    }

    fn purge(&self, _: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Err(BrokerError::new("the keeper only keeps")))
    }
}

struct Reader {
    keeper: Keeper,
    group: String,
    next: u64,
    settler: Arc<dyn Settler>,
}

impl Deliveries for Reader {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let mut state = self.keeper.state();
        let State { log, groups, .. } = &mut *state;
        let group = groups.get_mut(&self.group).unwrap();
        let before = into.len();
        while into.len() - before < limit && self.next < log.len() as u64 {
            let (place, envelope) = (self.next, Arc::clone(&log[self.next as usize]));
            self.next += 1;
            if !group.settled.contains(&place) && group.pattern.matches(envelope.topic().as_str()) {
                let (attempt, parked) =
                    group.parked.get(&place).map_or((1, None), |(attempt, parked)| (*attempt, Some(*parked)));
                let receipt = Receipt { envelope, offset: Offset::new(place.into()), attempt, token: place };
                let settler = Arc::clone(&self.settler);
                into.push(Received { receipt, replayed: false, parked, alone: false, settler });
            }
        }
        if into.len() > before {
            return Poll::Ready(Ok(()));
        }
        group.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(group) = self.keeper.state().groups.get_mut(&self.group) {
            group.readers -= 1;
        }
    }
}

/// Settles what a group was given.
#[derive(Debug)]
struct Cursor(Keeper, String);

impl Settler for Cursor {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.state().settle(&self.1, receipt.token);
        BrokerFuture::ready(Ok(()))
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.state().dead_letters.push(letter);
        self.ack(receipt)
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        let mut state = self.0.state();
        let group = state.groups.get_mut(&self.1).unwrap();
        group.parked.insert(receipt.token, (receipt.attempt, parked));
        BrokerFuture::ready(Ok(()))
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        !self.0.state().groups[&self.1].lost.contains(&receipt.token)
    }

    fn release(&self, _: Receipt) {}
}

impl Replayable for Keeper {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let state = self.state();
        let places = state.log.iter().enumerate().map(|(place, event)| (Offset::new(place as u128), event));
        let wanted = places.filter(|(place, event)| {
            let begins = match request.from {
                ReplayFrom::Earliest => true,
                ReplayFrom::Offset(from) => *place >= from,
                ReplayFrom::After(behind) => *place > behind,
                other => panic!("{other:?} is not asked of this broker"),
            };
            let ends = match request.until {
                ReplayUntil::Now => false,
                ReplayUntil::Offset(until) => *place > until,
                other => panic!("{other:?} is not asked of this broker"),
            };
            begins && !ends && request.pattern.matches(event.topic().as_str())
        });
        let mut events: Vec<_> = wanted.map(|(place, event)| (place, Arc::clone(event))).collect();
        events.reverse();
        let latest = (state.log.len() as u128).checked_sub(1).map(Offset::new);
        let count = events.len() as u64;
        let deliveries = Box::new(Again { events, settler: Arc::new(NoCursor(self.clone())) });
        BrokerFuture::ready(Ok(Replay { deliveries, events: count, latest }))
    }
}

/// A replay; the next event is the last one in the list.
struct Again {
    events: Vec<(Offset, Arc<Envelope>)>,
    settler: Arc<dyn Settler>,
}

impl Deliveries for Again {
    fn poll_receive(
        &mut self,
        _: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let rest = self.events.len().saturating_sub(limit);
        into.extend(self.events.drain(rest..).rev().map(|(offset, envelope)| Received {
            receipt: Receipt { envelope, offset, attempt: 1, token: 0 },
            replayed: true,
            parked: None,
            alone: false,
            settler: Arc::clone(&self.settler),
        }));
        Poll::Ready(Ok(()))
    }
}

/// Settles what is delivered again.
#[derive(Debug)]
struct NoCursor(Keeper);

impl Settler for NoCursor {
    fn ack(&self, _: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(Ok(()))
    }

    fn reject(&self, _: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.state().dead_letters.push(letter);
        BrokerFuture::ready(Ok(()))
    }

    fn release(&self, _: Receipt) {}
}

impl Groups for Keeper {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let state = self.state();
        let all = state.groups.iter().map(|(name, group)| {
            let mut shown = GroupState::new(name, group.pattern.to_string());
            shown.cursor = group.cursor.checked_sub(1).map(|place| Offset::new(place.into()));
            (shown.backlog, shown.parked) = (state.backlog(group), group.parked.len() as u64);
            shown.active = group.readers > 0;
            shown
        });
        BrokerFuture::ready(Ok(all.collect()))
    }

    fn seek(&self, group: &str, offset: Option<Offset>) -> BrokerFuture<Result<bool, BrokerError>> {
        let mut state = self.state();
        if state.refuses_seek {
            return BrokerFuture::ready(Err(BrokerError::new("the disk is full")));
        }
        let Some(group) = state.groups.get_mut(group) else { return BrokerFuture::ready(Ok(false)) };
        if group.readers > 0 {
            return BrokerFuture::ready(Err(BrokerError::new("the group is active")));
        }
        group.cursor = offset.map_or(0, |offset| offset.get() as u64 + 1);
        group.settled.clear();
        group.parked.clear();
        BrokerFuture::ready(Ok(true))
    }

    fn rename(&self, _: &str, _: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        unreachable!("nobody renames here")
    }

    fn remove(&self, _: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        unreachable!("nobody removes here")
    }
}

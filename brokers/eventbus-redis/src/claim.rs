//! What a process has of a group on a pattern: the deliveries at hand, those that are handed out, and until when they
//! are its own.
//!
//! Two tasks work for a claim: the reader (`reader.rs`) takes the group over and puts deliveries at hand, on a connection
//! of its own; the keeper (`keeper.rs`) saves what was settled and renews the lease, on the shared one.

use crate::broker::Store;
use crate::patience::Patience;
use crate::place::Place;
use crate::suspects::Spot;
use eventbus_core::broker::stance::Stance;
use eventbus_core::broker::suspects::Suspects;
use eventbus_core::broker::{Deliveries, Offset, Parked, Receipt, Received, Settler, SubscribeRequest};
use eventbus_core::lock::{Locked, Rank};
use eventbus_core::{BrokerError, Envelope, Pattern, Topic, foreign};
use eventbus_server::handover::{AtHand, Handover, Shared};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::sync::{Notify, oneshot};

/// With more bytes at hand than this, no more are read ahead.
pub(crate) const AHEAD_BYTES: usize = 8 << 20;
/// With more bytes handed out than this, no more are.
const OUT_BYTES: usize = 64 << 20;
/// How many deliveries are read ahead.
const AHEAD: usize = 512;
/// The same where processes compete, to begin with: what one has at hand, no other can have.
const AHEAD_OF_OTHERS: usize = 16;
/// Of so many deliveries it is remembered that others have them: more than are handed out at once.
const TRACES: usize = 1 << 19;

/// A stream that a group reads.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) key: String,
    pub(crate) topic: Topic,
    /// It has dead letters that were published again, for this group only; they are gone once they are settled.
    pub(crate) again: bool,
}

impl Source {
    /// The name of a delivery where something is noted of it.
    pub(crate) fn field(&self, place: Place) -> String {
        format!("{}{place}", self.fields())
    }

    /// What the names of all of its deliveries begin with.
    pub(crate) fn fields(&self) -> String {
        let kind = if self.again { "again/" } else { "" };
        format!("{kind}{}/", self.topic)
    }
}

/// One open subscription.
pub(crate) struct Claim {
    pub(crate) store: Arc<Store>,
    pub(crate) group: String,
    pub(crate) pattern: Pattern,
    /// Several processes handle the group at once: nobody has a lease on it.
    pub(crate) competing: bool,
    /// What this claim is called at the server.
    pub(crate) consumer: String,
    /// Its number among the claims of this process.
    pub(crate) number: u64,
    /// Whether each attempt is to be noted before it begins, or may have to be.
    pub(crate) careful: AtomicBool,
    /// Until when the deliveries are ours, in milliseconds of the store's clock. Zero: they are not.
    until: AtomicU64,
    /// Deliveries with smaller tokens are of an earlier time, and somebody else's.
    first: AtomicU64,
    /// Whether another process has the group.
    pub(crate) stance: Stance,
    /// Its task, the keeper, has ended once the group was left.
    state: Handover<State>,
    /// Rings for the reader: there is room, the claim was lost, or nobody reads any more.
    pub(crate) reader: Notify,
    /// Rings for the keeper: something was settled, or nobody reads any more.
    pub(crate) keeper: Notify,
}

pub(crate) struct State {
    /// The fence: what the server has as the token of whoever took the group over last. Empty where processes compete.
    pub(crate) token: String,
    next: u64,
    pub(crate) sources: Vec<Arc<Source>>,
    /// Of each source: everything up to there was delivered, as far as the latest reader knows.
    pub(crate) seen: Vec<Place>,
    at_hand: BTreeMap<(Place, u64), Waiting>,
    bytes: usize,
    /// Handed out and not settled, by their tokens.
    open: HashMap<u64, Open>,
    /// How many bytes these have.
    out: usize,
    /// The tokens of deliveries that were handed out, and that competing processes have by now.
    lost: BTreeSet<u64>,
    /// Settled, and not yet saved.
    settled: Vec<Settled>,
    /// Settled, and being saved.
    saving: Vec<(usize, Place)>,
    /// What may have ended an earlier process.
    pub(crate) suspects: Suspects<Spot>,
    /// How long this process may be silent, where processes compete.
    pub(crate) patience: Patience,
    /// How many are read ahead.
    ahead: usize,
    /// The bus is about to end: that the process ends is no event's fault.
    pub(crate) drains: bool,
}

impl AtHand for State {
    fn has_some(&self) -> bool {
        self.out < OUT_BYTES && !self.at_hand.is_empty()
    }
}

/// A delivery at hand.
pub(crate) struct Waiting {
    pub(crate) source: usize,
    pub(crate) place: Place,
    /// The place of the event in its topic.
    pub(crate) offset: Offset,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) noted: Noted,
    pub(crate) size: usize,
}

/// What is known of earlier attempts.
#[derive(Clone, Copy)]
pub(crate) struct Noted {
    pub(crate) attempt: u32,
    pub(crate) parked: Option<Parked>,
    /// The server has a note of that.
    pub(crate) kept: bool,
}

impl Noted {
    pub(crate) const FIRST: Self = Self { attempt: 1, parked: None, kept: false };
}

/// A delivery that is handed out.
#[derive(Clone, Copy)]
pub(crate) struct Open {
    pub(crate) source: usize,
    pub(crate) place: Place,
    pub(crate) noted: Noted,
    size: usize,
}

/// A delivery that was settled.
pub(crate) struct Settled {
    pub(crate) source: usize,
    pub(crate) place: Place,
    /// The server has a note of it.
    pub(crate) noted: bool,
    /// Who waits for what the server says of that. Dropped, it says that another process has the delivery.
    pub(crate) answer: Option<oneshot::Sender<()>>,
}

/// What is known here of a settlement.
pub(crate) enum Settling {
    /// It counts, and is saved a moment later.
    Done,
    /// Another process may have the delivery: the server tells.
    Asked(oneshot::Receiver<()>),
    /// The delivery is not ours.
    Lost,
}

impl Claim {
    pub(crate) fn new(store: Arc<Store>, request: &SubscribeRequest) -> Arc<Self> {
        let competing = request.competing;
        let (consumer, number, patience) =
            (store.consumer(), store.number(), Patience::new(store.settings.lease));
        Arc::new(Self {
            store,
            group: request.group.clone(),
            pattern: request.pattern.clone(),
            competing,
            consumer,
            number,
            careful: AtomicBool::new(false),
            until: AtomicU64::new(0),
            first: AtomicU64::new(0),
            stance: Stance::default(),
            state: Handover::new(
                Rank::BROKER,
                State {
                    token: String::new(),
                    next: 0,
                    sources: Vec::new(),
                    seen: Vec::new(),
                    at_hand: BTreeMap::new(),
                    bytes: 0,
                    open: HashMap::new(),
                    out: 0,
                    lost: BTreeSet::new(),
                    settled: Vec::new(),
                    saving: Vec::new(),
                    suspects: Suspects::default(),
                    patience,
                    ahead: if competing { AHEAD_OF_OTHERS } else { AHEAD },
                    drains: false,
                },
            ),
            reader: Notify::new(),
            keeper: Notify::new(),
        })
    }

    pub(crate) fn state(&self) -> Locked<'_, Shared<State>> {
        self.state.lock()
    }

    /// Whether the deliveries are ours now. Once it has said no it says so until the group is taken over again: what was
    /// dropped for that reason comes again then.
    pub(crate) fn is_ours(&self) -> bool {
        loop {
            let until = self.until.load(Ordering::Acquire);
            if self.store.clock() < until {
                return true;
            }
            if until == 0
                || self.until.compare_exchange(until, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
            {
                return false;
            }
        }
    }

    /// The server has confirmed that they are ours until then. `false`: that comes too late.
    pub(crate) fn extend(&self, until: u64) -> bool {
        loop {
            let known = self.until.load(Ordering::Acquire);
            if known == 0 || self.store.clock() >= known {
                return false;
            }
            let until = until.max(known);
            if self.until.compare_exchange(known, until, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return true;
            }
        }
    }

    /// A new time begins: the group was taken over, under this token.
    pub(crate) fn begin(&self, token: String, until: u64) {
        self.lose();
        self.state().token = token;
        self.until.store(until, Ordering::Release);
        self.stance.is_ours(&self.group, self.pattern.as_str());
        foreign::tell("a waker", || self.keeper.notify_one());
    }

    /// The deliveries of this time are somebody else's from now on.
    pub(crate) fn lose(&self) {
        // Whoever waits here goes on waiting: the group may be taken over again.
        let (at_hand, settled);
        {
            let mut state = self.state();
            self.until.store(0, Ordering::Release);
            self.first.store(state.next, Ordering::Release);
            at_hand = std::mem::take(&mut state.at_hand);
            (state.bytes, state.out) = (0, 0);
            state.open.clear();
            state.lost.clear();
            settled = std::mem::take(&mut state.settled);
        }
        drop(at_hand);
        self.store.turn().end_if(|(claim, _)| claim == self.number);
        foreign::tell("a waker", || drop(settled));
        foreign::tell("a waker", || self.reader.notify_one());
    }

    /// The first token of this time.
    pub(crate) fn first_token(&self) -> u64 {
        self.first.load(Ordering::Acquire)
    }

    /// Whether a delivery is of this time, and no competing process has it by now.
    fn knows(&self, state: &State, receipt: &Receipt) -> bool {
        receipt.token >= self.first_token() && !state.lost.contains(&receipt.token)
    }

    pub(crate) fn holds(&self, receipt: &Receipt) -> bool {
        self.is_ours() && self.knows(&self.state(), receipt)
    }

    /// Whether a delivery was settled here already.
    pub(crate) fn is_settled(&self, receipt: &Receipt) -> bool {
        let state = self.state();
        self.knows(&state, receipt) && !state.open.contains_key(&receipt.token)
    }

    /// What is handed out under this receipt, if it is ours.
    pub(crate) fn open(&self, receipt: &Receipt) -> Option<(Open, Arc<Source>, String)> {
        let state = self.state();
        let open = *state.open.get(&receipt.token)?;
        Some((open, Arc::clone(&state.sources[open.source]), state.token.clone()))
    }

    /// Settles what is handed out under this receipt; once more is as well.
    pub(crate) fn settle(&self, receipt: &Receipt) -> Settling {
        let is_ours = self.is_ours();
        let (settling, ring) = self.state.change(|state| {
            let Some(Open { source, place, noted, .. }) = state.take(receipt.token) else {
                let counts = is_ours && self.knows(state, receipt);
                return (if counts { Settling::Done } else { Settling::Lost }, false);
            };
            let noted = noted.kept | state.suspects.forget((source, place));
            let (answer, asked) = if is_ours { (None, None) } else { pair() };
            state.settled.push(Settled { source, place, noted, answer });
            let count = state.settled.len();
            let ring = count == 1 || count == crate::keeper::MANY || state.is_closed();
            (asked.map_or(Settling::Done, Settling::Asked), ring)
        });
        if ring {
            foreign::tell("a waker", || self.keeper.notify_one());
        }
        settling
    }

    /// It was settled at the server already.
    pub(crate) fn forget(&self, receipt: &Receipt) {
        let ended = self.state.change(|state| {
            if let Some(open) = state.take(receipt.token) {
                state.suspects.forget((open.source, open.place));
            }
            state.is_closed()
        });
        if ended {
            foreign::tell("a waker", || self.keeper.notify_one());
        }
    }

    /// Remembers what is noted of a delivery that is handed out: an attempt has ended, and another one follows.
    pub(crate) fn note(&self, receipt: &Receipt, noted: Noted) {
        let mut state = self.state();
        let Some(open) = state.open.get_mut(&receipt.token) else { return };
        open.noted = noted;
        let spot = (open.source, open.place);
        state.suspects.forget(spot);
    }

    /// Takes back what was handed out, and not settled.
    pub(crate) fn put_back(&self, receipt: Receipt) {
        let ended = self.state.change(|state| {
            let Some(Open { source, place, noted, size }) = state.take(receipt.token) else { return false };
            let Receipt { envelope, offset, attempt, .. } = receipt;
            let noted = Noted { attempt: state.suspects.uncounted((source, place), attempt), ..noted };
            if !state.is_closed() {
                state.put(Waiting { source, place, offset, envelope, noted, size });
            }
            state.is_closed()
        });
        if ended {
            foreign::tell("a waker", || self.keeper.notify_one());
        }
    }

    /// Puts deliveries at hand.
    pub(crate) fn put_at_hand(&self, deliveries: Vec<Waiting>) {
        let dropped = self.state.change(|state| {
            if state.is_closed() {
                return deliveries;
            }
            deliveries.into_iter().for_each(|delivery| state.put(delivery));
            Vec::new()
        });
        drop(dropped);
    }

    /// Tells whoever reads here that something is wrong.
    pub(crate) fn fail(&self, error: BrokerError) {
        self.state.fail(error);
    }

    /// How many bytes more may be read ahead.
    pub(crate) fn room_in_bytes(&self) -> usize {
        AHEAD_BYTES.saturating_sub(self.state().bytes)
    }

    /// The first delivery of each source that is not settled.
    pub(crate) fn unsettled(&self) -> HashMap<usize, Place> {
        let mut first = HashMap::new();
        for (_, source, place) in self.held() {
            let known = first.entry(source).or_insert(place);
            *known = place.min(*known);
        }
        first
    }

    /// How many more deliveries may be read ahead.
    pub(crate) fn room(&self) -> usize {
        let state = self.state();
        if state.bytes >= AHEAD_BYTES { 0 } else { state.ahead.saturating_sub(state.at_hand.len()) }
    }

    /// Reads further ahead where handlers are faster than that, and less far where they are not.
    pub(crate) fn adapt(&self, full: bool) {
        if self.competing {
            let mut state = self.state();
            state.ahead = match (state.at_hand.is_empty(), full) {
                (true, true) => (state.ahead * 2).min(AHEAD),
                (false, _) => (state.ahead / 2).max(AHEAD_OF_OTHERS),
                _ => state.ahead,
            };
        }
    }

    /// Which deliveries are at hand, handed out, or settled and not yet saved.
    pub(crate) fn known(&self) -> Vec<(usize, Place)> {
        let state = self.state();
        let at_hand = state.at_hand.values().map(|waiting| (waiting.source, waiting.place));
        let open = state.open.values().map(|open| (open.source, open.place));
        let settled = state.settled.iter().map(|settled| (settled.source, settled.place));
        at_hand.chain(open).chain(settled).chain(state.saving.iter().copied()).collect()
    }

    /// What competing processes have to say that they still have, with the tokens.
    pub(crate) fn held(&self) -> Vec<(u64, usize, Place)> {
        let state = self.state();
        let at_hand = state.at_hand.iter().map(|((place, token), waiting)| (*token, waiting.source, *place));
        at_hand.chain(state.open.iter().map(|(token, open)| (*token, open.source, open.place))).collect()
    }

    /// Other processes have these by now, by their tokens. What was settled meanwhile is not among them; how many are left.
    pub(crate) fn lose_some(&self, lost: &HashSet<u64>) -> usize {
        if lost.is_empty() {
            return 0;
        }
        let mut count = 0;
        let dropped = self.state.change(|state| {
            let mut dropped = Vec::new();
            for token in lost {
                if let Some(open) = state.take(*token) {
                    state.lost.insert(*token);
                    state.suspects.forget((open.source, open.place));
                    count += 1;
                }
            }
            while state.lost.len() > TRACES {
                state.lost.pop_first();
            }
            let gone: Vec<_> =
                state.at_hand.keys().filter(|(_, token)| lost.contains(token)).copied().collect();
            for key in gone {
                if let Some(waiting) = state.at_hand.remove(&key) {
                    state.bytes -= waiting.size;
                    state.suspects.forget((waiting.source, waiting.place));
                    count += 1;
                    dropped.push(waiting);
                }
            }
            dropped
        });
        drop(dropped);
        // There is room at hand, and whoever has ended may have nothing handed out any more.
        foreign::tell("a waker", || self.reader.notify_one());
        foreign::tell("a waker", || self.keeper.notify_one());
        count
    }

    /// Takes what was settled, to save it.
    pub(crate) fn begin_save(&self) -> Vec<Settled> {
        let mut state = self.state();
        let settled = std::mem::take(&mut state.settled);
        state.saving = settled.iter().map(|settled| (settled.source, settled.place)).collect();
        settled
    }

    /// It is to be saved later, or is not saved any more.
    pub(crate) fn end_save(&self, later: Vec<Settled>) {
        let mut state = self.state();
        state.saving.clear();
        if !later.is_empty() {
            let since = std::mem::replace(&mut state.settled, later);
            state.settled.extend(since);
        }
    }

    pub(crate) fn unsaved(&self) -> usize {
        self.state().settled.len()
    }

    /// Whether nobody reads here any more.
    pub(crate) fn is_ended(&self) -> bool {
        self.state().is_closed()
    }

    /// Whether the group can be left: nobody reads any more, and nothing is handed out.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.state();
        state.is_closed() && (state.open.is_empty() || state.ends())
    }

    /// Nobody reads here any more. `now`: whatever is handed out.
    pub(crate) fn end(&self, now: bool) {
        if now {
            self.state.end();
        } else {
            self.state.close();
        }
        let dropped = {
            let mut state = self.state();
            state.bytes = 0;
            std::mem::take(&mut state.at_hand)
        };
        drop(dropped);
        foreign::tell("a waker", || self.reader.notify_one());
        foreign::tell("a waker", || self.keeper.notify_one());
    }

    /// The group was left.
    pub(crate) fn end_leaving(&self) {
        self.state.finish();
    }

    /// Resolves once the group was left.
    pub(crate) async fn left(&self) {
        self.state.finished().await;
    }

    /// Whether everything that was put at hand is settled and saved.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state();
        state.at_hand.is_empty()
            && state.open.is_empty()
            && state.settled.is_empty()
            && state.saving.is_empty()
    }
}

impl State {
    /// Where a delivery stands that is handed out.
    pub(crate) fn spot(&self, receipt: &Receipt) -> Option<Spot> {
        self.open.get(&receipt.token).map(|open| (open.source, open.place))
    }

    /// Takes out what is handed out under this token.
    fn take(&mut self, token: u64) -> Option<Open> {
        let open = self.open.remove(&token)?;
        self.out -= open.size;
        Some(open)
    }

    fn put(&mut self, waiting: Waiting) {
        let token = self.next;
        self.next += 1;
        self.bytes += waiting.size;
        self.at_hand.insert((waiting.place, token), waiting);
    }
}

/// How much a delivery at hand takes, roughly.
pub(crate) fn size(envelope: &Envelope) -> usize {
    envelope.payload().map_or(0, |payload| payload.len()) + 256
}

/// Somebody who waits for an answer, and who gives it.
fn pair() -> (Option<oneshot::Sender<()>>, Option<oneshot::Receiver<()>>) {
    let (answer, answered) = oneshot::channel();
    (Some(answer), Some(answered))
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("group", &self.group)
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}

/// The reader's end of a claim, which a bus asks.
pub(crate) struct RedisDeliveries {
    pub(crate) claim: Arc<Claim>,
    pub(crate) settler: Arc<dyn Settler>,
    pub(crate) warnings: Vec<String>,
    /// Who handles the group, where that is somebody else.
    pub(crate) owner: Option<String>,
}

impl Deliveries for RedisDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let before = into.len();
        let is_low = ready!(self.claim.state.poll_take(context, |state| {
            while into.len() - before < limit && state.out < OUT_BYTES {
                let Some(((place, token), waiting)) = state.at_hand.pop_first() else { break };
                let Waiting { source, offset, envelope, noted, size, .. } = waiting;
                state.bytes -= size;
                state.out += size;
                state.open.insert(token, Open { source, place, noted, size });
                let spot = (source, place);
                let alone = state.suspects.contains(spot);
                let attempt = noted.attempt.saturating_add(state.suspects.crashes(spot));
                let receipt = Receipt { envelope, offset, attempt, token };
                let (parked, settler) = (noted.parked, Arc::clone(&self.settler));
                into.push(Received { receipt, replayed: false, parked, alone, settler });
            }
            state.at_hand.len() < state.ahead / 2 + 1
        }))?;
        if is_low == Some(true) {
            foreign::tell("a waker", || self.claim.reader.notify_one());
        }
        Poll::Ready(Ok(()))
    }

    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn stands_by_for(&mut self) -> Option<String> {
        self.owner.take()
    }
}

impl Drop for RedisDeliveries {
    /// Leaves the group to whoever comes next, once what is handed out is settled or given back.
    fn drop(&mut self) {
        self.claim.end(false);
    }
}

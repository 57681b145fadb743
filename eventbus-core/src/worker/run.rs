//! The loops that workers run: compiled for each handler, so they hold nothing that does not depend on it.

use super::attempt::{Broken, attempt};
use super::crew::Place;
use super::lanes::{self, Lanes, Open, Settled};
use super::settle::{ack, key, settle, tell_again};
use crate::broker::{Begin, BrokerFuture};
use crate::counted::counted;
use crate::delivery::Delivery;
use crate::event::Key;
use crate::foreign::{self, Panicked};
use crate::handler::{BatchHandler, Handler};
use crate::log;
use crate::outcome::Outcome;
use crate::printable::printable;
use std::future::poll_fn;
use std::mem::take;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::yield_now;

/// How long a worker pauses that panicked with nothing in hand.
const PAUSE: Duration = Duration::from_secs(1);

/// So often a process may end beside an event by chance, where it is killed again and again.
const CHANCE: u32 = 2;

/// Handles one delivery after the other.
pub(super) async fn each<H: Handler>(handler: Arc<H>, lanes: Arc<Lanes>, place: Place) {
    let mut hand = One { lanes, place, held: None, delivery: None, last: None };
    while let Err(panicked) = foreign::run("a worker", || one_by_one(&*handler, &mut hand)).await {
        hand.fail(panicked).await;
    }
}

async fn one_by_one<H: Handler>(handler: &H, hand: &mut One) {
    let lanes = Arc::clone(&hand.lanes);
    let pulse = lanes.pulse(hand.place);
    while poll_fn(|context| lanes.poll_next(context, hand.place, &mut hand.last, &mut hand.held)).await
        && let Some((delivery, held)) = hand.take_up()
    {
        if held.as_ref().is_some_and(Open::is_over) {
            let settled = tell_again(&lanes, held, delivery).await;
            hand.settled(settled);
            continue;
        }
        if let Some(begin) = held.as_ref().and_then(|open| open.acker.begin())
            && let Some(settled) = may_begin(&lanes, held, delivery, begin).await.or_else(|| still_held(held))
        {
            hand.settled(settled);
            continue;
        }
        count(held, true);
        let settled = match attempt(|| handler.call(delivery), delivery, &lanes, &pulse).await {
            // The usual answer, apart from the others so that less is moved for it.
            Ok(Outcome::Ack) => ack(&lanes, held, delivery).await,
            result => settle(&lanes, held, delivery, result).await,
        };
        hand.settled(settled);
        if lanes.threads.blocks() {
            yield_now().await;
        }
    }
}

/// Says whether the attempt counts that is being made.
#[inline]
fn count(held: &mut Option<Open>, attempted: bool) {
    if let Some(open) = held {
        open.acker.count(attempted);
    }
}

/// Waits until the broker knows that a handler is about to be called. If it is not to be called, what became of the
/// delivery instead.
async fn may_begin(
    lanes: &Arc<Lanes>,
    held: &mut Option<Open>,
    delivery: &Delivery,
    begin: BrokerFuture<Begin>,
) -> Option<Settled> {
    match foreign::run("a broker", || begin).await {
        Ok(Begin::Now { crashes }) if crashes > lanes.policy.retries.max(CHANCE) => {
            Some(settle(lanes, held, delivery, Err(Broken::Crashed(crashes))).await)
        }
        // A broker that panicked has not said no.
        Ok(Begin::Now { .. }) | Err(_) => None,
        Ok(Begin::Never { kind, reason }) => {
            Some(settle(lanes, held, delivery, Err(Broken::Refused(kind, reason))).await)
        }
        Ok(Begin::Later(delay)) => {
            lanes.park(held.take()?, delay);
            Some(Settled::Parked)
        }
    }
}

/// Whether a delivery is held after the broker was waited for; if not, what became of it.
fn still_held(held: &mut Option<Open>) -> Option<Settled> {
    match lanes::held(held.take()?) {
        Ok(open) => {
            *held = Some(open);
            None
        }
        Err(settled) => Some(settled),
    }
}

/// Handles one batch after the other. While one worker gathers a batch, the others handle theirs.
pub(super) async fn batches<H: BatchHandler>(handler: Arc<H>, lanes: Arc<Lanes>, place: Place) {
    let mut hand = Several::new(lanes, place);
    while let Err(panicked) = foreign::run("a worker", || batch_by_batch(&*handler, &mut hand)).await {
        hand.fail(panicked).await;
    }
}

async fn batch_by_batch<H: BatchHandler>(handler: &H, hand: &mut Several) {
    let lanes = Arc::clone(&hand.lanes);
    let pulse = lanes.pulse(hand.place);
    while !hand.gathered.is_empty() || gather(&lanes, hand.place, &mut hand.gathered).await {
        hand.take_batch();
        hand.tell_again().await;
        hand.begin().await;
        hand.admit(handler).await;
        let deliveries = &hand.deliveries;
        let Some(first) = deliveries.first() else { continue };
        let call = || async {
            match &lanes.layered.batch_layers {
                None => handler.call(deliveries).await,
                Some(layers) => layers.call(handler, deliveries).await,
            }
        };
        match attempt(call, first, &lanes, &pulse).await {
            Ok(outcomes) => {
                let members = deliveries.len();
                let none = || format!("the handler of {} has answered for fewer", counted(members, "member"));
                let mut outcomes = outcomes.into_iter();
                for _ in 0..members {
                    let outcome = outcomes.next().unwrap_or_else(|| Outcome::Retry(none().into()));
                    hand.settle_next(Ok(outcome)).await;
                }
            }
            Err(broken) => {
                if deliveries.len() > 1 {
                    hand.part(&broken);
                }
                hand.settle_rest(&broken).await;
            }
        }
        hand.let_go();
        if lanes.threads.blocks() {
            yield_now().await;
        }
    }
}

/// Gathers a batch: complete, or as old as `linger` allows. `false`: stop.
async fn gather(lanes: &Arc<Lanes>, place: Place, batch: &mut Vec<Open>) -> bool {
    let mut clock = pin!(None);
    poll_fn(|context| lanes.poll_gather(context, place, batch, clock.as_mut())).await
}

/// The delivery that a worker has in hand. Whatever happens to the worker, it is given back to its lane: settled as a
/// failure where the worker panicked, unsettled where it was cut off.
struct One {
    lanes: Arc<Lanes>,
    place: Place,
    /// What settles it; none once that has begun.
    held: Option<Open>,
    /// What is being handled.
    delivery: Option<Delivery>,
    /// What became of the last one, until the lanes are told.
    last: Option<Settled>,
}

impl One {
    /// Begins to handle what was taken out of the lanes.
    #[inline]
    fn take_up(&mut self) -> Option<(&Delivery, &mut Option<Open>)> {
        let delivery = delivery(&self.lanes, self.held.as_ref()?);
        Some((self.delivery.insert(delivery), &mut self.held))
    }

    /// It is settled; the lanes are told when the next one is taken.
    #[inline]
    fn settled(&mut self, settled: Settled) {
        self.delivery = None;
        self.held = None;
        self.last = Some(settled);
    }

    /// The worker has panicked outside of code of others: what it has in hand is a failed attempt.
    async fn fail(&mut self, panicked: Panicked) {
        report(&self.lanes, &panicked, usize::from(self.delivery.is_some()));
        let Self { lanes, delivery, held, .. } = self;
        let Some(delivery) = delivery else {
            self.let_go();
            // Whatever it was, it is not asked again and again without a pause.
            return tokio::time::sleep(PAUSE).await;
        };
        let settling = foreign::run("a worker", || settle(lanes, held, delivery, Err(panicked.into())));
        match settling.await {
            Ok(settled) => self.settled(settled),
            Err(again) => {
                report_again(again);
                self.let_go();
            }
        }
    }

    /// Gives back what is not settled, as it is.
    fn let_go(&mut self) {
        let key = match (&self.delivery, &self.held) {
            (Some(delivery), _) => key(delivery),
            // It was taken out of the lanes a moment ago.
            (None, Some(open)) => open.key().cloned(),
            (None, None) => return,
        };
        self.held = None;
        self.delivery = None;
        self.lanes.settled(Settled::Unsettled(key));
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.let_go();
        if let Some(settled) = self.last.take() {
            self.lanes.settled(settled);
        }
    }
}

/// A delivery as the handler sees it.
fn delivery(lanes: &Lanes, open: &Open) -> Delivery {
    let delivery = open.delivery(&lanes.scope);
    if lanes.layered.blocking { delivery.with_calls() } else { delivery }
}

fn report(lanes: &Lanes, panicked: &Panicked, deliveries: usize) {
    log::error!(
        target: "eventbus", group = %printable(&lanes.subscription().group),
        panic = %printable(panicked.clone().into_text()), deliveries,
        "a worker has panicked and goes on; this is a bug of eventbus or of the broker"
    );
}

fn report_again(panicked: Panicked) {
    log::error!(target: "eventbus", panic = %printable(panicked.into_text()), "a worker has panicked again");
}

/// The batch that a worker has in hand, as [`One`].
struct Several {
    lanes: Arc<Lanes>,
    place: Place,
    /// Taken out of the lanes, for this batch and the next.
    gathered: Vec<Open>,
    /// What is being handled.
    deliveries: Vec<Delivery>,
    /// What settles each of them; none once that has begun.
    held: Vec<Option<Open>>,
    /// How many of them are settled, the first ones.
    done: usize,
}

impl Several {
    fn new(lanes: Arc<Lanes>, place: Place) -> Self {
        Self { lanes, place, gathered: Vec::new(), deliveries: Vec::new(), held: Vec::new(), done: 0 }
    }

    fn take(&mut self, open: Open) {
        self.deliveries.push(delivery(&self.lanes, &open));
        self.held.push(Some(open));
    }

    /// Takes the next batch of what was gathered: a delivery that is to be tried alone, or all.
    fn take_batch(&mut self) {
        let alone = self.gathered.iter().position(|open| open.alone);
        match alone.map(|place| self.gathered.remove(place)) {
            // Nothing of its key was gathered with it, so the order is kept.
            Some(open) => self.take(open),
            None => take(&mut self.gathered).into_iter().for_each(|open| self.take(open)),
        }
    }

    /// A batch of several is broken, and nobody knows which member is to blame: each is to be handled alone, so that
    /// none is given up for what another one does. A panic was no attempt of theirs. A timeout was, where another one
    /// may follow: that all of them hang one after the other takes long, and is not to hold up their lanes.
    fn part(&mut self, broken: &Broken) {
        let members = take(&mut self.deliveries).into_iter().zip(take(&mut self.held));
        for (delivery, held) in members.skip(take(&mut self.done)) {
            let Some(mut open) = held else { continue };
            open.alone = true;
            if matches!(broken, Broken::Panicked(_)) || delivery.attempt() > self.lanes.policy.retries {
                open.acker.count(false);
                self.gathered.push(open);
            } else {
                self.deliveries.push(delivery);
                self.held.push(Some(open));
            }
        }
    }

    /// Takes out what is over already, and tells the broker.
    async fn tell_again(&mut self) {
        let over = |held: &Option<Open>| held.as_ref().is_some_and(Open::is_over);
        while let Some(place) = self.held.iter().position(over) {
            let settled = tell_again(&self.lanes, &mut self.held[place], &self.deliveries[place]).await;
            self.take_out(place, settled);
        }
    }

    /// Tells the broker of all members before it waits for the first answer; those that are not to be handled now are
    /// no members any more.
    async fn begin(&mut self) {
        let begin = |open: &Option<Open>| open.as_ref().and_then(|open| open.acker.begin());
        let begins: Vec<_> = self.held.iter().map(begin).collect();
        if begins.iter().all(Option::is_none) {
            return;
        }
        // The last one first, since those behind one that is taken out may go as well.
        for (place, begin) in begins.into_iter().enumerate().rev() {
            let (Some(begin), Some(delivery)) = (begin, self.deliveries.get(place)) else { continue };
            if let Some(settled) = may_begin(&self.lanes, &mut self.held[place], delivery, begin).await {
                self.take_out(place, settled);
            }
        }
        let mut place = 0;
        while let Some(held) = self.held.get_mut(place) {
            match still_held(held) {
                Some(settled) => self.take_out(place, settled),
                None => place += 1,
            }
        }
    }

    /// What was to be the member in `place` of a batch is none.
    fn take_out(&mut self, place: usize, settled: Settled) {
        let delivery = self.deliveries.remove(place);
        self.held.remove(place);
        if matches!(settled, Settled::Parked) {
            self.hold_back_behind(place, key(&delivery));
            self.hold_back(key(&delivery));
        }
        self.lanes.settled(settled);
    }

    /// Settles what cannot be a member of a batch.
    async fn admit<H: BatchHandler>(&mut self, handler: &H) {
        let mut place = 0;
        while let Some(delivery) = self.deliveries.get(place) {
            count(&mut self.held[place], true);
            let refused = match foreign::call("an extractor", || handler.admit(delivery)) {
                Ok(Ok(())) => {
                    place += 1;
                    continue;
                }
                Ok(Err(outcome)) => Ok(outcome),
                Err(panicked) => Err(panicked.into()),
            };
            let settled = settle(&self.lanes, &mut self.held[place], delivery, refused).await;
            self.take_out(place, settled);
        }
    }

    /// Settles the next member of the batch.
    async fn settle_next(&mut self, result: Result<Outcome, Broken>) {
        let (delivery, held) = (&self.deliveries[self.done], &mut self.held[self.done]);
        if let Some(open) = held {
            open.alone |= result.is_err();
        }
        let settled = settle(&self.lanes, held, delivery, result).await;
        if matches!(settled, Settled::Parked) {
            self.hold_back(key(&self.deliveries[self.done]));
        }
        self.done += 1;
        self.lanes.settled(settled);
    }

    /// An event is tried again: what was parted with it and follows it in its lane waits for it.
    fn hold_back(&mut self, key: Option<Key>) {
        for open in self.gathered.extract_if(.., |open| key.is_some() && open.key() == key.as_ref()) {
            self.lanes.park(open, Duration::ZERO);
        }
    }

    /// An event of `key` is tried again before its batch is handled: what follows it from `place` on waits for it.
    fn hold_back_behind(&mut self, mut place: usize, key: Option<Key>) {
        while let Some(delivery) = self.deliveries.get(place) {
            if key.is_none() || self::key(delivery) != key {
                place += 1;
                continue;
            }
            self.deliveries.remove(place);
            if let Some(open) = self.held.remove(place) {
                self.lanes.park(open, Duration::ZERO);
            }
        }
    }

    /// Settles what is left of the batch.
    async fn settle_rest(&mut self, broken: &Broken) {
        while self.done < self.deliveries.len() {
            self.settle_next(Err(broken.clone())).await;
        }
    }

    /// The worker has panicked outside of code of others: what it has in hand is a failed attempt.
    async fn fail(&mut self, panicked: Panicked) {
        report(&self.lanes, &panicked, self.deliveries.len());
        if self.done == self.deliveries.len() {
            self.let_go();
            // Whatever it was, it is not asked again and again without a pause.
            return tokio::time::sleep(PAUSE).await;
        }
        let broken = Broken::Panicked(panicked);
        if let Err(again) = foreign::run("a worker", || self.settle_rest(&broken)).await {
            report_again(again);
        }
        self.let_go();
    }

    /// Gives back what is not settled, as it is.
    fn let_go(&mut self) {
        let unsettled =
            take(&mut self.deliveries).into_iter().zip(take(&mut self.held)).skip(take(&mut self.done));
        for (delivery, held) in unsettled {
            drop(held);
            self.lanes.settled(Settled::Unsettled(key(&delivery)));
        }
    }
}

impl Drop for Several {
    fn drop(&mut self) {
        take(&mut self.gathered).into_iter().for_each(|open| self.take(open));
        self.let_go();
    }
}

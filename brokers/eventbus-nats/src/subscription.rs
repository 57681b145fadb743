//! A subscription of this process: what its reader, its settler and its task share.

use crate::connection::Link;
use crate::intake::{Intake, Waiting};
use crate::publish::Outlet;
use crate::suspects::{After, Suspects};
use async_nats::subject::{Subject, ToSubject};
use bytes::Bytes;
use eventbus_core::Pattern;
use eventbus_core::broker::stance::Stance;
use eventbus_core::lock::Rank;
use eventbus_server::handover::{AtHand, Handover};
use eventbus_server::subscriptions::Subscribed;
use futures_util::FutureExt;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

pub(crate) const ACK: Bytes = Bytes::from_static(b"+ACK");
pub(crate) const NAK: Bytes = Bytes::from_static(b"-NAK");
pub(crate) const WORKING: Bytes = Bytes::from_static(b"+WPI");

/// How many messages are asked for ahead of the reader.
pub(crate) const AHEAD: usize = 512;
/// How many bytes of messages a subscription may have that are not settled. It asks for no more then, and of what it needs
/// all the same it keeps places only.
pub(crate) const BYTES: usize = 64 << 20;
/// How many bytes all subscriptions of a broker may have together, as when they take over all groups of a process at once.
const BYTES_OF_ALL: usize = 256 << 20;
/// Of a lease, the part after which no handler is begun that the server was not asked for.
const SURE: f64 = 0.6;

/// A subscription, as long as its task runs.
pub(crate) struct Subscription {
    pub(crate) link: Arc<Link>,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) group: String,
    pub(crate) pattern: Pattern,
    /// The name of its consumer.
    pub(crate) consumer: String,
    /// Several processes handle the group at once.
    pub(crate) competing: bool,
    pub(crate) state: Handover<State>,
    /// Wakes the task: there is room, an ack that could not be sent, or the end.
    pub(crate) bell: Notify,
    /// What the task removes from the bucket, or takes back there.
    pub(crate) settled_notes: UnboundedSender<Stale>,
    /// Which subscription of this process it is.
    pub(crate) number: u64,
    /// There may be events that ended an earlier process.
    pub(crate) careful: AtomicBool,
    /// The same as that of the intake.
    pub(crate) epoch: AtomicU64,
    /// The number of the connection on which the server was seen to have the stream and the consumer of what is here.
    known: AtomicU64,
    /// Milliseconds since `begun` until which nobody else has the group.
    sure_until: AtomicU64,
    begun: Instant,
    /// Whether another process has the group.
    pub(crate) stance: Stance,
}

/// What is noted of an event and does not hold any more.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stale {
    /// When it is to be tried again: it is settled.
    Retry(u64),
    /// That a handler was called with it.
    Begun(u64, After),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) intake: Intake,
    /// What was delivered before, to whomever.
    pub(crate) suspects: Suspects,
    /// The bus shuts down.
    pub(crate) drains: bool,
}

impl AtHand for State {
    fn has_some(&self) -> bool {
        self.intake.has_some()
    }
}

impl Subscription {
    pub(crate) fn new(
        link: Arc<Link>,
        outlet: Arc<Outlet>,
        (group, pattern): (String, Pattern),
        consumer: String,
        connection: u64,
        competing: bool,
        settled_notes: UnboundedSender<Stale>,
    ) -> Self {
        link.open.fetch_add(1, Ordering::Relaxed);
        Self {
            number: link.number_of_subscription(),
            careful: AtomicBool::new(false),
            link,
            outlet,
            group,
            pattern,
            consumer,
            competing,
            state: Handover::new(Rank::BROKER_INNER, State::default()),
            bell: Notify::new(),
            settled_notes,
            epoch: AtomicU64::new(0),
            known: AtomicU64::new(connection),
            sure_until: AtomicU64::new(0),
            begun: Instant::now(),
            stance: Stance::default(),
        }
    }

    /// How many bytes of messages it may have.
    pub(crate) fn most_bytes(&self) -> usize {
        share(self.link.open.load(Ordering::Relaxed))
    }

    fn since_begun(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begun).as_millis()).unwrap_or(u64::MAX)
    }

    /// The group was ours at `evidence`, and is so as long as the server waits for a silent process.
    pub(crate) fn is_sure_from(&self, evidence: Instant) {
        let until = self.since_begun(evidence + self.link.settings.ack_wait);
        self.sure_until.fetch_max(until, Ordering::AcqRel);
    }

    /// Somebody else may have the group from now on.
    pub(crate) fn is_unsure(&self) {
        self.sure_until.store(0, Ordering::Release);
    }

    /// Whether nobody else can have what was handed out in that epoch.
    pub(crate) fn is_sure(&self, epoch: u64) -> bool {
        self.is_of(epoch) && self.since_begun(Instant::now()) < self.sure_until.load(Ordering::Acquire)
    }

    /// Whether nothing was lost to another process since that epoch.
    pub(crate) fn is_of(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::Acquire) == epoch
    }

    /// Whether what was handed out in that epoch may be settled. What is handled to its end may be, also where another
    /// process may have it by now: an ack takes nothing from that one. But a stream that was made anew has the same numbers
    /// for other events.
    pub(crate) fn may_settle(&self, intake: &Intake, epoch: u64) -> bool {
        if self.competing { intake.is_of_this_stream(epoch) } else { epoch == intake.epoch() }
    }

    /// Whether a handler may be begun: the server said a moment ago that the group is ours.
    pub(crate) fn may_begin(&self) -> bool {
        let spare = self.link.settings.ack_wait.mul_f64(1.0 - SURE);
        self.since_begun(Instant::now() + spare) < self.sure_until.load(Ordering::Acquire)
    }

    /// How long ago the last evidence was, at least, so that another is asked for.
    pub(crate) fn lease_left(&self) -> Duration {
        let left = self.sure_until.load(Ordering::Acquire).saturating_sub(self.since_begun(Instant::now()));
        Duration::from_millis(left)
    }

    /// Everything here may be another process's by now.
    pub(crate) fn lose(&self, pauses: bool) {
        self.forget_all(|intake| intake.lose(pauses));
    }

    /// The stream is another one by now.
    pub(crate) fn begin_anew(&self) {
        self.forget_all(Intake::begin_anew);
    }

    fn forget_all(&self, lose: impl FnOnce(&mut Intake) -> VecDeque<Waiting>) {
        let lost = {
            let mut state = self.state.lock();
            let lost = lose(&mut state.intake);
            state.suspects.forget();
            // Under the lock: whoever has seen the end of an epoch there is not told afterwards that it goes on.
            self.epoch.store(state.intake.epoch(), Ordering::Release);
            lost
        };
        self.link.turns.lock().forget(self.number);
        // Events are dropped without the lock.
        drop(lost);
    }

    /// The server has the stream and the consumer on the connection of this number that it had before.
    pub(crate) fn knows(&self, connection: u64) {
        self.known.store(connection, Ordering::Release);
    }

    /// The stream and the consumer may be other ones by now, with the same numbers for other events.
    pub(crate) fn doubts(&self) {
        self.known.store(0, Ordering::Release);
    }

    /// Whether what the server is told and asked is about the stream and the consumer of what is here.
    pub(crate) fn is_known(&self) -> bool {
        self.link.state.is(self.known.load(Ordering::Acquire))
    }

    /// Tells the server something of a delivery. `false`: it was not sent, since it is not known that the delivery is of
    /// the stream that the server has, or since the client has ended.
    pub(crate) async fn tell(&self, reply: impl ToSubject, payload: Bytes) -> bool {
        let client = self.link.client();
        self.where_known(client.client.publish(reply, payload)).await
    }

    /// The same, where there is room for it at once.
    pub(crate) fn tell_now(&self, reply: Subject, payload: Bytes) -> bool {
        self.tell(reply, payload).now_or_never().unwrap_or_default()
    }

    /// Sends something, unless it would have to wait for its turn until the connection is another one.
    pub(crate) async fn where_known<E>(&self, sending: impl Future<Output = Result<(), E>>) -> bool {
        let mut sending = pin!(sending);
        poll_fn(|context| {
            if self.is_known() {
                sending.as_mut().poll(context).map(|sent| sent.is_ok())
            } else {
                Poll::Ready(false)
            }
        })
        .await
    }

    /// Gives a delivery back that was dropped unsettled.
    pub(crate) fn give_back(&self, epoch: u64, waiting: Waiting) {
        let (released, dropped) = self.state.change(|state| {
            if epoch != state.intake.epoch() || !state.intake.holds(waiting.sequence) {
                (None, Some(waiting))
            } else if state.is_closed() {
                (state.intake.release(waiting.sequence), Some(waiting))
            } else {
                state.intake.put(waiting);
                (None, None)
            }
        });
        drop(dropped);
        if let Some(reply) = released {
            // Where it is not sent, the server delivers it again a little later.
            self.tell_now(reply, NAK);
            self.bell.notify_one();
        }
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        self.state.close();
        self.bell.notify_one();
    }

    /// The broker is closed.
    pub(crate) fn end(&self) {
        self.state.end();
        self.bell.notify_one();
    }

    /// Whether nothing is open here.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.intake.held() == 0 && state.intake.unconfirmed() == 0
    }
}

impl Subscribed for Subscription {
    fn group_on(&self) -> (&str, &Pattern) {
        (&self.group, &self.pattern)
    }

    fn is_finished(&self) -> bool {
        self.state.lock().is_finished()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.link.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many bytes each of so many subscriptions may have.
fn share(subscriptions: usize) -> usize {
    (BYTES_OF_ALL / subscriptions.max(1)).min(BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_subscriptions_have_as_much_as_each_may_and_many_share() {
        assert_eq!([0, 1, 4].map(share), [BYTES; 3]);
        assert_eq!(share(64) * 64, BYTES_OF_ALL);
        assert!(share(usize::MAX) == 0);
    }

    #[tokio::test]
    async fn an_epoch_has_ended_for_everybody_at_once() {
        const TIMES: u64 = 20_000;
        let place = crate::faults::Place::new();
        let broker = place.broker().await;
        let (link, outlet) = (Arc::clone(&broker.shared().link), Arc::clone(&broker.shared().outlet));
        let (notes, _stale) = tokio::sync::mpsc::unbounded_channel();
        let names = ("g".to_owned(), Pattern::new(">").unwrap());
        let subscription = Subscription::new(link, outlet, names, "c".to_owned(), 1, false, notes);
        let subscription = Arc::new(subscription);
        let losing = std::thread::spawn({
            let subscription = Arc::clone(&subscription);
            move || (0..TIMES).for_each(|_| subscription.lose(false))
        });
        let mut epoch = 0;
        while epoch < TIMES {
            let state = subscription.state.lock();
            epoch = state.intake.epoch();
            assert!(subscription.is_of(epoch), "{epoch} is known to some as another one");
        }
        losing.join().unwrap();
        place.remove().await;
    }
}

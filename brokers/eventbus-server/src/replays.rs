//! What a task or a thread reads for a replay, and how it comes to the replay's reader.
//!
//! The reader hears of the end of the history only where that was said, by [`Feed::complete`]. A [`Feed`] that is dropped
//! without it, as where its task panics or is ended with its broker, is a replay that broke off: the reader gets what is at
//! hand, then an error, and only then the end. Nobody takes a part of the history for all of it.

use eventbus_core::broker::{BrokerFuture, DeadLetter, Deliveries, Offset, Receipt, Received, Settler};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::printable::printable;
use eventbus_core::waiters::Waiters;
use eventbus_core::{BrokerError, Envelope, foreign, log};
use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;
use tokio::time::timeout;

/// How many events wait for the reader at most.
const AHEAD: usize = 256;
/// How many bytes they may have together, beside the last one.
const AHEAD_BYTES: usize = 4 << 20;
/// What an event takes beside its payload, roughly.
const BESIDE: usize = 256;

/// Where what reads the history puts it. Dropped without [`complete`](Self::complete), the replay broke off.
///
/// ```
/// use eventbus_core::broker::{Deliveries, Offset, Received};
/// use eventbus_core::{BrokerError, Envelope, Topic};
/// use eventbus_server::replays::Feed;
/// use std::future::poll_fn;
/// use std::sync::Arc;
///
/// async fn next(deliveries: &mut dyn Deliveries) -> Result<usize, BrokerError> {
///     let mut received = Vec::new();
///     poll_fn(|context| deliveries.poll_receive(context, &mut received, 1)).await?;
///     let count = received.len();
///     for Received { receipt, settler, .. } in received {
///         settler.ack(receipt).await?;
///     }
///     Ok(count)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let event = Arc::new(Envelope::from_json(Topic::new("order.placed")?, "a chair")?);
/// let (feed, mut deliveries) = Feed::new();
/// assert!(feed.put(Offset::new(7), Arc::clone(&event)).await);
/// feed.complete();
/// assert_eq!(next(&mut deliveries).await?, 1);
/// assert_eq!(next(&mut deliveries).await?, 0, "that was all");
///
/// let (feed, mut deliveries) = Feed::new();
/// assert!(feed.put(Offset::new(7), event).await);
/// drop(feed);
/// assert_eq!(next(&mut deliveries).await?, 1);
/// let error = next(&mut deliveries).await.unwrap_err();
/// assert!(error.to_string().contains("before its end"));
/// # Ok(())
/// # }
/// ```
pub struct Feed(Arc<Shared>);

/// The reader's end of a replay: what is given back comes again, and the end comes once nothing more can be given back.
pub struct ReplayDeliveries(Arc<Shared>);

struct Shared {
    state: Lock<State>,
    /// Tells the feed that there is room, or that nobody reads any more.
    changed: Waiters,
}

#[derive(Default)]
struct State {
    /// By their numbers, so that what is given back comes in the order of the history.
    at_hand: BTreeMap<u64, Receipt>,
    bytes: usize,
    /// The number of the latest event.
    latest: u64,
    /// How many are handed out.
    open: usize,
    end: End,
    /// Nobody reads any more.
    closed: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
enum End {
    /// More is read.
    #[default]
    Ahead,
    /// That was all.
    Complete,
    /// Nothing more is read, and that was not all.
    BrokenOff {
        reason: Option<BrokerError>,
        /// It was the last that the reader was told.
        told: bool,
    },
}

impl Feed {
    /// Nothing was read yet.
    #[must_use]
    pub fn new() -> (Self, ReplayDeliveries) {
        let state = Lock::new(Rank::BROKER_LAST, State::default());
        let shared = Arc::new(Shared { state, changed: Waiters::new() });
        (Self(Arc::clone(&shared)), ReplayDeliveries(shared))
    }

    /// Puts the next event at hand, once there is room. `false`: nobody reads any more.
    ///
    /// # Cancel safety
    /// Dropped while there is no room, the event is not put.
    pub async fn put(&self, offset: Offset, envelope: Arc<Envelope>) -> bool {
        self.0.changed.until(|| self.0.state.lock().has_room().then_some(())).await;
        let mut receipt = Some(Receipt { envelope, offset, attempt: 1, token: 0 });
        let is_read = self.0.change(|state| {
            if !state.closed {
                state.latest += 1;
                let token = state.latest;
                state.lay(receipt.take().map(|receipt| Receipt { token, ..receipt }));
            }
            !state.closed
        });
        // Where it was not taken it is dropped here, without the lock.
        drop(receipt);
        is_read
    }

    /// As [`put`](Self::put), on a thread that may wait.
    pub fn put_blocking(&self, offset: Offset, envelope: Arc<Envelope>) -> bool {
        block_on(self.put(offset, envelope))
    }

    /// Whether nobody reads any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().closed
    }

    /// Resolves once nobody reads any more.
    ///
    /// # Cancel safety
    /// Dropped, it waits no more.
    pub async fn closed(&self) {
        self.0.changed.until(|| self.is_closed().then_some(())).await;
    }

    /// Something cannot be read just now: writes a line of the log that says so, and waits so long, or until nobody reads
    /// any more. The reader is told nothing, since an error right before the end says that the replay broke off.
    ///
    /// # Cancel safety
    /// Dropped, it waits no more.
    pub async fn pause(&self, group: &str, error: &BrokerError, pause: Duration) {
        log::warn!(
            target: "eventbus", group = %printable(group), error = %printable(error),
            "the history cannot be read for a replay; trying again in {pause:?}"
        );
        let _ = timeout(pause, self.closed()).await;
    }

    /// That was all.
    pub fn complete(self) {
        self.0.change(|state| state.end = End::Complete);
    }

    /// The rest cannot be read, for this reason. The reader takes what is at hand before that.
    pub fn break_off(self, reason: BrokerError) {
        self.0.change(|state| state.end = End::BrokenOff { reason: Some(reason), told: false });
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.change(|state| {
            if matches!(state.end, End::Ahead) {
                state.end = End::BrokenOff { reason: None, told: false };
            }
        });
    }
}

impl Shared {
    /// Changes the state, and wakes the reader where there is something for it then, without the lock.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (changed, waker) = {
            let mut state = self.state.lock();
            let changed = change(&mut state);
            let waker = if state.has_some() { state.waker.take() } else { None };
            (changed, waker)
        };
        if let Some(waker) = waker {
            foreign::tell("a waker", || waker.wake());
        }
        changed
    }

    fn settled(&self, mut receipt: Option<Receipt>) {
        self.change(|state| {
            state.open = state.open.saturating_sub(1);
            if !state.closed {
                state.lay(receipt.take());
            }
        });
        drop(receipt);
    }
}

impl State {
    /// Whether the feed need not wait.
    fn has_room(&self) -> bool {
        self.closed || (self.at_hand.len() < AHEAD && self.bytes < AHEAD_BYTES)
    }

    /// Whether the reader need not wait.
    fn has_some(&self) -> bool {
        !self.at_hand.is_empty() || matches!(self.end, End::BrokenOff { told: false, .. }) || self.is_over()
    }

    /// Whether there is no more. What is handed out may come back.
    fn is_over(&self) -> bool {
        !matches!(self.end, End::Ahead) && self.open == 0
    }

    fn lay(&mut self, receipt: Option<Receipt>) {
        if let Some(receipt) = receipt {
            self.bytes += size(&receipt);
            self.at_hand.insert(receipt.token, receipt);
        }
    }

    /// The next event, to be handed out.
    fn take(&mut self) -> Option<Receipt> {
        let (_, receipt) = self.at_hand.pop_first()?;
        self.bytes -= size(&receipt);
        self.open += 1;
        if let End::BrokenOff { told, .. } = &mut self.end {
            // An end behind a delivery would count as that of the history.
            *told = false;
        }
        Some(receipt)
    }

    /// What there is to be told that the history is not complete.
    fn tell(&mut self) -> Option<BrokerError> {
        let End::BrokenOff { reason, told } = &mut self.end else { return None };
        if std::mem::replace(told, true) {
            return None;
        }
        Some(reason.take().unwrap_or_else(|| {
            BrokerError::new(
                "the replay broke off before its end, since the broker was closed or what reads its history has failed; \
                 begin it again",
            )
        }))
    }
}

fn size(receipt: &Receipt) -> usize {
    receipt.envelope.payload().map_or(0, |payload| payload.len()) + BESIDE
}

impl Deliveries for ReplayDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        // A waker is code of others, and is neither cloned nor dropped under the lock.
        let (waker, before) = (context.waker().clone(), into.len());
        let (polled, former) = {
            let mut state = self.0.state.lock();
            while into.len() - before < limit
                && let Some(receipt) = state.take()
            {
                let settler = Arc::clone(&self.0) as Arc<dyn Settler>;
                into.push(Received { receipt, replayed: true, parked: None, alone: false, settler });
            }
            if into.len() > before {
                (Poll::Ready(Ok(())), Some(waker))
            } else if let Some(error) = state.tell() {
                (Poll::Ready(Err(error)), Some(waker))
            } else if state.is_over() {
                (Poll::Ready(Ok(())), Some(waker))
            } else {
                (Poll::Pending, state.waker.replace(waker))
            }
        };
        drop(former);
        if into.len() > before {
            self.0.changed.tell();
        }
        polled
    }
}

impl Drop for ReplayDeliveries {
    fn drop(&mut self) {
        let dropped = {
            let mut state = self.0.state.lock();
            state.closed = true;
            (std::mem::take(&mut state.at_hand), state.waker.take())
        };
        drop(dropped);
        self.0.changed.tell();
    }
}

/// There is nothing to be noted of what a replay hands out.
impl Settler for Shared {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        drop(receipt);
        self.settled(None);
        BrokerFuture::ready(Ok(()))
    }

    /// Not called by a bus: what fails in a replay is in its report.
    fn reject(&self, receipt: Receipt, _letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.ack(receipt)
    }

    fn release(&self, receipt: Receipt) {
        self.settled(Some(receipt));
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").finish_non_exhaustive()
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

impl fmt::Debug for ReplayDeliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayDeliveries").finish_non_exhaustive()
    }
}

/// Waits on a thread, which is woken by being unparked.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Parked(Thread);

    impl Wake for Parked {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Parked(thread::current())));
    let (mut context, mut future) = (Context::from_waker(&waker), pin!(future));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::Topic;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn event(bytes: usize) -> Arc<Envelope> {
        let (topic, payload) = (Topic::new("order.placed").unwrap(), vec![0; bytes].into());
        Arc::new(Envelope::from_bytes(topic, "application/octet-stream", payload))
    }

    fn put(feed: &Feed, number: u64) -> bool {
        feed.put_blocking(Offset::new(number.into()), event(1))
    }

    /// What a poll has brought: places, or what is said, or nothing yet.
    #[derive(Debug, PartialEq)]
    enum Came {
        Events(Vec<u64>),
        End,
        Failed(String),
        Nothing,
    }

    /// Polls, and keeps what is handed out open.
    fn poll(deliveries: &mut ReplayDeliveries, open: &mut Vec<Received>, waker: &Waker) -> Came {
        let before = open.len();
        match deliveries.poll_receive(&mut Context::from_waker(waker), open, 2) {
            Poll::Pending => Came::Nothing,
            Poll::Ready(Err(error)) => Came::Failed(error.to_string()),
            Poll::Ready(Ok(())) if open.len() == before => Came::End,
            Poll::Ready(Ok(())) => {
                let place = |one: &Received| u64::try_from(one.receipt.offset.get()).unwrap();
                Came::Events(open[before..].iter().map(place).collect())
            }
        }
    }

    fn ack(received: Received) {
        drop(received.settler.ack(received.receipt));
    }

    fn give_back(received: Received) {
        received.settler.release(received.receipt);
    }

    fn is_broken_off(came: &Came) -> bool {
        matches!(came, Came::Failed(said) if said.contains("before its end") && said.ends_with("begin it again"))
    }

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_end_comes_once_it_was_said_and_nothing_can_come_back() {
        let ((feed, mut deliveries), mut open) = (Feed::new(), Vec::new());
        let mut next = |open: &mut Vec<_>| poll(&mut deliveries, open, Waker::noop());
        assert_eq!(next(&mut open), Came::Nothing);
        (1..=3).for_each(|number| assert!(put(&feed, number)));
        feed.complete();
        assert_eq!(next(&mut open), Came::Events(vec![1, 2]));
        give_back(open.remove(0));
        assert_eq!(next(&mut open), Came::Events(vec![1, 3]), "what was given back comes before what waits");
        assert_eq!(next(&mut open), Came::Nothing, "any of three may come back");
        give_back(open.pop().unwrap());
        assert_eq!(next(&mut open), Came::Events(vec![3]));
        open.into_iter().for_each(ack);
        assert_eq!(next(&mut Vec::new()), Came::End);
    }

    #[test]
    fn a_feed_that_is_dropped_before_the_end_is_an_error_and_never_the_end_of_the_history() {
        let ((feed, mut deliveries), mut open) = (Feed::new(), Vec::new());
        let mut next = |open: &mut Vec<_>| poll(&mut deliveries, open, Waker::noop());
        assert!(put(&feed, 1));
        // As where its task panics, or is ended.
        drop(feed);
        assert_eq!(next(&mut open), Came::Events(vec![1]), "what is at hand comes first");
        assert!(is_broken_off(&next(&mut open)));
        assert_eq!(next(&mut open), Came::Nothing, "it may come back");
        give_back(open.remove(0));
        assert_eq!(next(&mut open), Came::Events(vec![1]));
        ack(open.remove(0));
        assert!(
            is_broken_off(&next(&mut open)),
            "right before the end, whatever came after it was said first"
        );
        assert_eq!(next(&mut open), Came::End);
    }

    #[test]
    fn why_it_broke_off_is_told_where_that_is_known() {
        let ((feed, mut deliveries), mut open) = (Feed::new(), Vec::new());
        feed.break_off(BrokerError::new("the stream was removed"));
        let mut next = || poll(&mut deliveries, &mut open, Waker::noop());
        assert_eq!([next(), next()], [Came::Failed("the stream was removed".to_owned()), Came::End]);
    }

    #[test]
    fn a_reader_that_waits_is_woken_once_there_is_something_for_it() {
        type Told = fn(Feed, Received);
        let tells: [(&str, Told); 5] = [
            ("an event", |feed, _open| _ = put(&feed, 2)),
            ("given back", |_feed, open| give_back(open)),
            ("the end", |feed, open| {
                ack(open);
                feed.complete();
            }),
            ("the last is settled", |feed, open| {
                feed.complete();
                ack(open);
            }),
            ("broken off", |feed, _open| drop(feed)),
        ];
        for (told, tell) in tells {
            let ((feed, mut deliveries), mut open) = (Feed::new(), Vec::new());
            let calls = Arc::new(Calls::default());
            let waker = Waker::from(Arc::clone(&calls));
            assert!(put(&feed, 1));
            assert_eq!(poll(&mut deliveries, &mut open, &waker), Came::Events(vec![1]));
            assert_eq!(poll(&mut deliveries, &mut open, &waker), Came::Nothing);
            assert_eq!(calls.0.load(Ordering::Relaxed), 0);
            tell(feed, open.remove(0));
            assert_eq!(calls.0.load(Ordering::Relaxed), 1, "{told}");
        }
    }

    #[test]
    fn no_more_is_read_ahead_than_there_is_room_for() {
        for (bytes, count) in [(1, AHEAD), (AHEAD_BYTES / 2, 2)] {
            let (feed, mut deliveries) = Feed::new();
            for number in 0..count {
                assert!(feed.put_blocking(Offset::new(number as u128), event(bytes)));
            }
            let mut context = Context::from_waker(Waker::noop());
            let mut putting = pin!(feed.put(Offset::new(0), event(bytes)));
            assert!(putting.as_mut().poll(&mut context).is_pending(), "{count} of {bytes} bytes");
            assert!(matches!(
                poll(&mut deliveries, &mut Vec::new(), Waker::noop()),
                Came::Events(events) if events.len() == 2
            ));
            assert_eq!(putting.as_mut().poll(&mut context), Poll::Ready(true));
        }
    }

    #[test]
    fn a_feed_that_waits_for_room_hears_that_nobody_reads_any_more() {
        let (feed, deliveries) = Feed::new();
        (0..AHEAD as u64).for_each(|number| assert!(put(&feed, number)));
        let waits = thread::spawn(move || put(&feed, 0) || !feed.is_closed());
        drop(deliveries);
        assert!(!waits.join().unwrap());
    }
}

//! Settling: telling the broker what became of a delivery, once.

use super::{BrokerFuture, DeadLetter, FailureKind, Offset, taken};
use crate::envelope::Envelope;
use crate::error::{BrokerError, PublishError};
use crate::foreign::{self, Kept};
use crate::log;
use crate::printable::printable;
use jiff::Timestamp;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// How long it takes until a broker is asked again that panicked as it was given a delivery back; then twice as long.
const AGAIN: Duration = Duration::from_millis(250);
/// So often it is asked: one that gives the delivery back and panics then must not do so for ever.
const RELEASES: u32 = 8;

/// What a broker needs to know a delivery again.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The envelope that was delivered.
    pub envelope: Arc<Envelope>,
    /// Its place.
    pub offset: Offset,
    /// How often it was delivered to this group, from 1.
    pub attempt: u32,
    /// A number of the broker's own, such as a delivery tag or an index.
    pub token: u64,
}

/// The broker's side of settlement, one for each open subscription.
///
/// A delivery that was handed over is held until `ack` or `reject` has answered `Ok`, or until `release` was called; a
/// parked one is held as well. A bus asks for each delivery from one place at a time, for different deliveries from any
/// thread, at once and in any order; of those with one key the next is handled after the one before is settled. It holds
/// no lock meanwhile.
///
/// After a lease is lost, [`holds`](Self::holds) says no, and what no handler has yet is dropped without another call. What
/// a handler has may still be settled: then `ack`, `reject` and `park` are errors that change nothing, and `release` does
/// nothing, since somebody else has the delivery.
///
/// A call of `ack`, `reject` or `release` that panics, or whose future does, is made again a moment later, with the same
/// receipt, and then less and less often: what it did is not known. Where it did what it was asked for, the second call is
/// to change nothing, and to answer `Ok`.
///
/// # Cancel safety
/// Once a method was called its effect may come, whether its future is awaited or dropped. Dropped, what became of the
/// delivery is not known: it may come again.
pub trait Settler: Send + Sync + fmt::Debug + 'static {
    /// The delivery is done. `Ok` means that this group does not get it again, but for a crash before the broker has saved
    /// that: a log may save acks a moment later, many at once.
    ///
    /// # Errors
    /// Where the broker could not take it, or the delivery is somebody else's by now: it is delivered again. A bus logs
    /// that, and goes on with what is next in the lane.
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>>;

    /// The delivery is done once these events are published, which its handler has returned: both or neither. Asked only
    /// of a broker that declares [`transactions`](super::Features::transactions), and never without an event. `None`, the
    /// default: not for this delivery, as in a replay; then they are published first, and it is acked.
    ///
    /// `Ok` holds what [`ack`](Self::ack) would answer. Where that is an error, nothing was published, as far as this
    /// process knows: whoever has the delivery publishes them. Whoever waits for the answer holds the delivery, and may
    /// [release](Self::release) it meanwhile.
    ///
    /// # Errors
    /// An event cannot be published: none of them is, and whoever asked still holds the delivery, as before. It is a failed
    /// attempt.
    fn ack_with(
        &self,
        receipt: &Receipt,
        events: &[Arc<Envelope>],
    ) -> Option<BrokerFuture<Result<Result<(), BrokerError>, PublishError>>> {
        let _ = (receipt, events);
        None
    }

    /// The subscription gave the delivery up. `Ok` means that its dead letter is stored, and the delivery done.
    ///
    /// A delivery of a replay is never given up so: a bus acks it, and keeps the failure for the report.
    ///
    /// # Errors
    /// Neither is the case, as on a full disk: whoever asked still holds the delivery, as before. A bus asks again later,
    /// with the same receipt, and keeps what follows in the delivery's lane back until the dead letter is stored. Where
    /// the answer is not waited for, the broker has to deliver again what it could not store.
    fn reject(&self, receipt: Receipt, dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>>;

    /// The subscription will try again itself when it is due, and holds the delivery until then. A durable broker
    /// writes this down, so that after a crash attempts go on counting and the delivery comes back when due. `Ok` means
    /// that this survives a crash, as far as anything of the broker does.
    ///
    /// # Errors
    /// It is not written down. The delivery is held and tried again all the same; after a crash its attempts are counted
    /// from an earlier one.
    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        let _ = (receipt, parked);
        BrokerFuture::ready(Ok(()))
    }

    /// Whether the delivery may still be handled here. A broker says no once another process may have been given
    /// it, because a lease ran out; then it is dropped without being handled.
    fn holds(&self, receipt: &Receipt) -> bool {
        let _ = receipt;
        true
    }

    /// A handler is about to be called with the delivery. A broker that finds out which events end the process notes
    /// that first, and the handler waits for the answer. Asked before each attempt, so that the usual answer, `None`,
    /// has to be quick. Default: `None`, call it.
    fn begin(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        let _ = receipt;
        None
    }

    /// The delivery was dropped unsettled: deliver it again, before what waits behind it. Called from destructors, on any
    /// thread, so it must not block; what it gives back may be asked for before it returns.
    ///
    /// The receipt says which attempt comes next: another one than was handed out only if a handler had begun with it. A
    /// broker that keeps count in a store may go by that instead.
    fn release(&self, receipt: Receipt);
}

/// Whether a handler may be called with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Begin {
    /// Now, unless the process has ended too often while a handler had the event: `crashes` times, as far as the
    /// broker knows. Beyond `retries`, and beyond 2, it becomes a [`Crashed`](super::FailureKind::Crashed) dead letter.
    Now {
        /// How often the process ended while a handler had the event.
        crashes: u32,
    },
    /// Others go first; ask again so much later. Its lane stays closed until then, and it holds no worker.
    Later(Duration),
    /// Never: the event is not what was published, so no handler may see it. It is given up, in a replay as an event that
    /// failed, for its report.
    Never {
        /// What is said of the failure.
        kind: FailureKind,
        /// Why, and what to do.
        reason: &'static str,
    },
}

/// A delivery's wait for its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parked {
    /// When the first attempt failed.
    pub first_failed_at: Timestamp,
    /// When the last attempt failed.
    pub last_failed_at: Timestamp,
    /// When the next attempt is due.
    pub due: Timestamp,
}

impl Parked {
    /// How long to wait from `now`: never longer than was meant, should the clock have been set back.
    #[must_use]
    pub fn delay(&self, now: Timestamp) -> Duration {
        let meant = self.due.duration_since(self.last_failed_at);
        let left = self.due.duration_since(now).min(meant);
        Duration::try_from(left).unwrap_or_default()
    }
}

/// Settles one delivery, once; dropping it leaves the delivery to be delivered again.
#[derive(Debug)]
pub(crate) struct Acker {
    settler: Kept<Arc<dyn Settler>>,
    receipt: Option<Receipt>,
    /// The attempt of the receipt is being made.
    attempted: bool,
    /// What the receipt says that a delivery does not.
    token: u64,
}

const CONSUMED: &str = "an acker is consumed by settling";

impl Acker {
    pub(crate) fn new(settler: Arc<dyn Settler>, receipt: Receipt) -> Self {
        let token = receipt.token;
        Self { settler: Kept::new(settler), receipt: Some(receipt), attempted: false, token }
    }

    pub(crate) fn receipt(&self) -> &Receipt {
        self.receipt.as_ref().expect(CONSUMED)
    }

    /// The delivery is done. Where the broker panics, the delivery is held further: [`take_back`](Self::take_back).
    pub(crate) fn ack(&mut self) -> BrokerFuture<Result<(), BrokerError>> {
        let receipt = self.take();
        self.settler.ack(receipt)
    }

    /// The delivery is done with these events; it is held until that is answered.
    pub(crate) fn ack_with(
        &self,
        events: &[Arc<Envelope>],
    ) -> Option<BrokerFuture<Result<Result<(), BrokerError>, PublishError>>> {
        self.settler.ack_with(self.receipt(), events)
    }

    /// The delivery is given up; `Ok` means that its dead letter is stored. Where it could not be, the delivery is held
    /// further: [`keep`](Self::keep) takes its receipt.
    pub(crate) fn reject(&mut self, dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        let receipt = self.take();
        self.settler.reject(receipt, dead_letter)
    }

    /// The broker panicked as it was told that this delivery is done: it is held as before.
    pub(crate) fn take_back(&mut self, envelope: &Arc<Envelope>, offset: Offset, attempt: u32) {
        let (envelope, token) = (Arc::clone(envelope), self.token);
        self.receipt = Some(Receipt { envelope, offset, attempt, token });
    }

    /// The broker did not take the answer: what the receipt says is held as before.
    pub(crate) fn keep(&mut self, receipt: Receipt) {
        self.receipt = Some(receipt);
    }

    /// Notes that the subscription tries again, as `attempt`; from now on this is what the receipt says.
    pub(crate) fn park(&mut self, attempt: u32, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        match &mut self.receipt {
            Some(receipt) => {
                receipt.attempt = attempt;
                self.attempted = false;
                self.settler.park(receipt, parked)
            }
            None => BrokerFuture::ready(Ok(())),
        }
    }

    /// Tells the broker that a handler is about to be called. A broker that cannot take it has not said no.
    pub(crate) fn begin(&self) -> Option<BrokerFuture<Begin>> {
        foreign::call("a broker", || self.settler.begin(self.receipt())).unwrap_or_else(|panicked| {
            log::error!(
                target: "eventbus", panic = %printable(panicked.into_text()),
                "the broker has panicked as it was told of an attempt; it is made"
            );
            None
        })
    }

    /// A handler is called: from now on the attempt counts, or not, where nobody is to blame for how it ended.
    #[inline]
    pub(crate) fn count(&mut self, attempted: bool) {
        self.attempted = attempted;
    }

    /// Whether the delivery may still be handled here.
    pub(crate) fn holds(&self) -> bool {
        // A broker that cannot tell has not said no.
        foreign::call("a broker", || self.settler.holds(self.receipt())).unwrap_or_else(|panicked| {
            log::error!(
                target: "eventbus", panic = %printable(panicked.into_text()),
                "the broker has panicked as it was asked whether a delivery is held; it is handled"
            );
            true
        })
    }

    /// Lets go of a delivery that is not held any more.
    pub(crate) fn forget(mut self) -> Receipt {
        self.take()
    }

    fn take(&mut self) -> Receipt {
        self.receipt.take().expect(CONSUMED)
    }
}

impl Drop for Acker {
    fn drop(&mut self) {
        if let Some(mut receipt) = self.receipt.take() {
            receipt.attempt = receipt.attempt.saturating_add(self.attempted.into());
            release(&self.settler, receipt, 0);
        }
    }
}

/// Gives a delivery back. A broker that has panicked so often as it was given back is asked again later.
fn release(settler: &Kept<Arc<dyn Settler>>, receipt: Receipt, panics: u32) {
    let (again, mark) = (receipt.clone(), taken::mark());
    let Err(panicked) = foreign::call("a broker", || settler.release(receipt)) else { return };
    let (taken, panics) = (mark.has_moved(), panics + 1);
    let next = match (taken, panics) {
        (true, _) => "it had taken it before",
        (false, RELEASES..) => "the event is delivered again when its subscription is opened anew",
        (false, _) => "it is given back again later",
    };
    log::error!(
        target: "eventbus", id = %printable(again.envelope.id()), panic = %printable(panicked.into_text()),
        "the broker has panicked as a delivery was given back; {}", printable(next)
    );
    if taken || panics >= RELEASES {
        return foreign::tell("an envelope", || drop(again));
    }
    let (settler, delay) = (settler.clone(), AGAIN * 2_u32.pow(panics - 1));
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            release(&settler, again, panics);
        })),
        Err(_) => {
            let release = move || {
                std::thread::sleep(delay);
                release(&settler, again, panics);
            };
            // Without a thread there is nobody who could.
            drop(std::thread::Builder::new().name("eventbus-release".to_owned()).spawn(release));
        }
    }
}

//! The contract between the bus and what stores and forwards its events.
//!
//! A broker moves envelopes; it never sees types, handlers or retry policies. [`memory`](crate::memory) is the
//! reference implementation.

mod audit;
mod condition;
mod dead_letter_id;
mod dead_letters;
mod features;
mod future;
mod groups;
mod offset;
mod progress;
mod replay;
mod scheme;
mod settle;
#[doc(hidden)]
pub mod stance;
mod start;
mod subscribe;
#[doc(hidden)]
pub mod suspects;
pub(crate) mod taken;

pub use audit::{AuditLog, AuditQuery, CauseTree, Recorded};
pub use condition::{Connection, Standing, Topology};
pub use dead_letter_id::DeadLetterId;
pub use dead_letters::{DeadLetter, DeadLetterList, DeadLetterQuery, DeadLetters, FailureKind};
pub use features::{Attempts, Backlog, Features};
pub use future::BrokerFuture;
pub use groups::{GroupState, Groups};
pub use offset::{Offset, ParseOffsetError};
pub use progress::{Progress, Save, Saved};
pub use replay::{Replay, ReplayFrom, ReplayRequest, ReplayUntil, Replayable};
pub use scheme::{OpenedBroker, Scheme};
pub(crate) use settle::Acker;
pub use settle::{Begin, Parked, Receipt, Settler};
pub use start::Start;
#[doc(hidden)]
pub use start::{SKIPPED, skipped};
pub use subscribe::SubscribeRequest;

use crate::envelope::Envelope;
use crate::error::{BrokerError, PublishError};
use std::sync::Arc;
use std::task::{Context, Poll};

/// What stores and forwards: in-process queues, a log, Kafka, …
///
/// All methods may be called from any thread, at once, also while futures of earlier calls are under way. No lock of a bus
/// is held meanwhile.
///
/// # Cancel safety
/// Futures that are dropped before they are done may or may not have taken effect. A subscription whose future is dropped
/// is not open, though the broker may know its group from then on.
pub trait Broker: Send + Sync + 'static {
    /// The name for messages, such as "in-process" or "Kafka".
    fn name(&self) -> &str;

    /// The address under which other programs open this broker, without a password: messages name it in commands that are
    /// ready to be pasted. None, where no other program can.
    fn address(&self) -> Option<String> {
        None
    }

    /// What this broker can do; the conformance suite holds it to its word.
    fn features(&self) -> Features;

    /// Stores one envelope. Callers do not wait in line: several publishes may be under way at once.
    ///
    /// `Ok` means that the broker confirmed: the envelope reaches every group that subscribed before, and where the broker
    /// is [durable](Features::durable), also after a crash. Events of one key whose publishes do not overlap reach a group
    /// in the order of these calls, where the broker has [`key_order`](Features::key_order).
    ///
    /// # Errors
    /// Nothing was stored, unless it is [`PublishError::Unconfirmed`].
    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>>;

    /// Stores several envelopes and answers for each, in their order.
    ///
    /// Each may be stored or refused by itself; those that are stored keep their order. By default one after the other; a
    /// broker with native batches does better.
    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        let published: Vec<_> = envelopes.into_iter().map(|envelope| self.publish(envelope)).collect();
        BrokerFuture::new(async move {
            let mut results = Vec::with_capacity(published.len());
            for publish in published {
                results.push(publish.await);
            }
            results
        })
    }

    /// Opens a subscription: from the moment this resolves, the group misses nothing. That holds also where another process
    /// has the group: then nothing is delivered here until that one ends or leaves.
    ///
    /// # Errors
    /// Where the broker cannot open it. It is not tried again by itself.
    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>>;

    /// Looks whether the server has what [`subscribe`](Self::subscribe) needs for this, where it is only to be
    /// [checked](Topology::Check) there; what would be made is not missing. Nothing is opened or made.
    ///
    /// By default there is nothing to look at.
    ///
    /// # Errors
    /// What `subscribe` would be refused for: what is missing, or is there with other settings.
    fn check(&self, request: SubscribeRequest) -> BrokerFuture<Result<(), BrokerError>> {
        let _ = request;
        BrokerFuture::ready(Ok(()))
    }

    /// The store of dead letters, where the broker keeps them.
    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        None
    }

    /// Replay, where the broker keeps events after they were handled.
    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        None
    }

    /// The audit log, where the broker can be asked what was published.
    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        None
    }

    /// The cursors of groups, where the broker keeps them.
    fn groups(&self) -> Option<Arc<dyn Groups>> {
        None
    }

    /// Resolves once every event that was stored is settled by every subscription of this process, where the broker
    /// can tell; retries that wait count as not settled. It resolves too once nothing can be settled any more, as after
    /// the broker was closed: what is left then is an error line.
    fn settled(&self) -> Option<BrokerFuture<()>> {
        None
    }

    /// Whether the broker can be reached now. It answers at once, from what it knows.
    fn connection(&self) -> Connection {
        Connection::Up
    }

    /// Whether the open subscription that `request` asked for gets deliveries, or stands by. It answers at once, from what
    /// it knows.
    fn standing(&self, request: &SubscribeRequest) -> Standing {
        let _ = request;
        Standing::Active
    }

    /// How many events the open subscription that `request` asked for has yet to settle, those included that it was handed,
    /// where the broker keeps no [`groups`](Self::groups) that tell. It answers at once, from what it knows.
    fn backlog(&self, request: &SubscribeRequest) -> Option<u64> {
        let _ = request;
        None
    }

    /// Called first at the shutdown of a bus, while its subscriptions, which these are, still run: resolves once nothing
    /// waits for them that would be lost with the process. What waits for others, such as those of another bus on this
    /// broker, is theirs. A durable broker has nothing to wait for.
    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        let _ = subscriptions;
        BrokerFuture::ready(())
    }

    /// Called last at shutdown: flushes what is buffered and releases connections.
    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(Ok(()))
    }
}

/// A broker that several hold.
impl<B: Broker + ?Sized> Broker for Arc<B> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn address(&self) -> Option<String> {
        (**self).address()
    }

    fn features(&self) -> Features {
        (**self).features()
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        (**self).publish(envelope)
    }

    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        (**self).publish_all(envelopes)
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        (**self).subscribe(request)
    }

    fn check(&self, request: SubscribeRequest) -> BrokerFuture<Result<(), BrokerError>> {
        (**self).check(request)
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        (**self).dead_letters()
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        (**self).replayable()
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        (**self).audit_log()
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        (**self).groups()
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        (**self).settled()
    }

    fn connection(&self) -> Connection {
        (**self).connection()
    }

    fn standing(&self, request: &SubscribeRequest) -> Standing {
        (**self).standing(request)
    }

    fn backlog(&self, request: &SubscribeRequest) -> Option<u64> {
        (**self).backlog(request)
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        (**self).drain(subscriptions)
    }

    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        (**self).close()
    }
}

/// An open subscription at a broker, from which one reader receives.
pub trait Deliveries: Send {
    /// Moves at most `limit` deliveries into `into`, as many as are at hand.
    ///
    /// `Ready(Ok(()))` with nothing moved means that there is no more, as at the end of a replay; after `Pending` it is
    /// not asked again before the waker of the latest call was woken. After an error the subscription is asked again
    /// within a second or so: the broker reconnects by itself.
    ///
    /// What was released comes before what waits, in the order of its offsets. Where the broker has
    /// [`key_order`](Features::key_order), deliveries of one key come in the order of their publishes, and after a lease
    /// was lost and taken again from the first one that is not settled. What was handed over is the reader's.
    ///
    /// It is called by one thread at a time with no lock of the bus held, so it may take locks and wake the waker
    /// while it is asked. But it must not block: a worker waits for its answer.
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>>;

    /// What whoever starts the program is to know of this opening: that a new group skips events. Asked once, right after
    /// the subscription was opened; a bus logs each as a warning.
    fn warnings(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Who handles the group, where this opening stands by: `process 4711`, `another process`. Asked once, right after the
    /// subscription was opened; a bus names all the groups that one process handles in one line.
    fn stands_by_for(&mut self) -> Option<String> {
        None
    }

    /// Leaves: nobody reads here any more, as when this is dropped. Says how many deliveries are lost by that: accepted
    /// and not settled, kept in memory only, and without another reader; the bus logs it. A broker that is durable loses
    /// none.
    fn close(self: Box<Self>) -> usize {
        0
    }
}

/// What a broker hands over: an envelope, where it stands, and what settles it.
#[derive(Debug)]
pub struct Received {
    /// The envelope, its place and its attempt.
    pub receipt: Receipt,
    /// Whether the delivery is part of a replay.
    pub replayed: bool,
    /// What was noted when it was parked, where it waited for its next attempt as the program ended. Its lane
    /// stays closed until it is due.
    pub parked: Option<Parked>,
    /// Whether it is handled by itself, in no batch with others, since it may have ended an earlier process.
    pub alone: bool,
    /// Who settles it.
    pub settler: Arc<dyn Settler>,
}

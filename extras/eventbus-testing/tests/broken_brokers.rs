//! The suite finds what it is for: each way in which a broker can be wrong is caught by the case that is about it.

use eventbus_core::broker::{
    AuditLog, AuditQuery, Broker, BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery,
    DeadLetters, Deliveries, Features, Parked, Receipt, Received, Replay, ReplayRequest, Replayable, Settler,
    Start, SubscribeRequest,
};
use eventbus_core::bytes::Bytes;
use eventbus_core::memory::MemoryBroker;
use eventbus_core::{BrokerError, Envelope, Pattern, PublishError, Topic};
use eventbus_testing::conformance::{Fixture, outcome};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use Fault::*;

/// What is wrong with a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing: what a case finds is of the fault.
    None,
    /// Some events are confirmed, and not stored.
    Loses,
    /// Some events are stored twice.
    Doubles,
    /// Some events are stored after the next one.
    Reorders,
    /// An event reaches a topic with a similar name.
    Leaks,
    /// A pattern of one token covers more.
    CoversMore,
    /// A new group gets what was published before it.
    BeginsEarly,
    /// The end of a long payload is missing.
    CutsPayloads,
    /// The second value of a header is missing.
    MergesHeaders,
    /// White space around the value of a header is missing.
    TrimsHeaders,
    /// A key is another one.
    ChangesKeys,
    /// What was settled comes again.
    ForgetsAcks,
    /// What was given back does not come again.
    LosesWhatIsGivenBack,
    /// What was given back comes after what waits.
    GivesBackAtTheEnd,
    /// A dead letter is confirmed, and not stored.
    LosesDeadLetters,
    /// A dead letter goes again to all groups.
    RepublishesToAll,
    /// A dead letter goes again as it was, with whatever payload.
    RepublishesUnmended,
    /// A dead letter that is not there any more is published again, as it says.
    RepublishesTwice,
    /// It says that it removes doubles, and does not.
    ClaimsToDeduplicate,
    /// It says that it moves groups, and knows none.
    ClaimsToSeek,
    /// It says that it keeps what it has in memory.
    ClaimsToBeDurable,
    /// It declares a limit, and takes what is above it.
    HasNoLimit,
    /// A replay goes to the live group as well.
    ReplaysLive,
}

/// Which case catches which fault.
const CAUGHT: &[(Fault, &str)] = &[
    (Loses, "a_group_gets_all_that_is_published_after_it_subscribed"),
    (Loses, "fifty_publishers_and_fifty_subscribers_miss_nothing"),
    (Loses, "a_shutdown_flushes_what_is_being_published"),
    (Doubles, "each_of_two_groups_gets_every_event"),
    (Doubles, "a_group_gets_all_that_is_published_after_it_subscribed"),
    (Reorders, "events_of_one_key_are_handled_in_publish_order"),
    (Reorders, "events_of_one_key_are_handled_in_publish_order_while_some_fail"),
    (Leaks, "topics_do_not_leak"),
    (CoversMore, "patterns_cover_what_they_say"),
    (BeginsEarly, "a_group_that_begins_at_the_latest_event_gets_nothing_from_before"),
    (CutsPayloads, "payloads_arrive_byte_for_byte"),
    (MergesHeaders, "attributes_and_headers_arrive_as_they_were_sent"),
    (TrimsHeaders, "a_header_value_is_carried_or_refused_and_never_changed"),
    (ChangesKeys, "attributes_and_headers_arrive_as_they_were_sent"),
    (ForgetsAcks, "each_of_two_groups_gets_every_event"),
    (ForgetsAcks, "of_a_hundred_events_settled_at_once_the_bad_one_alone_is_a_dead_letter"),
    (LosesWhatIsGivenBack, "what_is_given_back_comes_again_before_what_waits"),
    (GivesBackAtTheEnd, "what_is_given_back_comes_again_before_what_waits"),
    (LosesDeadLetters, "a_dead_letter_says_what_failed_where_and_why"),
    (LosesDeadLetters, "bytes_that_do_not_decode_become_a_dead_letter_and_the_next_event_is_handled"),
    (LosesDeadLetters, "a_subscription_that_fails_changes_nothing_for_another"),
    (RepublishesToAll, "a_dead_letter_goes_again_to_the_group_that_failed_and_to_no_other"),
    (RepublishesUnmended, "a_dead_letter_that_was_mended_goes_again_as_it_is_now"),
    (RepublishesTwice, "what_is_done_to_a_dead_letter_twice_is_done_once"),
    (ClaimsToDeduplicate, "an_event_that_is_published_twice_with_one_id_is_stored_once"),
    (ClaimsToSeek, "what_a_broker_declares_does_not_contradict_itself"),
    (ClaimsToBeDurable, "a_known_group_goes_on_where_it_was"),
    (HasNoLimit, "each_event_of_a_batch_is_stored_or_refused_by_itself"),
    (ReplaysLive, "a_replay_delivers_again_and_moves_nobody"),
];

#[test]
fn each_fault_is_caught_by_the_case_that_is_about_it() {
    let caught = |(fault, case): &(Fault, &'static str)| {
        let found = with_fault(*fault, case);
        let fails = with_fault(None, case).err();
        assert_eq!(fails, Option::None, "`{case}` holds without a fault");
        assert!(found.is_err(), "`{case}` passes with {fault:?}");
    };
    // Some at once: most of them wait in vain for what is missing.
    thread::scope(|threads| {
        let some = CAUGHT.len().div_ceil(8);
        let runs: Vec<_> =
            CAUGHT.chunks(some).map(|some| threads.spawn(move || some.iter().for_each(caught))).collect();
        for run in runs {
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// The in-process broker, with a fault.
#[derive(Clone, Debug)]
struct Broken {
    memory: MemoryBroker,
    fault: Fault,
    published: Arc<AtomicU64>,
    /// What is stored later, and behind how many others.
    later: Arc<Mutex<Later>>,
}

type Later = VecDeque<(u64, Arc<Envelope>)>;

/// A fixture for each fault.
macro_rules! fixtures {
    ($($fault:ident)*) => {
        mod fixtures {
            use super::*;

            $(
                pub(super) struct $fault;

                impl Fixture for $fault {
                    type Broker = Broken;

                    const PATIENCE: Duration =
                        if matches!(Fault::$fault, Fault::None) { Duration::from_secs(60) } else { Duration::from_secs(1) };

                    async fn place() -> String {
                        String::new()
                    }

                    async fn open(_place: &str) -> Broken {
                        Broken {
                            memory: MemoryBroker::builder().history(100_000).build(),
                            fault: Fault::$fault,
                            published: Arc::default(),
                            later: Arc::default(),
                        }
                    }
                }
            )*
        }

        fn with_fault(fault: Fault, case: &str) -> Result<(), String> {
            match fault {
                $(Fault::$fault => outcome::<fixtures::$fault>(case, module_path!(), 1, Some(7)),)*
            }
        }
    };
}
fixtures! {
    None Loses Doubles Reorders Leaks CoversMore BeginsEarly CutsPayloads MergesHeaders TrimsHeaders ChangesKeys
    ForgetsAcks LosesWhatIsGivenBack GivesBackAtTheEnd LosesDeadLetters RepublishesToAll RepublishesUnmended
    RepublishesTwice ClaimsToDeduplicate ClaimsToSeek ClaimsToBeDurable HasNoLimit ReplaysLive
}

impl Broken {
    /// What becomes of an envelope on its way.
    fn changed(&self, envelope: Arc<Envelope>) -> Arc<Envelope> {
        let mut changed = (*envelope).clone();
        let payload = changed.payload().cloned().unwrap_or_default();
        match self.fault {
            CutsPayloads if payload.len() > 1_000 => changed = changed.with_payload(payload.slice(..1_000)),
            MergesHeaders => {
                if let Some(first) = envelope.headers().get("tag") {
                    changed.headers_mut().insert("tag", first);
                }
            }
            TrimsHeaders => {
                if let Some(note) = envelope.headers().get("note") {
                    changed.headers_mut().insert("note", note.trim());
                }
            }
            ChangesKeys => {
                if let Some(key) = envelope.key() {
                    changed = changed.with_key(key.replace(' ', "_"));
                }
            }
            _ => return envelope,
        }
        Arc::new(changed)
    }

    /// The in-process broker stores at once, with nobody waiting.
    fn store(&self, envelope: &Arc<Envelope>) {
        drop(self.memory.publish(Arc::clone(envelope)));
    }
}

impl Broker for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    fn features(&self) -> Features {
        let mut features = self.memory.features();
        match self.fault {
            ClaimsToDeduplicate => features.deduplicates = true,
            ClaimsToSeek => features.seek = true,
            ClaimsToBeDurable => features.durable = true,
            HasNoLimit => features.max_payload = Some(1_000),
            _ => {}
        }
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        let count = self.published.fetch_add(1, Ordering::SeqCst);
        let (some, envelope) = (count % 7 == 3, self.changed(envelope));
        match self.fault {
            Loses if some => return BrokerFuture::ready(Ok(())),
            Doubles if some => self.store(&envelope),
            Reorders if some => {
                self.later.lock().unwrap().push_back((count + 20, envelope));
                return BrokerFuture::ready(Ok(()));
            }
            Reorders => {
                let mut later = self.later.lock().unwrap();
                while let Some((_, due)) = later.pop_front_if(|(behind, _)| *behind < count) {
                    self.store(&due);
                }
            }
            Leaks => {
                if let Some(name) = envelope.topic().as_str().strip_suffix(".a.b") {
                    let topic = Topic::new(format!("{name}.a.bc")).unwrap();
                    let payload = envelope.payload().unwrap().clone();
                    self.store(&Arc::new(Envelope::from_bytes(topic, "application/json", payload)));
                }
            }
            _ => {}
        }
        self.memory.publish(envelope)
    }

    fn subscribe(
        &self,
        mut request: SubscribeRequest,
    ) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        match (self.fault, request.pattern.as_str().strip_suffix('*')) {
            (CoversMore, Some(prefix)) => request.pattern = Pattern::new(format!("{prefix}>")).unwrap(),
            (BeginsEarly, _) => request.start = Start::Earliest,
            _ => {}
        }
        let (broken, opening) = (self.clone(), self.memory.subscribe(request));
        BrokerFuture::new(async move {
            Ok(Box::new(BrokenDeliveries(opening.await?, broken)) as Box<dyn Deliveries>)
        })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::new(self.clone()))
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        Some(Arc::new(self.clone()))
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        self.memory.audit_log()
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        Broker::settled(&self.memory)
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        self.memory.drain(subscriptions)
    }
}

struct BrokenDeliveries(Box<dyn Deliveries>, Broken);

impl Deliveries for BrokenDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let before = into.len();
        let polled = self.0.poll_receive(context, into, limit);
        for received in &mut into[before..] {
            received.settler = Arc::new(BrokenSettler(Arc::clone(&received.settler), self.1.clone()));
        }
        polled
    }

    fn close(self: Box<Self>) -> usize {
        self.0.close()
    }
}

#[derive(Debug)]
struct BrokenSettler(Arc<dyn Settler>, Broken);

impl Settler for BrokenSettler {
    fn ack(&self, mut receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        if self.1.fault == ForgetsAcks && receipt.offset.get() % 7 == 3 && receipt.attempt == 1 {
            receipt.attempt = 2;
            self.0.release(receipt);
            return BrokerFuture::ready(Ok(()));
        }
        self.0.ack(receipt)
    }

    fn reject(&self, receipt: Receipt, dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        if self.1.fault == LosesDeadLetters {
            return self.0.ack(receipt);
        }
        self.0.reject(receipt, dead_letter)
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.park(receipt, parked)
    }

    fn release(&self, receipt: Receipt) {
        match self.1.fault {
            LosesWhatIsGivenBack => drop(self.0.ack(receipt)),
            GivesBackAtTheEnd => {
                self.1.store(&receipt.envelope);
                drop(self.0.ack(receipt));
            }
            _ => self.0.release(receipt),
        }
    }
}

impl DeadLetters for Broken {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        self.memory.dead_letters().unwrap().find(query)
    }

    fn republish(
        &self,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let (this, letters, id) = (self.clone(), self.memory.dead_letters().unwrap(), id.clone());
        BrokerFuture::new(async move {
            match this.fault {
                RepublishesToAll => {
                    let mut query = DeadLetterQuery::default();
                    query.id = Some(id.clone());
                    for (_, letter) in letters.find(query).await? {
                        this.store(&letter.envelope);
                    }
                    letters.purge(&id).await
                }
                RepublishesUnmended => letters.republish(&id, Option::None).await,
                RepublishesTwice => letters.republish(&id, payload).await.map(|_| true),
                _ => letters.republish(&id, payload).await,
            }
        })
    }

    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        self.memory.dead_letters().unwrap().purge(id)
    }
}

impl Replayable for Broken {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let this = self.clone();
        BrokerFuture::new(async move {
            let replay = Replayable::replay(&this.memory, request.clone()).await?;
            if this.fault == ReplaysLive {
                let mut query = AuditQuery::default();
                query.pattern = Some(request.pattern);
                for event in this.memory.query(query).await? {
                    this.store(&event.envelope);
                }
            }
            Ok(replay)
        })
    }
}

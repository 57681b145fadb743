//! The suite finds what several processes see: a log that is wrong, or declares what it is not, is caught by the case that
//! is about it.

use eventbus::broker::{
    Attempts, AuditLog, Backlog, Broker, BrokerFuture, DeadLetter, DeadLetters, Deliveries, Features, Groups,
    Parked, Receipt, Received, Replayable, Settler, Standing, SubscribeRequest,
};
use eventbus::error::BrokerError;
use eventbus::{Envelope, PublishError};
use eventbus_sqlite::SqliteBroker;
use eventbus_testing::conformance::{Fixture, another_process, outcome};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// The log, which declares something else, and hands over in another way.
struct Wrong {
    log: SqliteBroker,
    declares: fn(&mut Features),
    reads: fn(Box<dyn Deliveries>) -> Box<dyn Deliveries>,
    /// What it says of each of its subscriptions, where that is not what the log says.
    standing: Option<Standing>,
}

impl Broker for Wrong {
    fn name(&self) -> &str {
        "wrong"
    }

    fn features(&self) -> Features {
        let mut features = self.log.features();
        (self.declares)(&mut features);
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        self.log.publish(envelope)
    }

    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        self.log.publish_all(envelopes)
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let (opening, reads) = (self.log.subscribe(request), self.reads);
        BrokerFuture::new(async move { Ok(reads(opening.await?)) })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.log.dead_letters()
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        self.log.replayable()
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        self.log.audit_log()
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        self.log.groups()
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        self.log.settled()
    }

    fn standing(&self, request: &SubscribeRequest) -> Standing {
        self.standing.unwrap_or_else(|| self.log.standing(request))
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        self.log.drain(subscriptions)
    }

    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        self.log.close()
    }
}

/// What is handed over counts as done.
struct AckedTooEarly(Box<dyn Deliveries>);

impl Deliveries for AckedTooEarly {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let before = into.len();
        let polled = self.0.poll_receive(context, into, limit);
        for received in &into[before..] {
            drop(received.settler.ack(received.receipt.clone()));
        }
        polled
    }
}

/// Nobody is told when a handler begins.
struct Careless(Box<dyn Deliveries>);

#[derive(Debug)]
struct Deaf(Arc<dyn Settler>);

impl Deliveries for Careless {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let before = into.len();
        let polled = self.0.poll_receive(context, into, limit);
        for received in &mut into[before..] {
            received.settler = Arc::new(Deaf(Arc::clone(&received.settler)));
        }
        polled
    }
}

impl Settler for Deaf {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.ack(receipt)
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.reject(receipt, letter)
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.park(receipt, parked)
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        self.0.holds(receipt)
    }

    fn release(&self, receipt: Receipt) {
        self.0.release(receipt);
    }
}

/// What waits is taken as soon as it is there, whoever wants it.
struct Hoarded(UnboundedReceiver<Received>);

impl Hoarded {
    fn begin(mut deliveries: Box<dyn Deliveries>) -> Self {
        let (taken, hoard) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut some = Vec::new();
            while poll_fn(|context| deliveries.poll_receive(context, &mut some, 1_000)).await.is_ok() {
                if some.drain(..).any(|received| taken.send(received).is_err()) {
                    return;
                }
            }
        });
        Self(hoard)
    }
}

impl Deliveries for Hoarded {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        self.0.poll_recv_many(context, into, limit).map(|_| Ok(()))
    }
}

/// A fixture, and the process that its cases begin.
macro_rules! wrong {
    ($($name:ident, $patience:literal s: $wrong:expr,)*) => {
        $(
            mod $name {
                use super::*;

                pub(super) struct Log;

                impl Fixture for Log {
                    type Broker = Wrong;

                    const PATIENCE: Duration = Duration::from_secs($patience);
                    const LEASE: Duration = Duration::from_secs(3);

                    async fn place() -> String {
                        let folder = tempfile::tempdir().expect("a folder").keep();
                        folder.join("log.db").into_os_string().into_string().expect("a path in UTF-8")
                    }

                    async fn open(place: &str) -> Wrong {
                        let log = SqliteBroker::builder(place).lease(Self::LEASE).open().await.expect("it opens");
                        let right = Wrong { log, declares: |_| {}, reads: |deliveries| deliveries, standing: None };
                        let wrong: fn(Wrong) -> Wrong = $wrong;
                        wrong(right)
                    }

                    async fn clean_up(place: &str) {
                        let folder = std::path::Path::new(place).parent().expect("it lies in a folder");
                        std::fs::remove_dir_all(folder).expect("the folder is removed");
                    }
                }

                #[test]
                #[ignore = "the other process of some cases, which run it by themselves"]
                fn another_process() {
                    super::another_process::<Log>();
                }

                pub(super) fn holds(case: &str) -> bool {
                    outcome::<Log>(case, module_path!(), 1, Some(7)).is_ok()
                }
            }
        )*
    };
}

wrong! {
    not_wrong, 60 s: |log| log,
    acks_too_early, 10 s: |log| Wrong { reads: |deliveries| Box::new(AckedTooEarly(deliveries)), ..log },
    hoards, 10 s: |log| Wrong { reads: |deliveries| Box::new(Hoarded::begin(deliveries)), ..log },
    forgets_attempts, 10 s: |log| Wrong { declares: |features| features.attempts = Attempts::Lost, ..log },
    counts_deliveries, 10 s: |log| Wrong { declares: |features| features.attempts = Attempts::Counted, ..log },
    counts_no_crashes, 10 s: |log| Wrong { reads: |deliveries| Box::new(Careless(deliveries)), ..log },
    shares, 10 s: |log| Wrong { declares: |features| features.competing = true, ..log },
    is_for_one_process, 10 s: |log| Wrong { declares: |features| features.multi_process = false, ..log },
    stores_twice, 10 s: |log| Wrong { declares: |features| features.deduplicates = false, ..log },
    knows_no_backlog, 10 s: |log| Wrong { declares: |features| features.backlog = Backlog::Unknown, ..log },
    never_stands_by, 10 s: |log| Wrong { standing: Some(Standing::Active), ..log },
}

/// Whether a case holds on a log.
type Holds = fn(&str) -> bool;

#[test]
fn each_fault_is_caught_by_the_case_that_is_about_it() {
    const KILLED: &str = "what_a_killed_process_had_in_its_hands_is_delivered_again";
    const TAKEN_OVER: &str = "after_a_process_is_killed_another_takes_over_in_order";
    const ATTEMPTS: &str = "attempts_after_a_crash_are_as_the_broker_declares";
    const CRASHES: &str = "an_event_that_ends_the_process_again_and_again_is_given_up_and_no_other_is";
    const COMPETES: &str = "processes_that_compete_share_a_group_and_handle_each_event_once";
    const PASSES: &str = "order_by_key_holds_while_a_group_passes_from_one_process_to_the_next";
    const SLOW: &str = "what_waits_for_a_slow_handler_stays_at_the_broker";
    let caught: &[(&str, &str, Holds)] = &[
        ("acks too early", KILLED, acks_too_early::holds),
        ("acks too early", TAKEN_OVER, acks_too_early::holds),
        ("hoards", SLOW, hoards::holds),
        ("forgets attempts", ATTEMPTS, forgets_attempts::holds),
        ("counts deliveries", ATTEMPTS, counts_deliveries::holds),
        ("counts no crashes", CRASHES, counts_no_crashes::holds),
        ("shares", COMPETES, shares::holds),
        (
            "is for one process",
            "what_one_process_publishes_is_delivered_in_another",
            is_for_one_process::holds,
        ),
        ("stores twice", "an_event_that_is_published_twice_with_one_id_is_stored_once", stores_twice::holds),
        ("knows no backlog", "groups_are_listed_with_what_they_have_to_do", knows_no_backlog::holds),
        ("never stands by", COMPETES, never_stands_by::holds),
        ("never stands by", PASSES, never_stands_by::holds),
    ];
    thread::scope(|threads| {
        for some in caught.chunks(2) {
            threads.spawn(move || {
                for (fault, case, holds_with_it) in some {
                    assert!(!holds_with_it(case), "`{case}` does not find that the log {fault}");
                    assert!(not_wrong::holds(case), "`{case}` holds without it");
                }
            });
        }
    });
}

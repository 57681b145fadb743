//! Partitions that a subscription is given, and that are taken from it: they come as events of the client, and its thread
//! answers each in its time.

use crate::connection::{Cause, Tells, tell};
use crate::errands::Answer;
use crate::subscription::Subscription;
use eventbus_core::lock::{Lock, Rank};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the client of a subscription tells it, on the subscription's own thread.
pub(crate) struct SessionContext {
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) events: Lock<Events>,
    told: AtomicU64,
    cause: Cause,
}

impl SessionContext {
    pub(crate) fn new(subscription: Arc<Subscription>) -> Self {
        let events = Lock::new(Rank::BROKER, Events::default());
        Self { subscription, events, told: AtomicU64::new(0), cause: Cause::default() }
    }

    fn note(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }
}

impl Tells for SessionContext {
    fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Events {
    pub(crate) rebalances: VecDeque<Rebalance>,
    /// What the server has said.
    pub(crate) answers: VecDeque<Answer>,
    /// The thread ends: whatever else is given or taken changes nothing.
    pub(crate) ending: bool,
}

pub(crate) enum Rebalance {
    Given(TopicPartitionList),
    Taken(TopicPartitionList),
}

impl ClientContext for SessionContext {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, said: &str) {
        self.note();
        tell(facility, said);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.note();
        self.cause.hear(&self.subscription.link.state, &error, reason);
    }
}

impl ConsumerContext for SessionContext {
    /// Partitions are given and taken. Neither is answered here: what was committed is asked for first, and handlers are
    /// waited for; meanwhile the client goes on to say that it lives.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.note();
        let is_given = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let list = list.clone();
        let list = {
            let mut events = self.events.lock();
            if events.ending {
                list
            } else {
                events.rebalances.push_back(if is_given {
                    Rebalance::Given(list)
                } else {
                    Rebalance::Taken(list)
                });
                return;
            }
        };
        if is_given {
            // It wants nothing any more.
            answer_given(consumer, &TopicPartitionList::new());
        } else {
            answer_taken(consumer, &list);
        }
    }
}

pub(crate) fn answer_given(consumer: &BaseConsumer<SessionContext>, list: &TopicPartitionList) {
    let answer = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
        _ => consumer.assign(list),
    };
    if let Err(error) = answer {
        tell("ASSIGN", &error.to_string());
    }
}

pub(crate) fn answer_taken(consumer: &BaseConsumer<SessionContext>, list: &TopicPartitionList) {
    let answer = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        _ => consumer.unassign(),
    };
    if let Err(error) = answer {
        tell("UNASSIGN", &error.to_string());
    }
}

//! The exchange and the queues: made where they are missing, or looked for.

use crate::config::QueueType;
use crate::connection::{ACCESS_REFUSED, CALL, DIFFERENT, Link, NOT_FOUND, Trouble, call};
use crate::directory;
use crate::names::{Names, binding};
use eventbus_core::broker::{SubscribeRequest, Topology};
use eventbus_core::{BrokerError, Pattern};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use std::time::{Duration, Instant};

/// More deliveries than there will be. Without a limit of its own a queue has one of 20, and not every server knows a word for
/// none.
const NO_LIMIT: i64 = i32::MAX as i64;

/// The longest time that the server takes, in whole seconds: 49 days, of which it counts the milliseconds in 32 bits.
const LONGEST: u64 = (u32::MAX / 1_000) as u64;

/// How many queues something waits in at most, one after the other, where it is to come later than that.
const STEPS: u64 = 8;

/// A quorum queue that does not answer the server for so long is said to have nothing, and nobody who consumes.
const SILENT: Duration = Duration::from_millis(250);

/// What the server says of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    /// Messages that nobody has.
    pub(crate) ready: u64,
    /// Those who are served: of several who take turns it is one.
    pub(crate) consumers: u32,
}

impl Count {
    /// Whether the queue itself has said it, which took so long.
    fn is_known(self, took: Duration) -> bool {
        self.ready > 0 || self.consumers > 0 || took < SILENT
    }
}

impl Link {
    pub(crate) fn names(&self) -> Names {
        Names(self.settings.exchange.clone())
    }

    fn creates(&self) -> bool {
        self.settings.topology == Topology::Create
    }

    /// Makes the exchange and the stream of all events, or looks for them.
    pub(crate) async fn exchange(&self) -> Result<(), BrokerError> {
        let was_there = self.make_exchange().await?;
        self.events().await?;
        if was_there { Ok(()) } else { self.bind_groups().await }
    }

    /// The same, after it was found missing: whoever has made it meanwhile may not have bound anything yet.
    pub(crate) async fn exchange_anew(&self) -> Result<(), BrokerError> {
        self.make_exchange().await?;
        self.events().await?;
        self.bind_groups().await
    }

    /// Whether the exchange was there.
    async fn make_exchange(&self) -> Result<bool, BrokerError> {
        let name = &self.settings.exchange;
        let explain = |trouble: Trouble| {
            if trouble.is(DIFFERENT) || trouble.is(NOT_FOUND) {
                return BrokerError::new(format!(
                    "the exchange `{name}` is not as it should be, a durable topic exchange ({trouble}); make it so, or name \
                     another one (`exchange`)"
                ));
            }
            trouble.explain(format_args!("make the exchange `{name}`"))
        };
        let was_there = match self.declare_exchange(true).await {
            Ok(()) => true,
            Err(trouble) if trouble.is(NOT_FOUND) && self.creates() => false,
            Err(trouble) => return Err(explain(trouble)),
        };
        match self.declare_exchange(false).await {
            // Who may not make anything cannot ask whether it is the same either.
            Err(trouble) if trouble.is(ACCESS_REFUSED) && !self.creates() => {}
            Err(trouble) => return Err(explain(trouble)),
            Ok(()) => {}
        }
        Ok(was_there)
    }

    async fn bind_groups(&self) -> Result<(), BrokerError> {
        let bound = self.bind_all().await;
        bound.map_err(|trouble| {
            let exchange = &self.settings.exchange;
            trouble.explain(format_args!("bind the queues of groups to the exchange `{exchange}`"))
        })
    }

    /// Binds the queues of all groups. With an exchange that somebody removed their bindings are gone, which nobody tells
    /// those who consume.
    async fn bind_all(&self) -> Result<(), Trouble> {
        for (group, patterns) in directory::noted(self).await? {
            for pattern in patterns.iter().filter_map(|pattern| Pattern::new(pattern).ok()) {
                match self.bind(&self.names().group(&group, &pattern), &binding(&pattern)).await {
                    Err(trouble) if trouble.is(NOT_FOUND) => {}
                    bound => bound?,
                }
            }
        }
        Ok(())
    }

    /// Binds a queue. AMQP has no question about bindings; to bind once more changes nothing.
    pub(crate) async fn bind(&self, queue: &str, key: &str) -> Result<(), Trouble> {
        let (channel, exchange) = (self.channel().await?, self.settings.exchange.as_str());
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        call(channel.queue_bind(queue.into(), exchange.into(), key.into(), options, arguments)).await?;
        close(&channel).await;
        Ok(())
    }

    async fn declare_exchange(&self, passive: bool) -> Result<(), Trouble> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
        let (name, kind) = (self.settings.exchange.as_str().into(), ExchangeKind::Topic);
        call(channel.exchange_declare(name, kind, options, FieldTable::default())).await?;
        close(&channel).await;
        Ok(())
    }

    /// Makes the queue of a group with its binding and the queue of its dead letters, or looks for them. The name of the
    /// first, and of the second.
    pub(crate) async fn group_queue(&self, request: &SubscribeRequest) -> Result<[String; 2], Trouble> {
        let [queue, dead] = self.queues(request).await?;
        self.bind(&queue, &binding(&request.pattern)).await?;
        Ok([queue, dead])
    }

    async fn queues(&self, request: &SubscribeRequest) -> Result<[String; 2], Trouble> {
        let (queue, dead) =
            (self.names().group(&request.group, &request.pattern), self.names().dead(&request.group));
        self.queue(&dead, self.dead_arguments()).await?;
        self.queue(&queue, self.group_arguments(request, &dead)).await?;
        Ok([queue, dead])
    }

    /// Looks for the queues of a subscription, where none are made.
    pub(crate) async fn check(&self, request: &SubscribeRequest) -> Result<(), BrokerError> {
        if self.creates() {
            return Ok(());
        }
        self.queues(request).await.map(drop).map_err(|trouble| explain_queue(trouble, &request.group))
    }

    /// Makes a queue, or looks for it.
    pub(crate) async fn queue(&self, name: &str, arguments: FieldTable) -> Result<(), Trouble> {
        if !self.creates() {
            self.count(name).await?;
        }
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        match call(channel.queue_declare(name.into(), options, arguments)).await {
            // Who may not make anything cannot ask whether it is the same either.
            Err(trouble) if trouble.is(ACCESS_REFUSED) && !self.creates() => return Ok(()),
            other => other?,
        };
        close(&channel).await;
        Ok(())
    }

    /// Asks how many messages and consumers a queue has, until that is known.
    pub(crate) async fn count(&self, queue: &str) -> Result<Count, Trouble> {
        let begun = Instant::now();
        while begun.elapsed() < CALL {
            let channel = self.channel().await?;
            let count = count(&channel, queue).await?;
            close(&channel).await;
            if let Some(count) = count {
                return Ok(count);
            }
        }
        Err(Trouble::silence(format!("the queue `{queue}` has not said within {CALL:?} what it has")))
    }

    /// Removes a queue. A classic one that somebody reads by now stays; the server cannot look after a quorum queue so.
    pub(crate) async fn delete_queue(&self, queue: &str) -> Result<(), Trouble> {
        let channel = self.channel().await?;
        let options = QueueDeleteOptions { if_unused: !self.is_quorum(), ..QueueDeleteOptions::default() };
        call(channel.queue_delete(queue.into(), options)).await?;
        close(&channel).await;
        Ok(())
    }

    fn queue_type(&self) -> AMQPValue {
        text(match self.settings.queue_type {
            QueueType::Quorum => "quorum",
            QueueType::Classic => "classic",
        })
    }

    fn is_quorum(&self) -> bool {
        self.settings.queue_type == QueueType::Quorum
    }

    fn group_arguments(&self, request: &SubscribeRequest, dead: &str) -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), self.queue_type());
        arguments.insert("x-consumer-timeout".into(), millis(self.settings.consumer_timeout));
        // What the server gives up by itself, for a policy, is kept as well.
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(dead));
        if !request.competing {
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        }
        if self.is_quorum() {
            let limit = self.settings.delivery_limit.map_or(NO_LIMIT, i64::from);
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
            arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
            arguments.insert("x-overflow".into(), text("reject-publish"));
        }
        arguments
    }

    /// Each look at dead letters is a delivery, so nothing limits those.
    pub(crate) fn dead_arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), self.queue_type());
        if self.is_quorum() {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(NO_LIMIT));
        }
        arguments
    }

    /// Makes the queue in which something waits for so many seconds before it comes to another queue. The name of it, or of
    /// the first of several that stand behind each other, where the server takes no time as long.
    pub(crate) async fn delay_queue(&self, queue: &str, seconds: u64) -> Result<String, Trouble> {
        let mut target = queue.to_owned();
        for step in steps(seconds) {
            let queue = self.names().delay(&target, step);
            self.queue(&queue, self.delay_arguments(&target, step)).await?;
            target = queue;
        }
        Ok(target)
    }

    /// What waits in such a queue comes to another one after this time. A classic queue goes away where it is unused, but
    /// for one of several: the last of them is unused for longer than the server counts. A quorum queue stays: it counts
    /// neither declarations nor messages as use, and would take along what waits in it.
    fn delay_arguments(&self, queue: &str, seconds: u64) -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), self.queue_type());
        arguments.insert("x-message-ttl".into(), millis(Duration::from_secs(seconds)));
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(queue));
        if self.is_quorum() {
            arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
            arguments.insert("x-overflow".into(), text("reject-publish"));
        } else if let unused = seconds * 2 + 3_600
            && unused <= LONGEST
        {
            arguments.insert("x-expires".into(), millis(Duration::from_secs(unused)));
        }
        arguments
    }
}

/// Steps of one length, each as long as the server takes at most, that are so many seconds together; about thirteen months
/// where that is more.
fn steps(seconds: u64) -> impl Iterator<Item = u64> {
    let count = seconds.div_ceil(LONGEST).clamp(1, STEPS);
    (0..count).map(move |_| seconds.div_ceil(count).min(LONGEST))
}

pub(crate) fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn millis(time: Duration) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

/// Asks on a channel how many messages and consumers a queue has. None, where the server may not know. Where it fails, the
/// channel is gone.
async fn count(channel: &Channel, queue: &str) -> Result<Option<Count>, Trouble> {
    let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let asked = Instant::now();
    let found = call(channel.queue_declare(queue.into(), options, FieldTable::default())).await?;
    let count = Count { ready: found.message_count().into(), consumers: found.consumer_count() };
    Ok(count.is_known(asked.elapsed()).then_some(count))
}

/// Closes a channel. One that the server has closed is closed.
pub(crate) async fn close(channel: &Channel) {
    let _ = call(channel.close(200, "".into())).await;
}

/// What is said where a queue is not as it should be.
pub(crate) fn explain_queue(trouble: Trouble, group: &str) -> BrokerError {
    if trouble.is(DIFFERENT) {
        return BrokerError::new(format!(
            "a queue of the group `{group}` is there with other settings ({}); set what is said to be current, as an option \
             or with `competing` (`x-single-active-consumer`), or let the group handle what it has and remove the queue",
            trouble.said
        ));
    }
    if trouble.is(NOT_FOUND) {
        return BrokerError::new(format!(
            "a queue of the group `{group}` is missing, and none is made with `topology=check` ({})",
            trouble.said
        ));
    }
    trouble.explain(format_args!("open the queue of the group `{group}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_far_off_is_waited_for_in_steps_that_the_server_takes() {
        let all = |seconds| steps(seconds).collect::<Vec<_>>();
        assert_eq!(all(0), [0]);
        assert_eq!(all(LONGEST), [LONGEST]);
        assert!(u32::try_from(LONGEST * 1_000).is_ok());
        let (half, odd) = (LONGEST / 2 + 1, LONGEST + 1);
        assert_eq!(all(odd), [half; 2], "together they are no shorter");
        assert!(half * 2 + 3_600 > LONGEST, "none of several goes away where it is unused");
        assert_eq!(all(u64::MAX), [LONGEST; STEPS as usize]);
    }

    #[test]
    fn that_there_is_nothing_is_believed_of_a_queue_that_has_answered() {
        let empty = Count { ready: 0, consumers: 0 };
        assert!(empty.is_known(Duration::from_millis(249)));
        assert!(!empty.is_known(Duration::from_millis(250)));
        assert!(Count { ready: 1, ..empty }.is_known(Duration::from_secs(9)));
        assert!(Count { consumers: 1, ..empty }.is_known(Duration::from_secs(9)));
    }
}

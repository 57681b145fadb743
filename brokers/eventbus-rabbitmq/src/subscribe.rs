//! Subscribing: the task that takes what the queue of a group sends, and acks what is settled.

use crate::acks::{Ack, Tag};
use crate::config::{QueueType, Settings};
use crate::connection::{CALL, Link, Trouble, call};
use crate::delivery::RabbitMqDeliveries;
use crate::directory::Directory;
use crate::held::Arrival;
use crate::names::{fnv, hash};
use crate::publish::Outlet;
use crate::subscription::Subscription;
use crate::topology::{Count, close, explain_queue};
use crate::wire::{self, Message};
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::SubscribeRequest;
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_server::connection::pause_before;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// How often the queue is looked at, where somebody wants to know.
const LOOK: Duration = Duration::from_secs(1);
/// How long acks wait for others after some were sent. A quorum queue takes some 32 at a time, and keeps the rest in the
/// channel.
const PACE: Duration = Duration::from_millis(5);
/// How long a channel is kept after its last acks: nobody tells when they have reached the queue, and what is in the channel
/// yet goes with it.
const REACHED: Duration = Duration::from_millis(250);
/// How many deliveries are taken at once, before the reader is told.
const MANY: usize = 256;

/// What has to be left of the server's time beside the handler.
const SPARE: Duration = Duration::from_secs(2);

/// Opens a subscription. The last of the answer is the task that serves it.
pub(crate) async fn open(
    link: &Arc<Link>,
    outlet: &Arc<Outlet>,
    directory: &Directory,
    request: SubscribeRequest,
) -> Result<(Arc<Subscription>, RabbitMqDeliveries, impl Future<Output = ()> + use<>), BrokerError> {
    check(&link.settings, &request)?;
    let group = request.group.clone();
    let explain = |trouble| explain_queue(trouble, &group);
    // A connection that is lost just now is waited for.
    let _ = tokio::time::timeout(CALL, link.connected()).await;
    let queues = link.group_queue(&request).await.map_err(explain)?;
    directory.note(&request.group, request.pattern.as_str()).await;
    let subscription = Arc::new(Subscription::new(Arc::clone(link), Arc::clone(outlet), request, queues));
    let mut way = Way::shared(&subscription);
    let opened = match Opened::open(&subscription, &way).await {
        Err(trouble) if way.is_to_part(&subscription, &trouble) => {
            way = Way::alone(&subscription).await?;
            Opened::open(&subscription, &way).await
        }
        opened => opened,
    };
    let opened = opened.map_err(explain)?;
    let deliveries = RabbitMqDeliveries::new(Arc::clone(&subscription));
    let task =
        Task { subscription: Arc::clone(&subscription), way, looking: None, looked: None, acked: None };
    Ok((subscription, deliveries, task.run(opened)))
}

/// Whether the server's limits leave room for what the subscription asks for.
fn check(settings: &Settings, request: &SubscribeRequest) -> Result<(), BrokerError> {
    let SubscribeRequest { group, timeout, retries, .. } = request;
    if timeout.saturating_add(SPARE) > settings.consumer_timeout {
        return Err(BrokerError::new(format!(
            "a handler of the group `{group}` may take {timeout:?} (`timeout`), and RabbitMQ takes an event back that is not \
             acked within {:?} (`consumer_timeout`), of which {SPARE:?} are kept for what comes before and after; lower the \
             first or raise the second",
            settings.consumer_timeout
        )));
    }
    if let (QueueType::Quorum, Some(limit)) = (settings.queue_type, settings.delivery_limit)
        && *retries >= limit
    {
        return Err(BrokerError::new(format!(
            "the group `{group}` makes up to {} attempts (`retries`), and RabbitMQ gives an event up after {limit} deliveries \
             (`delivery_limit`); lower the first or raise the second",
            u64::from(*retries) + 1
        )));
    }
    Ok(())
}

/// The connection by which a subscription reads: that of all, or one of its own.
///
/// The server ends a connection where it cannot consume from one queue, as where a quorum queue has no leader, with everything
/// else on it. So whoever has such a queue reads apart from then on, and takes nobody down.
struct Way {
    link: Arc<Link>,
    /// Keeps the connection, where it is one of its own.
    keeper: Option<AbortHandle>,
}

impl Way {
    fn shared(subscription: &Subscription) -> Self {
        Self { link: Arc::clone(&subscription.link), keeper: None }
    }

    async fn alone(subscription: &Subscription) -> Result<Self, BrokerError> {
        let (group, queue) = (&subscription.request.group, &subscription.queue);
        log::warn!(
            target: "eventbus", group = %printable(group), queue = %printable(queue),
            "RabbitMQ does not serve the queue, and would end the connection of all groups for it: the group reads by a \
             connection of its own from now on; look whether a majority of the queue's nodes is up"
        );
        let (link, keeping) = Link::open(&subscription.link.settings, "consuming alone").await?;
        subscription.state.lock().apart = Some(Arc::clone(&link));
        Ok(Self { link, keeper: Some(tokio::spawn(keeping).abort_handle()) })
    }

    /// Whether the queue is to have a connection of its own, for what has become of the last try to consume.
    fn is_to_part(&self, subscription: &Subscription, trouble: &Trouble) -> bool {
        let names = |queue: &str| trouble.said.contains(&format!("queue '{queue}"));
        // What the server says of another queue was only heard here.
        let ends = trouble.ends_connection() && (names(&subscription.queue) || !names(""));
        self.keeper.is_none() && (ends || trouble.silent)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            self.link.abandon();
            keeper.abort();
        }
    }
}

/// A channel that consumes.
struct Opened {
    number: u64,
    channel: Channel,
    consumer: Consumer,
}

impl Opened {
    /// Makes again what may be gone, and opens the channel.
    async fn anew(subscription: &Subscription, way: &Way) -> Result<Self, Trouble> {
        let link = &way.link;
        link.exchange().await.map_err(|error| Trouble::passing(error.to_string()))?;
        link.group_queue(&subscription.request).await?;
        Self::open(subscription, way).await
    }

    async fn open(subscription: &Subscription, way: &Way) -> Result<Self, Trouble> {
        let (link, request) = (&way.link, &subscription.request);
        let number = link.number();
        let channel = link.channel().await?;
        let hold = u16::try_from(request.hold).unwrap_or(u16::MAX).max(1);
        let prefetch = link.settings.prefetch.map_or(hold, |prefetch| prefetch.min(hold));
        call(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let is_first = match link.count(&subscription.queue).await {
            Ok(count) => count.consumers == 0,
            // A queue that does not answer may end the connection of whoever consumes from it.
            Err(trouble) if way.keeper.is_none() => return Err(trouble),
            Err(_) => false,
        };
        let consuming = channel.basic_consume(
            subscription.queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = match call(consuming).await {
            Ok(consumer) => consumer,
            Err(trouble) => {
                // Where the answer was late it would come to nobody, and the queue have a consumer that acks nothing.
                tokio::spawn(async move { close(&channel).await });
                return Err(trouble);
            }
        };
        // Who comes first is served first. AMQP does not tell the others when it is their turn: what comes tells.
        subscription.state.lock().active = request.competing || is_first;
        Ok(Self { number: number.unwrap_or_default(), channel, consumer })
    }
}

/// Why a channel is not served any more.
enum End {
    /// It is gone.
    Lost(String),
    /// Nobody reads, and all is settled.
    Closed,
}

type Acking = FuturesUnordered<BoxFuture<'static, lapin::Result<()>>>;

/// The task of a subscription.
struct Task {
    subscription: Arc<Subscription>,
    way: Way,
    /// A look at the queue that is under way.
    looking: Option<BoxFuture<'static, Result<Count, Trouble>>>,
    looked: Option<Instant>,
    /// When acks were sent last.
    acked: Option<Instant>,
}

impl Task {
    async fn run(mut self, mut opened: Opened) {
        let subscription = Arc::clone(&self.subscription);
        while let End::Lost(said) = self.serve(opened).await {
            subscription.lose();
            log::warn!(
                target: "eventbus", group = %printable(&subscription.request.group), error = %printable(&said),
                "the queue is not read any more; it is opened again, and what was not acked is delivered again"
            );
            match self.open_again().await {
                Some(again) => opened = again,
                None => break,
            }
        }
        subscription.lose();
        subscription.state.finish();
    }

    /// Opens the channel again, with everything that belongs to it. None, once nobody reads any more.
    async fn open_again(&mut self) -> Option<Opened> {
        let subscription = Arc::clone(&self.subscription);
        for attempt in 1.. {
            let way = &self.way;
            let opening = async {
                way.link.connected().await?;
                tokio::time::sleep(pause_before(attempt)).await;
                Some(Opened::anew(&subscription, way).await)
            };
            let opened = tokio::select! {
                opened = opening => opened?,
                () = closing(&subscription) => return None,
            };
            let trouble = match opened {
                Ok(opened) => return Some(opened),
                Err(trouble) => trouble,
            };
            if self.way.is_to_part(&subscription, &trouble) {
                let parted = tokio::select! {
                    parted = Way::alone(&subscription) => parted,
                    () = closing(&subscription) => return None,
                };
                match parted {
                    Ok(way) => self.way = way,
                    Err(error) => subscription.state.fail(error),
                }
            }
            // With a connection that is lost the reader is not told: it asks again within a second or so.
            if trouble.code.is_some() || trouble.silent {
                let error = explain_queue(trouble, &subscription.request.group);
                subscription.state.fail(error);
            }
        }
        None
    }

    /// Takes what comes by a channel, until it is gone or nobody needs it.
    async fn serve(&mut self, opened: Opened) -> End {
        let subscription = Arc::clone(&self.subscription);
        let link = Arc::clone(&self.way.link);
        let Opened { number, channel, mut consumer } = opened;
        let mut acking = Acking::new();
        (self.acked, self.looking) = (None, None);
        let mut stopped = false;
        loop {
            let (closed, in_hand, due, renew_at, returns_until, renewals) = {
                let (mut state, now) = (subscription.state.lock(), Instant::now());
                let renewals = state.held.renew(now);
                let held = &state.held;
                (
                    state.is_closed(),
                    held.in_hand(),
                    held.acks_due(),
                    held.renewal_due(),
                    held.returns_until(now),
                    renewals,
                )
            };
            if !requeue(&channel, renewals).await {
                return End::Lost(not_given_back());
            }
            if closed && subscription.request.competing {
                if !stopped && let Err(said) = self.stop(&channel, &mut consumer).await {
                    return End::Lost(said);
                }
                stopped = true;
                if !self.give_back(&channel).await {
                    return End::Lost(not_given_back());
                }
            }
            if closed && in_hand == 0 && returns_until.is_none() {
                return self.finish(&channel, acking).await;
            }
            let pace = self.acked.map(|acked| acked + PACE).filter(|pace| *pace > Instant::now());
            if acking.is_empty() && pace.is_none() {
                self.ack(&channel, &mut acking);
            }
            self.look();
            let look_at = self.looked.map(|looked| looked + LOOK);
            let wants = subscription.asked.load(Ordering::Acquire);
            tokio::select! {
                () = subscription.bell.notified() => {}
                delivery = consumer.next(), if !stopped => {
                    if let Some(end) = self.deliver(delivery, &mut consumer).await {
                        return end;
                    }
                }
                Some(acked) = acking.next(), if !acking.is_empty() => {
                    if let Err(error) = acked {
                        return End::Lost(Trouble::from(error).to_string());
                    }
                }
                () = link.another(Some(number), link.blocked().is_some()) => {
                    if link.number() != Some(number) {
                        let lost = link.state.lost();
                        return End::Lost(lost.map_or_else(|| "the connection was lost".to_owned(), |lost| lost.error));
                    }
                }
                count = async { self.looking.as_mut().expect("it is there").await }, if self.looking.is_some() => {
                    self.looking = None;
                    self.looked_at(count);
                }
                () = sleep_until(pace), if pace.is_some() => {}
                () = sleep_until(due), if due.is_some() && acking.is_empty() && pace.is_none() => {}
                () = sleep_until(renew_at), if renew_at.is_some() => {}
                () = sleep_until(returns_until), if returns_until.is_some() => {}
                () = sleep_until(look_at), if wants && self.looking.is_none() && look_at.is_some() => {}
            }
        }
    }

    /// Hands over what came, and what came right behind it.
    async fn deliver(
        &mut self,
        delivery: Option<lapin::Result<Delivery>>,
        consumer: &mut Consumer,
    ) -> Option<End> {
        let mut next = delivery;
        let mut arrivals = Vec::new();
        let end = loop {
            match next {
                Some(Ok(delivery)) => arrivals.push(self.arrival(delivery)),
                Some(Err(error)) => break Some(End::Lost(Trouble::from(error).to_string())),
                None => {
                    break Some(End::Lost(
                        "the server has ended it, as where the queue was removed".to_owned(),
                    ));
                }
            }
            if arrivals.len() >= MANY {
                break None;
            }
            let more = tokio::select! {
                biased;
                more = consumer.next() => more,
                () = std::future::ready(()) => break None,
            };
            next = more;
        };
        {
            let now = Instant::now();
            let mut state = self.subscription.state.lock();
            state.active |= !arrivals.is_empty();
            for arrival in arrivals {
                state.held.arrive(arrival, now);
            }
        }
        self.subscription.state.wake();
        end
    }

    fn arrival(&self, delivery: Delivery) -> Arrival {
        let Delivery { delivery_tag: tag, redelivered, .. } = delivery;
        let message = message(delivery);
        let envelope = wire::read(&message, &self.subscription.request.pattern);
        let (id, again) = (envelope.id().to_string(), message.again().unwrap_or_default());
        // Other programs may give one id to what they send to several topics.
        let topic = envelope.topic().as_str();
        let texts = [envelope.source(), &id, &again, topic];
        let identity = u128::from(hash(&texts)) << 64 | u128::from(hash(&["eventbus", &id, &again, topic]));
        // Without a name of its own it has another identity each time, but the same content.
        let mark = if message.is_named() {
            identity
        } else {
            fnv(topic.bytes().chain([0xff]).chain(message.body.iter().copied())).into()
        };
        let quorum = self.subscription.link.settings.queue_type == QueueType::Quorum;
        let attempt = if quorum { message.attempt() } else { message.first_attempt() };
        Arrival { tag, identity, mark, redelivered, envelope: Arc::new(envelope), attempt }
    }

    /// Sends the acks that are due.
    fn ack(&mut self, channel: &Channel, acking: &mut Acking) {
        let acks = self.subscription.state.lock().held.next_acks(Instant::now());
        if !acks.is_empty() {
            self.acked = Some(Instant::now());
        }
        for ack in acks {
            acking.push(Box::pin(send_ack(channel.clone(), ack)));
        }
    }

    /// Nobody reads any more: the server sends nothing more by this channel, which stays for what is handed out. What it has
    /// sent before that is at hand then.
    async fn stop(&mut self, channel: &Channel, consumer: &mut Consumer) -> Result<(), String> {
        let cancelled = call(channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await;
        cancelled.map_err(|trouble| trouble.to_string())?;
        let now = Instant::now();
        // The consumer ends behind what was sent.
        while let Some(delivery) = consumer.next().await {
            let arrival = self.arrival(delivery.map_err(|error| Trouble::from(error).to_string())?);
            self.subscription.state.lock().held.arrive(arrival, now);
        }
        Ok(())
    }

    /// Gives back to the queue what is at hand, so that others have it. False, where that cannot be sent.
    async fn give_back(&mut self, channel: &Channel) -> bool {
        let given_back = self.subscription.state.lock().held.give_back();
        requeue(channel, given_back.iter().map(|(tag, _)| *tag)).await
    }

    /// Acks all that is settled, and closes the channel, which gives back what is not.
    async fn finish(&mut self, channel: &Channel, mut acking: Acking) -> End {
        let acks = self.subscription.state.lock().held.last_acks();
        if !acks.is_empty() {
            self.acked = Some(Instant::now());
        }
        for ack in acks {
            acking.push(Box::pin(send_ack(channel.clone(), ack)));
        }
        let acked = async { while let Some(Ok(())) = acking.next().await {} };
        let _ = tokio::time::timeout(CALL, acked).await;
        sleep_until(self.acked.map(|acked| acked + REACHED)).await;
        close(channel).await;
        End::Closed
    }

    /// Looks at the queue, where somebody wants to know how much it has.
    fn look(&mut self) {
        let is_due = self.looked.is_none_or(|looked| looked.elapsed() >= LOOK);
        if self.looking.is_some() || !is_due || !self.subscription.asked.swap(false, Ordering::AcqRel) {
            return;
        }
        self.looked = Some(Instant::now());
        let subscription = Arc::clone(&self.subscription);
        self.looking = Some(Box::pin(async move { subscription.link.count(&subscription.queue).await }));
    }

    fn looked_at(&self, count: Result<Count, Trouble>) {
        if let Ok(count) = count {
            self.subscription.state.lock().backlog = Some(count.ready);
        }
    }
}

/// Resolves once nobody reads any more.
async fn closing(subscription: &Subscription) {
    while !subscription.state.lock().is_closed() {
        subscription.bell.notified().await;
    }
}

async fn send_ack(channel: Channel, ack: Ack) -> lapin::Result<()> {
    channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await
}

/// Gives deliveries back to their queue, in this order. An ack for many that was sent before would stand for them as well, so
/// none is sent meanwhile. False, where they cannot be sent.
async fn requeue(channel: &Channel, tags: impl IntoIterator<Item = Tag>) -> bool {
    let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    let nacks = tags.into_iter().map(|tag| channel.basic_nack(tag, options));
    let sent = tokio::time::timeout(CALL, join_all(nacks)).await;
    sent.is_ok_and(|sent| sent.iter().all(Result::is_ok))
}

fn not_given_back() -> String {
    format!("nothing can be given back to the queue within {CALL:?}")
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// The message of a delivery.
pub(crate) fn message(delivery: Delivery) -> Message {
    Message {
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        properties: delivery.properties,
        body: Bytes::from(delivery.data),
    }
}

//! Publishing: events are sent one after the other, and their confirmations awaited apart.

use crate::connection::{Link, NOT_FOUND, Trouble, call};
use crate::topology::close;
use crate::wire::{self, Written};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, Envelope, PublishError};
use eventbus_server::answers::{Answer, Answers, Waiting};
use eventbus_server::connection::{Lost, pause_before};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::message::{BasicReturnMessage, Delivery};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Instant;
use tokio::sync::mpsc;

/// How many publishes may be under way, before publishers wait.
const OPEN: usize = 2_048;

/// Where a message goes.
#[derive(Clone, Debug)]
pub(crate) struct To {
    pub(crate) exchange: String,
    pub(crate) key: String,
    /// It is an error if no queue gets it.
    pub(crate) mandatory: bool,
}

impl To {
    /// One queue, past the exchange.
    pub(crate) fn queue(name: &str) -> Self {
        Self { exchange: String::new(), key: name.to_owned(), mandatory: true }
    }
}

/// Where publishes go.
pub(crate) struct Outlet {
    link: Arc<Link>,
    sender: mpsc::UnboundedSender<Pending>,
    answers: Answers,
    /// The largest payload, as far as it is known.
    max_payload: AtomicUsize,
    /// What the task that sends takes from.
    receiver: Lock<Option<mpsc::UnboundedReceiver<Pending>>>,
}

/// A message that is not answered.
struct Pending {
    to: To,
    written: Written,
    waiting: Waiting,
    /// When the client got it.
    sent: Option<Instant>,
    /// Why the server has returned it, where it has.
    returned: Option<String>,
}

impl Pending {
    /// Whether this may be what the server has returned.
    fn is(&self, returned: &BasicReturnMessage) -> bool {
        let Delivery { exchange, routing_key, properties, .. } = &returned.delivery;
        self.returned.is_none()
            && self.to.exchange == exchange.as_str()
            && self.to.key == routing_key.as_str()
            && self.written.properties.message_id() == properties.message_id()
    }
}

impl Outlet {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            max_payload: AtomicUsize::new(link.settings.max_payload),
            answers: Answers::new("RabbitMQ", OPEN, link.settings.publish_timeout),
            link,
            sender,
            receiver: Lock::new(Rank::BROKER, Some(receiver)),
        }
    }

    pub(crate) fn max_payload(&self) -> usize {
        self.max_payload.load(Ordering::Relaxed)
    }

    pub(crate) async fn publish(self: Arc<Self>, envelope: Arc<Envelope>) -> Result<(), PublishError> {
        self.enqueue(&envelope, self.answers.deadline()).await?.told().await
    }

    pub(crate) async fn publish_all(
        self: Arc<Self>,
        envelopes: Vec<Arc<Envelope>>,
    ) -> Vec<Result<(), PublishError>> {
        self.answers.all(&envelopes, |envelope, deadline| self.enqueue(envelope, deadline)).await
    }

    /// Sends a message to one queue, and waits until it is stored there.
    pub(crate) async fn send(&self, queue: &str, topic: &str, written: Written) -> Result<(), PublishError> {
        self.put(To::queue(queue), topic, written, self.answers.deadline()).await?.told().await
    }

    async fn enqueue(&self, envelope: &Envelope, deadline: Instant) -> Result<Answer, PublishError> {
        let topic = envelope.topic().as_str();
        let payload = envelope.payload();
        let payload =
            payload.map_err(|error| PublishError::Encode { topic: topic.to_owned(), cause: error.into() })?;
        envelope.check_size(payload.len(), self.max_payload())?;
        let settings = &self.link.settings;
        let written = wire::write(envelope, settings.content_mode)?;
        let to =
            To { exchange: settings.exchange.clone(), key: topic.to_owned(), mandatory: settings.mandatory };
        self.put(to, topic, written, deadline).await
    }

    async fn put(
        &self,
        to: To,
        topic: &str,
        written: Written,
        deadline: Instant,
    ) -> Result<Answer, PublishError> {
        let (waiting, answer) = self.answers.open(topic, deadline, || self.trouble()).await?;
        let pending = Pending { to, written, waiting, sent: None, returned: None };
        if self.sender.send(pending).is_err() {
            return Err(PublishError::Closed { topic: topic.to_owned() });
        }
        Ok(answer)
    }

    /// Why nothing is sent, where that is so.
    fn trouble(&self) -> Option<Lost> {
        self.link.state.lost().or_else(|| self.link.blocked())
    }

    /// Why something was not confirmed in time.
    fn late(&self, sent: bool) -> BrokerError {
        let within = self.link.settings.publish_timeout;
        let what = if sent { "has not confirmed it" } else { "could not be sent it" };
        let error = BrokerError::new(format!("RabbitMQ {what} within {within:?} (`publish_timeout`)"));
        Lost::explain(self.trouble(), error)
    }

    /// How many publishes are not answered.
    pub(crate) fn open(&self) -> usize {
        self.answers.count()
    }

    /// Resolves once all publishes are answered.
    pub(crate) async fn emptied(&self) {
        self.answers.none().await;
    }

    /// Nothing is taken any more.
    pub(crate) fn close(&self) {
        self.answers.close();
    }

    /// Sends what comes, until the broker ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let receiver = self.receiver.lock().take();
        let Some(receiver) = receiver else { return };
        Sender {
            outlet: self,
            receiver,
            waiting: VecDeque::new(),
            channel: None,
            opening: None,
            failures: 0,
            trouble: None,
            missing: false,
            sent: 0,
            confirmed: 0,
            flying: BTreeMap::new(),
            confirming: FuturesUnordered::new(),
        }
        .run()
        .await;
    }
}

/// The number of a message that was sent. They rise.
type Ticket = u64;

/// A channel that publishes, and the connection that it belongs to.
struct Open {
    number: u64,
    channel: Channel,
}

/// What sends, and waits for confirmations.
struct Sender {
    outlet: Arc<Outlet>,
    receiver: mpsc::UnboundedReceiver<Pending>,
    /// What the client has not got yet.
    waiting: VecDeque<Pending>,
    channel: Option<Open>,
    opening: Option<BoxFuture<'static, Result<Open, Trouble>>>,
    failures: usize,
    /// Why there was no channel the last time.
    trouble: Option<String>,
    /// The exchange was found missing.
    missing: bool,
    sent: Ticket,
    /// The latest that was confirmed.
    confirmed: Ticket,
    flying: BTreeMap<Ticket, Pending>,
    confirming: FuturesUnordered<BoxFuture<'static, (Ticket, lapin::Result<Confirmation>)>>,
}

impl Sender {
    async fn run(mut self) {
        let outlet = Arc::clone(&self.outlet);
        let link = Arc::clone(&outlet.link);
        // After its end, whoever waits learns it from the end of its channel.
        while !link.is_closed() {
            self.look_at_connection();
            self.send().await;
            let (number, blocked) = (link.number(), link.blocked().is_some());
            let deadline = self.next_deadline();
            tokio::select! {
                biased;
                Some(first) = self.confirming.next(), if !self.confirming.is_empty() => {
                    let mut confirmed = vec![first];
                    while let Some(Some(next)) = now(self.confirming.next()).await {
                        confirmed.push(next);
                    }
                    self.returned(&confirmed);
                    for (ticket, confirmed) in confirmed {
                        self.confirmed(ticket, confirmed);
                    }
                }
                pending = self.receiver.recv() => {
                    let Some(pending) = pending else { return };
                    self.waiting.push_back(pending);
                    while let Ok(pending) = self.receiver.try_recv() {
                        self.waiting.push_back(pending);
                    }
                }
                opened = async { self.opening.as_mut().expect("it is there").await }, if self.opening.is_some() => {
                    self.opening = None;
                    match opened {
                        Ok(open) => {
                            (self.failures, self.trouble, self.missing) = (0, None, false);
                            self.channel = Some(open);
                        }
                        Err(trouble) => {
                            self.failures += 1;
                            self.trouble = Some(trouble.to_string());
                        }
                    }
                }
                () = link.another(number, blocked) => {}
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {
                    self.give_up_late();
                }
            }
        }
    }

    /// Another connection needs another channel; what was sent by the one before may be stored or not.
    fn look_at_connection(&mut self) {
        let number = self.outlet.link.number();
        if self.channel.as_ref().is_some_and(|open| Some(open.number) != number) {
            let said = self.outlet.link.state.lost().map(|lost| lost.error);
            let said = said.unwrap_or_else(|| "the connection was lost".to_owned());
            self.lose_channel(&Trouble::passing(said));
        }
        if let (None, None, Some(number)) = (&self.channel, &self.opening, number) {
            let (link, failures, missing) = (Arc::clone(&self.outlet.link), self.failures, self.missing);
            self.opening = Some(Box::pin(async move {
                tokio::time::sleep(pause_before(failures + 1)).await;
                let channel = match link.confirming().await {
                    Ok(channel) => channel,
                    Err(trouble) => {
                        link.replace(number, "it does not answer");
                        return Err(trouble);
                    }
                };
                // Somebody may have removed it, or the server has lost it.
                let made = if missing { link.exchange_anew().await } else { link.exchange().await };
                made.map_err(|error| Trouble::passing(eventbus_core::chain(&error)))?;
                Ok(Open { number, channel })
            }));
        }
    }

    /// Hands the client what waits, in its order.
    async fn send(&mut self) {
        let Some(Open { channel, .. }) = &self.channel else { return };
        // What the client has it sends some time; here it can still be refused.
        if self.outlet.link.blocked().is_some() {
            return;
        }
        while let Some(pending) = self.waiting.pop_front() {
            self.sent += 1;
            let (ticket, channel) = (self.sent, channel.clone());
            let To { exchange, key, mandatory } = pending.to.clone();
            let Written { properties, body } = pending.written.clone();
            let mut publishing: BoxFuture<'static, _> = Box::pin(async move {
                let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
                let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
                let sent = channel.basic_publish(exchange, key, options, &body, properties).await;
                match sent {
                    Ok(confirmation) => (ticket, confirmation.await),
                    Err(error) => (ticket, Err(error)),
                }
            });
            self.flying.insert(ticket, Pending { sent: Some(Instant::now()), ..pending });
            // It is queued in the client by the first poll, so that what follows is behind it.
            match now(&mut publishing).await {
                Some((ticket, confirmed)) => {
                    self.confirming.push(Box::pin(async move { (ticket, confirmed) }))
                }
                None => self.confirming.push(publishing),
            }
        }
    }

    /// Notes what was returned. The server returns a message before it confirms it, and the client gives what was returned
    /// to whichever confirmation comes next, which may be another one's.
    fn returned(&mut self, confirmed: &[(Ticket, lapin::Result<Confirmation>)]) {
        for (ticket, confirmed) in confirmed {
            let Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) = confirmed else {
                continue;
            };
            let said = returned.reply_text.to_string();
            let owner = self.flying.values_mut().find(|pending| pending.is(returned));
            // In doubt it is the one that it came with.
            let owner = match owner {
                Some(owner) => Some(owner),
                None => self.flying.get_mut(ticket),
            };
            if let Some(owner) = owner {
                owner.returned = Some(said);
            }
        }
    }

    fn confirmed(&mut self, ticket: Ticket, confirmed: lapin::Result<Confirmation>) {
        let error = match confirmed {
            Ok(confirmation) => {
                self.confirmed = self.confirmed.max(ticket);
                let Some(pending) = self.flying.remove(&ticket) else { return };
                if let Some(said) = &pending.returned {
                    let which = if pending.to.exchange.is_empty() {
                        format!("there is no queue `{}`", pending.to.key)
                    } else {
                        "no group listens on it, and `mandatory` asks for one".to_owned()
                    };
                    let said = format!("{which} ({said})");
                    return pending.waiting.refuse(said);
                }
                return match confirmation {
                    Confirmation::Ack(_) => pending.waiting.confirm(),
                    Confirmation::Nack(_) => pending.waiting.give_up(
                        "RabbitMQ has refused it (`basic.nack`), as where a queue is full or out of reach; other groups may \
                         have it",
                    ),
                    Confirmation::NotRequested => {
                        pending.waiting.give_up("the channel of RabbitMQ does not confirm what is published");
                    }
                };
            }
            Err(error) => error,
        };
        // The channel has ended, and everything on it with it.
        self.lose_channel(&error.into());
    }

    /// The channel is gone: of what was sent on it is known only what the reason says.
    fn lose_channel(&mut self, trouble: &Trouble) {
        self.channel = None;
        self.missing |= trouble.is(NOT_FOUND);
        self.confirming.clear();
        let flying = std::mem::take(&mut self.flying);
        let alone = flying.len() == 1;
        let limit = limit(&trouble.said);
        if let Some(limit) = limit {
            self.outlet.max_payload.fetch_min(limit, Ordering::Relaxed);
        }
        let culprit = limit.and_then(|limit| {
            flying.iter().find(|(_, pending)| pending.written.body.len() > limit).map(|(ticket, _)| *ticket)
        });
        let mut again = VecDeque::new();
        for (ticket, pending) in flying {
            match (limit, culprit) {
                (Some(limit), Some(culprit)) if ticket == culprit => {
                    let size = pending.written.body.len();
                    pending
                        .waiting
                        .tell(|topic| Err(PublishError::TooLarge { topic, part: "payload", size, limit }));
                }
                // The server has read nothing that came behind it.
                (Some(_), Some(culprit)) if ticket > culprit => again.push_back(pending),
                _ if alone && trouble.is_refusal() => pending.waiting.refuse(trouble.to_string()),
                _ => pending.waiting.give_up(trouble.to_string()),
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [self.waiting.front(), self.flying.first_key_value().map(|(_, pending)| pending)];
        deadlines.into_iter().flatten().map(|pending| pending.waiting.deadline()).min()
    }

    /// Whether neither what is late is confirmed, nor anything that was sent behind it. Where one queue takes nothing, the
    /// server may stop reading what was sent to the others as well.
    fn is_stuck(&self, now: Instant) -> bool {
        let enough = self.outlet.link.settings.publish_timeout / 2;
        self.outlet.link.blocked().is_none()
            && self.flying.first_key_value().is_some_and(|(ticket, pending)| {
                let is_late = pending.waiting.deadline() <= now
                    && pending.sent.is_some_and(|sent| sent + enough <= now);
                is_late && *ticket > self.confirmed
            })
    }

    /// Goes on by another channel. Of what was sent by this one is not known whether it is stored.
    fn replace_channel(&mut self) {
        let said = self.outlet.late(true).to_string();
        let Some(Open { channel, .. }) = self.channel.take() else { return };
        log::warn!(
            target: "eventbus", error = %printable(&said),
            "nothing of what was published last is confirmed; another channel is opened, and whoever publishes is told"
        );
        tokio::spawn(async move { close(&channel).await });
        self.lose_channel(&Trouble::passing(said));
    }

    fn give_up_late(&mut self) {
        let now = Instant::now();
        while let Some(pending) = self.waiting.pop_front_if(|pending| pending.waiting.deadline() <= now) {
            let late = self.outlet.late(false);
            pending.waiting.refuse(match &self.trouble {
                Some(trouble) if late.cause().is_none() => late.with_cause(trouble.clone()),
                _ => late,
            });
        }
        if self.is_stuck(now) {
            return self.replace_channel();
        }
        let is_over = |pending: &Pending| pending.waiting.deadline() <= now || !pending.waiting.is_awaited();
        let late = self.flying.iter().filter(|(_, pending)| is_over(pending));
        let late: Vec<_> = late.map(|(ticket, _)| *ticket).collect();
        for pending in late.into_iter().filter_map(|ticket| self.flying.remove(&ticket)) {
            pending.waiting.give_up(self.outlet.late(true));
        }
    }
}

impl Link {
    /// A channel that confirms what is published.
    async fn confirming(&self) -> Result<Channel, Trouble> {
        let channel = self.channel().await?;
        call(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }
}

/// The limit that the server names where a message was too large.
fn limit(said: &str) -> Option<usize> {
    let (_, limit) = said.split_once("larger than configured max size ")?;
    limit.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// The answer of a future, where it is there already.
async fn now<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    poll_fn(|context| {
        Poll::Ready(match std::pin::Pin::new(&mut future).poll(context) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_server_is_read_from_what_it_says() {
        let said = "PRECONDITION_FAILED - message size 17000000 is larger than configured max size 16777216";
        assert_eq!(limit(said), Some(16_777_216));
        assert_eq!(limit("PRECONDITION_FAILED - unknown delivery tag 3"), None);
    }
}

//! Reading a part of a stream from one place to another, by a consumer that is thrown away: live groups do not move.

use crate::connection::{Inbox, Link, Nothing, Refusal};
use crate::unreadable::{Stored, Which};
use crate::wire::{Place, is_stored};
use async_nats::client::PublishErrorKind;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, ReplayPolicy};
use async_nats::{Message, StatusCode, Subscriber};
use eventbus_core::BrokerError;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How many messages are asked for at once.
const BATCH: usize = 256;
/// How long the server may keep an ask for messages.
const EXPIRES: Duration = Duration::from_secs(5);
/// After so long without a sign of the server the consumer is made anew.
const PATIENCE: Duration = Duration::from_secs(8);
/// How many messages are read by their places behind one that the client cannot read: each of those costs a connection
/// where it is delivered, and they seldom come alone.
const CAREFUL: usize = 256;

/// What is read.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) stream: String,
    pub(crate) filters: Vec<String>,
    pub(crate) from: DeliverPolicy,
}

/// A reader of a part of a stream.
pub(crate) struct Scan {
    link: Arc<Link>,
    part: Part,
    consumer: String,
    inbox: String,
    messages: Subscriber,
    /// Which client is subscribed to them.
    client: u64,
    /// How many messages are read by their places.
    careful: usize,
    /// How many are asked for and did not come yet.
    asked: usize,
    /// The place of the last one, or before the first.
    last: u64,
    /// How often the connection was made when the consumer was.
    connection: u64,
    /// How many there were as it was opened.
    pub(crate) count: u64,
}

impl Scan {
    pub(crate) async fn open(link: &Arc<Link>, part: Part) -> Result<Self, BrokerError> {
        let connection = link.state.times();
        let Inbox { client, subject: inbox, messages } = link.inbox().await?;
        let info = make(link, &part, part.from).await?;
        Ok(Self {
            link: Arc::clone(link),
            part,
            consumer: info.name,
            inbox,
            messages,
            client,
            careful: 0,
            asked: 0,
            last: info.delivered.stream_sequence,
            connection,
            count: info.num_pending,
        })
    }

    /// The next message, and where it stands. It waits for one.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost: the next call goes on where this one was.
    pub(crate) async fn next(&mut self) -> Result<(Place, Message), BrokerError> {
        loop {
            if self.careful > 0 {
                let next = self.link.insist(|| self.next_by_place()).await?;
                match next {
                    Some(next) => {
                        self.careful = if next.is_readable { self.careful - 1 } else { CAREFUL };
                        self.last = next.sequence;
                        if self.careful == 0 {
                            self.renew().await?;
                        }
                        return Ok(in_place(next));
                    }
                    None => {
                        self.careful = 0;
                        self.renew().await?;
                    }
                }
            }
            if self.asked <= BATCH / 2 {
                self.ask().await?;
            }
            let message = tokio::select! {
                biased;
                // None, where the client has ended.
                message = self.messages.next() => message,
                _ = self.link.state.another(self.connection) => None,
                () = tokio::time::sleep(PATIENCE) => None,
            };
            let Some(message) = message else {
                self.forget();
                // What was asked for may end the connection once more.
                let next = self.link.insist(|| self.next_by_place()).await?;
                if next.is_some_and(|next| !next.is_readable) {
                    self.careful = CAREFUL;
                } else {
                    self.renew().await?;
                }
                continue;
            };
            match message.status {
                None | Some(StatusCode::OK) => {}
                // Another program has published it with a status.
                Some(_) if is_stored(&message) => {}
                Some(StatusCode::IDLE_HEARTBEAT) => continue,
                Some(StatusCode::TIMEOUT) => {
                    let left =
                        message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
                    let left = left.and_then(|left| left.as_str().parse().ok()).unwrap_or(BATCH);
                    self.asked = self.asked.saturating_sub(left);
                    continue;
                }
                _ => {
                    self.renew().await?;
                    continue;
                }
            }
            self.asked = self.asked.saturating_sub(1);
            let place = message.reply.as_deref().and_then(Place::read);
            // After the consumer was made anew, what was asked of the former one may still come.
            if let Some(place) = place.filter(|place| place.sequence > self.last) {
                self.last = place.sequence;
                return Ok((place, message));
            }
        }
    }

    async fn ask(&mut self) -> Result<(), BrokerError> {
        let subject = format!("CONSUMER.MSG.NEXT.{}.{}", self.part.stream, self.consumer);
        let subject = self.link.api_subject(&subject);
        let request = format!("{{\"batch\":{BATCH},\"expires\":{}}}", EXPIRES.as_nanos());
        let current = self.link.client();
        let reply = format!("{}.m", self.inbox);
        let sent = current.client.publish_with_reply(subject, reply, request.into()).await;
        match sent {
            // It has ended, and there will be another one.
            Err(error) if error.kind() == PublishErrorKind::Send && !self.link.state.is_closed() => {}
            sent => {
                sent.map_err(|error| BrokerError::new("cannot ask for events").with_cause(error.to_string()))?
            }
        }
        self.asked += BATCH;
        Ok(())
    }

    /// The next message, asked for by its place: then it is read even where it would end the client each time.
    async fn next_by_place(&self) -> Result<Option<Stored>, BrokerError> {
        let Part { stream, filters, .. } = &self.part;
        let mut next: Option<Stored> = None;
        for filter in filters {
            let which = Which { seq: self.last + 1, next_by_subj: Some(filter) };
            let found =
                self.link.stored(stream, which).await.map_err(|refusal| {
                    self.link.explain(format_args!("read the stream `{stream}`"), refusal)
                })?;
            let is_next = |found: &Stored| next.as_ref().is_none_or(|next| found.sequence < next.sequence);
            next = found.filter(is_next).or(next);
        }
        Ok(next)
    }

    /// Goes on with another consumer behind the last message.
    async fn renew(&mut self) -> Result<(), BrokerError> {
        let from = DeliverPolicy::ByStartSequence { start_sequence: self.last + 1 };
        self.forget();
        self.connection = self.link.state.times();
        if self.link.client().number != self.client {
            let Inbox { client, subject, messages } = self.link.inbox().await?;
            (self.client, self.inbox, self.messages) = (client, subject, messages);
        }
        self.consumer = self.link.insist(|| make(&self.link, &self.part, from)).await?.name;
        self.asked = 0;
        Ok(())
    }

    /// The server forgets the consumer by itself as well, half a minute later.
    fn forget(&self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (link, subject) =
                (Arc::clone(&self.link), format!("CONSUMER.DELETE.{}.{}", self.part.stream, self.consumer));
            runtime.spawn(async move {
                let _: Result<serde::de::IgnoredAny, Refusal> = link.api(subject, &Nothing {}).await;
            });
        }
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.forget();
    }
}

/// A message that was asked for by its place, as if it were delivered.
fn in_place(stored: Stored) -> (Place, Message) {
    // How many wait behind it is not said.
    let behind = u64::MAX;
    let place = Place { deliveries: 1, sequence: stored.sequence, delivery: 1, time: stored.time, behind };
    let message = Message {
        subject: stored.subject.into(),
        reply: None,
        length: stored.payload.len(),
        payload: stored.payload,
        headers: Some(stored.headers),
        status: None,
        description: None,
    };
    (place, message)
}

async fn make(link: &Link, part: &Part, from: DeliverPolicy) -> Result<consumer::Info, BrokerError> {
    let (filter_subject, filter_subjects) = match part.filters.as_slice() {
        [one] => (one.clone(), Vec::new()),
        several => (String::new(), several.to_vec()),
    };
    let config = consumer::Config {
        name: Some(format!(
            "scan-{}",
            link.client().client.new_inbox().rsplit('.').next().unwrap_or_default()
        )),
        deliver_policy: from,
        ack_policy: AckPolicy::None,
        replay_policy: ReplayPolicy::Instant,
        filter_subject,
        filter_subjects,
        inactive_threshold: Duration::from_secs(30),
        memory_storage: true,
        num_replicas: 1,
        metadata: HashMap::from([("eventbus-scan".to_owned(), "true".to_owned())]),
        ..consumer::Config::default()
    };
    link.set_consumer_of(&part.stream, config, "create")
        .await
        .map_err(|refusal| link.explain(format_args!("read the stream `{}`", part.stream), refusal))
}

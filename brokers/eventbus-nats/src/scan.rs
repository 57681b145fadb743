//! Reading a part of a stream from one place to another, by a consumer that is thrown away: live groups do not move.

use crate::connection::{Link, Nothing, Refusal};
use crate::unreadable::{Stored, Which};
use crate::wire::{Place, is_stored};
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
        let inbox = link.client.new_inbox();
        let messages = link.client.subscribe(inbox.clone()).await;
        let messages =
            messages.map_err(|error| BrokerError::new("cannot read").with_cause(error.to_string()))?;
        let connection = link.state.times();
        let info = make(link, &part, part.from).await?;
        Ok(Self {
            link: Arc::clone(link),
            part,
            consumer: info.name,
            inbox,
            messages,
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
            if self.asked <= BATCH / 2 {
                self.ask().await?;
            }
            let message = tokio::select! {
                biased;
                message = self.messages.next() => Some(message),
                _ = self.link.state.another(self.connection) => None,
                () = tokio::time::sleep(PATIENCE) => None,
            };
            let Some(message) = message else {
                // What was asked for may end the connection once more.
                self.forget();
                if let Some(unreadable) = self.link.insist(|| self.unreadable()).await? {
                    self.last = unreadable.0.sequence;
                    self.renew().await?;
                    return Ok(unreadable);
                }
                self.renew().await?;
                continue;
            };
            let Some(message) = message else {
                return Err(BrokerError::new("cannot read on: the connection was closed"));
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
        let sent = self.link.client.publish_with_reply(subject, self.inbox.clone(), request.into()).await;
        sent.map_err(|error| BrokerError::new("cannot ask for events").with_cause(error.to_string()))?;
        self.asked += BATCH;
        Ok(())
    }

    /// The next message, where the client cannot read it: delivered, it ends the connection each time.
    async fn unreadable(&self) -> Result<Option<(Place, Message)>, BrokerError> {
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
        Ok(next.filter(|next| !next.is_readable).map(|next| {
            // How many wait behind it is not said.
            let behind = u64::MAX;
            let place =
                Place { deliveries: 1, sequence: next.sequence, delivery: 1, time: next.time, behind };
            let message = Message {
                subject: next.subject.into(),
                reply: None,
                length: next.payload.len(),
                payload: next.payload,
                headers: Some(next.headers),
                status: None,
                description: None,
            };
            (place, message)
        }))
    }

    /// Goes on with another consumer behind the last message.
    async fn renew(&mut self) -> Result<(), BrokerError> {
        let from = DeliverPolicy::ByStartSequence { start_sequence: self.last + 1 };
        self.forget();
        self.connection = self.link.state.times();
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

async fn make(link: &Link, part: &Part, from: DeliverPolicy) -> Result<consumer::Info, BrokerError> {
    let (filter_subject, filter_subjects) = match part.filters.as_slice() {
        [one] => (one.clone(), Vec::new()),
        several => (String::new(), several.to_vec()),
    };
    let config = consumer::Config {
        name: Some(format!("scan-{}", link.client.new_inbox().rsplit('.').next().unwrap_or_default())),
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

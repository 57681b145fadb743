//! NATS JetStream: async-nats by itself, and what our side needs to know of the server.

use crate::ours::{At, GROUP};
use crate::reader::Reader;
use crate::work::{Contestant, Handler, SOURCE, Stored, TOPIC};
use eventbus::EventId;
use eventbus::jiff::Timestamp;
use eventbus::nats::NatsBroker;
use eventbus::nats::async_nats::jetstream::consumer::{AckPolicy, pull};
use eventbus::nats::async_nats::jetstream::{self, Context, stream};
use eventbus::nats::async_nats::{self, HeaderMap};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// What the broker asks for ahead.
const AHEAD: usize = 512;

/// The client by itself, as somebody uses it who knows it well: confirmations are awaited apart from sending, acks are
/// sent and not confirmed one by one, messages are asked for ahead.
#[derive(Clone)]
pub(crate) struct NatsRaw {
    jetstream: Context,
    name: String,
    subject: String,
    reader: Reader,
}

/// The headers of the CloudEvents binding, as ours writes them.
pub(crate) fn headers() -> HeaderMap {
    let id = EventId::from_u128(fastrand::u128(..)).to_string();
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("{SOURCE}#{id}"));
    headers.insert("ce-specversion", "1.0");
    headers.insert("ce-id", id);
    headers.insert("ce-source", SOURCE);
    headers.insert("ce-type", TOPIC);
    headers.insert("ce-time", Timestamp::now().to_string());
    headers.insert("ce-datacontenttype", "application/json");
    headers.insert("ce-eventversion", "1");
    headers
}

/// A stream as ours is.
pub(crate) fn stream_named(name: &str, subject: &str) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        storage: stream::StorageType::File,
        duplicate_window: Duration::from_secs(120),
        allow_direct: true,
        ..stream::Config::default()
    }
}

impl NatsRaw {
    /// Sends an event. The future that is returned is its confirmation.
    async fn send(&self, event: &Stored) -> jetstream::context::PublishAckFuture {
        let payload = serde_json::to_vec(event).unwrap().into();
        self.jetstream.publish_with_headers(self.subject.clone(), headers(), payload).await.unwrap()
    }
}

impl Contestant for NatsRaw {
    const NAME: &'static str = "async-nats";

    async fn connect(url: &str, name: &str) -> Self {
        let client = async_nats::connect(url).await.unwrap();
        let jetstream = jetstream::new(client);
        jetstream.create_stream(stream_named(name, &format!("{name}.>"))).await.unwrap();
        Self {
            jetstream,
            name: name.to_owned(),
            subject: format!("{name}.{TOPIC}"),
            reader: Reader::default(),
        }
    }

    async fn publish(&self, event: Stored) {
        self.send(&event).await.await.unwrap();
    }

    async fn publish_all(&self, events: Vec<Stored>) {
        let mut confirmations = Vec::with_capacity(events.len());
        for event in &events {
            confirmations.push(self.send(event).await);
        }
        for confirmation in confirmations {
            confirmation.await.unwrap();
        }
    }

    async fn consume(&self, handler: Arc<Handler>) {
        let config = pull::Config {
            durable_name: Some(GROUP.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(5),
            max_ack_pending: -1,
            filter_subject: self.subject.clone(),
            ..pull::Config::default()
        };
        let consumer = self.jetstream.create_consumer_on_stream(config, &self.name).await.unwrap();
        let mut messages = consumer.stream().max_messages_per_batch(AHEAD).messages().await.unwrap();
        self.reader.begin(|leaving| async move {
            let mut left = pin!(leaving.told());
            while let Either::Left((message, _)) = select(messages.next(), &mut left).await {
                let message = message.unwrap().unwrap();
                handler.handle(&serde_json::from_slice(&message.payload).unwrap());
                message.ack().await.unwrap();
            }
        });
    }

    async fn leave(&self) {
        self.reader.end().await;
    }

    async fn unacked(&self) -> u64 {
        unacked(&self.jetstream, &self.name).await
    }

    async fn remove(self) {
        self.jetstream.delete_stream(&self.name).await.unwrap();
        self.jetstream.client().drain().await.unwrap();
    }
}

/// How many messages the consumers of a stream have not acked, or not even got.
pub(crate) async fn unacked(jetstream: &Context, stream: &str) -> u64 {
    let stream = jetstream.get_stream(stream).await.unwrap();
    let mut consumers = stream.consumers();
    let mut open = 0;
    while let Some(consumer) = consumers.next().await {
        let consumer = consumer.unwrap();
        open += consumer.num_pending + consumer.num_ack_pending as u64;
    }
    open
}

/// The broker on NATS.
#[derive(Clone)]
pub(crate) struct OnNats {
    jetstream: Context,
    name: String,
}

impl At for OnNats {
    type Broker = NatsBroker;

    async fn open(url: &str, name: &str) -> (Self, NatsBroker) {
        let broker = NatsBroker::builder(url).unwrap().stream(name).prefix(name).connect().await.unwrap();
        let jetstream = jetstream::new(async_nats::connect(url).await.unwrap());
        (Self { jetstream, name: name.to_owned() }, broker)
    }

    async fn unacked(&self) -> u64 {
        unacked(&self.jetstream, &self.name).await
    }

    async fn remove(&self) {
        let Self { jetstream, name } = self;
        for stream in [name.clone(), format!("{name}-DEAD"), format!("KV_{name}-PARKED")] {
            jetstream.delete_stream(&stream).await.unwrap();
        }
        jetstream.client().drain().await.unwrap();
    }
}

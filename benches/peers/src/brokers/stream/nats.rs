//! `ruststream-nats`: a durable pull consumer of JetStream.

use super::{Adapter, Attributes, Sent, Shared, new_id};
use crate::nats::{stream_named, unacked};
use crate::ours::GROUP;
use crate::work::{Handler, SOURCE, Stored, TOPIC};
use eventbus::nats::async_nats;
use eventbus::nats::async_nats::jetstream::{self, Context};
use ruststream::codec::JsonCodec;
use ruststream::runtime::RunningApp;
use ruststream::{Broker, ConnectedBroker};
use ruststream_nats::prelude::*;
use ruststream_nats::{ConnectedNatsBroker, JetStreamPublisher};
use std::convert::Infallible;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct StreamNats {
    url: String,
    name: String,
    subject: String,
    jetstream: Context,
    connected: Arc<ConnectedNatsBroker>,
    publisher: JetStreamPublisher,
}

#[subscriber(JetStreamSubject::new("bench", "bench"))]
async fn handle(event: &Stored, State(handler): State<Arc<Handler>>) -> HandlerOutcome {
    handler.handle(event);
    HandlerOutcome::ack()
}

impl Adapter for StreamNats {
    async fn open(url: &str, name: &str) -> Self {
        let jetstream = jetstream::new(async_nats::connect(url).await.unwrap());
        jetstream.create_stream(stream_named(name, &format!("{name}.>"))).await.unwrap();
        let connected = NatsBroker::new(url).connect().await.unwrap();
        let publisher = connected.publisher(JetStreamPublish::default());
        let (url, name, subject) = (url.to_owned(), name.to_owned(), format!("{name}.{TOPIC}"));
        Self { url, name, subject, jetstream, connected: Arc::new(connected), publisher }
    }

    async fn publish(&self, event: Stored) {
        let id = new_id();
        let message_id = format!("{SOURCE}#{id}");
        let attributes = Attributes::of(id);
        let event = Sent(event);
        let message = self.publisher.message(&event).with_codec(JsonCodec).with_headers(&attributes);
        message.to(&self.subject).message_id(message_id).publish().await.unwrap();
    }

    async fn start(&self, shared: Shared) -> RunningApp {
        let source = JetStreamSubject::new(&self.subject, &self.name).durable(GROUP).max_ack_pending(-1);
        let app = RustStream::new(AppInfo::new("bench", "0.1.0"))
            .on_startup(async move |()| Ok::<_, Infallible>(shared))
            .with_broker(NatsBroker::new(&self.url), |b| {
                b.include(handle.map_source(|_| source));
            });
        app.start().await.unwrap()
    }

    async fn unacked(&self) -> u64 {
        unacked(&self.jetstream, &self.name).await
    }

    async fn remove(self) {
        self.jetstream.delete_stream(&self.name).await.unwrap();
        if let Ok(connected) = Arc::try_unwrap(self.connected) {
            connected.shutdown().await.unwrap();
        }
    }
}

//! `ruststream-lapin`: persistent messages with confirms, in a quorum queue.

use super::{Adapter, Attributes, Sent, Shared, new_id};
use crate::rabbitmq::{AHEAD, Place};
use crate::work::{Handler, Stored, TOPIC};
use ruststream::codec::JsonCodec;
use ruststream::runtime::RunningApp;
use ruststream::{Broker, ConnectedBroker};
use ruststream_lapin::prelude::*;
use ruststream_lapin::{ConfirmsPublisher, ConnectedLapinBroker};
use std::convert::Infallible;
use std::num::NonZeroU16;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct StreamRabbitMq {
    place: Place,
    url: String,
    connected: Arc<ConnectedLapinBroker>,
    publisher: ConfirmsPublisher,
}

#[subscriber(RabbitQuorumQueue::new("bench"))]
async fn handle(event: &Stored, State(handler): State<Arc<Handler>>) -> HandlerOutcome {
    handler.handle(event);
    HandlerOutcome::ack()
}

impl Adapter for StreamRabbitMq {
    async fn open(url: &str, name: &str) -> Self {
        let place = Place::new(url, name).await;
        place.make().await;
        let connected = LapinBroker::new(url).connect().await.unwrap();
        let publisher = connected.publisher(TransactionalPublish::default().exchange(name));
        Self { place, url: url.to_owned(), connected: Arc::new(connected), publisher }
    }

    async fn publish(&self, event: Stored) {
        let attributes = Attributes::of(new_id());
        let event = Sent(event);
        let message = self.publisher.message(&event).with_codec(JsonCodec).with_headers(&attributes);
        message.to(TOPIC).publish().await.unwrap();
    }

    async fn start(&self, shared: Shared) -> RunningApp {
        let ahead = NonZeroU16::new(AHEAD).expect("more than none");
        let source = RabbitQuorumQueue::new(&self.place.queue).prefetch(ahead);
        let app = RustStream::new(AppInfo::new("bench", "0.1.0"))
            .on_startup(async move |()| Ok::<_, Infallible>(shared))
            .with_broker(LapinBroker::new(&self.url), |b| {
                b.include(handle.map_source(|_| source));
            });
        app.start().await.unwrap()
    }

    async fn unacked(&self) -> u64 {
        self.place.unacked().await
    }

    async fn remove(self) {
        self.place.remove().await;
        if let Ok(connected) = Arc::try_unwrap(self.connected) {
            connected.shutdown().await.unwrap();
        }
    }
}

//! `ruststream-rdkafka`: an idempotent producer, and a group that commits what is settled.

use super::{Adapter, Shared, new_id};
use crate::kafka::Place;
use crate::work::{Handler, SOURCE, Stored, TOPIC};
use eventbus::jiff::Timestamp;
use ruststream::codec::JsonCodec;
use ruststream::runtime::RunningApp;
use ruststream::{Broker, ConnectedBroker};
use ruststream_rdkafka::prelude::*;
use ruststream_rdkafka::{Assignment, ConnectedKafkaBroker, KafkaPublisher};
use serde::Serialize;
use std::convert::Infallible;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct StreamKafka {
    place: Place,
    url: String,
    connected: Arc<ConnectedKafkaBroker>,
    publisher: KafkaPublisher,
}

/// The headers of the CloudEvents binding, as ours writes them.
#[derive(Serialize)]
struct Attributes {
    ce_specversion: &'static str,
    ce_id: String,
    ce_source: &'static str,
    ce_type: &'static str,
    ce_time: String,
    #[serde(rename = "content-type")]
    content_type: &'static str,
    ce_eventversion: &'static str,
}

/// The event, as what is published has to be declared.
#[derive(Serialize, Outgoing)]
#[outgoing(headers = Attributes)]
#[serde(transparent)]
struct Sent(Stored);

#[subscriber(KafkaTopic::new("bench").commit(Commit::Tracked))]
async fn handle(event: &Stored, State(handler): State<Arc<Handler>>) -> HandlerOutcome {
    handler.handle(event);
    HandlerOutcome::ack()
}

fn broker(url: &str) -> KafkaBroker {
    let settings = crate::kafka::PRODUCER.iter();
    let broker = KafkaBroker::new([url.trim_start_matches("kafka://")]);
    settings.fold(broker, |broker, (name, value)| broker.producer_config(*name, *value))
}

impl Adapter for StreamKafka {
    async fn open(url: &str, name: &str) -> Self {
        let place = Place::new(url, name);
        place.make().await;
        let connected = broker(url).connect().await.unwrap();
        let publisher = connected.publisher(Publish::default());
        Self { place, url: url.to_owned(), connected: Arc::new(connected), publisher }
    }

    async fn publish(&self, event: Stored) {
        let attributes = Attributes {
            ce_specversion: "1.0",
            ce_id: new_id(),
            ce_source: SOURCE,
            ce_type: TOPIC,
            ce_time: Timestamp::now().to_string(),
            content_type: "application/json",
            ce_eventversion: "1",
        };
        let event = Sent(event);
        let message = self.publisher.message(&event).with_codec(JsonCodec).with_headers(&attributes);
        message.to(&self.place.topic).publish().await.unwrap();
    }

    async fn start(&self, shared: Shared) -> RunningApp {
        let source = KafkaTopic::new(&self.place.topic).group(&self.place.group);
        let source = source.start(StartOffset::Earliest).commit(Commit::Tracked);
        let source =
            source.assignment(Assignment::CooperativeSticky).config("auto.commit.interval.ms", "100");
        let settings = crate::kafka::CONSUMER.iter();
        let source = settings.fold(source, |source, (name, value)| source.config(*name, *value));
        let app = RustStream::new(AppInfo::new("bench", "0.1.0"))
            .on_startup(async move |()| Ok::<_, Infallible>(shared))
            .with_broker(broker(&self.url), |b| {
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

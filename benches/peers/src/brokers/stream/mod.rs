//! RustStream: an application with a handler, and publishers of a connection beside it.

pub(crate) mod kafka;
pub(crate) mod nats;
pub(crate) mod rabbitmq;

use crate::work::{Contestant, Handler, SOURCE, Stored, TOPIC};
use eventbus::EventId;
use eventbus::jiff::Timestamp;
use futures_util::future::join_all;
use ruststream::Outgoing;
use ruststream::runtime::RunningApp;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// How long the last acks may be on their way.
const ACKED: Duration = Duration::from_millis(500);

/// Which server, and what is to be known of its adapter.
pub(crate) trait Adapter: Clone + Send + Sync + 'static {
    /// Connects, with a place of its own under this name, which is made as ours is.
    fn open(url: &str, name: &str) -> impl Future<Output = Self> + Send;

    /// Publishes one event, and waits until it is stored.
    fn publish(&self, event: Stored) -> impl Future<Output = ()> + Send;

    /// Starts the application.
    fn start(&self, shared: Shared) -> impl Future<Output = RunningApp> + Send;

    /// How many events are not acked, after the application has ended.
    fn unacked(&self) -> impl Future<Output = u64> + Send;

    /// Removes the place.
    fn remove(self) -> impl Future<Output = ()> + Send;
}

/// What the application's handler has.
#[derive(Clone, ruststream::FromRef)]
pub(crate) struct Shared {
    handler: Arc<Handler>,
}

/// An application that runs, and a connection that publishes. Several are sent before the first is confirmed by futures
/// that are polled together: a publish is its confirmation as well.
#[derive(Clone)]
pub(crate) struct Stream<A> {
    adapter: A,
    running: Arc<Mutex<Option<RunningApp>>>,
}

impl<A: Adapter> Contestant for Stream<A> {
    const NAME: &'static str = "RustStream";

    async fn connect(url: &str, name: &str) -> Self {
        Self { adapter: A::open(url, name).await, running: Arc::default() }
    }

    async fn publish(&self, event: Stored) {
        self.adapter.publish(event).await;
    }

    async fn publish_all(&self, events: Vec<Stored>) {
        join_all(events.into_iter().map(|event| self.adapter.publish(event))).await;
    }

    async fn consume(&self, handler: Arc<Handler>) {
        *self.running.lock().await = Some(self.adapter.start(Shared { handler }).await);
    }

    async fn leave(&self) {
        let running = self.running.lock().await.take();
        if let Some(running) = running {
            // Its end does not wait for acks that are on their way, and nothing tells how many are.
            tokio::time::sleep(ACKED).await;
            running.shutdown().await.unwrap();
        }
    }

    async fn unacked(&self) -> u64 {
        self.adapter.unacked().await
    }

    async fn remove(self) {
        self.adapter.remove().await;
    }
}

/// An id, as ours makes them for a benchmark: by chance alone.
fn new_id() -> String {
    EventId::from_u128(fastrand::u128(..)).to_string()
}

/// The headers of an event, in the spelling that the bindings of CloudEvents for NATS and AMQP share.
#[derive(Serialize)]
struct Attributes {
    #[serde(rename = "ce-specversion")]
    specversion: &'static str,
    #[serde(rename = "ce-id")]
    id: String,
    #[serde(rename = "ce-source")]
    source: &'static str,
    #[serde(rename = "ce-type")]
    event_type: &'static str,
    #[serde(rename = "ce-time")]
    time: String,
    #[serde(rename = "ce-datacontenttype")]
    datacontenttype: &'static str,
    #[serde(rename = "ce-eventversion")]
    eventversion: &'static str,
}

impl Attributes {
    fn of(id: String) -> Self {
        Self {
            specversion: "1.0",
            id,
            source: SOURCE,
            event_type: TOPIC,
            time: Timestamp::now().to_string(),
            datacontenttype: "application/json",
            eventversion: "1",
        }
    }
}

/// An event with them, as what is published has to be declared.
#[derive(Serialize, Outgoing)]
#[outgoing(headers = Attributes)]
#[serde(transparent)]
struct Sent(Stored);

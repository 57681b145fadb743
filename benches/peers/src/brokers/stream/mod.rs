//! RustStream: an application with a handler, and publishers of a connection beside it.

pub(crate) mod kafka;
pub(crate) mod nats;
pub(crate) mod rabbitmq;

use crate::work::{Contestant, Handler, Stored};
use futures_util::future::join_all;
use ruststream::runtime::RunningApp;
use std::sync::Arc;
use tokio::sync::Mutex;

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

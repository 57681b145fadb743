//! Our side: the whole bus with a typed handler, and the broker alone as a bus uses it.

use crate::work::{Contestant, Handler, SOURCE, Stored, TOPIC};
use eventbus::broker::{Broker, Start, SubscribeRequest};
use eventbus::{Bus, Envelope, Topic};
use std::future::poll_fn;
use std::sync::Arc;
use tokio::task::AbortHandle;

/// Which broker, and what its server knows of it.
pub(crate) trait At: Clone + Send + Sync + 'static {
    type Broker: Broker + Clone;

    /// Opens a broker with a place of its own under this name.
    fn open(url: &str, name: &str) -> impl Future<Output = (Self, Self::Broker)> + Send;

    /// How many events of the group are not acked.
    fn unacked(&self) -> impl Future<Output = u64> + Send;

    /// Removes the place.
    fn remove(&self) -> impl Future<Output = ()> + Send;
}

pub(crate) const GROUP: &str = "bench";

/// The bus, with a typed handler.
#[derive(Clone)]
pub(crate) struct Whole<A> {
    at: A,
    bus: Bus,
}

impl<A: At> Contestant for Whole<A> {
    const NAME: &'static str = "bus";

    async fn connect(url: &str, name: &str) -> Self {
        let (at, broker) = A::open(url, name).await;
        let bus = Bus::builder().source(SOURCE).broker(broker).await.unwrap();
        Self { at, bus }
    }

    async fn publish(&self, event: Stored) {
        self.bus.publish(event).await.unwrap();
    }

    async fn publish_all(&self, events: Vec<Stored>) {
        for stored in self.bus.publish_all(events.into_iter().map(Arc::new)).await {
            stored.unwrap();
        }
    }

    async fn consume(&self, handler: Arc<Handler>) {
        let handle = move |event: Arc<Stored>| {
            handler.handle(&event);
            async {}
        };
        self.bus.on(handle).group(GROUP).start(Start::Earliest).await.unwrap();
        self.bus.start().unwrap();
    }

    async fn unacked(&self) -> u64 {
        self.at.unacked().await
    }

    async fn close(self) {
        self.bus.shutdown().await.unwrap();
        self.at.remove().await;
    }
}

/// The broker alone.
#[derive(Clone)]
pub(crate) struct Bare<A: At> {
    at: A,
    broker: A::Broker,
    reader: Arc<std::sync::Mutex<Option<AbortHandle>>>,
}

fn envelope(event: &Stored) -> Arc<Envelope> {
    let envelope = Envelope::from_json(Topic::from_static(TOPIC), event).unwrap();
    Arc::new(envelope.with_source(SOURCE))
}

impl<A: At> Contestant for Bare<A> {
    const NAME: &'static str = "broker";

    async fn connect(url: &str, name: &str) -> Self {
        let (at, broker) = A::open(url, name).await;
        Self { at, broker, reader: Arc::default() }
    }

    async fn publish(&self, event: Stored) {
        self.broker.publish(envelope(&event)).await.unwrap();
    }

    async fn publish_all(&self, events: Vec<Stored>) {
        for stored in self.broker.publish_all(events.iter().map(envelope).collect()).await {
            stored.unwrap();
        }
    }

    async fn consume(&self, handler: Arc<Handler>) {
        let mut request = SubscribeRequest::new(GROUP, TOPIC.parse().unwrap());
        (request.start, request.competing) = (Start::Earliest, true);
        let mut deliveries = self.broker.subscribe(request).await.unwrap();
        let reader = tokio::spawn(async move {
            let mut received = Vec::new();
            loop {
                poll_fn(|context| deliveries.poll_receive(context, &mut received, 256)).await.unwrap();
                for delivery in received.drain(..) {
                    let payload = delivery.receipt.envelope.payload().unwrap();
                    handler.handle(&serde_json::from_slice(payload).unwrap());
                    delivery.settler.ack(delivery.receipt).await.unwrap();
                }
                tokio::task::yield_now().await;
            }
        });
        *self.reader.lock().unwrap() = Some(reader.abort_handle());
    }

    async fn unacked(&self) -> u64 {
        self.at.unacked().await
    }

    async fn close(self) {
        let reader = self.reader.lock().unwrap().take();
        if let Some(reader) = reader {
            reader.abort();
        }
        self.broker.close().await.unwrap();
        self.at.remove().await;
    }
}

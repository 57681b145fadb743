//! Our side: the whole bus with a typed handler, and the broker alone as a bus uses it.

use crate::work::{Contestant, Handler, SOURCE, Stored, TOPIC};
use eventbus::broker::{Broker, Start, SubscribeRequest};
use eventbus::{Bus, Envelope, Topic};
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;

/// Which broker, and what its server knows of it.
pub(crate) trait At: Clone + Send + Sync + 'static {
    type Broker: Broker + Clone;

    /// Where a group begins: with what was published before it, unless its queue is made with its place.
    const START: Start = Start::Earliest;

    /// Opens a broker with a place of its own under this name, in which what is published is kept for the group.
    fn open(url: &str, name: &str) -> impl Future<Output = (Self, Self::Broker)> + Send;

    /// How many events of the group are not acked, after it was left.
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
        self.bus.on(handle).group(GROUP).start(A::START).await.unwrap();
        self.bus.start().unwrap();
    }

    async fn leave(&self) {
        self.bus.shutdown().await.unwrap();
    }

    async fn unacked(&self) -> u64 {
        self.at.unacked().await
    }

    async fn remove(self) {
        self.at.remove().await;
    }
}

/// What a group that competes asks for.
pub(crate) fn request(start: Start) -> SubscribeRequest {
    let mut request = SubscribeRequest::new(GROUP, TOPIC.parse().unwrap());
    (request.start, request.competing) = (start, true);
    request
}

/// The broker alone.
#[derive(Clone)]
pub(crate) struct Bare<A: At> {
    at: A,
    broker: A::Broker,
    reader: Arc<Mutex<Option<JoinHandle<()>>>>,
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
        let mut deliveries = self.broker.subscribe(request(A::START)).await.unwrap();
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
        *self.reader.lock().unwrap() = Some(reader);
    }

    async fn leave(&self) {
        let reader = self.reader.lock().unwrap().take();
        if let Some(reader) = reader {
            reader.abort();
            assert!(reader.await.is_err_and(|error| error.is_cancelled()), "it reads until then");
        }
        self.broker.close().await.unwrap();
    }

    async fn unacked(&self) -> u64 {
        self.at.unacked().await
    }

    async fn remove(self) {
        self.at.remove().await;
    }
}

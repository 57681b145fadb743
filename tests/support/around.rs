//! The in-process broker, some of whose answers a test puts differently.

use eventbus::broker::{
    Backlog, Broker, BrokerFuture, Connection, DeadLetters, Deliveries, Features, Groups, Received, Replay,
    ReplayRequest, Replayable, Settler, SubscribeRequest,
};
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::{Envelope, PublishError};
use std::sync::Arc;
use std::task::{Context, Poll};

type Answer = BrokerFuture<Result<(), BrokerError>>;
type Polled = Poll<Result<(), BrokerError>>;
type Read = dyn Fn(Box<dyn Deliveries>) -> Box<dyn Deliveries> + Send + Sync;

/// Hands on to the in-process broker what a test has not put differently.
#[derive(Clone)]
pub struct Around {
    memory: MemoryBroker,
    name: &'static str,
    groups: Option<Arc<dyn Groups>>,
    connection: Connection,
    close: Option<Arc<dyn Fn() -> Answer + Send + Sync>>,
    live: Option<Arc<Read>>,
    replayed: Option<Arc<Read>>,
}

impl Around {
    pub fn new(name: &'static str, memory: MemoryBroker) -> Self {
        let connection = Connection::Up;
        Self { memory, name, groups: None, connection, close: None, live: None, replayed: None }
    }

    /// It keeps groups, and knows what they have to do.
    pub fn groups(self, groups: impl Groups) -> Self {
        Self { groups: Some(Arc::new(groups)), ..self }
    }

    pub fn connection(self, connection: Connection) -> Self {
        Self { connection, ..self }
    }

    pub fn close(self, close: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        Self { close: Some(Arc::new(close)), ..self }
    }

    /// Puts something around the deliveries of each subscription.
    pub fn live(
        self,
        live: impl Fn(Box<dyn Deliveries>) -> Box<dyn Deliveries> + Send + Sync + 'static,
    ) -> Self {
        Self { live: Some(Arc::new(live)), ..self }
    }

    /// Puts something around the deliveries of each replay.
    pub fn replayed(
        self,
        replayed: impl Fn(Box<dyn Deliveries>) -> Box<dyn Deliveries> + Send + Sync + 'static,
    ) -> Self {
        Self { replayed: Some(Arc::new(replayed)), ..self }
    }
}

impl Broker for Around {
    fn name(&self) -> &str {
        self.name
    }

    fn features(&self) -> Features {
        let mut features = self.memory.features();
        features.backlog = if self.groups.is_some() { Backlog::Exactly } else { features.backlog };
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        self.memory.publish(envelope)
    }

    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        self.memory.publish_all(envelopes)
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let (opening, live) = (self.memory.subscribe(request), self.live.clone());
        BrokerFuture::new(async move {
            let deliveries = opening.await?;
            Ok(match live {
                Some(live) => live(deliveries),
                None => deliveries,
            })
        })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.memory.dead_letters()
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        self.memory.replayable()?;
        Some(Arc::new(self.clone()))
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        self.groups.clone()
    }

    fn connection(&self) -> Connection {
        self.connection.clone()
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        self.memory.drain(subscriptions)
    }

    fn close(&self) -> Answer {
        self.close.as_ref().map_or_else(|| self.memory.close(), |close| close())
    }
}

impl Replayable for Around {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let (opening, replayed) = (Replayable::replay(&self.memory, request), self.replayed.clone());
        BrokerFuture::new(async move {
            let replay = opening.await?;
            Ok(match replayed {
                Some(replayed) => Replay { deliveries: replayed(replay.deliveries), ..replay },
                None => replay,
            })
        })
    }
}

/// Deliveries that are asked for through a closure, which has the ones below, the waker, where they go, and how many.
pub fn reading(
    deliveries: Box<dyn Deliveries>,
    read: impl FnMut(&mut dyn Deliveries, &mut Context<'_>, &mut Vec<Received>, usize) -> Polled + Send + 'static,
) -> Box<dyn Deliveries> {
    Box::new(Reading(deliveries, read))
}

/// Deliveries that something of the test's own settles.
pub fn settled_by<S: Settler + 'static>(
    deliveries: Box<dyn Deliveries>,
    settler: impl Fn(Arc<dyn Settler>) -> S + Send + 'static,
) -> Box<dyn Deliveries> {
    reading(deliveries, move |inner, context, into, limit| {
        let before = into.len();
        let polled = inner.poll_receive(context, into, limit);
        for received in &mut into[before..] {
            received.settler = Arc::new(settler(Arc::clone(&received.settler)));
        }
        polled
    })
}

struct Reading<F>(Box<dyn Deliveries>, F);

impl<F> Deliveries for Reading<F>
where
    F: FnMut(&mut dyn Deliveries, &mut Context<'_>, &mut Vec<Received>, usize) -> Polled + Send,
{
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        (self.1)(&mut *self.0, context, into, limit)
    }

    fn close(self: Box<Self>) -> usize {
        self.0.close()
    }
}

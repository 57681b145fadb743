//! RabbitMQ: lapin by itself, and what our side needs to know of the server.

use crate::ours::{At, GROUP, request};
use crate::reader::Reader;
use crate::work::{Contestant, Handler, SOURCE, Stored, TOPIC};
use eventbus::EventId;
use eventbus::broker::{Broker, Start};
use eventbus::jiff::Timestamp;
use eventbus::rabbitmq::RabbitMqBroker;
use eventbus::rabbitmq::lapin::message::Delivery;
use eventbus::rabbitmq::lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use eventbus::rabbitmq::lapin::types::{AMQPValue, FieldTable};
use eventbus::rabbitmq::lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
};
use futures_util::StreamExt;
use futures_util::future::{Either, FutureExt, join_all, select};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// How much the server sends ahead: what our subscription may hold.
pub(crate) const AHEAD: u16 = 17_408;
/// What is acked at once of what is at hand.
const MANY: usize = 256;
/// How long acks may take from the channel to the queue: what closes the channel before loses them.
const REACHED: Duration = Duration::from_millis(250);

/// An exchange and the queues of a group on it.
#[derive(Clone)]
pub(crate) struct Place {
    /// For publishes and what is asked, and for reading, as our broker has two.
    publishes: Arc<Connection>,
    reads: Arc<Connection>,
    exchange: String,
    pub(crate) queue: String,
    dead: String,
}

impl Place {
    /// What our broker calls them where its exchange is this name.
    pub(crate) async fn new(url: &str, name: &str) -> Self {
        let connect = async || {
            let connection = Connection::connect(url, ConnectionProperties::default()).await;
            Arc::new(connection.unwrap())
        };
        Self {
            publishes: connect().await,
            reads: connect().await,
            exchange: name.to_owned(),
            queue: format!("{name}:group:{GROUP}:{TOPIC}"),
            dead: format!("{name}:dead-letters:{GROUP}"),
        }
    }

    async fn channel(&self) -> Channel {
        self.publishes.create_channel().await.unwrap()
    }

    /// Makes them as ours are.
    pub(crate) async fn make(&self) {
        let channel = self.channel().await;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let exchange = channel.exchange_declare(
            self.exchange.as_str().into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        );
        exchange.await.unwrap();
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(i32::MAX.into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(self.dead.as_str().into(), durable, arguments.clone()).await.unwrap();
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(&self.dead));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        channel.queue_declare(self.queue.as_str().into(), durable, arguments).await.unwrap();
        let (queue, exchange) = (self.queue.as_str().into(), self.exchange.as_str().into());
        let bound = channel.queue_bind(
            queue,
            exchange,
            TOPIC.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.unwrap();
        channel.close(200, "".into()).await.unwrap();
    }

    /// How much waits in the queue, where what nobody acked is again once nobody reads any more: until then it is not none.
    pub(crate) async fn unacked(&self) -> u64 {
        let channel = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue =
            channel.queue_declare(self.queue.as_str().into(), passive, FieldTable::default()).await.unwrap();
        channel.close(200, "".into()).await.unwrap();
        u64::from(queue.consumer_count()) + u64::from(queue.message_count())
    }

    /// Removes them, and closes the connections.
    pub(crate) async fn remove(&self) {
        let channel = self.channel().await;
        let groups = format!("{}:groups", self.exchange);
        for queue in [&self.queue, &self.dead, &groups] {
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        }
        let deleted =
            channel.exchange_delete(self.exchange.as_str().into(), ExchangeDeleteOptions::default());
        deleted.await.unwrap();
        for connection in [&self.reads, &self.publishes] {
            connection.close(200, "".into()).await.unwrap();
        }
    }
}

/// The properties of a message, as ours writes them.
pub(crate) fn properties() -> BasicProperties {
    let id = EventId::from_u128(fastrand::u128(..)).to_string();
    let now = Timestamp::now();
    let time = now.to_string();
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", &id),
        ("ce-source", SOURCE),
        ("ce-type", TOPIC),
        ("ce-time", &time),
        ("ce-datacontenttype", "application/json"),
        ("ce-eventversion", "1"),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    BasicProperties::default()
        .with_headers(headers)
        // Kept over a restart of the server.
        .with_delivery_mode(2)
        .with_timestamp(now.as_second().unsigned_abs())
        .with_content_type("application/json".into())
        .with_message_id(id.into())
        .with_type(TOPIC.into())
}

/// The client by itself, as somebody uses it who knows it well: confirmations are awaited apart from sending, and what is at
/// hand is acked by one ack.
#[derive(Clone)]
pub(crate) struct LapinRaw {
    place: Place,
    channel: Channel,
    reader: Reader,
}

impl LapinRaw {
    /// Sends an event, and waits until it is stored. The client has it in its order from the first poll on; that it was
    /// written to the socket is known later.
    async fn send(&self, event: &Stored) {
        let payload = serde_json::to_vec(event).unwrap();
        let (exchange, options) = (self.place.exchange.as_str().into(), BasicPublishOptions::default());
        let sent = self.channel.basic_publish(exchange, TOPIC.into(), options, &payload, properties());
        let confirmation = sent.await.unwrap().await;
        assert!(matches!(confirmation, Ok(Confirmation::Ack(None))), "{confirmation:?}");
    }
}

impl Contestant for LapinRaw {
    const NAME: &'static str = "lapin";

    async fn connect(url: &str, name: &str) -> Self {
        let place = Place::new(url, name).await;
        place.make().await;
        let channel = place.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { place, channel, reader: Reader::default() }
    }

    async fn publish(&self, event: Stored) {
        self.send(&event).await;
    }

    async fn publish_all(&self, events: Vec<Stored>) {
        join_all(events.iter().map(|event| self.send(event))).await;
    }

    async fn consume(&self, handler: Arc<Handler>) {
        let channel = self.place.reads.create_channel().await.unwrap();
        channel.basic_qos(AHEAD, BasicQosOptions::default()).await.unwrap();
        let (queue, options) = (self.place.queue.as_str().into(), BasicConsumeOptions::default());
        let consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await;
        let mut consumer = consumer.unwrap();
        self.reader.begin(|leaving| async move {
            let mut left = pin!(leaving.told());
            while let Either::Left((first, _)) = select(consumer.next(), &mut left).await {
                let (mut next, mut taken, mut last) = (first, 0, None::<Delivery>);
                while let Some(delivery) = next {
                    let delivery = delivery.unwrap();
                    handler.handle(&serde_json::from_slice(&delivery.data).unwrap());
                    last = Some(delivery);
                    taken += 1;
                    next = if taken < MANY { consumer.next().now_or_never().flatten() } else { None };
                }
                let last = last.expect("the queue is there");
                last.ack(BasicAckOptions { multiple: true }).await.unwrap();
            }
            tokio::time::sleep(REACHED).await;
            channel.close(200, "".into()).await.unwrap();
        });
    }

    async fn leave(&self) {
        self.reader.end().await;
    }

    async fn unacked(&self) -> u64 {
        self.place.unacked().await
    }

    async fn remove(self) {
        self.place.remove().await;
    }
}

/// The broker on RabbitMQ.
#[derive(Clone)]
pub(crate) struct OnRabbitMq(Place);

impl At for OnRabbitMq {
    type Broker = RabbitMqBroker;

    const START: Start = Start::Latest;

    async fn open(url: &str, name: &str) -> (Self, RabbitMqBroker) {
        let connect = async || RabbitMqBroker::builder(url).unwrap().exchange(name).connect().await.unwrap();
        // A queue begins empty: it is made before anything is published.
        let first = connect().await;
        drop(first.subscribe(request(Self::START)).await.unwrap());
        first.close().await.unwrap();
        (Self(Place::new(url, name).await), connect().await)
    }

    async fn unacked(&self) -> u64 {
        self.0.unacked().await
    }

    async fn remove(&self) {
        self.0.remove().await;
    }
}

//! Redis Streams: redis-rs by itself, and what our side needs to know of the server.

use crate::ours::{At, GROUP};
use crate::reader::Reader;
use crate::work::{Contestant, Handler, SOURCE, Stored, TOPIC};
use eventbus::EventId;
use eventbus::jiff::Timestamp;
use eventbus::redis::RedisBroker;
use eventbus::redis::redis::aio::MultiplexedConnection;
use eventbus::redis::redis::{self, AsyncConnectionConfig, Client, Cmd, Pipeline, Value};
use std::sync::Arc;
use std::time::Duration;

/// What is read at once.
const AHEAD: usize = 512;
/// Stores an entry whose id is not known yet.
const ONCE: &str = "if redis.call('SET', KEYS[2], '', 'PX', '120000', 'NX') then \
                    return redis.call('XADD', KEYS[1], '*', unpack(ARGV)) end return false";

/// The client by itself, as somebody uses it who knows it well: publishes share a connection and go out in pipelines,
/// reads have one of their own, and what was read is acked together with the next read.
#[derive(Clone)]
pub(crate) struct Raw<const KNOWS_IDS: bool> {
    connection: MultiplexedConnection,
    url: String,
    prefix: String,
    /// The digest of the script.
    once: String,
    reader: Reader,
}

/// As ours does: an id that was stored a moment ago is not stored again.
pub(crate) type RedisRaw = Raw<true>;
/// Every event is stored.
pub(crate) type RedisPlain = Raw<false>;

async fn connect(url: &str) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(url.replacen("valkey://", "redis://", 1)).unwrap();
    client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

impl<const KNOWS_IDS: bool> Raw<KNOWS_IDS> {
    fn stream(&self) -> String {
        format!("{}:topic:{TOPIC}", self.prefix)
    }

    fn command(&self, event: &Stored) -> Cmd {
        let id = EventId::from_u128(fastrand::u128(..)).to_string();
        let mut command;
        if KNOWS_IDS {
            command = redis::cmd("EVALSHA");
            command.arg(&self.once).arg(2).arg(self.stream());
            command.arg(format!("{}:once:{id} {SOURCE}", self.prefix));
        } else {
            command = redis::cmd("XADD");
            command.arg(self.stream()).arg("*");
        }
        command.arg("ce-specversion").arg("1.0").arg("ce-id").arg(id).arg("ce-source").arg(SOURCE);
        command.arg("ce-type").arg(TOPIC).arg("ce-time").arg(Timestamp::now().to_string());
        command.arg("content-type").arg("application/json").arg("ce-eventversion").arg("1");
        command.arg("data").arg(serde_json::to_vec(event).unwrap());
        command
    }
}

impl<const KNOWS_IDS: bool> Contestant for Raw<KNOWS_IDS> {
    const NAME: &'static str = if KNOWS_IDS { "redis-rs, ids known again" } else { "redis-rs, plain XADD" };

    async fn connect(url: &str, name: &str) -> Self {
        let mut connection = connect(url).await;
        let once = redis::cmd("SCRIPT").arg("LOAD").arg(ONCE).query_async(&mut connection).await.unwrap();
        Self { connection, url: url.to_owned(), prefix: name.to_owned(), once, reader: Reader::default() }
    }

    async fn publish(&self, event: Stored) {
        let stored: Value = self.command(&event).query_async(&mut self.connection.clone()).await.unwrap();
        assert!(matches!(stored, Value::BulkString(_)));
    }

    async fn publish_all(&self, events: Vec<Stored>) {
        let mut pipeline = Pipeline::with_capacity(events.len());
        for event in &events {
            pipeline.add_command(self.command(event));
        }
        let stored: Vec<String> = pipeline.query_async(&mut self.connection.clone()).await.unwrap();
        assert_eq!(stored.len(), events.len());
    }

    async fn consume(&self, handler: Arc<Handler>) {
        let (stream, mut connection) = (self.stream(), connect(&self.url).await);
        let mut begin = redis::cmd("XGROUP");
        begin.arg("CREATE").arg(&stream).arg(GROUP).arg("0").arg("MKSTREAM");
        let _: Value = begin.query_async(&mut connection).await.unwrap();
        self.reader.begin(|leaving| async move {
            let mut settled: Vec<Vec<u8>> = Vec::new();
            while !leaving.is_told() || !settled.is_empty() {
                let mut both = Pipeline::new();
                if !settled.is_empty() {
                    both.cmd("XACK").arg(&stream).arg(GROUP).arg(&settled).ignore();
                    settled.clear();
                }
                both.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg("bench").arg("COUNT").arg(AHEAD);
                both.arg("BLOCK").arg(100).arg("STREAMS").arg(&stream).arg(">");
                let answer: Vec<Value> = both.query_async(&mut connection).await.unwrap();
                for (id, payload) in answer.into_iter().flat_map(entries) {
                    handler.handle(&serde_json::from_slice(&payload).unwrap());
                    settled.push(id);
                }
            }
        });
    }

    async fn leave(&self) {
        self.reader.end().await;
    }

    async fn unacked(&self) -> u64 {
        unacked(&self.connection, &self.prefix).await
    }

    async fn remove(self) {
        remove(&self.connection, &self.prefix).await;
    }
}

/// The ids and the payloads of what was read of one stream.
fn entries(answer: Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    let list = |value| if let Value::Array(parts) = value { parts } else { Vec::new() };
    let bytes = |value| if let Value::BulkString(bytes) = value { bytes } else { Vec::new() };
    let stream = list(answer).into_iter().next().map(list).unwrap_or_default();
    let entries = stream.into_iter().nth(1).map(list).unwrap_or_default();
    let entry = |entry| {
        let mut parts = list(entry).into_iter();
        let id = parts.next().map(bytes).unwrap_or_default();
        // The payload is the last field.
        let payload = parts.next().map(list).and_then(|mut fields| fields.pop()).map(bytes);
        (id, payload.unwrap_or_default())
    };
    entries.into_iter().map(entry).collect()
}

async fn unacked(connection: &MultiplexedConnection, prefix: &str) -> u64 {
    let mut command = redis::cmd("XPENDING");
    command.arg(format!("{prefix}:topic:{TOPIC}")).arg(GROUP);
    let pending: Value = command.query_async(&mut connection.clone()).await.unwrap();
    match pending {
        Value::Array(parts) if matches!(parts.first(), Some(Value::Int(_))) => {
            if let Value::Int(count) = parts[0] { count.unsigned_abs() } else { 0 }
        }
        other => panic!("{other:?}"),
    }
}

async fn remove(connection: &MultiplexedConnection, prefix: &str) {
    let mut connection = connection.clone();
    let keys: Vec<Vec<u8>> =
        redis::cmd("KEYS").arg(format!("{prefix}:*")).query_async(&mut connection).await.unwrap();
    for keys in keys.chunks(1_000) {
        let _: Value = redis::cmd("UNLINK").arg(keys).query_async(&mut connection).await.unwrap();
    }
    // What the server frees by itself is not to cost whoever comes next.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The broker on Redis.
#[derive(Clone)]
pub(crate) struct OnRedis {
    connection: MultiplexedConnection,
    prefix: String,
}

impl At for OnRedis {
    type Broker = RedisBroker;

    async fn open(url: &str, name: &str) -> (Self, RedisBroker) {
        let broker = RedisBroker::builder(url).unwrap().prefix(name).open().await.unwrap();
        (Self { connection: connect(url).await, prefix: name.to_owned() }, broker)
    }

    async fn unacked(&self) -> u64 {
        unacked(&self.connection, &self.prefix).await
    }

    async fn remove(&self) {
        remove(&self.connection, &self.prefix).await;
    }
}

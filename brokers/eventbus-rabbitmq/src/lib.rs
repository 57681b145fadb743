//! eventbus on RabbitMQ: a topic exchange, a quorum queue for each group and pattern, dead letters in a queue of each group.
//!
//! ```no_run
//! # async fn connect() -> eventbus::Result<()> {
//! let bus = eventbus::Bus::connect("amqp://user:password@localhost:5672/shop?mandatory=true").await?;
//! # Ok(())
//! # }
//! ```
//!
//! In a program it is the Cargo feature `rabbitmq` of `eventbus`, and the address alone chooses it: `amqp://`, or `amqps://`
//! with TLS; the path is the virtual host, and several hosts are parted by commas. It is made for RabbitMQ 4, by AMQP 0-9-1,
//! and needs no plugin. A server without streams serves groups, and lists none.
//!
//! # What it promises
//!
//! | | quorum | classic | quorum, `streams=true` | how |
//! |---|---|---|---|---|
//! | `durable` | yes | yes | yes | `Ok` of a publish means that each queue of a group has it: a quorum queue on a majority of its nodes, a classic one on the disk of its node; with `streams`, that the stream has it too |
//! | `key_order` | yes | yes | yes | a queue has an order, and one process at a time reads it |
//! | `patterns` | yes | yes | yes | bindings of the topic exchange: `>` is `*.#` there, since `#` alone stands for nothing too |
//! | `start_earliest` | no | no | no | a queue begins empty |
//! | `multi_process` | yes | yes | yes | single active consumer: the others stand by |
//! | `competing` | yes | yes | yes | all processes read |
//! | `shared_by_key` | no | no | no | |
//! | `deduplicates` | no | no | no | |
//! | `seek` | no | no | no | what is handled is gone |
//! | `rename` | no | no | no | a group is its queues |
//! | `transactions` | no | no | no | what a handler returns is published before its event is settled |
//! | `attempts` | counted | lost | counted | a quorum queue counts how often it has delivered an event, whether or not a handler was called |
//! | `counts_crashes` | no | no | no | an event whose handler ends the process is delivered again after each start, up to `delivery_limit` |
//! | `backlog` | nearly | nearly | nearly | what is ready, and what this process has in hand; not what others have |
//! | `max_payload` | 16 MiB | 16 MiB | 16 MiB | `max_payload`, and `max_message_size` of the server |
//! | `replayable` | no | no | yes | the stream keeps every event; with `retention_age` for so long |
//! | `audit_log` | no | no | yes | the stream is read, by place and time |
//!
//! - **A publish is sent once.** It waits for a connection until `publish_timeout`, and is refused then: nothing was stored.
//!   What was sent, and is not confirmed until then or until the connection is lost, is
//!   [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed). So is what a queue refuses (`basic.nack`), since other queues
//!   may have it. It is not sent again by itself, because RabbitMQ would not know it again. Where nothing is confirmed for so
//!   long, as where one queue takes nothing and what was sent behind it is not read, publishing goes on by another channel,
//!   or by another connection where this one does not answer.
//! - **A topic that no group listens on** is no error, unless `mandatory` asks for one.
//! - **A server that is short of memory or disk** takes no publishes: they wait, [`Bus::health`](eventbus_core::Bus::health)
//!   says so, and what is there is handled meanwhile, since two connections are open: one publishes, one consumes.
//! - **A retry waits in the process** that has the event, which is not acked until then. After a crash it comes again at once,
//!   with its attempt as RabbitMQ counts it: each return to the queue counts, also of what was sent ahead of any handler.
//! - **A lost connection** loses what is in hand: RabbitMQ gives it to whoever is next, which may be this process again. An ack
//!   of a handler that was under way is refused then, and its event comes again. Acks are sent a moment after the handler;
//!   what was settled here and comes again for want of its ack is only acked.
//! - **On a takeover** what the other process had comes first, in order. RabbitMQ notices at once that a process has ended, and
//!   after two heart-beats that one is silent. One that is cut off goes on with the handlers that it has begun.
//! - **Who leaves a group that competes** gives what no handler has back at once, for the others. Its handlers end in peace:
//!   their acks are taken until the broker is closed, which waits for them for up to four seconds.
//! - **Acks** go together up to the first unfinished event. What is finished beyond it is acked apart after 50 ms, so that one
//!   long retry holds up no acks.
//! - **RabbitMQ takes back** what is not acked within `consumer_timeout` of its delivery, whatever it waits for. So what is held
//!   for half of that is given back, and comes again at once: to the same process, where it keeps its place and its attempt, be
//!   it unread, behind another event of its key, parked or in a handler. Of a group that competes it may go to another
//!   process, and what a handler has stays. RabbitMQ counts each return. A subscription whose `timeout` is not two seconds
//!   shorter is refused. A retry that waits for about half of it or longer goes to the server: its attempt and its time survive
//!   a crash then. It comes back behind what was published meanwhile, rounded up by at most a second in 64. Until it is due
//!   its process keeps back what follows of its key, as ever; another process does not know of it. So order by key has that
//!   exception. One that is further off than the 49 days that the server counts waits in up to eight queues one after the
//!   other, so none is further off than thirteen months.
//! - **`delivery_limit`** is above what a subscription may try, or the subscription is refused; by default there is none. What
//!   RabbitMQ gives up by itself, for a policy of length, age or deliveries, becomes a dead letter that says so.
//! - **A queue that RabbitMQ cannot consume from**, such as a quorum queue without a majority of its nodes, ends the connection of
//!   whoever tries. Its group has a connection of its own from then on, and the others go on; where that one is lost,
//!   [`Bus::health`](eventbus_core::Bus::health) says so.
//! - **Each subscription has a channel.** A connection has 2,047 of them, or `channel_max` of the server; a subscription beyond
//!   them is refused. With each refusal, as of a look at a queue that somebody has removed, the client loses the number of a
//!   channel; once there is none left for that, the connection is made anew.
//! - **What a queue cannot do** (replays, the audit log, groups that begin at the earliest event or are moved) is refused, and
//!   a bus says so. With `?streams=true` a stream beside the queues keeps every event, from its making on, for replays and the
//!   audit log; groups stay what they are, so a rebuild, which moves one at its end, is refused still.
//! - **A replay** reads the stream on a channel of its own, up to the event that was the last one as it began. It reads twice:
//!   first to count, to find what is asked for by its time, and for payloads that were mended. It goes on behind its last event
//!   after a connection was lost. Of an event that was published with another time than that of its storage it finds by
//!   time what was stored at most five minutes before. Places are the offsets of the stream, and one that is not kept any
//!   more stands for the oldest that is; a live delivery has none, only a number beyond any place, which a replay refuses.
//! - **A mended payload** of a dead letter that is published again is noted in the stream, by the source and the id of its event,
//!   and replays to that group have it. So it is lost to an event without an id, and where this process has no `streams=true`.
//! - **The stream** is one for all topics; every publish waits for it too, and `mandatory`, which it would make meaningless in
//!   every process of the bus, is refused beside it. Where somebody removes it while a program runs, what is published is kept
//!   again once a program with `streams=true` connects; until then a replay and the audit log say that it is missing.
//! - **Who stands by** says so until something comes: RabbitMQ does not tell a consumer that it is its turn.
//!
//! # What is there
//!
//! | | name | |
//! |---|---|---|
//! | topic exchange | `eventbus` (option `exchange`) | topics are routing keys |
//! | queue | `eventbus:group:<group>:<pattern>` | what a group has yet to handle |
//! | queue | `eventbus:dead-letters:<group>` | its dead letters: each event as it was, and why it failed in headers `eventbus-dead-letter-…` |
//! | queue | `eventbus:delay:<seconds>s:<queue>` | what waits for a late attempt, by TTL and dead-letter exchange; a classic one of up to 24 days goes away where it is unused |
//! | stream | `eventbus:groups` | which groups there are, since AMQP lists no queues |
//! | stream | `eventbus:events` | with `streams=true`, every event, bound with `#`; and notes, by a header `eventbus-note`, of payloads that were mended |
//!
//! Names that would be longer than 255 bytes end in a hash. Queues are durable and have `x-single-active-consumer` (unless the
//! group competes), `x-consumer-timeout`, and a dead-letter exchange with the queue of dead letters; those of type quorum
//! also `x-delivery-limit` and `reject-publish`. All of it is made where it is missing, again after each reconnect, or with
//! `?topology=check` has to be there; a difference is an error with both values. Bindings cannot be asked for, so they are
//! made in any case; whoever makes an exchange that somebody has removed, or has found it missing, binds the queues of all
//! groups to it. What others publish in the moment before that goes to nobody, as to a topic that no group listens on.
//!
//! CloudEvents has no binding for AMQP 0-9-1. Attributes are headers that begin with `ce-`; `cloudEvents:` and `cloudEvents_` are
//! read too, and so is the structured mode, which `?content_mode=structured` writes. Properties (`message_id`, `timestamp`,
//! `content_type`, `type`) say the same. A message of any other program is an event as well; one without an id has another one
//! each time it comes. Attributes and headers together have room for 96 KiB.
//!
//! A queue lists nothing: whoever looks at dead letters takes all of them, looks, and gives them back. Others who look at the same
//! moment wait; after a crash in between the server gives them back. What was given back twice is written anew, since a policy
//! may limit deliveries (`delivery-limit`), and what is beyond it would be dropped: with one of less than 2 it is.
//!
//! # Options of an address
//!
//! `ca`, `cert` and `key` (PEM files, with `amqps:`), `exchange`, `topology` (`create`, `check`), `queue_type` (`quorum`,
//! `classic`), `mandatory`, `streams`, `retention_age`, `prefetch`, `consumer_timeout`, `delivery_limit`, `max_payload`, `heartbeat`, `connect_timeout`,
//! `publish_timeout`, `content_mode` (`binary`, `structured`). [`RabbitMqBrokerBuilder`] has the same with their defaults, and
//! [`RabbitMqBroker::channel`] is the way to everything else.

#![forbid(unsafe_code)]

mod acks;
mod audit;
mod broker;
mod config;
mod connection;
mod dead_letters;
mod delivery;
mod directory;
mod groups;
mod held;
mod names;
mod publish;
mod replay;
mod stream;
mod subscribe;
mod subscription;
mod topology;
mod wire;

pub use broker::RabbitMqBroker;
pub use config::{QueueType, RabbitMqBrokerBuilder};
pub use lapin;
pub use wire::ContentMode;

eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "amqp", open: broker::open_address });
eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "amqps", open: broker::open_address });

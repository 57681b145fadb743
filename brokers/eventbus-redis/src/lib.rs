//! Redis Streams, or Valkey, as a broker of eventbus: a stream for each topic, a consumer group for each group.
//!
//! ```no_run
//! # async fn connect() -> eventbus::Result<()> {
//! let bus = eventbus::Bus::connect("redis://localhost").await?;
//! # Ok(())
//! # }
//! ```
//!
//! | address | |
//! |---|---|
//! | `redis://user:password@host:6379/0`, `valkey://…` | one server, and the number of its database |
//! | `rediss://…`, `valkeys://…` | the same with TLS; `?ca=ca.pem` names the authority, `certificate` and `key` a certificate of the client |
//! | `redis+sentinel://host:26379,other/mymaster` | the primary that sentinels know under this name; `rediss+sentinel` with TLS |
//! | `redis+cluster://host,other` | the node of a cluster that has the slot of the bus; `rediss+cluster` with TLS |
//!
//! The methods of [`RedisBrokerBuilder`] are options of an address as well: `redis://localhost?prefix=shop&lease=5s`.
//! Redis 7.0 is the oldest that is taken. To try it: `docker run -p 6379:6379 redis redis-server --appendonly yes`.
//!
//! # What it does
//!
//! | | | how |
//! |---|---|---|
//! | `durable` | yes | as far as the server is: start-up says what that means and warns where `Ok` means less than it says |
//! | `key_order` | yes | over all topics of a pattern: one script gives every event its place |
//! | `patterns` | yes | a new topic is found at once, and none of its events is missed |
//! | `start_earliest` | yes | |
//! | `multi_process` | yes | one at a time, by a lease with a fence; the others stand by |
//! | `competing` | yes | what one process leaves undone another takes over |
//! | `shared_by_key` | no | |
//! | `deduplicates` | yes | by source and id, for two minutes ([`duplicate_window`](RedisBrokerBuilder::duplicate_window)) |
//! | `seek` | yes | |
//! | `rename` | yes | |
//! | `transactions` | no | what a handler returns is published before its event is settled |
//! | `attempts` | noted | as they were when a retry was parked |
//! | `counts_crashes` | yes | once it is known which event it is it is charged with an attempt each time; beyond its retries it is a dead letter |
//! | `backlog` | exactly | |
//! | `max_payload` | 8 MiB | [`max_payload`](RedisBrokerBuilder::max_payload) |
//! | `replayable` | yes | by place and time, as far back as events are [kept](Retention) |
//! | `audit_log` | yes | likewise |
//!
//! - **Stored means stored** by the server, which answers once it has written its append-only file. With
//!   `appendfsync everysec` a power cut may take the last second, a crash of the server up to two seconds where its disk is
//!   so slow that one sync lasts until the next (it answers before it writes then; `aof_delayed_fsync` of `INFO` counts
//!   that), and a failover what the replica had not received yet. With `appendfsync always` only a failover may.
//! - **A group is handled by one process** where order by key asks for it. A process that ends leaves it at once; one that
//!   crashes keeps it for its [lease](RedisBrokerBuilder::lease), ten seconds by default. What it had open comes first then,
//!   in order, before anything newer. The fence is checked in the same step as each settlement and each read, so that a
//!   process which stood still for longer than its lease changes nothing when it goes on.
//! - **Processes that compete** say three times in a lease what they have. One that is silent for longer loses it to the
//!   others, and may be silent for twice as long from then on, up to sixteen leases, until it was in time for ten of them:
//!   so processes that are kept from working do not take events from each other to and fro. An ack answers at once while
//!   no other process can have the delivery, and is otherwise what the server says. What another process has is never
//!   settled; where somebody claims a delivery with force meanwhile (`XCLAIM`), it comes again.
//! - **What was asked of a group or of a dead letter** (`rename`, `seek`, `remove`, `republish`, `purge`) is done once, also
//!   where its answer is lost with the connection and it is asked again; the answer is that of the first time.
//! - **Memory** of the server is what limits a bus: events are kept for ever by default. [`Retention`] removes what every
//!   group has settled. While it is full, publishes and dead letters are refused, and groups go on.
//! - **Data that is gone**, as after `FLUSHALL` or a restart without a file: groups begin anew with the first event that is not
//!   settled, or with everything that came later, and say so.
//! - **Each subscription has a connection** of its own, on which it waits; publishes and settlements share one more.
//! - **In a cluster** all keys of a bus have one hash tag and are on one node, since scripts need them together. Several
//!   buses (prefixes) share a cluster; one bus is no faster there. It follows its slot to another node, and to a replica
//!   that takes over. One node in the address is enough to find the others.
//! - **After a failover**, in a cluster or by sentinels, a bus goes on with the new primary. Redis replicates behind its
//!   answers, so the last events that it has confirmed may be missing there, and acks, so that events come again. Start-up
//!   says so. `min-replicas-to-write 1` with `min-replicas-max-lag 1` on the server bounds that to what a replica may lag.
//!   With [`replicas=1`](RedisBrokerBuilder::replicas) the `Ok` of a publish means that a replica has it as well: what fewer
//!   have waits, and is [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed) after `publish_timeout`. Acks do not wait.
//! - **Memory of a process**: a subscription has 8 MiB at hand and 64 MiB handed out. Where a pattern covers many topics it
//!   reads at least one event of each that has some, since order is told from the first ones of all.
//! - **Other programs** write events with `XADD eventbus:topic:order.placed '*' data '{"id":7}'`, and read them as fields:
//!   `ce-id`, `ce-type`, `ce-time`, `content-type`, `h-<header>`, `data`. What they do not say is filled from where it stands,
//!   and an entry without `data` is the JSON object of its fields. A topic that only others write to is known to patterns
//!   once it is in the set `eventbus:topics` (`SADD eventbus:topics order.placed`), within a second. Their events are not
//!   deduplicated. Retention does not wait for consumer groups of theirs.
//! - **FastStream** writes headers and payload together into one field, `__data__`. Both of its formats are read, its headers
//!   `ce-<attribute>` as attributes. It finds the payload of our events by itself.
//!
//! # On the command line
//!
//! `eventbus-cli` has this broker by its feature `redis`, and so does the shop of the examples:
//!
//! ```text
//! cargo run --package eventbus-cli --features redis -- --url redis://localhost status
//! cargo run --package shop --features redis -- --url redis://localhost run
//! ```
//!
//! Verbs that only look (`status`, `log`, `tail`, `groups list`, `dead-letters list`) add `topology=check` to an address
//! that says nothing of it, and so make nothing on a server.
//!
//! The client library is within reach: [`RedisBroker::client`].

#![forbid(unsafe_code)]

mod audit;
mod broker;
mod claim;
mod config;
mod dead_letters;
mod delivery;
mod durability;
mod entry;
mod faststream;
mod groups;
mod history;
mod keeper;
mod keys;
mod link;
mod locate;
mod merge;
mod patience;
mod place;
mod publish;
mod reader;
mod register;
mod replay;
mod retention;
mod script;
mod suspects;
mod trouble;
mod wire;

pub use broker::RedisBroker;
pub use config::{RedisBrokerBuilder, Retention};
pub use redis;
pub use wire::ContentMode;

macro_rules! schemes {
    ($($name:literal)*) => {$(
        eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: $name, open: broker::open_address });
    )*};
}
schemes! { "redis" "rediss" "valkey" "valkeys" "redis+cluster" "rediss+cluster" "redis+sentinel" "rediss+sentinel" }

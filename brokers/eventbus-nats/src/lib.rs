//! eventbus on NATS JetStream: a stream of events, a durable consumer for each group, dead letters in a stream.
//!
//! ```no_run
//! # async fn connect() -> eventbus::Result<()> {
//! let bus = eventbus::Bus::connect("nats://localhost:4222").await?;
//! # Ok(())
//! # }
//! ```
//!
//! In a program it is the Cargo feature `nats` of `eventbus`, and the address alone chooses it. A server for trying it
//! out: `nats-server -js`. It needs a server of version 2.11 or newer; an older one is enough where all groups
//! [compete](eventbus_core::broker::SubscribeRequest::competing).
//!
//! # What it promises
//!
//! | | | how |
//! |---|---|---|
//! | `durable` | yes | `Ok` of a publish means that the stream has it; with one replica on the disk of one server, which syncs it every two minutes (`sync_interval` of the server): a crash of the server loses nothing, a power cut may, unless `replicas` is 3 |
//! | `key_order` | yes | the server gives a group to one process at a time (a priority group with `pinned_client`); another takes over in order |
//! | `patterns` | yes | patterns are subjects |
//! | `start_earliest` | yes | |
//! | `multi_process` | yes | others stand by |
//! | `competing` | yes | all processes pull from one consumer; what is delivered again may come behind newer events of its key |
//! | `shared_by_key` | no | |
//! | `deduplicates` | yes | by source and id, within the `duplicate_window` of the stream (2 minutes) |
//! | `seek` | yes | |
//! | `rename` | yes | |
//! | `transactions` | no | what a handler returns is published before its event is settled |
//! | `attempts` | noted | attempt and due time of a retry that waits are in a key-value bucket |
//! | `counts_crashes` | yes | what is delivered again is noted before its handler is called; what is delivered for the first time is not |
//! | `backlog` | exactly | what `nats consumer info` shows: unprocessed and outstanding |
//! | `max_payload` | of the server | less 64 KiB for headers, which the server counts as well |
//! | `replayable` | yes | from a place or a time, as far back as the stream keeps events |
//! | `audit_log` | yes | the stream, by subject |
//!
//! - **A publish is sent again until it is confirmed**, under the id by which the server knows it, for
//!   [`publish_timeout`](NatsBrokerBuilder::publish_timeout). Then it is
//!   [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed). Of events of one key that are published together, one that
//!   was overtaken as a connection broke is not sent again but is `Unconfirmed`: stored now, it would be out of order.
//! - **Acks are sent without waiting**, confirmed a few times a second, and sent again on another connection. So a lost
//!   connection repeats nothing that was settled; a crash repeats the acks of its last moments.
//! - **A stream that is made anew** under its name has the same numbers for other events. After an outage nothing is settled
//!   or asked for until it is known that the server has the stream and the consumer of before; what is held of a stream that
//!   is gone settles nothing, and its notes and dead letters are not those of the next one.
//! - **Of a subscription's events** there are at most 64 MiB in memory, of all of a process at most 256 MiB, and of each a
//!   few of the largest messages. Where a takeover finds more open than that, the rest is read from the stream again as there
//!   is room.
//! - **A takeover** takes the lease (`ack_wait`) of the process that is gone, and a little more than it takes to read what that
//!   had open. On a machine with two cores that others kept busy, in a debug build: 150 events of 1 MiB were handled 4.1 s
//!   after the lease (to read them alone took 5.2 s); 24 groups with 24 MiB open each, whose process is killed, within 63 s
//!   and 326 MiB of memory, with 13 messages for each event (to read them one group after the other took 19 s).
//! - **A process that does not answer** begins no handler, and loses its groups after
//!   [`ack_wait`](NatsBrokerBuilder::ack_wait) where another one waits for them. What it had is called back by that one,
//!   before anything newer is handled; its own acks are refused once it knows. Where nobody else took the group it goes
//!   on with what it has.
//! - **An event that ends the process** is found out: what was open then is noted in the bucket before its handler is called
//!   the next time, and what was in a handler at another such end is handled alone from then on. The one that was alone when
//!   the process ended is charged with an attempt, and beyond its retries it is a dead letter
//!   ([`Crashed`](eventbus_core::broker::FailureKind::Crashed)). A process that is killed once or twice charges nothing, and
//!   one that is killed after its shutdown has begun never does.
//! - **How often an event was tried** is looked for until it is known: where the bucket cannot be asked, an event that was
//!   delivered before waits, and the subscription says so. Of a note that cannot be read the attempt counts, or else how
//!   often the event was delivered.
//!
//! # What is on the server
//!
//! | | | |
//! |---|---|---|
//! | stream | `EVENTBUS` (option `stream`) | `eventbus.>` (option `prefix`): `order.placed` is `eventbus.order.placed`; `eventbus-again.>`: what goes back to one group |
//! | consumer | `<group>-<hash>` | one for each group and pattern; its metadata has both |
//! | stream | `EVENTBUS-DEAD` | `eventbus-dead.<group>.<topic>`, dots of the group as `/`: the event as it was, and headers `eventbus-dead-letter-…` |
//! | bucket | `EVENTBUS-PARKED` | retries that wait; what is tried after a process has ended; groups that are being moved |
//!
//! They are made where they are missing, also while a program runs, or with `?topology=check` have to be there; a
//! difference is an error with both values. A consumer that somebody removes goes on with the first event that is not
//! settled; where the stream is another one by then, with its first event. Events are CloudEvents after the binding for NATS: attributes are headers `ce-…`, percent-encoded. A message of
//! any other program is an event too, in structured mode as well. Headers that NATS cannot carry as they are (line breaks,
//! white space at the ends, names of the server's own) travel percent-encoded in `eventbus-header`.
//!
//! Where the client cannot read a message, such as one with a header that is not UTF-8, it ends the connection. What was
//! delivered then is looked through, and such a message is sent again to the group in a form that can be read: headers that
//! are not UTF-8 are read as Latin-1, and lines that are no headers are left out. A header with a bare carriage return ends
//! the client altogether, with a panic; it is replaced, subscriptions and publishes go on with another one, and a program
//! that has asked for [`NatsBroker::client`] asks again.
//!
//! Times of the audit log and of replays are those at which events happened. They are looked for from five minutes before
//! on by the times at which the server stored them: what says that it happened later than that is not found by its time.
//!
//! A group is moved by making its consumer anew, since JetStream moves none. Its place is noted in the bucket before: after a
//! crash in the middle of `groups seek`, `move` or `drop` the same may be done again, and a group that is opened instead goes
//! on at the one place or the other. What it had settled out of order is delivered again.
//!
//! # Options of an address
//!
//! `stream`, `prefix`, `topology` (`create`, `check`), `storage` (`file`, `memory`), `replicas`, `retention_age`,
//! `retention_size`, `duplicate_window`, `connect_timeout`, `publish_timeout`, `ack_wait`, `content_mode` (`binary`,
//! `structured`), `domain`; `user:password@` or `token@` before the host, or `token`, `nkey`, `credentials`; `tls://`, `ca`,
//! `certificate`, `key`, `tls_first`. [`NatsBrokerBuilder`] has the same with their defaults, and
//! [`NatsBroker::client`] the client for everything else.

#![forbid(unsafe_code)]

mod audit;
mod birth;
mod broker;
mod config;
mod connection;
mod dead_letters;
mod delivery;
#[cfg(test)]
mod faults;
mod groups;
mod intake;
mod notes;
mod publish;
mod pulls;
mod replay;
mod scan;
mod subscribe;
mod subscription;
mod suspects;
mod tenure;
mod topology;
mod unreadable;
mod wire;

pub use async_nats;
pub use broker::NatsBroker;
pub use config::{NatsBrokerBuilder, Storage};
pub use wire::ContentMode;

eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "nats", open: broker::open_address });
eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "tls", open: broker::open_address });

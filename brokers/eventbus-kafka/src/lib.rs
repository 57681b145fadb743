//! eventbus on Apache Kafka: topics with partitions, a consumer group for each group, dead letters in compacted topics.
//!
//! ```no_run
//! # async fn connect() -> eventbus::Result<()> {
//! let bus = eventbus::Bus::connect("kafka://localhost:9092").await?;
//! # Ok(())
//! # }
//! ```
//!
//! In a program it is the Cargo feature `kafka` of `eventbus`, and the address alone chooses it; `kafkas://` has TLS. The
//! client is librdkafka, which is built from its source: that wants a C compiler, and on Debian the packages `libssl-dev`,
//! `zlib1g-dev` and `pkg-config`. It is tested with Kafka 4.4.
//!
//! # What it promises
//!
//! | | | how |
//! |---|---|---|
//! | `durable` | yes | `Ok` of a publish means that all replicas in sync have it (`acks=all`, idempotent producer) |
//! | `key_order` | yes | the key decides on the partition, as in Java (murmur2), and a partition is one process's at a time |
//! | `patterns` | yes | a subscription reads the topics that its pattern covers; new ones are found within seconds, from their first event on |
//! | `start_earliest` | yes | |
//! | `multi_process` | yes | |
//! | `competing` | yes | it changes nothing: processes share a group either way |
//! | `shared_by_key` | yes | by partition: more processes than partitions have nothing to do |
//! | `deduplicates` | no | the producer stores what it sends again once, but knows no ids of events |
//! | `seek` | yes | the committed offsets are moved while nobody has the group |
//! | `rename` | yes | so are they, to the other group |
//! | `transactions` | no | yes with [`transactions`](KafkaBrokerBuilder::transactions): [what is inside](#what-is-in-a-transaction) |
//! | `attempts` | noted | attempt and due time of a retry that waits are committed beside the offset |
//! | `counts_crashes` | no | an event whose handler ends the process is delivered again after each start |
//! | `backlog` | nearly | offsets that are not settled: also those of records that compaction has removed, and [marks](#what-is-in-a-transaction) |
//! | `max_payload` | of `max_payload` | 1,000,000 bytes; a topic takes 1 MiB with everything (`max.message.bytes`) |
//! | `replayable` | yes | from an offset or a time, past the group |
//! | `audit_log` | yes | the topics themselves, as far back as they are kept |
//!
//! - **A publish is tried again** by the client, in its order, for [`publish_timeout`](KafkaBrokerBuilder::publish_timeout).
//!   Then it is [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed), or refused where it could not even be sent.
//!   One request is on its way to each server at a time, with what several publish at once: with more, the client has
//!   confirmed events that a new partition had refused.
//! - **What is committed** is the first offset that is not settled, and beside it, in at most 4,096 bytes, what is settled
//!   beyond it and which retries wait. So a restart repeats only what was settled in its last tenth of a second. Where more
//!   is open than fits, the end of it is left out: that is delivered again after a crash, and a retry that does not fit is
//!   an error line. A server with a smaller `offset.metadata.max.bytes` gets shorter texts, and a warning says so.
//! - **A retry waits in the process** that has the partition; others of the partition go on, as far as the subscription may
//!   hold them. A full process pauses its partitions.
//! - **When a partition goes to another process** nothing of it is begun any more, its handlers are waited for (up to the
//!   attempt's timeout, two minutes at most), and what they did is committed before it goes. The other partitions go on.
//!   After that, acks are errors: it is delivered again there. So it is with everything that a process has which its group
//!   has gone on without: it notices that within seconds also while partitions go from one process to another.
//! - **A client that has failed for good**, or has panicked, is replaced; that is an error line, and what it has not committed
//!   is delivered again.
//! - **A process that does not answer** loses its partitions after
//!   [`session_timeout`](KafkaBrokerBuilder::session_timeout). One that stood still begins nothing before the server has
//!   said that it still has them.
//! - **Places** ([`Offset`](eventbus_core::broker::Offset)) are of all partitions: time in milliseconds, partition, offset, as
//!   in `1700000000000.42.70`, where the partition is a number made of its topic and its own. So events of one millisecond in
//!   several partitions have an order that need not be that of their publishes, and in topics with times of producers
//!   (`CreateTime`) a place finds in other partitions about what was stored then. Topics that are made here have the time of
//!   their storing, which replays and `groups seek` go by. Replays and the audit log read partitions beside each other, by
//!   time. Where a group stands is right before the first event that it has not settled, in whichever partition.
//! - **A topic that is deleted and made anew** is read from its beginning, whatever handlers still do with events of the
//!   former one, and so is one whose end servers have lost. Offsets alone tell that: leave ten seconds in between, since a
//!   group goes on in the middle of one that soon has more than the group had read of the former one.
//! - **Handling and publishing are no transaction together**, unless the address says so (`?transactions=true`): what a handler
//!   returns is stored before its event is settled, and after a crash in between the event is handled, and its answer
//!   published, again.
//! - Offsets of a group that nobody has are kept for a week (`offsets.retention.minutes` of the server); after that it is a
//!   new group.
//!
//! # What is in a transaction
//!
//! With `?transactions=true` ([`KafkaBrokerBuilder::transactions`]) what a handler returns is stored in one transaction with the
//! settlement of its event: both or neither. Who reads with `read_committed`, as this broker does and others have to be told,
//! has the answers of an event exactly once, in order by key, however often processes are killed.
//!
//! - **Inside**: the events that a handler returns, one or many, to any topics, and the settlement of its event.
//! - **Not inside**: what a handler publishes by a [`Publisher`](eventbus_core::Publisher) by itself, whatever it does outside
//!   Kafka, and dead letters, which are stored before their event is settled, so that a crash in between may store one twice.
//!   The handler itself runs again after a crash; what it returned before is seen by nobody then.
//! - **One transaction at a time** for each subscription, with what was returned while the last one was on its way: up to 512
//!   deliveries or 4 MiB. An event whose handler returns something is settled once it is committed, a few round trips later; raise
//!   `concurrency` for throughput, and do not look for it in batches, whose members are settled one after the other.
//! - **An answer that Kafka does not take** (too large for its topic, not allowed) fails its attempt. The transaction is aborted,
//!   and the others in it go into the next one. Where none is committed within
//!   [`publish_timeout`](KafkaBrokerBuilder::publish_timeout) the attempts have failed, and nothing of them is stored.
//! - **Who has lost a partition commits nothing of it**: a transaction names the member of the group that settles, and the server
//!   refuses one that the group has gone on without. Where it is not known what became of one, the client is replaced and asks
//!   what was committed.
//! - **A transaction that a killed process leaves open** is aborted by the server after the
//!   [`session_timeout`](KafkaBrokerBuilder::session_timeout) (and up to ten seconds more,
//!   `transaction.abort.timed.out.transaction.cleanup.interval.ms`). Until then its partitions are not read further, and readers
//!   of the topics that it has written to wait. Programs start meanwhile, and groups are listed by what was committed before; a
//!   group is not renamed.
//! - **Behind an open transaction**, whoever has begun it, nothing is read before it ends: the audit log and replays up to now
//!   leave out what was published behind it, and no backlog counts that.
//! - **Offsets without events** are what transactions leave: a mark in each of their partitions, and what was aborted. Where
//!   events stand among them, a backlog and the number that a replay announces count them too.
//! - **With `group_protocol=consumer`** the client (librdkafka 2.12) was once seen to abort a process that had stood still for
//!   longer than its session in the middle of a transaction: an assertion of its own, as it closes. Others handle what was not
//!   committed, as after any crash; with `classic` it was not seen.
//! - **All processes of a group** have the option, or the answers of those without it may come twice.
//!   `isolation=read_uncommitted` is refused with it. The user of the program needs the right to write to the transactional ids
//!   `eventbus-<prefix><group>@…`.
//!
//! # What is on the server
//!
//! | | | |
//! |---|---|---|
//! | topic | `order.placed` (option `prefix` before it) | events; names that begin with `__` are not for events |
//! | group | `<group>@<pattern>` | one for each group and pattern |
//! | topic | `__groups` | empty: each group commits that it is there, and reads it as long as its pattern covers no topic |
//! | topic | `__dead-letters.<group>` | compacted: each event as it was, and headers `eventbus-dead-letter-…`; a tombstone removes one |
//! | topic | `__again.<group>` | dead letters that are published again, for this group alone; kept, since replays take mended payloads from there |
//!
//! They are made where they are missing, with [`partitions`](KafkaBrokerBuilder::partitions) and
//! [`replication`](KafkaBrokerBuilder::replication) (topics of our own have one partition), and keep their events for ever
//! unless [`retention_age`](KafkaBrokerBuilder::retention_age) says otherwise: by default a server removes after a week also
//! what a group has not handled, and a topic that others made does so. Or, with `?topology=check`, they have to
//! be there; a difference is an error with both values. Kafka takes no two names that differ in `.` and `_` only. More
//! partitions, made later, are read within seconds, and move keys to other partitions: order by key does not hold across that.
//!
//! A dead letter is published again, or purged, in a transaction that removes it, so of two processes that try one does it. Marks
//! of transactions have offsets: Kafka's own tools may show a lag of one where there is nothing left; `groups` looks. One that
//! is published again may be handled beside later events of its key by another process. Renaming a group commits under the
//! new name, moves its dead letters one by one, and then forgets the old name: cut off in the middle, do it again.
//!
//! Events are CloudEvents after the binding for Kafka: attributes are headers `ce_…`, the payload is the value as it is.
//! The structured mode is read too, and written with `?content_mode=structured`. A record of any other program is an event as
//! well, with its record's key; a header whose name is no UTF-8 text is left out, since the client cannot read it.
//!
//! # Options of an address
//!
//! `prefix`, `partitions`, `replication`, `retention_age`, `topology` (`create`, `check`), `group_protocol` (`classic`,
//! `consumer`), `isolation` (`read_committed`, `read_uncommitted`), `transactions`, `session_timeout`, `linger`, `publish_timeout`, `connect_timeout`,
//! `max_payload`, `content_mode` (`binary`, `structured`), `sasl` (`plain`, `scram-sha-256`, `scram-sha-512`), `ca`,
//! `certificate`, `key`; `user:password@` before the hosts. [`KafkaBrokerBuilder`] has the same with their defaults, and
//! [`KafkaBroker::client_config`] is what a client of your own begins with.

#![forbid(unsafe_code)]

mod arrivals;
mod audit;
mod broker;
mod commit;
mod committed;
mod config;
mod connection;
mod dead_letters;
mod delivery;
mod doubt;
mod errands;
mod groups;
mod held;
mod keeper;
mod partition;
mod place;
mod publish;
mod rebalance;
mod records;
mod refusals;
mod replay;
mod scan;
mod session;
mod subscribe;
mod subscription;
mod topology;
mod transaction;
mod wire;

pub use broker::KafkaBroker;
pub use config::{GroupProtocol, Isolation, KafkaBrokerBuilder, Sasl};
pub use partition::partition_of;
pub use rdkafka;
pub use wire::ContentMode;

eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "kafka", open: broker::open_address });
eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "kafkas", open: broker::open_address });

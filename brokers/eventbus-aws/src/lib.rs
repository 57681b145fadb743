//! eventbus on Amazon SNS and SQS: a topic of SNS for each topic, a queue of SQS for each group, standard or FIFO.
//!
//! ```no_run
//! # async fn connect() -> eventbus::Result<()> {
//! let bus = eventbus::Bus::connect("sns://eu-central-1?fifo=true").await?;
//! # Ok(())
//! # }
//! ```
//!
//! In a program it is the Cargo feature `aws` of `eventbus`, and the address alone chooses it. `sns://default` takes the
//! region of the environment or the profile, and credentials come from the standard chain (environment, profile, web
//! identity, container, instance). Another server than Amazon's is named by `?endpoint=http://localhost:4566`.
//!
//! # What it promises
//!
//! | | standard | FIFO | how |
//! |---|---|---|---|
//! | `durable` | yes | yes | `Ok` of a publish means that SNS has it, which keeps it until each queue has it; a queue keeps it for `retention_age` (14 days), and drops it then, handled or not |
//! | `key_order` | no | yes | the key is the message group; a subscription that needs order is refused at the start on standard topics and queues |
//! | `patterns` | yes | yes | a queue is subscribed to each topic that its pattern covers, also to those that are made later |
//! | `start_earliest` | no | no | a queue begins empty |
//! | `multi_process` | yes | yes | all processes of a group read from its queue |
//! | `competing` | yes | yes | |
//! | `shared_by_key` | no | yes | SQS gives the events of one message group to one process at a time |
//! | `deduplicates` | no | yes | by source and id, for five minutes |
//! | `seek` | no | no | what is settled is deleted |
//! | `rename` | no | no | a queue keeps its name, and what comes while its messages are taken to another one would be before them |
//! | `transactions` | no | no | what a handler returns is published before its event is settled |
//! | `attempts` | counted | counted | SQS counts how often it has delivered an event (`ApproximateReceiveCount`), whether or not a handler was called |
//! | `counts_crashes` | no | no | an event whose handler ends the process is delivered again after each start, unless a `maxReceiveCount` of your own limits that |
//! | `backlog` | nearly | nearly | `ApproximateNumberOfMessages`, which follows within a minute |
//! | `max_payload` | 180 KiB | 180 KiB | a message has 256 KiB with everything in it, 4 KiB of which are kept free for its dead letter, and bytes that are no text take a third more |
//! | `replayable` | no | no | what is settled is deleted |
//! | `audit_log` | no | no | |
//!
//! - **A publish is tried again** while Amazon does not answer, for [`publish_timeout`](AwsBrokerBuilder::publish_timeout).
//!   Then it is [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed). A FIFO topic knows it again; a standard topic may
//!   store it twice. Of events of one key that are published together, one that failed after a later one was stored is not
//!   sent again: stored now, it would be out of order.
//! - **A retry waits in the process** that has the event, which hides it from others until then (`visibility_timeout`,
//!   extended in batches of ten). Its message group stays closed meanwhile. After a crash the event comes again when it was
//!   hidden for its time, with its attempt as SQS counts it. SQS hides nothing for more than 12 hours after it has given it out: what
//!   a handler has for longer is delivered again, and what waits longer for a retry is given back to the queue, with what is
//!   behind it in its message group, and goes on waiting when it comes to the same process again. Another process that gets it
//!   handles it before its time. Each time SQS counts one delivery more.
//! - **A process that does not answer** loses what it has after [`visibility_timeout`](AwsBrokerBuilder::visibility_timeout):
//!   it drops what it has not begun, and its acks are refused. On FIFO it drops with an event what follows in its message
//!   group. That time counts from when SQS was asked, also where SQS has waited before it answered; what comes by an answer
//!   for which most of it is over is hidden again before anybody gets it.
//! - **An event that ends the process** comes again after each start. SQS counts deliveries, and not who was at work. So
//!   events that come for the third time take turns, one at a time in a process; the one that has its turn is hidden for twice
//!   as long, so that after a crash the others come first and are handled. Where you have set a redrive policy, an event that
//!   it would take next is given up with the kind [`Crashed`](eventbus_core::broker::FailureKind::Crashed) before that, but
//!   not one that is behind another in its message group.
//! - **A wrong clock** makes signatures that Amazon refuses. The error says so, and by how many minutes it is behind or ahead.
//! - **A server that wants fewer calls** gets fewer: what waits is tried again after 250 ms, then twice as long up to 16 s.
//!   `Connection::Slowed` and a line of the log say so; the connection does not count as lost. A start waits for it for up to
//!   90 s, also where a queue was removed less than a minute ago, which SQS does not make again before that.
//! - **Acks are deletes**, ten at a time, sent a moment later. A crash repeats those of its last moment. One that is refused,
//!   as where credentials are over, is sent again, and its event stays hidden meanwhile.
//! - **A process that ends in order** gives back what no handler has begun with, and others get it at once. SQS answers a call
//!   for events also where nobody waits for it any more, and hides what it gives to it; so the end waits for the answer to
//!   the last call, up to [`wait_time`](AwsBrokerBuilder::wait_time), and gives back what it brings. Others get only after
//!   `visibility_timeout` what a process has that is killed or whose [`drain`](eventbus_core::BusBuilder::drain) is shorter
//!   than that, and what SQS refuses to take back three times.
//! - **A call for events whose answer is lost** is made again by its name on FIFO, and SQS answers it as before; so it is at
//!   the end of a process as well, to give back what it may have been given. Otherwise the message groups of what it had
//!   given out would be closed until that was hidden for its time. On standard queues it is hidden for its time.
//! - **There is no history**: replays, the audit log and cursors that can be moved are refused, and a bus says so.
//! - **Groups are queues**: `eventbus groups list` shows each with `ApproximateNumberOfMessages` and what is hidden (what waits
//!   for a retry is among that), and `drop` removes the queue, for which SQS wants a minute before it is made again. Whether
//!   some process reads a queue stands in its tags `eventbus-reader-…`, which each process writes every two minutes and which
//!   hold for five: so long a group counts as handled after its process was killed. With `?topology=check` no tag is
//!   written and nothing dropped. A listing costs two calls for each queue; [`Bus::health`](eventbus_core::Bus::health) asks
//!   for the queues of its own process only.
//! - `Bus::settled` goes by the counts of SQS, which follow later: what was published by others a
//!   moment ago may be missing in them.
//! - Events without a key come in any order on FIFO as well: each is a message group of its own.
//!
//! # What is there
//!
//! | | name | |
//! |---|---|---|
//! | topic of SNS | `eventbus-order-placed` (option `prefix`) | `order.placed`; `-` and `_` of a topic have a `_` before them |
//! | queue of SQS | `eventbus-group-<group>-<hash>` | a group on one topic, subscribed with raw delivery |
//! | queue of SQS | `eventbus-any-<group>-<hash>` | a group on a pattern with wildcards |
//! | queue of SQS | `eventbus-dead-<group>-<hash>` | the dead letters of a group: each event as it was, and why it failed in the attribute `eventbus-dead-letter` |
//!
//! FIFO topics and queues end in `.fifo`. Tags say the group and the pattern (`*` as `+`, `>` as `@`). The policy of a queue
//! lets all topics with the prefix send to it; a queue has it from its beginning, and where it is added to one that is there,
//! it holds within a minute. All of it is made where it is missing, or with `?topology=check` has to be
//! there; a difference is an error with both values. A redrive policy of your own has to allow more deliveries
//! (`maxReceiveCount`) than the subscription makes attempts, and an event is given up here before that policy takes it.
//!
//! Several topics and no filters: a filter policy takes up to 15 minutes until it holds everywhere, in which a new group
//! would miss events, and one FIFO topic for all would be one bottleneck. Whoever meets a topic for the first time looks for
//! the queues whose patterns cover it, and whoever subscribes to a pattern makes its queue first and looks for topics then.
//! Both lists may be behind by seconds, and somebody may remove a topic and make it anew, with which its queues are not joined
//! to it any more. So whoever reads a queue looks every two minutes (every four `visibility_timeout`, where that is less) for
//! new topics, and in turn at ten of the others; where one was made anew, all of its queues are joined to it again. What was
//! published until then went to nobody. A queue that refuses is left out with a warning, and a subscription or a topic to
//! which others have given a filter, a key or other settings is used as it is.
//!
//! CloudEvents has no binding for SNS and SQS, and a message has ten attributes at most, of texts. So a payload that is text
//! is the message as it is, other bytes are base64; `ce-specversion`, `ce-id`, `ce-source`, `ce-type`, `ce-time`,
//! `ce-subject`, `ce-datacontenttype` and `ce-partitionkey` are attributes, percent-encoded; and the attribute `eventbus` has
//! the topic, the other attributes and all headers, as in the query of an address. The structured mode is read too, and
//! written with `?content_mode=structured`. A message of any other program is an event as well, on FIFO
//! with its message group as its key; on a queue of a pattern its
//! topic is `ce-type` where that fits, or the pattern with `unknown` in place of wildcards.
//!
//! Beside an event there is always room for its dead letter, if need be with a shorter reason. A message of another program may
//! fill a message of SQS, which has up to 1 MiB: where the queue of dead letters takes no larger ones (`MaximumMessageSize`),
//! its bytes alone are stored there, and an error of the log says why; it is not listed.
//!
//! SQS lists nothing: whoever looks at dead letters takes all of them out of the queue, up to 10,000, hides them as long as
//! he looks, and gives them back, also where the look is cut. Others who look at the same moment do not see them, and after a
//! crash in between nobody does for 30 s.
//!
//! # What it costs
//!
//! | calls for 1,000 events | many at once | one at a time |
//! |---|---|---|
//! | publish | 104 | 1,000 |
//! | receive, each group | 104 | 1,000 |
//! | delete, each group | 100 | 1,000 |
//!
//! These were counted in front of an emulator (`tests/calls.rs`), which gives ten messages to each call that asks for them. SQS
//! may give fewer, and a call that waits in vain is one more.
//! Amazon counts each 64 KiB of a call as one more. An idle subscription makes one call in
//! [`wait_time`](AwsBrokerBuilder::wait_time), 520,000 in a month (130,000 with `wait_time=20s`, with which a process takes up
//! to 20 s to end), and has one connection open for it; where there is much to receive, three more that do not wait. Its tag and the look at its topics are two more in two minutes, or up to eleven
//! where a pattern covers many topics. What is held costs one call for ten events in a third of `visibility_timeout`.
//!
//! # Options of an address
//!
//! `account`, `endpoint`, `ca`, `profile`, `fifo`, `prefix`, `topology` (`create`, `check`), `retention_age`,
//! `visibility_timeout`, `wait_time`, `connect_timeout`, `publish_timeout`, `content_mode` (`binary`, `structured`);
//! `id:secret@` before the region. [`AwsBrokerBuilder`] has the same with their defaults, and [`AwsBroker::sns`] and
//! [`AwsBroker::sqs`] are the clients for everything else.

#![forbid(unsafe_code)]

mod batches;
mod broker;
mod calls;
mod clock;
mod config;
mod connection;
mod dead_letters;
mod delivery;
mod groups;
mod held;
mod hidden;
mod names;
mod policy;
mod publish;
mod readers;
mod recent;
mod returns;
mod subscribe;
mod subscription;
mod together;
mod topics;
mod topology;
mod wire;

pub use broker::AwsBroker;
pub use config::AwsBrokerBuilder;
pub use wire::ContentMode;
pub use {aws_sdk_sns, aws_sdk_sqs};

eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "sns", open: broker::open_address });

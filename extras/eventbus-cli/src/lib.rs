//! The command line of an event-driven program, with one line in `main`.
//!
//! ```
//! use eventbus::{Bus, Event, State, subscribe};
//! use serde::{Deserialize, Serialize};
//! use std::process::ExitCode;
//!
//! #[derive(Event, Clone, Debug, Serialize, Deserialize)]
//! #[event(topic = "order.placed", key = id)]
//! struct OrderPlaced { id: u64 }
//!
//! struct Mailer;
//!
//! #[subscribe]
//! async fn confirm(order: OrderPlaced, _mailer: State<Mailer>) {
//!     println!("order {} confirmed", order.id);
//! }
//!
//! #[tokio::main]
//! async fn main() -> ExitCode {
//!     # if std::env::args().count() < 2 { return ExitCode::SUCCESS; }
//!     eventbus_cli::main(Bus::builder().state(Mailer)).await
//! }
//! ```
//!
//! `main!(…)` in place of `main(…)` lets `--help` begin with the description of the program's package, and adds
//! `--version`.
//!
//! The program's own binary then has these verbs; `--help` of each tells its options:
//!
//! | verb | what it does |
//! |---|---|
//! | `run` | handles events until Ctrl-C or SIGTERM |
//! | `subscriptions` | who listens on what, where its handler stands, and how far its group has come |
//! | `topics` | the event types and declared topics of the program |
//! | `check` | the start-up checks, without starting; with `topology=check` in the address also what is missing at the server; with `--strict` a warning fails, too |
//! | `replay` | delivers events of the past again, to one group; asks before, since a handler's effects happen again |
//! | `publish` | publishes JSON or bytes, one event or one for each line |
//! | `tail` | follows what is published |
//! | `log` | asks the audit log; `log show` one event, `log causes` the tree of what caused what |
//! | `status` | whether the broker answers, and whether each group gets on; for a probe, see the exit codes |
//! | `dead-letters` | `list`, `show`, `edit`, `republish`, `purge` |
//! | `groups` | `list`, `seek`, `move` and `drop` the cursors of groups; a broker whose groups are queues declines `seek` and `move` |
//! | `completions` | a script that completes all this in a shell |
//!
//! The binary `eventbus` of this crate has those that need no handlers, for any address; its `topics` counts what is in
//! the log. What a program does while it runs is in its `tracing` log; where the program sets up no subscriber for
//! that, `run` writes it to standard error. `replay` ends within a second after a signal: what it has not handled is as it was.
//!
//! # Which broker
//! The one at `--url`, or in the environment variable `EVENTBUS_URL`, or `sqlite:eventbus.db`. The address's broker
//! is one that the program links (this crate's feature `sqlite`, which is on by default, links the embedded log); a broker that is made in code gets an address with
//! [`register_scheme!`](eventbus_core::register_scheme).
//!
//! # Publishing
//! What `publish` of a program takes is read once with the event type that the program has for it: a payload that its
//! handlers could not read is refused, with its place, and key and subject are those of the event where they are not
//! given. Without `--event-version` it is read as the newest version that the program has. A topic that is none of the
//! program's and close to one of them is refused as a slip. `--unchecked` publishes it all the same. `dead-letters edit`
//! looks at a mended payload likewise. The binary `eventbus`
//! knows no types: there, name the key with `--key`, and the version where it is not 1.
//!
//! # Output
//! Tables for people, in colour on a terminal (`--color`; `NO_COLOR` is respected). Characters that a terminal obeys
//! are written out, whatever an event holds; the log that `run` writes is no exception. With `--json` each verb writes JSON Lines instead: one object in each
//! line.
//!
//! On a terminal each row is one line: keys and ids are cut first, then names, and columns that say least go, so that
//! reasons and payloads have the room; `show` has everything. Times are told as how long ago they were, in `tail` as the
//! time of the day (UTC). Into a pipe, with `--json` and with `--absolute-times` they are written in full, and nothing is
//! cut. `COLUMNS` says how wide a terminal is taken to be.
//!
//! An event is written in [CloudEvents JSON](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md)
//! with two members more, `offset` (a text, since an offset may be larger than JSON's readers can count) and `topic`:
//!
//! ```json
//! {"offset":"12","topic":"order.placed","specversion":"1.0","id":"0198c5c2-…","source":"/shop","type":"order.placed","time":"2026-07-01T12:00:00Z","datacontenttype":"application/json","eventversion":1,"partitionkey":"1042","tenant":"acme","data":{"id":1042}}
//! ```
//!
//! A payload that is no JSON is `data_base64`. A header whose name CloudEvents allows (`tenant`) is an extension
//! attribute; the others are members of `headers`. JSON is what its media type says is JSON (`application/json`,
//! `text/json`, `application/vnd.shop+json; charset=utf-8`, or none), and it is written without the room between its
//! parts.
//!
//! `publish --cloudevents` takes events as they are written, and those of others, batches (JSON lists) included:
//!
//! ```text
//! eventbus --url sqlite:shop.db log 'order.>' --json | eventbus --url sqlite:copy.db publish --cloudevents
//! eventbus --url sqlite:shop.db tail --json | eventbus --url nats://… publish --cloudevents
//! ```
//!
//! Id, source, type, time, key, subject, headers, payload, version and causes stay as they are; the offset is the new
//! broker's. An event goes to the topic of its member `topic`, otherwise to the one that its type names, and with
//! `publish TOPIC --cloudevents` to that one. Whether an event that is there already is stored twice is the broker's
//! matter: the embedded log stores an event once (by source and id), the in-process broker each time. Numbers and truth
//! values of extension attributes become texts.
//!
//! What handlers print stands between what a verb writes, on streams that the program shares with it: no lock of theirs
//! is held, and where a reader is slow, verbs go on and lines of the log are left out. Once the reader of standard
//! output has left, as in `run | head -1`, a `println!` of a handler panics, as everywhere in Rust: that attempt fails,
//! and its event becomes a dead letter in the end. Let handlers log. And `replay --json` of a handler that
//! prints is no JSON Lines; let it log, or print to standard error.
//!
//! # Exit codes
//! | code | meaning |
//! |---|---|
//! | 0 | done; also where a list is empty, and where the reader of the output has closed it with nothing left to change |
//! | 1 | failed, `check` found mistakes (with `--strict` warnings, too), `status` a group that is stalled, or `publish`, `dead-letters republish` or `purge` ended halfway since nobody reads the output any more; standard error says why |
//! | 2 | wrong usage; also where `replay`, `dead-letters purge`, `republish` (unless it names one) or `groups seek`, `move` and `drop` would have to ask and nobody can answer, since it is no terminal: `--yes` does it then |
//! | 3 | the event, dead letter or group that was named is not there, or nothing is found on a topic that looks like a slip |
//! | 4 | `status`: whether the groups get on is not known, as the broker cannot be connected to, is lost, has not said it within 30 seconds, or cannot |
//! | 130, 143 | ended by Ctrl-C, by SIGTERM; `run` and `replay --until live` end so with 0 |
//!
//! A group that events wait for and no process handles is `unattended`, which is a success: its processes may be stopped on
//! purpose, and no restart of others helps it.
//!
//! A probe that calls `status` has no success where nothing is known, since a stall may hide behind it. One whose failure
//! restarts a program is to take 4 for a success, as no restart makes a broker answer:
//! `eventbus status || [ $? = 4 ]`.

#![forbid(unsafe_code)]

#[cfg(test)]
mod captures;
mod cli;
mod cloudevents;
mod command;
mod editor;
mod event;
mod failure;
mod json;
mod options;
mod output;
#[cfg(test)]
mod scenarios;
mod session;
#[cfg(test)]
mod shop;
mod signals;
mod table;
mod text;
mod verbs;
mod when;

// A broker that no code names is not linked.
#[cfg(feature = "aws")]
use eventbus_aws as _;
#[cfg(feature = "kafka")]
use eventbus_kafka as _;
#[cfg(feature = "nats")]
use eventbus_nats as _;
#[cfg(feature = "rabbitmq")]
use eventbus_rabbitmq as _;
#[cfg(feature = "redis")]
use eventbus_redis as _;
#[cfg(feature = "sqlite")]
use eventbus_sqlite as _;

/// Used by macros.
#[doc(hidden)]
pub mod __private {
    pub use crate::cli::main_of;
}

pub use clap_complete::Shell;
pub use cli::{completions, main, main_with, standalone};
pub use command::Command;
pub use options::Options;

//! The embedded durable log of eventbus: events, cursors, retries and dead letters in one SQLite file.
//!
//! ```no_run
//! # async fn connect() -> eventbus::Result<()> {
//! let bus = eventbus::Bus::connect("sqlite:shop.db").await?;
//! # Ok(())
//! # }
//! ```
//!
//! - **Stored means stored.** A publish is acknowledged once the transaction that holds it is committed and synced
//!   ([`Durability`]). One thread writes, and takes whatever waits into one transaction, so that a thousand publishers
//!   share a sync and a single one does not wait for others.
//! - **Progress survives.** A group's cursor never passes what is unfinished; attempts, retries that wait, and dead
//!   letters are rows. After a crash what was being handled is delivered again, and nothing else.
//! - **Several processes** may publish and subscribe on one file. A group is handled by one of them at a time, so that
//!   the order by key holds; another one takes over when that process ends, or stops answering for longer than its
//!   [lease](SqliteBrokerBuilder::lease).
//! - **An event is stored once.** Publishing an event again with the same source and id changes nothing; an
//!   event with the id of one on another topic is refused.
//! - **Readable.** `sqlite3 shop.db 'select time, topic, key, payload from events order by offset desc limit 20'`; the
//!   views `groups` and `dead_letters` tell the rest.
//!
//! SQLite has one writer at a time: a process that is stopped (`SIGSTOP`, a debugger) in the middle of a transaction
//! holds up the publishes of all others until it goes on or ends; after 30 s they fail.
//!
//! The file must be on a disk of this machine: SQLite's write-ahead log does not work over a network file system.
//!
//! Which file it is, is found out when it is opened: links, `..` and the working directory count then, and not later.
//! A log that is deleted, moved or replaced while it is open is noticed within a second. From then on publishes, acks
//! and reads are errors that say so, until it is back. The same holds for the files `-wal` and `-shm` beside it.

#![forbid(unsafe_code)]

mod audit;
mod broker;
mod cache;
mod calls;
mod claim;
mod config;
mod dead_letters;
#[cfg(test)]
mod faults;
mod file;
mod groups;
mod inherit;
mod lease;
mod let_go;
mod offsets;
mod publish;
mod reader;
mod replay;
mod retention;
mod schema;
mod tail;
mod verify;
mod wire;
mod writer;
mod writes;

pub use broker::SqliteBroker;
pub use config::{Durability, Retention, SqliteBrokerBuilder};

eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "sqlite", open: broker::open_address });

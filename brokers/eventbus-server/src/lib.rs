//! What the brokers of eventbus with a server share. Only brokers depend on it, and its items are no promise to
//! applications.
//!
//! - [`answers`]: publishes that are not answered, room for them, and who is told what.
//! - [`cloudevents`]: envelopes as CloudEvents attributes, and as the JSON of the structured mode.
//! - [`connection`]: whether a connection is there, since when it is not and why, and how it is tried again.
//! - [`handover`]: what the task of a subscription and its reader share.
//! - [`publishes`]: confirmations that are awaited apart from sending, and what is sent again.
//! - [`replays`]: what is read for a replay, and its reader, who is told where it broke off.
//! - [`subscriptions`]: those that a broker has open.
//! - [`tasks`]: those of a broker, which end with it.
//! - [`unanswered`]: how many publishes are not answered.
//! - [`url`]: addresses with their options, and errors that never show a password.

#![forbid(unsafe_code)]

pub mod answers;
pub mod cloudevents;
pub mod connection;
pub mod handover;
pub mod publishes;
pub mod replays;
pub mod subscriptions;
pub mod tasks;
pub mod unanswered;
pub mod url;

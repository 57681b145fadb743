//! What the brokers of eventbus with a server share. Only brokers depend on it, and its items are no promise to
//! applications.
//!
//! - [`cloudevents`]: envelopes as CloudEvents attributes, and as the JSON of the structured mode.
//! - [`url`]: addresses with their options, and errors that never show a password.

#![forbid(unsafe_code)]

pub mod cloudevents;
pub mod url;

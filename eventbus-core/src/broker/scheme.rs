//! Schemes: how an address finds its broker.

use super::{Broker, BrokerFuture};
use crate::error::BrokerError;
use std::sync::Arc;

/// A broker's entry for the addresses that begin with its scheme, as in `sqlite:shop.db`.
///
/// The crate of a broker leaves it in the registry with [`register_scheme!`](crate::register_scheme), so that a
/// program which links the crate can connect to such an address.
#[derive(Clone, Copy, Debug)]
pub struct Scheme {
    /// What stands before the colon.
    pub name: &'static str,
    /// Opens the broker at an address.
    pub open: fn(&str) -> OpenedBroker,
}

/// A broker that is being opened.
pub type OpenedBroker = BrokerFuture<Result<Arc<dyn Broker>, BrokerError>>;

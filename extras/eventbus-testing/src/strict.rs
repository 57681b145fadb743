//! The in-process broker, as strict as a log.

use eventbus_core::broker::{
    AuditLog, BrokerFuture, DeadLetters, Deliveries, Features, Groups, Replayable, SubscribeRequest,
};
use eventbus_core::memory::MemoryBroker;
use eventbus_core::{Broker, BrokerError, Envelope, PublishError};
use std::sync::Arc;

/// The largest payload that the embedded log takes where nothing else is set.
pub(crate) const MAX_PAYLOAD: usize = 8 << 20;

/// Refuses what a log could not keep or give back, and hands everything else on.
#[derive(Debug)]
pub(crate) struct Strict(pub(crate) MemoryBroker);

fn check(envelope: &Envelope) -> Result<(), PublishError> {
    envelope.read_back()?;
    match envelope.payload() {
        Ok(payload) => envelope.check_size(payload.len(), MAX_PAYLOAD),
        Err(error) => Err(PublishError::Encode { topic: envelope.topic().to_string(), cause: error.into() }),
    }
}

impl Broker for Strict {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn features(&self) -> Features {
        let mut features = self.0.features();
        features.max_payload = Some(MAX_PAYLOAD);
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        match check(&envelope) {
            Ok(()) => self.0.publish(envelope),
            Err(error) => BrokerFuture::ready(Err(error)),
        }
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        self.0.subscribe(request)
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.0.dead_letters()
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        self.0.replayable()
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        self.0.audit_log()
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        self.0.groups()
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        Broker::settled(&self.0)
    }

    fn backlog(&self, request: &SubscribeRequest) -> Option<u64> {
        self.0.backlog(request)
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        self.0.drain(subscriptions)
    }

    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.close()
    }
}

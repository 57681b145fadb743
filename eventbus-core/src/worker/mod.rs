//! Workers: what runs a subscription's handler.

mod attempt;
mod crew;
mod lanes;
mod pulse;
mod run;
mod settle;
mod source;
mod table;
mod threads;
mod vitals;
mod watchdog;

pub(crate) use lanes::{Lanes, Life, Tally, layered};
pub(crate) use watchdog::Watchdog;

use self::crew::Place;
use crate::handler::{BoxFuture, Handler, Static, StaticBatchHandler, StaticHandler};
use crate::middleware::{BatchLayers, HandlerLayer, HandlerService, service_of};
use std::fmt;
use std::sync::Arc;

/// What runs a handler: the whole loop from delivery to settlement, compiled for that handler, so that the calls
/// inside it are direct.
#[derive(Clone)]
pub struct Worker(Kind);

#[derive(Clone)]
enum Kind {
    Each { run: fn(Arc<Lanes>, Place) -> BoxFuture<()>, service: fn() -> HandlerService, blocking: bool },
    Batches { run: fn(Arc<Lanes>, Place) -> BoxFuture<()>, together: bool },
    Dynamic { run: Arc<dyn Fn(Arc<Lanes>, Place) -> BoxFuture<()> + Send + Sync>, service: HandlerService },
}

impl Worker {
    /// The worker of a function.
    #[must_use]
    pub const fn of<H: StaticHandler>() -> Self {
        Self(Kind::Each {
            run: |lanes, place| Box::pin(run::each(Arc::new(Static::<H>::new()), lanes, place)),
            service: || service_of(Arc::new(Static::<H>::new())),
            blocking: H::BLOCKING,
        })
    }

    /// The worker of a function that takes batches.
    #[must_use]
    pub const fn of_batch<H: StaticBatchHandler>() -> Self {
        Self(Kind::Batches {
            run: |lanes, place| Box::pin(run::batches(Arc::new(Static::<H>::new()), lanes, place)),
            together: H::TOGETHER,
        })
    }

    /// The worker of a handler that was made at run time.
    pub(crate) fn of_handler(handler: impl Handler) -> Self {
        let handler = Arc::new(handler);
        let service = service_of(Arc::clone(&handler));
        let run =
            move |lanes, place| Box::pin(run::each(Arc::clone(&handler), lanes, place)) as BoxFuture<()>;
        Self(Kind::Dynamic { run: Arc::new(run), service })
    }

    /// This worker with `layers` around its handler, the first one outermost.
    pub(crate) fn layered(&self, layers: &[Arc<dyn HandlerLayer>]) -> Layered {
        let mut layered = Layered {
            worker: self.clone(),
            batch_layers: None,
            blocking: matches!(self.0, Kind::Each { blocking: true, .. }),
            together: matches!(self.0, Kind::Batches { together: true, .. }),
        };
        let service = match &self.0 {
            _ if layers.is_empty() => return layered,
            Kind::Batches { .. } => {
                layered.batch_layers = Some(BatchLayers::new(layers));
                // A layer may fail one member and let the others pass.
                layered.together = false;
                return layered;
            }
            Kind::Each { service, .. } => service(),
            Kind::Dynamic { service, .. } => service.clone(),
        };
        let service = layers.iter().rev().fold(service, |inner, layer| layer.around(inner));
        layered.worker = Self::of_handler(service);
        layered
    }

    /// One loop of this worker, in its `place` among the workers of the same lanes.
    fn run(&self, lanes: Arc<Lanes>, place: Place) -> BoxFuture<()> {
        match &self.0 {
            Kind::Each { run, .. } | Kind::Batches { run, .. } => run(lanes, place),
            Kind::Dynamic { run, .. } => run(lanes, place),
        }
    }
}

/// A worker together with the layers that are not inside of it.
#[derive(Clone)]
pub(crate) struct Layered {
    worker: Worker,
    batch_layers: Option<BatchLayers>,
    /// The handler inside runs on a thread of its own.
    blocking: bool,
    /// The members of a batch succeed or fail together, so that it may have several events of one key.
    together: bool,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Worker")
    }
}

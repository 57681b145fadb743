//! The workers of one subscription: the sources of core but for those parts that hold no state of the crew. How a
//! handler is called and how its answer is settled are a few lines here, and the watchdog looks whenever it is its
//! turn, without a clock.

#[path = "../../eventbus-core/src/worker/crew.rs"]
mod crew;
#[path = "../../eventbus-core/src/worker/lanes.rs"]
mod lanes;
#[path = "../../eventbus-core/src/worker/pulse.rs"]
mod pulse;
#[path = "../../eventbus-core/src/worker/run.rs"]
mod run;
#[path = "../../eventbus-core/src/worker/source.rs"]
mod source;
#[path = "../../eventbus-core/src/worker/table.rs"]
mod table;
#[path = "../../eventbus-core/src/worker/vitals.rs"]
mod vitals;

pub(crate) use lanes::Lanes;
pub(crate) use watchdog::Watchdog;

use crate::delivery::Delivery;
use crate::handler::BoxFuture;
use crate::handling::Model;
use crate::outcome::Outcome;
use crew::Place;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct Layered {
    pub(crate) worker: Worker,
    pub(crate) batch_layers: Option<Layers>,
    pub(crate) blocking: bool,
    pub(crate) together: bool,
}

#[derive(Clone)]
pub(crate) struct Worker(pub(crate) Arc<Model>);

impl Worker {
    fn run(&self, lanes: Arc<Lanes>, place: Place) -> BoxFuture<()> {
        let (model, batches, alive) = (Arc::clone(&self.0), lanes.policy().batch > 1, self.0.ledger.hire());
        Box::pin(async move {
            let _alive = alive;
            if batches {
                run::batches(model, lanes, place).await;
            } else {
                run::each(model, lanes, place).await;
            }
        })
    }
}

/// No model has layers.
#[derive(Clone, Copy)]
pub(crate) enum Layers {}

impl Layers {
    async fn call<H>(&self, _handler: &H, _deliveries: &[Delivery]) -> Vec<Outcome> {
        match *self {}
    }
}

mod attempt {
    use super::lanes::Lanes;
    use super::pulse::Pulse;
    use crate::broker::FailureKind;
    use crate::delivery::Delivery;
    use crate::foreign::Panicked;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;

    #[derive(Clone)]
    pub(super) enum Broken {
        Panicked(Panicked),
        #[allow(dead_code, reason = "no program has ended before")]
        Crashed(u32),
        #[allow(dead_code, reason = "nothing is damaged")]
        Refused(FailureKind, &'static str),
    }

    impl From<Panicked> for Broken {
        fn from(panicked: Panicked) -> Self {
            Self::Panicked(panicked)
        }
    }

    pub(super) async fn attempt<F: Future>(
        call: impl FnOnce() -> F,
        delivery: &Delivery,
        lanes: &Arc<Lanes>,
        pulse: &Pulse,
    ) -> Result<F::Output, Broken> {
        let mut call = pin!(call());
        let answer = poll_fn(|context| {
            lanes.mind();
            let beating = pulse.beat();
            let polled = call.as_mut().poll(context);
            drop(beating);
            if polled.is_pending() {
                lanes.handler_waits(pulse);
            }
            polled
        })
        .await;
        if delivery.is_broken() { Err(Panicked.into()) } else { Ok(answer) }
    }
}

mod settle {
    use super::attempt::Broken;
    use super::lanes::{Lanes, Open, Settled};
    use crate::delivery::Delivery;
    use crate::event::Key;
    use crate::outcome::Outcome;
    use std::sync::Arc;
    use std::time::Duration;

    const DELAY: Duration = Duration::from_millis(100);

    pub(super) fn key(delivery: &Delivery) -> Option<Key> {
        delivery.envelope().lane_key().cloned()
    }

    pub(super) async fn ack(_lanes: &Lanes, held: &mut Option<Open>, delivery: &Delivery) -> Settled {
        held.take().expect("what is handled is held").acker.ack().await;
        Settled::Acked(key(delivery))
    }

    pub(super) async fn tell_again(_: &Arc<Lanes>, _: &mut Option<Open>, _: &Delivery) -> Settled {
        unreachable!("every dead letter can be stored")
    }

    pub(super) async fn settle(
        lanes: &Arc<Lanes>,
        held: &mut Option<Open>,
        delivery: &Delivery,
        result: Result<Outcome, Broken>,
    ) -> Settled {
        if let Ok(Outcome::Ack) = result {
            return ack(lanes, held, delivery).await;
        }
        let mut open = held.take().expect("what is handled is held");
        open.acker.next_attempt();
        lanes.park(open, DELAY);
        Settled::Parked
    }
}

mod threads {
    use super::watchdog::Watchdog;
    use crate::runtime::Handle;
    use crate::sync::AtomicBool;
    use std::sync::Arc;

    pub(super) enum Pace {
        Quick,
        Computes,
        Blocks,
    }

    /// There is always a thread.
    pub(super) struct Threads {
        pub(super) minded: AtomicBool,
    }

    impl Threads {
        pub(super) fn new(_runtime: Handle, _watchdog: Arc<Watchdog>) -> Self {
            Self { minded: AtomicBool::new(false) }
        }

        pub(super) fn several(&self) -> bool {
            true
        }

        pub(super) fn saw(&self, _pace: Pace) {}

        pub(super) fn blocks(&self) -> bool {
            false
        }
    }
}

mod watchdog {
    use super::pulse::Pulse;
    use crate::delivery::Scope;
    use shuttle::sync::{Condvar, Mutex};
    use shuttle::thread;
    use std::sync::{Arc, Weak};
    use std::time::Duration;

    pub(super) const PATIENCE: Duration = Duration::from_millis(1);

    pub(super) trait Minded: Send + Sync {
        fn look(self: Arc<Self>) -> Look;
    }

    pub(super) struct Look {
        pub(super) again: bool,
        pub(super) held_up: usize,
    }

    /// What the watchdog is to look at; none once it has ended.
    #[derive(Default)]
    pub(crate) struct Watchdog {
        minded: Mutex<(Vec<Weak<dyn Minded>>, bool)>,
        called: Condvar,
    }

    impl Watchdog {
        pub(super) fn watch(&self, scope: &Arc<Scope>) -> Arc<Pulse> {
            Arc::new(Pulse::new(Arc::clone(scope)))
        }

        pub(super) fn mind(&self, minded: &Arc<dyn Minded>) {
            self.minded.lock().expect("nobody panics with it").0.push(Arc::downgrade(minded));
            self.called.notify_all();
        }

        pub(crate) fn end(&self) {
            self.minded.lock().expect("nobody panics with it").1 = true;
            self.called.notify_all();
        }

        /// Looks, until it is to end.
        pub(crate) fn run(&self) {
            let mut looking: Vec<Weak<dyn Minded>> = Vec::new();
            loop {
                let mut minded = self.minded.lock().expect("nobody panics with it");
                while looking.is_empty() && minded.0.is_empty() && !minded.1 {
                    minded = self.called.wait(minded).expect("nobody panics with it");
                }
                if minded.1 {
                    return;
                }
                looking.append(&mut minded.0);
                drop(minded);
                looking.retain(|minded| minded.upgrade().is_some_and(|minded| minded.look().again));
                thread::yield_now();
            }
        }
    }
}

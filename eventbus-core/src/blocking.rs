//! Handlers that block: plain functions, each call on a thread where it may.
//!
//! The threads are our own and not those of the runtime, which waits for its threads when it ends: a handler that
//! never returns must not keep a program from ending. There are as many as calls under way, so no more than a
//! subscription's concurrency; one without work ends after a while.

use crate::causation;
use crate::delivery::Delivery;
use crate::foreign;
use crate::lock::{Lock, Rank};
use crate::log;
use crate::outcome::Outcome;
use crate::waiters::Waiters;
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::Span;

/// How long a thread waits for the next call before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Calls a handler on a thread, where all is around it that is around an `async` one: its span, its cause, and the
/// runtime, so that it may `Handle::current().block_on(…)`. Its panic is passed on.
///
/// # Cancel safety
/// Dropped before it is done, the handler goes on, and its answer is lost. The attempt waits until it has returned.
pub async fn blocking(
    delivery: &Delivery,
    handler: impl FnOnce(&Delivery) -> Outcome + Send + 'static,
) -> Outcome {
    let delivery = delivery.clone();
    let under_way = delivery.calls().map(Calls::begin);
    let mut cause = Some(Arc::clone(delivery.envelope()));
    let runtime = Handle::current();
    let span = log::span(Span::current);
    let dispatch = tracing::dispatcher::get_default(Clone::clone);
    let (answer, answered) = oneshot::channel();
    let call = move || {
        let handled = tracing::dispatcher::with_default(&dispatch, || {
            let _entered = (runtime.enter(), log::enter(&span));
            causation::during(&mut cause, || {
                foreign::call("a handler", || {
                    let outcome = handler(&delivery);
                    drop(delivery);
                    outcome
                })
            })
        });
        // Whoever waited may have been cancelled. The answer is there before the call counts as returned.
        foreign::tell("a waker", || drop(answer.send(handled)));
        drop(under_way);
    };
    if let Err(error) = run(Box::new(call)) {
        return Outcome::Retry(format!("no thread could be started for the handler: {error}").into());
    }
    match answered.await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panicked)) => resume_unwind(Box::new(panicked.into_text())),
        Err(_) => Outcome::Retry("the handler's thread has ended without an answer".into()),
    }
}

/// How many calls of one attempt are on threads: none or one, unless a layer calls the handler again and again.
pub(crate) struct Calls {
    running: AtomicUsize,
    /// When the latest one has returned.
    latest: Lock<Option<Instant>>,
    returned: Waiters,
}

impl Default for Calls {
    fn default() -> Self {
        Self { running: AtomicUsize::new(0), latest: Lock::new(Rank::LEAF, None), returned: Waiters::new() }
    }
}

impl Calls {
    /// A call that is under way until the answer is dropped.
    fn begin(self: &Arc<Self>) -> impl Send + use<> {
        struct UnderWay(Arc<Calls>);
        impl Drop for UnderWay {
            fn drop(&mut self) {
                *self.0.latest.lock() = Some(Instant::now());
                if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
                    self.0.returned.tell();
                }
            }
        }

        self.running.fetch_add(1, Ordering::SeqCst);
        UnderWay(Arc::clone(self))
    }

    pub(crate) fn are_running(&self) -> bool {
        self.running.load(Ordering::SeqCst) > 0
    }

    /// Whether there was a call under way at `time`, which may have returned since.
    pub(crate) fn were_running(&self, time: Instant) -> bool {
        self.are_running() || self.latest.lock().is_some_and(|latest| latest > time)
    }

    /// Resolves once no call is under way.
    pub(crate) async fn returned(&self) {
        self.returned.until(|| (!self.are_running()).then_some(())).await;
    }
}

type Call = Box<dyn FnOnce() + Send>;

/// The threads that wait for a call, by number; the one that waits for the shortest time is last.
static WAITING: Lock<Waiting> = Lock::new(Rank::LEAF, Waiting { last: 0, threads: Vec::new() });

struct Waiting {
    last: u64,
    threads: Vec<(u64, Sender<Call>)>,
}

/// Runs `call` on a thread that waits, or on a new one.
fn run(call: Call) -> io::Result<()> {
    let waiting = WAITING.lock().threads.pop();
    let call = match waiting {
        Some((_, thread)) => match thread.send(call) {
            Ok(()) => return Ok(()),
            Err(unsent) => unsent.0,
        },
        None => call,
    };
    let number = {
        let mut waiting = WAITING.lock();
        waiting.last += 1;
        waiting.last
    };
    let (sender, calls) = channel();
    let work = move || work(call, number, &sender, &calls);
    thread::Builder::new().name("eventbus-blocking".to_owned()).spawn(work).map(drop)
}

/// One thread: calls what it is given, until nobody has given it anything for a while.
fn work(mut call: Call, number: u64, sender: &Sender<Call>, calls: &Receiver<Call>) {
    loop {
        call();
        WAITING.lock().threads.push((number, sender.clone()));
        call = match calls.recv_timeout(IDLE) {
            Ok(call) => call,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let mut waiting = WAITING.lock();
                let place = waiting.threads.iter().position(|(other, _)| *other == number);
                if let Some(place) = place {
                    waiting.threads.remove(place);
                    return;
                }
                drop(waiting);
                // It has just been chosen for a call.
                match calls.recv() {
                    Ok(call) => call,
                    Err(_) => return,
                }
            }
        };
    }
}

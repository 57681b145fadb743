//! Signals: what asks a program to end, and what ends it where it does not.
//!
//! A handler that blocks its thread may hold up every thread of the runtime, its timers and its signals among them. So
//! signals are listened for on a thread of our own, with a runtime of its own, which also knows when the time is over.
//! What it finds wakes `Bus::run`; where that cannot run either, or where handlers would keep the runtime from ending,
//! the thread ends the process.

use super::{Bus, race};
use crate::error::{BrokerError, Error, Result};
use crate::foreign;
use crate::log;
use crate::printable::printable;
use crate::signals::Listener;
use crate::stderr;
use crate::worker::Lanes;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// How long after the drain time a shutdown is cut short, if it has not come to its end by itself.
const FORCE: Duration = Duration::from_millis(600);
/// How long after it was cut short the process is ended, if handlers still hold up its threads.
const EXIT: Duration = Duration::from_millis(150);
/// How long the last lines of a program are waited for.
const LINES: Duration = Duration::from_millis(100);
/// How often it is looked whether they do.
const LOOK: Duration = Duration::from_millis(10);

/// How many buses run in this process.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// A thread waits for a signal after the end of a bus.
static GOES_ON: AtomicBool = AtomicBool::new(false);

/// Resolves once the program is asked to end: at Ctrl-C, and at SIGTERM where there is one.
///
/// For what is to end before its bus does, such as a server whose requests publish. [`Bus::run`] listens by itself.
///
/// ```no_run
/// # async fn serve(stop: impl Future<Output = ()>) {}
/// # async fn run(bus: eventbus::Bus) -> eventbus::Result<()> {
/// // For axum: `axum::serve(listener, app).with_graceful_shutdown(shutdown_signal())`
/// bus.run_until(serve(eventbus::bus::shutdown_signal())).await
/// # }
/// ```
///
/// It listens from when it is first polled, on the tokio runtime where that is. The next signal after it ends the process
/// at once, as it would without a listener, so that a request which never ends holds up nothing for good. Where the system
/// does not tell of signals, an error line says so, and this never resolves.
///
/// # Cancel safety
/// Dropped before it resolves, it misses the signal, and the process does not end by it.
pub async fn shutdown_signal() {
    let listener = foreign::call("tokio", Listener::new);
    let problem = match listener {
        Ok(Ok(mut listener)) => {
            listener.next().await;
            log::info!(target: "eventbus", "shutting down; another signal ends the process");
            tokio::spawn(async move { Ear::go_on(&mut listener).await });
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(panicked) => panicked.to_string(),
    };
    log::error!(
        target: "eventbus", error = %printable(problem),
        "cannot listen for signals; end the program by other means"
    );
    std::future::pending().await
}

/// The signals of one `Bus::run`; dropped, it has returned.
pub(super) struct Signals {
    told: watch::Receiver<Told>,
    /// Closed when this is dropped.
    _runs: watch::Sender<()>,
}

/// What the thread has found so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    /// A signal came: the bus is to shut down.
    First,
    /// Another one came, or the time is over.
    Forced,
}

impl Signals {
    /// Listens, from when this resolves until it is dropped.
    pub(super) async fn listen(bus: &Bus) -> Result<Self> {
        let (tell, told) = watch::channel(Told::Nothing);
        let (runs, over) = watch::channel(());
        let (ready, listens) = oneshot::channel();
        let shared = Arc::downgrade(&bus.shared);
        let drain = bus.shared.drain;
        let dispatch = tracing::dispatcher::get_default(Clone::clone);
        let listen = move || {
            tracing::dispatcher::with_default(&dispatch, || {
                listen(Ear { tell, over, shared, drain }, ready);
            });
        };
        std::thread::Builder::new().name("eventbus-signals".to_owned()).spawn(listen).map_err(failed)?;
        match listens.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(error)),
            Err(_) => return Err(failed(io::Error::other("the thread that listens has ended"))),
        }
        RUNNING.fetch_add(1, Ordering::SeqCst);
        Ok(Self { told, _runs: runs })
    }

    /// Resolves with the first signal.
    pub(super) async fn first(&mut self) {
        self.until(Told::First).await;
    }

    /// Resolves with the second, or when the time of the shutdown is over.
    pub(super) async fn forced(&mut self) {
        self.until(Told::Forced).await;
    }

    async fn until(&mut self, wanted: Told) {
        if self.told.wait_for(|told| *told >= wanted).await.is_err() {
            // The thread has ended, and nothing comes any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

fn failed(error: io::Error) -> Error {
    BrokerError::new("cannot listen for signals; end the bus with `run_until` or `shutdown`")
        .with_cause(error)
        .into()
}

/// What the thread knows of the bus.
struct Ear {
    tell: watch::Sender<Told>,
    /// Resolves when `Bus::run` has returned.
    over: watch::Receiver<()>,
    shared: Weak<super::Shared>,
    drain: Duration,
}

/// The thread.
fn listen(ear: Ear, ready: oneshot::Sender<io::Result<()>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async {
        match Listener::new() {
            Ok(mut listener) => {
                // Whoever is told has it, also where to wake it panics.
                let mut gone = false;
                foreign::tell("a waker", || gone = ready.send(Ok(())).is_err());
                if !gone {
                    ear.listen(&mut listener).await;
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
}

/// What the thread waits for.
#[derive(PartialEq, Eq)]
enum Came {
    Signal,
    /// The time of the shutdown is over.
    Time,
    /// `Bus::run` has returned.
    Over,
}

impl Ear {
    async fn listen(mut self, listener: &mut Listener) {
        if self.wait(listener, None).await == Came::Over {
            return Self::go_on(listener).await;
        }
        // The bus lets go of them when it ends, and this is to know what they do then.
        let lanes = self.lanes();
        let time = Instant::now().checked_add(self.drain.saturating_add(FORCE));
        self.say(Told::First);
        say(|| log::info!(target: "eventbus", "shutting down; another signal cuts it short"));
        if self.wait(listener, time).await != Came::Over {
            self.say(Told::Forced);
            // With a thread to run on, it returns at once.
            let _ = tokio::time::timeout(EXIT, self.over()).await;
        }
        if self.over.has_changed().is_ok() {
            exit(&lanes);
        }
        let returned = Instant::now();
        while lanes.iter().any(|lanes| lanes.computing() > 0) {
            if returned.elapsed() >= EXIT {
                exit(&lanes);
            }
            tokio::time::sleep(LOOK).await;
        }
        drop(lanes);
        Self::go_on(listener).await;
    }

    /// The bus has ended, and the program comes to its end by itself. Where it does not, a signal has to end it: since
    /// there is a listener, it has no effect of its own any more.
    async fn go_on(listener: &mut Listener) {
        // One is enough, however many buses have run.
        if GOES_ON.swap(true, Ordering::SeqCst) {
            return;
        }
        loop {
            listener.next().await;
            if RUNNING.load(Ordering::SeqCst) == 0 {
                end(say(|| {
                    log::warn!(target: "eventbus", "a signal while or after the program ends: the process ends now");
                }));
            }
        }
    }

    async fn wait(&mut self, listener: &mut Listener, time: Option<Instant>) -> Came {
        let signal = async {
            listener.next().await;
            Came::Signal
        };
        let time = async {
            match time {
                Some(time) => tokio::time::sleep_until(time.into()).await,
                None => std::future::pending().await,
            }
            Came::Time
        };
        let over = async {
            self.over().await;
            Came::Over
        };
        // A signal that comes with the end of the bus is left for whoever listens after it.
        race(over, race(signal, time)).await
    }

    /// Wakes `Bus::run`, which alone waits for this, in whatever runtime or executor.
    fn say(&self, told: Told) {
        foreign::tell("a waker", || _ = self.tell.send_replace(told));
    }

    /// Resolves once `Bus::run` has returned.
    async fn over(&mut self) {
        while self.over.changed().await.is_ok() {}
    }

    fn lanes(&self) -> Vec<Arc<Lanes>> {
        let Some(shared) = self.shared.upgrade() else { return Vec::new() };
        let stage = shared.stage.lock();
        [stage.lanes.as_slice(), &stage.replays].concat()
    }
}

/// Ends the process: something holds up the threads on which the program would come to its end.
fn exit(lanes: &[Arc<Lanes>]) -> ! {
    let names: Vec<_> = lanes
        .iter()
        .filter(|lanes| lanes.computing() > 0)
        .map(|lanes| {
            let subscription = lanes.subscription();
            format!("`{}` ({}), {} at work", subscription.name, subscription.location(), lanes.handled())
        })
        .collect();
    let who = if names.is_empty() { "the thread of `Bus::run`".to_owned() } else { names.join("; ") };
    let line = format!(
        "the process ends now, and leaves unsettled what it handles, since this does not come to its end: {who} \
         (a handler that blocks its thread belongs behind the option `blocking`)"
    );
    end(say(move || {
        log::error!(target: "eventbus", "{}", printable(&line));
        // The error that `Bus::run` returns may never be shown.
        if !stderr::shows_log() {
            eprintln!("eventbus: {}", printable(&line));
        }
    }))
}

/// Writes lines on a thread of their own: whatever holds up the program may hold up its log and its terminal as well,
/// such as a handler that waits to print. The answer ends when they are written.
fn say(lines: impl FnOnce() + Send + 'static) -> mpsc::Receiver<()> {
    let (written, writes) = mpsc::channel();
    let dispatch = tracing::dispatcher::get_default(Clone::clone);
    let write = move || {
        let _written = written;
        tracing::dispatcher::with_default(&dispatch, || foreign::log(lines));
        stderr::wait();
    };
    // Without a thread there is no line.
    let _ = std::thread::Builder::new().name("eventbus-log".to_owned()).spawn(write);
    writes
}

/// Ends the process, once its last lines are written or that takes long.
fn end(writes: mpsc::Receiver<()>) -> ! {
    let _ = writes.recv_timeout(LINES);
    // What a program does at its exit may be held up as well.
    let kill = || {
        std::thread::sleep(EXIT);
        std::process::abort();
    };
    let _ = std::thread::Builder::new().name("eventbus-exit".to_owned()).spawn(kill);
    std::process::exit(1)
}

//! What the workers of core pass along, as small as a model needs it: by the names and shapes that they import.

pub(crate) mod broker {
    use super::delivery::Envelope;
    use super::error::BrokerError;
    use crate::handling::Ledger;
    use jiff::Timestamp;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};
    use std::time::Duration;

    pub(crate) type BrokerFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

    pub(crate) trait Deliveries: Send {
        fn poll_receive(
            &mut self,
            context: &mut Context<'_>,
            into: &mut Vec<Received>,
            limit: usize,
        ) -> Poll<Result<(), BrokerError>>;

        fn close(self: Box<Self>) -> usize;
    }

    pub(crate) struct Received {
        pub(crate) receipt: Receipt,
        pub(crate) replayed: bool,
        pub(crate) parked: Option<Parked>,
        pub(crate) alone: bool,
        pub(crate) settler: Arc<Ledger>,
    }

    #[derive(Clone)]
    pub(crate) struct Receipt {
        pub(crate) envelope: Arc<Envelope>,
        pub(crate) attempt: u32,
    }

    /// Whether a handler may be called.
    pub(crate) enum Begin {
        #[allow(dead_code, reason = "no program has ended before, so nothing is counted")]
        Now {
            crashes: u32,
        },
        Later(Duration),
        #[allow(dead_code, reason = "nothing is damaged")]
        Never {
            kind: FailureKind,
            reason: &'static str,
        },
    }

    /// Nothing is damaged.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum FailureKind {}

    /// Every dead letter can be stored.
    pub(crate) enum DeadLetter {}

    /// No program has ended before, so nothing was parked by one.
    #[derive(Clone, Copy)]
    pub(crate) enum Parked {}

    impl Parked {
        pub(crate) fn delay(&self, _now: Timestamp) -> Duration {
            match *self {}
        }
    }

    pub(crate) struct Acker {
        ledger: Arc<Ledger>,
        receipt: Receipt,
        settled: bool,
    }

    impl Acker {
        pub(crate) fn new(ledger: Arc<Ledger>, receipt: Receipt) -> Self {
            Self { ledger, receipt, settled: false }
        }

        pub(crate) fn receipt(&self) -> &Receipt {
            &self.receipt
        }

        pub(crate) async fn ack(mut self) {
            self.ledger.takes_answer(&self.receipt.envelope).await;
            self.settled = true;
            self.ledger.acked(&self.receipt.envelope);
        }

        /// Nobody counts.
        pub(crate) fn count(&mut self, _attempted: bool) {}

        pub(crate) fn next_attempt(&mut self) {
            self.receipt.attempt += 1;
        }

        /// Now and then others go first.
        pub(crate) fn begin(&self) -> Option<BrokerFuture<Begin>> {
            self.ledger
                .sends_away()
                .then(|| Box::pin(async { Begin::Later(Duration::from_millis(100)) }) as _)
        }

        pub(crate) fn holds(&self) -> bool {
            self.ledger.holds(&self.receipt.envelope)
        }

        pub(crate) fn forget(mut self) -> Receipt {
            self.settled = true;
            self.receipt.clone()
        }
    }

    impl Drop for Acker {
        fn drop(&mut self) {
            if !self.settled {
                self.ledger.released(&self.receipt.envelope);
            }
        }
    }
}

pub(crate) mod delivery {
    use super::broker::Receipt;
    use super::subscription::Subscription;
    use crate::event::Key;
    use crate::handling::Event;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    pub(crate) struct Scope {
        pub(crate) subscription: Subscription,
    }

    pub(crate) struct Envelope {
        /// Its place in the order of publishing.
        pub(crate) number: usize,
        pub(crate) event: Event,
    }

    impl Envelope {
        pub(crate) fn lane_key(&self) -> Option<&Key> {
            self.event.key.as_ref()
        }
    }

    pub(crate) struct Delivery {
        receipt: Receipt,
        broken: AtomicBool,
    }

    impl Delivery {
        pub(crate) fn new(receipt: &Receipt, _replayed: bool, _scope: Arc<Scope>) -> Self {
            Self { receipt: receipt.clone(), broken: AtomicBool::new(false) }
        }

        pub(crate) fn with_calls(self) -> Self {
            self
        }

        pub(crate) fn envelope(&self) -> &Envelope {
            &self.receipt.envelope
        }

        pub(crate) fn attempt(&self) -> u32 {
            self.receipt.attempt
        }

        /// The attempt is broken, as by a panic.
        pub(crate) fn be_broken(&self) {
            self.broken.store(true, Ordering::Relaxed);
        }

        pub(crate) fn is_broken(&self) -> bool {
            self.broken.load(Ordering::Relaxed)
        }
    }
}

pub(crate) mod error {
    pub(crate) type BrokerError = &'static str;

    pub(crate) struct StartupError;

    impl StartupError {
        pub(crate) fn new(_problems: Vec<String>) -> Self {
            Self
        }
    }
}

pub(crate) mod event {
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    pub(crate) struct Key(pub(crate) char);
}

/// Code of others. What panics in a model is the model, so it is not caught.
pub(crate) mod foreign {
    use std::fmt;
    use std::ops::{Deref, DerefMut};
    use std::task::Waker;

    #[derive(Default)]
    pub(crate) struct Wakers(Vec<Waker>);

    impl Wakers {
        pub(crate) fn wake(self) {
            self.0.into_iter().for_each(Waker::wake);
        }
    }

    impl Extend<Waker> for Wakers {
        fn extend<I: IntoIterator<Item = Waker>>(&mut self, wakers: I) {
            self.0.extend(wakers);
        }
    }

    /// A panic that a model only pretends.
    #[derive(Clone, Debug)]
    pub(crate) struct Panicked;

    impl Panicked {
        pub(crate) fn into_text(self) -> String {
            self.to_string()
        }
    }

    impl fmt::Display for Panicked {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("panicked")
        }
    }

    pub(crate) fn call<T>(_called: &str, code: impl FnOnce() -> T) -> Result<T, Panicked> {
        Ok(code())
    }

    pub(crate) fn tell(_called: &str, code: impl FnOnce()) {
        code();
    }

    pub(crate) async fn run<F: Future>(
        _called: &'static str,
        make: impl FnOnce() -> F,
    ) -> Result<F::Output, Panicked> {
        Ok(make().await)
    }

    pub(crate) struct Kept<T>(T);

    impl<T> Kept<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(value)
        }

        pub(crate) fn into_inner(self) -> T {
            self.0
        }
    }

    impl<T> Deref for Kept<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    impl<T> DerefMut for Kept<T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.0
        }
    }
}

pub(crate) mod handler {
    use super::delivery::Delivery;
    use super::outcome::Outcome;
    use std::pin::Pin;

    pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

    pub(crate) trait Handler: Send + Sync + 'static {
        fn call<'a>(&'a self, delivery: &'a Delivery) -> impl Future<Output = Outcome> + Send + 'a;
    }

    pub(crate) trait BatchHandler: Send + Sync + 'static {
        fn admit(&self, delivery: &Delivery) -> Result<(), Outcome>;

        fn call<'a>(&'a self, deliveries: &'a [Delivery]) -> impl Future<Output = Vec<Outcome>> + Send + 'a;
    }
}

/// Lines of the log, to which nobody listens.
pub(crate) mod log {
    macro_rules! error_line {
        ($($line:tt)*) => { ::tracing::error!($($line)*) };
    }

    macro_rules! warn_line {
        ($($line:tt)*) => { ::tracing::warn!($($line)*) };
    }

    pub(crate) use {error_line as error, warn_line as warn};
}

pub(crate) mod outcome {
    pub(crate) enum Outcome {
        Ack,
        Retry(Reason),
    }

    pub(crate) struct Reason;

    impl From<String> for Reason {
        fn from(_text: String) -> Self {
            Self
        }
    }
}

pub(crate) mod subscription {
    use std::time::Duration;

    #[derive(Clone, Copy)]
    pub(crate) struct Policy {
        pub(crate) retries: u32,
        pub(crate) concurrency: usize,
        pub(crate) in_flight: usize,
        pub(crate) held_back: usize,
        pub(crate) batch: usize,
        pub(crate) linger: Duration,
    }

    pub(crate) struct Subscription {
        pub(crate) name: &'static str,
        pub(crate) group: &'static str,
    }

    impl Subscription {
        pub(crate) fn location(&self) -> &'static str {
            file!()
        }
    }
}

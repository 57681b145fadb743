//! The parts of tokio by which workers run and wait, of shuttle's tasks. Time is what a model wants it to be: a timer
//! may ring at any moment, and the clock shows then what it waited for.

pub(crate) mod runtime {
    use shuttle::future::{JoinHandle, spawn};

    #[derive(Clone, Copy)]
    pub(crate) struct Handle;

    impl Handle {
        pub(crate) fn current() -> Self {
            Self
        }

        pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
        where
            F: Future<Output: Send + 'static> + Send + 'static,
        {
            spawn(future)
        }
    }
}

pub(crate) mod notify {
    use shuttle::sync::Mutex;
    use std::mem::take;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    #[derive(Default)]
    pub(crate) struct Notify(Mutex<(u64, Vec<Waker>)>);

    impl Notify {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn notified(&self) -> Notified<'_> {
            Notified { notify: self, before: self.0.lock().expect("nobody panics with it").0 }
        }

        pub(crate) fn notify_waiters(&self) {
            let wakers = {
                let mut state = self.0.lock().expect("nobody panics with it");
                state.0 += 1;
                take(&mut state.1)
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Hears of what is told after it was made.
    pub(crate) struct Notified<'a> {
        notify: &'a Notify,
        before: u64,
    }

    impl Notified<'_> {
        pub(crate) fn enable(self: Pin<&mut Self>) {}
    }

    impl Future for Notified<'_> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            let mut state = self.notify.0.lock().expect("nobody panics with it");
            if state.0 != self.before {
                return Poll::Ready(());
            }
            state.1.push(context.waker().clone());
            Poll::Pending
        }
    }
}

pub(crate) mod task {
    pub(crate) use shuttle::future::{AbortHandle, yield_now};

    pub(crate) mod coop {
        use shuttle::rand::{Rng, thread_rng};
        use std::task::{Context, Poll};

        pub(crate) struct Budget;

        impl Budget {
            pub(crate) fn made_progress(&self) {}
        }

        /// Now and then the budget of a poll is spent.
        pub(crate) fn poll_proceed(context: &Context<'_>) -> Poll<Budget> {
            if thread_rng().gen_ratio(1, 8) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Budget)
        }
    }
}

pub(crate) mod time {
    use shuttle::future::spawn;
    use shuttle::sync::Mutex;
    use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::ops::Add;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    shuttle::lazy_static! {
        static ref CLOCK: AtomicU64 = AtomicU64::new(0);
    }

    /// So many nanoseconds after a model began.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Instant(u64);

    impl Instant {
        pub(crate) fn now() -> Self {
            Self(CLOCK.load(SeqCst))
        }

        pub(crate) fn checked_add(self, duration: Duration) -> Option<Self> {
            self.0.checked_add(u64::try_from(duration.as_nanos()).ok()?).map(Self)
        }

        pub(crate) fn saturating_duration_since(self, earlier: Self) -> Duration {
            Duration::from_nanos(self.0.saturating_sub(earlier.0))
        }
    }

    impl Add<Duration> for Instant {
        type Output = Self;

        fn add(self, duration: Duration) -> Self {
            self.checked_add(duration).expect("no model takes so long")
        }
    }

    pub(crate) fn sleep(duration: Duration) -> Sleep {
        sleep_until(Instant::now() + duration)
    }

    pub(crate) fn sleep_until(deadline: Instant) -> Sleep {
        Sleep { deadline, sleeper: None }
    }

    pub(crate) struct Sleep {
        deadline: Instant,
        sleeper: Option<Arc<Mutex<Option<Waker>>>>,
    }

    impl Sleep {
        pub(crate) fn deadline(&self) -> Instant {
            self.deadline
        }
    }

    impl Future for Sleep {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            let deadline = self.deadline;
            let sleeper = self.sleeper.get_or_insert_with(|| {
                let sleeper: Arc<Mutex<Option<Waker>>> = Arc::default();
                let rings = Arc::clone(&sleeper);
                spawn(async move {
                    CLOCK.fetch_max(deadline.0, SeqCst);
                    let waker = rings.lock().expect("nobody panics with it").take();
                    waker.into_iter().for_each(Waker::wake);
                });
                sleeper
            });
            *sleeper.lock().expect("nobody panics with it") = Some(context.waker().clone());
            if Instant::now() >= deadline { Poll::Ready(()) } else { Poll::Pending }
        }
    }
}

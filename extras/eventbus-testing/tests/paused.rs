//! A paused clock jumps over a wait for I/O or a thread, and it is said that the clock is to blame, not the handler.

use eventbus::broker::{DeadLetter, FailureKind};
use eventbus::{Bus, Error};
use eventbus_testing::TestBus;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

const JUMPED: &str = "the clock is paused and jumped over this time";

/// What only a thread answers, as a socket would: no timer, and no task of the runtime.
#[derive(Clone, Default)]
struct Elsewhere(Arc<Mutex<Vec<oneshot::Sender<()>>>>);

impl Elsewhere {
    fn ask(&self) -> oneshot::Receiver<()> {
        let (answer, answered) = oneshot::channel();
        self.0.lock().unwrap().push(answer);
        answered
    }
}

/// The dead letter of a handler that awaits what `wait` makes, with a timeout of its own.
async fn given_up<F>(timeout: Duration, wait: impl Fn() -> F + Send + Sync + 'static) -> Arc<DeadLetter>
where
    F: Future<Output = ()> + Send + 'static,
{
    let bus = TestBus::start(Bus::builder().without_subscriptions()).await;
    let handler = bus.bus().on_topic("order.placed", move |_| wait());
    handler.group("asks").timeout(timeout).retries(0).await.unwrap();
    bus.publish_to("order.placed", &1).await;
    let [letter] = &bus.dead_letters()[..] else { panic!("{:?}", bus.dead_letters()) };
    assert_eq!(letter.kind, FailureKind::TimedOut);
    Arc::clone(letter)
}

#[tokio::test(start_paused = true)]
async fn a_timeout_that_a_paused_clock_jumped_to_says_so() {
    let elsewhere = Elsewhere::default();
    let letter = given_up(Duration::from_secs(30), move || {
        let answered = elsewhere.ask();
        async { drop(answered.await) }
    })
    .await;
    let reason = &letter.reason;
    assert!(reason.starts_with("the handler did not finish within its timeout of 30s"), "{reason}");
    assert!(reason.contains(JUMPED) && reason.contains("without `start_paused`"), "{reason}");
}

#[tokio::test]
async fn a_timeout_on_real_time_blames_no_clock() {
    let letter = given_up(Duration::from_millis(10), std::future::pending).await;
    assert_eq!(letter.reason, "the handler did not finish within its timeout of 10ms");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_a_paused_clock_cut_short_says_so() {
    let elsewhere = Elsewhere::default();
    let bus = Bus::builder().without_subscriptions().connect("memory:").await.unwrap();
    let asks = elsewhere.clone();
    bus.on_topic("order.placed", move |_| {
        let answered = asks.ask();
        async { drop(answered.await) }
    })
    .timeout(Duration::from_secs(3_600))
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish_to("order.placed", &1).await.unwrap();
    let error = bus.shutdown().await.unwrap_err();
    assert!(matches!(error, Error::Drain { unfinished: 1, .. }), "{error}");
    assert!(error.to_string().contains(JUMPED), "{error}");
}

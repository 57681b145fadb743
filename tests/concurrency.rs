//! One subscription handles several deliveries at once, up to its `concurrency`.

use eventbus::{Bus, Delivery};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Long enough for any machine; a test that waits so long has failed.
const TOO_LONG: Duration = Duration::from_secs(20);

/// Counts the handlers that are inside, and lets them wait for each other on their threads.
#[derive(Default)]
struct Meeting {
    inside: Mutex<usize>,
    came: Condvar,
}

impl Meeting {
    fn of(&self, handlers: usize) -> bool {
        let mut inside = self.inside.lock().unwrap();
        *inside += 1;
        self.came.notify_all();
        let waited = self.came.wait_timeout_while(inside, TOO_LONG, |inside| *inside < handlers);
        !waited.unwrap().1.timed_out()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_block_their_thread_run_beside_each_other() {
    let bus = Bus::connect("memory:").await.unwrap();
    let meeting = Arc::new(Meeting::default());
    let met = Arc::new(Mutex::new(Vec::new()));
    let (inside, answers) = (Arc::clone(&meeting), Arc::clone(&met));
    bus.on_topic("order.placed", move |_: Delivery| {
        let (inside, answers) = (Arc::clone(&inside), Arc::clone(&answers));
        async move {
            let answer = inside.of(2);
            answers.lock().unwrap().push(answer);
        }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..2 {
        bus.publish_to("order.placed", &number).key(number).await.unwrap();
    }
    bus.shutdown().await.unwrap();
    assert_eq!(*met.lock().unwrap(), [true, true]);
}

#[tokio::test]
async fn handlers_that_wait_run_beside_each_other_up_to_the_concurrency() {
    let bus = Bus::connect("memory:").await.unwrap();
    let barrier = Arc::new(tokio::sync::Barrier::new(8));
    bus.on_topic("order.placed", move |_: Delivery| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
        }
    })
    .concurrency(8)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..16 {
        bus.publish_to("order.placed", &number).await.unwrap();
    }
    tokio::time::timeout(TOO_LONG, bus.shutdown()).await.unwrap().unwrap();
}

//! Events with destructors that use the log themselves.

mod support;

use eventbus::{Bus, Event};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, mpsc};
use support::{Log, PATIENCE, Ping, Seen, pings, settled, until};
use tokio::runtime::Handle;

/// An event that publishes another one when it is dropped, and waits for that.
#[derive(Event, Clone, Debug, Default, Serialize, Deserialize)]
#[event(topic = "file.closed")]
struct FileClosed {
    #[serde(skip)]
    #[allow(dead_code, reason = "it is dropped")]
    last: Option<Arc<Publishes>>,
}

#[derive(Debug)]
struct Publishes {
    bus: Bus,
    runtime: Handle,
    done: Mutex<mpsc::Sender<bool>>,
}

impl Drop for Publishes {
    fn drop(&mut self) {
        let (bus, (answer, answered)) = (self.bus.clone(), mpsc::channel());
        self.runtime.spawn(async move { answer.send(bus.publish(&Ping { number: 7 }).await.is_ok()) });
        let _ = self.done.lock().unwrap().send(answered.recv().unwrap_or(false));
    }
}

async fn publish(bus: &Bus) -> mpsc::Receiver<bool> {
    let (done, is_done) = mpsc::channel();
    let publishes = Publishes { bus: bus.clone(), runtime: Handle::current(), done: Mutex::new(done) };
    bus.publish(FileClosed { last: Some(Arc::new(publishes)) }).await.unwrap();
    is_done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destructor_that_waits_for_its_own_log_does_not_stop_it() {
    let log = Log::new();
    let bus = log.bus().await;
    // With nobody who listens, the log is the last to have the event.
    let alone = publish(&bus).await;
    assert_eq!(alone.recv_timeout(PATIENCE), Ok(true));
    // With others, what it remembers of the latest events is.
    let seen: Seen<u64> = pings(&bus, "pings").await;
    bus.start().unwrap();
    let remembered = publish(&bus).await;
    support::publish_pings(&bus, 0..10_000).await;
    assert_eq!(remembered.recv_timeout(PATIENCE), Ok(true));
    until("all are handled", async || seen.len() == 10_001).await;
    settled(&bus).await;
    bus.shutdown().await.unwrap();
}

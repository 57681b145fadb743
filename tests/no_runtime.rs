//! What needs a tokio runtime says so where there is none, and names what to write.

use eventbus::broker::AuditQuery;
use eventbus::{Bus, Error, Event, subscribe};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "door.rang")]
struct Rang;

#[subscribe]
async fn open(_rang: Rang) {}

/// Awaits without a runtime.
fn wait<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn names_the_remedy<T>(call: &str, answer: Result<T, Error>) {
    let Err(error) = answer else { panic!("{call} answers without a runtime") };
    assert!(error.to_string().contains("#[tokio::main]"), "{call}: {error}");
}

fn addresses(folder: &tempfile::TempDir) -> [String; 2] {
    ["memory:".to_owned(), format!("sqlite:{}", folder.path().join("log.db").display())]
}

#[test]
fn a_bus_is_not_connected_outside_of_a_runtime() {
    let folder = tempfile::tempdir().unwrap();
    for url in addresses(&folder) {
        names_the_remedy("connect", wait(Bus::connect(&url)));
    }
    let url = &addresses(&folder)[1];
    names_the_remedy("connect", wait(Bus::builder().without_subscriptions().connect(url)));
    names_the_remedy("check", wait(Bus::builder().check(url)));
    let opened = wait(eventbus::sqlite::SqliteBroker::open(folder.path().join("other.db")));
    names_the_remedy("open", opened.map_err(Error::from));
}

#[test]
fn a_connected_bus_is_asked_and_published_on_anywhere_and_runs_and_ends_on_a_runtime_only() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for url in addresses(&folder) {
        let bus = runtime.block_on(Bus::connect(&url)).unwrap();
        wait(async { bus.on(async |_: Arc<Rang>| {}).group("too").await.map(drop) }).unwrap();
        bus.start().unwrap();
        wait(async { bus.publish(Rang).await }).unwrap();
        wait(bus.settled()).unwrap();
        wait(bus.dead_letters().unwrap().list()).unwrap();
        if let (Ok(groups), Ok(log)) = (bus.groups(), bus.audit_log()) {
            assert_eq!(wait(groups.list()).unwrap().len(), 2);
            assert_eq!(wait(log.query(AuditQuery::default())).unwrap().len(), 1);
        }
        names_the_remedy("run", wait(bus.run()));
        names_the_remedy("run_until", wait(bus.run_until(async {})));
        names_the_remedy("replay", wait(async { bus.replay(open::SUBSCRIBER).await }));
        names_the_remedy("shutdown", wait(bus.shutdown()));
        runtime.block_on(bus.shutdown()).unwrap();
    }
}

#[test]
fn a_runtime_without_timers_is_refused_before_anything_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    let names_the_remedy = |call: &str, answer: Result<(), Error>| {
        let Err(error) = answer else { panic!("{call} answers without timers") };
        assert!(matches!(error, Error::NoTimers { .. }), "{call}: {error}");
        assert!(error.to_string().contains("`.enable_all()`"), "{call}: {error}");
    };
    let without = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let whole = tokio::runtime::Runtime::new().unwrap();
    for url in addresses(&folder) {
        names_the_remedy("connect", without.block_on(Bus::connect(&url)).map(drop));
        let bus = whole.block_on(Bus::connect(&url)).unwrap();
        names_the_remedy("run_until", without.block_on(bus.run_until(async {})));
        names_the_remedy("shutdown", without.block_on(bus.shutdown()));
        whole.block_on(bus.shutdown()).unwrap();
    }
    let broker = eventbus::memory::MemoryBroker::new();
    names_the_remedy("broker", without.block_on(Bus::builder().broker(broker)).map(drop));
}

#[test]
fn a_bus_whose_runtime_has_ended_says_so() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bus = runtime.block_on(Bus::connect("memory:")).unwrap();
    drop(runtime);
    let ended = bus.start().unwrap_err();
    assert!(ended.to_string().contains("has ended"), "{ended}");
    names_the_remedy("shutdown", wait(bus.shutdown()));
}

//! Publishes on other runtimes than that of the broker, and on none.

mod support;

use eventbus::broker::Broker;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;
use support::{PATIENCE, builder, event, prefix};
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_publish_is_answered_whatever_has_become_of_the_runtime_of_one_before_it() {
    let (ours, other) = (runtime(), runtime());
    let broker = ours.block_on(builder(&prefix(), true).connect()).unwrap();
    other.block_on(async {
        let mut publishing = pin!(broker.publish(event("a.b", "k", 1)));
        assert!(publishing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    drop(other);
    // Of one key, so it goes the way of the first one.
    let answer =
        ours.block_on(async { tokio::time::timeout(PATIENCE, broker.publish(event("a.b", "k", 2))).await });
    answer.expect("it is answered").unwrap();
}

#[test]
fn a_publish_needs_no_runtime_of_its_own() {
    let ours = runtime();
    let broker = ours.block_on(builder(&prefix(), true).connect()).unwrap();
    let mut publishing = pin!(broker.publish(event("a.b", "k", 1)));
    assert!(publishing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let answer = ours.block_on(async { tokio::time::timeout(PATIENCE, publishing).await });
    answer.expect("it is answered").unwrap();
}

#[test]
fn a_publish_whose_broker_has_no_runtime_any_more_is_unconfirmed() {
    let (ours, other) = (runtime(), runtime());
    let broker = ours.block_on(builder(&prefix(), true).connect()).unwrap();
    ours.shutdown_timeout(Duration::from_secs(5));
    for number in 0..2 {
        let answer = other.block_on(async {
            tokio::time::timeout(PATIENCE, broker.publish(event("a.b", "k", number))).await
        });
        let said = answer.expect("it is answered").unwrap_err();
        assert!(matches!(said, eventbus::PublishError::Unconfirmed { .. }), "{said}");
    }
}

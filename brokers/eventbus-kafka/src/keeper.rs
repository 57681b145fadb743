//! The thread of a subscription: one session in the group after the other, as long as somebody reads.

use crate::session::Session;
use crate::subscription::Subscription;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, foreign, log};
use eventbus_server::connection::pause_before;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a session has ended.
pub(crate) enum End {
    /// Nobody reads any more.
    Over,
    /// Another one takes its place.
    Broken(Broken),
}

/// Why a session is of no use any more. Nothing settles what it had, which is delivered again.
pub(crate) enum Broken {
    /// The server does not know it as a member of the group.
    Stranger,
    /// A commit is not answered, and its partitions go to another process.
    Unanswered,
    /// The client has failed for good.
    Fatal(String),
    /// The client, or what is done with it, has panicked.
    Panicked(String),
}

/// A session that was of use for so long has not failed at once.
const STEADY: Duration = Duration::from_secs(30);

/// Keeps a subscription in its group.
pub(crate) fn keep(subscription: &Arc<Subscription>, mut session: Session) {
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        let end = foreign::call("the Kafka client", || session.run());
        let broken = match end {
            Ok(End::Over) => {
                session.end();
                break;
            }
            Ok(End::Broken(broken)) => broken,
            Err(panicked) => Broken::Panicked(panicked.into_text()),
        };
        subscription.lose_all();
        tell(subscription, &broken);
        foreign::tell("the Kafka client", || session.end());
        failures = if begun.elapsed() < STEADY { failures + 1 } else { 1 };
        let Some(another) = another(subscription, &mut failures) else { break };
        session = another;
    }
    // Nobody takes what waits for a transaction.
    drop(std::mem::take(&mut subscription.state.lock().answers));
    subscription.state.finish();
    log::debug!(target: "eventbus", group = %printable(&subscription.group), "the group's thread has ended");
}

/// Says why a session has ended.
fn tell(subscription: &Subscription, broken: &Broken) {
    let Subscription { link, group, .. } = subscription;
    let what = match broken {
        Broken::Stranger => "Kafka has taken this process out of the group",
        Broken::Unanswered => "Kafka has not answered a commit before its partitions went to another process",
        Broken::Fatal(said) => {
            link.state.is_lost(said);
            return subscription.state.fail(BrokerError::new(format!(
                "the Kafka client of the group `{group}` has failed for good, and another one takes its place: {said}"
            )));
        }
        Broken::Panicked(said) => {
            return subscription.state.fail(BrokerError::new(format!(
                "the Kafka client of the group `{group}` has panicked, and another one takes its place: {said}"
            )));
        }
    };
    log::warn!(
        target: "eventbus", group = %printable(group),
        "{what}; it joins again, and what is not committed is delivered again"
    );
}

/// The next session, once there is one; none, where nobody reads any more.
fn another(subscription: &Arc<Subscription>, failures: &mut usize) -> Option<Session> {
    loop {
        let until = Instant::now() + pause_before(*failures);
        while Instant::now() < until {
            if subscription.state.lock().is_closed() {
                return None;
            }
            subscription.bell.wait(until.saturating_duration_since(Instant::now()));
        }
        match Session::new(subscription) {
            Ok(session) => return Some(session),
            Err(error) => subscription.state.fail(error),
        }
        *failures += 1;
    }
}

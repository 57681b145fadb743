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
pub(crate) fn keep(subscription: &Arc<Subscription>, session: Session) {
    end_with(subscription, || sessions(subscription, session));
}

/// Runs the thread of a subscription. However it ends, whoever reads or waits for its end is told.
fn end_with(subscription: &Subscription, thread: impl FnOnce()) {
    let Subscription { group, pattern, state, .. } = subscription;
    let panicked = foreign::call("the thread of a Kafka group", thread).err();
    if let Some(panicked) = panicked {
        let said = format!(
            "the thread of the group `{group}` on `{pattern}` has panicked, and nothing more is read for it here; begin the \
             program again, and tell of it: {}",
            panicked.into_text()
        );
        log::error!(target: "eventbus", group = %printable(group), "{}", printable(&said));
        state.fail(BrokerError::new(said));
    }
    // Nobody takes what waits for a transaction.
    drop(std::mem::take(&mut state.lock().answers));
    state.finish();
    log::debug!(target: "eventbus", group = %printable(group), "the group's thread has ended");
}

/// One session after the other, until nobody reads any more.
fn sessions(subscription: &Arc<Subscription>, mut session: Session) {
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        let end = foreign::call("the Kafka client", || session.run());
        let broken = match end {
            Ok(End::Over) => return foreign::tell("the Kafka client", || session.end()),
            Ok(End::Broken(broken)) => broken,
            Err(panicked) => Broken::Panicked(panicked.into_text()),
        };
        subscription.lose_all();
        tell(subscription, &broken);
        foreign::tell("the Kafka client", || session.end());
        failures = if begun.elapsed() < STEADY { failures + 1 } else { 1 };
        let Some(another) = another(subscription, &mut failures) else { return };
        session = another;
    }
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
            return subscription.state.fail(of_panic(subscription, said));
        }
    };
    log::warn!(
        target: "eventbus", group = %printable(group),
        "{what}; it joins again, and what is not committed is delivered again"
    );
}

fn of_panic(subscription: &Subscription, said: &str) -> BrokerError {
    let group = &subscription.group;
    BrokerError::new(format!(
        "the Kafka client of the group `{group}` has panicked, and another one takes its place: {said}"
    ))
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
        let made = foreign::call("the Kafka client", || Session::new(subscription));
        match made.unwrap_or_else(|panicked| Err(of_panic(subscription, &panicked.into_text()))) {
            Ok(session) => return Some(session),
            Err(error) => subscription.state.fail(error),
        }
        *failures += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::connection::Link;
    use crate::topology::Topics;
    use eventbus_core::Pattern;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn whoever_reads_is_told_where_the_thread_panics_and_waits_no_more() {
        let settings = Settings::parse("kafka://127.0.0.1:1").unwrap();
        let link = Arc::new(Link::new(settings).unwrap());
        let names = ("mail".to_owned(), Pattern::new(">").unwrap(), "mail@>".to_owned());
        let subscription = Subscription::new(link, Arc::new(Topics::new()), names, STEADY);
        let read = || subscription.state.poll_take(&Context::from_waker(Waker::noop()), |_| ());
        assert!(read().is_pending());
        end_with(&subscription, || panic!("out of luck"));
        let Poll::Ready(Err(error)) = read() else { panic!("it is an error") };
        let said = error.to_string();
        for part in ["`mail`", "`>`", "out of luck", "begin the program again"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(matches!(read(), Poll::Ready(Ok(None))), "there is no more");
        assert!(subscription.state.lock().is_finished(), "whoever waits for the end waits no more");
    }
}

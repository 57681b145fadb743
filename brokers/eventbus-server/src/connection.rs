//! The connection to a server: whether it is there, since when it is not and why, and how it is tried again.

use eventbus_core::BrokerError;
use eventbus_core::broker::Connection;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::waiters::Waiters;
use jiff::Timestamp;
use std::fmt;
use std::time::{Duration, Instant};

/// How long the end of a broker waits for what is on its way.
const FLUSH: Duration = Duration::from_secs(4);

/// What is known of a connection. It writes a line of the log whenever it is lost, and whenever it is there again.
pub struct ConnectionState {
    /// The server, as lines name it.
    server: String,
    state: Lock<State>,
    changed: Waiters,
}

#[derive(Clone, Debug)]
struct State {
    /// How often there was a connection.
    times: u64,
    lost: Option<Lost>,
    closed: bool,
}

/// A connection that is not there.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Since when.
    pub since: Timestamp,
    /// Since when, on a clock that nobody sets.
    pub at: Instant,
    /// Why, as far as it is known.
    pub error: String,
}

impl Lost {
    /// An error that comes of a lost connection, where it is lost: with the reason for that.
    ///
    /// ```
    /// use eventbus_core::BrokerError;
    /// use eventbus_server::connection::{ConnectionState, Lost};
    ///
    /// let state = ConnectionState::up("nats://a");
    /// let late = || BrokerError::new("it is not confirmed");
    /// assert_eq!(Lost::explain(state.lost(), late()).to_string(), "it is not confirmed");
    /// state.is_lost("connection refused");
    /// assert_eq!(Lost::explain(state.lost(), late()).to_string(), "it is not confirmed: connection refused");
    /// ```
    #[must_use]
    pub fn explain(lost: Option<Self>, error: BrokerError) -> BrokerError {
        match lost {
            Some(lost) => error.with_cause(lost.error),
            None => error,
        }
    }

    /// How long the end of a broker waits for what is on its way: without a connection, what is not confirmed by then
    /// will not be.
    #[must_use]
    pub const fn flush_time(is_lost: bool) -> Duration {
        if is_lost { Duration::from_millis(100) } else { FLUSH }
    }
}

impl ConnectionState {
    /// A connection that is there for the first time; `server` names it in lines.
    #[must_use]
    pub fn up(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            state: Lock::new(Rank::LEAF, State { times: 1, lost: None, closed: false }),
            changed: Waiters::new(),
        }
    }

    /// The connection is lost, or is so still and the reason is known better.
    pub fn is_lost(&self, error: &str) {
        let first = {
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            match &mut state.lost {
                Some(lost) => {
                    error.clone_into(&mut lost.error);
                    false
                }
                none => {
                    let (since, at) = (Timestamp::now(), Instant::now());
                    *none = Some(Lost { since, at, error: error.to_owned() });
                    true
                }
            }
        };
        if first {
            log::warn!(
                target: "eventbus", server = %printable(&self.server), error = %printable(error),
                "the connection to the broker is lost; trying again until it is back"
            );
            self.changed.tell();
        }
    }

    /// The connection is there again.
    pub fn is_up(&self) {
        let lost = {
            let mut state = self.state.lock();
            let lost = state.lost.take();
            state.times += u64::from(lost.is_some());
            lost
        };
        if let Some(lost) = lost {
            // As loud as the loss, so that whoever heard of that hears of its end.
            log::warn!(
                target: "eventbus", server = %printable(&self.server), after = ?lost.at.elapsed(),
                "the connection to the broker is back"
            );
            self.changed.tell();
        }
    }

    /// Nobody needs the connection any more: that it ends is no news.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.tell();
    }

    /// Whether nobody needs the connection any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Since when it is lost and why; none while it is there.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        self.state.lock().lost.clone()
    }

    /// The same, as a bus asks for it.
    #[must_use]
    pub fn connection(&self) -> Connection {
        match self.lost() {
            Some(Lost { since, error, .. }) => Connection::Lost { since, error },
            None => Connection::Up,
        }
    }

    /// How often there was a connection: another number means another connection.
    #[must_use]
    pub fn times(&self) -> u64 {
        self.state.lock().times
    }

    /// Whether the connection of that number is there, and no later one.
    #[must_use]
    pub fn is(&self, times: u64) -> bool {
        let state = self.state.lock();
        state.times == times && state.lost.is_none()
    }

    /// Resolves once there is another connection than the one of that number, with its own.
    ///
    /// # Cancel safety
    /// Dropped, it waits no more.
    pub async fn another(&self, times: u64) -> u64 {
        let look = || {
            let state = self.state.lock();
            (state.times != times && state.lost.is_none()).then_some(state.times)
        };
        self.changed.until(look).await
    }

    /// Resolves once the connection is lost or nobody needs it any more.
    ///
    /// # Cancel safety
    /// Dropped, it waits no more.
    pub async fn gone(&self) {
        let look = || {
            let state = self.state.lock();
            (state.lost.is_some() || state.closed).then_some(())
        };
        self.changed.until(look).await;
    }
}

impl fmt::Debug for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionState")
            .field("server", &self.server)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// How long to wait before the try of this number, from 1: nothing before the first, then 50 ms, doubling up to a
/// second, and of that at random from a half to the whole, so that programs that lost one server do not come back to it
/// all at once.
#[must_use]
pub fn pause_before(attempt: usize) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let longest = Duration::from_millis(50 << (attempt - 2).min(5)).min(Duration::from_secs(1));
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Why a try to connect has failed.
#[derive(Debug)]
pub enum Failure {
    /// It may be another time: nobody answers.
    Passing(String),
    /// The same, and it says what may be done about it.
    Advised(String),
    /// It stays so until somebody changes something, as a wrong password.
    Lasting(BrokerError),
}

/// What to do where nobody answers, and nothing is known of why.
const ADVICE: &str = "; start the server, or correct the address";

/// Tries until it succeeds, fails for good, or `patience` is over. The first failure is a line of the log, so that
/// whoever starts a program sees what it waits for.
///
/// # Errors
/// What failed for good, or that `server` did not answer.
///
/// # Cancel safety
/// As the tries.
pub async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
    server: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T, BrokerError> {
    let deadline = tokio::time::Instant::now() + patience;
    let (mut last, mut advice) = ("it did not answer".to_owned(), ADVICE);
    for number in 1.. {
        let Ok(result) = tokio::time::timeout_at(deadline, attempt()).await else { break };
        (last, advice) = match result {
            Ok(connected) => return Ok(connected),
            Err(Failure::Lasting(error)) => return Err(error),
            Err(Failure::Passing(error)) => (error, ADVICE),
            Err(Failure::Advised(error)) => (error, ""),
        };
        if number == 1 {
            log::warn!(
                target: "eventbus", server = %printable(server), error = %printable(&last),
                "the broker does not answer; trying for {patience:?} (`connect_timeout`)"
            );
        }
        let pause = pause_before(number + 1);
        if tokio::time::Instant::now() + pause >= deadline {
            break;
        }
        tokio::time::sleep(pause).await;
    }
    Err(BrokerError::new(format!(
        "`{server}` did not answer within {patience:?} (`connect_timeout`): {last}{advice}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::ready;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn a_loss_is_known_with_its_reason_until_there_is_another_connection() {
        let state = ConnectionState::up("nats://a");
        let mut context = Context::from_waker(Waker::noop());
        let mut gone = pin!(state.gone());
        let mut another = pin!(state.another(state.times()));
        assert!(gone.as_mut().poll(&mut context).is_pending());
        state.is_lost("cut");
        let since = state.lost().unwrap().since;
        state.is_lost("refused");
        assert_eq!(state.lost().map(|lost| (lost.since, lost.error)), Some((since, "refused".to_owned())));
        assert!(
            !state.is(1)
                && matches!(state.connection(), Connection::Lost { error, .. } if error == "refused")
        );
        assert!(
            gone.as_mut().poll(&mut context).is_ready() && another.as_mut().poll(&mut context).is_pending()
        );
        state.is_up();
        assert!(state.lost().is_none() && another.as_mut().poll(&mut context).is_ready());
        assert!(state.is(2) && !state.is(1), "it is another one");
        assert!(matches!(state.connection(), Connection::Up));
        state.is_up();
        assert_eq!(state.times(), 2, "it was there already");
    }

    #[test]
    fn tries_get_rarer_up_to_one_in_a_second_and_differ() {
        assert_eq!(pause_before(1), Duration::ZERO);
        for attempt in 2..200 {
            let pause = pause_before(attempt);
            assert!(pause >= Duration::from_millis(25) && pause <= Duration::from_secs(1), "{pause:?}");
        }
        assert!(pause_before(100) >= Duration::from_millis(500));
        assert!((0..20).any(|_| pause_before(100) != pause_before(100)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_tried_for_a_while_and_then_named() {
        let begun = tokio::time::Instant::now();
        let mut tries = 0;
        let refused = || {
            tries += 1;
            ready(Err::<(), _>(Failure::Passing("connection refused".to_owned())))
        };
        let error = patiently("nats://a", Duration::from_secs(10), refused).await.unwrap_err().to_string();
        assert!(
            error.contains("`nats://a` did not answer within 10s")
                && error.ends_with("connection refused; start the server, or correct the address"),
            "{error}"
        );
        let advised = || ready(Err::<(), _>(Failure::Advised("no; write `tls://`".to_owned())));
        let error = patiently("nats://a", Duration::from_secs(1), advised).await.unwrap_err().to_string();
        assert!(error.ends_with("no; write `tls://`"), "advice is given once: {error}");
        assert!((8..=10).contains(&begun.elapsed().as_secs()) && (8..40).contains(&tries), "{tries}");
        let hangs = || std::future::pending::<Result<(), Failure>>();
        assert!(patiently("nats://a", Duration::from_secs(1), hangs).await.is_err());
        let wrong = || ready(Err::<(), _>(Failure::Lasting(BrokerError::new("wrong password"))));
        let error = patiently("nats://a", Duration::from_secs(10), wrong).await.unwrap_err();
        assert_eq!(error.to_string(), "wrong password");
        let mut left = 3;
        let late = || {
            left -= 1;
            ready(if left > 0 { Err(Failure::Passing("no".to_owned())) } else { Ok(7) })
        };
        assert_eq!(patiently("nats://a", Duration::from_secs(10), late).await.unwrap(), 7);
    }
}

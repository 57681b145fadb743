//! The source of a subscription: the broker's deliveries, and whether it is of use to ask for more.
//!
//! A broker is code of others: it may take locks of its own, ring the bell while it is asked, or panic. So whoever
//! asks takes the deliveries out of the lanes, asks with no lock held, and puts them back.

use crate::broker::{Deliveries, Received};
use crate::error::BrokerError;
use crate::foreign::{self, Kept};
use std::task::{Context, Poll, Waker};

/// Where deliveries come from.
pub(super) struct Source {
    /// Away while somebody asks, and once it is closed.
    reader: Option<Reader>,
    state: State,
    /// Why it failed, where nothing has come since.
    failed: Option<String>,
    /// Nobody reads any more.
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It may have something.
    Open,
    /// Somebody asks.
    Asked,
    /// Somebody asks, and the bell rang meanwhile.
    AskedAndRung,
    /// It rings the bell when it has something.
    Asleep,
    /// There is no more.
    Ended,
}

/// The broker's deliveries, in the hands of whoever asks.
pub(super) struct Reader {
    deliveries: Kept<Box<dyn Deliveries>>,
    /// What was received. Kept, so that it does not allocate in the long run.
    pub(super) received: Vec<Received>,
}

/// What a broker answered.
pub(super) enum Answer {
    /// It moved something.
    Some,
    /// Nothing now; it rings the bell.
    NotNow,
    /// There is no more.
    Ended,
    /// It failed, for this reason.
    Failed(String),
}

/// What is known after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// To ask again at once is of no use.
    Rest,
    /// The bell rang while the broker was asked: ask again, but let others run first.
    AskAgain,
}

impl Reader {
    /// Asks for up to `limit` deliveries. To be called with no lock held.
    pub(super) fn ask(&mut self, bell: &Waker, limit: usize) -> Answer {
        let Self { deliveries, received } = self;
        let mut context = Context::from_waker(bell);
        let polled = foreign::call("a broker", || deliveries.poll_receive(&mut context, received, limit));
        match polled {
            // Whatever it says: what it moved is ours to settle.
            _ if !self.received.is_empty() => Answer::Some,
            Ok(Poll::Pending) => Answer::NotNow,
            Ok(Poll::Ready(Ok(()))) => Answer::Ended,
            Ok(Poll::Ready(Err(error))) => Answer::Failed(text(&error)),
            Err(panicked) => Answer::Failed(format!("the broker {panicked}")),
        }
    }

    /// Nobody reads any more. How many deliveries are lost by that. To be called with no lock held.
    pub(super) fn close(self) -> usize {
        self.deliveries.into_inner().close()
    }
}

fn text(error: &BrokerError) -> String {
    foreign::call("an error", || error.to_string()).unwrap_or_else(|panicked| panicked.to_string())
}

impl Source {
    pub(super) fn new(deliveries: Box<dyn Deliveries>) -> Self {
        let reader = Reader { deliveries: Kept::new(deliveries), received: Vec::new() };
        Self { reader: Some(reader), state: State::Open, failed: None, closed: false }
    }

    /// Takes the deliveries out, to ask. None, where that is of no use now.
    pub(super) fn take(&mut self) -> Option<Reader> {
        if self.state != State::Open {
            return None;
        }
        let reader = self.reader.take()?;
        self.state = State::Asked;
        Some(reader)
    }

    /// Puts the deliveries back after an answer. Gives them back where nobody reads any more: to be dropped once
    /// the lock is released.
    pub(super) fn put_back(&mut self, reader: Reader, answer: &Answer) -> (Next, Option<Reader>) {
        let rung = self.state == State::AskedAndRung;
        match answer {
            Answer::Some => self.failed = None,
            Answer::Failed(reason) => self.failed = Some(reason.clone()),
            Answer::NotNow | Answer::Ended => {}
        }
        self.state = match answer {
            Answer::Some => State::Open,
            Answer::NotNow if rung => State::Open,
            Answer::NotNow | Answer::Failed(_) => State::Asleep,
            Answer::Ended => State::Ended,
        };
        let next = if rung && matches!(answer, Answer::NotNow) { Next::AskAgain } else { Next::Rest };
        if self.closed {
            return (Next::Rest, Some(reader));
        }
        self.reader = Some(reader);
        (next, None)
    }

    /// The bell rang. `true`: somebody is to come and ask.
    pub(super) fn ring(&mut self) -> bool {
        match self.state {
            State::Asked | State::AskedAndRung => {
                self.state = State::AskedAndRung;
                false
            }
            State::Ended => false,
            State::Asleep | State::Open => {
                self.state = State::Open;
                true
            }
        }
    }

    /// Nobody reads any more: gives the deliveries away, to be dropped once the lock is released. Whoever asks just
    /// now gets them from [`put_back`](Self::put_back).
    pub(super) fn close(&mut self) -> Option<Reader> {
        self.closed = true;
        self.reader.take()
    }

    /// Whether somebody asks.
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.state, State::Asked | State::AskedAndRung)
    }

    /// Whether there is no more.
    pub(super) fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Why it ended before its end: the last that the broker said before was that it had failed.
    pub(super) fn broke_off(&self) -> Option<&str> {
        self.failed.as_deref().filter(|_| self.is_ended())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;

    /// Answers `NotNow` for ever.
    struct Silent;

    impl Deliveries for Silent {
        fn poll_receive(
            &mut self,
            context: &mut Context<'_>,
            _into: &mut Vec<Received>,
            limit: usize,
        ) -> Poll<Result<(), BrokerError>> {
            assert_ne!(limit, 13, "unlucky");
            if limit == 2 {
                context.waker().wake_by_ref();
            }
            Poll::Pending
        }
    }

    struct Ignored;

    impl Wake for Ignored {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    #[test]
    fn a_source_that_has_nothing_is_not_asked_again_before_it_rings() {
        let bell = Waker::from(std::sync::Arc::new(Ignored));
        let mut source = Source::new(Box::new(Silent));
        let mut reader = source.take().unwrap();
        assert!(source.is_asked() && source.take().is_none(), "one asks at a time");
        let answer = reader.ask(&bell, 1);
        assert!(matches!(source.put_back(reader, &answer), (Next::Rest, None)));
        assert!(source.take().is_none());
        assert!(source.ring());
        assert!(source.take().is_some());
    }

    #[test]
    fn a_bell_that_rings_while_the_source_is_asked_is_not_missed() {
        let bell = Waker::from(std::sync::Arc::new(Ignored));
        let mut source = Source::new(Box::new(Silent));
        let mut reader = source.take().unwrap();
        let answer = reader.ask(&bell, 2);
        assert!(!source.ring(), "whoever asks finds out");
        assert!(matches!(source.put_back(reader, &answer), (Next::AskAgain, None)));
        assert!(source.take().is_some());
    }

    #[test]
    fn a_source_that_is_closed_while_it_is_asked_is_given_back_to_be_dropped() {
        let mut source = Source::new(Box::new(Silent));
        let reader = source.take().unwrap();
        assert!(source.close().is_none());
        assert!(source.put_back(reader, &Answer::NotNow).1.is_some());
        assert!(source.take().is_none());
        assert!(Source::new(Box::new(Silent)).close().is_some());
    }

    #[test]
    fn a_panic_of_a_broker_is_a_failure_to_deliver() {
        let bell = Waker::from(std::sync::Arc::new(Ignored));
        let mut reader = Source::new(Box::new(Silent)).take().unwrap();
        let Answer::Failed(reason) = reader.ask(&bell, 13) else { panic!("it failed") };
        assert!(reason.contains("the broker panicked") && reason.contains("unlucky"), "{reason}");
    }
}

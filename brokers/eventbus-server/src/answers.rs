//! Answers to publishers, which are awaited apart from sending: how many publishes may be open, what becomes of each, and
//! of those that are open at the end.
//!
//! A broker takes a publish, sends it by a task of its own, by itself or with others, and tells whoever waits what became
//! of it. How it sends is its own affair; what is the same for all is here. Whoever waits is code of others wherever it is
//! woken: by an answer, by room that another one has left, and by the end. Its panic costs a line of the log, and neither
//! the task that sends nor anybody else's answer.

use crate::connection::Lost;
use crate::unanswered::{Counted, Unanswered};
use eventbus_core::waiters::Waiters;
use eventbus_core::{BoxError, BrokerError, Envelope, PublishError, foreign};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout_at;

/// The publishes of a broker that are not answered.
///
/// ```
/// use eventbus_server::answers::Answers;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let answers = Answers::new("RabbitMQ", 2_048, Duration::from_secs(30));
/// let (waiting, answer) = answers.open("order.placed", answers.deadline(), || None).await.unwrap();
/// assert_eq!(answers.count(), 1);
///
/// // Whoever sends it hears that it is stored.
/// waiting.confirm();
/// answer.told().await.unwrap();
/// answers.none().await;
/// # }
/// ```
pub struct Answers {
    /// Who confirms, as errors name it.
    server: &'static str,
    most: usize,
    within: Duration,
    room: Arc<Semaphore>,
    closed: AtomicBool,
    closing: Waiters,
    open: Unanswered,
    /// That of the broker: whoever publishes may be on another one, or on none.
    runtime: Handle,
}

impl Answers {
    /// There are none yet. `most` publishes may be open before publishers wait for room, and each takes `within`
    /// (`publish_timeout`) at most; `server` is who confirms it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(server: &'static str, most: usize, within: Duration) -> Self {
        Self {
            server,
            most,
            within,
            room: Arc::new(Semaphore::new(most)),
            closed: AtomicBool::new(false),
            closing: Waiters::new(),
            open: Unanswered::new(),
            runtime: Handle::current(),
        }
    }

    /// When a publish that begins is to be answered.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.within
    }

    /// Opens a publish once there is room: who is to be told, and where that is heard.
    ///
    /// # Errors
    /// Where nothing is taken any more, and where there is no room until `deadline`; what is `lost` is the reason then.
    ///
    /// # Cancel safety
    /// Dropped, nothing is open.
    pub async fn open(
        &self,
        topic: &str,
        deadline: Instant,
        lost: impl FnOnce() -> Option<Lost>,
    ) -> Result<(Waiting, Answer), PublishError> {
        let topic = topic.to_owned();
        let place = match Arc::clone(&self.room).try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => self.place(deadline).await,
        };
        let place = place.map(|place| Place(Some(place)));
        let counted = self.open.one();
        // It is counted before this is asked: whoever closes waits for it, or is seen here.
        if self.is_closed() {
            return Err(PublishError::Closed { topic });
        }
        let Some(place) = place else {
            let (within, most) = (self.within, self.most);
            let said = format!(
                "it could not be sent within {within:?} (`publish_timeout`), since {most} others wait to be sent"
            );
            let cause = Lost::explain(lost(), BrokerError::new(said)).into();
            return Err(PublishError::Broker { topic, cause });
        };
        // Behind others of a batch it may have begun late.
        let deadline = if Instant::now() < deadline { deadline } else { self.deadline() };
        let (answer, told) = oneshot::channel();
        let answered = Answer { server: self.server, topic: topic.clone(), told };
        let waiting = Waiting { topic, deadline, answer: Some(answer), _place: place, _counted: counted };
        Ok((waiting, answered))
    }

    /// Waits for room. None, where there is none in time, or nothing is taken any more.
    async fn place(&self, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        let mut closed = pin!(self.closing.until(|| self.is_closed().then_some(())));
        // Given up just as there is room, it leaves that to the next one, and wakes it.
        let mut place = pin!(foreign::run("a waker", || {
            let _on_it = self.runtime.enter();
            timeout_at(deadline.into(), Arc::clone(&self.room).acquire_owned())
        }));
        poll_fn(|context| {
            if closed.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            place.as_mut().poll(context).map(|place| place.ok()?.ok()?.ok())
        })
        .await
    }

    /// Publishes several, in their order: `put` opens one, and has it sent.
    ///
    /// # Cancel safety
    /// Dropped, those that were sent may be stored.
    pub async fn all<'a, F: Future<Output = Result<Answer, PublishError>>>(
        &self,
        envelopes: &'a [Arc<Envelope>],
        put: impl Fn(&'a Envelope, Instant) -> F,
    ) -> Vec<Result<(), PublishError>> {
        let mut answers = Vec::with_capacity(envelopes.len());
        let mut deadline = self.deadline();
        for envelope in envelopes {
            let answer = put(envelope, deadline).await;
            // Where one has waited for room in vain, those behind it do not wait as long again.
            if answer.is_ok() || Instant::now() < deadline {
                deadline = self.deadline();
            }
            answers.push(answer);
        }
        let mut told = Vec::with_capacity(answers.len());
        for answer in answers {
            told.push(match answer {
                Ok(answer) => answer.told().await,
                Err(error) => Err(error),
            });
        }
        told
    }

    /// How many are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.count()
    }

    /// Resolves once none is open.
    ///
    /// # Cancel safety
    /// Dropped, it waits no more.
    pub async fn none(&self) {
        self.open.none().await;
    }

    /// Takes no more; whoever waits for room is told. What is open stays so.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.closing.tell();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers")
            .field("server", &self.server)
            .field("open", &self.open)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Room for one publish; dropped, the next one has it.
struct Place(Option<OwnedSemaphorePermit>);

impl Drop for Place {
    fn drop(&mut self) {
        foreign::tell("a waker", || self.0 = None);
    }
}

/// A publish that is open: whoever waits for it is told once, by no lock's holder. Dropped, it is not known whether it is
/// stored.
#[must_use = "whoever waits for it is to be told"]
pub struct Waiting {
    topic: String,
    deadline: Instant,
    /// None, once it is answered.
    answer: Option<oneshot::Sender<Result<(), PublishError>>>,
    _place: Place,
    _counted: Counted,
}

impl Waiting {
    /// Its topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// When it is to be answered at the latest.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether anybody waits for it still.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| !answer.is_closed())
    }

    /// It is stored.
    pub fn confirm(self) {
        self.tell(|_| Ok(()));
    }

    /// It was not stored.
    pub fn refuse(self, cause: impl Into<BoxError>) {
        self.tell(|topic| Err(PublishError::Broker { topic, cause: cause.into() }));
    }

    /// Whether it was stored is not known.
    pub fn give_up(self, cause: impl Into<BoxError>) {
        self.tell(|topic| Err(PublishError::Unconfirmed { topic, cause: cause.into() }));
    }

    /// Tells whoever waits what has become of it, of which the topic may be a part.
    pub fn tell(mut self, told: impl FnOnce(String) -> Result<(), PublishError>) {
        let told = told(std::mem::take(&mut self.topic));
        if let Some(answer) = self.answer.take() {
            foreign::tell("a waker", || drop(answer.send(told)));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            foreign::tell("a waker", || drop(answer));
        }
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting")
            .field("topic", &self.topic)
            .field("deadline", &self.deadline)
            .field("awaited", &self.is_awaited())
            .finish_non_exhaustive()
    }
}

/// Where the answer to a publish is heard.
#[derive(Debug)]
#[must_use = "the answer comes to whoever waits for it"]
pub struct Answer {
    server: &'static str,
    topic: String,
    told: oneshot::Receiver<Result<(), PublishError>>,
}

impl Answer {
    /// Resolves once the publish is answered.
    ///
    /// # Errors
    /// Where it was not stored, and where that is not known.
    ///
    /// # Cancel safety
    /// Dropped, nobody hears of it.
    pub async fn told(self) -> Result<(), PublishError> {
        self.told.await.unwrap_or_else(|_nobody_told| {
            let cause = BrokerError::new(format!(
                "the broker was closed, or the runtime on which it was connected has ended, before {} has confirmed it",
                self.server
            ));
            Err(PublishError::Unconfirmed { topic: self.topic, cause: cause.into() })
        })
    }
}

#[cfg(test)]
#[path = "../tests/support/alarm.rs"]
mod alarm;

#[cfg(test)]
mod tests {
    use super::*;
    use alarm::Alarm;
    use eventbus_core::Topic;

    const WITHIN: Duration = Duration::from_secs(5);

    type End = fn(Waiting);

    fn answers(most: usize) -> Answers {
        Answers::new("Nobody", most, WITHIN)
    }

    async fn open(answers: &Answers) -> Result<(Waiting, Answer), PublishError> {
        answers.open("a.b", answers.deadline(), || None).await
    }

    #[tokio::test]
    async fn each_publisher_hears_once_what_has_become_of_its_event() {
        let answers = answers(9);
        let ends: [(&str, End); 4] = [
            ("stored", Waiting::confirm),
            ("not stored", |waiting| waiting.refuse("it is full")),
            ("not known", |waiting| waiting.give_up("it is silent")),
            ("not told", drop),
        ];
        for (end, tell) in ends {
            let (waiting, answer) = open(&answers).await.unwrap();
            assert!(waiting.is_awaited() && answers.count() == 1);
            tell(waiting);
            let told = answer.told().await;
            let said = told.as_ref().err().map(|error| eventbus_core::chain(error)).unwrap_or_default();
            let is_right = match (end, &told) {
                ("stored", Ok(())) => true,
                ("not stored", Err(PublishError::Broker { .. })) => said.contains("it is full"),
                ("not known", Err(PublishError::Unconfirmed { .. })) => said.contains("it is silent"),
                ("not told", Err(PublishError::Unconfirmed { .. })) => said.contains("before Nobody has"),
                _ => false,
            };
            assert!(is_right, "{end}: {said}");
            answers.none().await;
        }
        let (waiting, answer) = open(&answers).await.unwrap();
        drop(answer);
        assert!(!waiting.is_awaited());
    }

    #[tokio::test]
    async fn a_waker_that_panics_at_an_answer_takes_nobody_with_it() {
        let answers = answers(9);
        let ends: [End; 4] = [
            Waiting::confirm,
            |waiting| waiting.refuse("it is full"),
            |waiting| waiting.give_up("it is silent"),
            drop,
        ];
        for tell in ends {
            let (alarm, (waiting, answer)) = (Arc::<Alarm>::default(), open(&answers).await.unwrap());
            let mut told = Box::pin(answer.told());
            assert!(alarm.poll(&mut told).is_pending());
            tell(waiting);
            assert_eq!(alarm.rings(), 1);
            assert!(alarm.poll(&mut told).is_ready());
        }
        answers.none().await;
    }

    #[tokio::test]
    async fn room_goes_to_whoever_waits_for_it_in_turn_whoever_panics_as_it_is_woken() {
        let answers = answers(1);
        let (first, _answer) = open(&answers).await.unwrap();
        let alarms: [Arc<Alarm>; 3] = Default::default();
        let mut opening: Vec<_> = alarms.iter().map(|_| Box::pin(open(&answers))).collect();
        for (opening, alarm) in opening.iter_mut().zip(&alarms) {
            assert!(alarm.poll(opening).is_pending());
        }
        first.confirm();
        let rings = || alarms.iter().map(|alarm| alarm.rings()).collect::<Vec<_>>();
        assert_eq!(rings(), [1, 0, 0]);
        // The first gives it up just then.
        drop(opening.remove(0));
        assert_eq!(rings(), [1, 1, 0]);
        let Poll::Ready(Ok((second, _answer))) = alarms[1].poll(&mut opening[0]) else {
            panic!("it has room")
        };
        assert_eq!(answers.count(), 1);
        answers.close();
        assert_eq!(rings(), [1, 1, 1], "nobody waits for room after the end");
        let closed = alarms[2].poll(&mut opening[1]);
        assert!(matches!(closed, Poll::Ready(Err(PublishError::Closed { .. }))), "{closed:?}");
        assert!(matches!(open(&answers).await, Err(PublishError::Closed { .. })));
        second.confirm();
        answers.none().await;
    }

    #[tokio::test(start_paused = true)]
    async fn publishes_that_find_no_room_end_together_when_their_time_is_over() {
        let answers = answers(1);
        let (_first, _answer) = open(&answers).await.unwrap();
        let envelopes: Vec<_> = (0..5)
            .map(|number| Arc::new(Envelope::from_json(Topic::from_static("a.b"), &number).unwrap()))
            .collect();
        let begun = tokio::time::Instant::now();
        let put = |envelope: &Envelope, deadline| {
            let (answers, topic) = (&answers, envelope.topic().clone());
            async move {
                let (_waiting, answer) = answers.open(topic.as_str(), deadline, || None).await?;
                Ok(answer)
            }
        };
        for told in answers.all(&envelopes, put).await {
            let error = told.unwrap_err();
            assert!(matches!(error, PublishError::Broker { .. }), "{error}");
            assert!(eventbus_core::chain(&error).contains("1 others wait to be sent"), "{error}");
        }
        assert!(begun.elapsed() < WITHIN * 2, "{:?}", begun.elapsed());
    }
}

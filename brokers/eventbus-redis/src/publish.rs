//! Publishing: one task sends whatever waits, many events with one script, several scripts at once on one connection.
//!
//! A publisher is answered once its event is stored. Where the connection is lost before that, what was sent is sent
//! again in its order, since the script knows the ids that it has stored; without ids (`duplicate_window=0s`) it is `Unconfirmed`.

use crate::keeper::millis;
use crate::keys::Keys;
use crate::link::{Link, Live};
use crate::locate::Purpose;
use crate::script;
use crate::trouble::{Trouble, is_elsewhere};
use crate::wire::Fields;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::waiters::Waiters;
use eventbus_core::{BrokerError, PublishError, Topic, foreign};
use redis::{Pipeline, RedisError, Value};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// The most events that one script stores.
const EVENTS: usize = 128;
/// With more bytes than this, a script takes no further event.
const BYTES: usize = 1 << 20;
/// How many scripts are under way at once: the server has the next one as it ends one.
pub(crate) const WINDOW: usize = 4;

/// An event that is to be stored.
pub(crate) struct Outgoing {
    pub(crate) topic: Topic,
    /// Its id and its source: what tells it from others.
    pub(crate) id: String,
    pub(crate) fields: Fields,
}

/// What publishers hand to the task that sends.
pub(crate) struct Publishes {
    timeout: Duration,
    queue: Lock<Queue>,
    bell: Notify,
    ended: Waiters,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    closed: bool,
    ended: bool,
}

struct Waiting {
    event: Outgoing,
    answer: oneshot::Sender<Result<(), PublishError>>,
    deadline: Instant,
    /// It was sent once, and may be stored.
    sent: bool,
}

pub(crate) type Stored = oneshot::Receiver<Result<(), PublishError>>;

impl Publishes {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            queue: Lock::new(Rank::LEAF, Queue::default()),
            bell: Notify::new(),
            ended: Waiters::new(),
        }
    }

    /// Takes events, in their order; each is answered by itself. None of them, once it is closed.
    pub(crate) fn push(&self, events: impl IntoIterator<Item = Outgoing>) -> Vec<Stored> {
        let deadline = Instant::now() + self.timeout;
        let (mut answers, mut refused) = (Vec::new(), Vec::new());
        {
            let mut queue = self.queue.lock();
            for event in events {
                let (answer, stored) = oneshot::channel();
                answers.push(stored);
                let waiting = Waiting { event, answer, deadline, sent: false };
                if queue.closed {
                    refused.push(waiting);
                } else {
                    queue.waiting.push_back(waiting);
                }
            }
        }
        for waiting in refused {
            let cause = BrokerError::new("the broker is closed").into();
            let topic = waiting.event.topic.to_string();
            waiting.answer(Err(PublishError::Broker { topic, cause }));
        }
        foreign::tell("a waker", || self.bell.notify_one());
        answers
    }

    /// Takes no more.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        foreign::tell("a waker", || self.bell.notify_one());
    }

    /// Resolves once everything that was taken is answered, after it was closed.
    pub(crate) async fn ended(&self) {
        self.ended.until(|| self.queue.lock().ended.then_some(())).await;
    }

    fn end(&self) {
        self.queue.lock().ended = true;
        self.ended.tell();
    }

    /// Takes a batch out of the queue.
    fn batch(&self) -> Vec<Waiting> {
        let mut queue = self.queue.lock();
        let (mut bytes, mut count) = (0, 0);
        for waiting in queue.waiting.iter().take(EVENTS) {
            bytes += waiting.event.fields.size();
            count += 1;
            if bytes >= BYTES {
                break;
            }
        }
        queue.waiting.drain(..count).collect()
    }

    /// Puts what was not stored back, before everything that waits.
    fn put_back(&self, batch: Vec<Waiting>) {
        let mut queue = self.queue.lock();
        batch.into_iter().rev().for_each(|waiting| queue.waiting.push_front(waiting));
    }

    /// Takes out what has waited for too long.
    fn overdue(&self, now: Instant) -> Vec<Waiting> {
        let mut queue = self.queue.lock();
        let count = queue.waiting.iter().take_while(|waiting| waiting.deadline <= now).count();
        queue.waiting.drain(..count).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        self.queue.lock().waiting.front().map(|waiting| waiting.deadline)
    }

    /// Whether everything was taken out, and nothing comes any more.
    fn is_over(&self) -> bool {
        let queue = self.queue.lock();
        queue.closed && queue.waiting.is_empty()
    }
}

impl Waiting {
    /// Answers, without a lock: whoever waits is code of others.
    fn answer(self, answer: Result<(), PublishError>) {
        foreign::tell("a waker", || drop(self.answer.send(answer)));
    }

    /// It was not confirmed, for this reason.
    fn give_up(self, cause: BrokerError) {
        let (topic, cause) = (self.event.topic.to_string(), cause.into());
        let error = match self.sent {
            true => PublishError::Unconfirmed { topic, cause },
            false => PublishError::Broker { topic, cause },
        };
        self.answer(Err(error));
    }
}

/// A script that is under way.
struct Flight {
    batch: Vec<Waiting>,
    answer: Answer,
    done: Option<Result<Stores, RedisError>>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Stores, RedisError>> + Send>>;

/// What the server says of a script.
struct Stores {
    /// What became of each event.
    answers: Value,
    /// As many replicas have it as are waited for.
    replicated: bool,
}

/// The task that sends.
pub(crate) struct Sender {
    pub(crate) publishes: Arc<Publishes>,
    pub(crate) link: Arc<Link>,
    pub(crate) keys: Keys,
    /// How long ids are kept; zero: they are not.
    pub(crate) duplicate_window: Duration,
    /// How many replicas have to have an event.
    pub(crate) replicas: u32,
    /// How long the server waits for these.
    pub(crate) wait: Duration,
    /// Topics have to be there already.
    pub(crate) check: bool,
}

impl Sender {
    pub(crate) async fn run(self) {
        while !self.publishes.is_over() {
            match self.link.live() {
                Some(live) => self.send_on(live).await,
                None => self.wait_for_link().await,
            }
        }
        self.publishes.end();
    }

    /// Waits for a connection, and lets nobody wait for longer than was promised.
    async fn wait_for_link(&self) {
        self.expire_waiting();
        let until = self.publishes.deadline().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            live = self.link.wait() => if live.is_none() {
                // Nobody connects any more.
                self.publishes.close();
                let left = std::iter::repeat_with(|| self.publishes.batch()).take_while(|batch| !batch.is_empty());
                left.flatten().for_each(|waiting| waiting.give_up(self.no_connection()));
            },
            () = tokio::time::sleep_until(until) => {}
            () = self.publishes.bell.notified() => {}
        }
    }

    /// Lets go of what has waited for its turn for too long.
    fn expire_waiting(&self) {
        for waiting in self.publishes.overdue(Instant::now()) {
            waiting.give_up(self.no_connection());
        }
    }

    fn no_connection(&self) -> BrokerError {
        match self.link.lost() {
            Some(lost) => BrokerError::new(format!("there is no connection to the server: {}", lost.error)),
            None if self.replicas > 0 => BrokerError::new(format!(
                "the server has not confirmed in time (`publish_timeout`) that {} of its replicas have it (`replicas`)",
                self.replicas
            )),
            None => BrokerError::new("the server has not confirmed it in time (`publish_timeout`)"),
        }
    }

    /// Sends on one connection until that is lost, or there is nothing more to come.
    async fn send_on(&self, mut live: Live) {
        if self.replicas > 0 {
            // Nobody else is to wait for replicas, and the server waits for what was written on this connection.
            match self.link.locator.open(&live.client, Purpose::Shared).await {
                Ok(connection) => live.connection = connection,
                Err(trouble) => return self.link.report(live.generation, &trouble),
            }
        }
        let mut flights: VecDeque<Flight> = VecDeque::new();
        // What another server is to store. Whatever else is under way is answered first: this one may have stored that.
        let mut elsewhere: Vec<Waiting> = Vec::new();
        loop {
            // On a connection that is known to be lost nothing begins: it was not sent then.
            let current = elsewhere.is_empty() && self.link.is_current(live.generation);
            while current && flights.len() < WINDOW {
                let mut batch = self.publishes.batch();
                if batch.is_empty() {
                    break;
                }
                let answer = self.call(&live, &batch);
                batch.iter_mut().for_each(|waiting| waiting.sent = true);
                flights.push_back(Flight { batch, answer, done: None });
            }
            if flights.is_empty() && (!current || self.publishes.is_over()) {
                return self.publishes.put_back(elsewhere);
            }
            // What was let go of already is due last: any of them may be next, and so may what waits for its turn.
            let fronts = flights.iter().filter_map(|flight| flight.batch.first());
            let next = fronts.map(|waiting| waiting.deadline).chain(self.publishes.deadline()).min();
            let until = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                answer = first(&mut flights), if !flights.is_empty() => {
                    let Some(flight) = flights.pop_front() else { continue };
                    match answer {
                        Ok(answer) => {
                            let Some((batch, trouble)) = self.stored(flight.batch, answer) else { continue };
                            self.link.report(live.generation, &trouble);
                            elsewhere.extend(unsent(batch));
                        }
                        Err(error) => {
                            let trouble = Trouble::of("cannot store it", &error);
                            if trouble.broken {
                                self.link.report(live.generation, &trouble);
                            }
                            // The server has refused it, and stored nothing.
                            if trouble.broken && error.code().is_some() {
                                elsewhere.extend(unsent(flight.batch));
                                continue;
                            }
                            if trouble.broken {
                                flights.push_front(flight);
                                self.send_again(flights, &trouble);
                                return self.publishes.put_back(elsewhere);
                            }
                            let refused = |waiting: Waiting| {
                                let topic = waiting.event.topic.to_string();
                                let cause = BrokerError::from(trouble.clone()).into();
                                waiting.answer(Err(PublishError::Broker { topic, cause }));
                            };
                            flight.batch.into_iter().for_each(refused);
                        }
                    }
                }
                () = tokio::time::sleep_until(until), if next.is_some() => {
                    self.expire(&mut flights);
                    self.expire_waiting();
                }
                () = self.publishes.bell.notified(), if current && flights.len() < WINDOW => {}
            }
        }
    }

    /// Lets go of what has waited for too long; the server may store it all the same.
    fn expire(&self, flights: &mut VecDeque<Flight>) {
        let now = Instant::now();
        for flight in flights {
            let Some(last) = flight.batch.iter().rposition(|waiting| waiting.deadline <= now) else {
                continue;
            };
            // The answers of the others keep their places.
            for waiting in &mut flight.batch[..=last] {
                if waiting.answer.is_closed() {
                    continue;
                }
                let (closed, _) = oneshot::channel();
                let answer = std::mem::replace(&mut waiting.answer, closed);
                let (topic, cause) = (waiting.event.topic.to_string(), self.no_connection().into());
                let error = PublishError::Unconfirmed { topic, cause };
                foreign::tell("a waker", || drop(answer.send(Err(error))));
            }
            // It is looked at again when the next of them is due.
            if let Some(next) = flight.batch.get(last + 1).map(|waiting| waiting.deadline) {
                flight.batch[..=last].iter_mut().for_each(|waiting| waiting.deadline = next);
            } else {
                let later = now + Duration::from_secs(3600);
                flight.batch.iter_mut().for_each(|waiting| waiting.deadline = later);
            }
        }
    }

    /// The script that stores a batch, on its way already.
    fn call(&self, live: &Live, batch: &[Waiting]) -> Answer {
        let keep = u64::try_from(self.duplicate_window.as_millis()).unwrap_or(u64::MAX);
        let mut call = script::PUBLISH.call(&self.keys);
        call.arg(keep).arg(if self.check { "1" } else { "0" }).arg(if self.replicas > 0 { "1" } else { "0" });
        for Waiting { event, .. } in batch {
            call.arg(event.topic.as_str()).arg(&event.id).arg(event.fields.len());
            event.fields.texts().for_each(|text| _ = call.arg(text));
        }
        let (mut connection, replicas) = (live.connection.clone(), self.replicas);
        let mut calls = Pipeline::new();
        calls.add_command(call);
        if replicas > 0 {
            calls.cmd("WAIT").arg(replicas).arg(millis(self.wait));
        }
        let count = calls.len();
        Box::pin(async move {
            let mut answers = connection.send_packed_commands(&calls, 0, count).await?.into_iter();
            let answers_of_script = answers.next().unwrap_or_default().extract_error()?;
            let replicated = match answers.next().map(Value::extract_error).transpose()? {
                Some(Value::Int(reached)) => reached >= i64::from(replicas),
                _ => replicas == 0,
            };
            Ok(Stores { answers: answers_of_script, replicated })
        })
    }

    /// Tells each publisher what became of its event. What is to be sent to another server, and why: this one became a
    /// replica, or its slot was moved, and has stored nothing of that.
    fn stored(&self, batch: Vec<Waiting>, stores: Stores) -> Option<(Vec<Waiting>, Trouble)> {
        let Value::Array(answers) = stores.answers else {
            let trouble = Trouble::lasting("cannot store it", "the server has answered something else");
            batch.into_iter().for_each(|waiting| waiting.give_up(trouble.clone().into()));
            return None;
        };
        let mut elsewhere: Option<(Vec<Waiting>, Trouble)> = None;
        let mut again = Vec::new();
        for (waiting, answer) in batch.into_iter().zip(answers) {
            let topic = waiting.event.topic.to_string();
            let answer = match answer {
                // The script knows it, and writes something for the server to wait for.
                Value::Int(_) if !stores.replicated && !self.duplicate_window.is_zero() => {
                    again.push(waiting);
                    continue;
                }
                Value::Int(_) if !stores.replicated => {
                    waiting.give_up(self.no_connection());
                    continue;
                }
                // Stored, or known already.
                Value::Int(_) => Ok(()),
                other => {
                    let text = redis::from_redis_value::<String>(other).unwrap_or_default();
                    if is_elsewhere(text.split(' ').next().unwrap_or_default(), &text) {
                        let trouble = || (Vec::new(), Trouble::said("cannot store it", &text));
                        elsewhere.get_or_insert_with(trouble).0.push(waiting);
                        continue;
                    }
                    let cause = refusal(&waiting.event, &text).into();
                    Err(PublishError::Broker { topic, cause })
                }
            };
            waiting.answer(answer);
        }
        again.retain(|waiting| !waiting.answer.is_closed());
        self.publishes.put_back(again);
        elsewhere
    }

    /// After a connection was lost: what was under way is sent again, if the script can tell what it has stored.
    fn send_again(&self, flights: VecDeque<Flight>, trouble: &Trouble) {
        let open = flights.into_iter().flat_map(|flight| flight.batch);
        let open = open.filter(|waiting| !waiting.answer.is_closed());
        if self.duplicate_window.is_zero() {
            open.for_each(|waiting| waiting.give_up(trouble.clone().into()));
        } else {
            self.publishes.put_back(open.collect());
        }
    }
}

/// What is to be sent for the first time, though it was sent before: nothing of it was stored.
fn unsent(batch: Vec<Waiting>) -> impl Iterator<Item = Waiting> {
    let open = batch.into_iter().filter(|waiting| !waiting.answer.is_closed());
    open.map(|waiting| Waiting { sent: false, ..waiting })
}

/// The answer of the first script; the others are kept going.
async fn first(flights: &mut VecDeque<Flight>) -> Result<Stores, RedisError> {
    poll_fn(|context| {
        flights.iter_mut().for_each(|flight| flight.poll(context));
        match flights.front_mut().and_then(|flight| flight.done.take()) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        }
    })
    .await
}

impl Flight {
    fn poll(&mut self, context: &mut Context<'_>) {
        if self.done.is_none()
            && let Poll::Ready(answer) = self.answer.as_mut().poll(context)
        {
            self.done = Some(answer);
        }
    }
}

fn refusal(event: &Outgoing, text: &str) -> BrokerError {
    let id = event.id.split(' ').next().unwrap_or_default();
    match text.split_once(' ') {
        Some(("TAKEN", other)) => BrokerError::new(format!(
            "there is an event with its id `{id}` on \"{other}\" already; give each event an id of its own"
        )),
        _ if text == "UNKNOWN" => BrokerError::new(
            "the server does not know the topic, and this program makes none (`topology=check`); let a program that may \
             make it publish or subscribe first",
        ),
        _ => Trouble::said("the server has refused it", text).into(),
    }
}

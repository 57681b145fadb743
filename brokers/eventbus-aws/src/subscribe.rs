//! Subscribing: the task that asks the queue of a group for messages, hides from others what is held, and deletes what is
//! settled.

use crate::batches::MOST;
use crate::calls::{Ask, Failed, arrival, ask_for, delete, hide};
use crate::connection::{Link, Trouble, slow_down};
use crate::delivery::AwsDeliveries;
use crate::held::{Named, Token};
use crate::readers::{self, Reader};
use crate::returns::{LAST_CALL, give_back, give_back_unanswered};
use crate::subscription::Subscription;
use crate::topics::{Joined, Topics};
use aws_sdk_sqs::types::Message;
use eventbus_core::BrokerError;
use eventbus_core::broker::{SubscribeRequest, Topology};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_server::connection::{Failure, pause_before};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// How many calls for messages are under way where there are many. Only one of them waits for what comes.
const CALLS: usize = 4;
/// How many calls that delete are under way.
const DELETES: usize = 4;
/// For how long SQS knows a call for messages again, which is five minutes at most.
const ASK_AGAIN: Duration = Duration::from_secs(240);
/// How long a server is left alone that has no message and answers at once.
const IMPATIENT: Duration = Duration::from_millis(200);
/// How often the queue is asked how much it has, where somebody wants to know.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is looked whether the topics still send to the queue, at least. With a short `visibility_timeout` it is after
/// four of those.
const JOIN_AGAIN: Duration = Duration::from_secs(120);

/// Opens a subscription. The second of the answer is the task that serves it.
pub(crate) async fn open(
    link: &Arc<Link>,
    topics: &Arc<Topics>,
    request: SubscribeRequest,
) -> Result<(Arc<Subscription>, AwsDeliveries, impl Future<Output = ()> + use<>), BrokerError> {
    if !request.competing && !link.settings.names.fifo {
        return Err(BrokerError::new(format!(
            "the group `{}` needs its events in order by key, and standard queues have no order; use FIFO topics and queues \
             (`?fifo=true`), or let its processes compete (`competing`)",
            request.group
        )));
    }
    let open = || async {
        let dead = link.dead_queue(&request.group).await?;
        let (queue, joined) = link.group_queue(topics, &request, &dead).await?;
        let reader = link.new_reader(&queue.url, &request.group).await?;
        Ok::<_, Failure>((dead, queue, joined, reader))
    };
    // What was made before it failed is there when it is tried again.
    let (dead, queue, joined, reader) = link.begin(open).await?;
    let subscription = Arc::new(Subscription::new(Arc::clone(link), request, queue, dead));
    let deliveries = AwsDeliveries::new(Arc::clone(&subscription));
    let task = Task::new(&subscription, reader, topics, joined);
    Ok((subscription, deliveries, task.run()))
}

/// What a call has brought.
enum Done {
    Received { ask: Ask, waited: bool, result: Result<Vec<Message>, Trouble> },
    Deleted { batch: Vec<Named>, result: Result<Vec<Failed>, Trouble> },
    Extended { asked: Instant, batch: Vec<(Token, Arc<str>, i32)>, result: Result<Vec<Failed>, Trouble> },
    GivenBack,
    Written,
    Joined { joined: Joined, result: Result<(), Trouble> },
    Looked(Result<u64, Trouble>),
}

/// The task of a subscription.
struct Task {
    subscription: Arc<Subscription>,
    calls: JoinSet<Done>,
    /// The calls for messages that are under way.
    asking: Vec<Ask>,
    /// Those whose answers are lost, to be made again.
    unanswered: Vec<Ask>,
    /// One of them waits for what comes.
    waits: bool,
    deleting: usize,
    /// The last call for messages has brought as many as it may.
    full: bool,
    /// How many calls for messages have failed in a row.
    failures: usize,
    /// Before then none is made.
    quiet_until: Option<Instant>,
    /// Before then nothing is deleted.
    deletes_from: Option<Instant>,
    looked: Option<Instant>,
    /// How many messages have come.
    arrived: u64,
    /// The tag that tells others of this process.
    reader: Option<Reader>,
    /// When it was written.
    written: Instant,
    topics: Arc<Topics>,
    /// What the queue is joined to. None, while that is looked at.
    joined: Option<Joined>,
    /// When it was looked at.
    joined_at: Instant,
}

impl Task {
    fn new(
        subscription: &Arc<Subscription>,
        reader: Option<Reader>,
        topics: &Arc<Topics>,
        joined: Joined,
    ) -> Self {
        Self {
            subscription: Arc::clone(subscription),
            calls: JoinSet::new(),
            asking: Vec::new(),
            unanswered: Vec::new(),
            waits: false,
            deleting: 0,
            full: false,
            failures: 0,
            quiet_until: None,
            deletes_from: None,
            looked: None,
            arrived: 0,
            reader,
            written: Instant::now(),
            topics: Arc::clone(topics),
            joined: Some(joined),
            joined_at: Instant::now(),
        }
    }

    async fn run(mut self) {
        let subscription = Arc::clone(&self.subscription);
        let mut tick = tokio::time::interval(subscription.link.settings.visibility_timeout / 12);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ends_at = None;
        loop {
            let (closed, ends, is_empty) = {
                let state = subscription.state.lock();
                (state.is_closed(), state.ends(), state.held.is_empty())
            };
            if closed {
                self.give_back();
                // SQS answers a call also where nobody waits for it any more, and hides what it gives to it.
                let longest = subscription.link.settings.wait_time + LAST_CALL;
                let last_call = *ends_at.get_or_insert(Instant::now() + longest);
                let others = self.calls.len() - self.asking.len();
                let is_over = self.asking.is_empty() || (ends && Instant::now() >= last_call);
                if is_empty && others == 0 && is_over {
                    break;
                }
            } else {
                self.ask();
            }
            self.delete();
            let wake_at = [self.quiet_until, self.deletes_from, ends_at.filter(|_| ends)];
            let wake_at = wake_at.into_iter().flatten().filter(|at| *at > Instant::now()).min();
            tokio::select! {
                () = subscription.bell.notified() => {}
                Some(done) = self.calls.join_next(), if !self.calls.is_empty() => match done {
                    Ok(done) => self.done(done),
                    // What it was to do is not known any more, and would never be done again.
                    Err(error) => {
                        let said = format!(
                            "a call to SQS for the group `{}` has panicked, and its subscription has ended; begin the \
                             program again, and tell of it",
                            subscription.group
                        );
                        subscription.state.fail(BrokerError::new(said).with_cause(error));
                        break;
                    }
                },
                _ = tick.tick() => self.tick(),
                () = sleep_until(wake_at), if wake_at.is_some() => {}
            }
        }
        self.calls.abort_all();
        let unanswered = self.asking.drain(..).chain(self.unanswered.drain(..));
        give_back_unanswered(&subscription, unanswered).await;
        if let Some(reader) = &self.reader {
            // Where it fails, the tag holds for some minutes more.
            let _ = tokio::time::timeout(
                LAST_CALL,
                subscription.link.forget_reader(&subscription.queue.url, reader),
            )
            .await;
        }
        subscription.state.finish();
    }

    /// Asks for messages, where there is room for them.
    fn ask(&mut self) {
        if self.quiet_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.quiet_until = None;
        let wanted = if self.full { CALLS } else { 1 };
        while self.asking.len() < wanted {
            let asked_for: usize = self.asking.iter().map(|ask| ask.most).sum();
            let room = {
                let held = &self.subscription.state.lock().held;
                let ahead = self.subscription.ahead.saturating_sub(held.ahead());
                ahead.min(self.subscription.hold.saturating_sub(held.count())).saturating_sub(asked_for)
            };
            if room == 0 {
                return;
            }
            let new = || Ask {
                name: self
                    .subscription
                    .link
                    .settings
                    .names
                    .fifo
                    .then(|| format!("{:016x}", fastrand::u64(..))),
                asked: Instant::now(),
                most: room.min(MOST),
            };
            let ask = self.unanswered.pop().unwrap_or_else(new);
            let waits = !self.waits;
            let wait = if waits { self.subscription.link.settings.wait_time } else { Duration::ZERO };
            self.waits = true;
            self.asking.push(ask.clone());
            self.calls.spawn(receive(Arc::clone(&self.subscription), wait, waits, ask));
        }
    }

    /// Deletes what is settled.
    fn delete(&mut self) {
        if self.deletes_from.is_some_and(|from| Instant::now() < from) {
            return;
        }
        self.deletes_from = None;
        while self.deleting < DELETES {
            let batch = self.subscription.state.lock().held.next_deletes();
            if batch.is_empty() {
                return;
            }
            self.deleting += 1;
            let subscription = Arc::clone(&self.subscription);
            self.calls.spawn(async move {
                let result = delete(&subscription, &batch).await;
                Done::Deleted { batch, result }
            });
        }
    }

    /// Gives the queue back what nobody has in hand.
    fn give_back(&mut self) {
        let given_back = self.subscription.state.lock().held.give_back();
        self.return_to_queue(given_back.chunks(MOST));
    }

    fn return_to_queue<'a>(&mut self, batches: impl IntoIterator<Item = &'a [Named]>) {
        for batch in batches {
            let handles: Vec<_> = batch.iter().map(|(_, handle)| Arc::clone(handle)).collect();
            let subscription = Arc::clone(&self.subscription);
            self.calls.spawn(async move {
                give_back(&subscription, handles).await;
                Done::GivenBack
            });
        }
    }

    /// Looks for what has to be hidden longer, and for what was hidden too short.
    fn tick(&mut self) {
        let now = Instant::now();
        let (lapsed, extend, (returned, dropped)) = {
            let held = &mut self.subscription.state.lock().held;
            (held.lapse(now), held.next_extensions(now), held.next_returns(now))
        };
        drop((lapsed, dropped));
        self.extend(extend);
        self.return_to_queue(returned.iter().map(Vec::as_slice));
        let is_due = self.looked.is_none_or(|looked| looked + LOOK <= now);
        if is_due && self.subscription.asked.swap(false, Ordering::AcqRel) {
            self.looked = Some(now);
            let subscription = Arc::clone(&self.subscription);
            self.calls
                .spawn(async move { Done::Looked(subscription.link.waiting(&subscription.queue.url).await) });
        }
        if !self.subscription.state.lock().is_closed() {
            self.look_at_topics(now);
        }
        if let Some(reader) = self.reader.clone()
            && self.written + Duration::from_secs(readers::AGAIN) <= now
        {
            self.written = now;
            let subscription = Arc::clone(&self.subscription);
            self.calls.spawn(async move {
                // Where it fails, it is written once more before it is over.
                let _ = subscription.link.write_reader(&subscription.queue.url, &reader).await;
                Done::Written
            });
        }
    }

    /// Looks whether the topics still send to the queue: somebody may have removed one and made it anew.
    fn look_at_topics(&mut self, now: Instant) {
        let link = &self.subscription.link;
        let often = (link.settings.visibility_timeout * 4).min(JOIN_AGAIN);
        if self.joined_at + often > now || link.settings.topology == Topology::Check {
            return;
        }
        let Some(mut joined) = self.joined.take() else { return };
        self.joined_at = now;
        let (subscription, topics) = (Arc::clone(&self.subscription), Arc::clone(&self.topics));
        self.calls.spawn(async move {
            let (link, pattern, queue) = (&subscription.link, &subscription.pattern, &subscription.queue);
            let result = link.join_topics(&topics, pattern, queue, &mut joined).await;
            Done::Joined { joined, result }
        });
    }

    fn joined(&mut self, joined: Joined, result: Result<(), Trouble>) {
        self.joined = Some(joined);
        if let Err(trouble @ Trouble::Refused { .. }) = result {
            log::warn!(
                target: "eventbus", group = %printable(&self.subscription.group), error = %printable(&trouble),
                "cannot look whether the topics still send to the queue of the group, as after somebody has removed one and \
                 made it anew"
            );
        }
    }

    fn extend(&mut self, batches: Vec<Vec<(Token, Arc<str>, i32)>>) {
        for batch in batches {
            let subscription = Arc::clone(&self.subscription);
            self.calls.spawn(async move {
                let asked = Instant::now();
                let result = hide(&subscription, &batch).await;
                Done::Extended { asked, batch, result }
            });
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Received { ask, waited, result } => {
                let there = self.asking.iter().position(|other| other.asked == ask.asked);
                there.map(|there| self.asking.swap_remove(there));
                if waited {
                    self.waits = false;
                }
                self.received(&ask, waited, result);
            }
            Done::Deleted { batch, result } => {
                self.deleting -= 1;
                self.deleted(&batch, result);
            }
            Done::Extended { asked, batch, result } => self.extended(asked, &batch, result),
            Done::Joined { joined, result } => self.joined(joined, result),
            Done::Looked(Ok(backlog)) => self.subscription.state.lock().backlog = Some(backlog),
            Done::Looked(Err(_)) | Done::GivenBack | Done::Written => {}
        }
    }

    fn received(&mut self, ask: &Ask, waited: bool, result: Result<Vec<Message>, Trouble>) {
        if matches!(result, Err(Trouble::Passing(_))) && ask.name.is_some() && ask.asked.elapsed() < ASK_AGAIN
        {
            self.unanswered.push(ask.clone());
        }
        let subscription = &self.subscription;
        let link = &subscription.link;
        let messages = match result.map_err(|trouble| link.unless_young(&subscription.queue.url, trouble)) {
            Ok(messages) => messages,
            Err(trouble) => {
                self.failures += 1;
                self.full = false;
                let pause =
                    if let Trouble::Slow(_) = trouble { slow_down } else { |tries| pause_before(tries + 1) };
                self.quiet_until = Some(Instant::now() + pause(self.failures));
                if let Trouble::Refused { .. } = trouble {
                    self.quiet_until = Some(Instant::now() + Duration::from_secs(1));
                    let what = format!("ask the queue of the group `{}` for events", subscription.group);
                    let hint = if trouble.is_gone() {
                        "; open the subscription anew, which makes it again"
                    } else {
                        ""
                    };
                    let said = format!("{}{hint}", eventbus_core::chain(&trouble.explain(what)));
                    subscription.state.fail(BrokerError::new(said));
                }
                return;
            }
        };
        self.failures = 0;
        self.full = messages.len() == ask.most;
        if messages.is_empty() && waited && ask.asked.elapsed() < Duration::from_millis(500) {
            // It does not wait, whatever it was asked for.
            self.quiet_until = Some(Instant::now() + IMPATIENT);
        }
        let fifo = subscription.link.settings.names.fifo;
        let numbers = self.arrived..;
        self.arrived += messages.len() as u64;
        let arrivals = messages.into_iter().zip(numbers);
        let arrivals: Vec<_> =
            arrivals.filter_map(|(message, number)| arrival(message, number, subscription, fifo)).collect();
        let extend = {
            let (mut state, now) = (subscription.state.lock(), Instant::now());
            for arrival in arrivals {
                state.held.arrive(arrival, ask.asked, now);
            }
            // What SQS was asked for long ago is hidden longer at once.
            state.held.next_extensions(now)
        };
        subscription.state.wake();
        self.extend(extend);
    }

    fn deleted(&mut self, batch: &[Named], result: Result<Vec<Failed>, Trouble>) {
        let all: HashSet<_> = batch.iter().map(|(token, _)| *token).collect();
        let slow = matches!(result, Err(Trouble::Slow(_)));
        let (link, queue) = (&self.subscription.link, &self.subscription.queue.url);
        let again = match result.map_err(|trouble| link.unless_young(queue, trouble)) {
            Ok(failed) => {
                let lost: Vec<_> = failed.iter().filter(|failed| failed.lasting).collect();
                if let Some(one) = lost.first() {
                    log::warn!(
                        target: "eventbus", group = %printable(&self.subscription.group), count = lost.len(),
                        error = %printable(&one.said),
                        "what was handled cannot be deleted from the queue, so it is delivered again"
                    );
                }
                let again = failed.iter().filter(|failed| !failed.lasting);
                again.filter_map(|failed| batch.get(failed.number).map(|(token, _)| *token)).collect()
            }
            Err(Trouble::Passing(_) | Trouble::Slow(_)) => all,
            Err(trouble) if trouble.is_gone() => {
                log::warn!(
                    target: "eventbus", group = %printable(&self.subscription.group), error = %printable(&trouble),
                    "what was handled cannot be deleted, since its queue is gone"
                );
                HashSet::new()
            }
            // Keys that are over are made anew, and a policy can be put right. Meanwhile it is hidden in the queue.
            Err(trouble) => {
                log::warn!(
                    target: "eventbus", group = %printable(&self.subscription.group), error = %printable(&trouble),
                    "what was handled cannot be deleted from the queue; it is tried again"
                );
                all
            }
        };
        if !again.is_empty() {
            self.deletes_from = Some(Instant::now() + if slow { slow_down(1) } else { pause_before(4) });
        }
        self.subscription.state.lock().held.deleted(batch, &again);
    }

    fn extended(
        &self,
        asked: Instant,
        batch: &[(Token, Arc<str>, i32)],
        result: Result<Vec<Failed>, Trouble>,
    ) {
        let failed = match &result {
            Ok(failed) => failed.as_slice(),
            Err(_) => &[],
        };
        let mut lost = Vec::new();
        let dropped = {
            let mut state = self.subscription.state.lock();
            for (number, (token, _, seconds)) in batch.iter().enumerate() {
                let failure = failed.iter().find(|failed| failed.number == number);
                let done = result.is_ok() && failure.is_none();
                let until = asked + Duration::from_secs(u64::try_from(*seconds).unwrap_or_default());
                state.held.extended(*token, done.then_some(until));
                if failure.is_some_and(|failure| failure.lasting) {
                    lost.push(*token);
                }
            }
            state.held.lose(&lost)
        };
        drop(dropped);
        // Some may have waited for this.
        self.subscription.state.wake();
    }
}

async fn receive(subscription: Arc<Subscription>, wait: Duration, waited: bool, ask: Ask) -> Done {
    let result = ask_for(&subscription, wait, &ask).await;
    Done::Received { ask, waited, result }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AwsBrokerBuilder;
    use crate::topology::Queue;
    use eventbus_core::Pattern;
    use eventbus_core::broker::Deliveries;
    use std::future::poll_fn;

    #[tokio::test]
    async fn a_call_that_panics_ends_the_subscription_and_its_reader_hears_of_it() {
        let nobody = "sns://id:secret@us-east-1?endpoint=http://127.0.0.1:1&topology=check";
        let link = Arc::new(Link::new(AwsBrokerBuilder::parse(nobody).unwrap().0).await.unwrap());
        let request = SubscribeRequest::new("mail", Pattern::new("a.b").unwrap());
        let queue = Queue { url: "http://127.0.0.1:1/mail".to_owned(), arn: String::new(), redrive: None };
        let subscription = Arc::new(Subscription::new(link, request, queue, String::new()));
        let mut deliveries = AwsDeliveries::new(Arc::clone(&subscription));
        let mut task = Task::new(&subscription, None, &Arc::default(), Joined::default());
        task.calls.spawn(async { panic!("an answer that nobody has thought of") });
        tokio::time::timeout(Duration::from_secs(10), task.run()).await.expect("it ends");
        let mut received = Vec::new();
        let error = poll_fn(|context| deliveries.poll_receive(context, &mut received, 1)).await.unwrap_err();
        let said = eventbus_core::chain(&error);
        assert!(said.contains("the group `mail`") && said.contains("nobody has thought of"), "{said}");
        assert!(subscription.state.lock().is_finished());
    }
}

//! A session of a subscription in its group: it joins the group, reads for it, answers when partitions come and go, and says
//! what is to be committed.

mod transact;

use crate::arrivals::Arrivals;
use crate::commit::{Standing, add, all_known, elements, is_lasting, text_of};
use crate::committed;
use crate::connection::{cannot, client, explain, is_passing, next, tell};
use crate::errands::{self, Answer, Committed, Errand};
use crate::held::{Commit, CommitPart, Partition};
use crate::keeper::{Broken, End};
use crate::rebalance::{Rebalance, SessionContext, answer_given, answer_taken};
use crate::refusals::Refusals;
use crate::subscribe::AHEAD;
use crate::subscription::Subscription;
use crate::transaction::Answering;
use eventbus_core::BrokerError;
use eventbus_core::broker::Offset as Place;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How long what is settled waits to be committed.
const COMMIT: Duration = Duration::from_millis(100);
/// The same where somebody waits for it: a retry, or whoever has the partition next.
const AWAITED: Duration = Duration::from_millis(5);
/// How many records are handed over together at most.
const TOGETHER: usize = 64;
/// A reader that takes nothing for so long makes the partitions pause: until then what was fetched is kept.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the end of a subscription waits for its last commit.
const LAST_COMMIT: Duration = Duration::from_secs(3);
/// How long it is waited for that a group is left, while something is asked of the server.
const LEAVE: Duration = Duration::from_secs(1);
/// How often a thread looks around by itself.
const LOOK: Duration = Duration::from_millis(250);
/// How long a partition that is given away waits for its handlers at most.
const DRAIN: Duration = Duration::from_secs(120);
/// How often the server is asked whether it still knows a process that is giving partitions away: meanwhile the client does
/// not tell.
const KNOWN: Duration = Duration::from_secs(1);
/// How often the mark of a group is committed, which the server forgets some time after that.
const RENEW: Duration = Duration::from_secs(600);

/// A client in the group.
pub(crate) struct Session {
    subscription: Arc<Subscription>,
    consumer: Arc<BaseConsumer<SessionContext>>,
    /// Leads to the thread that asks the server, and waits for the answers.
    errands: mpsc::Sender<Errand>,
    /// The topics that it has asked for.
    asked: BTreeSet<Arc<str>>,
    /// How often the topics had changed when they were looked at for that.
    looked: Option<u64>,
    arrivals: Arrivals,
    rebalances: VecDeque<Rebalance>,
    /// Partitions that are given away, and until when their handlers are waited for.
    leaving: Option<(TopicPartitionList, Vec<Partition>, Instant)>,
    /// Partitions that were given, of which it is not known yet where they were left.
    arriving: Option<Arriving>,
    committing: Option<Commit>,
    /// What is settled with that.
    answering: Vec<Answering>,
    /// Before then no transaction is begun: the last one was aborted.
    answer_at: Instant,
    /// When the last commit began.
    committed_at: Instant,
    /// It was refused, or could not be made.
    refused: bool,
    /// Since when the reader has taken nothing.
    full_since: Option<Instant>,
    paused: bool,
    /// Before then nothing is asked for that has just failed.
    quiet_until: Instant,
    ends_at: Option<Instant>,
    /// The number of the last question that was asked.
    asks: u64,
    /// The server is asked whether it still knows this process.
    marking: bool,
    /// Before then it is not asked again.
    mark_at: Instant,
    /// When the mark of the group is to be committed again.
    renew_at: Instant,
    /// Commits that are refused.
    refusals: Refusals,
    /// Questions how far the group has come that are refused.
    unknown: Refusals,
    /// Since when the server has refused commits, as those of one that a rebalance has left behind.
    behind_since: Option<Instant>,
    /// Why it is of no use any more.
    broken: Option<Broken>,
}

/// Partitions that were given.
struct Arriving {
    list: TopicPartitionList,
    saved: Saved,
}

/// Where partitions were left.
enum Saved {
    /// To be asked for, from then on.
    Unknown(Instant),
    /// Asked for, with this number.
    Asked(u64),
    Known(TopicPartitionList),
}

impl Session {
    pub(crate) fn new(subscription: &Arc<Subscription>) -> Result<Self, BrokerError> {
        let context = SessionContext::new(Arc::clone(subscription));
        let config = subscription.link.settings.consumer(&subscription.id);
        let mut consumer: BaseConsumer<SessionContext> = client(&config, context)?;
        let rung = Arc::downgrade(subscription);
        consumer.set_nonempty_callback(move || {
            if let Some(subscription) = rung.upgrade() {
                subscription.bell.ring();
            }
        });
        let consumer = Arc::new(consumer);
        let (errands, received) = mpsc::channel();
        let asking = Arc::clone(&consumer);
        let thread = std::thread::Builder::new().name("eventbus-kafka-ask".to_owned());
        thread.spawn(move || errands::run(&asking, &received)).map_err(|error| {
            BrokerError::new("cannot begin a thread that asks the server for the group").with_cause(error)
        })?;
        let now = Instant::now();
        Ok(Self {
            subscription: Arc::clone(subscription),
            consumer,
            errands,
            asked: BTreeSet::new(),
            looked: None,
            arrivals: Arrivals::new(subscription),
            rebalances: VecDeque::new(),
            leaving: None,
            arriving: None,
            committing: None,
            answering: Vec::new(),
            answer_at: now,
            committed_at: now,
            refused: false,
            full_since: None,
            paused: false,
            quiet_until: now,
            ends_at: None,
            asks: 0,
            marking: false,
            mark_at: now,
            renew_at: now,
            refusals: Refusals::default(),
            unknown: Refusals::default(),
            behind_since: None,
            broken: None,
        })
    }

    /// Reads until nobody wants it any more, or it is of no use.
    pub(crate) fn run(&mut self) -> End {
        loop {
            self.is_alive();
            self.poll();
            if self.broken.is_none() {
                self.rebalance();
            }
            if let Some(broken) = self.broken.take() {
                // An answer may have been heard before it.
                let fatal = self.consumer.client().fatal_error();
                return End::Broken(fatal.map_or(broken, |(_, said)| Broken::Fatal(said)));
            }
            self.commit();
            let (closed, ends, idle) = {
                let state = self.subscription.state.lock();
                (state.is_closed(), state.ends(), state.held.is_idle())
            };
            if closed {
                let dropped = self.subscription.state.lock().held.give_back();
                drop(dropped);
                let saved =
                    self.committing.is_none() && self.subscription.state.lock().held.uncommitted() == 0;
                let last = *self.ends_at.get_or_insert(Instant::now() + LAST_COMMIT);
                let is_late = Instant::now() >= last;
                if (idle && (saved || is_late)) || (ends && is_late) {
                    return End::Over;
                }
            } else {
                self.ask_for_topics();
            }
            self.subscription.bell.wait(self.pause(closed));
        }
    }

    /// How long to sleep, unless the bell rings.
    fn pause(&self, closed: bool) -> Duration {
        let (has_unsaved, has_answers) = {
            let state = self.subscription.state.lock();
            (state.held.uncommitted() > 0, !state.answers.is_empty())
        };
        if self.committing.is_none() && has_answers {
            let left = self.answer_at.saturating_duration_since(Instant::now());
            left.max(Duration::from_millis(1))
        } else if self.committing.is_none() && has_unsaved {
            self.until_commit().max(Duration::from_millis(1))
        } else if closed || self.leaving.is_some() || self.arriving.is_some() {
            Duration::from_millis(20)
        } else {
            LOOK
        }
    }

    /// Notes that this thread runs. Where it did not for long, the server may have given its partitions away, and nothing is
    /// begun before it has said something.
    fn is_alive(&mut self) {
        let silence = self.subscription.silence();
        let (doubt, has_some) = {
            let mut state = self.subscription.state.lock();
            (state.doubt.run(Instant::now(), silence), state.held.has_some())
        };
        // Whoever is no member of the group is not asked about: it has nothing, and a commit would make it join anew.
        let asks = doubt.is_some() || self.leaving.is_some() || Instant::now() >= self.renew_at;
        if !asks || !has_some || self.consumer.assignment_lost() {
            return;
        }
        if self.marking || Instant::now() < self.mark_at {
            return;
        }
        // The server refuses what a process commits that it has given up.
        let mark = self.subscription.link.groups_topic();
        let mut list = TopicPartitionList::new();
        add(&mut list, &(mark.as_str().into(), 0), 0, "");
        self.marking = self.ask(Errand::Mark(doubt, list));
    }

    /// No, where its thread has ended.
    fn ask(&self, errand: Errand) -> bool {
        self.errands.send(errand).is_ok()
    }

    /// Asks for the topics that there are now.
    fn ask_for_topics(&mut self) {
        let changes = self.subscription.topics.changes();
        if self.looked == Some(changes) || Instant::now() < self.quiet_until {
            return;
        }
        let Subscription { link, topics, group, pattern, .. } = &*self.subscription;
        let mut wanted: BTreeSet<_> =
            link.covered(topics, pattern).into_iter().map(|(topic, _)| topic).collect();
        let again = link.again_topic(group);
        if topics.partitions(&again).is_some() {
            wanted.insert(again.into());
        }
        if wanted.is_empty() {
            // So that it has joined the group before there is a topic. Later it would count as a partition that somebody has.
            wanted.insert(link.groups_topic().into());
        }
        if wanted == self.asked {
            self.looked = Some(changes);
            return;
        }
        let names: Vec<&str> = wanted.iter().map(|topic| &**topic).collect();
        match self.consumer.subscribe(&names) {
            Ok(()) => {
                // What is held of a topic that is not there is of no offset of one that is made anew under its name.
                let gone: Vec<_> = self.asked.difference(&wanted).map(|topic| &**topic).collect();
                let dropped = self.subscription.state.lock().held.remove_topics(&gone);
                drop(dropped);
                self.subscription.state.tell();
                (self.asked, self.looked) = (wanted, Some(changes));
            }
            Err(error) => {
                self.quiet_until = Instant::now() + Duration::from_secs(1);
                let said = format!("cannot join the group `{group}`: {}", explain(&error));
                self.subscription.state.fail(BrokerError::new(said));
            }
        }
    }

    /// Takes what the client has, as long as there is room, and hands over some of it together.
    fn poll(&mut self) {
        let mut is_all = false;
        while !is_all
            && self.broken.is_none()
            && let Some((at_hand, bytes)) = self.room()
        {
            for _ in 0..TOGETHER {
                let (read, size) = self.arrivals.len();
                // One that is paused gives no records, but tells what else there is.
                if !self.paused && AHEAD.is_reached(at_hand + read, bytes + size) {
                    break;
                }
                match next(&self.consumer) {
                    Some(Ok(message)) => self.arrivals.read(&self.subscription, &message),
                    Some(Err(error)) => self.trouble(&error),
                    None => {
                        is_all = true;
                        break;
                    }
                }
            }
            if self.arrivals.hand_over(&self.subscription) {
                self.subscription.state.wake();
            }
        }
        let mut events = self.consumer.context().events.lock();
        self.rebalances.append(&mut events.rebalances);
        let answers = std::mem::take(&mut events.answers);
        drop(events);
        for answer in answers {
            self.hear(answer);
        }
    }

    /// What is at hand, where the client is asked for more: there is room for it, or its partitions are paused, since the
    /// reader has taken nothing for some time, or is gone.
    fn room(&mut self) -> Option<(usize, usize)> {
        let (is_closed, (at_hand, bytes)) = {
            let state = self.subscription.state.lock();
            (state.is_closed(), state.held.at_hand())
        };
        let is_full = AHEAD.is_reached(at_hand, bytes);
        let pauses = if is_closed {
            true
        } else if is_full {
            let since = *self.full_since.get_or_insert_with(Instant::now);
            self.paused || since.elapsed() >= PAUSE
        } else {
            self.full_since = None;
            false
        };
        if self.paused != pauses {
            self.pause_all(pauses);
        }
        (!is_full || self.paused).then_some((at_hand, bytes))
    }

    fn hear(&mut self, answer: Answer) {
        match answer {
            Answer::Commit(Committed { refused, too_long, result }) => {
                self.hear_of_commit(&result);
                if let Some(length) = too_long {
                    self.subscription.link.shorten_texts(length);
                }
                self.end_commit(&refused);
            }
            Answer::Mark(number, result) => {
                self.hear_of_commit(&result);
                if let Some(number) = number
                    && result.is_ok()
                {
                    self.subscription.state.lock().doubt.end(number);
                }
                if result.is_ok() {
                    self.renew_at = Instant::now() + RENEW;
                }
                self.marking = false;
                self.mark_at = Instant::now() + if number.is_some() { LOOK } else { KNOWN };
            }
            Answer::Transacted(transacted) => self.end_transaction(transacted),
            Answer::Panicked(said) => self.broken = Some(Broken::Panicked(said)),
            Answer::Saved(number, answer) => {
                let arriving = self.arriving.as_mut();
                let is_asked = |arriving: &&mut Arriving| matches!(arriving.saved, Saved::Asked(asked) if asked == number);
                // What was given may be lost by now.
                let Some(arriving) = arriving.filter(is_asked) else { return };
                arriving.saved = match answer.and_then(all_known) {
                    Ok(list) => {
                        self.unknown.end();
                        Saved::Known(list)
                    }
                    Err(error) => {
                        tell("COMMITTED", &error.to_string());
                        if is_lasting(&error) && self.unknown.hear(Instant::now()) {
                            let what =
                                format!("look how far the group `{}` has come", self.subscription.group);
                            self.subscription.state.fail(cannot(what, &error));
                        }
                        Saved::Unknown(Instant::now() + LOOK)
                    }
                };
            }
        }
    }

    /// A commit was answered. Where the server goes on to refuse it, all is delivered again after a restart.
    fn hear_of_commit(&mut self, result: &KafkaResult<()>) {
        self.stand(result.as_ref().err().map_or(Standing::Member, Standing::of));
        match result {
            Ok(()) => self.refusals.end(),
            Err(error) if is_lasting(error) && self.refusals.hear(Instant::now()) => {
                let group = &self.subscription.group;
                let what =
                    format!("commit for the group `{group}`, so that all is delivered again after a restart");
                self.subscription.state.fail(cannot(what, error));
            }
            Err(_) => {}
        }
    }

    /// The server has said how this process stands. During a rebalance the client alone would not notice that the group has
    /// gone on without it, and what it has would be handled here and there.
    fn stand(&mut self, standing: Standing) {
        let since = match standing {
            Standing::Member => None,
            // A rebalance may be about to tell it where the group is; that of the others is over by then.
            Standing::Behind => Some(*self.behind_since.get_or_insert_with(Instant::now)),
            Standing::Stranger => {
                self.broken = Some(Broken::Stranger);
                None
            }
        };
        if since.is_some_and(|since| since.elapsed() > self.subscription.silence()) {
            self.broken = Some(Broken::Stranger);
        }
        self.behind_since = since;
    }

    fn pause_all(&mut self, pauses: bool) {
        let Ok(list) = self.consumer.assignment() else { return };
        let answer = if pauses { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        match answer {
            Ok(()) => self.paused = pauses,
            Err(error) => tell("PAUSE", &error.to_string()),
        }
    }

    fn trouble(&mut self, error: &KafkaError) {
        use RDKafkaErrorCode as Code;
        if let Some((_, said)) = self.consumer.client().fatal_error() {
            self.broken = Some(Broken::Fatal(said));
            return;
        }
        let group = &self.subscription.group;
        match error.rdkafka_error_code() {
            // It was told of with its cause.
            Some(Code::AllBrokersDown) => {}
            // The list of topics is behind.
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {}
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => tell("OFFSET", &error.to_string()),
            // It joins again by itself.
            Some(
                Code::PollExceeded
                | Code::UnknownMemberId
                | Code::IllegalGeneration
                | Code::RebalanceInProgress,
            ) => {}
            _ if is_passing(error) => {}
            _ => {
                let what = format!("read for the group `{group}`");
                self.subscription.state.fail(cannot(what, error));
            }
        }
    }

    /// Answers what was given and taken, in its order.
    fn rebalance(&mut self) {
        loop {
            if let Some((list, partitions, until)) = self.leaving.take() {
                let lost = self.consumer.assignment_lost();
                let (drained, committed) = {
                    let held = &self.subscription.state.lock().held;
                    (held.is_drained(&partitions), held.is_committed(&partitions))
                };
                // A server that knows this process no more takes no commit of it.
                let until = if drained { until.min(Instant::now() + LAST_COMMIT) } else { until };
                let waits = self.committing.as_ref().is_some_and(|commit| commit.has_some_of(&partitions));
                let is_over = lost || (drained && committed && !waits) || Instant::now() >= until;
                if !is_over {
                    self.leaving = Some((list, partitions, until));
                    return;
                }
                // The client would send it as that of whatever member it is by then, behind what another process commits.
                if waits {
                    self.leaving = Some((list, partitions, until));
                    self.broken = Some(Broken::Unanswered);
                    return;
                }
                let dropped = self.subscription.state.lock().held.remove(&partitions);
                drop(dropped);
                self.subscription.state.tell();
                answer_taken(&self.consumer, &list);
            }
            if let Some(Arriving { list, saved }) = self.arriving.take() {
                if self.consumer.assignment_lost() {
                    answer_given(&self.consumer, &TopicPartitionList::new());
                } else if let Saved::Known(saved) = saved {
                    self.begin(&list, &saved);
                } else {
                    let saved = self.ask_for_saved(&list, saved);
                    self.arriving = Some(Arriving { list, saved });
                    return;
                }
            }
            match self.rebalances.pop_front() {
                None => return,
                Some(Rebalance::Taken(list)) => {
                    let partitions = elements(&list);
                    let dropped = self.subscription.state.lock().held.leave(&partitions);
                    drop(dropped);
                    let limit = self.subscription.timeout.min(DRAIN);
                    self.leaving = Some((list, partitions, Instant::now() + limit));
                }
                Some(Rebalance::Given(list)) => {
                    let has_events = elements(&list).iter().any(|(topic, _)| !self.is_mark(topic));
                    let saved = if has_events {
                        Saved::Unknown(Instant::now())
                    } else {
                        Saved::Known(TopicPartitionList::new())
                    };
                    self.arriving = Some(Arriving { list, saved });
                }
            }
        }
    }

    fn is_mark(&self, topic: &str) -> bool {
        topic == self.subscription.link.groups_topic()
    }

    /// Asks where partitions were left, as soon as that is due.
    fn ask_for_saved(&mut self, list: &TopicPartitionList, saved: Saved) -> Saved {
        if !matches!(saved, Saved::Unknown(due) if due <= Instant::now()) {
            return saved;
        }
        let mut asked = TopicPartitionList::new();
        for (topic, partition) in elements(list).iter().filter(|(topic, _)| !self.is_mark(topic)) {
            asked.add_partition(topic, *partition);
        }
        self.asks += 1;
        if self.ask(Errand::Saved(self.asks, asked)) {
            Saved::Asked(self.asks)
        } else {
            Saved::Unknown(Instant::now() + LOOK)
        }
    }

    /// Begins with partitions where they were left.
    fn begin(&mut self, list: &TopicPartitionList, saved: &TopicPartitionList) {
        let mut begins = TopicPartitionList::new();
        let mut parts = Vec::new();
        for element in saved.elements() {
            let partition: Partition = (element.topic().into(), element.partition());
            let (offset, text) = match element.offset() {
                Offset::Offset(offset) => (offset, text_of(&element)),
                _ => (0, String::new()),
            };
            let saved = committed::read(Place::new(u128::from(offset.unsigned_abs())), &text);
            // What is kept may begin later.
            let begin = if offset == 0 { Offset::Beginning } else { Offset::Offset(offset) };
            begins
                .add_partition_offset(&partition.0, partition.1, begin)
                .expect("an offset is not below zero");
            parts.push((partition, saved));
        }
        let mut state = self.subscription.state.lock();
        for (partition, saved) in parts {
            state.held.assign(partition, saved);
        }
        drop(state);
        let mark = self.subscription.link.groups_topic();
        if elements(list).iter().any(|(topic, _)| **topic == *mark) {
            begins.add_partition_offset(&mark, 0, Offset::Beginning).expect("the beginning is an offset");
        }
        answer_given(&self.consumer, &begins);
        // The client keeps the pause of a partition that was away meanwhile.
        if let Err(error) = self.consumer.resume(&begins) {
            tell("PAUSE", &error.to_string());
        }
        if self.paused {
            // All of it goes on, until it is seen again that there is no room.
            self.pause_all(false);
            self.full_since = None;
        }
        self.subscription.state.lock().joined = true;
        self.subscription.state.tell();
    }

    /// How long what is settled and noted waits to be committed.
    fn until_commit(&self) -> Duration {
        let is_awaited = {
            let state = self.subscription.state.lock();
            state.is_closed() || state.held.has_notes() || self.leaving.is_some()
        };
        let waits = if is_awaited && !self.refused { AWAITED } else { COMMIT };
        waits.saturating_sub(self.committed_at.elapsed())
    }

    /// Commits what is settled and noted, where something is.
    fn commit(&mut self) {
        if self.committing.is_none() && self.transact() {
            return;
        }
        if self.committing.is_some() || !self.until_commit().is_zero() {
            return;
        }
        // Whoever is no member of the group any more may commit nothing, and would be refused for that.
        if self.consumer.assignment_lost() {
            (self.committed_at, self.refused) = (Instant::now(), true);
            return;
        }
        let longest = self.subscription.link.longest_text();
        let commit = self.subscription.state.lock().held.begin_commit(longest, Vec::new());
        self.committed_at = Instant::now();
        let Some(commit) = commit else {
            self.subscription.state.tell();
            return;
        };
        // A text may be refused, and that is told of one partition alone.
        let (plain, noted): (Vec<_>, Vec<_>) = commit.parts.iter().partition(|part| part.text.is_empty());
        let lists = noted.chunks(1).chain(Some(&plain[..]).filter(|plain| !plain.is_empty()));
        let mark: Partition = (self.subscription.link.groups_topic().into(), 0);
        let lists = lists.map(|parts| {
            let mut list = TopicPartitionList::with_capacity(parts.len() + 1);
            // Where all topics of a commit are gone, the client sends it until one is made anew under the name, and what is
            // committed of that is an offset of the former one. This one is never gone.
            add(&mut list, &mark, 0, "");
            for part in parts {
                add_part(&mut list, part);
            }
            list
        });
        let sent = self.ask(Errand::Commit(lists.collect()));
        let all = commit.partitions().collect();
        self.committing = Some(commit);
        if !sent {
            self.end_commit(&all);
        }
    }

    fn end_commit(&mut self, refused: &HashSet<Partition>) {
        let Some(commit) = self.committing.take() else { return };
        self.refused = !refused.is_empty();
        if self.refused {
            // Again a moment later.
            self.committed_at = Instant::now();
        }
        self.subscription.state.lock().held.end_commit(commit, |partition| !refused.contains(partition));
        self.subscription.state.tell();
    }

    /// Leaves the group.
    pub(crate) fn end(mut self) {
        let pending: Vec<_> = {
            let mut events = self.consumer.context().events.lock();
            events.ending = true;
            self.rebalances.append(&mut events.rebalances);
            self.rebalances.drain(..).collect()
        };
        if let Some((list, ..)) = self.leaving.take() {
            answer_taken(&self.consumer, &list);
        }
        if self.arriving.take().is_some() {
            answer_given(&self.consumer, &TopicPartitionList::new());
        }
        for rebalance in pending {
            match rebalance {
                Rebalance::Given(_) => answer_given(&self.consumer, &TopicPartitionList::new()),
                Rebalance::Taken(list) => answer_taken(&self.consumer, &list),
            }
        }
        let Self { consumer, errands, .. } = self;
        // Its thread ends with that, unless it waits for a server: then the group is to be left all the same.
        drop(errands);
        if consumer.close_queue().is_ok() {
            let until = Instant::now() + LEAVE;
            while !consumer.closed() && Instant::now() < until {
                drop(consumer.poll(LOOK / 10));
            }
        }
        drop(consumer);
    }
}

/// Adds what is to be committed of a partition.
fn add_part(list: &mut TopicPartitionList, part: &CommitPart) {
    add(list, &part.partition, i64::try_from(part.cursor).unwrap_or(i64::MAX), &part.text);
}

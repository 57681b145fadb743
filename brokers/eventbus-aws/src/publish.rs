//! Publishing: events gather while a batch is on its way, and go ten at a time.

use crate::batches::{MOST, first_batch};
use crate::connection::{CALL, Link, Trouble, is_throttled, slow_down};
use crate::names::hash;
use crate::topics::Topics;
use crate::wire::{self, LARGEST_EVENT, MAX_PAYLOAD, Written};
use aws_sdk_sns::types::{MessageAttributeValue, PublishBatchRequestEntry};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BoxError, BrokerError, Envelope, PublishError, Topic};
use eventbus_server::answers::{Answer, Answers, Waiting};
use eventbus_server::connection::{Lost, pause_before};
use eventbus_server::tasks::Tasks;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// How many batches of one topic are on their way at once. Events of one key go through one of them.
const LANES: usize = 8;
/// How many events wait to be sent at once, before publishers wait.
const OPEN: usize = 2_048;

/// Where publishes go.
pub(crate) struct Outlet {
    link: Arc<Link>,
    topics: Arc<Topics>,
    /// What waits, by topic and lane. A lane that is here has a task that empties it.
    lanes: Lock<HashMap<(String, usize), VecDeque<Pending>>>,
    tasks: Tasks,
    answers: Answers,
    /// Of events without order, the lane of the next.
    turn: AtomicUsize,
}

/// An event that waits to be stored.
struct Pending {
    written: Written,
    size: usize,
    topic: Topic,
    /// Its message group, and by what it is known again.
    fifo: Option<(String, String)>,
    /// It was sent, and what became of that is not known.
    unsure: bool,
    /// The server did not want it the last time, since there is too much.
    slowed: bool,
    waiting: Waiting,
}

impl Pending {
    fn group(&self) -> Option<&str> {
        self.fifo.as_ref().map(|(group, _)| group.as_str())
    }

    fn refuse(self, cause: impl Into<BoxError>) {
        if self.unsure { self.waiting.give_up(cause) } else { self.waiting.refuse(cause) }
    }
}

impl Outlet {
    pub(crate) fn new(link: Arc<Link>, topics: Arc<Topics>) -> Self {
        Self {
            answers: Answers::new("Amazon", OPEN, link.settings.publish_timeout),
            link,
            topics,
            lanes: Lock::new(Rank::BROKER, HashMap::new()),
            tasks: Tasks::new(),
            turn: AtomicUsize::new(0),
        }
    }

    pub(crate) async fn publish(self: Arc<Self>, envelope: Arc<Envelope>) -> Result<(), PublishError> {
        self.enqueue(&envelope, self.answers.deadline()).await?.told().await
    }

    pub(crate) async fn publish_all(
        self: Arc<Self>,
        envelopes: Vec<Arc<Envelope>>,
    ) -> Vec<Result<(), PublishError>> {
        self.answers.all(&envelopes, |envelope, deadline| self.enqueue(envelope, deadline)).await
    }

    async fn enqueue(
        self: &Arc<Self>,
        envelope: &Envelope,
        deadline: Instant,
    ) -> Result<Answer, PublishError> {
        let topic = envelope.topic().clone();
        let encode = |cause: BoxError| PublishError::Encode { topic: topic.to_string(), cause };
        let payload = envelope.payload().map_err(|error| encode(error.into()))?.len();
        envelope.check_size(payload, MAX_PAYLOAD)?;
        let written = wire::write(envelope, self.link.settings.content_mode);
        let written = written.map_err(|error| encode(error.into()))?;
        let size = written.size();
        if size > LARGEST_EVENT {
            let (topic, part) = (topic.to_string(), "headers and payload, as they are written,");
            return Err(PublishError::TooLarge { topic, part, size, limit: LARGEST_EVENT });
        }
        let opened = self.answers.open(topic.as_str(), deadline, || self.link.state.lost());
        let (waiting, answer) = opened.await?;
        let fifo = self.link.settings.names.fifo;
        let fifo = fifo.then(|| (wire::message_group(envelope), wire::deduplication_id(envelope)));
        let lane = match &fifo {
            Some((group, _)) => hash(&[group]) as usize,
            None => self.turn.fetch_add(1, Ordering::Relaxed),
        };
        let lane = (topic.to_string(), lane % LANES);
        self.put(lane, Pending { written, size, topic, fifo, unsure: false, slowed: false, waiting });
        Ok(answer)
    }

    fn put(self: &Arc<Self>, lane: (String, usize), pending: Pending) {
        let mut lanes = self.lanes.lock();
        match lanes.entry(lane.clone()) {
            Entry::Occupied(mut there) => there.get_mut().push_back(pending),
            Entry::Vacant(none) => {
                none.insert(VecDeque::from([pending]));
                drop(lanes);
                let emptied = Emptied { outlet: Arc::clone(self), lane: Some(lane) };
                self.tasks.spawn(emptied.run());
            }
        }
    }

    /// Sends a batch until each of it is answered.
    async fn send(&self, mut batch: Vec<Pending>) {
        let mut slow = 0;
        for tried in 1.. {
            let now = Instant::now();
            let (late, left): (Vec<_>, _) =
                batch.into_iter().partition(|pending| pending.waiting.deadline() <= now);
            for pending in late {
                pending.refuse(self.unconfirmed());
            }
            batch = left;
            if batch.is_empty() {
                return;
            }
            let before = batch.len();
            batch = self.try_once(batch).await;
            if batch.is_empty() {
                return;
            }
            slow = if batch.iter().any(|pending| pending.slowed) { slow + 1 } else { 0 };
            let pause = match slow {
                0 if batch.len() < before => pause_before(2),
                0 => pause_before(tried + 1),
                slow => slow_down(slow),
            };
            batch.iter_mut().for_each(|pending| pending.slowed = false);
            tokio::time::sleep(pause).await;
        }
    }

    fn unconfirmed(&self) -> BrokerError {
        let within = self.link.settings.publish_timeout;
        let error =
            BrokerError::new(format!("Amazon has not confirmed it within {within:?} (`publish_timeout`)"));
        Lost::explain(self.link.state.lost(), error)
    }

    /// Sends a batch once; what is to be sent again.
    async fn try_once(&self, mut batch: Vec<Pending>) -> Vec<Pending> {
        let topic = batch[0].topic.clone();
        let arn = match self.link.topic(&self.topics, &topic).await {
            Ok(arn) => arn,
            Err(Trouble::Passing(_)) => return batch,
            Err(Trouble::Slow(_)) => return slowed(batch),
            Err(trouble) => {
                refuse_all(batch, &trouble.explain("make or find the topic in SNS"));
                return Vec::new();
            }
        };
        let entries = batch.iter().enumerate().map(|(number, pending)| entry(number, pending)).collect();
        let call =
            self.link.sns.publish_batch().topic_arn(arn).set_publish_batch_request_entries(Some(entries));
        match self.link.call(CALL, call.send()).await {
            Ok(answer) => {
                let failed = answer.failed().iter().filter_map(|failed| {
                    let number = failed.id().parse().ok().filter(|number| *number < MOST)?;
                    let message = failed.message().unwrap_or("no reason is given");
                    // Amazon calls it the sender's fault that there are too many calls.
                    let lasting = failed.sender_fault() && !is_throttled(failed.code());
                    Some((number, (lasting, format!("{}: {message}", failed.code()))))
                });
                let stored =
                    answer.successful().iter().filter_map(|entry| entry.id()?.parse().ok()).collect();
                answer_each(batch, &stored, failed.collect())
            }
            Err(Trouble::Passing(_)) => {
                batch.iter_mut().for_each(|pending| pending.unsure = true);
                batch
            }
            // It is not stored, for sure.
            Err(Trouble::Slow(_)) => slowed(batch),
            Err(trouble) if trouble.is_gone() => {
                // Somebody has removed it. Made again, it has its queues again.
                if let Some(name) = self.link.settings.names.topic(topic.as_str()) {
                    self.topics.forget(&name);
                }
                batch
            }
            Err(trouble) if batch.len() == 1 => {
                refuse_all(batch, &trouble.explain("publish to SNS"));
                Vec::new()
            }
            // One of them is the reason, and the others are not to suffer for it.
            Err(_) => {
                let mut again = Vec::new();
                let mut behind: HashSet<String> = HashSet::new();
                for pending in batch {
                    // What follows in an order waits for what is before it.
                    if pending.group().is_some_and(|group| behind.contains(group)) {
                        again.push(pending);
                        continue;
                    }
                    // Each call may take its time.
                    if pending.waiting.deadline() <= Instant::now() {
                        pending.refuse(self.unconfirmed());
                        continue;
                    }
                    let left = Box::pin(self.try_once(vec![pending])).await;
                    behind.extend(left.iter().filter_map(|pending| pending.group().map(str::to_owned)));
                    again.extend(left);
                }
                again
            }
        }
    }

    /// How many publishes are not answered.
    pub(crate) fn open(&self) -> usize {
        self.answers.count()
    }

    /// Resolves once all publishes are answered.
    pub(crate) async fn emptied(&self) {
        self.answers.none().await;
    }

    /// Nothing is sent any more.
    pub(crate) fn abort(&self) {
        self.answers.close();
        self.tasks.abort();
        let lanes = std::mem::take(&mut *self.lanes.lock());
        // Whoever waits learns it from the end of its channel.
        drop(lanes);
    }
}

/// A lane that is being emptied. Whatever ends that, the lane is not there afterwards, and the next publish begins anew.
struct Emptied {
    outlet: Arc<Outlet>,
    /// None, once nothing waits in it.
    lane: Option<(String, usize)>,
}

impl Emptied {
    /// Sends what waits, a batch after the other, until nothing does.
    async fn run(mut self) {
        while let Some(batch) = self.next() {
            self.outlet.send(batch).await;
        }
    }

    fn next(&mut self) -> Option<Vec<Pending>> {
        let lane = self.lane.as_ref()?;
        let mut lanes = self.outlet.lanes.lock();
        let count = lanes.get(lane).map(|waiting| first_batch(waiting.iter().map(|pending| pending.size)));
        if let Some(count @ 1..) = count {
            return Some(lanes.get_mut(lane)?.drain(..count).collect());
        }
        lanes.remove(lane);
        // From here on it is that of whoever publishes next.
        self.lane = None;
        None
    }
}

impl Drop for Emptied {
    fn drop(&mut self) {
        let Some(lane) = self.lane.take() else { return };
        let left = self.outlet.lanes.lock().remove(&lane);
        // Whoever waits learns it from the end of its channel.
        drop(left);
    }
}

/// The same, to be sent again in a while.
fn slowed(mut batch: Vec<Pending>) -> Vec<Pending> {
    batch.iter_mut().for_each(|pending| pending.slowed = true);
    batch
}

fn refuse_all(batch: Vec<Pending>, error: &BrokerError) {
    let said = eventbus_core::chain(error);
    for pending in batch {
        pending.refuse(said.clone());
    }
}

/// Answers each event of a batch by itself; what is to be sent again, in its order.
fn answer_each(
    batch: Vec<Pending>,
    stored: &HashSet<usize>,
    failed: HashMap<usize, (bool, String)>,
) -> Vec<Pending> {
    // Stored now, an event would stand behind those of its key that are there.
    let overtakes = |number: usize, pending: &Pending| {
        let later = batch.iter().enumerate().skip(number + 1);
        pending.group().is_some()
            && later
                .filter(|(_, other)| other.group() == pending.group())
                .any(|(number, _)| stored.contains(&number))
    };
    let overtaken: Vec<_> =
        batch.iter().enumerate().map(|(number, pending)| overtakes(number, pending)).collect();
    let mut again = Vec::new();
    for (number, mut pending) in batch.into_iter().enumerate() {
        match failed.get(&number) {
            _ if stored.contains(&number) => pending.waiting.confirm(),
            Some((true, said)) => pending.refuse(said.clone()),
            Some((false, said)) if overtaken[number] => {
                pending
                    .refuse(format!("{said}; a later event of its key is stored, so it is not sent again"));
            }
            Some((false, said)) => {
                pending.slowed = is_throttled(said);
                again.push(pending);
            }
            // An answer that says nothing of an entry leaves it open.
            None if overtaken[number] => {
                pending.unsure = true;
                pending.refuse("Amazon has not answered for it, and a later event of its key is stored");
            }
            None => {
                pending.unsure = true;
                again.push(pending);
            }
        }
    }
    again
}

fn entry(number: usize, pending: &Pending) -> PublishBatchRequestEntry {
    let attributes = pending.written.attributes.iter().map(|(name, value)| {
        let value = MessageAttributeValue::builder().data_type("String").string_value(value);
        ((*name).to_owned(), value.build().expect("it has a type"))
    });
    let mut entry = PublishBatchRequestEntry::builder()
        .id(number.to_string())
        .message(&pending.written.body)
        .set_message_attributes(Some(attributes.collect()));
    if let Some((group, id)) = &pending.fifo {
        entry = entry.message_group_id(group).message_deduplication_id(id);
    }
    entry.build().expect("it has an id and a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AwsBrokerBuilder;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    async fn batch(groups: &[Option<&str>]) -> (Vec<Pending>, Vec<Answer>) {
        let (answers, mut batch) = (Answers::new("Amazon", 100, Duration::from_secs(1)), Vec::new());
        for group in groups {
            let opened = answers.open("a.b", answers.deadline(), || None).await;
            let (waiting, answer) = opened.unwrap();
            let pending = Pending {
                written: Written { attributes: Vec::new(), body: "1".to_owned() },
                size: 1,
                topic: Topic::from_static("a.b"),
                fifo: group.map(|group| (group.to_owned(), "id".to_owned())),
                unsure: false,
                slowed: false,
                waiting,
            };
            batch.push((pending, answer));
        }
        batch.into_iter().unzip()
    }

    fn said(answers: Vec<Answer>) -> Vec<&'static str> {
        let mut context = Context::from_waker(Waker::noop());
        let said = answers.into_iter().map(|answer| match pin!(answer.told()).poll(&mut context) {
            Poll::Ready(Ok(())) => "stored",
            Poll::Ready(Err(PublishError::Broker { .. })) => "refused",
            Poll::Ready(Err(PublishError::Unconfirmed { .. })) => "unconfirmed",
            Poll::Ready(Err(_)) => "another error",
            Poll::Pending => "open",
        });
        said.collect()
    }

    fn failed(entries: &[(usize, bool)]) -> HashMap<usize, (bool, String)> {
        entries.iter().map(|(number, fault)| (*number, (*fault, "why".to_owned()))).collect()
    }

    #[tokio::test]
    async fn publishes_that_find_no_room_end_when_their_time_is_over() {
        let nobody = "sns://id:secret@us-east-1?endpoint=http://127.0.0.1:1&publish_timeout=1s";
        let link = Arc::new(Link::new(AwsBrokerBuilder::parse(nobody).unwrap().0).await.unwrap());
        let outlet = Arc::new(Outlet::new(link, Arc::default()));
        let mut taken = Vec::new();
        for _ in 0..OPEN {
            let opened = outlet.answers.open("a.b", outlet.answers.deadline(), || None).await;
            taken.push(opened.unwrap());
        }
        let events = (0..5).map(|n| Arc::new(Envelope::from_json(Topic::from_static("a.b"), &n).unwrap()));
        let answers = Arc::clone(&outlet).publish_all(events.collect());
        // Each in its turn would take longer.
        let answers = tokio::time::timeout(Duration::from_secs(4), answers).await.expect("they end");
        for answer in answers {
            let error = answer.unwrap_err();
            assert!(matches!(error, PublishError::Broker { .. }), "{error}");
            assert!(eventbus_core::chain(&error).contains("2048 others wait"), "{error}");
        }
    }

    #[tokio::test]
    async fn each_entry_of_a_batch_is_answered_by_itself() {
        let (pending, receivers) = batch(&[None; 4]).await;
        let again = answer_each(pending, &HashSet::from([0, 3]), failed(&[(1, true), (2, false)]));
        assert_eq!(again.len(), 1);
        assert_eq!(said(receivers), ["stored", "refused", "open", "stored"]);
    }

    #[tokio::test]
    async fn what_a_later_event_of_its_key_has_overtaken_is_not_sent_again() {
        let (pending, receivers) = batch(&[Some("a"), Some("b"), Some("a"), Some("b"), Some("c")]).await;
        let again = answer_each(pending, &HashSet::from([2]), failed(&[(0, false), (1, false), (3, false)]));
        assert_eq!(again.iter().map(|pending| pending.group().unwrap()).collect::<Vec<_>>(), ["b", "b", "c"]);
        assert_eq!(said(receivers), ["refused", "open", "stored", "open", "open"]);
    }

    #[tokio::test]
    async fn an_entry_without_an_answer_may_be_stored() {
        let (pending, receivers) = batch(&[Some("a"), Some("a")]).await;
        assert!(answer_each(pending, &HashSet::from([1]), HashMap::new()).is_empty());
        assert_eq!(said(receivers), ["unconfirmed", "stored"]);
    }
}

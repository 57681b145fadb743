//! SNS and SQS: Amazon's clients by themselves, and what our side needs to know of the server.

use crate::ours::{At, GROUP, request};
use crate::reader::Reader;
use crate::work::{Contestant, Handler, SOURCE, Stored, TOPIC};
use eventbus::EventId;
use eventbus::aws::AwsBroker;
use eventbus::aws::aws_sdk_sns::types::{MessageAttributeValue, PublishBatchRequestEntry};
use eventbus::aws::aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName, QueueAttributeName,
};
use eventbus::aws::{aws_sdk_sns, aws_sdk_sqs};
use eventbus::broker::{Broker, Start};
use eventbus::jiff::Timestamp;
use futures_util::future::{join, join_all};
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, oneshot};

/// As many as one call takes or brings.
const BATCH: usize = 10;
/// How many calls that publish are under way, as ours has them.
const SENDERS: usize = 8;
/// How many calls that read are under way, as ours has them where there is much to read.
const READERS: usize = 4;
/// How long a call waits for what comes, in seconds.
const WAIT: i32 = 1;

/// A topic, and a queue for a group.
#[derive(Clone)]
pub(crate) struct Place {
    sns: aws_sdk_sns::Client,
    sqs: aws_sdk_sqs::Client,
    prefix: String,
}

/// The address of a broker whose names begin so.
fn address(url: &str, prefix: &str) -> String {
    format!("sns://test:test@us-east-1?endpoint={url}&prefix={prefix}&wait_time={WAIT}s")
}

impl Place {
    /// The clients with the settings of our broker, which makes them.
    async fn new(url: &str, prefix: &str) -> Self {
        let broker = AwsBroker::builder(&address(url, prefix)).unwrap().connect().await.unwrap();
        let (sns, sqs) = (broker.sns(), broker.sqs());
        broker.close().await.unwrap();
        Self { sns, sqs, prefix: prefix.to_owned() }
    }

    /// Makes them, as ours are. The topic's name and the queue's address.
    async fn make(&self) -> (String, String) {
        let topic =
            self.sns.create_topic().name(format!("{}-bench-stored", self.prefix)).send().await.unwrap();
        let topic = topic.topic_arn.unwrap();
        let queue = self.sqs.create_queue().queue_name(format!("{}-group-{GROUP}", self.prefix));
        let queue =
            queue.attributes(QueueAttributeName::MessageRetentionPeriod, "1209600").send().await.unwrap();
        let queue = queue.queue_url.unwrap();
        let arn = self.sqs.get_queue_attributes().queue_url(&queue);
        let arn = arn.attribute_names(QueueAttributeName::QueueArn).send().await.unwrap();
        let arn = arn.attributes.unwrap().remove(&QueueAttributeName::QueueArn).unwrap();
        let policy = serde_json::json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage",
            "Resource": arn, "Condition": {"ArnLike": {"aws:SourceArn": topic}},
        }]});
        let set = self.sqs.set_queue_attributes().queue_url(&queue);
        set.attributes(QueueAttributeName::Policy, policy.to_string()).send().await.unwrap();
        let join = self.sns.subscribe().topic_arn(&topic).protocol("sqs").endpoint(arn);
        join.attributes("RawMessageDelivery", "true").send().await.unwrap();
        (topic, queue)
    }

    async fn queues(&self) -> Vec<String> {
        let found = self.sqs.list_queues().queue_name_prefix(format!("{}-", self.prefix)).send().await;
        found.unwrap().queue_urls.unwrap_or_default()
    }

    /// What the queues have, also what is hidden.
    async fn unacked(&self) -> u64 {
        let names = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
        ];
        let mut open = 0;
        for queue in self.queues().await {
            let asked = self.sqs.get_queue_attributes().queue_url(queue);
            let told = asked.set_attribute_names(Some(names.to_vec())).send().await.unwrap();
            open += told.attributes.unwrap().values().map(|count| count.parse::<u64>().unwrap()).sum::<u64>();
        }
        open
    }

    /// Removes them.
    async fn remove(&self) {
        for queue in self.queues().await {
            self.sqs.delete_queue().queue_url(queue).send().await.unwrap();
        }
        let topics = self.sns.list_topics().send().await.unwrap().topics.unwrap_or_default();
        let topics = topics.into_iter().filter_map(|topic| topic.topic_arn);
        for topic in topics.filter(|topic| topic.contains(&format!(":{}-", self.prefix))) {
            self.sns.delete_topic().topic_arn(topic).send().await.unwrap();
        }
    }
}

/// A message as ours writes it.
fn message(event: &Stored) -> PublishBatchRequestEntry {
    let attributes = [
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", EventId::from_u128(fastrand::u128(..)).to_string()),
        ("ce-source", SOURCE.to_owned()),
        ("ce-type", TOPIC.to_owned()),
        ("ce-time", Timestamp::now().to_string()),
        ("ce-datacontenttype", "application/json".to_owned()),
        ("eventbus", format!("topic={TOPIC}&eventversion=1")),
    ];
    let attributes = attributes.into_iter().map(|(name, value)| {
        let value = MessageAttributeValue::builder().data_type("String").string_value(value);
        (name.to_owned(), value.build().unwrap())
    });
    let entry = PublishBatchRequestEntry::builder().id("0").message(serde_json::to_string(event).unwrap());
    entry.set_message_attributes(Some(attributes.collect())).build().unwrap()
}

/// A message that is to be sent, and whom to tell once it is stored.
type Due = (PublishBatchRequestEntry, oneshot::Sender<()>);

/// Sends what is due, as much of it as is there and goes into a call.
async fn send(sns: aws_sdk_sns::Client, topic: String, due: Arc<Mutex<mpsc::UnboundedReceiver<Due>>>) {
    let mut batch = Vec::with_capacity(BATCH);
    while due.lock().await.recv_many(&mut batch, BATCH).await > 0 {
        let (mut entries, waiting): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        for (number, entry) in entries.iter_mut().enumerate() {
            entry.id = number.to_string();
        }
        let sent = sns.publish_batch().topic_arn(&topic).set_publish_batch_request_entries(Some(entries));
        let sent = sent.send().await.unwrap();
        assert_eq!(sent.successful().len(), waiting.len(), "{sent:?}");
        for stored in waiting {
            let _ = stored.send(());
        }
    }
}

/// The clients by themselves, as somebody uses them who knows them well: what waits goes out ten at a time, several calls
/// read, and what was read is deleted together beside the next read.
#[derive(Clone)]
pub(crate) struct AwsRaw {
    place: Place,
    queue: String,
    due: mpsc::UnboundedSender<Due>,
    readers: [Reader; READERS],
}

impl AwsRaw {
    fn send(&self, event: &Stored) -> oneshot::Receiver<()> {
        let (stored, confirmation) = oneshot::channel();
        self.due.send((message(event), stored)).unwrap();
        confirmation
    }
}

impl Contestant for AwsRaw {
    const NAME: &'static str = "aws-sdk";

    async fn connect(url: &str, name: &str) -> Self {
        let place = Place::new(url, name).await;
        let (topic, queue) = place.make().await;
        let (due, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..SENDERS {
            // They end with the last contestant that has the other end.
            tokio::spawn(send(place.sns.clone(), topic.clone(), Arc::clone(&receiver)));
        }
        Self { place, queue, due, readers: Default::default() }
    }

    async fn publish(&self, event: Stored) {
        self.send(&event).await.unwrap();
    }

    async fn publish_all(&self, events: Vec<Stored>) {
        let confirmations: Vec<_> = events.iter().map(|event| self.send(event)).collect();
        for confirmation in confirmations {
            confirmation.await.unwrap();
        }
    }

    async fn consume(&self, handler: Arc<Handler>) {
        for reader in &self.readers {
            let (sqs, queue, handler) = (self.place.sqs.clone(), self.queue.clone(), Arc::clone(&handler));
            reader.begin(|leaving| async move {
                let mut handled = Vec::new();
                while !leaving.is_told() || !handled.is_empty() {
                    let deleted = delete(&sqs, &queue, std::mem::take(&mut handled));
                    let ((), read) = join(deleted, receive(&sqs, &queue)).await;
                    for message in read {
                        handler.handle(&serde_json::from_str(message.body().unwrap()).unwrap());
                        handled.push(message);
                    }
                }
            });
        }
    }

    async fn leave(&self) {
        join_all(self.readers.iter().map(Reader::end)).await;
    }

    async fn unacked(&self) -> u64 {
        self.place.unacked().await
    }

    async fn remove(self) {
        self.place.remove().await;
    }
}

async fn receive(sqs: &aws_sdk_sqs::Client, queue: &str) -> Vec<Message> {
    let call = sqs.receive_message().queue_url(queue).max_number_of_messages(BATCH as i32);
    let call = call.wait_time_seconds(WAIT).visibility_timeout(30).message_attribute_names("All");
    let call = call.message_system_attribute_names(MessageSystemAttributeName::All);
    call.send().await.unwrap().messages.unwrap_or_default()
}

async fn delete(sqs: &aws_sdk_sqs::Client, queue: &str, handled: Vec<Message>) {
    if handled.is_empty() {
        return;
    }
    let entries = handled.into_iter().enumerate().map(|(number, message)| {
        let entry = DeleteMessageBatchRequestEntry::builder().id(number.to_string());
        entry.receipt_handle(message.receipt_handle.unwrap()).build().unwrap()
    });
    let call = sqs.delete_message_batch().queue_url(queue).set_entries(Some(entries.collect()));
    let deleted = call.send().await.unwrap();
    assert!(deleted.failed().is_empty(), "{deleted:?}");
}

/// The broker on SNS and SQS, standard topics and queues.
#[derive(Clone)]
pub(crate) struct OnAws(Place);

impl At for OnAws {
    type Broker = AwsBroker;

    const START: Start = Start::Latest;

    async fn open(url: &str, name: &str) -> (Self, AwsBroker) {
        let connect = async || AwsBroker::builder(&address(url, name)).unwrap().connect().await.unwrap();
        // A queue begins empty: it is made before anything is published.
        let first = connect().await;
        drop(first.subscribe(request(Self::START)).await.unwrap());
        first.close().await.unwrap();
        let broker = connect().await;
        let (sns, sqs) = (broker.sns(), broker.sqs());
        (Self(Place { sns, sqs, prefix: name.to_owned() }), broker)
    }

    async fn unacked(&self) -> u64 {
        self.0.unacked().await
    }

    async fn remove(&self) {
        self.0.remove().await;
    }
}

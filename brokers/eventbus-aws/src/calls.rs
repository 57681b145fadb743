//! What a subscription asks of its queue: for messages, to delete them, to hide them longer, and to tell others of this
//! process.

use crate::connection::{CALL, Link, Trouble, is_throttled};
use crate::held::{Arrival, Named, Token};
use crate::names::hash;
use crate::readers::Reader;
use crate::subscription::Subscription;
use crate::wire;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
    MessageSystemAttributeName, QueueAttributeName,
};
use eventbus_core::broker::Topology;
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_server::cloudevents::base64_encode;
use eventbus_server::connection::Failure;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A call for messages. One whose answer is lost is made again by the same name on FIFO: SQS answers it as before, instead of
/// keeping what it had given out, and what is behind that in the message groups, to itself.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) name: Option<String>,
    /// When it was made for the first time.
    pub(crate) asked: Instant,
    /// How many messages it may bring.
    pub(crate) most: usize,
}

/// An entry of a batch that was not done.
pub(crate) struct Failed {
    pub(crate) number: usize,
    /// It stays so.
    pub(crate) lasting: bool,
    pub(crate) said: String,
}

/// A message, as it is held here.
pub(crate) fn arrival(
    message: Message,
    arrived: u64,
    subscription: &Subscription,
    fifo: bool,
) -> Option<Arrival> {
    let handle = message.receipt_handle.clone()?;
    let system =
        |name: MessageSystemAttributeName| message.attributes.as_ref()?.get(&name).map(String::as_str);
    let number = |name| system(name)?.parse::<u128>().ok();
    let id = message.message_id.as_deref().unwrap_or_default();
    let sent = number(MessageSystemAttributeName::SentTimestamp).unwrap_or_default();
    let offset = match number(MessageSystemAttributeName::SequenceNumber) {
        Some(place) if fifo => place,
        // Emulators leave the number out where a topic has sent the message. They come in their order all the same.
        None if fifo => (sent << 64) | u128::from(arrived),
        // The same whenever it is delivered, and about in the order of the publishes.
        _ => (sent << 64) | u128::from(hash(&[id])),
    };
    let group = system(MessageSystemAttributeName::MessageGroupId).filter(|_| fifo);
    let lane = group.map(|group| hash(&[group]));
    let attempt = number(MessageSystemAttributeName::ApproximateReceiveCount).unwrap_or(1);
    let envelope = with_texts(&message, sent, group, |message| wire::read(message, &subscription.pattern));
    let attempt = u32::try_from(attempt).unwrap_or(u32::MAX).max(1);
    let id = id.to_owned();
    Some(Arrival { id, handle, offset, lane, envelope: Arc::new(envelope), attempt })
}

/// The message as texts: binary attributes of others are base64.
pub(crate) fn with_texts<T>(
    message: &Message,
    sent: u128,
    group: Option<&str>,
    read: impl FnOnce(&wire::Message<'_>) -> T,
) -> T {
    let attributes: Vec<(&str, String)> = message
        .message_attributes
        .iter()
        .flatten()
        .map(|(name, value)| {
            let text = match (&value.string_value, &value.binary_value) {
                (Some(text), _) => text.clone(),
                (None, Some(bytes)) => base64_encode(bytes.as_ref()),
                (None, None) => String::new(),
            };
            (name.as_str(), text)
        })
        .collect();
    let time = i64::try_from(sent).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    read(&wire::Message {
        id: message.message_id.as_deref().unwrap_or_default(),
        time: time.unwrap_or_else(Timestamp::now),
        group,
        attributes: attributes.iter().map(|(name, value)| (*name, value.as_str())).collect(),
        body: message.body.as_deref().unwrap_or_default(),
    })
}

/// Asks for messages.
pub(crate) async fn ask_for(
    subscription: &Subscription,
    wait: Duration,
    ask: &Ask,
) -> Result<Vec<Message>, Trouble> {
    let (link, queue) = (&subscription.link, &subscription.queue.url);
    link.receive(queue, wait, link.settings.visibility_timeout, ask.most, ask.name.clone()).await
}

/// Has SQS delete each.
pub(crate) async fn delete(subscription: &Subscription, batch: &[Named]) -> Result<Vec<Failed>, Trouble> {
    let entries = batch.iter().enumerate().map(|(number, (_, handle))| {
        let entry =
            DeleteMessageBatchRequestEntry::builder().id(number.to_string()).receipt_handle(&**handle);
        entry.build().expect("it has an id and a handle")
    });
    let call = subscription.link.sqs.delete_message_batch().queue_url(&subscription.queue.url);
    let call = call.set_entries(Some(entries.collect()));
    let answer = subscription.link.call(CALL, call.send()).await?;
    Ok(answer.failed().iter().map(failed).collect())
}

/// Has SQS hide each for so many seconds from now.
pub(crate) async fn hide(
    subscription: &Subscription,
    batch: &[(Token, Arc<str>, i32)],
) -> Result<Vec<Failed>, Trouble> {
    let entries = batch.iter().enumerate().map(|(number, (_, handle, seconds))| {
        let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(number.to_string());
        let entry = entry.receipt_handle(&**handle).visibility_timeout(*seconds);
        entry.build().expect("it has an id and a handle")
    });
    let call = subscription.link.sqs.change_message_visibility_batch().queue_url(&subscription.queue.url);
    let call = call.set_entries(Some(entries.collect()));
    let answer = subscription.link.call(CALL, call.send()).await?;
    Ok(answer.failed().iter().map(failed).collect())
}

fn failed(entry: &aws_sdk_sqs::types::BatchResultErrorEntry) -> Failed {
    Failed {
        number: entry.id().parse().unwrap_or(usize::MAX),
        // Amazon calls it the sender's fault that there are too many calls.
        lasting: entry.sender_fault() && !is_throttled(entry.code()),
        said: format!("{}: {}", entry.code(), entry.message().unwrap_or("no reason is given")),
    }
}

impl Link {
    /// Asks a queue for messages, with everything that is known of them.
    pub(crate) async fn receive(
        &self,
        queue: &str,
        wait: Duration,
        visibility: Duration,
        most: usize,
        name: Option<String>,
    ) -> Result<Vec<Message>, Trouble> {
        let seconds = |time: Duration| i32::try_from(time.as_secs()).unwrap_or(i32::MAX);
        let call = self
            .sqs
            .receive_message()
            .queue_url(queue)
            .max_number_of_messages(i32::try_from(most).unwrap_or(1))
            .wait_time_seconds(seconds(wait))
            .visibility_timeout(seconds(visibility))
            .set_receive_request_attempt_id(name)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::All);
        Ok(self.call(wait + CALL, call.send()).await?.messages.unwrap_or_default())
    }

    /// Tells others, by a tag of the queue, that this process reads it.
    pub(crate) async fn new_reader(&self, queue: &str, group: &str) -> Result<Option<Reader>, Failure> {
        if self.settings.topology == Topology::Check {
            return Ok(None);
        }
        let write = async {
            let reader = Reader::among(&self.tags(queue).await?, Timestamp::now().as_second());
            self.write_reader(queue, &reader).await?;
            Ok(reader)
        };
        match write.await.map_err(|trouble| self.unless_young(queue, trouble)) {
            Ok(reader) => Ok(Some(reader)),
            Err(trouble @ Trouble::Refused { .. }) => {
                log::warn!(
                    target: "eventbus", group = %printable(group), error = %printable(trouble),
                    "cannot write into the tags of the queue that this process reads it, so others may drop the group meanwhile; \
                     allow `sqs:ListQueueTags`, `sqs:TagQueue` and `sqs:UntagQueue`"
                );
                Ok(None)
            }
            Err(trouble) => Err(trouble.failure(format_args!("tag the queue of the group `{group}`"))),
        }
    }

    pub(crate) async fn write_reader(&self, queue: &str, reader: &Reader) -> Result<(), Trouble> {
        let value = reader.value(Timestamp::now().as_second());
        let call = self.sqs.tag_queue().queue_url(queue).tags(&reader.tag, value);
        self.call(CALL, call.send()).await.map(drop)
    }

    pub(crate) async fn forget_reader(&self, queue: &str, reader: &Reader) -> Result<(), Trouble> {
        if reader.is_in(&self.tags(queue).await?) {
            let call = self.sqs.untag_queue().queue_url(queue).tag_keys(&reader.tag);
            self.call(CALL, call.send()).await?;
        }
        Ok(())
    }

    /// How many messages a queue has, those that are held included, as well as SQS knows.
    pub(crate) async fn waiting(&self, queue: &str) -> Result<u64, Trouble> {
        let names = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let attributes = self.attributes(queue, &names).await?;
        Ok(names.iter().filter_map(|name| attributes.get(name)?.parse::<u64>().ok()).sum())
    }
}

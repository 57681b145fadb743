//! Dead letters: a stream of their own, each the bytes of its event with the reason beside it.

use crate::broker::Shared;
use crate::connection::{Link, Nothing, Refusal};
use crate::intake::Which;
use crate::publish::Other;
use crate::scan::{Part, Scan};
use crate::topology::{filters, owner};
use crate::unreadable::{self, Stored};
use crate::wire::{self, AGAIN, MENDED};
use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{DeliverPolicy, Info};
use bytes::Bytes;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters, FailureKind, Offset,
};
use eventbus_core::{BrokerError, Pattern};
use eventbus_server::cloudevents::{percent_decode, percent_encode};
use jiff::Timestamp;
use serde::de::IgnoredAny;
use std::sync::Arc;

/// The consumer that has given the event up.
const CONSUMER: &str = "eventbus-consumer";
/// What stands before each header of a dead letter.
const PREFIX: &str = "eventbus-dead-letter-";

/// By this the server knows the dead letter again of an event: where the process ends between that and the ack, the event
/// fails once more, and is not kept twice. The event of the same number in a stream that is made anew is another one.
pub(crate) fn id_of(consumer: &str, Which { sequence, stored }: Which) -> String {
    format!("{consumer}/{sequence}/{}", stored.as_nanosecond())
}

/// The message that keeps a dead letter; `id`: by that the server knows it again.
pub(crate) fn dead_letter(
    link: &Link,
    letter: &DeadLetter,
    consumer: &str,
    id: String,
) -> Result<Other, BrokerError> {
    let mode = link.settings.content_mode;
    let written = wire::write(&letter.envelope, mode)
        .map_err(|error| BrokerError::new("cannot write the dead letter").with_cause(error))?;
    let mut headers = written.headers;
    for (name, value) in letter.headers().iter() {
        if let (Ok(name), Ok(value)) =
            (name.parse::<HeaderName>(), percent_encode(value).parse::<HeaderValue>())
        {
            headers.insert(name, value);
        }
    }
    headers.insert(CONSUMER, consumer);
    headers.insert("Nats-Msg-Id", id);
    let subject = link.settings.dead_subject(&letter.group, letter.envelope.topic().as_str());
    Ok(Other { subject, headers, payload: written.payload })
}

/// A dead letter that was read, and the consumer that has given it up.
struct Read {
    letter: DeadLetter,
    consumer: String,
}

/// Reads a dead letter. None, where the message is none.
fn read(
    link: &Link,
    subject: &str,
    (sequence, stored): (u64, Timestamp),
    headers: Option<&HeaderMap>,
    payload: Bytes,
) -> Option<Read> {
    let settings = &link.settings;
    let topic = settings.topic_of(subject);
    let mut envelope = wire::read(&settings.stream, topic, sequence, stored, headers, payload);
    let take =
        |name: &str| Some(percent_decode(headers?.get(format!("{PREFIX}{name}"))?.as_str()).into_owned());
    let time = |name: &str| take(name)?.parse::<Timestamp>().ok();
    let consumer = headers?.get(CONSUMER)?.as_str().to_owned();
    let (group, handler, reason) = (take("group")?, take("handler")?, take("reason")?);
    let (kind, attempts) = (FailureKind::parse(&take("kind")?)?, take("attempts")?.parse().ok()?);
    let offset: Offset = take("offset")?.parse().ok()?;
    let (first_failed_at, last_failed_at) = (time("first-failed-at")?, time("last-failed-at")?);
    let names: Vec<_> = envelope.headers().iter().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        if name == CONSUMER || name.starts_with(PREFIX) {
            envelope.headers_mut().remove(&name);
        }
    }
    let envelope = Arc::new(envelope);
    let letter = DeadLetter {
        envelope,
        group,
        handler,
        kind,
        reason,
        attempts,
        first_failed_at,
        last_failed_at,
        offset,
    };
    Some(Read { letter, consumer })
}

/// The store of dead letters.
pub(crate) struct NatsDeadLetters(pub(crate) Arc<Shared>);

impl DeadLetters for NatsDeadLetters {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let shared = Arc::clone(&self.0);
        BrokerFuture::new(async move { shared.find_dead_letters(query).await })
    }

    fn republish(
        &self,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let (shared, id) = (Arc::clone(&self.0), place(id));
        BrokerFuture::new(async move {
            match id {
                Some(id) => shared.republish(id, payload).await,
                None => Ok(false),
            }
        })
    }

    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        let (shared, id) = (Arc::clone(&self.0), place(id));
        BrokerFuture::new(async move {
            match id {
                Some(id) => shared.remove_dead_letter(id).await,
                None => Ok(false),
            }
        })
    }
}

/// The place in the stream of dead letters that a name stands for; none, where it is the name of none.
fn place(id: &DeadLetterId) -> Option<u64> {
    id.as_str().parse().ok()
}

impl Shared {
    async fn find_dead_letters(&self, query: DeadLetterQuery) -> Result<DeadLetterList, BrokerError> {
        let settings = &self.link.settings;
        let first = match (&query.id, &query.after) {
            (Some(id), _) => match place(id) {
                Some(place) => place,
                None => return Ok(Vec::new()),
            },
            (None, Some(after)) => place(after).map_or(1, |place| place.saturating_add(1)),
            (None, None) => 1,
        };
        let filter = match &query.group {
            Some(group) => settings.dead_subject(group, ">"),
            None => settings.dead_subjects(),
        };
        let from = DeliverPolicy::ByStartSequence { start_sequence: first.max(1) };
        let part = Part { stream: settings.dead(), filters: vec![filter], from };
        let mut scan = Scan::open(&self.link, part).await?;
        let mut found = Vec::new();
        let mut left = scan.count;
        while left > 0 && found.len() < query.limit {
            let (place, message) = scan.next().await?;
            left = place.behind.min(left - 1);
            let stands = (place.sequence, place.time);
            let read = read(&self.link, &message.subject, stands, message.headers.as_ref(), message.payload);
            let id = DeadLetterId::new(place.sequence.to_string());
            if let Some(Read { letter, .. }) = read.filter(|read| query.matches(&id, &read.letter)) {
                found.push((id, Arc::new(letter)));
            }
            if query.id.is_some() {
                break;
            }
        }
        Ok(found)
    }

    /// A message of a stream; none, where it is not there (any more).
    pub(crate) async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Stored>, BrokerError> {
        let found = self.link.stored(stream, unreadable::Which { seq: sequence, next_by_subj: None }).await;
        found.map_err(|refusal| self.link.explain(format_args!("read the stream `{stream}`"), refusal))
    }

    async fn republish(&self, id: u64, payload: Option<Bytes>) -> Result<bool, BrokerError> {
        let settings = &self.link.settings;
        let Some(message) = self.message(&settings.dead(), id).await? else { return Ok(false) };
        let stands = (id, message.time);
        let read = read(&self.link, &message.subject, stands, Some(&message.headers), message.payload);
        let Some(Read { letter, consumer }) = read else {
            return Err(BrokerError::new(format!(
                "the message {id} of `{}` is no dead letter",
                settings.dead()
            )));
        };
        let topic = letter.envelope.topic().as_str();
        let consumer = self.listener(&letter.group, topic, &consumer).await?;
        let mut envelope = (*letter.envelope).clone();
        let mends = payload.is_some();
        if let Some(payload) = payload {
            envelope = envelope.with_payload(payload);
        }
        let written = wire::write(&envelope, settings.content_mode)
            .map_err(|error| BrokerError::new("cannot write the event").with_cause(error))?;
        let mut headers = written.headers;
        // The stream of dead letters may be made anew, and has the same numbers then.
        let stored = message.time.as_nanosecond();
        headers.insert("Nats-Msg-Id", format!("{}/{id}/{stored}", settings.dead()));
        headers.insert(AGAIN, self.first_place(letter.offset).await?.to_string());
        if mends {
            headers.insert(MENDED, "true");
        }
        let subject = settings.again(&consumer, topic);
        self.outlet.store("the event", Other { subject, headers, payload: written.payload }).await?;
        self.remove_dead_letter(id).await
    }

    /// The place at which an event was published that may have been delivered again since.
    async fn first_place(&self, offset: Offset) -> Result<u128, BrokerError> {
        let Ok(sequence) = u64::try_from(offset.get()) else { return Ok(offset.get()) };
        let message = self.message(&self.link.settings.stream, sequence).await?;
        let first = message.and_then(|message| message.headers.get(AGAIN)?.as_str().parse().ok());
        Ok(first.unwrap_or(offset.get()))
    }

    /// The consumer by which a group gets an event on `topic` once more, listening for such events.
    async fn listener(&self, group: &str, topic: &str, former: &str) -> Result<String, BrokerError> {
        let whose = |refusal| self.link.explain(format_args!("look at the consumers of `{group}`"), refusal);
        let mut info = None;
        // A group that was renamed has other consumers than before.
        if !former.is_empty() {
            info = match self.link.consumer_info(former).await {
                Ok(info) => Some(info),
                Err(refusal) if refusal.is(ErrorCode::CONSUMER_NOT_FOUND) => None,
                Err(refusal) => return Err(whose(refusal)),
            };
        }
        if info.is_none() {
            let takes = |info: &Info| {
                owner(&info.config).is_some_and(|(other, pattern)| {
                    other == group && Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(topic))
                })
            };
            info = self.link.consumers().await?.into_iter().find(takes);
        }
        let Some(info) = info else {
            return Err(BrokerError::new(format!(
                "the group `{group}` listens on \"{topic}\" no more; start a program with it, or purge the dead letter"
            )));
        };
        self.link.listen_again(&info.name).await?;
        Ok(info.name)
    }

    async fn remove_dead_letter(&self, id: u64) -> Result<bool, BrokerError> {
        let dead = self.link.settings.dead();
        let request = serde_json::json!({ "seq": id });
        match self.link.api::<IgnoredAny>(format!("STREAM.MSG.DELETE.{dead}"), &request).await {
            Ok(_) => Ok(true),
            Err(refusal) if is_gone(&refusal) => Ok(false),
            Err(refusal) => Err(self.link.explain(format_args!("remove the dead letter {id}"), refusal)),
        }
    }

    /// Gives the dead letters of a group to another one; how many there were.
    pub(crate) async fn rename_dead_letters(&self, from: &str, to: &str) -> Result<usize, BrokerError> {
        let mut query = DeadLetterQuery::default();
        query.group = Some(from.to_owned());
        let mut moved = 0;
        for (id, letter) in self.find_dead_letters(query).await? {
            let mut letter = (*letter).clone();
            to.clone_into(&mut letter.group);
            let message = dead_letter(&self.link, &letter, "", format!("renamed/{to}/{id}"))?;
            self.outlet.store("the dead letter", message).await?;
            if let Some(id) = place(&id) {
                self.remove_dead_letter(id).await?;
            }
            moved += 1;
        }
        Ok(moved)
    }
}

/// Whether there was nothing to remove.
fn is_gone(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Error { code, said } => {
            matches!(*code, ErrorCode::SEQUENCE_NOT_FOUND | ErrorCode::NO_MESSAGE_FOUND)
                || said.contains("no message found")
                || said.contains("deleted message")
        }
        _ => false,
    }
}

/// What the server is asked about streams and consumers.
impl Link {
    /// Lets a consumer take what is delivered again to it only; the subjects of that.
    pub(crate) async fn listen_again(&self, consumer: &str) -> Result<String, BrokerError> {
        let failed = |refusal| {
            self.explain(format_args!("let the consumer `{consumer}` listen for the event"), refusal)
        };
        let mut config = self.consumer_info(consumer).await.map_err(failed)?.config;
        let again = self.settings.again(consumer, ">");
        let mut subjects = filters(&config);
        if !subjects.contains(&again) {
            subjects.push(again.clone());
            config.filter_subject.clear();
            config.filter_subjects = subjects;
            self.set_consumer(config, "update").await.map_err(failed)?;
        }
        Ok(again)
    }

    /// How many messages a stream has under each subject.
    pub(crate) async fn counts(&self, stream: &str, subjects: &str) -> Result<Vec<(String, u64)>, Refusal> {
        let mut counts = Vec::new();
        loop {
            let request = serde_json::json!({ "subjects_filter": subjects, "offset": counts.len() });
            let info: serde_json::Value = self.api(format!("STREAM.INFO.{stream}"), &request).await?;
            let found = info["state"]["subjects"].as_object();
            let found =
                found.into_iter().flatten().filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)));
            let before = counts.len();
            counts.extend(found);
            let total = info["total"].as_u64().unwrap_or_default() as usize;
            if counts.len() == before || counts.len() >= total {
                return Ok(counts);
            }
        }
    }

    /// What the server knows of all consumers of the events.
    pub(crate) async fn consumers(&self) -> Result<Vec<Info>, BrokerError> {
        #[derive(serde::Deserialize)]
        struct Page {
            total: usize,
            #[serde(default)]
            consumers: Option<Vec<Info>>,
        }

        let stream = &self.settings.stream;
        let mut consumers = Vec::new();
        loop {
            let request = serde_json::json!({ "offset": consumers.len() });
            let page: Page = self
                .api(format!("CONSUMER.LIST.{stream}"), &request)
                .await
                .map_err(|refusal| self.explain(format_args!("list the consumers of `{stream}`"), refusal))?;
            let found = page.consumers.unwrap_or_default();
            let is_last = found.is_empty();
            consumers.extend(found);
            if is_last || consumers.len() >= page.total {
                return Ok(consumers);
            }
        }
    }

    /// The places of the first and of the last message of the stream of events; none, where there is none.
    pub(crate) async fn ends(&self) -> Result<Option<(u64, u64)>, BrokerError> {
        let stream = &self.settings.stream;
        let info: async_nats::jetstream::stream::Info = self
            .api(format!("STREAM.INFO.{stream}"), &Nothing {})
            .await
            .map_err(|refusal| self.explain(format_args!("look at the stream `{stream}`"), refusal))?;
        Ok((info.state.messages > 0).then_some((info.state.first_sequence, info.state.last_sequence)))
    }
}

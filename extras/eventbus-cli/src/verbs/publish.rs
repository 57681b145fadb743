//! `publish`: one event, one for each line, or what `log --json` wrote.

use crate::cloudevents;
use crate::failure::{Failure, Result};
use crate::json::{self, Object};
use crate::output::{GOOD, Output, TOPIC, paint};
use crate::session::Session;
use crate::signals::Signals;
use crate::text::{count, counted};
use bytes::Bytes;
use eventbus_core::broker::{AuditLog, AuditQuery, Offset, Recorded};
use eventbus_core::printable::printable;
use eventbus_core::{Bus, Envelope, EventId, Pattern, PublishError, Topic, census};
use eventbus_grammar::{distance, is_near};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::io::{self, BufRead, IsTerminal, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::mpsc::{self, Receiver};
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

/// How many events are published at once.
const BATCH: usize = 256;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Publish {
    /// Where to: `order.placed`; with `--cloudevents` in place of the topics that the events name
    #[arg(value_name = "TOPIC", required_unless_present = "cloudevents", value_parser = place)]
    place: Option<Place>,
    /// The payload; `-` or nothing reads it from standard input
    #[arg(value_name = "JSON", allow_negative_numbers = true)]
    payload: Option<String>,
    /// Publish each line of the payload as an event of its own
    #[arg(long, conflicts_with = "id")]
    lines: bool,
    /// Publish events as `log --json` and `tail --json` write them, or others in CloudEvents JSON: objects one after the
    /// other, or lists of them; each keeps its id, time, key and headers
    #[arg(
        long,
        conflicts_with_all = ["lines", "key", "headers", "subject", "id", "event_version", "content_type"]
    )]
    cloudevents: bool,
    /// The key: events with one key are handled in publish order
    #[arg(long, allow_negative_numbers = true)]
    key: Option<String>,
    /// A header; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// What the event is about
    #[arg(long, allow_negative_numbers = true)]
    subject: Option<String>,
    /// The id, in place of a fresh UUID
    #[arg(long, allow_negative_numbers = true)]
    id: Option<String>,
    /// The version of the payload's shape; the newest that the program has of the event, or 1
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    event_version: Option<u32>,
    /// The media type of the payload; one that is no JSON is published as it is
    #[arg(long, value_name = "TYPE", default_value = "application/json")]
    content_type: String,
    /// Publish also what the event type of this program cannot read, which its handlers give up, and to a topic that
    /// looks like a slip
    #[arg(long)]
    unchecked: bool,
}

/// What stands first: a topic, or events where they name theirs.
#[derive(Clone, Debug)]
enum Place {
    Topic(Topic),
    Events(String),
}

fn place(text: &str) -> Result<Place, String> {
    if text.starts_with(['{', '[']) || text == "-" {
        return Ok(Place::Events(text.to_owned()));
    }
    Topic::new(text).map(Place::Topic).map_err(|error| error.to_string())
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a header is written as `name=value`".to_owned()),
    }
}

impl Publish {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        let json = self.cloudevents || json::is_json(&self.content_type);
        let source = match &self.place {
            None => Source { topic: None, payload: self.payload.clone(), json },
            Some(Place::Topic(topic)) => {
                Source { topic: Some(topic.clone()), payload: self.payload.clone(), json }
            }
            Some(Place::Events(events)) if self.cloudevents && self.payload.is_none() => {
                Source { topic: None, payload: Some(events.clone()), json }
            }
            Some(Place::Events(_)) => {
                return Err(Failure::Usage("the topic stands first: `publish TOPIC JSON`".to_owned()));
            }
        };
        let bus = session.publisher().await?;
        if self.cloudevents || self.lines {
            let signals = Signals::listen().await?;
            let (again, one) = (self.cloudevents, if self.cloudevents { "event" } else { "line" });
            let news = if again { News::of(&bus).await } else { News::default() };
            publish_all(&bus, &mut session.out, self.read_all(source), one, signals, news).await?;
        } else {
            self.publish_one(&bus, &mut session.out, source).await?;
        }
        Ok(bus.shutdown().await?)
    }

    async fn publish_one(&self, bus: &Bus, out: &mut Output, source: Source) -> Result {
        let mut payload = Vec::new();
        let read = source.open().and_then(|mut text| text.read_to_end(&mut payload));
        read.map_err(|error| Failure::new(cannot_read(&error)))?;
        let Some(topic) = source.topic else { return Err(Failure::Usage("name a topic".to_owned())) };
        let envelope = self.envelope(topic, payload.into()).map_err(Failure::new)?;
        Doubts::default().say(out, &envelope);
        let topic = envelope.topic().clone();
        let id = bus.publish_envelope(envelope).await?;
        if out.json {
            return out.object(published(&id, &topic));
        }
        let topic = paint(TOPIC, topic);
        out.line(format_args!("{} {topic} {}", paint(GOOD, "published"), printable(&id.to_string())))
    }

    /// The event with this payload, or what is wrong with it.
    fn envelope(&self, topic: Topic, payload: Bytes) -> Result<Envelope, String> {
        if json::is_json(&self.content_type)
            && let Err(error) = json::check(&payload)
        {
            return Err(format!(
                "the payload is no JSON: {error}; quote it for the shell ('{{\"id\": 1}}', or '\"text\"'), \
                 or name its --content-type"
            ));
        }
        let version = self.event_version.or_else(|| versions(topic.as_str()).last().copied()).unwrap_or(1);
        let mut envelope = Envelope::from_bytes(topic, &self.content_type, payload).with_version(version);
        if let Some(key) = &self.key {
            envelope = envelope.with_key(key);
        }
        if let Some(subject) = &self.subject {
            envelope = envelope.with_subject(subject);
        }
        if let Some(id) = &self.id {
            envelope = envelope.with_id(EventId::new(id));
        }
        for (name, value) in &self.headers {
            envelope.headers_mut().append(name, value);
        }
        self.read(envelope, true)
    }

    /// The event, once the type that the program has for it has read it. With `complete`, what is not given is the
    /// event's: without its key its order would be lost.
    fn read(&self, mut envelope: Envelope, complete: bool) -> Result<Envelope, String> {
        if let Some(meant) = slip(envelope.topic().as_str()).filter(|_| !self.unchecked) {
            return Err(format!(
                "{}; --unchecked publishes it all the same",
                said_of_slip(envelope.topic().as_str(), meant)
            ));
        }
        let Some((event, read)) = census::read(&envelope) else { return Ok(envelope) };
        let (key, subject) = match read {
            Ok(attributes) => attributes,
            Err(_) if self.unchecked => return Ok(envelope),
            Err(error) => {
                let remedy = match fitting(&envelope) {
                    Some(version) if self.cloudevents => {
                        format!("it reads as v{version}: set its `eventversion` to {version}")
                    }
                    Some(version) => format!("it reads as v{version}: `--event-version {version}`"),
                    None => "mend the payload".to_owned(),
                };
                return Err(format!(
                    "{error} ({}:{}); {remedy}, or publish it all the same with --unchecked: handlers give up such an \
                     event",
                    event.file, event.line
                ));
            }
        };
        if let Some(key) = key.filter(|_| complete && envelope.key().is_none()) {
            envelope = envelope.with_key(key);
        }
        if let Some(subject) = subject.filter(|_| complete && envelope.subject().is_none()) {
            envelope = envelope.with_subject(subject);
        }
        Ok(envelope)
    }

    /// Reads events with their numbers on a thread of its own, each as soon as it has come, up to the first that is wrong: who writes them
    /// may take its time.
    fn read_all(self, source: Source) -> Receiver<Result<(usize, Envelope), String>> {
        let (read, events) = mpsc::channel(BATCH);
        let unread = read.clone();
        let thread = move || {
            let of_event = |(number, event): (usize, Result<Box<RawValue>, String>)| {
                let event = event.and_then(|event| {
                    let event = cloudevents::read(&event, source.topic.as_ref())?;
                    // What `log --json` wrote without a key was published without.
                    self.read(event.envelope, !event.ours)
                });
                let number = number + 1;
                event.map(|event| (number, event)).map_err(|error| format!("event {number}: {error}"))
            };
            let of_line = |line: Result<(usize, Bytes), String>| {
                let (number, line) = line?;
                let topic = source.topic.clone().ok_or("there is no topic")?;
                let event = self.envelope(topic, line);
                event.map(|event| (number, event)).map_err(|error| format!("line {number}: {error}"))
            };
            let text = match source.open() {
                Ok(text) => text,
                Err(error) => {
                    let _ = read.blocking_send(Err(cannot_read(&error)));
                    return;
                }
            };
            let mut events: Box<dyn Iterator<Item = _>> = match self.cloudevents {
                true => Box::new(cloudevents::events(text).enumerate().map(of_event)),
                false => Box::new(lines(text).map(of_line)),
            };
            // Nobody listens once the publishing has ended.
            let _ = events.all(|event| read.blocking_send(event).is_ok());
        };
        if let Err(error) = std::thread::Builder::new().name("eventbus-input".to_owned()).spawn(thread) {
            let _ = unread.try_send(Err(cannot_read(&error)));
        }
        events
    }
}

/// Where payloads come from, and where they go to where they do not say so themselves.
struct Source {
    topic: Option<Topic>,
    payload: Option<String>,
    /// Whether they are JSON; others are published to the letter.
    json: bool,
}

impl Source {
    fn open(&self) -> io::Result<Box<dyn BufRead>> {
        let text: Box<dyn BufRead> = match self.payload.as_deref() {
            Some(payload) if payload != "-" => Box::new(io::Cursor::new(payload.to_owned())),
            _ => Box::new(io::stdin().lock()),
        };
        if self.json { json::unmarked(text) } else { Ok(text) }
    }
}

/// The lines that are not empty, by their numbers.
fn lines(mut text: impl BufRead) -> impl Iterator<Item = Result<(usize, Bytes), String>> {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            let mut line = Vec::new();
            number += 1;
            match text.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => return Some(Ok((number, Bytes::copy_from_slice(line.trim_ascii())))),
                Err(error) => return Some(Err(cannot_read(&error))),
            }
        }
    })
}

fn published(id: &EventId, topic: &Topic) -> Object {
    Object::new().text("id", id.to_string()).text("topic", topic)
}

/// Tells what a log has taken from what it had already, by source and id, and did not store again.
#[derive(Default)]
struct News {
    /// The log, where it can be asked, and its latest place as far as it was looked at.
    log: Option<(Arc<dyn AuditLog>, Option<Offset>)>,
    /// What was stored behind that, and how often.
    stored: BTreeMap<(String, EventId), usize>,
}

impl News {
    async fn of(bus: &Bus) -> Self {
        let Ok(log) = bus.audit_log() else { return Self::default() };
        let latest = log.latest().await;
        Self { log: latest.ok().map(|latest| (log, latest)), ..Self::default() }
    }

    /// Looks at what was stored meanwhile. A log that cannot be asked tells nothing: everything is new then.
    async fn look(&mut self) {
        self.stored.clear();
        while let Some((log, latest)) = &mut self.log {
            let mut query = AuditQuery::default();
            query.after = *latest;
            let Ok(found) = log.query(query).await else {
                self.log = None;
                return;
            };
            let Some(last) = found.last() else { return };
            *latest = Some(last.offset);
            for Recorded { envelope, .. } in found {
                *self.stored.entry((envelope.source().to_owned(), envelope.id().clone())).or_default() += 1;
            }
        }
    }

    /// Whether an event that was published is one of those.
    fn has(&mut self, source: String, id: &EventId) -> bool {
        self.log.is_none()
            || match self.stored.get_mut(&(source, id.clone())) {
                Some(times) if *times > 0 => {
                    *times -= 1;
                    true
                }
                _ => false,
            }
    }
}

/// What has become of events so far.
#[derive(Default)]
struct Tally {
    published: u64,
    known: u64,
    topics: BTreeSet<Topic>,
}

impl Tally {
    fn known(&self) -> String {
        match self.known {
            0 => String::new(),
            1 => ", 1 was there already".to_owned(),
            known => format!(", {} were there already", count(known)),
        }
    }

    /// As it stands in an error and beside the spinner.
    fn told(&self) -> String {
        format!("{} published{}", counted(self.published, "event"), self.known())
    }

    fn summary(&self) -> String {
        let published = format!("{} {}", paint(GOOD, "published"), counted(self.published, "event"));
        let to = match (self.topics.len(), self.topics.first()) {
            (1, Some(topic)) => format!(" to {}", paint(TOPIC, topic)),
            (0, _) => String::new(),
            (topics, _) => format!(" to {}", counted(topics, "topic")),
        };
        format!("{published}{to}{}", self.known())
    }
}

/// What about an event is doubtful, told once.
#[derive(Default)]
struct Doubts(BTreeSet<(Topic, u32)>);

impl Doubts {
    fn say(&mut self, out: &mut Output, envelope: &Envelope) {
        let (topic, version) = (envelope.topic(), envelope.version());
        if !self.0.insert((topic.clone(), version)) {
            return;
        }
        if let Some(meant) = slip(topic.as_str()) {
            warn_of_slip(out, topic.as_str(), meant);
        }
        let known = versions(envelope.event_type());
        if let Some(newest) = known.last()
            && !known.contains(&version)
        {
            let known: Vec<_> = known.iter().map(u32::to_string).collect();
            out.warn(&format!(
                "this program knows \"{}\" in version {}, and not in version {version}: its handlers give up such an \
                 event; name the version of the payload with --event-version {newest}",
                envelope.event_type(),
                known.join(", ")
            ));
        }
    }
}

/// The versions that the program has of an event, from the oldest on.
fn versions(event_type: &str) -> BTreeSet<u32> {
    let events = census::events().into_iter().filter(|event| event.topic == event_type);
    events.map(|event| event.version).collect()
}

/// The newest version that the payload is, most likely, where it is not the one that it claims to be.
fn fitting(envelope: &Envelope) -> Option<u32> {
    let versions = versions(envelope.event_type()).into_iter().rev();
    let mut others = versions.filter(|version| *version != envelope.version());
    others.find(|version| {
        let read = census::read(&envelope.clone().with_version(*version));
        read.is_some_and(|(event, read)| event.version == *version && read.is_ok())
    })
}

/// The topics of the program's event types and catalogs, and those that its subscriptions name.
fn known_topics() -> impl Iterator<Item = &'static str> {
    let events = census::events().into_iter().map(|event| event.topic);
    let catalogs = census::catalogs().into_iter().flat_map(|catalog| catalog.topics).copied();
    let patterns = census::subscribers().iter().map(|subscriber| &*subscriber.subscription.pattern);
    let named = patterns.filter(|pattern| !pattern.contains(['*', '>']));
    events.chain(catalogs).chain(named)
}

/// The topic that was meant, most likely, where the program has it and not this one.
fn slip(topic: &str) -> Option<&'static str> {
    let nearest = known_topics().min_by_key(|known| distance(topic, known))?;
    (nearest != topic && is_near(topic, nearest)).then_some(nearest)
}

fn warn_of_slip(out: &mut Output, topic: &str, meant: &str) {
    out.warn(&said_of_slip(topic, meant));
}

fn said_of_slip(topic: &str, meant: &str) -> String {
    format!("no event of this program has the topic \"{topic}\"; did you mean \"{meant}\"?")
}

/// Which topic of the program was meant, most likely, where a pattern is none of them.
pub(super) fn doubt(pattern: &Pattern) -> Option<String> {
    if known_topics().any(|known| pattern.matches(known)) {
        return None;
    }
    let pattern = pattern.as_str();
    // Only a part of it was written.
    let part = known_topics().find(|known| known.split('.').any(|token| token == pattern));
    part.or_else(|| slip(pattern)).map(|meant| said_of_slip(pattern, meant))
}

/// Publishes what comes, in its order, and stops at the first that cannot be.
async fn publish_all(
    bus: &Bus,
    out: &mut Output,
    mut events: Receiver<Result<(usize, Envelope), String>>,
    one: &str,
    mut signals: Signals,
    mut news: News,
) -> Result {
    let bar = progress();
    let (mut doubts, mut tally, mut told) = (Doubts::default(), Tally::default(), Ok(()));
    loop {
        // What is at hand; whoever writes slowly is not waited for.
        let mut next = tokio::select! {
            biased;
            signal = signals.first() => {
                bar.finish_and_clear();
                out.error(&format!("ended by a signal ({})", tally.told()));
                return Err(Failure::Ended(signal));
            }
            event = events.recv() => event,
        };
        // What was published while nothing could be told of it may have been the last.
        if told.is_err() {
            bar.finish_and_clear();
            return told.map_err(|failure: Failure| match next {
                Some(_) => failure.halfway(tally.told()),
                None => failure,
            });
        }
        let (mut numbers, mut envelopes) = (Vec::new(), Vec::new());
        let (mut refused, mut wrong, ended) = (None, None, next.is_none());
        while let Some(event) = next {
            match event {
                Ok((number, envelope)) => {
                    numbers.push(number);
                    envelopes.push(envelope);
                }
                Err(error) => wrong = Some(error),
            }
            let more = envelopes.len() < BATCH && wrong.is_none();
            next = if more { events.try_recv().ok() } else { None };
        }
        let places: Vec<_> = envelopes
            .iter()
            .map(|envelope| (envelope.topic().clone(), envelope.source().to_owned()))
            .collect();
        envelopes.iter().for_each(|envelope| doubts.say(out, envelope));
        // Nothing of an event is changed on its way, so it begins no trace.
        let results = publish_in_order(bus, envelopes).with_subscriber(NoSubscriber::new()).await;
        news.look().await;
        for ((result, (topic, source)), number) in results.into_iter().zip(places).zip(numbers) {
            match result {
                Ok(id) => {
                    let new = news.has(source, &id);
                    if out.json && told.is_ok() {
                        let object = published(&id, &topic);
                        told = out.object(if new { object } else { object.flag("known", true) });
                    }
                    if new {
                        tally.published += 1;
                        tally.topics.insert(topic);
                    } else {
                        tally.known += 1;
                    }
                }
                Err(error) => refused = refused.or_else(|| Some(format!("{one} {number}: {error}"))),
            }
        }
        told = told.and_then(|()| out.flush());
        bar.set_position(tally.published + tally.known);
        bar.set_message(tally.told());
        // What is wrong came behind what was refused.
        if let Some(wrong) = refused.or(wrong) {
            bar.finish_and_clear();
            return Err(Failure::new(format!("{wrong} ({})", tally.told())));
        }
        if ended {
            bar.finish_and_clear();
            return if out.json { Ok(()) } else { out.line(tally.summary()) };
        }
    }
}

/// Publishes events at once, so that a broker can store them together; they begin in their order.
async fn publish_in_order(bus: &Bus, envelopes: Vec<Envelope>) -> Vec<Result<EventId, PublishError>> {
    let mut waiting: Vec<_> =
        envelopes.into_iter().map(|envelope| (bus.publish_envelope(envelope).into_future(), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (publishing, result) in &mut waiting {
            if result.is_none() {
                match Pin::new(publishing).poll(context) {
                    Poll::Ready(answer) => *result = Some(answer),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    waiting.into_iter().filter_map(|(_, result)| result).collect()
}

/// How many lines there were, on a terminal.
fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg}  {per_sec}  {elapsed}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn cannot_read(error: &io::Error) -> String {
    format!("cannot read standard input: {error}")
}

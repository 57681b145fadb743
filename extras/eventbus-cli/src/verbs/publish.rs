//! `publish`: one event, or one for each line.

use crate::failure::{Failure, Result};
use crate::json::{self, Object};
use crate::output::{GOOD, Output, TOPIC, paint};
use crate::session::Session;
use crate::text::counted;
use bytes::Bytes;
use eventbus_core::printable::printable;
use eventbus_core::{Bus, Envelope, EventId, PublishError, Topic, census};
use eventbus_grammar::{distance, is_near};
use indicatif::{ProgressBar, ProgressStyle};
use std::future::IntoFuture;
use std::io::{self, BufRead, IsTerminal, Read};
use std::pin::Pin;
use std::task::Poll;

/// How many lines are published at once.
const BATCH: usize = 256;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Publish {
    /// Where to: `order.placed`
    topic: Topic,
    /// The payload; `-` or nothing reads it from standard input
    #[arg(value_name = "JSON")]
    payload: Option<String>,
    /// Publish each line of the payload as an event of its own
    #[arg(long, conflicts_with = "id")]
    lines: bool,
    /// The key: events with one key are handled in publish order
    #[arg(long)]
    key: Option<String>,
    /// A header; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// What the event is about
    #[arg(long)]
    subject: Option<String>,
    /// The id, in place of a fresh UUID
    #[arg(long)]
    id: Option<String>,
    /// The version of the payload's shape
    #[arg(long, value_name = "N", default_value_t = 1)]
    event_version: u32,
    /// The media type of the payload; one that is no JSON is published as it is
    #[arg(long, value_name = "TYPE", default_value = "application/json")]
    content_type: String,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a header is written as `name=value`".to_owned()),
    }
}

impl Publish {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        let bus = session.publisher().await?;
        let out = &mut session.out;
        if let Some(known) = self.slip() {
            let topic = &self.topic;
            out.warn(&format!(
                "no event of this program has the topic \"{topic}\"; did you mean \"{known}\"?"
            ));
        }
        if self.lines {
            self.publish_lines(&bus, out).await?;
        } else {
            let envelope = self.envelope(self.payload()?).map_err(Failure::new)?;
            let id = bus.publish_envelope(envelope).await?;
            if out.json {
                out.object(self.published(&id))?;
            } else {
                let topic = paint(TOPIC, &self.topic);
                out.line(format_args!(
                    "{} {topic} {}",
                    paint(GOOD, "published"),
                    printable(&id.to_string())
                ))?;
            }
        }
        Ok(bus.shutdown().await?)
    }

    /// The topic that was meant, most likely, where the program has it and not this one.
    fn slip(&self) -> Option<&'static str> {
        let events = census::events().into_iter().map(|event| event.topic);
        let known = events.chain(census::catalogs().into_iter().flat_map(|catalog| catalog.topics).copied());
        let nearest = known.min_by_key(|known| distance(self.topic.as_str(), known))?;
        (nearest != self.topic.as_str() && is_near(self.topic.as_str(), nearest)).then_some(nearest)
    }

    fn payload(&self) -> Result<Bytes> {
        match self.payload.as_deref() {
            Some(payload) if payload != "-" => Ok(Bytes::copy_from_slice(payload.as_bytes())),
            _ => {
                let mut payload = Vec::new();
                io::stdin().read_to_end(&mut payload).map_err(cannot_read)?;
                Ok(payload.into())
            }
        }
    }

    /// The event with this payload, or what is wrong with it.
    fn envelope(&self, payload: Bytes) -> Result<Envelope, String> {
        if json::is_json(&self.content_type)
            && let Err(error) = json::check(&payload)
        {
            return Err(format!(
                "the payload is no JSON: {error}; quote it for the shell ('{{\"id\": 1}}', or '\"text\"'), \
                 or name its --content-type"
            ));
        }
        let mut envelope = Envelope::from_bytes(self.topic.clone(), &self.content_type, payload)
            .with_version(self.event_version);
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
        Ok(envelope)
    }

    fn published(&self, id: &EventId) -> Object {
        Object::new().text("id", id.to_string()).text("topic", &self.topic)
    }

    /// Publishes line after line, and stops at the first that cannot be.
    async fn publish_lines(&self, bus: &Bus, out: &mut Output) -> Result {
        let mut lines: Box<dyn BufRead> = match self.payload.as_deref() {
            Some(payload) if payload != "-" => Box::new(io::Cursor::new(payload.to_owned())),
            _ => Box::new(io::stdin().lock()),
        };
        let bar = progress();
        let (mut published, mut number, mut ended) = (0, 0, false);
        while !ended {
            let (mut envelopes, mut wrong) = (Vec::new(), None);
            while envelopes.len() < BATCH && !ended && wrong.is_none() {
                let mut line = Vec::new();
                ended = lines.read_until(b'\n', &mut line).map_err(cannot_read)? == 0;
                number += usize::from(!ended);
                let line = line.trim_ascii();
                if !line.is_empty() {
                    match self.envelope(Bytes::copy_from_slice(line)) {
                        Ok(envelope) => envelopes.push(envelope),
                        Err(error) => wrong = Some(format!("line {number}: {error}")),
                    }
                }
            }
            for result in publish_in_order(bus, envelopes).await {
                match result {
                    Ok(id) if wrong.is_none() || out.json => {
                        published += 1;
                        if out.json {
                            out.object(self.published(&id))?;
                        }
                    }
                    Ok(_) => published += 1,
                    Err(error) => wrong = Some(error.to_string()),
                }
            }
            bar.set_position(published);
            if let Some(wrong) = wrong {
                bar.finish_and_clear();
                return Err(Failure::new(format!("{wrong} ({} published)", counted(published, "event"))));
            }
        }
        bar.finish_and_clear();
        if !out.json {
            let (done, topic) = (paint(GOOD, "published"), paint(TOPIC, &self.topic));
            out.line(format_args!("{done} {} to {topic}", counted(published, "event")))?;
        }
        Ok(())
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
    let style = ProgressStyle::with_template("{spinner} {human_pos} events  {per_sec}  {elapsed}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn cannot_read(error: io::Error) -> Failure {
    Failure::new(format!("cannot read standard input: {error}"))
}

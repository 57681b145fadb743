//! The stream of all events: made where it is missing, or looked for, and read from a place on. Reading takes nothing out.

use crate::connection::{ACCESS_REFUSED, DIFFERENT, Link, NOT_FOUND, Trouble, UNKNOWN_TYPE, call};
use crate::publish::Outlet;
use crate::subscribe::message;
use crate::topology::{close, text};
use crate::wire::{self, Note};
use eventbus_core::{BrokerError, Envelope, EventId};
use eventbus_server::connection::pause_before;
use futures_util::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many messages are read ahead.
const AHEAD: u16 = 256;
/// So many messages are read up to the end, before it is looked where it was.
const CHASED: usize = 16 * AHEAD as usize;
/// How long the stream is asked for its last message, before it is given a note: then it has one.
const EMPTY: Duration = Duration::from_secs(1);
/// How long the next message may take to come, of those that are there.
const NEXT: Duration = Duration::from_secs(10);
/// How far the time of an event may be behind the time at which it was stored, so that it is found by its time: clocks
/// differ.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

impl Link {
    /// Makes the stream of all events with its binding, or looks for it, where it is wanted.
    pub(crate) async fn events(&self) -> Result<(), BrokerError> {
        if !self.settings.streams {
            return Ok(());
        }
        let stream = self.names().events();
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("stream"));
        if let Some(age) = self.settings.retention_age {
            arguments.insert("x-max-age".into(), text(&format!("{}s", age.as_secs())));
        }
        self.queue(&stream, arguments).await.map_err(|trouble| explain(trouble, &stream))?;
        self.bind(&stream, "#").await.map_err(|trouble| explain(trouble, &stream))
    }
}

/// What is said where the stream is not as it should be.
fn explain(trouble: Trouble, stream: &str) -> BrokerError {
    let said = &trouble.said;
    let error = if trouble.is(NOT_FOUND) {
        format!("the stream `{stream}` is missing, and none is made with `topology=check` ({said})")
    } else if trouble.is(DIFFERENT) && said.contains(UNKNOWN_TYPE) {
        format!("this RabbitMQ has no streams ({said}); leave `streams` out, or take RabbitMQ 4")
    } else if trouble.is(DIFFERENT) && said.contains("x-max-age") {
        format!(
            "the stream `{stream}` was made with another retention age ({said}); set `retention_age` to what is said to \
             be current, in seconds, or leave it out where that is none. A policy of the server with `max-age` changes it \
             for the stream that is there; a queue that is removed is made anew, without its history"
        )
    } else if trouble.is(DIFFERENT) {
        format!(
            "`{stream}` is not the stream that it should be ({said}); remove that queue, or name another exchange \
             (`exchange`)"
        )
    } else {
        return trouble.explain(format_args!("make the stream `{stream}`"));
    };
    BrokerError::new(error)
}

/// The stream of all events, for those who read it.
pub(crate) struct Events {
    pub(crate) link: Arc<Link>,
    outlet: Arc<Outlet>,
    name: String,
}

/// Where reading begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin {
    First,
    /// With the message at this place, or the next one that is kept.
    At(i64),
    /// With what was stored about as early as an event that happened then.
    Time(Timestamp),
}

/// What a place of the stream has.
pub(crate) enum Kept {
    Event(Arc<Envelope>),
    Note(Note),
}

/// The end of the stream at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The place of the last message.
    pub(crate) last: i64,
    /// That of the last event, or the one before the notes that were seen behind it; none, where there is none.
    pub(crate) event: Option<i64>,
}

impl Events {
    pub(crate) fn new(link: Arc<Link>, outlet: Arc<Outlet>) -> Self {
        let name = link.names().events();
        Self { link, outlet, name }
    }

    pub(crate) fn explain(&self, trouble: Trouble) -> BrokerError {
        if trouble.is(NOT_FOUND) {
            return BrokerError::new(format!(
                "the stream `{}` is missing: somebody has removed it, with all that it kept ({}); it is made again when a \
                 program with `streams=true` connects",
                self.name, trouble.said
            ));
        }
        trouble.explain(format_args!("read the stream `{}`", self.name))
    }

    /// Where the stream ends now: everything that is confirmed is before it.
    pub(crate) async fn end(&self) -> Result<End, Trouble> {
        if let Some(end) = self.look_at_end(EMPTY).await? {
            return Ok(end);
        }
        // It seems to be empty. With a note in it, it is not.
        let noted = self.outlet.send(&self.name, &self.name, wire::write_note(None)).await;
        noted.map_err(|error| Trouble::passing(eventbus_core::chain(&error)))?;
        let end = self.look_at_end(NEXT).await?;
        end.ok_or_else(|| Trouble::passing("nothing of it comes, though something is there"))
    }

    /// Reads from the last part of the stream to its end. None, where nothing comes for so long.
    async fn look_at_end(&self, patience: Duration) -> Result<Option<End>, Trouble> {
        let Some((channel, mut messages, first)) = self.last_part(patience).await? else { return Ok(None) };
        let begin = place(&first)?;
        let mut next = Some(first);
        let mut end: Option<End> = None;
        let (mut read, mut enough) = (0, None);
        loop {
            // The server sends what it has, as far as it may, before it answers: with less than that the end is reached.
            call(channel.basic_qos(AHEAD, BasicQosOptions::default())).await?;
            let (mut count, mut tag) = (0, 0);
            if next.is_none() {
                next = at_hand(&mut messages)?;
            }
            while let Some(delivery) = next.take() {
                (count, tag) = (count + 1, delivery.delivery_tag);
                let last = place(&delivery)?;
                let is_event = wire::read_note(&message(delivery)).is_none();
                let event = if is_event {
                    Some(last)
                } else {
                    end.map_or((last > 0).then_some(last - 1), |end| end.event)
                };
                end = Some(End { last, event });
                next = at_hand(&mut messages)?;
            }
            if count < AHEAD || end.zip(enough).is_some_and(|(end, enough)| end.last >= enough) {
                break;
            }
            call(channel.basic_ack(tag, BasicAckOptions { multiple: true })).await?;
            read += usize::from(count);
            if read >= CHASED && enough.is_none() {
                // Others write as fast as it is read. What was the last part as this began ends before the one that is the
                // last by now.
                read = 0;
                if let Some((channel, _, first)) = self.last_part(patience).await? {
                    close(&channel).await;
                    enough = Some(place(&first)? - 1).filter(|enough| *enough >= begin);
                }
            }
        }
        close(&channel).await;
        Ok(end)
    }

    /// The last part of the stream, of which its first message has come. None, where nothing comes for so long.
    async fn last_part(&self, patience: Duration) -> Result<Option<(Channel, Consumer, Delivery)>, Trouble> {
        let channel = self.link.channel().await?;
        let mut messages = consume(&channel, &self.name, text("last")).await?;
        let Ok(first) = tokio::time::timeout(patience, messages.next()).await else {
            close(&channel).await;
            return Ok(None);
        };
        let first = first.ok_or_else(removed)??;
        Ok(Some((channel, messages, first)))
    }

    /// Reads from a place on.
    pub(crate) fn scan(self: &Arc<Self>, begin: Begin) -> Scan {
        let events = Arc::clone(self);
        Scan { events, begin, last: None, time: Timestamp::UNIX_EPOCH, source: None, over: false }
    }
}

fn removed() -> Trouble {
    Trouble::passing("the server has ended the look")
}

/// What has come by now.
fn at_hand(messages: &mut Consumer) -> Result<Option<Delivery>, Trouble> {
    match messages.next().now_or_never() {
        None => Ok(None),
        Some(next) => Ok(Some(next.ok_or_else(removed)??)),
    }
}

/// Consumes from a place on a channel of its own. A stream asks for a limit of what is not acked.
async fn consume(channel: &Channel, stream: &str, from: AMQPValue) -> Result<Consumer, Trouble> {
    call(channel.basic_qos(AHEAD, BasicQosOptions::default())).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), from);
    call(channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), arguments)).await
}

/// The place of a message.
fn place(delivery: &Delivery) -> Result<i64, Trouble> {
    let headers = delivery.properties.headers().as_ref();
    match headers.and_then(|headers| headers.inner().get("x-stream-offset")) {
        Some(AMQPValue::LongLongInt(offset)) => Ok(*offset),
        _ => Err(Trouble::passing("the server does not say where its messages stand")),
    }
}

/// Reads the stream from a place on, also when the connection is lost meanwhile.
pub(crate) struct Scan {
    events: Arc<Events>,
    begin: Begin,
    /// The place of the last message that was read.
    last: Option<i64>,
    /// When the last event happened. One that does not say so happened then.
    time: Timestamp,
    source: Option<Source>,
    over: bool,
}

struct Source {
    number: Option<u64>,
    channel: Channel,
    messages: Consumer,
    /// What was looked at.
    first: Option<Delivery>,
    unacked: u16,
}

impl Scan {
    /// The next message up to the place `end`, which is there; without one it is waited for. None, where there is no more.
    /// It is an error where none can be read for as long as a publish may take. After an error it can be asked for again.
    pub(crate) async fn next(&mut self, end: Option<i64>) -> Result<Option<(i64, Kept)>, BrokerError> {
        let (begun, patience) = (Instant::now(), self.events.link.settings.publish_timeout);
        for attempt in 1.. {
            if end.zip(self.last).is_some_and(|(end, last)| last >= end) {
                break;
            }
            let trouble = match self.read(end).await {
                Ok(None) => break,
                Ok(Some((place, _))) if end.is_some_and(|end| place > end) => break,
                Ok(Some((place, delivery))) => return Ok(Some((place, self.kept(place, delivery)))),
                Err(trouble) => trouble,
            };
            let link = Arc::clone(&self.events.link);
            if let Some(Source { channel, .. }) = self.source.take() {
                tokio::spawn(async move { close(&channel).await });
            }
            let lasting = trouble.is(NOT_FOUND) || trouble.is(ACCESS_REFUSED) || link.is_closed();
            let left = patience.saturating_sub(begun.elapsed());
            if lasting || left.is_zero() {
                self.over = lasting;
                return Err(self.events.explain(trouble));
            }
            let again = async {
                tokio::time::sleep(pause_before(attempt + 1)).await;
                link.connected().await;
            };
            let _ = tokio::time::timeout(left, again).await;
        }
        Ok(None)
    }

    /// Whether it is of no use to ask again: the stream is gone, or may not be read, or the broker was closed.
    pub(crate) const fn is_over(&self) -> bool {
        self.over
    }

    fn kept(&mut self, place: i64, delivery: Delivery) -> Kept {
        self.last = Some(place);
        let message = message(delivery);
        if let Some(note) = wire::read_note(&message) {
            return Kept::Note(note);
        }
        let id = EventId::new(format!("{}-{place}", self.events.name));
        let event = wire::read_kept(&message, id, self.time);
        self.time = event.time();
        Kept::Event(Arc::new(event))
    }

    /// None, where nothing was stored as late as it is to begin.
    async fn read(&mut self, end: Option<i64>) -> Result<Option<(i64, Delivery)>, Trouble> {
        if self.source.is_none() && !self.open(end).await? {
            return Ok(None);
        }
        let link = &self.events.link;
        let Some(source) = &mut self.source else { return Ok(None) };
        let silent = async {
            match end {
                Some(_) => tokio::time::sleep(NEXT).await,
                None => std::future::pending().await,
            }
        };
        let mut silent = std::pin::pin!(silent);
        let delivery = loop {
            if let Some(first) = source.first.take() {
                break first;
            }
            tokio::select! {
                biased;
                next = source.messages.next() => break next.ok_or_else(removed)??,
                () = link.another(source.number, link.blocked().is_some()) => {
                    if link.number() != source.number || link.is_closed() {
                        return Err(Trouble::passing("the connection was lost"));
                    }
                }
                () = &mut silent => return Err(Trouble::passing(format!("nothing has come for {NEXT:?}"))),
            }
        };
        source.unacked += 1;
        if source.unacked >= AHEAD / 2 {
            source.unacked = 0;
            let options = BasicAckOptions { multiple: true };
            call(source.channel.basic_ack(delivery.delivery_tag, options)).await?;
        }
        Ok(Some((place(&delivery)?, delivery)))
    }

    /// Begins to read, behind what was read. False, where nothing was stored as late as that.
    async fn open(&mut self, end: Option<i64>) -> Result<bool, Trouble> {
        let (events, link) = (&self.events, &self.events.link);
        if let Some(last) = self.last
            && events.end().await?.last < last
        {
            let said =
                "it was removed and made anew while it was read, and what was in it is gone".to_owned();
            return Err(Trouble { code: Some(NOT_FOUND), ..Trouble::passing(said) });
        }
        let number = link.number();
        let channel = link.channel().await?;
        let from = match (self.last, self.begin) {
            (Some(last), _) => AMQPValue::LongLongInt(last.saturating_add(1)),
            (None, Begin::At(place)) => AMQPValue::LongLongInt(place),
            (None, Begin::First) => text("first"),
            (None, Begin::Time(time)) => {
                let time = time.checked_sub(SKEW).unwrap_or(Timestamp::UNIX_EPOCH);
                AMQPValue::Timestamp(u64::try_from(time.as_second()).unwrap_or_default())
            }
        };
        let by_time = matches!(from, AMQPValue::Timestamp(_));
        let messages = consume(&channel, &events.name, from).await?;
        let mut source = Source { number, channel, messages, first: None, unacked: 0 };
        if let Some(end) = end.filter(|_| by_time)
            && !source.has_some_before(&events.name, end).await?
        {
            close(&source.channel).await;
            return Ok(false);
        }
        self.source = Some(source);
        Ok(true)
    }
}

impl Source {
    /// Whether anything comes of what is there. The server begins with what is stored next, where nothing was as late as it
    /// is asked for. What is sure to come, the message at the end, comes with it or behind it.
    async fn has_some_before(&mut self, stream: &str, end: i64) -> Result<bool, Trouble> {
        let mut last = consume(&self.channel, stream, AMQPValue::LongLongInt(end)).await?;
        let came = tokio::time::timeout(NEXT, last.next()).await;
        let came = came.map_err(|_| Trouble::passing(format!("nothing has come for {NEXT:?}")))?;
        came.ok_or_else(removed)??;
        call(self.channel.basic_cancel(last.tag(), BasicCancelOptions::default())).await?;
        self.first = at_hand(&mut self.messages)?;
        Ok(self.first.is_some())
    }
}

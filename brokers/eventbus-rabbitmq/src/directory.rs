//! Which groups there are. AMQP lists no queues, so each group is noted in a stream, which can be read without taking
//! anything out.

use crate::connection::{Link, NOT_FOUND, Trouble, call};
use crate::publish::Outlet;
use crate::topology::close;
use crate::wire::Written;
use bytes::Bytes;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Consumer};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// How many notes are read ahead.
const AHEAD: u16 = 1_000;
/// How long the next note may take to come.
const NEXT: Duration = Duration::from_secs(5);
/// How long a stream is asked for its last note, before it counts as empty. One that is not is given a note without meaning.
const EMPTY: Duration = Duration::from_secs(1);
/// How long what was written together may take to come.
const TOGETHER: Duration = Duration::from_millis(50);

/// What is noted: a group listens on a pattern, or does so no more.
#[derive(Debug, Serialize, Deserialize)]
struct Note<'a> {
    #[serde(borrow)]
    group: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    pattern: std::borrow::Cow<'a, str>,
    listens: bool,
}

/// The groups that there are, and were: with the patterns that each listens on.
pub(crate) type Groups = BTreeMap<String, BTreeSet<String>>;

pub(crate) struct Directory {
    link: Arc<Link>,
    outlet: Arc<Outlet>,
    /// What this process knows to be noted.
    known: Lock<Groups>,
    /// One reads at a time.
    reading: Mutex<()>,
}

impl Directory {
    pub(crate) fn new(link: Arc<Link>, outlet: Arc<Outlet>) -> Self {
        Self { link, outlet, known: Lock::new(Rank::BROKER, Groups::new()), reading: Mutex::new(()) }
    }

    /// Notes that a group listens on a pattern, where that is not known. Where it cannot be noted, the group is not listed by
    /// other processes, which is a line of the log.
    pub(crate) async fn note(&self, group: &str, pattern: &str) {
        let noting = async {
            let _alone = self.reading.lock().await;
            let is_known = || self.known.lock().get(group).is_some_and(|patterns| patterns.contains(pattern));
            if is_known() {
                return Ok(());
            }
            self.read().await?;
            if is_known() { Ok(()) } else { self.write(group, pattern, true).await }
        };
        if let Err(trouble) = noting.await {
            log::warn!(
                target: "eventbus", group = %printable(group), stream = %printable(self.link.names().groups()),
                error = %printable(&trouble),
                "the group cannot be noted in the stream of groups, so other processes do not list it"
            );
            self.learn(group, pattern, true);
        }
    }

    /// Notes that a group does not listen on a pattern any more.
    pub(crate) async fn forget(&self, group: &str, pattern: &str) -> Result<(), Trouble> {
        let _alone = self.reading.lock().await;
        self.write(group, pattern, false).await
    }

    /// All groups.
    pub(crate) async fn groups(&self) -> Result<Groups, Trouble> {
        let _alone = self.reading.lock().await;
        self.read().await?;
        Ok(self.known.lock().clone())
    }

    fn learn(&self, group: &str, pattern: &str, listens: bool) {
        learn(&mut self.known.lock(), group, pattern, listens);
    }

    async fn write(&self, group: &str, pattern: &str, listens: bool) -> Result<(), Trouble> {
        let note = Note { group: group.into(), pattern: pattern.into(), listens };
        let body = serde_json::to_vec(&note).expect("texts have a form in JSON");
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into());
        let written = Written { properties, body: Bytes::from(body) };
        let stream = self.link.names().groups();
        let sent = self.outlet.send(&stream, &stream, written).await;
        sent.map_err(|error| Trouble::passing(error.to_string()))?;
        self.learn(group, pattern, listens);
        Ok(())
    }

    /// Reads all notes that are there now.
    async fn read(&self) -> Result<(), Trouble> {
        let stream = self.link.names().groups();
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        self.link.queue(&stream, arguments).await?;
        let mut learn = |note: Note<'_>| self.learn(&note.group, &note.pattern, note.listens);
        if read(&self.link, &stream, &mut learn).await? {
            return Ok(());
        }
        self.write("", "", false).await?;
        match read(&self.link, &stream, &mut learn).await? {
            true => Ok(()),
            false => Err(Trouble::passing(format!("nothing can be read of the stream `{stream}`"))),
        }
    }
}

/// The groups that are noted, which are none where there is no stream.
pub(crate) async fn noted(link: &Link) -> Result<Groups, Trouble> {
    let (stream, mut groups) = (link.names().groups(), Groups::new());
    match link.count(&stream).await {
        Err(trouble) if trouble.is(NOT_FOUND) => return Ok(groups),
        counted => counted?,
    };
    read(link, &stream, &mut |note| learn(&mut groups, &note.group, &note.pattern, note.listens)).await?;
    Ok(groups)
}

fn learn(groups: &mut Groups, group: &str, pattern: &str, listens: bool) {
    if group.is_empty() {
        return;
    }
    // One that listens on nothing may have dead letters still.
    let patterns = groups.entry(group.to_owned()).or_default();
    if listens {
        patterns.insert(pattern.to_owned());
    } else {
        patterns.remove(pattern);
    }
}

/// Reads all notes of a stream that are there now, in their order. False, where there seem to be none.
async fn read(link: &Link, stream: &str, learn: &mut (dyn FnMut(Note<'_>) + Send)) -> Result<bool, Trouble> {
    // The server counts the messages of a stream some seconds late, so the end is found by looking at it.
    let Some(last) = last(link, stream).await? else { return Ok(false) };
    let (channel, mut notes) = from(link, stream, "first").await?;
    loop {
        let note = tokio::time::timeout(NEXT, notes.next()).await;
        let note =
            note.map_err(|_| Trouble::passing(format!("the stream `{stream}` does not go on as it should")))?;
        let note = note.ok_or_else(|| Trouble::passing("the server has ended the look"))??;
        // Another program may have written something else there.
        if let Ok(note) = serde_json::from_slice(&note.data) {
            learn(note);
        }
        call(channel.basic_ack(note.delivery_tag, BasicAckOptions::default())).await?;
        if offset(&note).is_none_or(|offset| offset >= last) {
            break;
        }
    }
    close(&channel).await;
    Ok(true)
}

/// The place of the last note; none, where there seems to be none.
async fn last(link: &Link, stream: &str) -> Result<Option<i64>, Trouble> {
    let (channel, mut notes) = from(link, stream, "last").await?;
    let mut last = None;
    // What was written together comes together.
    let mut patience = EMPTY;
    while let Ok(Some(note)) = tokio::time::timeout(patience, notes.next()).await {
        last = last.max(offset(&note?));
        patience = TOGETHER;
    }
    close(&channel).await;
    Ok(last)
}

async fn from(link: &Link, stream: &str, place: &str) -> Result<(Channel, Consumer), Trouble> {
    let channel = link.channel().await?;
    call(channel.basic_qos(AHEAD, BasicQosOptions::default())).await?;
    let mut from = FieldTable::default();
    from.insert("x-stream-offset".into(), AMQPValue::LongString(place.into()));
    let consuming = channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), from);
    let notes = call(consuming).await?;
    Ok((channel, notes))
}

/// The place of a note in its stream.
fn offset(note: &Delivery) -> Option<i64> {
    match note.properties.headers().as_ref()?.inner().get("x-stream-offset")? {
        AMQPValue::LongLongInt(offset) => Some(*offset),
        _ => None,
    }
}

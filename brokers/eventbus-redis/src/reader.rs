//! The reader of a claim: takes its group over, and puts deliveries at hand, on a connection of its own.
//!
//! It waits with `XREAD BLOCK`, which changes nothing, and then reads with `XREADGROUP` without waiting. A read that waits
//! inside of the server would be served there while this process stands still: the entry would be pending with somebody
//! who has lost the group. The read itself is guarded: a transaction that the server does not run once the token of the
//! group is another one (`WATCH`), so that nothing comes into the hands of a process that was taken for dead.

mod guard;
mod takeover;
mod topics;

use crate::claim::{AHEAD_BYTES, Claim, Noted, Waiting, size};
use crate::entry::{self, Entry};
use crate::keeper::millis;
use crate::link::Pause;
use crate::locate::Purpose;
use crate::merge::Merge;
use crate::place::Place;
use crate::register::Acquired;
use crate::trouble::Trouble;
use crate::wire;
use eventbus_core::Topic;
use eventbus_core::broker::Offset;
use eventbus_core::log;
use eventbus_core::printable::printable;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use takeover::Left;
use tokio::time::Instant;

/// How long one wait at the server takes at most: so often it is looked for topics of others, and for a lost lease.
const WAIT: Duration = Duration::from_secs(1);
/// So many unfinished deliveries are taken over at once.
const TAKE: usize = 100;
/// No read takes more entries: those may be larger than the last ones were.
const READ: usize = 128;
/// A connection that was of use for so long is made anew at once where it is lost. Others are tried less and less often.
const STEADY: Duration = Duration::from_secs(5);

/// Reads for a claim until it has ended, through any outage.
pub(crate) async fn read(claim: Arc<Claim>) {
    let mut pause = Pause::default();
    while !claim.is_ended() {
        let begun = Instant::now();
        let Err(trouble) = session(&claim).await else { continue };
        if begun.elapsed() > STEADY {
            pause.reset();
        }
        let pause = pause.next();
        if trouble.broken {
            claim.store.link.suspect();
            log::debug!(
                target: "eventbus", group = %printable(&claim.group), error = %printable(&trouble),
                "a subscription has lost its connection; trying again in {pause:?}"
            );
        } else {
            claim.fail(trouble.into());
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = claim.reader.notified() => {}
        }
    }
}

/// The life of one connection.
async fn session(claim: &Arc<Claim>) -> Result<(), Trouble> {
    let (_, connection) = claim.store.link.locator.connect(Purpose::Waiting).await?;
    let patience = claim.store.settings.response_timeout;
    let mut reader = Reader {
        claim,
        connection,
        patience,
        news: Place::START,
        topics: 0,
        left_out: HashSet::new(),
        numbers: HashMap::new(),
        seen: claim.state().seen.clone(),
        left: VecDeque::new(),
        unread: Place::END,
        notes: HashMap::new(),
        mended: HashSet::new(),
        merge: Merge::new(),
        rung: Vec::new(),
        busy: 1,
        size: 0,
        anew: None,
    };
    let ended = reader.serve().await;
    claim.state().seen = reader.seen;
    ended
}

struct Reader<'a> {
    claim: &'a Arc<Claim>,
    connection: MultiplexedConnection,
    /// How long the server may take for an answer.
    patience: Duration,
    /// The latest news that are known.
    news: Place,
    /// How many topics there were.
    topics: usize,
    /// Topics whose keys hold something else.
    left_out: HashSet<Topic>,
    /// The numbers of the streams, by their keys.
    numbers: HashMap<Vec<u8>, usize>,
    /// Of each stream: everything up to there was delivered.
    seen: Vec<Place>,
    /// Unfinished deliveries that are to be taken over, before anything newer.
    left: VecDeque<Left>,
    /// The first entry of any stream that nobody has read, as the group was taken over: what is unfinished behind it waits
    /// for what is read of the others.
    unread: Place,
    /// What is known of retries that waited.
    notes: HashMap<String, Noted>,
    /// The deliveries whose payloads were mended for this group.
    mended: HashSet<String>,
    /// What was read and has to wait for what comes before it, and whether it was delivered before.
    merge: Merge<(Entry, bool)>,
    /// What the last wait has found, and nobody may have read yet.
    rung: Vec<(usize, Place)>,
    /// How many streams had something in the last read.
    busy: usize,
    /// How many bytes an entry had lately; zero: it is not known.
    size: usize,
    /// When the group was begun anew.
    anew: Option<Instant>,
}

impl Reader<'_> {
    /// Reads, or stands by, as long as the connection is of use.
    async fn serve(&mut self) -> Result<(), Trouble> {
        self.news = self.latest_news().await?;
        self.find_topics().await?;
        while !self.claim.is_ended() {
            match self.turn().await {
                Err(trouble) if trouble.is("NOGROUP") => {
                    // It may be gone at once again, and is not to be begun without a pause.
                    if self.anew.is_some_and(|at| at.elapsed() < WAIT) {
                        return Err(trouble);
                    }
                    self.begin_anew().await?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Has the group once, or stands by for a while.
    async fn turn(&mut self) -> Result<(), Trouble> {
        if !self.claim.is_ours() {
            if !self.acquire().await? {
                return self.stand_by().await;
            }
            self.find_topics().await?;
        }
        self.take_over().await?;
        self.read_on().await
    }

    /// Sends one command, and waits for its answer no longer than `patience`.
    async fn send(&mut self, what: &str, command: &Cmd) -> Result<Value, Trouble> {
        let patience = self.patience;
        self.send_for(what, command, patience).await
    }

    async fn send_for(&mut self, what: &str, command: &Cmd, patience: Duration) -> Result<Value, Trouble> {
        let answer = self.connection.send_packed_command(command);
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.and_then(Value::extract_error).map_err(|error| Trouble::of(what, &error)),
            Err(_) => Err(Trouble::late(what)),
        }
    }

    async fn latest_news(&mut self) -> Result<Place, Trouble> {
        let answer = self.send("cannot read the news of the bus", &self.ask_for_news()).await?;
        Ok(latest(answer))
    }

    fn ask_for_news(&self) -> Cmd {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(self.claim.store.keys.news()).arg("+").arg("-").arg("COUNT").arg(1);
        command
    }

    /// How many topics there are: somebody who knows nothing of this bus tells no news of a new one.
    fn ask_for_topics(&self) -> Cmd {
        let mut command = redis::cmd("SCARD");
        command.arg(self.claim.store.keys.topics());
        command
    }

    /// Whether there are other topics than when they were looked for.
    fn are_others(&self, count: &Value) -> bool {
        matches!(count, Value::Int(count) if usize::try_from(*count) != Ok(self.topics))
    }

    /// Takes the group over, if nobody else has it.
    async fn acquire(&mut self) -> Result<bool, Trouble> {
        // What was settled in an earlier time, and is still ours, is not to come again.
        if self.claim.unsaved() > 0 {
            let _ = tokio::time::timeout(self.patience, self.claim.save()).await;
        }
        self.claim.lose();
        if self.claim.competing {
            // It was lost for want of a beat.
            self.claim.state().patience.lost();
        }
        let is_ours = matches!(self.claim.acquire().await?, Acquired::Ours);
        if !is_ours {
            self.claim.stance.stands_by(&self.claim.group, self.claim.pattern.as_str());
        }
        Ok(is_ours)
    }

    /// Waits until the group may be free.
    async fn stand_by(&mut self) -> Result<(), Trouble> {
        let mut command = redis::cmd("XREAD");
        command
            .arg("BLOCK")
            .arg(millis(WAIT))
            .arg("STREAMS")
            .arg(self.claim.store.keys.news())
            .arg(self.news.to_string());
        self.wait(&command, true).await.map(drop)
    }

    /// Waits for entries: which streams have some. The news among them are taken note of.
    async fn wait(&mut self, command: &Cmd, standing_by: bool) -> Result<Rung, Trouble> {
        let claim = self.claim;
        let patience = WAIT + self.patience;
        let answer = {
            let mut waiting = std::pin::pin!(self.send_for("the server does not answer", command, patience));
            loop {
                tokio::select! {
                    answer = &mut waiting => break answer?,
                    () = claim.reader.notified() => if claim.is_ended() || !(standing_by || claim.is_ours()) {
                        return Ok(Rung::default());
                    },
                }
            }
        };
        let mut rung = Rung::default();
        let news = self.claim.store.keys.news();
        for (key, entries) in entry::streams(answer) {
            let Some(last) = entries.last().map(|entry| entry.place) else { continue };
            if key == news.as_bytes() {
                self.news = last;
                rung.news = true;
            } else if let Some(number) = self.numbers.get(&key) {
                rung.streams.push((*number, last));
            }
        }
        Ok(rung)
    }

    /// Reads until the group is somebody else's, or nobody reads here any more.
    async fn read_on(&mut self) -> Result<(), Trouble> {
        let claim = self.claim;
        let patience = claim.store.settings.lease;
        let mut look_again = Instant::now() + patience / 2;
        while !claim.is_ended() && claim.is_ours() {
            if claim.competing && Instant::now() >= look_again {
                look_again = Instant::now() + patience / 2;
                self.take_from_others(patience).await?;
            }
            let room = claim.room().saturating_sub(self.merge.len());
            if room == 0 && claim.room() == 0 {
                tokio::select! {
                    () = claim.reader.notified() => {}
                    () = tokio::time::sleep(WAIT) => {}
                }
                continue;
            }
            if !self.left.is_empty() {
                self.claim_left(self.fits(room).min(TAKE)).await?;
                continue;
            }
            if self.read_new(self.fits(room)).await? == 0 {
                let begun = Instant::now();
                if !self.wait_for_entries().await? {
                    self.find_topics().await?;
                }
                if begun.elapsed() >= WAIT && !claim.competing && self.has_strays().await? {
                    self.take_over().await?;
                }
            }
        }
        Ok(())
    }

    /// How many entries are to be read, where there is room for so many: what they take has a limit as well. One, where it is
    /// not known how large they are.
    fn fits(&self, room: usize) -> usize {
        let waits = self.size * self.merge.len();
        let entries = self.claim.room_in_bytes().saturating_sub(waits).checked_div(self.size).unwrap_or(1);
        room.min(entries).clamp(1, READ)
    }

    /// How many entries of each stream a read takes, where there is room for so many in all.
    fn of_each(&self, room: usize, streams: usize) -> usize {
        // Most streams have nothing most of the time, and each may have as much as that; but not where that is too much.
        let most = (16 * room / streams).min(2 * AHEAD_BYTES / (streams * self.size.max(1)));
        (room / self.busy.max(1)).min(most).max(1)
    }

    /// Remembers how large entries are. They are expected to stay so for a while, where they get smaller.
    fn weigh(&mut self, entries: &[Entry]) {
        let of_entry =
            |entry: &Entry| entry.fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let all: usize = entries.iter().map(of_entry).sum();
        if !entries.is_empty() {
            self.size = (all / entries.len()).max(self.size / 2).max(1);
        }
    }

    /// Reads what nobody has read yet: how many entries, or how many of earlier reads have their place now.
    async fn read_new(&mut self, room: usize) -> Result<usize, Trouble> {
        let claim = self.claim;
        // What a stream has next is known as long as some of it waits.
        let (mut sources, waiting) = (self.sources(), self.merge.streams());
        sources.retain(|(number, _)| !waiting.contains(number));
        if sources.is_empty() {
            let ready = self.merge.take([], usize::MAX);
            return self.put_at_hand(ready).await;
        }
        let limit = self.of_each(room, sources.len());
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&claim.group).arg(&claim.consumer).arg("COUNT").arg(limit).arg("STREAMS");
        sources.iter().for_each(|(_, source)| _ = command.arg(&source.key));
        sources.iter().for_each(|_| _ = command.arg(">"));
        let clock = redis::cmd("GET").arg(claim.store.keys.clock()).clone();
        let mut commands = vec![command, clock];
        if !claim.pattern.is_exact() {
            // A topic that is new at this moment may have events before those that are read now.
            commands.extend([self.ask_for_news(), self.ask_for_topics()]);
        }
        let Some(answers) = self.guarded("cannot read events", commands).await? else {
            return Ok(0);
        };
        // Once this is read, it was delivered to somebody.
        for (number, place) in self.rung.drain(..).filter(|(number, _)| !waiting.contains(number)) {
            self.seen[number] = self.seen[number].max(place);
        }
        let mut answers = answers.into_iter();
        let found = entry::streams(answers.next().unwrap_or_default());
        let clock = answers.next().as_ref().and_then(entry::place_of).unwrap_or(Place::START);
        let news = answers.next().map_or(Place::START, latest);
        let other_topics = answers.next().is_some_and(|count| self.are_others(&count));
        self.busy = found.len();
        let mut read = Vec::with_capacity(found.len());
        let (mut count, mut full) = (0, false);
        for (key, entries) in found {
            let Some(number) = self.numbers.get(&key).copied() else { continue };
            if let Some(last) = entries.last() {
                self.seen[number] = self.seen[number].max(last.place);
            }
            self.weigh(&entries);
            count += entries.len();
            full |= entries.len() >= limit;
            read.push((
                number,
                entries.into_iter().map(|entry| (entry.place, (entry, false))).collect::<Vec<_>>(),
            ));
        }
        if count == 0 {
            // Whatever there was at this moment was delivered to somebody.
            let read = self.seen.iter_mut().enumerate().filter(|(number, _)| !waiting.contains(number));
            read.for_each(|(_, seen)| *seen = (*seen).max(clock));
        }
        if news > self.news || other_topics {
            self.news = self.news.max(news);
            for (number, entries) in read {
                entries.into_iter().for_each(|(place, entry)| self.merge.hold(number, place, entry));
            }
            self.find_topics().await?;
            // What waits is handed out by the next read, which knows the new topics.
            return Ok(count.max(1));
        }
        let ready = self.merge.take(read, limit);
        if count > 0 {
            claim.adapt(full);
        }
        Ok(count.max(self.put_at_hand(ready).await?))
    }

    /// Puts what has its place now at hand: how many.
    async fn put_at_hand(&mut self, ready: Vec<(usize, Place, (Entry, bool))>) -> Result<usize, Trouble> {
        let mut deliveries = Vec::with_capacity(ready.len());
        for (number, _, (entry, before)) in ready {
            deliveries.push(self.delivery(number, entry, before).await?);
        }
        let count = deliveries.len();
        if count > 0 {
            self.claim.put_at_hand(deliveries);
        }
        Ok(count)
    }

    /// The delivery of an entry, which was delivered `before` or was not.
    async fn delivery(&mut self, source: usize, mut entry: Entry, before: bool) -> Result<Waiting, Trouble> {
        let stream = Arc::clone(&self.claim.state().sources[source]);
        let place = entry.place;
        let origin = if stream.again { wire::take_origin(&mut entry.fields).unwrap_or(place) } else { place };
        let mut envelope = wire::read(stream.topic.clone(), origin, entry.fields);
        let mut noted = Noted::FIRST;
        if before || !self.mended.is_empty() {
            let field = stream.field(place);
            noted = self.notes.remove(&field).unwrap_or(noted);
            if self.mended.contains(&field) {
                let mut mended = redis::cmd("HGET");
                mended.arg(self.claim.store.keys.mended(&self.claim.group)).arg(field);
                let mended = self.send("cannot read a mended payload", &mended).await?;
                if let Some(payload) = entry::bytes(mended) {
                    envelope = envelope.with_payload(payload.into());
                }
            }
        }
        let size = size(&envelope);
        Ok(Waiting { source, place, offset: Offset::from(origin), envelope: Arc::new(envelope), noted, size })
    }

    /// Waits until some stream has an entry. `false`: the topics may be others by now.
    async fn wait_for_entries(&mut self) -> Result<bool, Trouble> {
        let claim = self.claim;
        let sources = self.sources();
        let wait = if claim.competing { WAIT.min(claim.store.settings.lease / 2) } else { WAIT };
        let mut command = redis::cmd("XREAD");
        command
            .arg("COUNT")
            .arg(1)
            .arg("BLOCK")
            .arg(millis(wait))
            .arg("STREAMS")
            .arg(claim.store.keys.news());
        sources.iter().for_each(|(_, source)| _ = command.arg(&source.key));
        command.arg(self.news.to_string());
        sources.iter().for_each(|(number, _)| _ = command.arg(self.seen[*number].to_string()));
        let rung = self.wait(&command, false).await?;
        self.rung.clone_from(&rung.streams);
        if rung.news {
            return Ok(false);
        }
        if rung.streams.is_empty() && !self.left_out.is_empty() {
            return Ok(false);
        }
        if rung.streams.is_empty() && !claim.pattern.is_exact() && !claim.is_ended() {
            let count = self.send("cannot count the topics", &self.ask_for_topics()).await?;
            return Ok(!self.are_others(&count));
        }
        Ok(true)
    }
}

/// What a wait has ended with.
#[derive(Default)]
struct Rung {
    news: bool,
    /// Streams that have something behind what was seen, and where.
    streams: Vec<(usize, Place)>,
}

/// The place of the last entry that was asked for.
fn latest(answer: Value) -> Place {
    entry::entries(answer).first().map_or(Place::START, |entry| entry.place)
}

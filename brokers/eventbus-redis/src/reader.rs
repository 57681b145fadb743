//! The reader of a claim: takes its group over, and puts deliveries at hand, on a connection of its own.
//!
//! It waits with `XREAD BLOCK`, which changes nothing, and then reads with `XREADGROUP` without waiting. A read that waits
//! inside of the server would be served there while this process stands still: the entry would be pending with somebody
//! who has lost the group. The read itself is guarded: a transaction that the server does not run once the token of the
//! group is another one (`WATCH`), so that nothing comes into the hands of a process that was taken for dead.

use crate::claim::{AHEAD_BYTES, Claim, Noted, Source, Waiting, size};
use crate::delivery::read_note;
use crate::entry::{self, Entry, Pending};
use crate::keeper::millis;
use crate::link::Pause;
use crate::locate::Purpose;
use crate::merge::Merge;
use crate::place::Place;
use crate::script;
use crate::suspects::{Found, Note};
use crate::trouble::Trouble;
use crate::wire;
use eventbus_core::broker::{Offset, Start, Topology};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{Pattern, Topic};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, Value};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long one wait at the server takes at most: so often it is looked for topics of others, and for a lost lease.
const WAIT: Duration = Duration::from_secs(1);
/// So many unfinished deliveries are taken over at once.
const TAKE: usize = 100;
/// No read takes more entries: those may be larger than the last ones were.
const READ: usize = 128;
/// A connection that was of use for so long is made anew at once where it is lost. Others are tried less and less often.
const STEADY: Duration = Duration::from_secs(5);
/// How many of these are listed at once.
const PAGE: usize = 1_000;

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

/// An unfinished delivery.
struct Left {
    place: Place,
    source: usize,
    /// It is ours already.
    own: bool,
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

    /// Finds the streams that the group reads, and begins it on those that are new.
    async fn find_topics(&mut self) -> Result<(), Trouble> {
        if !self.look_for_topics().await? {
            self.begin_anew().await?;
        }
        Ok(())
    }

    /// The same, where the server knows the group. `false`: it does not.
    async fn look_for_topics(&mut self) -> Result<bool, Trouble> {
        let (claim, what) = (self.claim, "cannot find the topics of a subscription");
        let keys = &claim.store.keys;
        let matching = |answer| {
            let topics = entry::list(answer).into_iter().filter_map(entry::text);
            topics
                .filter_map(|topic| Topic::new(topic).ok())
                .filter(|topic| claim.pattern.matches(topic.as_str()))
        };
        let topics = match claim.pattern.is_exact() {
            true => Topic::new(claim.pattern.as_str()).into_iter().collect(),
            false => {
                let answer = self.send(what, redis::cmd("SMEMBERS").arg(keys.topics())).await?;
                self.topics = entry::list(answer.clone()).len();
                matching(answer).collect::<Vec<_>>()
            }
        };
        let agains = self.send(what, redis::cmd("SMEMBERS").arg(keys.agains(&claim.group))).await?;
        let agains: Vec<Topic> = matching(agains).collect();
        let resume = BTreeMap::new();
        let call = register(claim, Start::Latest, true, &topics, &[], &resume);
        let registered = Registered::read(self.send(what, &call).await?);
        if !registered.known {
            return Ok(false);
        }
        for (topic, last, problem) in registered.streams {
            if problem.is_empty() {
                self.left_out.remove(&topic);
                let key = keys.topic(&topic);
                self.add(Source { key, topic, again: false }, last);
            } else if claim.pattern.is_exact() {
                return Err(Trouble::said(format!("cannot subscribe to \"{topic}\""), &problem));
            } else if self.left_out.insert(topic.clone()) {
                log::error!(
                    target: "eventbus", group = %printable(&claim.group), topic = %printable(&topic),
                    error = %printable(Trouble::said("the topic cannot be read", &problem)),
                    "a topic is left out of a subscription"
                );
            }
        }
        for topic in agains {
            let key = keys.again(&claim.group, &topic);
            self.add(Source { key, topic, again: true }, Place::START);
        }
        Ok(true)
    }

    fn add(&mut self, source: Source, seen: Place) {
        if self.numbers.contains_key(source.key.as_bytes()) {
            return;
        }
        let mut state = self.claim.state();
        // Numbers stay through all sessions.
        let known = state.sources.iter().position(|known| known.key == source.key);
        let number = known.unwrap_or_else(|| {
            state.sources.push(Arc::new(source));
            state.sources.len() - 1
        });
        self.numbers.insert(state.sources[number].key.clone().into_bytes(), number);
        drop(state);
        if self.seen.len() <= number {
            self.seen.resize(number + 1, Place::START);
        }
        self.seen[number] = seen;
    }

    /// The streams that are read, by their numbers.
    fn sources(&self) -> Vec<(usize, Arc<Source>)> {
        let state = self.claim.state();
        let mut numbers: Vec<_> = self.numbers.values().copied().collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| (number, Arc::clone(&state.sources[number]))).collect()
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
        Ok(matches!(self.claim.acquire().await?, Acquired::Ours))
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

    /// Finds what is unfinished: that comes first, in its order, whoever had it.
    async fn take_over(&mut self) -> Result<(), Trouble> {
        let (claim, what) = (self.claim, "cannot take a group over");
        let keys = &claim.store.keys;
        if !claim.competing && !self.fence().await? {
            claim.lose();
            return Ok(());
        }
        self.merge = Merge::new();
        // What is known here is not to come twice.
        let known: HashSet<_> = claim.known().into_iter().collect();
        self.read_notes().await?;
        let suspected = self.suspected().await?;
        let mended = self.send(what, redis::cmd("HKEYS").arg(keys.mended(&claim.group))).await?;
        self.mended = entry::list(mended).into_iter().filter_map(entry::text).collect();
        let (mut left, found) = self.pending(&suspected).await?;
        left.retain(|left| !known.contains(&(left.source, left.place)));
        if !claim.competing {
            self.remove_notes(&suspected, &left, &known).await?;
        }
        claim.state().suspects.retain(|spot| known.contains(&spot));
        self.suspect(found).await?;
        self.left = left.into();
        self.unread = if claim.competing { Place::END } else { self.first_unread().await? };
        self.tidy().await
    }

    /// The first entry of any stream that was not delivered yet.
    async fn first_unread(&mut self) -> Result<Place, Trouble> {
        let mut first = Place::END;
        for (number, source) in self.sources() {
            let mut command = redis::cmd("XRANGE");
            command.arg(&source.key).arg(self.seen[number].next().to_string()).arg("+").arg("COUNT").arg(1);
            let found = entry::entries(self.send("cannot take a group over", &command).await?);
            first = found.first().map_or(first, |entry| first.min(entry.place));
        }
        Ok(first)
    }

    /// Reads what is known of retries that waited.
    async fn read_notes(&mut self) -> Result<(), Trouble> {
        let parked = self.claim.store.keys.parked(&self.claim.group);
        let notes = self.send("cannot read the notes of retries", redis::cmd("HGETALL").arg(parked)).await?;
        let notes: Vec<_> = entry::list(notes).into_iter().filter_map(entry::text).collect();
        let note = |pair: &[String]| Some((pair[0].clone(), read_note(pair.get(1)?)?));
        self.notes = notes.chunks(2).filter_map(note).collect();
        Ok(())
    }

    /// Reads what is noted of events that may have ended a process.
    async fn suspected(&mut self) -> Result<HashMap<String, Note>, Trouble> {
        let key = self.claim.store.keys.suspects(&self.claim.group);
        let notes = self.send("cannot read the notes of suspects", redis::cmd("HGETALL").arg(key)).await?;
        let notes: Vec<_> = entry::list(notes).into_iter().filter_map(entry::text).collect();
        let note = |pair: &[String]| Some((pair[0].clone(), Note::read(pair.get(1)?)?));
        Ok(notes.chunks(2).filter_map(note).collect())
    }

    /// Removes the notes of what is not unfinished any more.
    async fn remove_notes(
        &mut self,
        suspected: &HashMap<String, Note>,
        left: &[Left],
        known: &HashSet<(usize, Place)>,
    ) -> Result<(), Trouble> {
        if suspected.is_empty() {
            return Ok(());
        }
        let sources: HashMap<_, _> = self.sources().into_iter().collect();
        let unfinished = left.iter().map(|left| (left.source, left.place)).chain(known.iter().copied());
        let fields = unfinished.filter_map(|(source, place)| Some(sources.get(&source)?.field(place)));
        let unfinished: HashSet<_> = fields.collect();
        let of_ours: Vec<_> = sources.values().map(|source| source.fields()).collect();
        let is_ours = |field: &str| of_ours.iter().any(|fields| field.starts_with(fields.as_str()));
        let gone = suspected.keys().filter(|field| !unfinished.contains(*field) && is_ours(field));
        let removes = gone.cloned().collect();
        self.suspect(Found { removes, ..Found::default() }).await
    }

    /// Takes note of what was found of events that may have ended a process, before they are taken over.
    async fn suspect(&mut self, found: Found) -> Result<(), Trouble> {
        let (claim, what) = (self.claim, "cannot note suspects");
        let Found { suspects, crashed, writes, removes } = found;
        let key = claim.store.keys.suspects(&claim.group);
        if !writes.is_empty() {
            self.send(what, redis::cmd("HSET").arg(&key).arg(writes)).await?;
        }
        if !removes.is_empty() {
            self.send(what, redis::cmd("HDEL").arg(&key).arg(removes)).await?;
        }
        let mut state = claim.state();
        if crashed {
            state.suspects.be_careful();
        }
        suspects.into_iter().for_each(|(spot, suspect)| state.suspects.add(spot, suspect));
        claim.careful.store(state.suspects.are_there(), Ordering::Release);
        Ok(())
    }

    /// Lists unfinished deliveries in their order: all of them, or where processes compete, our own.
    async fn pending(&mut self, suspected: &HashMap<String, Note>) -> Result<(Vec<Left>, Found), Trouble> {
        let claim = self.claim;
        let (mut left, mut found) = (Vec::new(), Found::default());
        for (number, source) in self.sources() {
            let mut from = "-".to_owned();
            loop {
                let mut command = redis::cmd("XPENDING");
                command.arg(&source.key).arg(&claim.group).arg(&from).arg("+").arg(PAGE);
                if claim.competing {
                    command.arg(&claim.consumer);
                }
                let page = entry::pending(self.send("cannot list unfinished deliveries", &command).await?);
                let full = page.len() == PAGE;
                if let Some(last) = page.last() {
                    from = format!("({}", last.place);
                }
                for Pending { place, consumer } in page {
                    let (spot, field) = ((number, place), || source.field(place));
                    found.look_at(spot, field, (&consumer, &claim.consumer), suspected);
                    left.push(Left { place, source: number, own: consumer == claim.consumer });
                }
                if !full {
                    break;
                }
            }
        }
        left.sort_unstable_by_key(|left| (left.place, left.source));
        Ok((left, found))
    }

    /// Removes consumers of processes that are gone.
    async fn tidy(&mut self) -> Result<(), Trouble> {
        let claim = self.claim;
        let mut call = script::TIDY.call(&claim.store.keys);
        call.arg(&claim.group).arg(claim.pattern.as_str()).arg(&claim.consumer);
        // Nobody else reads a group that is ours.
        call.arg(if claim.competing { millis(claim.store.settings.lease * 2) } else { 0 });
        self.sources().iter().for_each(|(_, source)| _ = call.arg(&source.key));
        self.send("cannot remove consumers", &call).await.map(drop)
    }

    /// Guards what is read next; `false`: the group is somebody else's.
    async fn watch(&mut self) -> Result<bool, Trouble> {
        let key = self.claim.store.keys.token(&self.claim.group, &self.claim.pattern);
        let token = self.claim.state().token.clone();
        self.send("cannot watch a lease", redis::cmd("WATCH").arg(&key)).await?;
        let known = self.send("cannot watch a lease", redis::cmd("GET").arg(&key)).await?;
        Ok(entry::text(known).is_some_and(|known| known == token))
    }

    /// Guards what is read next, and keeps the server from running what was asked for on an earlier connection once that
    /// is listed which is pending: it would come late, behind newer events of its keys. Such a read watches the token, which
    /// is written anew. `false`: the group is somebody else's.
    async fn fence(&mut self) -> Result<bool, Trouble> {
        if !self.watch().await? {
            return Ok(false);
        }
        let mut fence = script::FENCE.call(&self.claim.store.keys);
        fence.arg(&self.claim.group).arg(self.claim.pattern.as_str()).arg(self.claim.state().token.clone());
        self.send("cannot guard a group", &fence).await?;
        // Where it was not written, somebody else has the group.
        self.watch().await
    }

    /// Runs commands that hand deliveries out, all at one moment. None: the group is somebody else's, and nothing was
    /// handed out.
    async fn guarded(&mut self, what: &str, commands: Vec<Cmd>) -> Result<Option<Vec<Value>>, Trouble> {
        let (claim, count) = (self.claim, commands.len());
        let mut pipeline = Pipeline::new();
        if claim.competing {
            commands.into_iter().for_each(|command| _ = pipeline.add_command(command));
            let answers = self.run(what, &pipeline, count).await?;
            return answers
                .into_iter()
                .map(|answer| checked(what, answer))
                .collect::<Result<_, _>>()
                .map(Some);
        }
        let key = claim.store.keys.token(&claim.group, &claim.pattern);
        pipeline.cmd("MULTI");
        commands.into_iter().for_each(|command| _ = pipeline.add_command(command));
        pipeline.cmd("EXEC").cmd("WATCH").arg(&key).cmd("GET").arg(&key);
        let mut answers = self.run(what, &pipeline, count + 4).await?;
        let token = checked(what, answers.pop().unwrap_or_default())?;
        let ours = entry::text(token).is_some_and(|token| token == claim.state().token);
        answers.pop();
        let executed = answers.pop().unwrap_or_default();
        // What was wrong with one of them says more than that they were not run.
        for queued in answers {
            match checked(what, queued) {
                Err(trouble) if trouble.is("OOM") => {
                    // What stands between `MULTI` and `EXEC`.
                    let commands = pipeline.cmd_iter().skip(1).take(count);
                    return self.guarded_by_script(what, commands).await;
                }
                queued => _ = queued?,
            }
        }
        match checked(what, executed)? {
            Value::Array(answers) => {
                if !ours {
                    claim.lose();
                    return Ok(None);
                }
                answers.into_iter().map(|answer| checked(what, answer)).collect::<Result<_, _>>().map(Some)
            }
            _ => {
                if !ours {
                    claim.lose();
                }
                Ok(None)
            }
        }
    }

    /// The same while the server has no memory left, and takes no command into a transaction. Were nothing read then, nothing
    /// would be settled, and no event could be removed.
    async fn guarded_by_script(
        &mut self,
        what: &str,
        commands: impl Iterator<Item = &Cmd>,
    ) -> Result<Option<Vec<Value>>, Trouble> {
        let claim = self.claim;
        let mut call = script::GUARDED.call(&claim.store.keys);
        call.arg(&claim.group).arg(claim.pattern.as_str()).arg(claim.state().token.clone());
        for command in commands {
            let words: Vec<&[u8]> = command.args_iter().filter_map(word).collect();
            call.arg(words.len()).arg(words);
        }
        match self.send(what, &call).await? {
            Value::Array(answers) => Ok(Some(answers)),
            _ => {
                claim.lose();
                Ok(None)
            }
        }
    }

    async fn run(&mut self, what: &str, pipeline: &Pipeline, count: usize) -> Result<Vec<Value>, Trouble> {
        let answers = self.connection.send_packed_commands(pipeline, 0, count);
        match tokio::time::timeout(self.patience, answers).await {
            Ok(answers) => answers.map_err(|error| Trouble::of(what, &error)),
            Err(_) => Err(Trouble::late(what)),
        }
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

    /// Whether something is pending that is not known here, for whatever reason: it would wait for the next connection.
    async fn has_strays(&mut self) -> Result<bool, Trouble> {
        let mut pending = 0;
        for (_, source) in self.sources() {
            let mut command = redis::cmd("XPENDING");
            command.arg(&source.key).arg(&self.claim.group);
            let summary = self.send("cannot count unfinished deliveries", &command).await?;
            if let Some(Value::Int(count)) = entry::list(summary).first() {
                pending += usize::try_from(*count).unwrap_or(0);
            }
        }
        Ok(pending > self.claim.known().len())
    }

    /// Takes over some of what is unfinished.
    async fn claim_left(&mut self, count: usize) -> Result<(), Trouble> {
        let claim = self.claim;
        let taken: Vec<Left> = self.left.drain(..count.min(self.left.len())).collect();
        let idle = if claim.competing { claim.store.settings.lease } else { Duration::ZERO };
        let (mut commands, mut numbers) = (Vec::new(), Vec::new());
        for (number, source) in self.sources() {
            for own in [true, false] {
                let of_source = taken.iter().filter(|left| left.source == number && left.own == own);
                let mut of_source = of_source.peekable();
                if of_source.peek().is_none() {
                    continue;
                }
                let mut command = redis::cmd("XCLAIM");
                let idle = if own || idle.is_zero() { 0 } else { millis(idle) };
                command.arg(&source.key).arg(&claim.group).arg(&claim.consumer).arg(idle);
                of_source.for_each(|left| _ = command.arg(left.place.to_string()));
                commands.push(command);
                numbers.push(number);
            }
        }
        let Some(answers) = self.guarded("cannot take deliveries over", commands).await? else {
            taken.into_iter().rev().for_each(|left| self.left.push_front(left));
            return Ok(());
        };
        let mut missing: HashSet<_> = taken.iter().map(|left| (left.source, left.place)).collect();
        let mut deliveries = Vec::new();
        for (number, answer) in numbers.into_iter().zip(answers) {
            let entries = entry::entries(answer);
            self.weigh(&entries);
            for entry in entries {
                missing.remove(&(number, entry.place));
                match entry.place < self.unread {
                    true => deliveries.push(self.delivery(number, entry, true).await?),
                    false => self.merge.hold(number, entry.place, (entry, true)),
                }
            }
        }
        // They were removed, or are with somebody else.
        missing.into_iter().for_each(|spot| _ = claim.state().suspects.forget(spot));
        claim.put_at_hand(deliveries);
        // Whoever had them has nothing any more.
        if self.left.is_empty() { self.tidy().await } else { Ok(()) }
    }

    /// Where processes compete: what others have let lie, since they are gone.
    async fn take_from_others(&mut self, idle: Duration) -> Result<(), Trouble> {
        let (claim, sources) = (self.claim, self.sources());
        let mut call = script::STRAYS.call(&claim.store.keys);
        call.arg(&claim.group).arg(claim.pattern.as_str()).arg(&claim.consumer).arg(millis(idle)).arg(PAGE);
        sources.iter().for_each(|(_, source)| _ = call.arg(&source.key));
        let strays = entry::list(self.send("cannot look for unfinished deliveries", &call).await?);
        if !strays.is_empty() {
            self.read_notes().await?;
            let (suspected, mut found) = (self.suspected().await?, Found::default());
            for stray in strays.chunks(3) {
                if let [Value::Int(stream), place, consumer] = stray
                    && let Some((number, source)) =
                        usize::try_from(*stream).ok().and_then(|at| sources.get(at))
                    && let (Some(place), Some(consumer)) =
                        (entry::place_of(place), entry::text(consumer.clone()))
                {
                    let (spot, field) = ((*number, place), || source.field(place));
                    found.look_at(spot, field, (&consumer, &claim.consumer), &suspected);
                    self.left.push_back(Left { place, source: *number, own: false });
                }
            }
            self.suspect(found).await?;
        }
        self.tidy().await
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
        // A topic that is new at this moment may have events before those that are read now.
        let news = self.ask_for_news();
        let Some(answers) = self.guarded("cannot read events", vec![command, clock, news]).await? else {
            return Ok(0);
        };
        // Once this is read, it was delivered to somebody.
        for (number, place) in self.rung.drain(..).filter(|(number, _)| !waiting.contains(number)) {
            self.seen[number] = self.seen[number].max(place);
        }
        let mut answers = answers.into_iter();
        let found = entry::streams(answers.next().unwrap_or_default());
        let clock = answers.next().as_ref().and_then(entry::place_of).unwrap_or(Place::START);
        let news = latest(answers.next().unwrap_or_default());
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
        if news > self.news && !claim.pattern.is_exact() {
            self.news = news;
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
        // Somebody who knows nothing of this bus tells no news.
        if rung.streams.is_empty() && !claim.pattern.is_exact() && !claim.is_ended() {
            let count = redis::cmd("SCARD").arg(claim.store.keys.topics()).clone();
            let count = self.send("cannot count the topics", &count).await?;
            return Ok(count == Value::Int(self.topics as i64));
        }
        Ok(true)
    }

    /// The server has lost the group: it begins anew with the first event that is not settled, or with everything that came
    /// later.
    async fn begin_anew(&mut self) -> Result<(), Trouble> {
        let (claim, what) = (self.claim, "cannot begin a group anew");
        self.anew = Some(Instant::now());
        log::error!(
            target: "eventbus", group = %printable(&claim.group), pattern = %printable(&claim.pattern),
            "the server does not know the group any more, most likely since its data was removed; it begins anew with the first \
             event that is not settled, and events may be missing"
        );
        let (mut resume, mut topics) = (BTreeMap::new(), Vec::new());
        let unsettled = claim.unsettled();
        let sources = claim.state().sources.clone();
        for (number, source) in sources.iter().enumerate() {
            if source.again {
                let mut command = redis::cmd("XGROUP");
                command.arg("CREATE").arg(&source.key).arg(&claim.group).arg("0").arg("MKSTREAM");
                match self.send(what, &command).await {
                    Err(trouble) if !trouble.is("BUSYGROUP") => return Err(trouble),
                    _ => continue,
                }
            }
            let seen = self.seen.get(number).copied().unwrap_or(Place::START);
            let mut command = redis::cmd("XREVRANGE");
            command.arg(&source.key).arg("+").arg("-").arg("COUNT").arg(1);
            let last = entry::entries(self.send(what, &command).await?);
            // A stream that ends before was removed, and everything in it is new.
            let from = match last.first() {
                Some(last) if last.place < seen => Place::START,
                _ => unsettled.get(&number).map_or(seen, |first| first.before().min(seen)),
            };
            resume.insert(source.topic.to_string(), from);
            topics.push(source.topic.clone());
        }
        let call = register(claim, Start::Earliest, false, &topics, &[], &resume);
        if !Registered::read(self.send(what, &call).await?).known {
            let said = format!(
                "the server does not know the group `{}` on \"{}\" any more, and this program makes none (`topology=check`); \
                 start a program that may make it",
                claim.group, claim.pattern
            );
            return Err(Trouble::said("cannot read events", &said));
        }
        // What is here comes again, and is not to be here twice.
        claim.lose();
        self.numbers.clear();
        self.look_for_topics().await.map(drop)
    }
}

/// What a wait has ended with.
#[derive(Default)]
struct Rung {
    news: bool,
    /// Streams that have something behind what was seen, and where.
    streams: Vec<(usize, Place)>,
}

fn word(argument: redis::Arg<&[u8]>) -> Option<&[u8]> {
    if let redis::Arg::Simple(word) = argument { Some(word) } else { None }
}

fn checked(what: &str, answer: Value) -> Result<Value, Trouble> {
    answer.extract_error().map_err(|error| Trouble::of(what, &error))
}

/// The call that makes a group known on its pattern, and begins it on these topics.
///
/// `known`: only where the group is known there.
pub(crate) fn register(
    claim: &Claim,
    start: Start,
    known: bool,
    topics: &[Topic],
    overlapping: &[String],
    resume: &BTreeMap<String, Place>,
) -> Cmd {
    let mut call = script::REGISTER.call(&claim.store.keys);
    call.arg(&claim.group).arg(claim.pattern.as_str());
    call.arg(if start == Start::Latest { "$" } else { "0-0" });
    call.arg(match claim.store.settings.topology {
        Topology::Check => "check",
        _ if known => "known",
        _ => "create",
    });
    call.arg(if claim.pattern.is_exact() { "1" } else { "0" }).arg(topics.len());
    topics.iter().for_each(|topic| _ = call.arg(topic.as_str()));
    call.arg(overlapping.len());
    for pattern in overlapping {
        call.arg(pattern).arg(if covers(claim.pattern.as_str(), pattern) { "1" } else { "0" });
    }
    for (topic, place) in resume {
        call.arg(topic).arg(place.to_string());
    }
    call
}

/// Whether each topic that `inner` covers is covered by `outer`.
fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(segment)) if segment != ">" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

/// What the server has answered to [`register`].
pub(crate) struct Registered {
    /// The group is known, or was made so.
    pub(crate) known: bool,
    /// How many events a new group skips.
    pub(crate) skips: usize,
    /// Of each topic, the last entry that was delivered, and what is wrong with it.
    pub(crate) streams: Vec<(Topic, Place, String)>,
}

impl Registered {
    pub(crate) fn read(answer: Value) -> Self {
        let mut parts = entry::list(answer).into_iter();
        let known = matches!(parts.next(), Some(Value::Int(_)));
        let skips = match parts.next() {
            Some(Value::Int(skips)) => usize::try_from(skips).unwrap_or(0),
            _ => 0,
        };
        let mut streams = Vec::new();
        while let (Some(topic), Some(last), Some(problem)) = (parts.next(), parts.next(), parts.next()) {
            if let Some(Ok(topic)) = entry::text(topic).map(Topic::new) {
                let last = entry::place_of(&last).unwrap_or_default();
                streams.push((topic, last, entry::text(problem).unwrap_or_default()));
            }
        }
        Self { known, skips, streams }
    }
}

/// The place of the last entry that was asked for.
fn latest(answer: Value) -> Place {
    entry::entries(answer).first().map_or(Place::START, |entry| entry.place)
}

/// Whether a claim has its group.
pub(crate) enum Acquired {
    Ours,
    /// Another one has it, under this token.
    Others(String),
}

impl Claim {
    /// Takes the group over, if nobody else has it.
    pub(crate) async fn acquire(&self) -> Result<Acquired, Trouble> {
        let lease = self.store.settings.lease;
        let link = &self.store.link;
        if self.competing {
            let until = self.store.clock_after(lease);
            self.beat().await?;
            self.begin(String::new(), until);
            return Ok(Acquired::Ours);
        }
        loop {
            let patterns = redis::cmd("HKEYS").arg(self.store.keys.group(&self.group)).clone();
            let patterns = entry::list(link.value("cannot take a group over", &patterns).await?);
            let patterns =
                patterns.into_iter().filter_map(entry::text).filter(|known| known != self.pattern.as_str());
            let overlaps =
                |known: &String| Pattern::new(known).is_ok_and(|known| known.overlaps(&self.pattern));
            let (overlapping, others): (Vec<_>, Vec<_>) = patterns.partition(overlaps);
            let token = self.store.token();
            let until = self.store.clock_after(lease);
            let mut call = script::ACQUIRE.call(&self.store.keys);
            call.arg(&self.group)
                .arg(self.pattern.as_str())
                .arg(&token)
                .arg(millis(lease))
                .arg(overlapping.len());
            overlapping.iter().chain(&others).for_each(|pattern| _ = call.arg(pattern));
            let mut answer = entry::list(link.value("cannot take a group over", &call).await?).into_iter();
            match answer.next().and_then(entry::text).as_deref() {
                Some("HELD") => {
                    self.begin(token, until);
                    return Ok(Acquired::Ours);
                }
                // Another program has made a pattern known meanwhile.
                Some("CHANGED") => {}
                _ => {
                    let other = answer.next().and_then(entry::text).unwrap_or_default();
                    return Ok(Acquired::Others(other));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_pattern_covers_another_where_it_has_all_of_its_topics() {
        for (outer, inner) in
            [("a.b", "a.b"), ("a.*", "a.b"), (">", "a.*.c"), ("a.>", "a.b.>"), ("*.b", "*.b"), (">", ">")]
        {
            assert!(covers(outer, inner), "{outer} {inner}");
        }
        for (outer, inner) in
            [("a.b", "a.*"), ("a.*", "a.>"), ("a.*", "a.b.c"), ("a.>", "a"), ("a.b", "a.b.c"), ("a.*", "*.b")]
        {
            assert!(!covers(outer, inner), "{outer} {inner}");
        }
    }
}

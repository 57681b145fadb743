//! Groups: how far each has come, as operators see and move them.

use crate::broker::Store;
use crate::entry;
use crate::place::Place;
use crate::script;
use eventbus_core::broker::{BrokerFuture, GroupState, Groups, Offset};
use eventbus_core::{BrokerError, Pattern, Topic};
use redis::{Cmd, Pipeline, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many groups one script looks at: the server does nothing else meanwhile, for less than a millisecond.
const GROUPS: usize = 50;
/// How many commands are sent at once: nobody else's wait behind more than that.
const AT_ONCE: usize = 8;

/// What the server knows of one group.
struct Known {
    name: String,
    /// Its patterns, and whether a process handles it there.
    patterns: Vec<(Pattern, bool)>,
    dead_letters: u64,
    /// The topics of parked deliveries.
    parked: Vec<String>,
    /// The topics of dead letters that go again, and how many.
    agains: Vec<(String, u64)>,
}

/// How far a group has come in one topic.
struct Reading {
    topic: Topic,
    last: Place,
    pending: u64,
    /// How many entries follow; none, where the server does not know.
    lag: Option<u64>,
    first_pending: Option<Place>,
    first_new: Option<Place>,
}

impl Known {
    /// The pattern that has a topic: one that a process handles, or else the most special.
    fn owner(&self, topic: &str) -> Option<&str> {
        let covering = self.patterns.iter().filter(|(pattern, _)| pattern.matches(topic));
        let rank = |(pattern, active): &&(Pattern, bool)| {
            (*active, !pattern.as_str().contains('>'), pattern.as_str().len())
        };
        covering.max_by_key(rank).map(|(pattern, _)| pattern.as_str())
    }
}

fn number(value: Option<Value>) -> u64 {
    match value {
        Some(Value::Int(number)) => u64::try_from(number).unwrap_or(0),
        _ => 0,
    }
}

fn text(value: Option<Value>) -> Option<String> {
    value.and_then(entry::text)
}

/// Reads what `scripts/groups.lua` answers of one group, and how many parked deliveries it has.
fn known(group: Value) -> Option<(Known, u64)> {
    let mut parts = entry::list(group).into_iter();
    let name = text(parts.next())?;
    let patterns = entry::list(parts.next()?);
    let pattern = |pair: &[Value]| {
        Some((Pattern::new(entry::text(pair[0].clone())?).ok()?, pair.get(1) == Some(&Value::Int(1))))
    };
    let patterns = patterns.chunks(2).filter_map(pattern).collect();
    let (dead_letters, parked) = (number(parts.next()), number(parts.next()));
    let agains = entry::list(parts.next()?);
    let again = |pair: &[Value]| Some((entry::text(pair[0].clone())?, number(pair.get(1).cloned())));
    let agains = agains.chunks(2).filter_map(again).collect();
    Some((Known { name, patterns, dead_letters, parked: Vec::new(), agains }, parked))
}

/// Reads what `XINFO GROUPS` answers of one group in a topic.
fn reading(topic: &Topic, facts: Value) -> Option<(String, Reading)> {
    let facts = match facts {
        Value::Array(facts) => facts,
        Value::Map(facts) => facts.into_iter().flat_map(|(name, fact)| [name, fact]).collect(),
        _ => return None,
    };
    let fact = |name: &[u8]| {
        facts
            .chunks_exact(2)
            .find(|pair| matches!(&pair[0], Value::BulkString(is) if is == name))
            .map(|pair| pair[1].clone())
    };
    let lag = match fact(b"lag") {
        Some(Value::Int(lag)) => u64::try_from(lag).ok(),
        _ => None,
    };
    let last = fact(b"last-delivered-id").as_ref().and_then(entry::place_of)?;
    let pending = number(fact(b"pending"));
    let reading = Reading { topic: topic.clone(), last, pending, lag, first_pending: None, first_new: None };
    Some((entry::text(fact(b"name")?)?, reading))
}

/// The topic in the name of a parked delivery.
fn topic_of(field: &str) -> Option<&str> {
    let field = field.strip_prefix("again/").unwrap_or(field);
    Some(field.rsplit_once('/')?.0)
}

impl Store {
    /// Sends commands, a few at a time, so that nobody else's wait long behind them.
    pub(crate) async fn ask_each(&self, what: &str, commands: Vec<Cmd>) -> Result<Vec<Value>, BrokerError> {
        let mut answers = Vec::with_capacity(commands.len());
        for few in commands.chunks(AT_ONCE) {
            let mut pipeline = Pipeline::new();
            few.iter().for_each(|command| _ = pipeline.add_command(command.clone()));
            answers.extend(self.link.values(what, &pipeline).await?);
        }
        Ok(answers)
    }

    /// The names of all groups.
    async fn names(&self) -> Result<Vec<String>, BrokerError> {
        self.link.ask("cannot list groups", redis::cmd("SMEMBERS").arg(self.keys.groups())).await
    }

    /// What is known of these groups.
    async fn known(&self, names: &[String]) -> Result<Vec<Known>, BrokerError> {
        let call = |names: &[String]| script::GROUPS.call(&self.keys).arg(names).clone();
        let answers = self.ask_each("cannot list groups", names.chunks(GROUPS).map(call).collect()).await?;
        let groups: Vec<_> = answers.into_iter().flat_map(entry::list).filter_map(known).collect();
        let park = groups.iter().filter(|(_, parked)| *parked > 0);
        let park = park.map(|(group, _)| redis::cmd("HKEYS").arg(self.keys.parked(&group.name)).clone());
        let mut parked = self.ask_each("cannot list retries", park.collect()).await?.into_iter();
        let with_parked = |(mut group, count): (Known, u64)| {
            if count > 0 {
                let fields = parked.next().map(entry::list).unwrap_or_default();
                let fields = fields.into_iter().filter_map(entry::text);
                group.parked = fields.filter_map(|field| topic_of(&field).map(str::to_owned)).collect();
            }
            group
        };
        Ok(groups.into_iter().map(with_parked).collect())
    }

    /// How far these groups have come in each topic, by their names.
    async fn readings(&self, groups: &[Known]) -> Result<BTreeMap<String, Vec<Reading>>, BrokerError> {
        let all = Pattern::new(">").map_err(|error| BrokerError::new(error.to_string()))?;
        let mut topics = self.topics(&all).await?;
        topics.retain(|topic| groups.iter().any(|group| group.owner(topic.as_str()).is_some()));
        let mut readings: BTreeMap<_, Vec<_>> =
            groups.iter().map(|group| (group.name.clone(), Vec::new())).collect();
        for topic in &topics {
            let info = redis::cmd("XINFO").arg("GROUPS").arg(self.keys.topic(topic)).clone();
            let info = match self.link.value("cannot list groups", &info).await {
                Ok(info) => entry::list(info),
                // The topic has no stream, or its key holds something else.
                Err(trouble) if !trouble.broken => continue,
                Err(trouble) => return Err(trouble.into()),
            };
            for (name, reading) in info.into_iter().filter_map(|facts| reading(topic, facts)) {
                if let Some(of_group) = readings.get_mut(&name) {
                    of_group.push(reading);
                }
            }
        }
        let mut open: Vec<(&String, &mut Reading)> = readings
            .iter_mut()
            .flat_map(|(name, readings)| readings.iter_mut().map(move |reading| (name, reading)))
            .filter(|(_, reading)| reading.pending > 0 || reading.lag != Some(0))
            .collect();
        let call = |open: &[(&String, &mut Reading)]| {
            let mut call = script::FIRSTS.call(&self.keys);
            for (name, reading) in open {
                call.arg(self.keys.topic(&reading.topic)).arg(*name).arg(reading.last.to_string());
            }
            call
        };
        let calls: Vec<_> = open.chunks(GROUPS).map(call).collect();
        let answers = self.ask_each("cannot list groups", calls).await?;
        let firsts: Vec<_> = answers.into_iter().flat_map(entry::list).collect();
        for ((_, reading), firsts) in open.iter_mut().zip(firsts.chunks_exact(2)) {
            (reading.first_pending, reading.first_new) =
                (entry::place_of(&firsts[0]), entry::place_of(&firsts[1]));
            // Where nothing follows, it is of entries that were removed.
            reading.lag = if reading.first_new.is_none() { Some(0) } else { reading.lag };
        }
        Ok(readings)
    }

    /// The patterns of a group, and whether a process handles it there.
    pub(crate) async fn patterns(&self, group: &str) -> Result<Vec<(String, bool)>, BrokerError> {
        let call = script::PATTERNS.call(&self.keys).arg(group).clone();
        let answer = entry::list(self.link.value("cannot find the patterns of a group", &call).await?);
        let pair =
            |pair: &[Value]| Some((entry::text(pair[0].clone())?, pair.get(1) == Some(&Value::Int(1))));
        Ok(answer.chunks(2).filter_map(pair).collect())
    }

    /// Where all groups stand. Each is looked at by itself, at a moment of its own.
    async fn list_groups(&self) -> Result<Vec<GroupState>, BrokerError> {
        let names = self.names().await?;
        self.states(&names).await
    }

    /// Where these groups stand.
    pub(crate) async fn states(&self, names: &[String]) -> Result<Vec<GroupState>, BrokerError> {
        let known = self.known(names).await?;
        let mut readings = self.readings(&known).await?;
        let mut states = Vec::new();
        for group in known {
            let readings = readings.remove(&group.name).unwrap_or_default();
            for (pattern, active) in &group.patterns {
                let mut state = GroupState::new(&group.name, pattern.as_str());
                let ours = |topic: &str| group.owner(topic) == Some(pattern.as_str());
                let mut settled = Place::START;
                let mut unfinished: Option<Place> = None;
                for reading in readings.iter().filter(|reading| ours(reading.topic.as_str())) {
                    let lag = match reading.lag {
                        Some(lag) => lag,
                        None => self.count_after(&reading.topic, reading.last).await?,
                    };
                    state.backlog += reading.pending + lag;
                    settled = settled.max(reading.last);
                    let first = reading.first_pending.into_iter().chain(reading.first_new).min();
                    unfinished = unfinished.into_iter().chain(first).min();
                }
                state.backlog +=
                    group.agains.iter().filter(|(topic, _)| ours(topic)).map(|(_, count)| count).sum::<u64>();
                // What comes behind the first unfinished event may be settled as well.
                let cursor = unfinished.map_or(settled, Place::before).min(settled);
                state.cursor = (cursor > Place::START).then(|| Offset::from(cursor));
                state.oldest = unfinished.map(Place::time);
                state.parked = group.parked.iter().filter(|topic| ours(topic)).count() as u64;
                state.dead_letters = group.dead_letters;
                state.active = *active;
                states.push(state);
            }
        }
        states.sort_by(|one, other| (&one.group, &one.pattern).cmp(&(&other.group, &other.pattern)));
        Ok(states)
    }

    async fn count_after(&self, topic: &Topic, last: Place) -> Result<u64, BrokerError> {
        self.count(&self.keys.topic(topic), last.next(), Place::END).await
    }

    /// How many entries a stream has between two places, these included.
    pub(crate) async fn count(&self, stream: &str, mut from: Place, to: Place) -> Result<u64, BrokerError> {
        let mut all = 0;
        while from <= to {
            let mut call = script::COUNT.call(&self.keys);
            call.arg(stream).arg(from.to_string()).arg(to.to_string());
            let mut answer = entry::list(self.link.value("cannot count events", &call).await?).into_iter();
            all += number(answer.next());
            match answer.next().as_ref().and_then(entry::place_of) {
                Some(last) => from = last.next(),
                None => break,
            }
        }
        Ok(all)
    }

    /// Moves, renames or removes a group, on one of its patterns or on all.
    async fn change(
        &self,
        what: &str,
        group: &str,
        pattern: Option<&str>,
        target: &str,
    ) -> Result<bool, BrokerError> {
        let known = self.known(&[group.to_owned()]).await?;
        let Some(known) = known.into_iter().find(|known| !known.patterns.is_empty()) else {
            return Ok(false);
        };
        let chosen = |other: &str| pattern.is_none_or(|pattern| pattern == other);
        let patterns: Vec<_> = known
            .patterns
            .iter()
            .map(|(pattern, _)| pattern.as_str())
            .filter(|other| chosen(other))
            .collect();
        let all = Pattern::new(">").map_err(|error| BrokerError::new(error.to_string()))?;
        let topics = self.topics(&all).await?;
        let topics = topics.iter().filter(|topic| known.owner(topic.as_str()).is_some_and(chosen));
        let mut call = script::CHANGE.call_once(self);
        call.arg(what)
            .arg(group)
            .arg(target)
            .arg(if pattern.is_none() { "1" } else { "0" })
            .arg(patterns.len());
        patterns.iter().for_each(|pattern| _ = call.arg(*pattern));
        topics.for_each(|topic| _ = call.arg(topic.as_str()));
        match self.link.value("cannot change a group", &call).await? {
            Value::Int(done) => Ok(done == 1),
            other => {
                let busy = entry::text(other).unwrap_or_default();
                Err(BrokerError::new(format!("a process handles the group `{busy}` now; stop it first")))
            }
        }
    }
}

/// The groups of a broker.
pub(crate) struct RedisGroups(pub(crate) Arc<Store>);

impl RedisGroups {
    fn change(
        &self,
        what: &'static str,
        group: &str,
        pattern: Option<&str>,
        target: String,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let (store, group, pattern) = (Arc::clone(&self.0), group.to_owned(), pattern.map(str::to_owned));
        BrokerFuture::new(async move { store.change(what, &group, pattern.as_deref(), &target).await })
    }

    fn move_to(
        &self,
        group: &str,
        pattern: Option<&str>,
        offset: Option<Offset>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let place = offset.map_or(Place::START, Place::from);
        self.change("seek", group, pattern, place.to_string())
    }

    fn give(&self, from: &str, pattern: Option<&str>, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        if !eventbus_grammar::is_group(to) {
            return BrokerFuture::ready(Err(BrokerError::new(format!(
                "`{to}` is no name of a group; names are 1 to {} characters of [A-Za-z0-9_.-]",
                eventbus_grammar::MAX_GROUP
            ))));
        }
        self.change("rename", from, pattern, to.to_owned())
    }
}

impl Groups for RedisGroups {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let store = Arc::clone(&self.0);
        BrokerFuture::new(async move { store.list_groups().await })
    }

    fn seek(&self, group: &str, offset: Option<Offset>) -> BrokerFuture<Result<bool, BrokerError>> {
        self.move_to(group, None, offset)
    }

    fn seek_on(
        &self,
        group: &str,
        pattern: &str,
        offset: Option<Offset>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        self.move_to(group, Some(pattern), offset)
    }

    fn rename(&self, from: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        self.give(from, None, to)
    }

    fn rename_on(&self, from: &str, pattern: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        self.give(from, Some(pattern), to)
    }

    fn remove(&self, group: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        self.change("remove", group, None, String::new())
    }

    fn remove_on(&self, group: &str, pattern: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        self.change("remove", group, Some(pattern), String::new())
    }
}

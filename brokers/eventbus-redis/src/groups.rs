//! Groups: how far each has come, as operators see and move them.

use crate::broker::Store;
use crate::entry;
use crate::place::Place;
use crate::script;
use eventbus_core::broker::{BrokerFuture, GroupState, Groups, Offset};
use eventbus_core::{BrokerError, Pattern, Topic};
use redis::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many entries the server counts in one go.
const COUNTED: usize = 10_000;

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
    topic: String,
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

/// Reads what `scripts/groups.lua` answers.
fn read(answer: Value) -> (Vec<Known>, BTreeMap<String, Vec<Reading>>) {
    let mut lists = entry::list(answer).into_iter();
    let groups = lists.next().map(entry::list).unwrap_or_default();
    let known = groups.into_iter().filter_map(|group| {
        let mut parts = entry::list(group).into_iter();
        let name = entry::text(parts.next()?)?;
        let patterns = entry::list(parts.next()?);
        let pattern = |pair: &[Value]| {
            Some((Pattern::new(entry::text(pair[0].clone())?).ok()?, pair.get(1) == Some(&Value::Int(1))))
        };
        let patterns = patterns.chunks(2).filter_map(pattern).collect();
        let dead_letters = number(parts.next());
        let fields = entry::list(parts.next()?).into_iter().filter_map(entry::text);
        let topic = |field: String| {
            let field = field.strip_prefix("again/").unwrap_or(&field);
            Some(field.rsplit_once('/')?.0.to_owned())
        };
        let parked = fields.filter_map(topic).collect();
        let agains = entry::list(parts.next()?);
        let again = |pair: &[Value]| Some((entry::text(pair[0].clone())?, number(pair.get(1).cloned())));
        let agains = agains.chunks(2).filter_map(again).collect();
        Some(Known { name, patterns, dead_letters, parked, agains })
    });
    let known = known.collect();
    let mut readings: BTreeMap<String, Vec<Reading>> = BTreeMap::new();
    for topic in lists.next().map(entry::list).unwrap_or_default() {
        let mut parts = entry::list(topic).into_iter();
        let Some(topic) = parts.next().and_then(entry::text) else { continue };
        let mut readers = parts.next().map(entry::list).unwrap_or_default().into_iter();
        while let Some(group) = readers.next().and_then(entry::text) {
            let last = readers.next().as_ref().and_then(entry::place_of).unwrap_or_default();
            let pending = number(readers.next());
            let lag = match readers.next() {
                Some(Value::Int(lag)) => u64::try_from(lag).ok(),
                _ => None,
            };
            let mut first = || readers.next().as_ref().and_then(entry::place_of);
            let (first_pending, first_new) = (first(), first());
            let topic = topic.clone();
            readings.entry(group).or_default().push(Reading {
                topic,
                last,
                pending,
                lag,
                first_pending,
                first_new,
            });
        }
    }
    (known, readings)
}

impl Store {
    async fn known(&self) -> Result<(Vec<Known>, BTreeMap<String, Vec<Reading>>), BrokerError> {
        let call = script::GROUPS.call(&self.keys);
        Ok(read(self.link.value("cannot list groups", &call).await?))
    }

    /// The patterns of a group, and whether a process handles it there.
    pub(crate) async fn patterns(&self, group: &str) -> Result<Vec<(String, bool)>, BrokerError> {
        let call = script::PATTERNS.call(&self.keys).arg(group).clone();
        let answer = entry::list(self.link.value("cannot find the patterns of a group", &call).await?);
        let pair =
            |pair: &[Value]| Some((entry::text(pair[0].clone())?, pair.get(1) == Some(&Value::Int(1))));
        Ok(answer.chunks(2).filter_map(pair).collect())
    }

    pub(crate) async fn list_groups(&self) -> Result<Vec<GroupState>, BrokerError> {
        let (known, mut readings) = self.known().await?;
        let mut states = Vec::new();
        for group in known {
            let readings = readings.remove(&group.name).unwrap_or_default();
            for (pattern, active) in &group.patterns {
                let mut state = GroupState::new(&group.name, pattern.as_str());
                let ours = |topic: &str| group.owner(topic) == Some(pattern.as_str());
                let mut settled = Place::START;
                let mut unfinished: Option<Place> = None;
                for reading in readings.iter().filter(|reading| ours(&reading.topic)) {
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

    async fn count_after(&self, topic: &str, last: Place) -> Result<u64, BrokerError> {
        let Ok(topic) = Topic::new(topic) else { return Ok(0) };
        self.count(&self.keys.topic(&topic), last.next(), Place::END).await
    }

    /// How many entries a stream has between two places, these included.
    pub(crate) async fn count(&self, stream: &str, mut from: Place, to: Place) -> Result<u64, BrokerError> {
        let mut all = 0;
        while from <= to {
            let mut call = script::COUNT.call(&self.keys);
            call.arg(stream).arg(from.to_string()).arg(to.to_string()).arg(COUNTED);
            let mut answer = entry::list(self.link.value("cannot count events", &call).await?).into_iter();
            let counted = number(answer.next());
            all += counted;
            match answer.next().as_ref().and_then(entry::place_of) {
                Some(last) if counted == COUNTED as u64 => from = last.next(),
                _ => break,
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
        let (known, _) = self.known().await?;
        let Some(known) = known.into_iter().find(|known| known.name == group) else { return Ok(false) };
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
        let mut call = script::CHANGE.call(&self.keys);
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

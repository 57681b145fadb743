//! The streams that a group reads: finding them, and beginning the group on them.

use super::Reader;
use crate::claim::Source;
use crate::entry;
use crate::place::Place;
use crate::register::{Registered, register};
use crate::trouble::Trouble;
use eventbus_core::Topic;
use eventbus_core::broker::Start;
use eventbus_core::log;
use eventbus_core::printable::printable;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

impl Reader<'_> {
    /// Finds the streams that the group reads, and begins it on those that are new.
    pub(super) async fn find_topics(&mut self) -> Result<(), Trouble> {
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
    pub(super) fn sources(&self) -> Vec<(usize, Arc<Source>)> {
        let state = self.claim.state();
        let mut numbers: Vec<_> = self.numbers.values().copied().collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| (number, Arc::clone(&state.sources[number]))).collect()
    }

    /// The server has lost the group: it begins anew with the first event that is not settled, or with everything that came
    /// later.
    pub(super) async fn begin_anew(&mut self) -> Result<(), Trouble> {
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

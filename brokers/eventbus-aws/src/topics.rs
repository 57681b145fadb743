//! Topics, the queues that are joined to them, and what a process knows of both.

use crate::connection::{Link, Trouble};
use crate::names::{Role, last_part};
use crate::recent::Recent;
use crate::together::each;
use crate::topology::{Queue, pattern_in};
use eventbus_core::broker::Topology;
use eventbus_core::counted::counted;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{Pattern, Topic};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Mutex, OnceCell};

/// How many topics that a queue is joined to are looked at again at once.
const AGAIN: usize = 10;

/// How many topics are known at once. Whatever was not met for longest is looked for again when it is met.
const MET: usize = 10_000;

/// What this process knows of topics and of the queues that listen on them.
pub(crate) struct Topics {
    /// What Amazon calls the topics that were met, by their names.
    met: Lock<Recent<Arc<Met>>>,
    /// The queues of groups. Whoever asks while they are looked at waits for that.
    queues: Mutex<Queues>,
    /// The queues of which a warning was written.
    told: Lock<HashSet<String>>,
}

/// A topic that was met.
#[derive(Default)]
struct Met {
    arn: OnceCell<String>,
    /// Somebody has removed it meanwhile, or it may be new: what SNS lists of it may be of before.
    doubted: bool,
}

/// The queues of groups, as they were looked at last.
#[derive(Default)]
struct Queues {
    /// Since when that is so.
    since: Option<Instant>,
    urls: Vec<String>,
    /// What they listen on, by their addresses. It is a part of a queue's name, so it stays so.
    known: HashMap<String, Arc<Listening>>,
    /// Those that cannot be looked at.
    apart: Vec<(String, Trouble)>,
}

/// A queue of a group.
struct Listening {
    arn: String,
    pattern: Pattern,
}

/// The topics that a queue is joined to, with what SNS calls that. A topic that was removed and made anew has other
/// subscriptions.
#[derive(Default)]
pub(crate) struct Joined {
    by: BTreeMap<String, String>,
    /// Up to this one they were looked at again.
    upto: String,
    /// All that there were as the queue was opened are among them.
    opened: bool,
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            met: Lock::new(Rank::BROKER_LAST, Recent::new(MET)),
            queues: Mutex::default(),
            told: Lock::new(Rank::BROKER_LAST, HashSet::new()),
        }
    }
}

impl Topics {
    fn met(&self, name: &str) -> Arc<Met> {
        Arc::clone(self.met.lock().get_or_default(name))
    }

    /// Somebody has removed the topic.
    pub(crate) fn forget(&self, name: &str) {
        let doubted = Arc::new(Met { arn: OnceCell::new(), doubted: true });
        self.met.lock().insert(name, doubted);
    }
}

impl Joined {
    /// Those of these topics that are to be looked at: each that is new, and some of the others, in turn.
    fn next<'a>(&mut self, topics: &'a [(String, Topic)]) -> Vec<&'a (String, Topic)> {
        let known: BTreeMap<_, _> =
            topics.iter().filter(|(arn, _)| self.by.contains_key(arn)).map(|one| (&*one.0, one)).collect();
        let behind = known.range::<str, _>((Bound::Excluded(&*self.upto), Bound::Unbounded));
        let round = behind.chain(known.range::<str, _>((Bound::Unbounded, Bound::Included(&*self.upto))));
        let again: Vec<_> = round.take(AGAIN).map(|(_, one)| *one).collect();
        if let Some((last, _)) = again.last() {
            self.upto.clone_from(last);
        }
        topics.iter().filter(|(arn, _)| !self.by.contains_key(arn)).chain(again).collect()
    }
}

impl Link {
    /// The topic of that name, made where it is missing and joined to each queue whose pattern covers it.
    pub(crate) async fn topic(self: &Arc<Self>, topics: &Topics, topic: &Topic) -> Result<String, Trouble> {
        let name = self.topic_name(topic.as_str())?;
        let met = topics.met(&name);
        let made = met.arn.get_or_try_init(async || {
            if self.settings.topology == Topology::Check {
                return self.find_topic(&name).await;
            }
            let arn = self.make_topic(&name).await?;
            self.join_queues(topics, topic, &arn, met.doubted).await?;
            Ok(arn)
        });
        made.await.cloned()
    }

    /// Joins each queue whose pattern covers a topic to it. Whether the topic is new is not known: somebody may have removed
    /// it, and with it what was subscribed, and somebody else may have made it again.
    ///
    /// Whoever subscribes makes a queue first and looks for topics then; this is the other order. So one of the two finds the
    /// other.
    async fn join_queues(
        self: &Arc<Self>,
        topics: &Topics,
        topic: &Topic,
        arn: &str,
        doubted: bool,
    ) -> Result<(), Trouble> {
        // Most are joined already, and nothing has to be asked of them.
        let joined = if doubted { HashSet::new() } else { self.endpoints(arn).await? };
        let (queues, mut apart) = self.listening(topics, &joined).await?;
        let is_wanted = |queue: &&Arc<Listening>| {
            queue.pattern.matches(topic.as_str()) && !joined.contains(last_part(&queue.arn))
        };
        for queue in queues.iter().filter(is_wanted) {
            match self.join(arn, &queue.arn).await {
                Ok(_) => {}
                // Somebody removes the topic just now.
                Err(trouble) if trouble.is_gone() => return Err(Trouble::Passing(trouble.to_string())),
                // It is no reason for others to go without.
                Err(trouble @ Trouble::Refused { .. }) => apart.push((queue.arn.clone(), trouble)),
                Err(trouble) => return Err(trouble),
            }
        }
        // Once for each, however many topics are met.
        apart.retain(|(queue, _)| topics.told.lock().insert(queue.clone()));
        if let Some((queue, trouble)) = apart.first() {
            log::warn!(
                target: "eventbus", topic = %printable(topic), count = apart.len(), queue = %printable(last_part(queue)),
                error = %printable(trouble),
                "some queues cannot be looked at or joined to the topic, so their groups miss its events unless they are joined \
                 already; allow it, or remove those queues"
            );
        }
        Ok(())
    }

    fn topic_name(&self, topic: &str) -> Result<String, Trouble> {
        self.settings.names.topic(topic).ok_or_else(|| Trouble::Refused {
            code: "the topic is too long".to_owned(),
            message: format!(
                "\"{topic}\" has no name of at most 256 letters in SNS; shorten it, or `prefix`"
            ),
        })
    }

    async fn make_topic(&self, name: &str) -> Result<String, Trouble> {
        let mut call = self.sns.create_topic().name(name);
        if self.settings.names.fifo {
            call = call.attributes("FifoTopic", "true").attributes("ContentBasedDeduplication", "false");
        }
        let arn = match self.steadily(|| call.clone().send()).await {
            Ok(made) => made.topic_arn.unwrap_or_default(),
            // Somebody has made it with other settings, such as a key or a deduplication by content: they are meant.
            Err(trouble) if trouble.is(&["InvalidParameter"]) => {
                self.find_topic(name).await.map_err(|other| if other.is_gone() { trouble } else { other })?
            }
            Err(trouble) => return Err(trouble),
        };
        self.check_account(&arn)?;
        Ok(arn)
    }

    /// The account is a part of every name that Amazon gives.
    fn check_account(&self, arn: &str) -> Result<(), Trouble> {
        let account = arn.split(':').nth(4).unwrap_or_default();
        match &self.settings.account {
            Some(wanted) if wanted != account => Err(Trouble::Refused {
                code: "another account".to_owned(),
                message: format!("the credentials are of the account {account}, and `account` is {wanted}"),
            }),
            _ => Ok(()),
        }
    }

    async fn find_topic(&self, name: &str) -> Result<String, Trouble> {
        let found = self.topics().await?.into_iter().find(|arn| last_part(arn) == name);
        found.ok_or_else(|| Trouble::Refused {
            code: "NotFound".to_owned(),
            message: format!("there is no topic `{name}`; make it, or let it be made (`topology=create`)"),
        })
    }

    /// All topics of the account and region.
    async fn topics(&self) -> Result<Vec<String>, Trouble> {
        let (mut found, mut next) = (Vec::new(), None);
        loop {
            let call = self.sns.list_topics().set_next_token(next);
            let page = self.steadily(|| call.clone().send()).await?;
            found.extend(page.topics.unwrap_or_default().into_iter().filter_map(|topic| topic.topic_arn));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// The names of the queues that are joined to a topic, as SNS lists them. None, where it does not let this program look.
    async fn endpoints(&self, topic: &str) -> Result<HashSet<String>, Trouble> {
        let (mut found, mut next) = (HashSet::new(), None);
        loop {
            let call = self.sns.list_subscriptions_by_topic().topic_arn(topic).set_next_token(next);
            let page = match self.steadily(|| call.clone().send()).await {
                Ok(page) => page,
                Err(Trouble::Refused { .. }) => return Ok(HashSet::new()),
                Err(trouble) => return Err(trouble),
            };
            let endpoints = page.subscriptions.unwrap_or_default().into_iter().filter_map(|one| one.endpoint);
            found.extend(endpoints.map(|endpoint| last_part(&endpoint).to_owned()));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// The queues of groups, of our kind, with what they listen on, as they are after this was called; and those that cannot
    /// be looked at. Nothing is asked of those that are joined already. Those who ask at the same time share one list: many
    /// topics are met at the start of a program.
    async fn listening(
        self: &Arc<Self>,
        topics: &Topics,
        joined: &HashSet<String>,
    ) -> Result<(Vec<Arc<Listening>>, Vec<(String, Trouble)>), Trouble> {
        let asked = Instant::now();
        let mut queues = topics.queues.lock().await;
        if queues.since.is_none_or(|since| since < asked) {
            let since = Instant::now();
            let mut urls = self.queues(Role::Any).await?;
            urls.extend(self.queues(Role::Group).await?);
            urls.retain(|url| url.ends_with(".fifo") == self.settings.names.fifo);
            queues.known.retain(|url, _| urls.contains(url));
            (queues.since, queues.urls) = (Some(since), urls);
            queues.apart.clear();
        }
        let is_unknown = |url: &&String| {
            let is_apart = queues.apart.iter().any(|(apart, _)| apart == *url);
            !queues.known.contains_key(*url) && !joined.contains(last_part(url)) && !is_apart
        };
        let unknown = queues.urls.iter().filter(is_unknown).cloned().collect();
        let looked = each(unknown, |url| {
            let link = Arc::clone(self);
            async move {
                match link.listening_on(&url).await {
                    Ok(found) => Ok(found.map(|queue| (url, Ok(queue)))),
                    // Somebody removes it just now.
                    Err(trouble) if trouble.is_gone() => Ok(None),
                    Err(trouble @ Trouble::Refused { .. }) => Ok(Some((url, Err(trouble)))),
                    Err(trouble) => Err(trouble),
                }
            }
        });
        for (url, queue) in looked.await? {
            match queue {
                Ok(queue) => drop(queues.known.insert(url, Arc::new(queue))),
                Err(trouble) => queues.apart.push((url, trouble)),
            }
        }
        Ok((queues.known.values().cloned().collect(), queues.apart.clone()))
    }

    /// What a queue listens on; none, where it is none of ours.
    async fn listening_on(&self, url: &str) -> Result<Option<Listening>, Trouble> {
        let Some(pattern) = pattern_in(&self.tags(url).await?) else { return Ok(None) };
        Ok(Some(Listening { arn: self.queue_arn(url).await?, pattern }))
    }

    /// Joins a queue to a topic, and says what SNS calls that. It is no error where it is joined already, also where somebody
    /// has given that a filter or other settings: they are meant.
    async fn join(&self, topic: &str, queue: &str) -> Result<String, Trouble> {
        let call = self.sns.subscribe().topic_arn(topic).protocol("sqs").endpoint(queue);
        let call = call.attributes("RawMessageDelivery", "true").return_subscription_arn(true);
        match self.steadily(|| call.clone().send()).await {
            Ok(joined) => Ok(joined.subscription_arn.unwrap_or_default()),
            Err(trouble) if trouble.is(&["InvalidParameter"]) => {
                let there = self.joined(topic, queue).await?;
                there.ok_or_else(|| Trouble::Refused {
                    code: "InvalidParameter".to_owned(),
                    message: format!("`{queue}` cannot be subscribed to `{topic}`: {trouble}"),
                })
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Joins a queue to the topics that its pattern covers: to each where it is not known to be so, and again to some of the
    /// others, since somebody may have removed them, and somebody else made them anew.
    pub(crate) async fn join_topics(
        self: &Arc<Self>,
        topics: &Topics,
        pattern: &Pattern,
        queue: &Queue,
        joined: &mut Joined,
    ) -> Result<(), Trouble> {
        let all = match Topic::new(pattern.as_str()) {
            Ok(topic) => vec![(self.topic(topics, &topic).await?, topic)],
            Err(_) => {
                let named = self.topics().await?.into_iter().filter_map(|arn| {
                    let topic = self.settings.names.topic_of(last_part(&arn))?;
                    pattern.matches(topic.as_str()).then_some((arn, topic))
                });
                named.collect()
            }
        };
        let (mut refused, mut others) = (None, 0);
        for one in joined.next(&all) {
            match self.join_topic(topics, pattern, queue, joined, one).await {
                // It is no reason for others to go without.
                Err(Trouble::Refused { code, message }) if refused.is_none() => {
                    refused = Some((code, format!("{message} (the topic \"{}\")", one.1)));
                }
                Err(Trouble::Refused { .. }) => others += 1,
                other => other?,
            }
        }
        joined.opened = true;
        match refused {
            None => Ok(()),
            Some((code, message)) if others == 0 => Err(Trouble::Refused { code, message }),
            Some((code, message)) => {
                let others = counted(others, "other topic");
                Err(Trouble::Refused { code, message: format!("{message}; {others} refused as well") })
            }
        }
    }

    /// Joins a queue to a topic, or again where somebody has made that anew, and with it the others that listen on it.
    async fn join_topic(
        self: &Arc<Self>,
        topics: &Topics,
        pattern: &Pattern,
        queue: &Queue,
        joined: &mut Joined,
        (arn, topic): &(String, Topic),
    ) -> Result<(), Trouble> {
        let name = self.topic_name(topic.as_str())?;
        let by = match self.join_or_check(arn, &queue.arn).await {
            Err(trouble) if trouble.is_gone() && self.settings.topology == Topology::Create => {
                // Somebody has removed it. Who makes it again looks for the queues of patterns that cover it.
                topics.forget(&name);
                joined.by.remove(arn);
                if !pattern.is_exact() {
                    return Ok(());
                }
                let made = self.topic(topics, topic).await?;
                let again = self.join_or_check(&made, &queue.arn).await;
                again.map_err(|trouble| match trouble {
                    // What was made a moment ago is not known everywhere.
                    trouble if trouble.is_gone() => Trouble::Passing(trouble.to_string()),
                    trouble => trouble,
                })?
            }
            by => by?,
        };
        match joined.by.insert(arn.clone(), by.clone()) {
            Some(before) if before == by => return Ok(()),
            None if !joined.opened => return Ok(()),
            // Whoever has made it may know nothing of queues, or have been cut before all were joined.
            None => {}
            Some(_) => log::warn!(
                target: "eventbus", topic = %printable(topic),
                "somebody has removed the topic and made it anew, and what was published since then may be stored for \
                 nobody; its queues are joined to it again"
            ),
        }
        topics.forget(&name);
        self.topic(topics, topic).await.map(drop)
    }

    async fn join_or_check(&self, topic: &str, queue: &str) -> Result<String, Trouble> {
        if self.settings.topology == Topology::Create {
            return self.join(topic, queue).await;
        }
        self.joined(topic, queue).await?.ok_or_else(|| Trouble::Refused {
            code: "NotFound".to_owned(),
            message: format!(
                "`{queue}` is not subscribed to `{topic}`; subscribe it with raw delivery, or let it be done \
                 (`topology=create`)"
            ),
        })
    }

    /// What SNS calls it that a queue is subscribed to a topic; none, where it is not. It has to be with raw delivery.
    async fn joined(&self, topic: &str, queue: &str) -> Result<Option<String>, Trouble> {
        let mut next = None;
        loop {
            let call = self.sns.list_subscriptions_by_topic().topic_arn(topic).set_next_token(next);
            let page = self.steadily(|| call.clone().send()).await?;
            for subscription in page.subscriptions.unwrap_or_default() {
                if subscription.endpoint.as_deref() != Some(queue) {
                    continue;
                }
                let arn = subscription.subscription_arn.unwrap_or_default();
                let call = self.sns.get_subscription_attributes().subscription_arn(&arn);
                let call = self.steadily(|| call.clone().send()).await?;
                let attributes = call.attributes.unwrap_or_default();
                let raw = attributes.get("RawMessageDelivery").map_or("false", String::as_str);
                if raw == "true" {
                    return Ok(Some(arn));
                }
                return Err(Trouble::Refused {
                    code: "another setting".to_owned(),
                    message: format!(
                        "`{queue}` gets `{topic}` with RawMessageDelivery {raw}, and it has to be true"
                    ),
                });
            }
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_topics_are_looked_at_at_once_and_the_others_in_turn() {
        let topics: Vec<_> =
            (10..35).map(|n| (format!("arn:{n}"), Topic::new(format!("a.t{n}")).unwrap())).collect();
        let mut joined = Joined::default();
        let look = |joined: &mut Joined, topics: &[(String, Topic)]| -> Vec<String> {
            joined.next(topics).into_iter().map(|(arn, _)| arn.clone()).collect()
        };
        assert_eq!(look(&mut joined, &topics[1..]).len(), 24);
        for (arn, _) in &topics[1..] {
            joined.by.insert(arn.clone(), "by".to_owned());
        }
        let mut seen = look(&mut joined, &topics);
        assert_eq!((seen.len(), seen[0].as_str()), (11, "arn:10"), "the new one, and ten of the others");
        joined.by.insert("arn:10".to_owned(), "by".to_owned());
        for _ in 0..2 {
            seen.extend(look(&mut joined, &topics));
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 25, "each has had its turn");
        assert_eq!(look(&mut joined, &topics[..3]).len(), 3, "each once where there are few");
    }
}

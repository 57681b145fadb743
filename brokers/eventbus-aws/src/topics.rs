//! Topics, the queues that are joined to them, and what a process knows of both.

use crate::connection::{CALL, Link, Trouble};
use crate::names::{Role, last_part};
use crate::topology::{Queue, pattern_in};
use eventbus_core::broker::Topology;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{Pattern, Topic};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// The topics that this process has published to, by their names, with what Amazon calls them.
pub(crate) struct Topics(Lock<HashMap<String, Arc<Known>>>);

/// A topic that was met.
#[derive(Default)]
struct Known {
    /// Amazon's name of it.
    arn: OnceCell<String>,
    /// Somebody has removed it meanwhile, and with it what was subscribed to it.
    removed: bool,
}

impl Default for Topics {
    fn default() -> Self {
        Self(Lock::new(Rank::BROKER_LAST, HashMap::new()))
    }
}

impl Topics {
    fn known(&self, name: &str) -> Arc<Known> {
        Arc::clone(self.0.lock().entry(name.to_owned()).or_default())
    }

    /// Somebody has removed the topic.
    pub(crate) fn forget(&self, name: &str) {
        self.0.lock().insert(name.to_owned(), Arc::new(Known { arn: OnceCell::new(), removed: true }));
    }
}

impl Link {
    /// The topic of that name, made where it is missing and joined to each queue whose pattern covers it.
    pub(crate) async fn topic(&self, topics: &Topics, topic: &Topic) -> Result<String, Trouble> {
        let name = self.topic_name(topic.as_str())?;
        let known = topics.known(&name);
        let made = known.arn.get_or_try_init(async || {
            if self.settings.topology == Topology::Check {
                return self.find_topic(&name).await;
            }
            let arn = self.make_topic(&name).await?;
            // Whoever subscribes to a pattern makes its queue first and looks for topics then; this is the other order. So
            // one of the two finds the other. Who subscribes to a topic makes that, but only once.
            let roles: &[_] = if known.removed { &[Role::Any, Role::Group] } else { &[Role::Any] };
            for role in roles {
                for (queue, pattern) in self.queues_with_patterns(*role).await? {
                    if pattern.matches(topic.as_str()) {
                        self.join(&arn, &self.queue_arn(&queue).await?).await?;
                    }
                }
            }
            Ok(arn)
        });
        made.await.cloned()
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
        let made = self.call(CALL, call.send()).await?;
        let arn = made.topic_arn.unwrap_or_default();
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
            let page = self.call(CALL, self.sns.list_topics().set_next_token(next).send()).await?;
            found.extend(page.topics.unwrap_or_default().into_iter().filter_map(|topic| topic.topic_arn));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// The queues of a role, of our kind, with what they listen on.
    async fn queues_with_patterns(&self, role: Role) -> Result<Vec<(String, Pattern)>, Trouble> {
        let mut found = Vec::new();
        for url in self.queues(role).await? {
            if url.ends_with(".fifo") != self.settings.names.fifo {
                continue;
            }
            let tags = match self.tags(&url).await {
                Ok(tags) => tags,
                // Somebody removes it just now.
                Err(trouble) if trouble.is_gone() => continue,
                Err(trouble) => return Err(trouble),
            };
            if let Some(pattern) = pattern_in(&tags) {
                found.push((url, pattern));
            }
        }
        Ok(found)
    }

    /// Joins a queue to a topic. It is no error where it is joined already.
    async fn join(&self, topic: &str, queue: &str) -> Result<(), Trouble> {
        let call = self.sns.subscribe().topic_arn(topic).protocol("sqs").endpoint(queue);
        let call = call.attributes("RawMessageDelivery", "true").return_subscription_arn(true);
        match self.call(CALL, call.send()).await {
            Ok(_) => Ok(()),
            Err(trouble) if trouble.is(&["InvalidParameter"]) => Err(Trouble::Refused {
                code: "InvalidParameter".to_owned(),
                message: format!(
                    "`{queue}` is subscribed to `{topic}` with other attributes than raw delivery and no filter: {trouble}; set \
                     them so, or remove the subscription"
                ),
            }),
            Err(trouble) => Err(trouble),
        }
    }

    pub(crate) async fn join_topics(
        &self,
        topics: &Topics,
        pattern: &Pattern,
        queue: &Queue,
    ) -> Result<(), Trouble> {
        if let Ok(topic) = Topic::new(pattern.as_str()) {
            let there = self.topic(topics, &topic).await?;
            return match self.join_or_check(&there, &queue.arn).await {
                Err(trouble) if trouble.is_gone() => {
                    // Somebody has removed it since this process has met it.
                    topics.forget(&self.topic_name(topic.as_str())?);
                    let made = self.topic(topics, &topic).await?;
                    self.join_or_check(&made, &queue.arn).await
                }
                joined => joined,
            };
        }
        let makes = self.settings.topology == Topology::Create;
        for topic in self.topics().await? {
            let name = self.settings.names.topic_of(last_part(&topic));
            if name.is_none_or(|name| !pattern.matches(name.as_str())) {
                continue;
            }
            match self.join_or_check(&topic, &queue.arn).await {
                // Somebody removes it just now. Who makes it again looks for the queue of this pattern.
                Err(trouble) if makes && trouble.is_gone() => {}
                joined => joined?,
            }
        }
        Ok(())
    }

    async fn join_or_check(&self, topic: &str, queue: &str) -> Result<(), Trouble> {
        if self.settings.topology == Topology::Create {
            return self.join(topic, queue).await;
        }
        let mut next = None;
        loop {
            let call = self.sns.list_subscriptions_by_topic().topic_arn(topic).set_next_token(next);
            let page = self.call(CALL, call.send()).await?;
            for subscription in page.subscriptions.unwrap_or_default() {
                if subscription.endpoint.as_deref() != Some(queue) {
                    continue;
                }
                let arn = subscription.subscription_arn.unwrap_or_default();
                let call = self.sns.get_subscription_attributes().subscription_arn(arn);
                let attributes = self.call(CALL, call.send()).await?.attributes.unwrap_or_default();
                let raw = attributes.get("RawMessageDelivery").map_or("false", String::as_str);
                if raw == "true" {
                    return Ok(());
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
                return Err(Trouble::Refused {
                    code: "NotFound".to_owned(),
                    message: format!(
                        "`{queue}` is not subscribed to `{topic}`; subscribe it with raw delivery, or let it be done \
                         (`topology=create`)"
                    ),
                });
            }
        }
    }
}

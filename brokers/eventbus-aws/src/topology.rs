//! Topics, queues and what joins them: made where they are missing, or checked.

use crate::connection::{CALL, Link, Trouble};
use crate::names::{Role, last_part, pattern_of, tag_of, tag_of_group};
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use eventbus_core::broker::{SubscribeRequest, Topology};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BrokerError, Pattern, Topic};
use eventbus_server::connection::Failure;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long events wait in a queue that is made here, where nothing else is said: as long as SQS allows.
const RETENTION: Duration = Duration::from_secs(14 * 86_400);
pub(crate) const GROUP_TAG: &str = "eventbus-group";
const PATTERN_TAG: &str = "eventbus-pattern";

/// A queue: where it is asked, and what policies and subscriptions call it.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) url: String,
    pub(crate) arn: String,
    /// How often SQS delivers a message, before its redrive policy takes it.
    pub(crate) redrive: Option<u32>,
}

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

    /// The addresses of all queues of a role.
    pub(crate) async fn queues(&self, role: Role) -> Result<Vec<String>, Trouble> {
        let (mut found, mut next) = (Vec::new(), None);
        loop {
            let call = self.sqs.list_queues().queue_name_prefix(self.settings.names.queues(role));
            let page = self.call(CALL, call.max_results(1_000).set_next_token(next).send()).await?;
            found.extend(page.queue_urls.unwrap_or_default());
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

    pub(crate) async fn tags(&self, url: &str) -> Result<HashMap<String, String>, Trouble> {
        let call = self.sqs.list_queue_tags().queue_url(url);
        Ok(self.call(CALL, call.send()).await?.tags.unwrap_or_default())
    }

    pub(crate) async fn queue_arn(&self, url: &str) -> Result<String, Trouble> {
        Ok(self
            .attributes(url, &[Attribute::QueueArn])
            .await?
            .remove(&Attribute::QueueArn)
            .unwrap_or_default())
    }

    /// What is known of a queue.
    pub(crate) async fn attributes(
        &self,
        url: &str,
        names: &[Attribute],
    ) -> Result<HashMap<Attribute, String>, Trouble> {
        let call = self.sqs.get_queue_attributes().queue_url(url).set_attribute_names(Some(names.to_vec()));
        Ok(self.call(CALL, call.send()).await?.attributes.unwrap_or_default())
    }

    /// The address of a queue; none, where there is no such queue.
    pub(crate) async fn queue_url(&self, name: &str) -> Result<Option<String>, Trouble> {
        match self.call(CALL, self.sqs.get_queue_url().queue_name(name).send()).await {
            Ok(found) => Ok(found.queue_url),
            Err(trouble) if trouble.is_gone() => Ok(None),
            Err(trouble) => Err(trouble),
        }
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

    /// The queue of a group, made or checked, and joined to each topic that its pattern covers.
    pub(crate) async fn group_queue(
        &self,
        topics: &Topics,
        request: &SubscribeRequest,
    ) -> Result<Queue, Failure> {
        let name = self.settings.names.queue(&request.group, &request.pattern);
        let url = self.queue(&name, &request.group, Some(&request.pattern)).await?;
        let explain =
            |what: &str, trouble: Trouble| trouble.failure(format_args!("{what} the queue `{name}`"));
        let wanted = [
            Attribute::QueueArn,
            Attribute::Policy,
            Attribute::RedrivePolicy,
            Attribute::MessageRetentionPeriod,
        ];
        let attributes =
            self.attributes(&url, &wanted).await.map_err(|trouble| explain("look at", trouble))?;
        let arn = attributes.get(&Attribute::QueueArn).cloned().unwrap_or_default();
        self.check_retention(&name, &attributes).map_err(Failure::Lasting)?;
        let redrive = check_redrive(&name, attributes.get(&Attribute::RedrivePolicy), request.retries);
        let queue = Queue { url, arn, redrive: redrive.map_err(Failure::Lasting)? };
        let source = self.source_pattern(&queue.arn);
        let policy = attributes.get(&Attribute::Policy);
        if !allows(policy, &source) {
            if self.settings.topology == Topology::Check {
                return Err(Failure::Lasting(BrokerError::new(format!(
                    "the policy of the queue `{name}` does not let the topics `{source}` send to it; allow `sqs:SendMessage` to \
                     `sns.amazonaws.com` from there, or let it be changed (`topology=create`)"
                ))));
            }
            let policy = with_permission(policy, &queue.arn, &source);
            let call =
                self.sqs.set_queue_attributes().queue_url(&queue.url).attributes(Attribute::Policy, policy);
            self.call(CALL, call.send()).await.map_err(|trouble| explain("set the policy of", trouble))?;
        }
        self.join_topics(topics, &request.pattern, &queue)
            .await
            .map_err(|trouble| explain(&format!("subscribe to \"{}\" by", request.pattern), trouble))?;
        Ok(queue)
    }

    async fn join_topics(&self, topics: &Topics, pattern: &Pattern, queue: &Queue) -> Result<(), Trouble> {
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

    /// The queue of dead letters of a group, made or checked.
    pub(crate) async fn dead_queue(&self, group: &str) -> Result<String, Failure> {
        self.queue(&self.settings.names.dead(group), group, None).await
    }

    async fn queue(&self, name: &str, group: &str, pattern: Option<&Pattern>) -> Result<String, Failure> {
        let explain =
            |what: &str, trouble: Trouble| trouble.failure(format_args!("{what} the queue `{name}`"));
        if let Some(url) = self.queue_url(name).await.map_err(|trouble| explain("look for", trouble))? {
            return Ok(url);
        }
        if self.settings.topology == Topology::Check {
            return Err(Failure::Lasting(BrokerError::new(format!(
                "there is no queue `{name}`, which the group `{group}` needs; make it, or let it be made (`topology=create`)"
            ))));
        }
        let retention = self.settings.retention_age.filter(|_| pattern.is_some()).unwrap_or(RETENTION);
        let mut call = self
            .sqs
            .create_queue()
            .queue_name(name)
            .attributes(Attribute::MessageRetentionPeriod, retention.as_secs().to_string())
            .tags(GROUP_TAG, tag_of_group(group));
        if let Some(pattern) = pattern {
            call = call.tags(PATTERN_TAG, tag_of(pattern.as_str()));
        }
        if name.ends_with(".fifo") {
            call = call
                .attributes(Attribute::FifoQueue, "true")
                .attributes(Attribute::DeduplicationScope, "messageGroup")
                .attributes(Attribute::FifoThroughputLimit, "perMessageGroupId");
        }
        let made = self.call(CALL, call.send()).await.map_err(|trouble| explain("make", trouble))?;
        Ok(made.queue_url.unwrap_or_default())
    }

    /// What is said explicitly has to be so.
    fn check_retention(
        &self,
        name: &str,
        attributes: &HashMap<Attribute, String>,
    ) -> Result<(), BrokerError> {
        let Some(wanted) = self.settings.retention_age else { return Ok(()) };
        match attributes.get(&Attribute::MessageRetentionPeriod).and_then(|text| text.parse::<u64>().ok()) {
            Some(there) if there != wanted.as_secs() => Err(BrokerError::new(format!(
                "the queue `{name}` keeps messages for {:?}, and `retention_age` is {wanted:?}; change the one or the other",
                Duration::from_secs(there)
            ))),
            _ => Ok(()),
        }
    }

    /// The topics that may send to a queue: those of ours, in its region and account.
    fn source_pattern(&self, queue: &str) -> String {
        let place: Vec<_> = queue.split(':').collect();
        let part = |at: usize| place.get(at).copied().unwrap_or("*");
        format!("arn:{}:sns:{}:{}:{}-*", part(1), self.region(), part(4), self.settings.names.prefix)
    }
}

/// The pattern that a queue listens on, as its tags say.
pub(crate) fn pattern_in(tags: &HashMap<String, String>) -> Option<Pattern> {
    tags.get(PATTERN_TAG).and_then(|tag| pattern_of(tag))
}

/// SQS gives up after so many deliveries by itself: it must not do so before we do, with the reason. How many it allows,
/// where it does.
fn check_redrive(name: &str, policy: Option<&String>, retries: u32) -> Result<Option<u32>, BrokerError> {
    let Some(policy) = policy.filter(|policy| !policy.is_empty()) else { return Ok(None) };
    let parsed: Value = serde_json::from_str(policy).unwrap_or_default();
    let most = match &parsed["maxReceiveCount"] {
        Value::String(text) => text.parse().ok(),
        number => number.as_u64(),
    };
    let Some(most) = most else {
        return Err(BrokerError::new(format!(
            "the redrive policy of the queue `{name}` has no `maxReceiveCount` that can be read: `{policy}`; correct it, or \
             remove it"
        )));
    };
    let target = parsed["deadLetterTargetArn"].as_str().unwrap_or_default();
    if last_part(target) == name {
        return Err(BrokerError::new(format!(
            "the redrive policy of the queue `{name}` moves messages to the queue itself; name another one \
             (`deadLetterTargetArn`), or remove the policy"
        )));
    }
    let attempts = u64::from(retries) + 1;
    if most <= attempts {
        return Err(BrokerError::new(format!(
            "SQS itself gives a message of the queue `{name}` up after {most} deliveries (`maxReceiveCount` of its redrive \
             policy), and the subscription makes {attempts} attempts: the dead letter would not say why; set \
             `maxReceiveCount` above {attempts}, or remove the policy"
        )));
    }
    // One delivery less, so that we give it up first.
    Ok(Some(u32::try_from(most - 1).unwrap_or(u32::MAX)))
}

/// Whether a policy lets these topics send.
fn allows(policy: Option<&String>, source: &str) -> bool {
    policy.is_some_and(|policy| {
        policy.contains(&Value::from(source).to_string()) && policy.contains("sns.amazonaws.com")
    })
}

/// A policy with a statement more, which lets these topics send.
fn with_permission(policy: Option<&String>, queue: &str, source: &str) -> String {
    let mut policy: Value = policy.and_then(|policy| serde_json::from_str(policy).ok()).unwrap_or_default();
    if !policy.is_object() {
        policy = json!({ "Version": "2012-10-17" });
    }
    let mut statements = match policy["Statement"].take() {
        Value::Array(statements) => statements,
        Value::Null => Vec::new(),
        one => vec![one],
    };
    statements.push(json!({
        "Effect": "Allow",
        "Principal": { "Service": "sns.amazonaws.com" },
        "Action": "sqs:SendMessage",
        "Resource": queue,
        "Condition": { "ArnLike": { "aws:SourceArn": source } },
    }));
    policy["Statement"] = statements.into();
    policy.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "arn:aws:sns:eu-central-1:1:shop-*";

    #[test]
    fn a_policy_of_others_keeps_its_statements_and_lets_our_topics_send() {
        let others =
            r#"{"Version":"2012-10-17","Id":"x","Statement":{"Sid":"theirs","Effect":"Deny"}}"#.to_owned();
        assert!(!allows(None, SOURCE) && !allows(Some(&others), SOURCE));
        for policy in [None, Some(others), Some(String::new()), Some("garbage".to_owned())] {
            let written = with_permission(policy.as_ref(), "arn:aws:sqs:eu-central-1:1:q", SOURCE);
            assert!(allows(Some(&written), SOURCE), "{written}");
            assert_eq!(policy.is_some_and(|policy| policy.contains("theirs")), written.contains("theirs"));
        }
    }

    #[test]
    fn a_queue_that_gives_up_before_we_do_is_refused() {
        let policy =
            |most: &str| Some(format!(r#"{{"maxReceiveCount":{most},"deadLetterTargetArn":"arn"}}"#));
        for (policy, refused) in [
            (None, false),
            (Some(String::new()), false),
            (policy("5"), true),
            (policy("\"5\""), true),
            (policy("6"), false),
            (policy("\"1000\""), false),
            (policy("null"), true),
            (Some("garbage".to_owned()), true),
            (Some(r#"{"maxReceiveCount":9,"deadLetterTargetArn":"arn:aws:sqs:r:1:q"}"#.to_owned()), true),
        ] {
            let checked = check_redrive("q", policy.as_ref(), 4);
            assert_eq!(checked.is_err(), refused, "{policy:?}");
            if let Err(error) = checked {
                let error = error.to_string();
                assert!(error.contains("above 5") || error.contains("or remove"), "{error}");
            }
        }
        assert_eq!(
            check_redrive("q", policy("6").as_ref(), 4).unwrap(),
            Some(5),
            "we give up before SQS does"
        );
    }
}

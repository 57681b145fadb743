//! Queues of groups and of their dead letters: made where they are missing, or checked.

use crate::connection::{CALL, Link, Trouble};
use crate::names::{Role, pattern_of, tag_of, tag_of_group};
use crate::policy::{allows, check_redrive, with_permission};
use crate::topics::{Joined, Topics};
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use eventbus_core::broker::{SubscribeRequest, Topology};
use eventbus_core::{BrokerError, Pattern};
use eventbus_server::connection::Failure;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

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
impl Link {
    /// The addresses of all queues of a role.
    pub(crate) async fn queues(&self, role: Role) -> Result<Vec<String>, Trouble> {
        let (mut found, mut next) = (Vec::new(), None);
        loop {
            let call = self.sqs.list_queues().queue_name_prefix(self.settings.names.queues(role));
            let call = call.max_results(1_000).set_next_token(next);
            let page = self.steadily(|| call.clone().send()).await?;
            found.extend(page.queue_urls.unwrap_or_default());
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(found);
            }
        }
    }
    pub(crate) async fn tags(&self, url: &str) -> Result<HashMap<String, String>, Trouble> {
        let call = self.sqs.list_queue_tags().queue_url(url);
        Ok(self.steadily(|| call.clone().send()).await?.tags.unwrap_or_default())
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
        Ok(self.steadily(|| call.clone().send()).await?.attributes.unwrap_or_default())
    }

    /// The address of a queue; none, where there is no such queue.
    pub(crate) async fn queue_url(&self, name: &str) -> Result<Option<String>, Trouble> {
        match self.call(CALL, self.sqs.get_queue_url().queue_name(name).send()).await {
            Ok(found) => Ok(found.queue_url),
            Err(trouble) if trouble.is_gone() => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// The queue of a group, made or checked, and joined to each topic that its pattern covers.
    pub(crate) async fn group_queue(
        self: &Arc<Self>,
        topics: &Topics,
        request: &SubscribeRequest,
        dead: &str,
    ) -> Result<(Queue, Joined), Failure> {
        let name = self.settings.names.queue(&request.group, &request.pattern);
        let url = self.queue(&name, &request.group, Some((&request.pattern, dead))).await?;
        let explain = |what: &str, trouble: Trouble| {
            self.unless_young(&url, trouble).failure(format_args!("{what} the queue `{name}`"))
        };
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
        let queue = Queue { url: url.clone(), arn, redrive: redrive.map_err(Failure::Lasting)? };
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
        let mut joined = Joined::default();
        self.join_topics(topics, &request.pattern, &queue, &mut joined)
            .await
            .map_err(|trouble| explain(&format!("subscribe to \"{}\" by", request.pattern), trouble))?;
        Ok((queue, joined))
    }

    /// Looks for the queues of a subscription, and whether they are joined to its topics, where nothing is made.
    pub(crate) async fn check(
        self: &Arc<Self>,
        topics: &Topics,
        request: &SubscribeRequest,
    ) -> Result<(), BrokerError> {
        if self.settings.topology == Topology::Create {
            return Ok(());
        }
        let look = || async {
            let dead = self.dead_queue(&request.group).await?;
            self.group_queue(topics, request, &dead).await.map(drop)
        };
        self.begin(look).await
    }

    /// The queue of dead letters of a group, made or checked.
    pub(crate) async fn dead_queue(&self, group: &str) -> Result<String, Failure> {
        self.queue(&self.settings.names.dead(group), group, None).await
    }

    /// The queue of that name: one of a group on a pattern, beside the queue of its dead letters, or that itself.
    async fn queue(&self, name: &str, group: &str, of: Option<(&Pattern, &str)>) -> Result<String, Failure> {
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
        let retention = self.settings.retention_age.filter(|_| of.is_some()).unwrap_or(RETENTION);
        let mut call = self
            .sqs
            .create_queue()
            .queue_name(name)
            .attributes(Attribute::MessageRetentionPeriod, retention.as_secs().to_string())
            .tags(GROUP_TAG, tag_of_group(group));
        if let Some((pattern, dead)) = of {
            let place = self.queue_arn(dead).await;
            let place =
                place.map_err(|trouble| explain("find the place of", self.unless_young(dead, trouble)))?;
            let arn = format!("{}:{name}", place.rsplit_once(':').map_or("", |(place, _)| place));
            // Set later, it would hold only some time later, and what came until then would be lost.
            let policy = with_permission(None, &arn, &self.source_pattern(&arn));
            call = call.tags(PATTERN_TAG, tag_of(pattern.as_str())).attributes(Attribute::Policy, policy);
        }
        if name.ends_with(".fifo") {
            call = call
                .attributes(Attribute::FifoQueue, "true")
                .attributes(Attribute::DeduplicationScope, "messageGroup")
                .attributes(Attribute::FifoThroughputLimit, "perMessageGroupId");
        }
        match self.call(CALL, call.send()).await {
            Ok(made) => {
                let url = made.queue_url.unwrap_or_default();
                self.was_made(&url);
                Ok(url)
            }
            // Another process was faster, and made it with other settings, which are looked at below.
            Err(trouble) if trouble.is(&["QueueAlreadyExists", "QueueNameExists"]) => {
                let there = self.queue_url(name).await.map_err(|trouble| explain("look for", trouble))?;
                there.ok_or_else(|| trouble.failure(format_args!("make the queue `{name}`")))
            }
            Err(trouble) => Err(explain("make", trouble)),
        }
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

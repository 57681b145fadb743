//! Groups: the queues that there are, as operators see and drop them.

use crate::connection::{CALL, Link, Trouble};
use crate::names::{Role, last_part};
use crate::readers::{is_read, last_read};
use crate::subscription::Subscription;
use crate::together::each;
use crate::topology::GROUP_TAG;
use eventbus_core::broker::{BrokerFuture, GroupState, Groups, SubscribeRequest, Topology};
use eventbus_core::{BrokerError, Pattern};
use eventbus_server::subscriptions::Subscriptions;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The groups of an account and region whose queues have the names that ours have.
#[derive(Clone)]
pub(crate) struct AwsGroups {
    pub(crate) link: Arc<Link>,
    /// What this process has open.
    pub(crate) subscriptions: Arc<Subscriptions<Subscription>>,
}

/// A queue, and what its tags say.
struct Kept {
    url: String,
    group: String,
    pattern: Pattern,
    active: bool,
    last_active: Option<Timestamp>,
}

impl AwsGroups {
    async fn list(&self) -> Result<Vec<GroupState>, Trouble> {
        let link = &self.link;
        let dead: BTreeMap<_, _> =
            link.queues(Role::Dead).await?.into_iter().map(|url| (last_part(&url).to_owned(), url)).collect();
        let kept = self.kept(None).await?;
        let mut states = each(kept, |kept| {
            let link = Arc::clone(link);
            let letters = dead.get(&link.settings.names.dead(&kept.group)).cloned();
            async move { state(&link, &kept.url, letters.as_deref(), kept.state()).await }
        })
        .await?;
        states.sort_by(|one, other| (&one.group, &one.pattern).cmp(&(&other.group, &other.pattern)));
        Ok(states)
    }

    /// What the queues have that this process has open: nobody else's are asked for.
    async fn list_of(&self, wanted: Vec<SubscribeRequest>) -> Result<Vec<GroupState>, Trouble> {
        let is_wanted = |one: &Subscription| {
            wanted.iter().any(|request| request.group == one.group && request.pattern == one.pattern)
        };
        let mut open = self.subscriptions.all();
        open.retain(|one| is_wanted(one));
        each(open, async move |one: Arc<Subscription>| {
            let mut known = GroupState::new(&one.group, one.pattern.as_str());
            known.active = true;
            state(&one.link, &one.queue.url, Some(&one.dead), known).await
        })
        .await
    }

    /// All queues of groups, or those of one.
    async fn kept(&self, group: Option<&str>) -> Result<Vec<Kept>, Trouble> {
        let mut urls = self.link.queues(Role::Group).await?;
        urls.extend(self.link.queues(Role::Any).await?);
        urls.retain(|url| url.ends_with(".fifo") == self.link.settings.names.fifo);
        let mut kept = each(urls, |url| {
            let link = Arc::clone(&self.link);
            async move { gone_is_none(link.kept(url).await) }
        })
        .await?;
        kept.retain(|kept| group.is_none_or(|group| kept.group == group));
        let open = self.subscriptions.all();
        let is_open = |url: &str| open.iter().any(|one| one.queue.url == url);
        kept.iter_mut().for_each(|kept| kept.active = kept.active || is_open(&kept.url));
        Ok(kept)
    }

    async fn remove(&self, group: &str, pattern: Option<&str>) -> Result<bool, BrokerError> {
        let explain = |trouble: Trouble| trouble.explain(format_args!("drop the group `{group}`"));
        let mut kept = self.kept(Some(group)).await.map_err(explain)?;
        kept.retain(|kept| pattern.is_none_or(|pattern| kept.pattern.as_str() == pattern));
        if kept.is_empty() {
            return Ok(false);
        }
        if self.link.settings.topology == Topology::Check {
            return Err(BrokerError::new(format!(
                "the queues of the group `{group}` are only checked here (`topology=check`), so they are not removed; remove \
                 them with what has made them, or let it be done (`topology=create`)"
            )));
        }
        if let Some(kept) = kept.iter().find(|kept| kept.active) {
            return Err(BrokerError::new(format!(
                "some process handles the group `{group}` on \"{}\"; end it first (one that was killed counts as there for \
                 five minutes)",
                kept.pattern
            )));
        }
        for kept in kept {
            // Cut in between, the queue is listed, and is dropped the next time.
            gone_is_none(self.link.part(&kept.url).await.map(Some)).map_err(explain)?;
            gone_is_none(self.link.delete_queue(&kept.url).await.map(Some)).map_err(explain)?;
        }
        Ok(true)
    }
}

impl Kept {
    fn state(&self) -> GroupState {
        let mut state = GroupState::new(&self.group, self.pattern.as_str());
        (state.active, state.last_active) = (self.active, self.last_active);
        state
    }
}

/// What a queue has to do, and how many dead letters there are.
async fn state(
    link: &Link,
    queue: &str,
    dead: Option<&str>,
    mut state: GroupState,
) -> Result<Option<GroupState>, Trouble> {
    let Some(backlog) = gone_is_none(link.waiting(queue).await.map(Some))? else { return Ok(None) };
    state.backlog = backlog;
    if let Some(dead) = dead {
        state.dead_letters = gone_is_none(link.waiting(dead).await.map(Some))?.unwrap_or_default();
    }
    Ok(Some(state))
}

/// Somebody has removed the queue meanwhile.
fn gone_is_none<T>(result: Result<Option<T>, Trouble>) -> Result<Option<T>, Trouble> {
    match result {
        Err(trouble) if trouble.is_gone() => Ok(None),
        other => other,
    }
}

impl Link {
    /// What the tags of a queue say; none, where it is none of ours.
    async fn kept(&self, url: String) -> Result<Option<Kept>, Trouble> {
        let tags = self.tags(&url).await?;
        let group = tags.get(GROUP_TAG).and_then(|tag| crate::names::group_of(tag));
        let (Some(group), Some(pattern)) = (group, crate::topology::pattern_in(&tags)) else {
            return Ok(None);
        };
        let active = is_read(&tags, Timestamp::now().as_second());
        let last_active = last_read(&tags).and_then(|at| Timestamp::from_second(at).ok());
        Ok(Some(Kept { url, group, pattern, active, last_active }))
    }

    /// Lets no topic send to a queue any more.
    async fn part(&self, url: &str) -> Result<(), Trouble> {
        let (queue, mut next) = (self.queue_arn(url).await?, None);
        loop {
            let page = self.call(CALL, self.sns.list_subscriptions().set_next_token(next).send()).await?;
            for subscription in page.subscriptions.unwrap_or_default() {
                if subscription.endpoint.as_deref() == Some(&queue) {
                    let arn = subscription.subscription_arn.unwrap_or_default();
                    let call = self.sns.unsubscribe().subscription_arn(arn);
                    gone_is_none(self.call(CALL, call.send()).await.map(Some))?;
                }
            }
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(());
            }
        }
    }

    async fn delete_queue(&self, url: &str) -> Result<(), Trouble> {
        self.call(CALL, self.sqs.delete_queue().queue_url(url).send()).await.map(drop)
    }
}

impl Groups for AwsGroups {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let groups = self.clone();
        BrokerFuture::new(async move {
            groups.list().await.map_err(|trouble| trouble.explain("look at the queues of groups"))
        })
    }

    fn list_of(
        &self,
        subscriptions: &[SubscribeRequest],
    ) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let (groups, wanted) = (self.clone(), subscriptions.to_vec());
        BrokerFuture::new(async move {
            let listed = groups.list_of(wanted).await;
            listed.map_err(|trouble| trouble.explain("look at the queues of groups"))
        })
    }

    fn remove(&self, group: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let (groups, group) = (self.clone(), group.to_owned());
        BrokerFuture::new(async move { groups.remove(&group, None).await })
    }

    fn remove_on(&self, group: &str, pattern: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let (groups, group, pattern) = (self.clone(), group.to_owned(), pattern.to_owned());
        BrokerFuture::new(async move { groups.remove(&group, Some(&pattern)).await })
    }
}

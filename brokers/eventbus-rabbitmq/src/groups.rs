//! Groups, as the server's queues show them.

use crate::connection::{DIFFERENT, Link, NOT_FOUND, Trouble};
use crate::dead_letters::RabbitMqDeadLetters;
use crate::directory::Directory;
use crate::subscription::Subscription;
use eventbus_core::broker::{BrokerFuture, GroupState, Groups};
use eventbus_core::{BrokerError, Pattern};
use eventbus_server::subscriptions::Subscriptions;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The groups of a bus.
#[derive(Clone)]
pub(crate) struct RabbitMqGroups(pub(crate) Arc<Known>);

pub(crate) struct Known {
    pub(crate) link: Arc<Link>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) dead_letters: RabbitMqDeadLetters,
    /// Those of this process, which has deliveries in its hands that the server does not count.
    pub(crate) subscriptions: Arc<Subscriptions<Subscription>>,
}

impl Known {
    async fn list(&self) -> Result<Vec<GroupState>, Trouble> {
        let mut states = Vec::new();
        for (group, patterns) in self.directory.groups().await? {
            let dead_letters = self.dead_letters.count(&group).await?;
            for pattern in patterns {
                let Ok(on) = Pattern::new(&pattern) else { continue };
                let count = match self.link.count(&self.link.names().group(&group, &on)).await {
                    Ok(count) => count,
                    // Somebody has removed its queue.
                    Err(trouble) if trouble.is(NOT_FOUND) => continue,
                    Err(trouble) => return Err(trouble),
                };
                let mut state = GroupState::new(&group, &pattern);
                state.backlog = count.ready + self.held(&group, &on);
                (state.dead_letters, state.active) = (dead_letters, count.consumers > 0);
                states.push(state);
            }
        }
        Ok(states)
    }

    fn held(&self, group: &str, pattern: &Pattern) -> u64 {
        let open = self.subscriptions.of(group, pattern);
        open.iter().map(|one| one.state.lock().held.open() as u64).sum()
    }

    /// Removes the queues of a group, on one of its patterns or all. What is handled stays.
    async fn remove(&self, group: &str, pattern: Option<&str>) -> Result<bool, BrokerError> {
        let explain = |trouble: Trouble| trouble.explain(format_args!("remove the group `{group}`"));
        let mut groups = self.directory.groups().await.map_err(explain)?;
        let patterns: BTreeSet<String> = groups.remove(group).unwrap_or_default();
        let patterns: Vec<_> =
            patterns.into_iter().filter(|on| pattern.is_none_or(|only| only == on)).collect();
        let mut queues = Vec::new();
        for on in &patterns {
            let Ok(on) = Pattern::new(on) else { continue };
            let queue = self.link.names().group(group, &on);
            match self.link.count(&queue).await {
                Ok(count) if count.consumers > 0 => return Err(is_handled(group, &on)),
                Ok(_) => queues.push((queue, on)),
                Err(trouble) if trouble.is(NOT_FOUND) => {}
                Err(trouble) => return Err(explain(trouble)),
            }
        }
        let removed = !queues.is_empty();
        for (queue, on) in queues {
            self.link.delete_queue(&queue).await.map_err(|trouble| {
                if trouble.is(DIFFERENT) { is_handled(group, &on) } else { explain(trouble) }
            })?;
        }
        for on in &patterns {
            self.directory.forget(group, on).await.map_err(explain)?;
        }
        Ok(removed)
    }
}

fn is_handled(group: &str, pattern: &Pattern) -> BrokerError {
    BrokerError::new(format!("a process handles the group `{group}` on \"{pattern}\"; end it first"))
}

impl Groups for RabbitMqGroups {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let known = Arc::clone(&self.0);
        BrokerFuture::new(async move {
            let listed = known.list().await;
            listed.map_err(|trouble| trouble.explain("list the groups"))
        })
    }

    fn remove(&self, group: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let (known, group) = (Arc::clone(&self.0), group.to_owned());
        BrokerFuture::new(async move { known.remove(&group, None).await })
    }

    fn remove_on(&self, group: &str, pattern: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let (known, group, pattern) = (Arc::clone(&self.0), group.to_owned(), pattern.to_owned());
        BrokerFuture::new(async move { known.remove(&group, Some(&pattern)).await })
    }
}

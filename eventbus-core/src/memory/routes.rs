//! Routes: which queues a topic leads to.

use super::queue::Queue;
use crate::lock::SharedLock;
use crate::topic::{Pattern, Topic};
use smol_str::SmolStr;
use std::collections::HashMap;
use std::sync::Arc;

/// How many topics are remembered with their queues. A program that makes up topics at run time must not fill the
/// memory with them.
const REMEMBERED: usize = 4_096;

/// All queues, and the ones that each topic has led to so far.
///
/// A reader holds its queue until it has left the routes, so no queue, and no envelope in it, is dropped under the lock.
#[derive(Default)]
pub(super) struct Routes {
    queues: HashMap<(String, Pattern), Arc<Queue>>,
    /// The queues of replays that go on live. Each has the group and the pattern of a live queue, and is none.
    replays: Vec<Arc<Queue>>,
    /// Sorted: to compare a few topics costs less than to hash one.
    by_topic: Vec<(SmolStr, Arc<[Arc<Queue>]>)>,
}

impl Routes {
    /// The queue of `group` for `pattern`, made by `open` where it is new.
    pub(super) fn queue(
        &mut self,
        group: &str,
        pattern: &Pattern,
        open: impl FnOnce() -> Arc<Queue>,
    ) -> Arc<Queue> {
        let queue = self.queues.entry((group.to_owned(), pattern.clone())).or_insert_with(|| {
            self.by_topic.clear();
            open()
        });
        queue.add_reader();
        Arc::clone(queue)
    }

    /// Adds the queue of a replay that goes on live.
    pub(super) fn add_replay(&mut self, queue: &Arc<Queue>) {
        self.replays.push(Arc::clone(queue));
        self.by_topic.clear();
    }

    /// Forgets a queue, so that nothing more comes into it.
    pub(super) fn remove(&mut self, queue: &Queue) {
        let name = (queue.group().to_owned(), queue.pattern().clone());
        if let Some(place) = self.replays.iter().position(|replay| std::ptr::eq(&**replay, queue)) {
            self.replays.swap_remove(place);
            self.by_topic.clear();
        }
        // The queue of a replay has the name of a live one, which stays.
        if self.queues.get(&name).is_some_and(|live| std::ptr::eq(&**live, queue)) {
            self.queues.remove(&name);
            self.by_topic.clear();
        }
    }

    /// The queue of `group` for `pattern`.
    pub(super) fn live(&self, group: &str, pattern: &Pattern) -> Option<Arc<Queue>> {
        self.queues.get(&(group.to_owned(), pattern.clone())).cloned()
    }

    /// The queue of `group` that listens on `topic`.
    pub(super) fn of_group(&self, group: &str, topic: &Topic) -> Option<Arc<Queue>> {
        self.queues
            .values()
            .find(|queue| queue.group() == group && queue.pattern().matches(topic.as_str()))
            .cloned()
    }

    fn remembered(&self, topic: &Topic) -> Result<&Arc<[Arc<Queue>]>, usize> {
        let place = self.by_topic.binary_search_by(|(other, _)| other.as_str().cmp(topic.as_str()))?;
        Ok(&self.by_topic[place].1)
    }

    fn remember(&mut self, topic: &Topic) -> Arc<[Arc<Queue>]> {
        let all = self.queues.values().chain(&self.replays);
        let queues: Arc<[_]> = all.filter(|queue| queue.pattern().matches(topic.as_str())).cloned().collect();
        if let Err(place) = self.remembered(topic)
            && self.by_topic.len() < REMEMBERED
        {
            self.by_topic.insert(place, (topic.to_smol_str(), Arc::clone(&queues)));
        }
        queues
    }
}

/// The queues of all groups that listen on `topic`.
pub(super) fn matching(routes: &SharedLock<Routes>, topic: &Topic) -> Arc<[Arc<Queue>]> {
    if let Ok(queues) = routes.read().remembered(topic) {
        return Arc::clone(queues);
    }
    routes.write().remember(topic)
}

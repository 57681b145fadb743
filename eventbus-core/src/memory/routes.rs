//! Routes: which queues a topic leads to.

use super::queue::Queue;
use crate::foreign::Wakers;
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

    /// The queues that `topic` leads to, known or not.
    fn remember(&mut self, topic: &Topic) -> Arc<[Arc<Queue>]> {
        if let Ok(queues) = self.remembered(topic) {
            return Arc::clone(queues);
        }
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

/// The queues of all groups that listen on `topic`, with a place taken in each; or the one that is full, and none taken.
///
/// Places are taken while the routes are read. Whoever is refused beside others may have met a place that was given back
/// a moment later, since a queue after it was full. That is good enough for who waits for room then (`exact` is not
/// asked for), and no answer: to be `exact`, it looks once more while nobody else takes places.
pub(super) fn take_places(
    routes: &SharedLock<Routes>,
    topic: &Topic,
    limit: usize,
    exact: bool,
    wakers: &mut Wakers,
) -> Result<Arc<[Arc<Queue>]>, Arc<Queue>> {
    let remembered = {
        let routes = routes.read();
        let queues = routes.remembered(topic).ok();
        queues.map(|queues| take_each(queues, limit, wakers).map(|()| Arc::clone(queues)))
    };
    match remembered {
        Some(Err(full)) if !exact => Err(full),
        Some(Ok(queues)) => Ok(queues),
        _ => {
            let mut routes = routes.write();
            let queues = routes.remember(topic);
            take_each(&queues, limit, wakers).map(|()| queues)
        }
    }
}

/// A place in each of these queues, or in none of them and the one that is full.
fn take_each(queues: &[Arc<Queue>], limit: usize, wakers: &mut Wakers) -> Result<(), Arc<Queue>> {
    let Some(full) = queues.iter().position(|queue| !queue.places.take(limit)) else { return Ok(()) };
    for queue in &queues[..full] {
        wakers.extend(queue.places.give_back(1));
    }
    Err(Arc::clone(&queues[full]))
}

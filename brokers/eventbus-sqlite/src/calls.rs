//! Calls: telling the subscriptions that listen on a topic that there is something new.
//!
//! A thousand subscriptions may listen on one topic. Each is told at once that there is something, since none may skip
//! it; but their readers are woken a few at a time, so that whoever publishes next does not wait for all of them.

use crate::cache::Cache;
use eventbus_core::{Pattern, Topic};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;

/// Whoever listens on a pattern.
pub(crate) trait Listener {
    /// Its place among the others.
    fn number(&self) -> u64;
    fn pattern(&self) -> &Pattern;
    /// Notes that there is something new. Its reader, if one waits, is to be woken.
    fn call(&self) -> Option<Waker>;
}

/// Who listens on which topic, and whose readers are to be woken.
pub(crate) struct Calls<L> {
    /// Which listeners these are.
    generation: Option<u64>,
    /// Those who listen on one topic.
    exact: HashMap<String, Vec<Arc<L>>>,
    wide: Vec<Arc<L>>,
    by_topic: Cache<Topic, Arc<[Arc<L>]>>,
    wakers: VecDeque<Waker>,
}

impl<L: Listener> Calls<L> {
    /// Calls everybody who listens on one of `topics`. `listeners` are all that there are, as of a generation.
    pub(crate) fn call(&mut self, generation: u64, listeners: &[Arc<L>], topics: &[Topic]) {
        if self.generation != Some(generation) {
            self.learn(listeners);
            self.generation = Some(generation);
        }
        // Most often there is one topic, and nobody is called twice.
        let mut called = HashSet::new();
        for topic in topics {
            for listener in self.listening(topic).iter() {
                if topics.len() == 1 || called.insert(listener.number()) {
                    self.wakers.extend(listener.call());
                }
            }
        }
    }

    /// Calls everybody.
    pub(crate) fn call_all(&mut self, listeners: &[Arc<L>]) {
        self.wakers.extend(listeners.iter().filter_map(|listener| listener.call()));
    }

    /// The next readers to be woken, at most `limit`.
    pub(crate) fn next(&mut self, limit: usize) -> Vec<Waker> {
        self.wakers.drain(..limit.min(self.wakers.len())).collect()
    }

    /// Whether nobody is to be woken.
    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty()
    }

    fn learn(&mut self, listeners: &[Arc<L>]) {
        self.exact.clear();
        self.wide.clear();
        self.by_topic = Cache::default();
        for listener in listeners {
            let pattern = listener.pattern();
            let among = match pattern.is_exact() {
                true => self.exact.entry(pattern.as_str().to_owned()).or_default(),
                false => &mut self.wide,
            };
            among.push(Arc::clone(listener));
        }
    }

    fn listening(&mut self, topic: &Topic) -> Arc<[Arc<L>]> {
        if let Some(listening) = self.by_topic.get(topic) {
            return Arc::clone(listening);
        }
        let exact = self.exact.get(topic.as_str()).into_iter().flatten();
        let wide = self.wide.iter().filter(|listener| listener.pattern().matches(topic.as_str()));
        let listening: Arc<[_]> = exact.chain(wide).cloned().collect();
        self.by_topic.insert(topic.clone(), Arc::clone(&listening));
        listening
    }
}

impl<L> Default for Calls<L> {
    fn default() -> Self {
        Self {
            generation: None,
            exact: HashMap::new(),
            wide: Vec::new(),
            by_topic: Cache::default(),
            wakers: VecDeque::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    struct Counting {
        number: u64,
        pattern: Pattern,
        looks: AtomicU64,
        calls: AtomicU64,
    }

    impl Listener for Counting {
        fn number(&self) -> u64 {
            self.number
        }

        fn pattern(&self) -> &Pattern {
            self.looks.fetch_add(1, Relaxed);
            &self.pattern
        }

        fn call(&self) -> Option<Waker> {
            self.calls.fetch_add(1, Relaxed);
            Some(Waker::noop().clone())
        }
    }

    fn listeners(patterns: impl IntoIterator<Item = String>) -> Vec<Arc<Counting>> {
        let listener = |(number, pattern): (usize, String)| Counting {
            number: number as u64,
            pattern: Pattern::new(&pattern).unwrap(),
            looks: AtomicU64::new(0),
            calls: AtomicU64::new(0),
        };
        patterns.into_iter().enumerate().map(listener).map(Arc::new).collect()
    }

    fn count(listeners: &[Arc<Counting>], of: impl Fn(&Counting) -> &AtomicU64) -> u64 {
        listeners.iter().map(|listener| of(listener).swap(0, Relaxed)).sum()
    }

    fn topic(name: &str) -> Topic {
        Topic::new(name).unwrap()
    }

    #[test]
    fn a_publish_looks_at_those_who_listen_however_many_others_there_are() {
        let listeners = listeners((0..3_000).map(|number| format!("customer.{}", number % 300)));
        let mut calls = Calls::default();
        calls.call(1, &listeners, &[topic("customer.7")]);
        assert_eq!(
            count(&listeners, |one| &one.looks),
            3_000,
            "each was looked at once, to learn what is there"
        );
        assert_eq!(count(&listeners, |one| &one.calls), 10);
        for name in ["customer.7", "customer.8", "nobody.listens"] {
            calls.call(1, &listeners, &[topic(name)]);
            let called = if name.starts_with("customer") { 10 } else { 0 };
            assert_eq!(count(&listeners, |one| &one.looks), 0, "{name}");
            assert_eq!(count(&listeners, |one| &one.calls), called, "{name}");
        }
    }

    #[test]
    fn patterns_are_matched_once_for_each_topic_until_the_listeners_change() {
        let mut listeners = listeners((0..3_000).map(|_| "customer.*".to_owned()));
        let mut calls = Calls::default();
        calls.call(1, &listeners, &[topic("customer.7")]);
        count(&listeners, |one| &one.looks);
        calls.call(1, &listeners, &[topic("customer.7")]);
        assert_eq!(count(&listeners, |one| &one.looks), 0);
        assert_eq!(count(&listeners, |one| &one.calls), 6_000);
        listeners.pop();
        calls.call(2, &listeners, &[topic("customer.7")]);
        assert_eq!(count(&listeners, |one| &one.calls), 2_999);
    }

    #[test]
    fn everybody_is_called_once_and_woken_a_few_at_a_time() {
        let listeners = listeners((0..100).map(|_| "customer.>".to_owned()));
        let mut calls = Calls::default();
        calls.call(1, &listeners, &[topic("customer.1"), topic("customer.2"), topic("customer.1")]);
        assert_eq!(count(&listeners, |one| &one.calls), 100);
        assert_eq!([64, 64, 64].map(|limit| calls.next(limit).len()), [64, 36, 0]);
        calls.call_all(&listeners);
        assert_eq!(count(&listeners, |one| &one.calls), 100);
        assert!(!calls.is_empty());
    }
}

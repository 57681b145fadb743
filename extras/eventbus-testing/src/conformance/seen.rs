//! What handlers have seen, in order.

use super::case::{lock, until};
use eventbus_core::Delivery;
use std::fmt::Debug;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A list that handlers write to and a case waits for.
#[derive(Clone)]
pub(super) struct Seen<T> {
    items: Arc<Mutex<Vec<T>>>,
    patience: Duration,
}

impl<T: Clone> Seen<T> {
    pub(super) fn new(patience: Duration) -> Self {
        Self { items: Arc::default(), patience }
    }

    pub(super) fn push(&self, item: T) {
        lock(&self.items).push(item);
    }

    /// A handler that notes something of each delivery, and succeeds.
    pub(super) fn noting(&self, what: fn(&Delivery) -> T) -> impl Fn(Delivery) -> Ready<()> + use<T>
    where
        T: Send + 'static,
    {
        let seen = self.clone();
        move |delivery| {
            seen.push(what(&delivery));
            ready(())
        }
    }

    pub(super) fn all(&self) -> Vec<T> {
        lock(&self.items).clone()
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.items).len()
    }

    /// All of them in their order, where that is none of what is promised.
    pub(super) fn sorted(&self) -> Vec<T>
    where
        T: Ord,
    {
        let mut all = self.all();
        all.sort();
        all
    }

    /// Waits until there are so many.
    pub(super) async fn reach(&self, count: usize)
    where
        T: Debug,
    {
        let since = Instant::now();
        while self.len() < count {
            assert!(
                since.elapsed() < self.patience,
                "{} of {count} were seen within {:?}, the last of them {:?}",
                self.len(),
                self.patience,
                self.all().last()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until one of them is as described.
    pub(super) async fn find(&self, what: &str, is_it: impl Fn(&T) -> bool) -> T {
        until(self.patience, what, async || lock(&self.items).iter().any(&is_it)).await;
        self.all().into_iter().find(&is_it).expect("it was seen")
    }
}

//! A cache: what was asked for lately, and no more than fits.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// How many entries a cache has at most. A program that makes up topics at run time must not fill the memory with them.
const ENTRIES: usize = 4_096;

/// What was asked for lately. When its younger half is full, the older one is forgotten; what is asked for is young
/// again.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq, V> Cache<K, V> {
    /// What is known of `key`.
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        if !self.old.is_empty()
            && let Some((key, value)) = self.old.remove_entry(key)
        {
            self.insert(key, value);
        }
        self.young.get(key)
    }

    /// Remembers the value of `key`.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= ENTRIES / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

/// A cache that has its last answer in hand: most often the next question is the same.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    cache: Cache<K, V>,
    last: Option<(K, V)>,
}

impl<K: Hash + Eq, V: Clone> Recent<K, V> {
    /// The value of `key`, which `find` finds where it is not known.
    pub(crate) fn get_or<Q, E>(&mut self, key: &Q, find: impl FnOnce() -> Result<V, E>) -> Result<V, E>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Some((last, value)) = &self.last
            && last.borrow() == key
        {
            return Ok(value.clone());
        }
        let value = match self.cache.get(key) {
            Some(value) => value.clone(),
            None => {
                let value = find()?;
                self.cache.insert(key.to_owned(), value.clone());
                value
            }
        };
        self.last = Some((key.to_owned(), value.clone()));
        Ok(value)
    }
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { cache: Cache::default(), last: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_does_not_fill_the_memory() {
        let mut cache = Cache::default();
        cache.insert(0, 0);
        for number in 1..20 * ENTRIES {
            cache.insert(number, number);
            assert_eq!(cache.get(&0), Some(&0), "it is asked for all the time");
            assert!(cache.young.len() + cache.old.len() <= ENTRIES);
        }
        assert_eq!(cache.get(&(20 * ENTRIES - 1)), Some(&(20 * ENTRIES - 1)));
        assert_eq!(cache.get(&1), None);
    }

    #[test]
    fn what_is_known_is_not_looked_for_again_and_what_was_not_found_is() {
        let mut names = Recent::<String, usize>::default();
        let mut ask = |name: &str, found: Result<usize, ()>| {
            let mut looked = false;
            let answer = names.get_or(name, || {
                looked = true;
                found
            });
            (answer, looked)
        };
        assert_eq!(ask("a", Err(())), (Err(()), true));
        assert_eq!(ask("a", Ok(1)), (Ok(1), true));
        assert_eq!(ask("b", Ok(2)), (Ok(2), true));
        for (name, number) in [("b", 2), ("a", 1), ("a", 1), ("b", 2)] {
            assert_eq!(ask(name, Ok(0)), (Ok(number), false));
        }
    }
}

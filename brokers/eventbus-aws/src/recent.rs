//! What was met lately, by its name. A plain value without a clock.

use std::collections::HashMap;

/// Values by their names. There are so many at most: of more, the half goes that was met longest ago.
#[derive(Debug)]
pub(crate) struct Recent<T> {
    most: usize,
    /// How often any was met.
    times: u64,
    /// Each with when it was met last.
    values: HashMap<String, (u64, T)>,
}

impl<T> Recent<T> {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, times: 0, values: HashMap::new() }
    }

    /// The value of this name, from now on.
    pub(crate) fn insert(&mut self, name: &str, value: T) {
        self.times += 1;
        self.values.insert(name.to_owned(), (self.times, value));
        if self.values.len() > self.most {
            let mut met: Vec<_> = self.values.values().map(|(met, _)| *met).collect();
            let half = met.len() / 2;
            let (_, middle, _) = met.select_nth_unstable(half);
            let middle = *middle;
            self.values.retain(|_, (met, _)| *met >= middle);
        }
    }
}

impl<T: Default> Recent<T> {
    /// The value of this name, which is a new one where it was not met, or long ago.
    pub(crate) fn get_or_default(&mut self, name: &str) -> &T {
        if !self.values.contains_key(name) {
            self.insert(name, T::default());
        }
        self.times += 1;
        let (met, value) = self.values.get_mut(name).expect("what was met last is there");
        *met = self.times;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_met_longest_ago_goes_and_what_is_met_again_and_again_stays() {
        let mut recent = Recent::new(10);
        recent.insert("always", 1);
        for number in 0..1_000 {
            recent.insert(&number.to_string(), 2);
            assert_eq!(*recent.get_or_default("always"), 1);
            assert!(recent.values.len() <= 10);
        }
        assert_eq!(*recent.get_or_default("999"), 2, "it has just come");
        assert_eq!(*recent.get_or_default("0"), 0, "it was met long ago");
    }
}

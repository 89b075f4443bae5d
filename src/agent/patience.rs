//! Patience with those who try again and again: so many times at once, then once in a while.

use std::collections::BTreeMap;

/// How many keys are remembered at most. When there are more, those that waited longest are forgotten.
const MOST: usize = 8192;

/// How often each key has tried lately.
#[derive(Debug)]
pub struct Patience<K> {
    at_once: u64,
    every_secs: u64,
    /// When the debt of each is paid: each try adds `every_secs`.
    paid: BTreeMap<K, u64>,
}

impl<K: Ord + Clone> Patience<K> {
    /// `at_once` tries, then one each `every_secs`.
    pub fn new(at_once: u64, every_secs: u64) -> Self {
        Self { at_once, every_secs, paid: BTreeMap::new() }
    }

    /// How many seconds `key` has to wait before its next try, at `now`; 0 if it may try.
    pub fn wait(&self, key: &K, now: u64) -> u64 {
        let debt = self.paid.get(key).map_or(0, |paid| paid.saturating_sub(now));
        debt.saturating_sub((self.at_once - 1) * self.every_secs)
    }

    /// Counts a try.
    pub fn count(&mut self, key: &K, now: u64) {
        if self.paid.len() >= MOST {
            self.paid.retain(|_, paid| *paid > now);
        }
        if self.paid.len() >= MOST
            && let Some(least) = self.paid.iter().min_by_key(|(_, paid)| **paid).map(|(key, _)| key.clone())
        {
            self.paid.remove(&least);
        }
        let paid = self.paid.entry(key.clone()).or_insert(now);
        *paid = (*paid).max(now) + self.every_secs;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_tries_are_free_and_then_one_in_a_while() {
        let mut patience = Patience::new(3, 60);
        for _ in 0..3 {
            assert_eq!(patience.wait(&"a", 1000), 0);
            patience.count(&"a", 1000);
        }
        assert_eq!((patience.wait(&"a", 1000), patience.wait(&"a", 1059), patience.wait(&"a", 1060)), (60, 1, 0));
        assert_eq!(patience.wait(&"b", 1000), 0);
        patience.count(&"a", 1060);
        assert_eq!(patience.wait(&"a", 1060), 60);
        assert_eq!(patience.wait(&"a", 10_000), 0);
    }

    #[test]
    fn what_is_remembered_has_an_end_and_keeps_the_worst() {
        let mut patience = Patience::new(2, 60);
        (0..10).for_each(|_| patience.count(&u64::MAX, 0));
        (0..20_000).for_each(|key| patience.count(&key, 1));
        assert!(patience.paid.len() <= MOST);
        assert!(patience.wait(&u64::MAX, 1) > 0);
    }
}

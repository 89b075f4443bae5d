//! The zone as it is now, and its last changes: what a change costs is its own size, here, on the bus and in the DNS door.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::bus::{Zone, ZoneChange, ZoneEntry};

/// Changes that are kept for whoever tells the doors; if that one falls further behind, the doors are told to ask for the whole.
const KEPT: usize = 64;

/// The zone and its last changes, the newest last.
#[derive(Debug, Default)]
pub struct Book {
    zone: Zone,
    recent: VecDeque<Arc<ZoneChange>>,
}

impl Book {
    /// The zone as it is now.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Begins anew with a whole zone.
    pub fn begin(&mut self, zone: Zone) {
        self.zone = zone;
        self.recent.clear();
    }

    /// Says which instances a namespace has now. True if that is news; `now` is in seconds since 1970.
    pub fn namespace(&mut self, namespace: &str, now: u64, instances: &BTreeMap<String, ZoneEntry>) -> bool {
        let none = BTreeMap::new();
        let old = self.zone.namespaces.get(namespace).unwrap_or(&none);
        let key = |name: &String| format!("{namespace}/{name}");
        let mut changes: BTreeMap<String, Option<ZoneEntry>> =
            old.keys().filter(|name| !instances.contains_key(*name)).map(|name| (key(name), None)).collect();
        let new = instances.iter().filter(|(name, entry)| old.get(*name) != Some(entry));
        changes.extend(new.map(|(name, entry)| (key(name), Some(entry.clone()))));
        self.change(now, changes, BTreeMap::new())
    }

    /// Says what the TXT record of a full name is to hold: nothing, and it is gone. True if that is news.
    pub fn challenge(&mut self, name: &str, now: u64, texts: Vec<String>) -> bool {
        if self.zone.challenges.get(name).map_or(&[][..], Vec::as_slice) == texts {
            return false;
        }
        self.change(now, BTreeMap::new(), [(name.to_owned(), texts)].into())
    }

    fn change(
        &mut self,
        now: u64,
        instances: BTreeMap<String, Option<ZoneEntry>>,
        challenges: BTreeMap<String, Vec<String>>,
    ) -> bool {
        if instances.is_empty() && challenges.is_empty() {
            return false;
        }
        let change = ZoneChange { from: self.zone.serial, serial: next(self.zone.serial, now), instances, challenges };
        self.zone.apply(&change);
        self.recent.push_back(Arc::new(change));
        if self.recent.len() > KEPT {
            self.recent.pop_front();
        }
        true
    }

    /// The changes that lead from `serial` to now. `None` if they are no longer known.
    pub fn since(&self, serial: u32) -> Option<Vec<Arc<ZoneChange>>> {
        if serial == self.zone.serial {
            return Some(Vec::new());
        }
        let first = self.recent.iter().position(|change| change.from == serial)?;
        Some(self.recent.iter().skip(first).cloned().collect())
    }
}

/// The serial after `last`: the time, so that it also grows over a start; or one more, within a second. 0 means none.
pub fn next(last: u32, now: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "serials of zones go round in a circle, as RFC 1982 has it")]
    let now = now as u32;
    last.wrapping_add(1).max(now).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u8) -> ZoneEntry {
        ZoneEntry { ipv4: [10, 88, 0, n].into(), ipv6: format!("fd5e::{n}").parse().unwrap(), beside: Vec::new() }
    }

    #[test]
    fn changes_lead_from_any_recent_zone_to_the_last() {
        let mut book = Book::default();
        book.begin(Zone { serial: 100, domain: "seed.example".into(), ..Zone::default() });
        let start = book.zone().clone();
        let two: BTreeMap<String, ZoneEntry> = [("web".to_owned(), entry(2)), ("api".to_owned(), entry(3))].into();
        assert!(book.namespace("s-a", 50, &two));
        assert!(!book.namespace("s-a", 51, &two), "no news");
        assert!(book.challenge("_acme-challenge.web.s-a.seed.example", 200, vec!["x".into()]));
        assert!(!book.challenge("_acme-challenge.web.s-a.seed.example", 200, vec!["x".into()]));
        assert!(book.namespace("s-a", 200, &[("api".to_owned(), entry(4))].into()));
        let changes = book.since(100).unwrap();
        assert_eq!(changes.iter().map(|change| change.serial).collect::<Vec<_>>(), [101, 200, 201]);
        assert_eq!(changes[2].instances, [("s-a/api".to_owned(), Some(entry(4))), ("s-a/web".to_owned(), None)].into());
        let mut followed = start;
        changes.iter().for_each(|change| followed.apply(change));
        assert_eq!(&followed, book.zone());
        assert_eq!(book.since(201), Some(vec![]));
        assert_eq!(book.since(99), None);
        for turn in 0..=KEPT {
            book.challenge("_acme-challenge.seed.example", 0, vec![turn.to_string()]);
        }
        assert_eq!(book.since(201), None, "too long ago");
        assert_eq!(book.since(202).unwrap().len(), KEPT);
    }
}

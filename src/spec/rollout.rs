//! Rolling out: the new version of an instance starts beside the one that serves, and takes its names over when it is ready.
//!
//! An instance has two places for a set of units, of which one serves. What is remembered of a roll-out is what each of them is to run;
//! whether it does is observed. `plan::rollout` says what becomes of it.
//!
//! ```text
//!            accepted                ready                    drained
//! serves: A ──────────► serves: A ─────────► serves: B ─────────────────► serves: B
//!                       coming: B            draining: A, until …
//!                          │ not ready
//!                          ▼
//!                       serves: A, which was never touched
//! ```

use serde::{Deserialize, Serialize};

use super::{
    instance::{Instance, Rollout},
    name::Slot,
};

/// What the sets of an instance are to run. An instance of which nothing is remembered runs the version that is wanted, in slot A.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rolling {
    /// The set that serves: the names of the instance lead to it.
    pub slot: Slot,
    /// The version that it runs.
    pub serves: Instance,
    /// What the other set runs; none: there is no other.
    pub beside: Option<Beside>,
}

/// What a set does that does not serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "role")]
pub enum Beside {
    /// Serves as soon as it is ready.
    Coming { version: Instance },
    /// Served before, and goes on for those that are connected to it or have its address still, until a time in seconds since 1970.
    Draining { version: Instance, until: u64 },
}

impl Beside {
    /// The version that it runs.
    pub fn version(&self) -> &Instance {
        match self {
            Self::Coming { version } | Self::Draining { version, .. } => version,
        }
    }
}

impl Rolling {
    /// The version that takes over when it is ready.
    pub fn coming(&self) -> Option<&Instance> {
        match &self.beside {
            Some(Beside::Coming { version }) => Some(version),
            _ => None,
        }
    }

    /// As it is remembered: not at all, if it says no more than what is wanted.
    pub fn settled(self, wanted: &Instance) -> Option<Self> {
        let plain = self.slot == Slot::A && self.beside.is_none() && self.serves == *wanted;
        (!plain).then_some(self)
    }
}

/// Which set of an instance serves. The one place that says so: names, addresses and ways in follow from it.
pub fn serving(rolling: Option<&Rolling>) -> Slot {
    rolling.map_or(Slot::A, |rolling| rolling.slot)
}

/// The sets that an instance is to have, and the version that each is to run; the one that serves is first.
pub fn sets<'a>(rolling: Option<&'a Rolling>, wanted: &'a Instance) -> Vec<(Slot, &'a Instance)> {
    let Some(rolling) = rolling else { return vec![(Slot::A, wanted)] };
    let beside = rolling.beside.iter().map(|beside| (rolling.slot.other(), beside.version()));
    std::iter::once((rolling.slot, &rolling.serves)).chain(beside).collect()
}

/// Whether `new` is rolled out beside `old`, and does not simply take its place. Volumes and a TPM are no two machines' at once.
pub fn rolls(old: &Instance, new: &Instance) -> bool {
    new.rollout == Rollout::Rolling && old.volumes.is_empty() && !old.tpm && !old.runs_like(new)
}

/// What is remembered when `new` is wanted instead of `old` from now on.
pub fn accept(rolling: Option<Rolling>, old: Option<&Instance>, new: &Instance) -> Option<Rolling> {
    if new.rollout == Rollout::Recreate {
        return None;
    }
    let Rolling { slot, serves, beside } = match (rolling, old) {
        (Some(rolling), _) => rolling,
        (None, Some(old)) => Rolling { slot: Slot::A, serves: old.clone(), beside: None },
        // There is nothing that it could start beside.
        (None, None) => return None,
    };
    if !rolls(&serves, new) {
        let beside = beside.filter(|beside| matches!(beside, Beside::Draining { .. }));
        // One with a volume or a TPM stops first; those are in slot A only.
        return Rolling { slot, serves: new.clone(), beside }.settled(new);
    }
    let beside = match beside {
        // What is wanted again runs still.
        Some(Beside::Draining { version, .. }) if version.runs_like(new) => Beside::Coming { version: new.clone() },
        // It is let drain first: there is no third place.
        Some(draining @ Beside::Draining { .. }) => draining,
        _ => Beside::Coming { version: new.clone() },
    };
    Some(Rolling { slot, serves, beside: Some(beside) })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::instance::Size;

    /// A version that is told apart by a number.
    pub(crate) fn version(number: u32) -> Instance {
        Instance {
            toplevel: format!("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-system-{number}").parse().unwrap(),
            kernel_params: "quiet".into(),
            closure: Vec::new(),
            size: Size { vcpus: 1, memory_mib: 512 },
            ports: BTreeMap::new(),
            domains: std::collections::BTreeSet::new(),
            volumes: BTreeMap::new(),
            rollout: Rollout::Rolling,
            acme: false,
            shoot: false,
            tpm: false,
        }
    }

    #[test]
    fn a_new_version_comes_beside_the_one_that_serves_and_the_newest_wins() {
        assert_eq!(accept(None, None, &version(1)), None, "the first starts alone");
        let first = accept(None, Some(&version(1)), &version(2)).unwrap();
        assert_eq!((first.slot, &first.serves, first.coming()), (Slot::A, &version(1), Some(&version(2))));
        let newer = accept(Some(first.clone()), Some(&version(2)), &version(3)).unwrap();
        assert_eq!((&newer.serves, newer.coming()), (&version(1), Some(&version(3))));
        assert_eq!(accept(Some(first), Some(&version(2)), &version(1)), None, "back to the one that serves all the time");
    }

    #[test]
    fn what_drains_is_let_drain_unless_it_is_wanted_again() {
        let draining = Beside::Draining { version: version(1), until: 9 };
        let rolling = Rolling { slot: Slot::B, serves: version(2), beside: Some(draining.clone()) };
        let third = accept(Some(rolling.clone()), Some(&version(2)), &version(3)).unwrap();
        assert_eq!((third.slot, &third.serves, third.beside), (Slot::B, &version(2), Some(draining)));
        let back = accept(Some(rolling.clone()), Some(&version(2)), &version(1)).unwrap();
        assert_eq!((&back.serves, back.coming()), (&version(2), Some(&version(1))));
        assert_eq!(accept(Some(rolling.clone()), Some(&version(2)), &version(2)), Some(rolling));
    }

    #[test]
    fn what_two_machines_cannot_share_stops_first() {
        let recreate = Instance { rollout: Rollout::Recreate, ..version(2) };
        let rolling = Rolling { slot: Slot::B, serves: version(1), beside: None };
        assert_eq!(accept(Some(rolling), Some(&version(1)), &recreate), None, "an instance that is recreated has its own names");
        let tpm = Instance { tpm: true, ..version(1) };
        assert_eq!(accept(None, Some(&tpm), &version(2)), None);
        assert!(rolls(&recreate, &version(3)), "the first roll-out begins at one that was recreated before");
    }

    #[test]
    fn what_changes_no_unit_is_no_reason_to_start_another() {
        let port = crate::spec::instance::Port { port: 80, protocol: crate::spec::instance::Protocol::Http, proxy_protocol: false };
        let exposed = Instance { ports: BTreeMap::from([("http".parse().unwrap(), port)]), ..version(1) };
        assert_eq!(accept(None, Some(&version(1)), &exposed), None);
        let rolling = Rolling { slot: Slot::B, serves: version(1), beside: None };
        assert_eq!(accept(Some(rolling), Some(&version(1)), &exposed).unwrap().serves, exposed);
    }

    #[test]
    fn the_set_that_serves_is_first() {
        let draining = Some(Beside::Draining { version: version(1), until: 9 });
        let rolling = Rolling { slot: Slot::B, serves: version(2), beside: draining };
        assert_eq!(sets(Some(&rolling), &version(3)), [(Slot::B, &version(2)), (Slot::A, &version(1))]);
        assert_eq!(sets(None, &version(3)), [(Slot::A, &version(3))]);
        assert_eq!((serving(Some(&rolling)), serving(None)), (Slot::B, Slot::A));
        let text = serde_json::to_string(&rolling).unwrap();
        assert_eq!(serde_json::from_str::<Rolling>(&text).unwrap(), rolling);
    }
}

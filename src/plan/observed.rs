//! What a look at the machine yields.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::{
    render::{Limits, ingress::Map},
    spec::{
        address::Address,
        name::{SetId, VolumeName},
        quantity::Bytes,
    },
};

/// The state of an instance's vm unit, as systemd tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnitState {
    /// Not loaded, or inactive.
    #[default]
    Inactive,
    /// Starting, or waiting to be started again by systemd.
    Activating,
    Active,
    Deactivating,
    Failed,
}

/// A tap, as it says of itself: what it was made with stands in its alias, which is written last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    pub name: String,
    pub uid: u32,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Tap {
    /// The tap that an instance with this address needs.
    pub fn of(address: &Address) -> Self {
        Self { name: address.tap.clone(), uid: address.uid, v4: address.v4, v6: address.v6 }
    }
}

/// What there is of one instance. Whatever could not be found out is an error of the observation, not an absence: absence makes the
/// plan remove and create.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedInstance {
    /// The texts of its unit files, by unit name.
    pub units: BTreeMap<String, String>,
    /// The texts of the other files rendered for it, by path.
    pub files: BTreeMap<std::path::PathBuf, String>,
    pub vm: UnitState,
    /// Whether a unit that the vm needs (store, TPM, vsock) has failed.
    pub helper_failed: bool,
    /// Whether it was started since its units were written. A vm that was started and is inactive now was stopped by a person.
    pub started: bool,
    /// Its tap, if there is one that is up and whose making was finished.
    pub tap: Option<Tap>,
    pub volumes: BTreeMap<VolumeName, Bytes>,
}

/// What there is of the ingress.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedIngress {
    /// The texts of its files, by path.
    pub files: BTreeMap<std::path::PathBuf, String>,
    /// What HAProxy itself has; none if it does not run, or does not answer. It reads the files when it starts.
    pub running: Option<RunningIngress>,
    /// It runs, and does not answer: it may lead anywhere that it was ever told to.
    pub mute: bool,
}

impl ObservedIngress {
    /// Whether visitors may be led to this address.
    pub fn leads_to(&self, address: Ipv4Addr) -> bool {
        let to = format!("/{address}/");
        let lines = self.running.iter().flat_map(|running| running.maps.values().flatten());
        self.mute || lines.map(|(_, value)| value).chain(self.files.values()).any(|text| text.contains(&to))
    }
}

/// What HAProxy has in its memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunningIngress {
    /// What tells its configuration from others.
    pub digest: String,
    /// The lines of each map, as they stand there: a name may be in one twice.
    pub maps: BTreeMap<Map, Vec<(String, String)>>,
}

/// What there is on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    pub instances: BTreeMap<SetId, ObservedInstance>,
    /// The firewall text that was applied last, if its table is still there.
    pub firewall: Option<String>,
    /// The limits that slices were given since the machine started.
    pub slices: BTreeMap<String, Limits>,
    pub ingress: ObservedIngress,
}

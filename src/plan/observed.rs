//! What a look at the machine yields.

use std::collections::BTreeMap;

use crate::spec::{
    name::{InstanceId, VolumeName},
    quantity::Bytes,
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

/// What there is of one instance.
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
    /// Whether its tap is there, with the right owner and addresses.
    pub tap: bool,
    pub volumes: BTreeMap<VolumeName, Bytes>,
}

/// What there is on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    pub instances: BTreeMap<InstanceId, ObservedInstance>,
    /// The firewall text that was applied last, if its table is still there.
    pub firewall: Option<String>,
}

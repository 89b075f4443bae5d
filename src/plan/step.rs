//! One change to the machine. It carries all it needs: carrying it out takes no decision.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use crate::{
    render::{File, Limits, Unit, ingress::Map},
    spec::{
        address::Address,
        name::{SetId, VolumeName},
        quantity::Bytes,
    },
};

/// One change of a map that HAProxy has in its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapChange {
    /// A line for a name that has none.
    Add { map: Map, name: String, value: String },
    /// Another value for a name that has one line.
    Set { map: Map, name: String, value: String },
    /// Takes every line of a name away.
    Remove { map: Map, name: String },
}

/// One change. The `Display` of each is one line of `seed plan`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Replaces the whole nftables table in one transaction.
    ApplyFirewall(String),
    /// Gives each slice its limits, at once and until the machine restarts; a slice that is not named has none any more.
    LimitSlices(BTreeMap<String, Limits>),
    /// Writes files of the ingress, then tells HAProxy, if it runs, to change lines of its maps; or to read all anew, and waits
    /// until it uses the configuration with that digest.
    Route { files: Vec<File>, reload: Option<String>, changes: Vec<MapChange> },
    /// Powers the guest off, or kills it, and waits until all its units are gone (inactive, and failed ones reset). First forgets that it
    /// was started: whatever comes between this and the next start, the instance is still wanted. `kill` is for a guest that cannot
    /// power itself off, since a program that it cannot do without has died under it.
    Stop { id: SetId, units: Vec<String>, kill: bool },
    /// Removes unit files, the run directory and the tap; the instance is stopped.
    RemoveInstance { id: SetId, units: Vec<String>, tap: Option<String> },
    /// Moves a volume aside, dated; its bytes are kept.
    RetireVolume { id: SetId, name: VolumeName },
    /// Makes an empty file system that belongs to the user.
    CreateVolume { id: SetId, name: VolumeName, size: Bytes, uid: u32 },
    /// Makes a volume larger; the guest's file system follows when it is mounted. The instance is stopped.
    GrowVolume { id: SetId, name: VolumeName, size: Bytes },
    /// Makes the tap, in the place of any other that is this instance's or has this name; the instance is stopped.
    CreateTap { id: SetId, address: Address },
    /// Writes units and files that differ, removes unit files that are no longer wanted; the instance is stopped.
    Write { id: SetId, units: Vec<Unit>, files: Vec<File>, remove: Vec<String>, uid: u32 },
    /// Queues the start of the vm unit and remembers that it was started; does not wait for the guest.
    Start { id: SetId, unit: String },
}

impl Step {
    /// The set of units that the step belongs to; none for a step of the host.
    pub fn set(&self) -> Option<&SetId> {
        match self {
            Self::ApplyFirewall(_) | Self::LimitSlices(_) | Self::Route { .. } => None,
            Self::Stop { id, .. }
            | Self::RemoveInstance { id, .. }
            | Self::RetireVolume { id, .. }
            | Self::CreateVolume { id, .. }
            | Self::GrowVolume { id, .. }
            | Self::CreateTap { id, .. }
            | Self::Write { id, .. }
            | Self::Start { id, .. } => Some(id),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApplyFirewall(_) => write!(f, "apply the firewall"),
            Self::LimitSlices(slices) => write!(f, "limit the memory and CPUs of {} namespaces", slices.len()),
            Self::Route { reload: Some(_), .. } => write!(f, "reload the ingress"),
            Self::Route { changes, files, .. } => {
                write!(f, "route: write {} files of the ingress, change {} lines of its maps", files.len(), changes.len())
            }
            Self::Stop { id, kill: false, .. } => write!(f, "stop {id}"),
            Self::Stop { id, kill: true, .. } => write!(f, "kill {id}: a program that it needs has died"),
            Self::RemoveInstance { id, units, tap: Some(tap) } => write!(f, "remove {id}: {} units and the tap {tap}", units.len()),
            Self::RemoveInstance { id, units, tap: None } => write!(f, "remove {id}: {} units", units.len()),
            Self::RetireVolume { id, name } => write!(f, "retire the volume {name} of {id}: it is kept, and no longer attached"),
            Self::CreateVolume { id, name, size, .. } => write!(f, "create the volume {name} of {id} with {size}"),
            Self::GrowVolume { id, name, size } => write!(f, "grow the volume {name} of {id} to {size}"),
            Self::CreateTap { id, address } => {
                write!(f, "make the tap {} for {id}: {} and {}", address.tap, address.v4, address.v6)
            }
            Self::Write { id, units, .. } => {
                let kinds: Vec<&str> = units.iter().map(|unit| unit.name.split('@').next().unwrap_or(&unit.name)).collect();
                write!(f, "write the units of {id}: {}", kinds.join(", "))
            }
            Self::Start { id, .. } => write!(f, "start {id}"),
        }
    }
}

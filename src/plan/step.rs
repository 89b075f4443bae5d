//! One change to the machine. It carries all it needs: carrying it out takes no decision.

use crate::{
    render::{File, Unit},
    spec::{
        address::Address,
        name::{InstanceId, VolumeName},
        quantity::Bytes,
    },
};

/// One change. The `Display` of each is one line of `seed plan`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Replaces the whole nftables table in one transaction.
    ApplyFirewall(String),
    /// Powers the guest off and waits until all its units are gone (inactive, and failed ones reset).
    Stop {
        id: InstanceId,
        units: Vec<String>,
    },
    /// Removes unit files, the run directory and the tap.
    RemoveInstance {
        id: InstanceId,
        units: Vec<String>,
        tap: String,
    },
    /// Moves a volume aside, dated; its bytes are kept.
    RetireVolume {
        id: InstanceId,
        name: VolumeName,
    },
    CreateVolume {
        id: InstanceId,
        name: VolumeName,
        size: Bytes,
        uid: u32,
    },
    GrowVolume {
        id: InstanceId,
        name: VolumeName,
        size: Bytes,
    },
    CreateTap {
        id: InstanceId,
        address: Address,
    },
    /// Writes units and files that differ, removes unit files that are no longer wanted; the instance is stopped.
    Write {
        id: InstanceId,
        units: Vec<Unit>,
        files: Vec<File>,
        remove: Vec<String>,
        uid: u32,
    },
    /// Queues the start of the vm unit and remembers that it was started; does not wait for the guest.
    Start {
        id: InstanceId,
        unit: String,
    },
}

impl Step {
    /// The instance that the step belongs to; `None` for steps of the host itself.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::ApplyFirewall(_) => None,
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
impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

//! The same, in the host's own words: unit text, nftables text, sizes. Pure: what is wanted and the host's layout in, text out.

pub mod credentials;
pub mod ingress;
pub mod network;
#[cfg(test)]
pub(crate) mod samples;
pub mod unit_file;
pub mod units;
pub mod vmm;
pub mod zone;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::spec::{
    address::{Address, Addressing},
    desired::{Desired, Wanted},
    name::{Domain, Namespace, SetId, VolumeName},
    quantity::Bytes,
    quota::Quota,
    route::PublicAddress,
};

/// Which program runs the virtual machines of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    CloudHypervisor,
    /// QEMU; without KVM it emulates, slowly.
    Qemu {
        kvm: bool,
    },
}

/// Absolute paths of the programs that units start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    pub seed: String,
    pub cloud_hypervisor: String,
    pub qemu: String,
    pub virtiofsd: String,
    pub swtpm: String,
    pub vhost_device_vsock: String,
    pub journal_remote: String,
}

/// What rendering needs to know of this host. Made from the configuration; nothing in it is a tenant's. Its paths are absolute and
/// made of letters, digits and `/._+-` only, since not every place of a unit file can quote; `state` is below /var/lib, where systemd
/// makes folders for units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// /var/lib/seed
    pub state: PathBuf,
    /// /run/seed
    pub run: PathBuf,
    /// /run/systemd/system
    pub units: PathBuf,
    pub domain: Domain,
    pub addressing: Addressing,
    pub vmm: Vmm,
    pub tools: Tools,
    /// How long a guest may take to power off before it is killed.
    pub stop_timeout_secs: u32,
    /// How long a guest may take to get ready.
    pub boot_timeout_secs: u32,
    /// The public key (as OpenSSH writes one) whose certificates open guests to the agent. Empty: none does.
    pub guest_ca: String,
    /// How much of one instance's journal is kept.
    pub log_max: Bytes,
    /// The addresses under which the world reaches this host.
    pub public: Vec<PublicAddress>,
    /// The user of the ingress, who alone speaks the PROXY protocol to guests. None: this host has no ingress.
    pub ingress: Option<u32>,
}

impl Layout {
    /// The run directory of a set of units: `/run/seed/<ns>/<name>`.
    pub fn run_of(&self, id: &SetId) -> PathBuf {
        self.run.join(id.namespace.as_str()).join(id.place())
    }
    /// The image of a volume: `/var/lib/seed/volumes/<ns>/<name>/<volume>.img`.
    pub fn volume(&self, id: &SetId, name: &VolumeName) -> PathBuf {
        let folder = self.state.join("volumes").join(id.namespace.as_str()).join(id.place());
        folder.join(format!("{name}.img"))
    }
    /// Where swtpm keeps an instance's TPM: `/var/lib/seed/tpm/<ns>/<name>`.
    pub fn tpm_of(&self, id: &SetId) -> PathBuf {
        self.state.join("tpm").join(id.namespace.as_str()).join(id.place())
    }
    /// Where an instance's journal is kept: `/var/lib/seed/log/<ns>/<name>`.
    pub fn log_of(&self, id: &SetId) -> PathBuf {
        self.state.join("log").join(id.namespace.as_str()).join(id.place())
    }
}

/// A file that must hold exactly this text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct File {
    pub path: PathBuf,
    pub text: String,
}

/// One unit file, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// `seed-vm@s-abc-web.service`
    pub name: String,
    pub text: String,
}

/// All that the machine must hold for one instance, to the byte. Equal targets need no restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceTarget {
    pub address: Address,
    /// The vm unit is last; all are written before the first is started. The vm unit pulls in the rest.
    pub units: Vec<Unit>,
    /// Below the instance's run directory: the list of its closure.
    pub files: Vec<File>,
    pub volumes: BTreeMap<VolumeName, Bytes>,
    /// Whether it is to run; one that is not has everything but a process.
    pub runs: bool,
}

/// All that the machine must hold, to the byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    pub instances: BTreeMap<SetId, InstanceTarget>,
    /// What each namespace's slice may take, by the slice's name.
    pub slices: BTreeMap<String, Limits>,
    /// The whole nftables table, as `nft -f` takes it in one transaction.
    pub firewall: String,
    /// Where ports 80 and 443 lead; none if this host has no ingress.
    pub ingress: Option<ingress::Ingress>,
}

/// What the processes of one namespace may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes.
    pub memory: u64,
    pub cpus: u32,
}

impl Limits {
    /// The guests' memory, and what the programs around them need; the guests' CPUs.
    fn of(quota: &Quota) -> Self {
        let around = u64::from(quota.instances).saturating_mul(AROUND_GUEST);
        Self { memory: quota.memory.0.saturating_add(around), cpus: quota.vcpus }
    }
}

/// What the hypervisor and its helpers take beside a guest's memory, at most: their units say how much each.
const AROUND_GUEST: u64 = 1 << 30;

/// The name of a namespace's slice.
pub fn slice(namespace: &Namespace) -> String {
    format!("seed-{}.slice", namespace.as_str().strip_prefix("s-").unwrap_or(namespace.as_str()))
}

/// The name of the unit that is an instance's virtual machine.
pub fn vm_unit(id: &SetId) -> String {
    format!("seed-vm@{}.service", id.unit_instance())
}

/// Renders what is wanted.
pub fn target(desired: &Desired, layout: &Layout) -> Target {
    let one = |(id, wanted): (&SetId, &Wanted)| {
        let runs = !desired.stopped.contains(id);
        (id.clone(), InstanceTarget { runs, ..units::instance(id, wanted, layout) })
    };
    let instances = desired.instances.iter().map(one).collect();
    let slices = desired.quotas.iter().map(|(namespace, quota)| (slice(namespace), Limits::of(quota))).collect();
    let ingress = layout.ingress.map(|_| ingress::ingress(desired, layout));
    Target { instances, slices, firewall: network::ruleset(desired, layout), ingress }
}

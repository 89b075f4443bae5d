//! An instance as a tenant asked for it, after everything about it was checked.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    name::{CustomDomain, PortName, StorePath, VolumeName},
    quantity::Bytes,
};

/// The size of a virtual machine, one row of `vmconfigs/sizes.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Size {
    pub vcpus: u32,
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
}

/// The table of sizes: `vmconfigs/sizes.json`, which Nix reads too.
pub fn sizes() -> BTreeMap<String, Size> {
    serde_json::from_str(include_str!("../../vmconfigs/sizes.json")).expect("vmconfigs/sizes.json is checked by a test")
}

/// What travels through an exposed port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    /// Both TCP and UDP.
    Dns,
    Http,
    Grpc,
}

impl Protocol {
    /// Whether it uses TCP.
    pub fn tcp(self) -> bool {
        self != Self::Udp
    }
    /// Whether it uses UDP.
    pub fn udp(self) -> bool {
        matches!(self, Self::Udp | Self::Dns)
    }
    /// `tcp`, `udp` or `tcp+udp`
    pub fn transport(self) -> &'static str {
        match (self.tcp(), self.udp()) {
            (true, true) => "tcp+udp",
            (false, true) => "udp",
            _ => "tcp",
        }
    }
}

/// The table of well-known services, of which a name alone says the port: `vmconfigs/services.json`, which Nix reads too.
pub fn services() -> BTreeMap<String, Port> {
    serde_json::from_str(include_str!("../../vmconfigs/services.json")).expect("vmconfigs/services.json is checked by a test")
}

/// One exposed port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    pub port: u16,
    pub protocol: Protocol,
    /// Whether the ingress says who is connected (PROXY protocol, version 2) before anything else. Only with TCP.
    #[serde(default, skip_serializing_if = "is_false")]
    pub proxy_protocol: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Port {
    /// A port without the PROXY protocol.
    pub fn new(port: u16, protocol: Protocol) -> Self {
        Self { port, protocol, proxy_protocol: false }
    }
}

/// One volume. Its serial number, seen in the guest as `/dev/disk/by-id/virtio-<name>`, is its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    pub size: Bytes,
    /// Absolute, without `..`, whitespace or control characters; nothing that the guest's fstab could read as another field.
    pub mount_point: String,
}

/// How a new version takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rollout {
    /// Stop the old, then start the new.
    Recreate,
    /// Start the new beside the old, swap when it is ready.
    Rolling,
}

/// Everything about an instance that a tenant's flake decides, and nothing that the host decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Instance {
    /// Holds `kernel`, `initrd`, `init` and `kernel-params`.
    pub toplevel: StorePath,
    /// The text of `<toplevel>/kernel-params`: one line, printable ASCII.
    pub kernel_params: String,
    /// Every store path that the guest may see, sorted; contains `toplevel`.
    pub closure: Vec<StorePath>,
    pub size: Size,
    pub ports: BTreeMap<PortName, Port>,
    pub volumes: BTreeMap<VolumeName, Volume>,
    pub rollout: Rollout,
    /// Whether the guest asked for the ACME directory (`SEED_ACME_URL`).
    pub acme: bool,
    /// Whether the guest asked for shoots (`SEED_SHOOT_URL`).
    pub shoot: bool,
    /// Whether the guest gets a TPM. An instance that asked for one is never booted without.
    pub tpm: bool,
    /// Names of the tenant's own that it is to have, once they are proven. Nothing of the machine depends on them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub domains: BTreeSet<CustomDomain>,
}

impl Instance {
    /// Whether both are the same version: closure and kernel parameters follow from the system, and need not be known yet.
    pub fn is_version_of(&self, other: &Self) -> bool {
        let plain = |one: &Self| Self { kernel_params: String::new(), closure: Vec::new(), ..one.machine() };
        self.toplevel == other.toplevel && plain(self) == plain(other)
    }

    /// What the machine is made of: all but its own names, which come and go while it runs.
    pub fn machine(&self) -> Self {
        Self { domains: BTreeSet::new(), ..self.clone() }
    }

    /// Whether a machine that runs one of them need not be started anew for the other: ports are the firewall's, own names come and go.
    pub fn runs_like(&self, other: &Self) -> bool {
        let Self { toplevel, kernel_params, closure, size, ports: _, domains: _, volumes, rollout: _, acme, shoot, tpm } = self;
        let same = (toplevel, kernel_params, size) == (&other.toplevel, &other.kernel_params, &other.size);
        same && (closure, volumes) == (&other.closure, &other.volumes)
            && (acme, shoot, tpm) == (&other.acme, &other.shoot, &other.tpm)
    }
}

#[cfg(test)]
mod tests {
    use super::Protocol::{Dns, Http, Tcp};

    #[test]
    fn the_table_of_sizes_is_the_published_one() {
        let sizes = super::sizes();
        let row = |name: &str| (sizes[name].vcpus, sizes[name].memory_mib);
        assert_eq!([row("xs"), row("s"), row("m"), row("l"), row("xl")], [(1, 512), (1, 1024), (2, 2048), (4, 4096), (8, 8192)]);
        assert_eq!(sizes.len(), 5);
    }

    #[test]
    fn well_known_services_are_names_of_ports_and_mean_what_was_published() {
        let services = super::services();
        let row = |name: &str| (services[name].port, services[name].protocol);
        let published = [("http", 80, Tcp), ("https", 443, Http), ("ssh", 22, Tcp), ("dns", 53, Dns), ("postgresql", 5432, Tcp)];
        for (name, port, protocol) in published {
            assert_eq!(row(name), (port, protocol), "{name}");
        }
        for (name, port) in &services {
            assert!(name.parse::<crate::spec::name::PortName>().is_ok() && port.port != 0, "{name}");
        }
    }
}

//! A virtual machine as the command line of a VMM. One description, one file for each VMM, one `match`.
//!
//! Both VMMs take options as `key=value,key=value` in one argument. Nothing in a [`Machine`] may open another option: each file
//! quotes the values that it puts into such a list by the rules of its VMM, and what a tenant wrote freely (the kernel command line)
//! is an argument of its own.

pub mod cloud_hypervisor;
pub mod qemu;

use super::{Tools, Vmm};

/// A virtual machine, in no VMM's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// What people see in a list of processes: `s-abc-web`.
    pub name: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub kernel: String,
    pub initrd: String,
    /// The kernel command line, whole. Its serial console is the standard output of the VMM.
    pub cmdline: String,
    /// The vhost-user socket of the virtiofsd that serves the store, which the guest sees as the tag `store`.
    pub store: String,
    /// A tap that exists, is up and belongs to the VMM's user.
    pub tap: String,
    pub mac: String,
    pub cid: u32,
    /// The Unix socket of hybrid vsock: the host connects to it and writes `CONNECT port`; the guest's connection to port P of CID 2
    /// arrives at `<it>_P`.
    pub vsock: String,
    /// The vhost-user socket of the vhost-device-vsock that makes hybrid vsock, for a VMM that does not by itself.
    pub vhost_vsock: String,
    /// swtpm's control socket. A guest that asked for a TPM is never started without.
    pub tpm: Option<String>,
    pub volumes: Vec<Disk>,
    /// Strings of SMBIOS type 11.
    pub oem_strings: Vec<String>,
    /// Where the VMM's control socket is to be.
    pub control: String,
}

/// A block device of a machine: a raw image that the guest may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// At most 20 characters; the guest sees `/dev/disk/by-id/virtio-<serial>`.
    pub serial: String,
    pub path: String,
}

/// A VMM's command line, and how it is spoken to while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    pub argv: Vec<String>,
    /// `qmp:PATH` or `api:PATH`.
    pub control: String,
}

/// How `vmm` runs `machine`.
pub fn invocation(vmm: Vmm, machine: &Machine, tools: &Tools) -> Invocation {
    match vmm {
        Vmm::CloudHypervisor => cloud_hypervisor::invocation(machine, &tools.cloud_hypervisor),
        Vmm::Qemu { kvm } => qemu::invocation(machine, kvm, &tools.qemu),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::Machine;

    /// A machine whose free texts are as hostile as their types allow, and more.
    pub(crate) fn hostile(cmdline: &str, path: &str) -> Machine {
        let at = |name: &str| format!("/run/{path}/{name}");
        Machine {
            name: "s-gaydazldmnsg-web".into(),
            vcpus: 2,
            memory_mib: 2048,
            kernel: at("kernel"),
            initrd: at("initrd"),
            cmdline: cmdline.into(),
            store: at("store.sock"),
            tap: "seed0".into(),
            mac: "02:00:00:00:00:01".into(),
            cid: 3,
            vsock: at("vsock"),
            vhost_vsock: at("vhost-vsock.sock"),
            tpm: Some(at("tpm.sock")),
            volumes: vec![super::Disk { serial: "data".into(), path: at("data.img") }],
            oem_strings: vec!["io.systemd.credential.binary:a=eCwiXQo=".into(), "io.systemd.credential.binary:b=eA==".into()],
            control: at("control"),
        }
    }
}

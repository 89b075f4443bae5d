//! What the host tells a guest at boot, as systemd credentials: its name, its network, its volumes, its environment, and where its
//! notifications and its journal go. systemd 256 and later acts on each by itself; the guest carries nothing of Seed's.
//!
//! They travel in the firmware's tables and stand in an argument list: nothing in them may be secret.

use sha2::{Digest, Sha256};

use super::{Layout, zone};
use crate::spec::{
    address::Address,
    desired::Wanted,
    name::{InstanceId, VolumeName},
};

/// The vsock port of the host on which a guest's notifications arrive.
pub const NOTIFY_PORT: u32 = 9001;
/// The vsock port of the host on which a guest's journal arrives.
pub const JOURNAL_PORT: u32 = 9002;
/// The port of the gateway on which guests find the ACME directory.
pub const ACME_PORT: u16 = 9876;
/// The port of the gateway on which guests hand in shoots.
pub const SHOOT_PORT: u16 = 9877;
/// The address that every tap has and every guest sends its IPv6 packets to. The same on all taps: it is link-local.
pub const LINK_GATEWAY6: &str = "fe80::1";

/// One credential: a name that systemd knows and a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub name: &'static str,
    pub text: String,
}

impl Credential {
    /// As a string of SMBIOS type 11: `io.systemd.credential.binary:NAME=BASE64`. It holds no comma, quote or bracket.
    pub fn oem_string(&self) -> String {
        format!("io.systemd.credential.binary:{}={}", self.name, data_encoding::BASE64.encode(self.text.as_bytes()))
    }
}

/// The credentials of one instance.
pub fn credentials(id: &InstanceId, wanted: &Wanted, address: &Address, layout: &Layout) -> Vec<Credential> {
    let mut made = vec![
        Credential { name: "vmm.notify_socket", text: format!("vsock-stream:2:{NOTIFY_PORT}") },
        Credential { name: "journal.forward_to_socket", text: format!("vsock-stream:2:{JOURNAL_PORT}") },
        Credential { name: "system.hostname", text: id.name.to_string() },
        Credential { name: "system.machine_id", text: machine_id(id) },
        Credential { name: "network.network.10-seed", text: network(id, address, layout) },
        Credential { name: "tmpfiles.extra", text: environment(id, wanted, layout) },
    ];
    if !layout.guest_ca.is_empty() {
        made.push(Credential { name: "ssh.authorized_keys.root", text: authority(id, layout) });
    }
    if !wanted.instance.volumes.is_empty() {
        made.push(Credential { name: "fstab.extra", text: fstab(wanted) });
    }
    made
}

/// The same at every boot, so that a guest whose root is thrown away is one machine in its journal and to its services.
fn machine_id(id: &InstanceId) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(format!("farm.loom.Seed1 {id}").as_bytes())[..16])
}

/// A systemd.network(5) file. The link is told by its MAC, so that the guest's own files for other links stay in force.
fn network(id: &InstanceId, address: &Address, layout: &Layout) -> String {
    let Address { v4, v6, mac, .. } = address;
    let (gateway4, gateway6) = (layout.addressing.gateway4(), layout.addressing.gateway6());
    let search = zone::suffix(&id.namespace, &layout.domain);
    // No duplicate address detection: the addresses are the host's to give, and detection costs a second of every boot.
    format!(
        "[Match]\nMACAddress={mac}\n\n\
         [Network]\nDHCP=no\nIPv6AcceptRA=no\nLinkLocalAddressing=ipv6\n\
         IPv6LinkLocalAddressGenerationMode=eui64\nIPv6DuplicateAddressDetection=0\nLLMNR=no\nMulticastDNS=no\n\
         DNS={gateway4}\nDNS={gateway6}\nDomains={search}\n\n\
         [Address]\nAddress={v4}/32\n\n\
         [Address]\nAddress={v6}/128\nDuplicateAddressDetection=none\n\n\
         [Route]\nGateway={gateway4}\nGatewayOnLink=yes\n\n\
         [Route]\nGateway={LINK_GATEWAY6}\nGatewayOnLink=yes\nPreferredSource={v6}\n"
    )
}

/// A line of authorized_keys(5): root's sessions are open to certificates of the agent's that name this instance, and to no others.
/// systemd-ssh-generator(8) has sshd listen on vsock, whose other end is the agent.
fn authority(id: &InstanceId, layout: &Layout) -> String {
    format!("cert-authority,principals=\"{}\" {} seed\n", principal(id), layout.guest_ca)
}

/// Whom a certificate for an instance names.
pub fn principal(id: &InstanceId) -> String {
    id.unit_instance()
}

/// Lines of fstab(5). Without `nofail`: a service that was started without its volume would write to a place that is gone at the next
/// boot, so a guest without one of its volumes does not get ready, and says why.
fn fstab(wanted: &Wanted) -> String {
    let line = |(name, volume): (&VolumeName, &crate::spec::instance::Volume)| {
        format!("/dev/disk/by-id/virtio-{name} {} ext4 x-systemd.growfs 0 2\n", volume.mount_point)
    };
    wanted.instance.volumes.iter().map(line).collect()
}

/// A tmpfiles.d(5) text that makes /run/seed/env, a file of `NAME=value` lines.
fn environment(id: &InstanceId, wanted: &Wanted, layout: &Layout) -> String {
    let gateway = layout.addressing.gateway4();
    let mut lines = vec![
        format!("SEED_FQDN={}", zone::fqdn(id, &layout.domain)),
        format!("SEED_NAMESPACE={}", id.namespace),
        format!("SEED_INSTANCE={}", id.name),
    ];
    if wanted.instance.acme {
        lines.push(format!("SEED_ACME_URL=http://{gateway}:{ACME_PORT}/acme/directory"));
    }
    if wanted.instance.shoot {
        lines.push(format!("SEED_SHOOT_URL=http://{gateway}:{SHOOT_PORT}/shoot"));
    }
    // All are made of names and numbers: none holds a backslash or a specifier of tmpfiles.
    format!("d /run/seed 0755 - - -\nf+ /run/seed/env 0644 - - - {}\\n\n", lines.join("\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    fn text(of: &str, name: &str) -> String {
        let (id, wanted) = samples::instance(of);
        let layout = samples::layout();
        let address = layout.addressing.of(&id, wanted.lease);
        let found = credentials(&id.instance(), &wanted, &address, &layout);
        found.into_iter().find(|credential| credential.name == name).map(|credential| credential.text).unwrap_or_default()
    }

    #[test]
    fn a_guest_is_told_its_environment_and_only_what_it_asked_for() {
        let small = text("web", "tmpfiles.extra");
        assert_eq!(
            small,
            "d /run/seed 0755 - - -\nf+ /run/seed/env 0644 - - - SEED_FQDN=web.s-gaydazldmnsg.seed.example\\n\
             SEED_NAMESPACE=s-gaydazldmnsg\\nSEED_INSTANCE=web\\n\n"
        );
        let full = text("db", "tmpfiles.extra");
        for part in ["SEED_ACME_URL=http://10.88.0.1:9876/acme/directory\\n", "SEED_SHOOT_URL=http://10.88.0.1:9877/shoot\\n"] {
            assert!(full.contains(part), "{full}");
        }
    }

    #[test]
    fn volumes_are_mounted_by_name_and_a_guest_without_any_gets_no_fstab() {
        assert_eq!(text("web", "fstab.extra"), "");
        assert_eq!(
            text("db", "fstab.extra"),
            "/dev/disk/by-id/virtio-data /seed/storage/data ext4 x-systemd.growfs 0 2\n\
             /dev/disk/by-id/virtio-wal /var/lib/wal ext4 x-systemd.growfs 0 2\n"
        );
    }

    #[test]
    fn a_guest_trusts_certificates_for_itself_alone() {
        let key = samples::layout().guest_ca;
        assert_eq!(
            text("web", "ssh.authorized_keys.root"),
            format!("cert-authority,principals=\"s-gaydazldmnsg-web\" {key} seed\n")
        );
    }

    #[test]
    fn oem_strings_hold_no_separator_of_any_vmm() {
        let string = Credential { name: "a.b", text: "x,\"]\n".to_owned() }.oem_string();
        assert_eq!(string, "io.systemd.credential.binary:a.b=eCwiXQo=");
        assert!(!string.contains([',', '"', '[', ']', '\n']));
    }
}

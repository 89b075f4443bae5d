//! A host and what it is wanted to run, for tests.

use std::collections::BTreeMap;

use super::{Layout, Tools, Vmm};
use crate::spec::{
    address::{Addressing, Lease},
    desired::{Desired, Wanted},
    instance::{Instance, Port, Protocol, Rollout, Size, Volume},
    name::{SetId, Slot, StorePath},
    quantity::Bytes,
};

/// `web` and `db` of one namespace, `web` of another.
pub(crate) fn desired() -> Desired {
    let one = [instance("web"), instance("db"), instance("other")];
    Desired { instances: BTreeMap::from(one), ..Desired::default() }
}

/// `web`: the least there can be; `db`: everything; `other`: a `web` in another namespace.
pub(crate) fn instance(name: &str) -> (SetId, Wanted) {
    let (namespace, name, lease) = match name {
        "other" => ("s-aaaaaaaaaaaa", "web", 2),
        "db" => ("s-gaydazldmnsg", "db", 1),
        name => ("s-gaydazldmnsg", name, 0),
    };
    let id = SetId { namespace: namespace.parse().unwrap(), name: name.parse().unwrap(), slot: Slot::A };
    let full = name == "db";
    let port = Port::new;
    let ports = if full {
        BTreeMap::from([
            ("dns".parse().unwrap(), port(53, Protocol::Dns)),
            ("sync".parse().unwrap(), port(9000, Protocol::Udp)),
            ("pg".parse().unwrap(), port(5432, Protocol::Tcp)),
        ])
    } else {
        BTreeMap::from([("http".parse().unwrap(), port(80, Protocol::Http))])
    };
    let volume = |size, at: &str| Volume { size: Bytes(size), mount_point: at.into() };
    let volumes = BTreeMap::from([
        ("data".parse().unwrap(), volume(64 << 20, "/seed/storage/data")),
        ("wal".parse().unwrap(), volume(1 << 30, "/var/lib/wal")),
    ]);
    let instance = Instance {
        toplevel: store_path(name),
        kernel_params: "quiet loglevel=4".into(),
        closure: vec![store_path("system"), store_path(name)],
        size: if full { Size { vcpus: 2, memory_mib: 2048 } } else { Size { vcpus: 1, memory_mib: 512 } },
        ports,
        volumes: if full { volumes } else { BTreeMap::new() },
        rollout: Rollout::Recreate,
        acme: full,
        shoot: full,
        tpm: full,
        domains: std::collections::BTreeSet::new(),
    };
    (id, Wanted { instance, lease: Lease(lease) })
}

fn store_path(name: &str) -> StorePath {
    format!("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-{name}").parse().unwrap()
}

/// A host that emulates.
pub(crate) fn layout() -> Layout {
    Layout {
        state: "/var/lib/seed".into(),
        run: "/run/seed".into(),
        units: "/run/systemd/system".into(),
        domain: "seed.example".parse().unwrap(),
        addressing: Addressing {
            pool4: "10.88.0.0/24".parse().unwrap(),
            pool6: "fd5e:ed00::/64".parse().unwrap(),
            uid_base: 800_000,
        },
        vmm: Vmm::Qemu { kvm: false },
        tools: Tools {
            seed: "/usr/bin/seed".into(),
            cloud_hypervisor: "/usr/bin/cloud-hypervisor".into(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            virtiofsd: "/usr/libexec/virtiofsd".into(),
            swtpm: "/usr/bin/swtpm".into(),
            vhost_device_vsock: "/usr/bin/vhost-device-vsock".into(),
            journal_remote: "/lib/systemd/systemd-journal-remote".into(),
        },
        stop_timeout_secs: 90,
        boot_timeout_secs: 300,
        guest_ca: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into(),
        log_max: Bytes(64 << 20),
        public: Vec::new(),
        ingress: None,
    }
}

//! The programs that this host has, and which of them runs its virtual machines.

use std::{
    fmt,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{Acceleration, Hypervisor, HypervisorKind, Paths};
use crate::render::{Tools, Vmm};

/// The programs of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// For units. One that was not found is its name below `/usr/bin`, so that the unit that needs it says what is missing.
    pub tools: Tools,
    pub nix: PathBuf,
    pub git: PathBuf,
    pub missing: Vec<Missing>,
}

/// A program that was not found, or that was named and is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The key in `[paths]`.
    pub key: &'static str,
    /// Its name, or the path that the configuration gives.
    pub name: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, name } = self;
        write!(f, "there is no {name}: install it, or say where it is in the configuration, in [paths]: {key} = \"/…\"")
    }
}

/// Beside `PATH`: where distributions keep what people do not start by hand.
const PLACES: [&str; 6] = ["/usr/local/bin", "/usr/bin", "/usr/libexec", "/usr/lib/systemd", "/lib/systemd", "/usr/lib/qemu"];

/// Looks for the programs: where the configuration says, else in `path` (as in `$PATH`), else where distributions keep them.
pub fn find(paths: &Paths, path: &str) -> Found {
    let mut missing = Vec::new();
    let mut one = |key: &'static str, given: &Option<PathBuf>, name: &str| -> PathBuf {
        let found = match given {
            Some(given) => executable(given).then(|| given.clone()),
            None => path
                .split(':')
                .chain(PLACES)
                .map(|place| Path::new(place).join(name))
                .find(|path| path.is_absolute() && executable(path)),
        };
        found.unwrap_or_else(|| {
            let name = given.as_ref().map_or(name.to_owned(), |given| given.display().to_string());
            let path = Path::new("/usr/bin").join(&name);
            missing.push(Missing { key, name });
            path
        })
    };
    let this = std::env::current_exe().ok().filter(|_| paths.seed.is_none());
    let mut text = |key: &'static str, given: &Option<PathBuf>, name: &str| one(key, given, name).display().to_string();
    let qemu = format!("qemu-system-{}", std::env::consts::ARCH);
    let tools = Tools {
        seed: this.map_or_else(|| text("seed", &paths.seed, "seed"), |this| this.display().to_string()),
        cloud_hypervisor: text("cloud_hypervisor", &paths.cloud_hypervisor, "cloud-hypervisor"),
        qemu: text("qemu", &paths.qemu, &qemu),
        virtiofsd: text("virtiofsd", &paths.virtiofsd, "virtiofsd"),
        swtpm: text("swtpm", &paths.swtpm, "swtpm"),
        vhost_device_vsock: text("vhost_device_vsock", &paths.vhost_device_vsock, "vhost-device-vsock"),
        journal_remote: text("journal_remote", &paths.journal_remote, "systemd-journal-remote"),
    };
    Found { tools, nix: one("nix", &paths.nix, "nix"), git: one("git", &paths.git, "git"), missing }
}

impl Found {
    fn has(&self, key: &str) -> bool {
        !self.missing.iter().any(|missing| missing.key == key)
    }
}

/// Chooses what runs the virtual machines, given whether KVM works (`Err` says why not), and says why in a line: `qemu, emulating: /dev/kvm is not there`. `Err` says what to do.
pub fn choose(wanted: &Hypervisor, found: &Found, kvm: Result<(), String>) -> Result<(Vmm, String), String> {
    let kvm = match (wanted.acceleration, kvm) {
        (Acceleration::Tcg, _) => Err("the configuration asks for emulation".to_owned()),
        (Acceleration::Kvm, Err(why)) => {
            return Err(format!("{why}: load the kernel's kvm module, or write acceleration = \"auto\" in [hypervisor]"));
        }
        (_, kvm) => kvm,
    };
    let missing = |key: &str| found.missing.iter().find(|missing| missing.key == key).map(Missing::to_string).unwrap_or_default();
    match (wanted.kind, kvm) {
        (HypervisorKind::CloudHypervisor, Err(why)) => {
            Err(format!("{why}, and Cloud Hypervisor cannot emulate: write kind = \"qemu\" in [hypervisor]"))
        }
        (HypervisorKind::CloudHypervisor, Ok(())) if !found.has("cloud_hypervisor") => Err(missing("cloud_hypervisor")),
        (HypervisorKind::CloudHypervisor, Ok(())) => {
            Ok((Vmm::CloudHypervisor, "cloud-hypervisor: the configuration asks for it".to_owned()))
        }
        (HypervisorKind::Auto, Ok(())) if found.has("cloud_hypervisor") => {
            Ok((Vmm::CloudHypervisor, "cloud-hypervisor: /dev/kvm can be used".to_owned()))
        }
        _ if !found.has("qemu") => Err(missing("qemu")),
        _ if !found.has("vhost_device_vsock") => Err(missing("vhost_device_vsock")),
        (HypervisorKind::Qemu, Ok(())) => Ok((Vmm::Qemu { kvm: true }, "qemu, with KVM: the configuration asks for it".to_owned())),
        (HypervisorKind::Auto, Ok(())) => Ok((Vmm::Qemu { kvm: true }, "qemu, with KVM: there is no cloud-hypervisor".to_owned())),
        (_, Err(why)) => Ok((Vmm::Qemu { kvm: false }, format!("qemu, emulating: {why}"))),
    }
}

fn executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

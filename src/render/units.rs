//! The unit set of one instance: whole files, hardened, so that `systemctl cat` shows everything there is to know.
//!
//! | unit | main process | ends |
//! |---|---|---|
//! | `seed-store@` | virtiofsd, after `seed store-view` | with its only client, the VMM |
//! | `seed-tpm@` | swtpm, if a TPM was asked for | likewise, if that says goodbye |
//! | `seed-vsock@` | vhost-device-vsock, for QEMU | when the vm unit no longer needs it |
//! | `seed-journal@` | systemd-journal-remote | likewise |
//! | `seed-vm@` | `seed vm` and the VMM | when it is stopped |
//!
//! The vm unit pulls in the others. None has an [Install] section and none refers to a unit outside of the set: so each is forgotten
//! by systemd when it stops, and is read anew, without a daemon-reload, when it is started again.

use std::path::Path;

use super::{
    File, InstanceTarget, Layout, Unit, Vmm,
    credentials::{JOURNAL_PORT, NOTIFY_PORT, credentials},
    unit_file::UnitFile,
    vm_unit,
    vmm::{self, Disk, Machine},
};
use crate::spec::{address::Address, desired::Wanted, name::SetId, quantity::Bytes};

/// Everything about one set of units that is on the machine.
pub fn instance(id: &SetId, wanted: &Wanted, layout: &Layout) -> InstanceTarget {
    let address = layout.addressing.of(id, wanted.lease);
    let set = Set { id, wanted, layout, address: &address, run: text(&layout.run_of(id)) };
    let mut units = vec![set.store(), set.journal()];
    if wanted.instance.tpm {
        units.push(set.tpm());
    }
    if layout.vmm != Vmm::CloudHypervisor {
        units.push(set.vsock());
    }
    units.push(set.vm());
    let closure = wanted.instance.closure.iter().map(|path| format!("{path}\n")).collect();
    let file = |name: &str, text: String| File { path: layout.run_of(id).join(name), text };
    let files = vec![file("closure", closure), file("journal.conf", journal_limits(layout.log_max))];
    let volumes = wanted.instance.volumes.iter().map(|(name, volume)| (name.clone(), volume.size)).collect();
    InstanceTarget { units, files, volumes, address, runs: true }
}

/// The names of the units that the vm unit cannot do without: if one of these has failed, so has the instance.
pub fn needed_units(id: &SetId) -> [String; 3] {
    ["store", "tpm", "vsock"].map(|kind| unit_name(kind, id))
}

fn unit_name(kind: &str, id: &SetId) -> String {
    format!("seed-{kind}@{}.service", id.unit_instance())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What all units of one instance are made from.
struct Set<'a> {
    id: &'a SetId,
    wanted: &'a Wanted,
    layout: &'a Layout,
    address: &'a Address,
    run: String,
}

impl Set<'_> {
    fn store(&self) -> Unit {
        let tools = &self.layout.tools;
        let (closure, at, socket) = (self.socket("closure"), self.socket("store"), self.socket("store.sock"));
        let uid = self.address.uid.to_string();
        let mut file = self.begin("store", "Store of");
        file.section("Service").set("Type", "notify").set("NotifyAccess", "main");
        let view = [&tools.seed, "store-view", "--closure", &closure, "--at", &at, "--socket", &socket, "--uid", &uid, "--"];
        let virtiofsd =
            [&tools.virtiofsd, "--readonly", "--sandbox=namespace", "--seccomp=kill", "--cache=always", "--log-level=warn"];
        // It would keep more of root than the unit has, and fail.
        let without = ["--modcaps=-mknod:-setfcap:-fsetid:-fowner:-chown:-setuid:-setgid"];
        file.exec("ExecStart", &[&view[..], &virtiofsd[..], &without[..]].concat());
        self.place(&mut file, 128, 64);
        // Root, because it mounts and makes a socket for somebody else; with no more of root than that.
        file.set("CapabilityBoundingSet", "CAP_SYS_ADMIN CAP_DAC_OVERRIDE CAP_CHOWN CAP_SETPCAP CAP_SETUID CAP_SETGID");
        harden(&mut file, &[&self.run]);
        file.set("RestrictNamespaces", "mnt pid net").set("PrivateMounts", "yes").set("PrivateNetwork", "yes");
        file.set("RestrictAddressFamilies", "AF_UNIX");
        confine(&mut file);
        file.set("SystemCallFilter", "@system-service @mount @sandbox");
        self.end("store", &file)
    }

    fn tpm(&self) -> Unit {
        let state = format!("dir={}", self.layout.tpm_of(self.id).display());
        let control = format!("type=unixio,path={},mode=0600", self.socket("tpm.sock"));
        let argv =
            [&self.layout.tools.swtpm, "socket", "--tpm2", "--tpmstate", &state, "--ctrl", &control, "--flags", "startup-clear"];
        let mut file = self.begin("tpm", "TPM of");
        file.section("Service").set("Type", "exec").exec("ExecStart", &argv);
        self.place(&mut file, 64, 16);
        self.as_instance(&mut file);
        self.state_directory(&mut file, "tpm");
        confine(&mut file);
        file.set("SystemCallFilter", "@system-service @sandbox").set("SystemCallFilter", "~@privileged @resources");
        self.end("tpm", &file)
    }

    fn vsock(&self) -> Unit {
        let device =
            format!("guest-cid={},uds-path={},socket={}", self.address.cid, self.socket("vsock"), self.socket("vhost-vsock.sock"));
        let mut file = self.begin("vsock", "vsock of");
        file.section("Service").set("Type", "exec");
        file.exec("ExecStart", &[self.layout.tools.vhost_device_vsock.as_str(), "--vm", &device]);
        self.place(&mut file, 128, 32);
        self.as_instance(&mut file);
        confine(&mut file);
        file.set("SystemCallFilter", "@system-service @sandbox").set("SystemCallFilter", "~@privileged @resources");
        self.end("vsock", &file)
    }

    fn journal(&self) -> Unit {
        let listen = format!("--listen-raw={}", self.socket(&format!("vsock_{JOURNAL_PORT}")));
        let output = format!("--output={}", self.layout.log_of(self.id).join("guest.journal").display());
        let argv = [&self.layout.tools.journal_remote, &listen, "--split-mode=none", &output];
        let mut file = self.begin("journal", "Journal of");
        file.section("Service").set("Type", "notify").exec("ExecStart", &argv);
        // What a guest logs while nobody listens is lost to the host, so this one comes back by itself.
        file.set("Restart", "on-failure").set("RestartSec", "1s");
        self.place(&mut file, 256, 16);
        self.as_instance(&mut file);
        self.state_directory(&mut file, "log");
        // Its limits can only be given in a file at a fixed place.
        file.set("TemporaryFileSystem", JOURNAL_REMOTE_CONF);
        file.set("BindReadOnlyPaths", format_args!("{}:{JOURNAL_REMOTE_CONF}/seed.conf", self.socket("journal.conf")));
        confine(&mut file);
        file.set("PrivateNetwork", "yes");
        file.set("SystemCallFilter", "@system-service").set("SystemCallFilter", "~@privileged @resources");
        self.end("journal", &file)
    }

    fn vm(&self) -> Unit {
        let (layout, instance) = (self.layout, &self.wanted.instance);
        let mut needed = vec![unit_name("store", self.id)];
        let mut waits = Vec::new();
        let mut need = |kind: &str, socket: &str| {
            needed.push(unit_name(kind, self.id));
            waits.extend(["--wait".to_owned(), self.socket(socket)]);
        };
        if instance.tpm {
            need("tpm", "tpm.sock");
        }
        if layout.vmm != Vmm::CloudHypervisor {
            need("vsock", "vhost-vsock.sock");
        }
        let journal = unit_name("journal", self.id);

        let mut file = UnitFile::new();
        file.section("Unit").set("Description", format_args!("Seed instance {}", self.id));
        // Never without any of them. Not BindsTo=: virtiofsd and swtpm end with their client, so that a guest that reboots would make
        // systemd stop this unit instead of starting it again (tried). A helper that dies before its time has failed, which the agent
        // sees.
        file.set("Requires", needed.join(" "));
        file.set("Wants", &journal).set("After", format_args!("network.target {} {journal}", needed.join(" ")));
        // A guest that cannot stay up is given up in the end; a guest that its tenant reboots now and then is not.
        let interval = STARTS * (layout.boot_timeout_secs + RESTART_MAX_SECS);
        file.set("StartLimitIntervalSec", format_args!("{interval}s")).set("StartLimitBurst", STARTS);

        let machine = vmm::invocation(layout.vmm, &self.machine(), &layout.tools);
        let notify = self.socket(&format!("vsock_{NOTIFY_PORT}"));
        let launcher = [&layout.tools.seed, "vm", "--notify", &notify, "--control", &machine.control];
        let mut argv: Vec<String> = launcher.map(str::to_owned).into();
        argv.extend(waits);
        argv.push("--".into());
        argv.extend(machine.argv);

        file.section("Service").set("Type", "notify").set("NotifyAccess", "main").exec("ExecStart", &argv);
        // So that machinectl knows it. As root, outside of the sandbox; whether it works is nothing to the guest.
        file.exec_privileged("ExecStartPost", &[layout.tools.seed.as_str(), "machine", &self.id.unit_instance()]);
        file.set("Restart", "always").set("RestartSec", "1s").set("RestartSteps", 5);
        file.set("RestartMaxDelaySec", format_args!("{RESTART_MAX_SECS}s"));
        file.set("TimeoutStartSec", format_args!("{}s", layout.boot_timeout_secs));
        // `seed vm` presses the power button on SIGTERM; what is left after this time is killed.
        file.set("TimeoutStopSec", format_args!("{}s", layout.stop_timeout_secs)).set("KillMode", "mixed");
        file.set("OOMPolicy", "kill").set("StandardInput", "null").set("SyslogIdentifier", "console");
        file.set("LogExtraFields", format_args!("SEED_INSTANCE={}", self.id.instance()));
        // A guest that fills its console fills no more than this of the host's journal.
        file.set("LogRateLimitIntervalSec", "30s").set("LogRateLimitBurst", 5000);
        self.place(&mut file, instance.size.memory_mib + overhead_mib(layout.vmm), 512);
        file.set("CPUWeight", (100 * instance.size.vcpus).clamp(1, 10_000));
        self.as_instance(&mut file);
        let images = instance.volumes.keys().map(|name| text(&layout.volume(self.id, name)));
        for image in images {
            file.set("ReadWritePaths", image);
        }
        file.set("DevicePolicy", "closed").set("DeviceAllow", "/dev/net/tun rw");
        if layout.vmm != (Vmm::Qemu { kvm: false }) {
            file.set("DeviceAllow", "/dev/kvm rw").set("SupplementaryGroups", "kvm");
        }
        file.set("SystemCallFilter", "@system-service @sandbox");
        Unit { name: vm_unit(self.id), text: file.to_string() }
    }

    fn machine(&self) -> Machine {
        let (instance, address) = (&self.wanted.instance, self.address);
        let toplevel = &instance.toplevel;
        let credentials = credentials(&self.id.instance(), self.wanted, address, self.layout);
        let volume = |name: &crate::spec::name::VolumeName| Disk {
            serial: name.to_string(),
            path: text(&self.layout.volume(self.id, name)),
        };
        let control = if self.layout.vmm == Vmm::CloudHypervisor { "api" } else { "qmp" };
        Machine {
            name: self.id.unit_instance(),
            vcpus: instance.size.vcpus,
            memory_mib: instance.size.memory_mib,
            kernel: format!("{toplevel}/kernel"),
            initrd: format!("{toplevel}/initrd"),
            // What comes last wins: a guest's own parameters cannot take its console away from its tenant.
            cmdline: format!("{} init={toplevel}/init console=ttyS0 panic=-1", instance.kernel_params).trim_start().to_owned(),
            store: self.socket("store.sock"),
            tap: address.tap.clone(),
            mac: address.mac.clone(),
            cid: address.cid,
            vsock: self.socket("vsock"),
            vhost_vsock: self.socket("vhost-vsock.sock"),
            tpm: instance.tpm.then(|| self.socket("tpm.sock")),
            volumes: instance.volumes.keys().map(volume).collect(),
            oem_strings: credentials.iter().map(|credential| credential.oem_string()).collect(),
            control: self.socket(control),
        }
    }

    /// A path in the run directory.
    fn socket(&self, name: &str) -> String {
        format!("{}/{name}", self.run)
    }

    fn begin(&self, kind: &str, what: &str) -> UnitFile {
        let mut file = UnitFile::new();
        file.section("Unit").set("Description", format_args!("{what} Seed instance {}", self.id));
        file.set("StopWhenUnneeded", "yes");
        // A restart is one of the whole set. Without this, the swtpm of the guest that just ended counts as running until it is gone,
        // nobody starts another, and the new guest finds no TPM.
        if kind != "journal" {
            file.set("PartOf", vm_unit(self.id));
        }
        // Whatever happened before, the vm unit decides how often it is worth trying.
        if kind != "journal" {
            file.set("StartLimitIntervalSec", 0);
        }
        file
    }

    fn end(&self, kind: &str, file: &UnitFile) -> Unit {
        Unit { name: unit_name(kind, self.id), text: file.to_string() }
    }

    /// Where it is accounted, and how much of the machine it may take.
    fn place(&self, file: &mut UnitFile, memory_mib: u64, tasks: u32) {
        file.set("Slice", super::slice(&self.id.namespace));
        file.set("MemoryMax", format_args!("{memory_mib}M")).set("TasksMax", tasks).set("LimitCORE", 0);
    }

    /// Runs it as the instance's own user, with no rights but a user's.
    fn as_instance(&self, file: &mut UnitFile) {
        file.set("User", self.address.uid).set("Group", self.address.uid);
        file.set("CapabilityBoundingSet", "").set("AmbientCapabilities", "");
        harden(file, &[&self.run]);
        file.set("RestrictNamespaces", "yes").set("RestrictAddressFamilies", "AF_UNIX");
    }

    /// A folder below the state directory that systemd makes, owned by the instance's user.
    fn state_directory(&self, file: &mut UnitFile, kind: &str) {
        let state = self.layout.state.strip_prefix("/var/lib").unwrap_or(Path::new("seed"));
        let (namespace, name) = (&self.id.namespace, self.id.place());
        file.set("StateDirectory", format_args!("{}/{kind}/{namespace}/{name}", state.display())).set("StateDirectoryMode", "0700");
    }
}

/// How many starts within their interval are too many.
const STARTS: u32 = 6;
/// The longest pause between two starts.
const RESTART_MAX_SECS: u32 = 60;

/// What a VMM needs besides the guest's memory: its own, and for an emulator the translated code.
fn overhead_mib(vmm: Vmm) -> u64 {
    match vmm {
        Vmm::CloudHypervisor => 128,
        Vmm::Qemu { kvm: true } => 256,
        Vmm::Qemu { kvm: false } => 640,
    }
}

/// What holds for all that need no device.
fn confine(file: &mut UnitFile) {
    file.set("PrivateDevices", "yes").set("MemoryDenyWriteExecute", "yes");
}

/// What holds for all: nothing of the machine but `writable` can be changed, and nothing new can be gained.
fn harden(file: &mut UnitFile, writable: &[&str]) {
    file.set("UMask", "0077").set("NoNewPrivileges", "yes").set("ProtectSystem", "strict").set("ProtectHome", "yes");
    file.set("PrivateTmp", "yes").set("ReadWritePaths", writable.join(" "));
    for key in ["ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectClock"] {
        file.set(key, "yes");
    }
    for key in ["ProtectHostname", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "RemoveIPC"] {
        file.set(key, "yes");
    }
    file.set("ProtectProc", "invisible")
        .set("KeyringMode", "private")
        .set("SystemCallArchitectures", "native")
        .set("SystemCallErrorNumber", "EPERM");
}

/// Where systemd-journal-remote looks for more of its configuration.
const JOURNAL_REMOTE_CONF: &str = "/run/systemd/journal-remote.conf.d";

/// The most that is kept of one instance's journal, in the words of journal-remote.conf(5). The oldest of eight files goes first.
fn journal_limits(log_max: Bytes) -> String {
    let kib = log_max.0.div_ceil(1024);
    format!("[Remote]\nMaxUse={kib}K\nMaxFileSize={}K\nKeepFree=0\n", kib.div_ceil(8).max(512))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::render::{
        samples,
        unit_file::reader::{assignments, commands},
    };

    fn keys(unit: &Unit) -> Vec<(String, String)> {
        assignments(&unit.text).into_iter().map(|(section, key, _)| (section, key)).collect()
    }

    fn argv(unit: &Unit) -> Vec<String> {
        let found = assignments(&unit.text).into_iter().find(|(_, key, _)| key == "ExecStart").expect("a command").2;
        let mut commands = commands(&found);
        assert_eq!(commands.len(), 1, "{found}");
        commands.remove(0)
    }

    #[test]
    fn the_vm_unit_is_last_and_needs_what_is_there() {
        for (name, vmm, kinds) in [
            ("web", Vmm::CloudHypervisor, "store journal vm"),
            ("web", Vmm::Qemu { kvm: true }, "store journal vsock vm"),
            ("db", Vmm::CloudHypervisor, "store journal tpm vm"),
            ("db", Vmm::Qemu { kvm: false }, "store journal tpm vsock vm"),
        ] {
            let (id, wanted) = samples::instance(name);
            let target = instance(&id, &wanted, &Layout { vmm, ..samples::layout() });
            let names: Vec<String> = kinds.split(' ').map(|kind| unit_name(kind, &id)).collect();
            assert_eq!(target.units.iter().map(|unit| unit.name.clone()).collect::<Vec<_>>(), names);
            let read = assignments(&target.units.last().unwrap().text);
            let value = |key: &str| read.iter().find(|(_, found, _)| found == key).map_or("", |(_, _, value)| value.as_str());
            let needed: Vec<&str> = value("Requires").split(' ').chain(value("Wants").split(' ')).collect();
            assert_eq!(needed.len(), names.len() - 1, "{needed:?}");
            assert!(needed.iter().all(|needed| names.contains(&(*needed).to_owned()) && value("After").contains(needed)));
        }
    }

    proptest! {
        /// What a tenant wrote freely ends up in one argument, whole, and changes nothing else of any unit.
        #[test]
        fn no_byte_of_a_tenant_opens_anything(params in "[ -~]{0,60}", mount in "/[ -~]{1,30}") {
            let (id, plain) = samples::instance("db");
            let mut hostile = plain.clone();
            hostile.instance.kernel_params = params.clone();
            hostile.instance.volumes.values_mut().next().unwrap().mount_point = mount;
            for vmm in [Vmm::CloudHypervisor, Vmm::Qemu { kvm: false }] {
                let layout = Layout { vmm, ..samples::layout() };
                let (made, plain) = (instance(&id, &hostile, &layout), instance(&id, &plain, &layout));
                for (made, plain) in made.units.iter().zip(&plain.units) {
                    prop_assert_eq!(&made.name, &plain.name);
                    prop_assert_eq!(keys(made), keys(plain));
                    let (argv, plain) = (argv(made), argv(plain));
                    prop_assert_eq!(argv.len(), plain.len());
                    let differ: Vec<&String> = argv.iter().zip(&plain).filter(|(a, b)| a != b).map(|(a, _)| a).collect();
                    let tail = "console=ttyS0 panic=-1";
                    prop_assert!(differ.iter().all(|argument| argument.ends_with(tail) || argument.contains("io.systemd.credential")));
                    if let Some(line) = differ.iter().find(|argument| argument.ends_with(tail)) {
                        prop_assert!(line.trim_start_matches("--cmdline=").starts_with(params.trim_start()));
                    }
                }
            }
        }
    }
}

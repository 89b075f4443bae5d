//! The machines that are measured on. One serves the groups that need no special configuration, one after the other.

use std::{fs, path::PathBuf};

use crate::{
    machine::{Machine, Said},
    meter,
};

/// What the machines have of this program.
pub const WORKER: &str = "/usr/bin/seed-bench";

/// Machines that are up; each is made when it is first asked for.
#[derive(Default)]
pub struct Place {
    plain: Option<Measured>,
    stub: Option<Measured>,
    crowd: Option<Measured>,
}

/// Lines of the configuration: a VMM that says "ready" and sleeps, in the place of QEMU.
const STUB: &[&str] = &["[paths]", "seed = \"/usr/bin/seed\"", "qemu = \"/usr/bin/seed-bench-vmm\""];

impl Place {
    /// Seed as it is installed.
    pub fn plain(&mut self) -> &Measured {
        self.plain.get_or_insert_with(|| Measured::new("bench", &[]))
    }

    /// Seed with a VMM that does nothing. CPU is scarce: the machine before it goes.
    pub fn stub(&mut self) -> &Measured {
        self.plain = None;
        self.stub.get_or_insert_with(|| Measured::new("stub", STUB))
    }

    /// The same, to be filled.
    pub fn crowd(&mut self) -> &Measured {
        (self.plain, self.stub) = (None, None);
        self.crowd.get_or_insert_with(|| Measured::new("crowd", STUB))
    }
}

/// A machine, and what can be read of it from here.
pub struct Measured {
    pub machine: Machine,
    root: PathBuf,
    pub pid1: u32,
}

impl Measured {
    fn new(story: &str, settings: &[&str]) -> Self {
        // The worker has to be there before the configuration is checked, and the machine is made by one call: so Seed is installed
        // with what it needs, and the settings come after.
        let machine = Machine::new(story, &[]);
        let root = machine.path("");
        let place = PathBuf::from(&root);
        for name in [WORKER, "/usr/bin/seed-bench-vmm"] {
            fs::copy(std::env::current_exe().unwrap(), place.join(&name[1..])).unwrap();
        }
        let pid1 = place.components().nth(2).and_then(|part| part.as_os_str().to_str()?.parse().ok()).expect("/proc/PID/root");
        let measured = Self { machine, root: place, pid1 };
        if !settings.is_empty() {
            let config = measured.root.join("etc/seed/seed.toml");
            let text = fs::read_to_string(&config).unwrap();
            fs::write(&config, format!("{text}\n{}\n", settings.join("\n"))).unwrap();
            measured.run(&["systemctl", "restart", "seed-agent.service"]);
        }
        measured
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Runs a command on the machine; it must succeed.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let Said { code, out, err } = self.machine.run(words);
        assert_eq!(code, 0, "{words:?}: {out}{err}");
        out
    }

    /// Runs a script on the machine; it must succeed.
    #[track_caller]
    pub fn script(&self, text: &str) -> String {
        self.run(&["bash", "-euc", text])
    }

    /// The control group of a unit, seen from here.
    fn group(&self, unit: &str) -> PathBuf {
        let group = self.run(&["systemctl", "show", "-P", "ControlGroup", unit]);
        assert!(group.len() > 2, "{unit} does not run");
        self.path(&format!("/sys/fs/cgroup{}", group.trim()))
    }

    /// The processes of a unit, by their numbers here.
    pub fn pids(&self, unit: &str) -> Vec<u32> {
        let text = fs::read_to_string(self.group(unit).join("cgroup.procs")).unwrap();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    pub fn all_pids(&self, units: &[&str]) -> Vec<u32> {
        units.iter().flat_map(|unit| self.pids(unit)).collect()
    }

    /// CPU time that units and all their children have used, those that have ended included, in microseconds.
    pub fn cpu(&self, units: &[&str]) -> f64 {
        units.iter().map(|unit| meter::field(&self.group(unit).join("cpu.stat"), "usage_usec") as f64).sum()
    }

    /// The same, used while something is done.
    pub fn cpu_while(&self, units: &[&str], deed: impl FnOnce()) -> f64 {
        let before = self.cpu(units);
        deed();
        // What ends a session goes on for a moment after the client has left.
        std::thread::sleep(std::time::Duration::from_millis(150));
        self.cpu(units) - before
    }

    /// CPU time of PID 1, in microseconds.
    pub fn pid1_cpu(&self) -> f64 {
        meter::cpu_of(self.pid1) / 1e3
    }

    /// Puts OpenSSH's server on the machine, from the same Debian release, and starts it on port 2200 as the peer of the SSH door.
    pub fn openssh(&self) {
        if self.path("/usr/sbin/sshd").exists() {
            return;
        }
        self.script(
            r#"
            mkdir -p /srv/peer && tar -xzf /srv/guest/root.tar.gz -C /srv/peer --wildcards \
                'root/usr/sbin/sshd*' 'root/usr/lib/openssh/*' 'root/usr/lib/x86_64-linux-gnu/*.so*' 'root/etc/pam.d/sshd'
            cp -an /srv/peer/root/usr/lib/x86_64-linux-gnu/. /usr/lib/x86_64-linux-gnu/
            mkdir -p /usr/lib/openssh /etc/pam.d /run/sshd /etc/ssh /root/.ssh
            cp -an /srv/peer/root/usr/lib/openssh/. /usr/lib/openssh/
            cp -a /srv/peer/root/usr/sbin/sshd /usr/sbin/
            ldconfig
            id sshd >/dev/null 2>&1 || systemd-sysusers --inline 'u sshd - "sshd" /run/sshd'
            ssh-keygen -q -t ed25519 -N '' -f /root/peer_key
            cat >/root/sshd_config <<END
Port 2200
HostKey /root/peer_key
AuthorizedKeysFile /root/.ssh/bench_keys
PasswordAuthentication no
StrictModes no
UsePAM no
PrintMotd no
PerSourcePenalties no
MaxStartups 1000
END
            ssh-keygen -q -t ed25519 -N '' -f /root/bench_key
            cp /root/bench_key.pub /root/.ssh/bench_keys
            systemd-run --quiet --unit=peer-sshd -p Type=exec /usr/sbin/sshd -D -e -f /root/sshd_config
            cat >/root/bench_ssh <<END
Host *
  IdentityFile /root/bench_key
  IdentitiesOnly yes
  BatchMode yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  KexAlgorithms curve25519-sha256
  Ciphers aes256-gcm@openssh.com
END
            for try in {1..50}; do ssh -F /root/bench_ssh -p 2200 root@127.0.0.1 true && break; sleep 0.1; done
            ssh -F /root/bench_ssh -p 2200 root@127.0.0.1 true
            "#,
        );
    }
}

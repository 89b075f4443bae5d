//! A machine with Seed on it, and a tenant with an SSH key.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A booted machine. It goes with this value, and with the test's process.
pub struct Machine {
    name: String,
}

/// What a command said.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The standard output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self.out
    }
    /// Both streams of a command.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host")
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn call(program: &Path, words: &[&str]) -> Said {
    said(Command::new(program).args(words).stdin(Stdio::null()).output().expect("the script runs"))
}

impl Machine {
    /// Boots a machine and puts Seed on it. `settings` are lines for its configuration.
    pub fn new(story: &str, settings: &[&str]) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-{number}-{story}", std::process::id());
        let guest = call(&here().join("roots"), &["guest"]).ok();
        let owner = std::process::id().to_string();
        let bind = format!("{}:/srv/guest", guest.trim());
        let machine = Self { name };
        call(&here().join("host"), &["up", &machine.name, "--owner", &owner, "--bind", &bind]).ok();
        let mut words = vec![machine.name.as_str(), env!("CARGO_BIN_EXE_seed")];
        words.extend(settings);
        call(&here().join("install"), &words).ok();
        machine
    }

    /// What the scripts know it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command as root on the machine.
    pub fn run(&self, words: &[&str]) -> Said {
        let mut all = vec!["run", self.name.as_str()];
        all.extend(words);
        call(&here().join("host"), &all)
    }

    /// Starts a command on the machine and leaves it running.
    pub fn spawn(&self, words: &[&str]) -> std::process::Child {
        let mut command = Command::new(here().join("host"));
        command.arg("run").arg(&self.name).args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the script runs")
    }

    /// An orderly reboot.
    pub fn reboot(&self) {
        call(&here().join("host"), &["reboot", self.name()]).ok();
    }

    /// A pulled plug.
    pub fn pull_the_plug(&self) {
        call(&here().join("host"), &["kill", &self.name]).ok();
    }

    /// Where a path of the machine's disk is, seen from here, while it is off.
    pub fn disk(&self, path: &str) -> PathBuf {
        let disk = call(&here().join("host"), &["disk", &self.name]).ok();
        PathBuf::from(format!("{}{path}", disk.trim()))
    }

    /// Power again.
    pub fn power_on(&self) {
        let guest = call(&here().join("roots"), &["guest"]).ok();
        let owner = std::process::id().to_string();
        let bind = format!("{}:/srv/guest", guest.trim());
        call(&here().join("host"), &["up", &self.name, "--owner", &owner, "--bind", &bind]).ok();
    }

    /// Where a path of the machine is, seen from here.
    pub fn path(&self, path: &str) -> PathBuf {
        let root = call(&here().join("host"), &["root", &self.name]).ok();
        PathBuf::from(format!("{}{path}", root.trim()))
    }

    /// Writes a file on the machine.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("below a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    /// Waits until `ready` gives something, for at most `limit`.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = ready() {
                return found;
            }
            assert!(began.elapsed() < limit, "{what}: not in {limit:?}\n{}", self.journal());
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// The journal of Seed's units, for a failing test.
    pub fn journal(&self) -> String {
        self.run(&["journalctl", "--no-pager", "-n", "120", "-u", "seed-*"]).all()
    }

    /// The main process of a unit, on the machine.
    pub fn main_pid(&self, unit: &str) -> String {
        self.run(&["systemctl", "show", "-P", "MainPID", unit]).ok().trim().to_owned()
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&["systemctl", "show", "-P", name, unit]).ok().trim().to_owned()
    }

    /// A tenant with a key of her own and, unless `repo` is empty, a checkout of the template called `repo`.
    pub fn tenant(&self, who: &str, repo: &str) -> Tenant<'_> {
        let home = format!("/root/{who}");
        self.run(&["mkdir", "-p", &home]).ok();
        self.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", who, "-f", &format!("{home}/key")]).ok();
        let ssh = format!(
            "ssh -i {home}/key -p 2222 -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        );
        let tenant = Tenant { machine: self, home, ssh, repo: repo.to_owned(), namespace: OnceLock::new() };
        if !repo.is_empty() {
            let flake = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates/minimal/flake.nix");
            let flake = std::fs::read_to_string(flake).expect("the template");
            tenant.git(&["init", "-q", "-b", "main", &tenant.checkout()]).ok();
            tenant.write("flake.nix", &flake);
        }
        tenant
    }

    /// Makes a network namespace `outside`, 192.0.2.2 and 2001:db8::2, to which this host is 192.0.2.1 and 2001:db8::1.
    pub fn make_outside(&self) {
        for line in [
            "netns add outside",
            "link add out0 type veth peer name eth0 netns outside",
            "addr add 192.0.2.1/24 dev out0",
            "addr add 2001:db8::1/64 dev out0 nodad",
            "link set out0 up",
            "-n outside link set lo up",
            "-n outside link set eth0 up",
            "-n outside addr add 192.0.2.2/24 dev eth0",
            "-n outside addr add 2001:db8::2/64 dev eth0 nodad",
            "-n outside route add default via 192.0.2.1",
            "-n outside -6 route add default via 2001:db8::1",
        ] {
            let mut words = vec!["ip"];
            words.extend(line.split(' '));
            self.run(&words).ok();
        }
    }

    /// A fresh invite code.
    pub fn invite(&self) -> String {
        self.run(&["seed", "invite", "new"]).ok().split_whitespace().find(|word| word.len() == 26).expect("a code").to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- journal of {}\n{}", self.name, self.journal());
        }
        // A machine that is gone already needs no taking down.
        let _gone = call(&here().join("host"), &["down", &self.name]);
    }
}

/// Somebody with an SSH key and a checkout.
pub struct Tenant<'a> {
    machine: &'a Machine,
    home: String,
    ssh: String,
    pub repo: String,
    namespace: OnceLock<String>,
}

impl Tenant<'_> {
    fn checkout(&self) -> String {
        format!("{}/{}", self.home, self.repo)
    }

    /// Writes a file of the checkout.
    pub fn write(&self, file: &str, text: &str) {
        self.machine.write(&format!("{}/{file}", self.checkout()), text);
    }

    /// The text of the checkout's flake with one piece replaced, which must be there.
    #[track_caller]
    pub fn edit(&self, from: &str, to: &str) {
        let path = self.machine.path(&format!("{}/flake.nix", self.checkout()));
        let text = std::fs::read_to_string(path).expect("a flake");
        assert!(text.contains(from), "the template has no {from:?}");
        self.write("flake.nix", &text.replacen(from, to, 1));
    }

    /// git, with her key.
    pub fn git(&self, words: &[&str]) -> Said {
        let ssh = format!("GIT_SSH_COMMAND={}", self.ssh);
        let mut all = vec!["env", &ssh, "git", "-c", "user.name=t", "-c", "user.email=t@example.org"];
        let checkout = self.checkout();
        if words.first() != Some(&"init") {
            all.extend(["-C", &checkout]);
        }
        all.extend(words);
        self.machine.run(&all)
    }

    /// Commits everything and pushes it.
    pub fn push(&self, options: &[&str]) -> Said {
        self.git(&["add", "-A"]).ok();
        self.git(&["commit", "-q", "--allow-empty", "-m", "change"]).ok();
        self.push_only(options)
    }

    /// Pushes what is committed.
    pub fn push_only(&self, options: &[&str]) -> Said {
        let url = self.url(&self.repo);
        let mut words = vec!["push"];
        words.extend(options);
        words.extend([url.as_str(), "HEAD"]);
        self.git(&words)
    }

    /// The URL of a repository in silo.
    pub fn url(&self, repo: &str) -> String {
        format!("ssh://seed@127.0.0.1:2222/{repo}.git")
    }

    /// The command line that asks the shell something.
    pub fn asks<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        let mut all: Vec<&str> = self.ssh.split_whitespace().collect();
        all.push("seed@127.0.0.1");
        all.extend(words);
        all
    }

    /// A command of the shell.
    pub fn shell(&self, words: &[&str]) -> Said {
        self.machine.run(&self.asks(words))
    }

    /// The same, ended after so many seconds.
    pub fn shell_for(&self, seconds: u32, words: &[&str]) -> Said {
        let seconds = seconds.to_string();
        let mut all = vec!["timeout", seconds.as_str()];
        all.extend(self.asks(words));
        self.machine.run(&all)
    }

    /// Pushes and plants the checkout; returns what was said and the namespace.
    #[track_caller]
    pub fn plant(&self) -> (String, String) {
        self.push(&[]).ok();
        let code = self.machine.invite();
        let uri = format!("silo:{}", self.repo);
        let planted = self.shell(&["plant", &uri, &code]);
        let text = planted.all();
        assert_eq!(planted.code, 0, "{text}");
        (text, self.namespace())
    }

    /// The namespace of her repository, from `status`.
    #[track_caller]
    pub fn namespace(&self) -> String {
        self.status()["namespaces"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["flake"] == format!("silo:{}", self.repo)))
            .and_then(|one| one["namespace"].as_str())
            .expect("planted")
            .to_owned()
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.shell(&["status", "--json"]).ok()).expect("JSON")
    }

    /// The state of an instance in `status`.
    #[track_caller]
    pub fn state(&self, instance: &str) -> String {
        let status = self.status();
        let all = status["namespaces"].as_array().expect("a list").iter();
        all.flat_map(|one| one["instances"].as_array().expect("a list"))
            .find(|one| one["name"] == instance)
            .map(|one| one["state"].as_str().expect("text").to_owned())
            .unwrap_or_default()
    }

    /// The page of an instance, fetched by its DNS name, which Seed's own DNS server tells; empty if there is none.
    pub fn page(&self, instance: &str) -> String {
        // Asked for once: it stays the same, and whoever waits for a page asks again and again while a guest boots.
        let namespace = self.namespace.get_or_init(|| self.namespace());
        let url = format!("http://{instance}.{namespace}.seed.example/");
        self.machine.run(&["curl", "-s", "-m", "5", &url]).out.trim().to_owned()
    }
}

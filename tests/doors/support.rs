//! A world to test in: a bus, an agent that does as it was told, the doors, and people with keys.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use seed::{
    bus::{SeedProxy, Zone},
    serve::{ServeError, Settings, Sockets},
};
use tokio::{
    net::{TcpListener, UdpSocket},
    process::{Child, Command},
    sync::oneshot,
    task::JoinHandle,
};

use crate::bound::Bound;
pub use crate::stand_in::{Agent, word};

/// Of loopback, 127.88/16 is where instances are.
pub fn dns_settings() -> seed::serve::dns::Settings {
    seed::serve::dns::Settings {
        near: seed::serve::dns::Near {
            pool4: "127.88.0.0/16".parse().unwrap(),
            pool6: "fd5e::/64".parse().unwrap(),
            gateways: vec![[127, 88, 0, 1].into()],
            inside: vec![],
        },
        upstream: vec![],
        rate: 200,
        zone_key: None,
        secondaries: vec![],
        transfer_key: None,
    }
}

/// All of it. Dropping it takes it down.
pub struct World {
    pub directory: tempfile::TempDir,
    pub agent: Agent,
    pub agent_bus: zbus::Connection,
    pub address: String,
    settings: Settings,
    pub port: u16,
    pub dns: SocketAddr,
    pub http: SocketAddr,
    pub doors: Option<JoinHandle<Result<(), ServeError>>>,
    pub stop: Option<oneshot::Sender<()>>,
    _bus: Child,
    _bound: Bound,
}

/// What a program did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }
    #[track_caller]
    pub fn err_has(&self, text: &str) -> &Self {
        assert!(self.err.contains(text), "no {text:?} in {self:#?}");
        self
    }
    #[track_caller]
    pub fn out_has(&self, text: &str) -> &Self {
        assert!(self.out.contains(text), "no {text:?} in {self:#?}");
        self
    }
    /// The `remote:` lines, without the prefix and trailing blanks.
    pub fn remote(&self) -> Vec<&str> {
        self.err.lines().filter_map(|line| line.strip_prefix("remote: ")).map(str::trim_end).collect()
    }
}

pub async fn run(command: &mut Command) -> Ran {
    let output = tokio::time::timeout(Duration::from_secs(60), command.stdin(Stdio::null()).kill_on_drop(true).output());
    let output = output.await.expect("the client should end").unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        std::fs::write(at.join("bus.conf"), bus_configuration(at)).unwrap();
        let config = format!("--config-file={}", at.join("bus.conf").display());
        let bus = Command::new("dbus-daemon")
            .args([&config, "--nofork", "--nopidfile"])
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let address = format!("unix:path={}", at.join("bus").display());
        until("the bus", || at.join("bus").exists()).await;
        let agent = Agent::default();
        agent.told().zone =
            Zone { serial: 1, domain: "seed.example".into(), host4: vec![[192, 0, 2, 1].into()], ..Zone::default() };
        let agent_bus = serve_agent(&address, agent.clone()).await;

        let mut settings =
            Settings::new("seed.example".parse().unwrap(), at.join("repos"), at.join("ssh/host_key"), dns_settings());
        settings.git = which("git");
        change(&mut settings);
        std::fs::write(
            at.join("gitconfig"),
            "[user]\nname=t\nemail=t@t\n[init]\ndefaultBranch=main\n[advice]\npushUpdateRejected=false\n",
        )
        .unwrap();
        let dns = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut world = Self {
            directory,
            agent,
            agent_bus,
            address,
            settings,
            port: 0,
            dns,
            http: dns,
            doors: None,
            stop: None,
            _bus: bus,
            _bound: Bound::new(),
        };
        world.open_doors().await;
        for person in ["ann", "bob"] {
            let key = world.path(person);
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key)).await.ok();
        }
        world
    }

    /// Starts the doors; again, if they were closed.
    pub async fn open_doors(&mut self) {
        let bus = connect(&self.address).await;
        let ssh = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.port = ssh.local_addr().unwrap().port();
        // One number for both: another's connection may hold the first that is free for one of them.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            self.dns = udp.local_addr().unwrap();
            if let Ok(tcp) = TcpListener::bind(self.dns).await {
                break (udp, tcp);
            }
        };
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.http = http.local_addr().unwrap();
        let sockets =
            Sockets { ssh: vec![ssh], dns_udp: vec![udp], dns_tcp: vec![tcp], http: vec![http.into()], ..Sockets::default() };
        let proxy = SeedProxy::new(&bus).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let settings = self.settings.clone();
        self.doors = Some(tokio::spawn(seed::serve::run_until(settings, proxy, sockets, async {
            drop(stopped.await);
        })));
        self.stop = Some(stop);
    }

    /// Closes the doors.
    pub async fn close_doors(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.doors.take().unwrap().await.unwrap().unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
    pub fn repository(&self, name: &str) -> PathBuf {
        self.path("repos").join(format!("{name}.git"))
    }
    /// ssh's options for a person.
    pub fn options(&self, person: &str) -> Vec<String> {
        let known = format!("UserKnownHostsFile={}", self.path("known_hosts").display());
        let key = self.path(person).display().to_string();
        let options =
            ["-F", "/dev/null", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new"];
        let mut all: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        all.extend([
            "-o".into(),
            known,
            "-o".into(),
            "LogLevel=ERROR".into(),
            "-i".into(),
            key,
            "-p".into(),
            self.port.to_string(),
        ]);
        all
    }
    /// A command of a person's, over ssh.
    pub fn ssh_command(&self, person: &str, words: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options(person)).arg("127.0.0.1").args(words);
        command
    }
    pub async fn ssh(&self, person: &str, words: &[&str]) -> Ran {
        run(&mut self.ssh_command(person, words)).await
    }
    /// git as a person runs it, in `directory` of the world.
    pub fn git_command(&self, person: &str, directory: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .current_dir(self.path(directory))
            .env("GIT_SSH_COMMAND", format!("ssh {}", self.options(person).join(" ")))
            .env("GIT_CONFIG_GLOBAL", self.path("gitconfig"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(arguments);
        command
    }
    pub async fn git(&self, person: &str, directory: &str, arguments: &[&str]) -> Ran {
        run(&mut self.git_command(person, directory, arguments)).await
    }
    pub fn url(&self, name: &str) -> String {
        format!("ssh://127.0.0.1:{}/{name}", self.port)
    }
    /// A clone-to-be with one commit, in the directory `name`, on the branch main, with the remote `silo`.
    pub async fn project(&self, name: &str) {
        std::fs::create_dir(self.path(name)).unwrap();
        self.git("ann", name, &["init", "-q"]).await.ok();
        self.git("ann", name, &["remote", "add", "silo", &self.url("my-app")]).await.ok();
        self.commit(name, "flake.nix", b"{ }").await;
    }
    pub async fn commit(&self, project: &str, file: &str, bytes: &[u8]) {
        std::fs::write(self.path(project).join(file), bytes).unwrap();
        self.git("ann", project, &["add", "-A"]).await.ok();
        self.git("ann", project, &["commit", "-q", "--allow-empty", "-m", file]).await.ok();
    }
    /// What a ref of a repository here points at.
    pub async fn at(&self, name: &str, reference: &str) -> Option<String> {
        let path = self.repository(name);
        let ran = run(Command::new("git").arg("--git-dir").arg(path).args(["rev-parse", "--verify", "-q", reference])).await;
        (ran.code == 0).then(|| ran.out.trim().to_owned())
    }
    pub async fn key_id(&self, person: &str) -> String {
        let ran = run(Command::new("ssh-keygen").args(["-l", "-f"]).arg(self.path(person))).await.ok();
        ran.out.split(' ').nth(1).unwrap().to_owned()
    }
    /// The agent goes, as in a restart.
    pub async fn agent_leaves(&self) {
        self.agent_bus.release_name(seed::bus::NAME).await.unwrap();
    }
    pub async fn agent_returns(&self) {
        self.agent_bus.request_name(seed::bus::NAME).await.unwrap();
    }
    /// What is left of pushes that did not end.
    pub fn left_over(&self, name: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in [self.path("repos"), self.repository(name).join("objects"), self.repository(name).join("objects/pack")] {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let entry_name = entry.file_name().to_string_lossy().into_owned();
                if ["tmp_", "incoming", ".new", ".tmp"].iter().any(|start| entry_name.starts_with(start)) {
                    found.push(entry.path());
                }
            }
        }
        found
    }
}

/// Waits until something is so.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited 120 s for {what}");
}

pub async fn connect(address: &str) -> zbus::Connection {
    for _ in 0..100 {
        if let Ok(connection) = zbus::connection::Builder::address(address).build().await {
            return connection;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no bus at {address}");
}

async fn serve_agent(address: &str, agent: Agent) -> zbus::Connection {
    let connection = connect(address).await;
    connection.object_server().at(seed::bus::PATH, agent).await.unwrap();
    connection.request_name(seed::bus::NAME).await.unwrap();
    connection
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file()).expect("git is installed")
}

fn bus_configuration(at: &Path) -> String {
    format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\"
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\"><busconfig><type>session</type>
         <listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>
         <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
        at.join("bus").display()
    )
}

//! An agent with everything around it made up, but for the repositories, which are real.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use seed::{
    agent::{
        Agent, Handle, Settings,
        authority::Authority,
        credentials::Credentials,
        remote,
        request::{Reply, Request},
    },
    build::{BuildError, Builder, Evaluated, Job, Outputs, Realised, fetch::Fetcher},
    bus::{Level, Outcome, Progress, PushRead, Pushed, Refusal, Status},
    config::Config,
    host::sim::Sim,
    render::{Layout, Tools, Vmm},
    spec::name::{InstanceId, KeyId, Namespace, StorePath},
    state::memory::MemoryState,
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::forge::Forge;

/// What the builder makes of the next commits: `name -> meta`, and the tag that tells systems apart.
#[derive(Clone, Default)]
pub struct Table(Arc<Mutex<Plans>>);

#[derive(Default)]
struct Plans {
    seeds: BTreeMap<String, (Value, String)>,
    ipv4: Option<Value>,
    ipv6: Option<Value>,
    eval_error: Option<BuildError>,
    build_error: Option<BuildError>,
    evaluations: usize,
    /// Evaluations under way, and the most that ever were.
    busy: (usize, usize),
    pause: Duration,
    /// The systems that were to be kept, by namespace.
    kept: BTreeMap<Namespace, Vec<StorePath>>,
}

impl Table {
    /// The flake has an instance called `name`, whose system is told apart by `tag`, with these fields in its meta.
    pub fn set(&self, name: &str, tag: &str, mut meta: Value) {
        meta["version"] = json!(1);
        meta["name"] = json!(name);
        self.0.lock().unwrap().seeds.insert(name.to_owned(), (meta, tag.to_owned()));
    }
    pub fn remove(&self, name: &str) {
        self.0.lock().unwrap().seeds.remove(name);
    }
    /// The outputs `ipv4` and `ipv6` of the flake.
    pub fn routes(&self, ipv4: Option<Value>, ipv6: Option<Value>) {
        let mut plans = self.0.lock().unwrap();
        (plans.ipv4, plans.ipv6) = (ipv4, ipv6);
    }
    pub fn fail_eval(&self, error: Option<BuildError>) {
        self.0.lock().unwrap().eval_error = error;
    }
    pub fn fail_build(&self, error: Option<BuildError>) {
        self.0.lock().unwrap().build_error = error;
    }
    pub fn evaluations(&self) -> usize {
        self.0.lock().unwrap().evaluations
    }
    /// How many evaluations there were at the same time at most.
    pub fn most_at_once(&self) -> usize {
        self.0.lock().unwrap().busy.1
    }
    /// Which systems of a namespace are kept from the garbage collection.
    pub fn kept(&self, namespace: &Namespace) -> Vec<StorePath> {
        self.0.lock().unwrap().kept.get(namespace).cloned().unwrap_or_default()
    }
    /// Every evaluation takes this long.
    pub fn pause(&self, pause: Duration) {
        self.0.lock().unwrap().pause = pause;
    }
}

/// A store path that is told apart by `tag`.
pub fn path(tag: &str) -> StorePath {
    let hash: String = tag.bytes().chain([b'x'; 32]).take(32).map(|b| char::from(b'a' + b % 20)).collect();
    format!("/nix/store/{hash}-{tag}").parse().unwrap()
}

impl Builder for Table {
    async fn eval(&self, _job: &Job, log: mpsc::Sender<String>) -> Result<Outputs, BuildError> {
        let pause = {
            let mut plans = self.0.lock().unwrap();
            plans.busy = (plans.busy.0 + 1, plans.busy.1.max(plans.busy.0 + 1));
            plans.pause
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        self.0.lock().unwrap().busy.0 -= 1;
        log.send("a line of the evaluation".to_owned()).await.unwrap();
        let mut plans = self.0.lock().unwrap();
        plans.evaluations += 1;
        if let Some(error) = &plans.eval_error {
            return Err(error.clone());
        }
        let one = |(name, (meta, tag)): (&String, &(Value, String))| {
            (name.clone(), Evaluated { meta: meta.clone(), drv: path(&format!("{tag}.drv")), out: path(tag) })
        };
        Ok(Outputs { seeds: plans.seeds.iter().map(one).collect(), ipv4: plans.ipv4.clone(), ipv6: plans.ipv6.clone() })
    }

    async fn realise(
        &self,
        _job: &Job,
        wanted: &BTreeMap<String, Evaluated>,
        _log: mpsc::Sender<String>,
    ) -> Result<BTreeMap<String, Realised>, BuildError> {
        if let Some(error) = &self.0.lock().unwrap().build_error {
            return Err(error.clone());
        }
        let one = |(name, found): (&String, &Evaluated)| {
            let toplevel = found.out.clone();
            (name.clone(), Realised { closure: vec![toplevel.clone()], toplevel, kernel_params: "quiet".to_owned() })
        };
        Ok(wanted.iter().map(one).collect())
    }

    async fn retain(&self, namespace: &Namespace, keep: &[StorePath]) -> Result<(), BuildError> {
        self.0.lock().unwrap().kept.insert(namespace.clone(), keep.to_vec());
        Ok(())
    }
}

pub struct World {
    pub sim: Sim,
    pub state: MemoryState,
    pub table: Table,
    pub handle: Handle,
    pub forge: Forge,
    /// How often what is elsewhere is looked at.
    every: Duration,
    /// Whether the host has an ingress.
    ingress: bool,
    /// How long a version that was rolled over drains, in seconds.
    drain: u32,
    running: JoinHandle<()>,
    dir: tempfile::TempDir,
}

pub fn ann() -> KeyId {
    crate::desk::person("ann").0
}

pub fn bob() -> KeyId {
    crate::desk::person("bob").0
}

fn git(at: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]);
    let out = command.args(words).current_dir(at).output().expect("git runs");
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sim, state, table) = (Sim::new(), MemoryState::default(), Table::default());
        let forge = Forge::new();
        let every = Duration::from_secs(600);
        let drain = 1;
        let (handle, running) = start(&dir, &sim, &state, &table, &forge, (every, false, drain)).await;
        Self { sim, state, table, handle, forge, every, ingress: false, drain, running, dir }
    }

    /// A path among the agent's files.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// The agent is killed where it stands, and started again.
    pub async fn kill_agent(&mut self) {
        self.running.abort();
        self.state.go_on();
        let circumstances = (self.every, self.ingress, self.drain);
        let (handle, running) = start(&self.dir, &self.sim, &self.state, &self.table, &self.forge, circumstances).await;
        (self.handle, self.running) = (handle, running);
    }

    /// The agent ends.
    pub async fn quit(&mut self) {
        self.handle.quit().await;
        (&mut self.running).await.expect("it ends by itself");
    }

    /// From now on what is elsewhere is looked at so often.
    pub async fn every(&mut self, every: Duration) {
        self.every = every;
        self.kill_agent().await;
    }

    /// The host has an ingress, and it runs.
    pub async fn with_ingress() -> Self {
        let mut world = Self::new().await;
        world.ingress = true;
        world.kill_agent().await;
        world.until("the ingress has its files", |world| !world.sim.look().ingress.files.is_empty()).await;
        world.sim.start_ingress();
        world
    }

    /// From now on a version that was rolled over drains so long.
    pub async fn drain(&mut self, secs: u32) {
        self.drain = secs;
        self.kill_agent().await;
    }

    /// As [`World::kill_agent`], but the machine restarts too.
    pub async fn reboot(&mut self) {
        self.running.abort();
        self.sim.reboot();
        let circumstances = (self.every, self.ingress, self.drain);
        let (handle, running) = start(&self.dir, &self.sim, &self.state, &self.table, &self.forge, circumstances).await;
        (self.handle, self.running) = (handle, running);
    }

    pub async fn text(&self, request: Request) -> Result<String, Refusal> {
        match self.handle.ask(request).await? {
            Reply::Text(text) => Ok(text),
            other => panic!("{other:?}"),
        }
    }

    /// Asks for write access as a push does, and makes the bare repository as the door does.
    pub async fn create(&self, who: &KeyId, repo: &str) -> Result<(), Refusal> {
        let request = Request::OpenRepository { who: who.to_string(), name: repo.into(), access: "write".into() };
        self.text(request).await?;
        let bare = self.dir.path().join("repos").join(format!("{repo}.git"));
        if !bare.exists() {
            std::fs::create_dir_all(bare.parent().unwrap()).unwrap();
            git(bare.parent().unwrap(), &["init", "-q", "--bare", &format!("{repo}.git")]);
            git(self.dir.path(), &["init", "-q", &format!("work-{repo}")]);
        }
        Ok(())
    }

    /// Commits `files` and moves the branch of the bare repository, as git receive-pack does; returns the commit.
    pub fn commit(&self, repo: &str, files: &[(&str, &str)]) -> String {
        let work = self.dir.path().join(format!("work-{repo}"));
        for (name, text) in files {
            std::fs::write(work.join(name), text).unwrap();
        }
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-q", "--allow-empty", "-m", "change"]);
        let bare = self.dir.path().join("repos").join(format!("{repo}.git"));
        git(&work, &["push", "-q", bare.to_str().unwrap(), "HEAD:refs/heads/main"]);
        git(&work, &["rev-parse", "HEAD"])
    }

    /// Says that the branch was pushed.
    pub async fn pushed(&self, who: &KeyId, repo: &str, commit: &str, mode: &str) -> Result<Pushed, Refusal> {
        self.pushed_and_read(who, repo, commit, mode, None).await
    }

    /// The same, by doors that have read what the agent would.
    pub async fn pushed_and_read(
        &self,
        who: &KeyId,
        repo: &str,
        commit: &str,
        mode: &str,
        read: Option<PushRead>,
    ) -> Result<Pushed, Refusal> {
        let request = Request::Push {
            who: who.to_string(),
            repository: repo.into(),
            reference: "refs/heads/main".into(),
            old: "0".repeat(40),
            new: commit.into(),
            mode: mode.into(),
            read,
        };
        Ok(serde_json::from_str(&self.text(request).await?).unwrap())
    }

    /// Commits, pushes, and waits for the end of the deploy.
    pub async fn push(&self, repo: &str) -> (Outcome, String) {
        let commit = self.commit(repo, &[]);
        let pushed = self.pushed(&ann(), repo, &commit, "deploy").await.unwrap();
        self.follow(&pushed.job).await
    }

    /// What a job says, to its end.
    pub async fn follow(&self, job: &str) -> (Outcome, String) {
        let request = Request::Follow { who: String::new(), job: job.into() };
        let Reply::Pipe(fd) = self.handle.ask(request).await.unwrap() else { panic!("no pipe") };
        let read = tokio::task::spawn_blocking(move || std::io::read_to_string(std::fs::File::from(fd)).unwrap());
        let text = tokio::time::timeout(Duration::from_secs(20), read).await.expect("the job ends").unwrap();
        let lines: Vec<Progress> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let outcome = lines.last().and_then(|line| line.outcome).expect("an outcome");
        let marked = |line: &Progress| format!("{}{}\n", if line.level == Level::Error { "! " } else { "" }, line.text);
        (outcome, lines.iter().map(marked).collect())
    }

    pub async fn invite(&self, uses: u32) -> String {
        self.text(Request::NewInvite { uses, expires_secs: 0, note: String::new() }).await.unwrap()
    }

    pub async fn plant(&self, who: &KeyId, repo: &str, code: &str) -> Result<String, Refusal> {
        let request = Request::Plant { who: who.to_string(), uri: format!("silo:{repo}"), code: code.into() };
        let planted: Value = serde_json::from_str(&self.text(request).await?).unwrap();
        Ok(planted["job"].as_str().unwrap().to_owned())
    }

    /// The bare repository of that name.
    pub fn bare(&self, repo: &str) -> std::path::PathBuf {
        self.dir.path().join("repos").join(format!("{repo}.git"))
    }

    /// The directory of the audit log.
    pub fn audit(&self) -> std::path::PathBuf {
        self.dir.path().join("audit")
    }

    /// A repository of ann's that is planted and runs.
    pub async fn planted(&self, repo: &str) -> (Outcome, String) {
        self.create(&ann(), repo).await.unwrap();
        self.commit(repo, &[]);
        let code = self.invite(1).await;
        let job = self.plant(&ann(), repo, &code).await.unwrap();
        self.follow(&job).await
    }

    pub async fn status(&self, who: &str) -> Status {
        let text = self.text(Request::Status { who: who.into(), filter: String::new() }).await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Where what the last deploy of a repository said is kept.
    pub fn kept(&self, repo: &str) -> std::path::PathBuf {
        let namespace = id(repo, "web").namespace;
        self.dir.path().join("state/deploys").join(format!("{namespace}.jsonl"))
    }

    /// Waits until `ready` holds.
    pub async fn until(&self, what: &str, mut ready: impl FnMut(&Self) -> bool) {
        for _ in 0..20_000 {
            if ready(self) {
                return;
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        panic!("never: {what}");
    }
}

pub fn id(repo: &str, name: &str) -> InstanceId {
    let uri: seed::spec::name::FlakeUri = format!("silo:{repo}").parse().unwrap();
    InstanceId { namespace: uri.namespace(), name: name.parse().unwrap() }
}

async fn start(
    dir: &tempfile::TempDir,
    sim: &Sim,
    state: &MemoryState,
    table: &Table,
    forge: &Forge,
    (every, ingress, drain_secs): (Duration, bool, u32),
) -> (Handle, JoinHandle<()>) {
    let text = "domain = \"seed.example\"\n[network]\npublic_addresses = [\"192.0.2.7\", \"2001:db8::7\"]\nreserved_ports = [\"2200/tcp\"]";
    let config = Config::parse(text).expect("a configuration");
    let tool = |name: &str| format!("/usr/bin/{name}");
    let tools = Tools {
        seed: tool("seed"),
        cloud_hypervisor: tool("cloud-hypervisor"),
        qemu: tool("qemu-system-x86_64"),
        virtiofsd: tool("virtiofsd"),
        swtpm: tool("swtpm"),
        vhost_device_vsock: tool("vhost-device-vsock"),
        journal_remote: tool("systemd-journal-remote"),
    };
    let authority = Authority::load_or_make(&dir.path().join("guest-ca")).unwrap();
    let settings = Settings {
        layout: Layout {
            state: dir.path().join("state"),
            guest_ca: authority.public(),
            ingress: ingress.then_some(1),
            ..config.layout(Vmm::Qemu { kvm: false }, tools)
        },
        repositories: dir.path().join("repos"),
        reader: seed::build::source::Reader::Here,
        remotes: remote::Settings {
            fetcher: Fetcher::Here {
                git: std::env::split_paths(&std::env::var_os("PATH").unwrap())
                    .map(|folder| folder.join("git"))
                    .find(|path| path.is_file())
                    .expect("git is installed"),
                seed: env!("CARGO_BIN_EXE_seed").into(),
                mirrors: dir.path().join("mirrors"),
                allow: vec!["127.0.0.0/8".parse().unwrap()],
            },
            credentials: Credentials(dir.path().join("credentials")),
            github: forge.url.clone(),
            github_ssh: forge.ssh.url.clone(),
            webhook: "http://seed.example/webhook/github".to_owned(),
            every,
            pause: Duration::from_millis(50),
        },
        work: dir.path().to_owned(),
        drain_secs,
        parallel: 2,
        keep: 3,
        quota: config.quota.clone(),
        reserved: config.reserved(),
        audit: dir.path().join("audit"),
        audit_keep: u64::MAX,
        apex: seed::render::zone::Apex::default(),
        acme: seed::agent::acme::budget::Limits::default(),
        hypervisor: "a machine made of memory".to_owned(),
        authority,
    };
    let (agent, handle) = Agent::new(sim.clone(), state.clone(), table.clone(), settings).await.unwrap();
    (handle, tokio::spawn(agent.run()))
}

//! The agent that the doors ask: it does as it was told, and remembers what it was asked.

use std::{
    collections::{BTreeMap, VecDeque},
    io::Write,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use seed::{
    bus::{Level, LogQuery, Opened, Outcome, Planted, Progress, PushRead, Pushed, Refusal, Stage, Status, Zone},
    spec::caller::Caller,
};

/// What the stand-in knows and was asked.
#[derive(Debug, Default)]
pub struct Told {
    /// Repository to owner.
    pub owners: BTreeMap<String, String>,
    pub planted: Vec<String>,
    /// `repository reference old new mode`, of every push.
    pub pushes: Vec<String>,
    /// It knows only the first way of telling it of a push.
    pub older: bool,
    /// What the doors had read of the repository, of those pushes that they had read something of.
    pub read: Vec<PushRead>,
    pub notes: Vec<String>,
    /// What jobs say; one without a script says that it is done.
    pub script: Vec<(Duration, Progress)>,
    /// How many times a push is answered with "nobody is here".
    pub push_away: u32,
    pub status: Status,
    /// How often the status was asked for.
    pub statuses: u32,
    pub logs: Vec<String>,
    /// How many bytes a repository may still grow by, if there is an end to it.
    pub room: Option<u64>,
    /// Jobs whose follower went away before their end.
    pub left: u32,
    pub zone: Zone,
    pub calls: VecDeque<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Agent(pub Arc<Mutex<Told>>);

impl Agent {
    pub fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap()
    }
}

/// A pipe that says `lines`, with pauses; when its reader leaves early, `left` is called.
fn pipe(lines: Vec<(Duration, String)>, stay: bool, left: impl FnOnce() + Send + 'static) -> zbus::OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::thread::spawn(move || {
        for (pause, line) in lines {
            std::thread::sleep(pause);
            if writeln!(writer, "{line}").is_err() {
                return left();
            }
        }
        while stay {
            std::thread::sleep(Duration::from_millis(50));
            let line = r#"{"at":0,"source":"x","priority":6,"text":"tick"}"#;
            if writeln!(writer, "{line}").is_err() {
                return left();
            }
        }
    });
    std::os::fd::OwnedFd::from(reader).into()
}

pub fn word(stage: Stage, level: Level, text: &str, outcome: Option<Outcome>) -> Progress {
    Progress { at: 1_000_000, stage, level, text: text.into(), outcome }
}

/// The key of who asks; the doors say where they come from, too.
fn key_of(who: &str) -> &str {
    let caller: Caller = who.parse().expect("a caller");
    assert_eq!(caller.source(), Some(IpAddr::from([127, 0, 0, 1])), "{who}");
    who.split('@').next().unwrap()
}

#[zbus::interface(name = "farm.loom.Seed1")]
impl Agent {
    fn status(&self, who: &str, filter: &str) -> Result<String, Refusal> {
        let mut told = self.told();
        told.statuses += 1;
        let mut status = told.status.clone();
        if !who.is_empty() && !told.owners.values().any(|owner| owner == key_of(who)) {
            status.namespaces.clear();
        }
        if !filter.is_empty() && filter != "my-app" {
            return Err(Refusal::NotFound(format!("no repository {filter:?}: there is my-app")));
        }
        Ok(serde_json::to_string(&status).unwrap())
    }
    fn plan(&self) -> String {
        r#"{"version":1,"steps":["start web"]}"#.into()
    }
    fn open_repository(&self, who: &str, name: &str, access: &str) -> Result<String, Refusal> {
        let mut told = self.told();
        let planted = told.planted.iter().any(|known| known == name);
        let room = told.room.unwrap_or(u64::MAX);
        let opened = |created| Ok(serde_json::to_string(&Opened { name: name.into(), created, planted, room }).unwrap());
        match (told.owners.get(name), access) {
            (Some(_), "read") => opened(false),
            (None, "read") => Err(Refusal::NotFound(format!("there is no repository {name}: push to it to make it"))),
            (Some(owner), _) if owner != key_of(who) => {
                Err(Refusal::Denied(format!("your key {} may not push to {name}", key_of(who))))
            }
            (Some(_), _) => opened(false),
            (None, _) => {
                told.owners.insert(name.into(), key_of(who).into());
                opened(true)
            }
        }
    }
    fn push(&self, who: &str, repository: &str, reference: &str, old: &str, new: &str, mode: &str) -> zbus::fdo::Result<String> {
        assert!(!key_of(who).is_empty());
        let mut told = self.told();
        if told.push_away > 0 {
            told.push_away -= 1;
            return Err(zbus::fdo::Error::ServiceUnknown("gone".into()));
        }
        told.pushes.push(format!("{repository} {reference} {old} {new} {mode}"));
        let job =
            if told.planted.iter().any(|known| known == repository) { format!("job-{}", told.pushes.len()) } else { String::new() };
        Ok(serde_json::to_string(&Pushed { job, notes: told.notes.clone() }).unwrap())
    }
    #[allow(clippy::too_many_arguments, reason = "as on the bus")]
    fn push_read(
        &self,
        who: &str,
        repository: &str,
        reference: &str,
        old: &str,
        new: &str,
        mode: &str,
        read: &str,
    ) -> zbus::fdo::Result<String> {
        if self.told().older {
            return Err(zbus::fdo::Error::UnknownMethod("PushRead".into()));
        }
        let answer = self.push(who, repository, reference, old, new, mode)?;
        self.told().read.push(serde_json::from_str(read).unwrap());
        Ok(answer)
    }
    fn plant(&self, _who: &str, uri: &str, code: &str) -> Result<String, Refusal> {
        if code != "good" {
            return Err(Refusal::Denied("this code is unknown or spent".into()));
        }
        let name = uri.strip_prefix("silo:").ok_or_else(|| Refusal::Invalid(format!("{uri:?} is no flake: write silo:NAME")))?;
        self.told().planted.push(name.into());
        let planted = Planted {
            version: 1,
            namespace: "s-aaaaaaaaaaaa".into(),
            flake: uri.into(),
            job: "job-1".into(),
            suffix: "s-aaaaaaaaaaaa.seed.example".into(),
        };
        Ok(serde_json::to_string(&planted).unwrap())
    }
    fn follow(&self, _who: &str, _job: &str) -> zbus::OwnedFd {
        let mut script = self.told().script.clone();
        if script.is_empty() {
            script.push((Duration::ZERO, word(Stage::Run, Level::Info, "running web", Some(Outcome::Done))));
        }
        let told = self.clone();
        let lines = script.into_iter().map(|(pause, word)| (pause, serde_json::to_string(&word).unwrap())).collect();
        pipe(lines, false, move || told.told().left += 1)
    }
    fn logs(&self, _who: &str, instance: &str, query: &str) -> Result<zbus::OwnedFd, Refusal> {
        let LogQuery { lines, follow, .. } = serde_json::from_str(query).unwrap();
        let mut told = self.told();
        if instance != "web" && instance != "my-app/web" {
            return Err(Refusal::NotFound(format!("no instance {instance:?}: there are api, web")));
        }
        told.calls.push_back(format!("logs {instance} {lines} {follow}"));
        let all = told.logs.iter().map(|line| (Duration::ZERO, line.clone())).collect();
        let agent = self.clone();
        Ok(pipe(all, follow, move || agent.told().left += 1))
    }
    fn restart(&self, _who: &str, instance: &str) -> Result<String, Refusal> {
        match instance {
            "web" => Ok("job-9".into()),
            _ => Err(Refusal::NotFound(format!("no instance {instance:?}: there are api, web"))),
        }
    }
    fn deploy(&self, _who: &str, _repository: &str) -> String {
        "job-9".into()
    }
    fn new_invite(&self, _uses: u32, _expires_secs: u64, _note: &str) -> String {
        "good".into()
    }
    fn list_invites(&self) -> String {
        r#"{"version":1,"invites":[]}"#.into()
    }
    fn revoke_invite(&self, id: &str) -> Result<(), Refusal> {
        Err(Refusal::NotFound(format!("no invite {id:?}")))
    }
    fn zone(&self) -> String {
        serde_json::to_string(&self.told().zone).unwrap()
    }
    #[zbus(signal)]
    pub async fn zone_changed(emitter: &zbus::object_server::SignalEmitter<'_>, serial: u32, change: &str) -> zbus::Result<()>;
    #[zbus(property)]
    fn version(&self) -> String {
        "test".into()
    }
}

//! Repositories from elsewhere: planting one ([`plant`]), following its branch, and what its owner can set.
//!
//! A branch is looked at when its forge says so (see [`super::hook`]), when somebody asks for a deploy, and now and then in any case. One
//! fetch of a namespace goes on at a time; what comes meanwhile is one more fetch afterwards. A commit that was not seen before
//! becomes an `Ask`, as a push does, and from there on nothing differs.

mod plant;

use std::{collections::BTreeMap, time::Duration};

pub use self::plant::{Lent, Planting};

use super::{
    Agent, Event, chain,
    credentials::Credentials,
    hook::{Delivery, Heard, new_secret},
    job::Job,
    now,
    repository::new_keys,
    request::{Answer, Reply, json, principal, text},
    resolve,
};
use crate::{
    build::{
        Builder, Place,
        fetch::{Credential, FetchError, Fetcher, Found, Wanted},
    },
    bus::{
        Level, Outcome, Refusal, Stage,
        github::{RemoteKey, RemoteStatus, Webhook},
    },
    host::Host,
    spec::{
        access::{Principal, Repository, Verb},
        name::{FlakeUri, Namespace, RefName, Remote},
    },
    state::{Ask, Change, Plant, Secret, State, Upstream},
};

/// How repositories from elsewhere are followed.
#[derive(Debug, Clone)]
pub struct Settings {
    pub fetcher: Fetcher,
    pub credentials: Credentials,
    /// `https://github.com`
    pub github: String,
    /// `ssh://git@github.com`
    pub github_ssh: String,
    /// Where forges send their deliveries.
    pub webhook: String,
    /// How often a branch is looked at in any case.
    pub every: Duration,
    /// Deliveries that come within this time are one.
    pub pause: Duration,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// `line` is the public key of who asks, as `.authorized_keys` has it; empty if the door does not know it.
    Plant {
        who: String,
        uri: String,
        code: String,
        line: String,
        lent: Lent,
    },
    PlantKey {
        who: String,
        uri: String,
        code: String,
    },
    Show {
        who: String,
        repository: String,
    },
    SetToken {
        who: String,
        repository: String,
        token: Secret,
    },
    ForgetToken {
        who: String,
        repository: String,
    },
    Key {
        who: String,
        repository: String,
    },
    Trust {
        who: String,
        repository: String,
        host_key: String,
    },
    NewSecret {
        who: String,
        repository: String,
    },
    Hook {
        repository: String,
        branch: String,
        signature: String,
        body: Vec<u8>,
    },
}

/// What wakes the loop.
pub enum Notice {
    /// The first fetch of what is to be planted has ended.
    Tried(Box<Planting>, Result<Fetched, FetchError>, Answer),
    /// A fetch has ended.
    Fetched(Namespace, Result<Fetched, FetchError>),
    /// It is time for a fetch, if nothing else was set since then.
    Due(Namespace, u64),
    Delivered(Delivery, Answer),
}

/// Where a branch is, and the `.authorized_keys` there, or why it could not be read.
pub struct Fetched {
    found: Found,
    keys: Result<Option<String>, String>,
}

/// What is under way, and what was found last.
#[derive(Default)]
pub struct Remotes {
    pub(super) heard: Heard,
    busy: BTreeMap<Namespace, Turn>,
    /// The number of the next fetch that was set for a namespace; older ones are void.
    next: BTreeMap<Namespace, u64>,
    /// Those for which a delivery has set one.
    soon: std::collections::BTreeSet<Namespace>,
    last: BTreeMap<Namespace, Last>,
}

/// A fetch that is under way.
#[derive(Default)]
struct Turn {
    /// Who asked for it and follows.
    job: Option<Job>,
    /// Something came in the meantime: once more.
    again: bool,
    waiting: Vec<Job>,
}

/// How the last fetch went.
struct Last {
    at: u64,
    problem: String,
    failures: u32,
}

/// Whether a text is a flake that is somewhere else.
pub(super) fn is_remote(uri: &str) -> bool {
    matches!(uri.parse(), Ok(FlakeUri::Remote(_)))
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Answers a question, at once or from a task.
    pub(super) async fn remote(&mut self, question: Question, answer: Answer) {
        let reply = match question {
            Question::Plant { who, uri, code, line, lent } => {
                return self.plant_remote(&who, &uri, code, line, &lent, answer);
            }
            Question::PlantKey { who, uri, code } => self.plant_key(&who, &uri, code),
            Question::Hook { repository, branch, signature, body } => {
                return self.hook(&repository, branch, &signature, body, answer);
            }
            Question::Show { who, repository } => self.show_remote(&who, &repository),
            Question::SetToken { who, repository, token } => self.set_token(&who, &repository, &token),
            Question::ForgetToken { who, repository } => self.forget_token(&who, &repository),
            Question::Key { who, repository } => self.deploy_key(&who, &repository),
            Question::Trust { who, repository, host_key } => self.trust(&who, &repository, &host_key).await,
            Question::NewSecret { who, repository } => self.new_secret(&who, &repository).await,
        };
        // Who has stopped waiting does not care.
        drop(answer.send(reply));
    }

    pub(super) async fn remote_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Tried(planting, fetched, answer) => {
                let reply = self.tried(*planting, fetched).await;
                drop(answer.send(reply));
            }
            Notice::Fetched(namespace, fetched) => self.fetched(namespace, fetched).await,
            Notice::Due(namespace, number) => {
                if self.remotes.next.get(&namespace) == Some(&number) {
                    self.remotes.soon.remove(&namespace);
                    self.fetch_remote(&namespace, None);
                }
            }
            Notice::Delivered(delivery, answer) => drop(answer.send(self.delivered(&delivery))),
        }
    }

    /// Sets the first look at every repository from elsewhere: what they said while the agent was away was not heard.
    pub(super) fn follow_remotes(&mut self) {
        let all: Vec<Namespace> = self.memory.upstreams.keys().cloned().collect();
        for (index, namespace) in all.into_iter().enumerate() {
            // Not all at once.
            self.fetch_in(&namespace, self.shared.settings.remotes.pause + Duration::from_millis(200) * index as u32);
        }
    }

    fn webhook(&self, secret: Secret) -> Webhook {
        Webhook { version: 1, url: self.shared.settings.remotes.webhook.clone(), secret: secret.0 }
    }

    /// What is fetched for a namespace.
    fn wanted(&self, namespace: &Namespace, remote: &Remote, credential: Option<Credential>) -> Wanted {
        let settings = &self.shared.settings.remotes;
        let url = match credential {
            Some(Credential::Key(_)) => remote.ssh_url(&settings.github_ssh),
            _ => remote.url(&settings.github),
        };
        let host_key = self.memory.upstreams.get(namespace).and_then(|upstream| upstream.host_key.clone());
        let (branch, most) = (remote.branch().cloned(), self.quota_of(namespace).repository);
        Wanted { namespace: namespace.clone(), url, branch, known: None, credential, host_key, most }
    }

    /// Fetches a planted repository; with a job it is deployed whether or not there is something new.
    fn fetch_remote(&mut self, namespace: &Namespace, job: Option<Job>) {
        let uri = self.memory.plants.get(namespace).map(|plant| plant.uri.clone());
        let (Some(FlakeUri::Remote(remote)), Some(upstream)) = (uri, self.memory.upstreams.get(namespace)) else {
            if let Some(job) = job {
                job.end(Stage::Fetch, Outcome::Failed, "it is not planted any more");
            }
            return;
        };
        if let Some(turn) = self.remotes.busy.get_mut(namespace) {
            turn.again = true;
            if let Some(job) = job {
                job.say(Stage::Queue, Level::Info, "waiting for the fetch that is under way");
                turn.waiting.push(job);
            }
            return;
        }
        let known = if job.is_some() { None } else { upstream.seen.clone() };
        let credential = self.shared.settings.remotes.credentials.of(namespace);
        let wanted = Wanted { known, ..self.wanted(namespace, &remote, credential) };
        if let Some(job) = &job {
            job.say(Stage::Fetch, Level::Info, format!("fetching {}", wanted.url));
        }
        self.remotes.busy.insert(namespace.clone(), Turn { job, ..Turn::default() });
        let (shared, namespace) = (self.shared.clone(), namespace.clone());
        tokio::spawn(async move {
            let fetched = bring(&shared, &wanted).await;
            // The loop being gone means that the agent stops.
            drop(shared.events.send(Event::Remote(Notice::Fetched(namespace, fetched))).await);
        });
    }

    async fn fetched(&mut self, namespace: Namespace, fetched: Result<Fetched, FetchError>) {
        let Some(Turn { job, again, mut waiting }) = self.remotes.busy.remove(&namespace) else { return };
        let failures = self.remotes.last.get(&namespace).map_or(0, |last| last.failures);
        let (problem, failures) = match &fetched {
            Ok(_) => (String::new(), 0),
            Err(error) => (error.to_string(), failures.saturating_add(1)),
        };
        match fetched {
            Ok(fetched) => self.take_up(&namespace, fetched, job).await,
            Err(error) => {
                tracing::warn!(%namespace, error = %chain(&error), "could not fetch");
                if let Some(job) = job {
                    job.end(Stage::Fetch, Outcome::Failed, format!("{error}; what runs goes on"));
                }
            }
        }
        self.remotes.last.insert(namespace.clone(), Last { at: now(), problem, failures });
        let next = waiting.pop();
        for older in waiting {
            older.end(Stage::Queue, Outcome::Superseded, "a newer one took its place");
        }
        if again {
            return self.fetch_remote(&namespace, next);
        }
        // What failed is tried again soon, and then less and less often, up to a day apart.
        let Settings { every, pause, .. } = &self.shared.settings.remotes;
        let rest = match failures {
            0 => *every,
            _ => (*pause * 10).saturating_mul(1 << failures.min(20)).min(Duration::from_secs(86_400)),
        };
        self.fetch_in(&namespace, rest);
    }

    /// Deploys a commit that was not seen before, or whichever it is if somebody asked for it.
    async fn take_up(&mut self, namespace: &Namespace, fetched: Fetched, job: Option<Job>) {
        let Fetched { found: Found { branch, commit, host_key }, keys } = fetched;
        let (plant, upstream) = (self.memory.plants.get(namespace), self.memory.upstreams.get(namespace));
        let (Some(plant), Some(upstream)) = (plant.cloned(), upstream.cloned()) else {
            if let Some(job) = job {
                job.end(Stage::Fetch, Outcome::Failed, "it is not planted any more");
            }
            return;
        };
        // What somebody said to trust meanwhile counts.
        let host_key = upstream.host_key.clone().or(host_key);
        if job.is_none() && upstream.seen.as_ref() == Some(&commit) {
            if host_key != upstream.host_key {
                let upstream = Upstream { host_key, ..upstream };
                // If it is not remembered, it is taken for what it says once more.
                drop(self.commit(vec![Change::Upstream(namespace.clone(), Some(upstream))]).await);
            }
            return;
        }
        // Its forge decides who may push there; whoever may is taken at his word.
        let (keys, notes) = new_keys(&upstream.repository, &Principal::Operator, keys, now());
        let repository = Repository { keys, ..upstream.repository.clone() };
        let ask = Ask {
            repo: repository.name.clone(),
            reference: branch.clone(),
            commit: commit.clone(),
            by: plant.by.clone(),
            at: now(),
        };
        let upstream = Upstream { repository, branch: Some(branch.clone()), seen: Some(commit.clone()), host_key, ..upstream };
        let mut batch = self.superseded(namespace);
        batch.extend([Change::Upstream(namespace.clone(), Some(upstream)), Change::Ask(namespace.clone(), Some(ask.clone()))]);
        let committed = self.commit(batch).await;
        let asked = job.is_some();
        let job = job.unwrap_or_else(|| self.jobs.create(namespace.clone()));
        match committed {
            Ok(()) => {
                // Who asked for a deploy has a line for that; what a webhook led to, and whom it lets in, is nobody else's.
                if !asked || notes.iter().any(|note| super::acts::is_about_access(note)) {
                    self.record.fetched(&plant, &branch, &commit, &job.name, &notes).await;
                }
                for note in notes {
                    job.say(Stage::Fetch, Level::Info, note);
                }
                tracing::info!(%namespace, flake = %plant.uri, %commit, "fetched");
                job.say(Stage::Fetch, Level::Info, format!("{} is at {}", branch.short(), &commit.as_str()[..12]));
                self.enqueue_as(namespace.clone(), ask, job);
            }
            Err(refusal) => job.end(Stage::Fetch, Outcome::Failed, text(&refusal)),
        }
    }

    /// Sets the next fetch of a namespace, in place of the one that was set.
    fn fetch_in(&mut self, namespace: &Namespace, pause: Duration) {
        let number = self.remotes.next.entry(namespace.clone()).or_default();
        *number += 1;
        let notice = Notice::Due(namespace.clone(), *number);
        self.later(pause, Event::Remote(notice));
    }

    /// Fetches a namespace in a moment: deliveries come in bursts.
    pub(super) fn fetch_soon(&mut self, namespace: &Namespace) {
        if self.remotes.soon.insert(namespace.clone()) {
            self.fetch_in(namespace, self.shared.settings.remotes.pause);
        }
    }

    /// The branch of a namespace that is followed, if it is known already.
    pub(super) fn branch_of(&self, namespace: &Namespace) -> Option<&RefName> {
        let named = self.memory.plants.get(namespace).and_then(|plant| match &plant.uri {
            FlakeUri::Remote(remote) => remote.branch(),
            FlakeUri::Silo(_) => None,
        });
        named.or_else(|| self.memory.upstreams.get(namespace)?.branch.as_ref())
    }

    /// Whether `who` means a repository from elsewhere by that name; one of this host comes first.
    pub(super) fn is_elsewhere(&self, who: &str, name: &str) -> bool {
        let here = name.parse().is_ok_and(|name: crate::spec::name::RepoName| self.memory.repos.contains_key(&name));
        let Ok(who) = principal(who) else { return false };
        !here && self.remotes_called(&who, name).is_ok_and(|found| !found.is_empty())
    }

    fn remotes_called(&self, who: &Principal, name: &str) -> Result<Vec<Plant>, Refusal> {
        let plants = resolve::plants(&self.memory, who, name)?;
        Ok(plants.into_iter().filter(|plant| matches!(plant.uri, FlakeUri::Remote(_))).cloned().collect())
    }

    /// The one repository from elsewhere that `who` calls `name` and may do `verb` to.
    fn remote_plant(&self, who: &str, verb: Verb, name: &str) -> Result<Plant, Refusal> {
        let who = principal(who)?;
        let mut found = self.remotes_called(&who, name)?;
        if found.len() > 1 {
            let names: Vec<String> = found.iter().map(|plant| plant.uri.to_string()).collect();
            return Err(Refusal::NotFound(format!("{name:?} is ambiguous; there is {}", names.join(", "))));
        }
        let Some(plant) = found.pop() else {
            return Err(Refusal::Invalid(format!("{name} is a repository of this host: push to it")));
        };
        if !resolve::may(&self.memory, &who, verb, &plant) {
            return Err(Refusal::Denied(format!("your key may look at {}, but not do this", plant.uri)));
        }
        Ok(plant)
    }

    /// Fetches and deploys, whether or not there is something new.
    pub(super) fn deploy_remote(&mut self, who: &str, name: &str, answer: Answer) {
        let reply = self.remote_plant(who, Verb::Act, name).map(|plant| {
            let job = self.jobs.create(plant.namespace.clone());
            self.fetch_remote(&plant.namespace, Some(job.clone()));
            Reply::Text(job.name)
        });
        drop(answer.send(reply));
    }

    fn show_remote(&self, who: &str, name: &str) -> Result<Reply, Refusal> {
        let plant = self.remote_plant(who, Verb::See, name)?;
        let settings = &self.shared.settings.remotes;
        let last = self.remotes.last.get(&plant.namespace);
        let upstream = self.memory.upstreams.get(&plant.namespace);
        let seen = upstream.and_then(|upstream| upstream.seen.as_ref());
        Ok(json(&RemoteStatus {
            version: 1,
            namespace: plant.namespace.to_string(),
            flake: plant.uri.to_string(),
            branch: self.branch_of(&plant.namespace).map(|branch| branch.short().to_owned()).unwrap_or_default(),
            commit: seen.map(ToString::to_string).unwrap_or_default(),
            token: matches!(settings.credentials.of(&plant.namespace), Some(Credential::Token(_))),
            key: settings.credentials.key(&plant.namespace).unwrap_or_default(),
            host_key: upstream.and_then(|upstream| upstream.host_key.as_ref()).map(ToString::to_string).unwrap_or_default(),
            webhook_url: settings.webhook.clone(),
            fetched: last.map_or(0, |last| last.at),
            problem: last.map(|last| last.problem.clone()).unwrap_or_default(),
            every: settings.every.as_secs(),
        }))
    }

    fn set_token(&mut self, who: &str, name: &str, token: &Secret) -> Result<Reply, Refusal> {
        let plant = self.remote_plant(who, Verb::Administer, name)?;
        if let FlakeUri::Remote(remote) = &plant.uri
            && remote.is_ssh()
        {
            let why = format!("{0} is read over SSH with a deploy key, and takes no token: remote {0} key shows it", plant.uri);
            return Err(Refusal::Invalid(why));
        }
        self.shared.settings.remotes.credentials.set_token(&plant.namespace, token)?;
        tracing::info!(namespace = %plant.namespace, "a token was set");
        Ok(Reply::Nothing)
    }

    fn forget_token(&mut self, who: &str, name: &str) -> Result<Reply, Refusal> {
        let plant = self.remote_plant(who, Verb::Administer, name)?;
        if !self.shared.settings.remotes.credentials.forget(&plant.namespace)? {
            return Err(Refusal::NotFound(format!("{} has no token and no deploy key", plant.uri)));
        }
        tracing::info!(namespace = %plant.namespace, "token and deploy key were removed");
        Ok(Reply::Nothing)
    }

    fn deploy_key(&mut self, who: &str, name: &str) -> Result<Reply, Refusal> {
        let plant = self.remote_plant(who, Verb::Administer, name)?;
        let (key, made) = self.shared.settings.remotes.credentials.make_key(&plant.namespace)?;
        if made {
            tracing::info!(namespace = %plant.namespace, "a deploy key was made");
        }
        Ok(json(&RemoteKey { version: 1, flake: plant.uri.to_string(), key, made }))
    }

    /// Takes another host key for that of the server.
    async fn trust(&mut self, who: &str, name: &str, host_key: &str) -> Result<Reply, Refusal> {
        let plant = self.remote_plant(who, Verb::Administer, name)?;
        let host_key = host_key.parse().map_err(super::request::invalid)?;
        let Some(upstream) = self.memory.upstreams.get(&plant.namespace).cloned() else { return Err(unknown()) };
        let upstream = Upstream { host_key: Some(host_key), ..upstream };
        self.commit(vec![Change::Upstream(plant.namespace, Some(upstream))]).await?;
        Ok(Reply::Nothing)
    }

    async fn new_secret(&mut self, who: &str, name: &str) -> Result<Reply, Refusal> {
        let plant = self.remote_plant(who, Verb::Administer, name)?;
        let Some(upstream) = self.memory.upstreams.get(&plant.namespace).cloned() else {
            return Err(unknown());
        };
        let secret = new_secret().map_err(|error| Refusal::Failed(format!("no randomness: {error}")))?;
        let upstream = Upstream { secret: secret.clone(), ..upstream };
        self.commit(vec![Change::Upstream(plant.namespace, Some(upstream))]).await?;
        Ok(json(&self.webhook(secret)))
    }
}

fn unknown() -> Refusal {
    Refusal::Failed("this is a bug in Seed: nothing is known of this repository".to_owned())
}

/// Fetches, and reads what else is to be known of the commit.
async fn bring<H: Host, B: Builder>(shared: &super::Shared<H, B>, wanted: &Wanted) -> Result<Fetched, FetchError> {
    let settings = &shared.settings;
    let found = settings.remotes.fetcher.fetch(wanted).await?;
    if wanted.known.as_ref() == Some(&found.commit) {
        return Ok(Fetched { found, keys: Ok(None) });
    }
    let place = Place::Mirror(wanted.namespace.clone(), settings.remotes.fetcher.path(&wanted.namespace));
    let pushed = settings.reader.pushed(&place, found.branch.clone(), found.commit.clone()).await;
    let keys = pushed.map_err(|error| FetchError::Refused(chain(&error)))?.keys;
    Ok(Fetched { found, keys })
}

//! What is asked of the agent, and the answers. Every question is authorised here: doors say who asks, they do not decide.

use std::os::fd::OwnedFd;

use tokio::sync::oneshot;

use super::{Agent, Event, chain, guest::wait_for_guest, invite::find_invite, job::Job, logs, now, queue::Mode, resolve, status};
use crate::{
    build::{Builder, source},
    bus::{Level, Opened, Outcome, Planted, Pushed, Refusal, Stage},
    host::Host,
    spec::{
        access::{self, Principal, Repository, Verb},
        name::{Commit, FlakeUri, InstanceId, KeyId, NameError, RefName, RepoName},
    },
    state::{Ask, Batch, Change, Plant, State},
};

/// How many repositories one key may create.
const MAX_REPOSITORIES: usize = 32;

/// A question, in plain text as it came over the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Status { who: String, filter: String },
    Plan,
    OpenRepository { who: String, name: String, access: String },
    Push { who: String, repository: String, reference: String, old: String, new: String, mode: String },
    Plant { who: String, uri: String, code: String },
    Deploy { who: String, repository: String },
    Follow { who: String, job: String },
    Logs { who: String, instance: String, lines: u32, follow: bool },
    Restart { who: String, instance: String },
    NewInvite { uses: u32, expires_secs: u64, note: String },
    ListInvites,
    RevokeInvite { id: String },
    Zone,
}

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// A document, a name, a code.
    Text(String),
    /// The end of a pipe to read from.
    Pipe(OwnedFd),
    Nothing,
}

/// What was read of a repository.
pub struct Read {
    branch: RefName,
    /// Where that branch is.
    head: Option<Commit>,
    /// The `.authorized_keys` of the commit that was pushed.
    keys: Option<String>,
}

pub type Answer = oneshot::Sender<Result<Reply, Refusal>>;

/// The text of a refusal, without its kind.
pub fn text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NotFound(text) | Refusal::Denied(text) | Refusal::Invalid(text) | Refusal::Failed(text) => text.clone(),
        Refusal::ZBus(error) => error.to_string(),
    }
}

fn invalid(error: NameError) -> Refusal {
    Refusal::Invalid(error.to_string())
}

fn is_zero(commit: &Commit) -> bool {
    commit.as_str().bytes().all(|digit| digit == b'0')
}

fn principal(who: &str) -> Result<Principal, Refusal> {
    if who.is_empty() { Ok(Principal::Operator) } else { who.parse::<KeyId>().map(Principal::Key).map_err(invalid) }
}

pub(super) fn json(document: &impl serde::Serialize) -> Reply {
    Reply::Text(serde_json::to_string(document).expect("plain data is JSON"))
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Answers a question, at once or from a task.
    pub(super) async fn request(&mut self, request: Request, answer: Answer) {
        let reply = match request {
            Request::Status { who, filter } => return self.status(&who, &filter, answer),
            Request::Plan => return self.plan(answer),
            Request::OpenRepository { who, name, access } => self.open_repository(&who, &name, &access).await,
            Request::Push { .. } | Request::Plant { .. } | Request::Deploy { .. } => return self.read_first(request, answer),
            Request::Follow { who, job } => self.follow(&who, &job),
            Request::Logs { who, instance, lines, follow } => self.logs(&who, &instance, lines, follow),
            Request::Restart { who, instance } => self.restart(&who, &instance),
            Request::NewInvite { uses, expires_secs, note } => self.new_invite(uses, expires_secs, note).await,
            Request::ListInvites => Ok(self.invites()),
            Request::RevokeInvite { id } => self.revoke_invite(&id).await,
            Request::Zone => Ok(json(&**self.zone.borrow())),
        };
        // Who has stopped waiting does not care.
        drop(answer.send(reply));
    }

    fn status(&self, who: &str, filter: &str, answer: Answer) {
        let picture = principal(who).and_then(|who| {
            let plants = resolve::plants(&self.memory, &who, filter)?;
            Ok(status::Picture::new(&self.memory, &who, &plants, &self.deploying, &self.queued_namespaces(), filter))
        });
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let reply = match picture {
                Ok(picture) => picture.look(&shared).await.map(|status| json(&status)),
                Err(refusal) => Err(refusal),
            };
            drop(answer.send(reply));
        });
    }

    fn queued_namespaces(&self) -> Vec<crate::spec::name::Namespace> {
        self.queued.keys().cloned().collect()
    }

    fn plan(&mut self, answer: Answer) {
        let (shared, target) = (self.shared.clone(), self.target());
        tokio::spawn(async move {
            let reply = match shared.host.observe().await {
                Ok(observed) => {
                    let steps = crate::plan::plan(&target, &observed);
                    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
                    Ok(json(&serde_json::json!({ "version": 1, "steps": steps })))
                }
                Err(error) => Err(Refusal::Failed(format!("could not look at the machine: {}", chain(&error)))),
            };
            drop(answer.send(reply));
        });
    }

    async fn open_repository(&mut self, who: &str, name: &str, access: &str) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let name: RepoName = name.parse().map_err(invalid)?;
        let verb = match access {
            "read" => Verb::Read,
            "write" => Verb::Write,
            other => return Err(Refusal::Invalid(format!("access {other:?} is neither read nor write"))),
        };
        let planted = self.memory.plants.contains_key(&FlakeUri::Silo(name.clone()).namespace());
        if let Some(repository) = self.memory.repos.get(&name) {
            if access::may(&who, verb, repository) {
                return Ok(json(&Opened { name: name.to_string(), created: false, planted }));
            }
            let Principal::Key(key) = &who else { return Err(Refusal::Denied("denied".to_owned())) };
            return Err(Refusal::Denied(format!(
                "the repository {name} is another's: your key {key} is not in its .authorized_keys; ask its owner to push it there, or \
                 choose another name"
            )));
        }
        let Principal::Key(owner) = who else {
            return Err(Refusal::NotFound(format!("there is no repository {name}; the first push by an SSH key creates it")));
        };
        if verb == Verb::Read {
            return Err(Refusal::NotFound(format!("there is no repository {name}; the first push creates it")));
        }
        if self.memory.repos.values().filter(|repository| repository.owner == owner).count() >= MAX_REPOSITORIES {
            return Err(Refusal::Denied(format!(
                "your key owns {MAX_REPOSITORIES} repositories, which is the most that one key may"
            )));
        }
        let repository = Repository { name: name.clone(), owner, keys: Vec::new(), created: now() };
        self.commit(vec![Change::Repo(name.clone(), Some(repository))]).await?;
        tracing::info!(repository = %name, "repository created");
        Ok(json(&Opened { name: name.to_string(), created: true, planted }))
    }

    /// The repository of that name, if `who` may write to it.
    fn writable(&self, who: &Principal, name: &RepoName) -> Result<&Repository, Refusal> {
        match self.memory.repos.get(name) {
            Some(repository) if access::may(who, Verb::Write, repository) => Ok(repository),
            Some(_) => Err(Refusal::Denied(format!("the repository {name} is another's"))),
            None => Err(Refusal::NotFound(format!("there is no repository {name}: push it first"))),
        }
    }

    /// Reads what a push or a plant needs to know of its repository, beside the loop, and comes back to it with [`Event::Read`].
    fn read_first(&mut self, request: Request, answer: Answer) {
        let (name, commit) = match self.readable(&request) {
            Ok(found) => found,
            // Who has stopped waiting does not care.
            Err(refusal) => return drop(answer.send(Err(refusal))),
        };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let path = shared.settings.repositories.join(format!("{name}.git"));
            let reader = &shared.settings.reader;
            let read = async {
                let (branch, head) = reader.default_branch(&path).await?;
                let keys = match commit {
                    Some((reference, commit)) if reference == branch => reader.authorized_keys(&path, &commit).await?,
                    _ => None,
                };
                Ok::<_, source::SourceError>(Read { branch, head, keys })
            };
            match read.await {
                // The loop being gone means that the agent stops.
                Ok(read) => drop(shared.events.send(Event::Read(request, read, answer)).await),
                Err(error) => drop(answer.send(Err(Refusal::Failed(chain(&error))))),
            }
        });
    }

    /// The repository that a push or a plant is about, if the asker may write to it, and the commit whose keys count.
    fn readable(&self, request: &Request) -> Result<(RepoName, Option<(RefName, Commit)>), Refusal> {
        match request {
            Request::Push { who, repository, reference, new, mode, .. } => {
                let name: RepoName = repository.parse().map_err(invalid)?;
                let (reference, commit): (RefName, Commit) = (reference.parse().map_err(invalid)?, new.parse().map_err(invalid)?);
                self.writable(&principal(who)?, &name)?;
                Ok((name, (mode == "deploy" && !is_zero(&commit)).then_some((reference, commit))))
            }
            Request::Plant { who, uri, .. } => {
                let FlakeUri::Silo(name) = uri.parse().map_err(invalid)?;
                self.writable(&principal(who)?, &name)?;
                Ok((name, None))
            }
            Request::Deploy { who, repository } => {
                let name: RepoName = repository.parse().map_err(invalid)?;
                self.writable(&principal(who)?, &name)?;
                Ok((name, None))
            }
            _ => Err(Refusal::Failed("this is a bug in Seed: nothing to read".to_owned())),
        }
    }

    /// Answers a push or a plant with what was read for it.
    pub(super) async fn read(&mut self, request: Request, read: Read, answer: Answer) {
        let reply = match request {
            Request::Push { who, repository, reference, new, mode, .. } => {
                self.push(&who, &repository, &reference, &new, &mode, read).await
            }
            Request::Plant { who, uri, code } => self.plant(&who, &uri, &code, read).await,
            Request::Deploy { who, repository } => self.deploy_again(&who, &repository, read).await,
            _ => Err(Refusal::Failed("this is a bug in Seed: nothing was to be read".to_owned())),
        };
        // Who has stopped waiting does not care.
        drop(answer.send(reply));
    }

    async fn push(&mut self, who: &str, name: &str, reference: &str, new: &str, mode: &str, read: Read) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let name: RepoName = name.parse().map_err(invalid)?;
        let reference: RefName = reference.parse().map_err(invalid)?;
        let commit: Commit = new.parse().map_err(invalid)?;
        let mode = match mode {
            "deploy" => Mode::Deploy,
            "plan" => Mode::Plan,
            other => return Err(Refusal::Invalid(format!("mode {other:?} is neither deploy nor plan"))),
        };
        let repository = self.writable(&who, &name)?.clone();
        let Principal::Key(by) = who else { return Err(Refusal::Invalid("a push has a key".to_owned())) };
        let mut notes = Vec::new();
        let default = read.branch;
        if reference != default {
            notes.push(format!("only the default branch ({}) is deployed; {} is kept", default.short(), reference.short()));
            return Ok(json(&Pushed { job: String::new(), notes }));
        }
        if is_zero(&commit) {
            notes.push("the branch was deleted; what runs goes on".to_owned());
            return Ok(json(&Pushed { job: String::new(), notes }));
        }
        let namespace = FlakeUri::Silo(name.clone()).namespace();
        let planted = self.memory.plants.contains_key(&namespace);
        let ask = Ask { repo: name.clone(), reference, commit, by, at: now() };
        if mode == Mode::Plan && !planted {
            notes.push(format!("{name} is not planted yet, so there is no plan; with an invite code: plant silo:{name} CODE"));
            return Ok(json(&Pushed { job: String::new(), notes }));
        }
        if mode == Mode::Plan {
            let job = self.start_plan(namespace, ask);
            return Ok(json(&Pushed { job: job.name, notes }));
        }
        let mut batch: Batch = Vec::new();
        let (keys, mut said) = new_keys(&repository, read.keys.as_deref());
        notes.append(&mut said);
        if keys != repository.keys {
            batch.push(Change::Repo(name.clone(), Some(Repository { keys, ..repository })));
        }
        if !planted {
            notes.push(format!("{name} is not planted yet, so nothing runs; with an invite code: plant silo:{name} CODE"));
            if !batch.is_empty() {
                self.commit(batch).await?;
            }
            return Ok(json(&Pushed { job: String::new(), notes }));
        }
        batch.push(Change::Ask(namespace.clone(), Some(ask.clone())));
        self.commit(batch).await?;
        let job = self.enqueue(namespace, ask);
        Ok(json(&Pushed { job: job.name, notes }))
    }

    async fn plant(&mut self, who: &str, uri: &str, code: &str, read: Read) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let uri: FlakeUri = uri.parse().map_err(invalid)?;
        let FlakeUri::Silo(name) = &uri;
        let name = name.clone();
        let repository = self.writable(&who, &name)?;
        let by = match &who {
            Principal::Key(key) => key.clone(),
            Principal::Operator => repository.owner.clone(),
        };
        let (namespace, hash) = (uri.namespace(), uri.hash());
        if let Some(other) = self.memory.plants.get(&namespace) {
            let why = if other.hash == hash {
                "is planted already: push to it"
            } else {
                "has the short name of another flake: rename it"
            };
            return Err(Refusal::Invalid(format!("{uri} {why} (namespace {namespace})")));
        }
        let mut batch: Batch = Vec::new();
        if who != Principal::Operator || !code.is_empty() {
            let mut invite = find_invite(&self.memory, code)?;
            let id = invite.id.clone();
            invite.uses_left -= 1;
            batch.push(Change::Invite(id, (invite.uses_left > 0).then_some(invite)));
        }
        let Read { branch: reference, head: commit, .. } = read;
        let plant = Plant { uri: uri.clone(), namespace: namespace.clone(), hash, by: by.clone(), at: now() };
        batch.push(Change::Plant(namespace.clone(), Some(plant)));
        let ask = commit.map(|commit| Ask { repo: name, reference, commit, by, at: now() });
        batch.extend(ask.clone().map(|ask| Change::Ask(namespace.clone(), Some(ask))));
        self.commit(batch).await?;
        tracing::info!(%namespace, flake = %uri, "planted");
        let job = ask.map(|ask| self.enqueue(namespace.clone(), ask).name).unwrap_or_default();
        let suffix = format!("{namespace}.{}", self.shared.settings.layout.domain);
        Ok(json(&Planted { namespace: namespace.to_string(), flake: uri.to_string(), job, suffix }))
    }

    /// Deploys the default branch as it is.
    async fn deploy_again(&mut self, who: &str, name: &str, read: Read) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let name: RepoName = name.parse().map_err(invalid)?;
        let repository = self.writable(&who, &name)?;
        let by = match &who {
            Principal::Key(key) => key.clone(),
            Principal::Operator => repository.owner.clone(),
        };
        let namespace = FlakeUri::Silo(name.clone()).namespace();
        if !self.memory.plants.contains_key(&namespace) {
            return Err(Refusal::Invalid(format!("{name} is not planted yet; with an invite code: plant silo:{name} CODE")));
        }
        let Read { branch: reference, head: commit, .. } = read;
        let Some(commit) = commit else {
            return Err(Refusal::Invalid(format!("{name} has no commits on {} yet: push it", reference.short())));
        };
        let ask = Ask { repo: name, reference, commit, by, at: now() };
        self.commit(vec![Change::Ask(namespace.clone(), Some(ask.clone()))]).await?;
        Ok(Reply::Text(self.enqueue(namespace, ask).name))
    }

    fn follow(&self, who: &str, name: &str) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let unknown = || Refusal::NotFound(format!("there is no job {name:?}, or it ended long ago"));
        let job = self.jobs.get(name).ok_or_else(unknown)?;
        let may = who == Principal::Operator
            || resolve::operated(&self.memory, &who, &job.namespace).is_some()
            || self.owns_namespace(&who, &job.namespace);
        if !may {
            return Err(unknown());
        }
        job.follow().map(Reply::Pipe).map_err(|error| Refusal::Failed(format!("could not make a pipe: {error}")))
    }

    /// Whether a repository that `who` may write to has this namespace, planted or not: a plan may be followed before it is planted.
    fn owns_namespace(&self, who: &Principal, namespace: &crate::spec::name::Namespace) -> bool {
        let mut repositories = self.memory.repos.values();
        repositories
            .any(|repo| FlakeUri::Silo(repo.name.clone()).namespace() == *namespace && access::may(who, Verb::Operate, repo))
    }

    fn logs(&self, who: &str, instance: &str, lines: u32, follow: bool) -> Result<Reply, Refusal> {
        let id = resolve::instance(&self.memory, &principal(who)?, instance)?;
        let pipe = logs::pipe(self.shared.clone(), id, lines.clamp(1, 100_000), follow);
        pipe.map(Reply::Pipe).map_err(|error| Refusal::Failed(format!("could not make a pipe: {error}")))
    }

    fn restart(&mut self, who: &str, instance: &str) -> Result<Reply, Refusal> {
        let id = resolve::instance(&self.memory, &principal(who)?, instance)?;
        if self.lanes.is_busy(&id) {
            return Err(Refusal::Failed(format!("{} is being changed right now: try again in a moment", id.name)));
        }
        let job = self.jobs.create(id.namespace.clone());
        tracing::info!(instance = %id, "restart asked for");
        self.lanes.forgive(&id);
        // A restart is the lane's work: no pass and no second restart comes between.
        self.lanes.occupy(&id);
        tokio::spawn(restart(self.shared.clone(), id, job.clone()));
        Ok(Reply::Text(job.name))
    }
}

/// The keys that a repository has after a push, and what to tell the pusher. A file that is missing, empty or unreadable changes nothing.
fn new_keys(repository: &Repository, text: Option<&str>) -> (Vec<KeyId>, Vec<String>) {
    let Some(text) = text else { return (repository.keys.clone(), Vec::new()) };
    let (keys, unreadable) = access::authorized_keys(text);
    let mut notes = Vec::new();
    if !unreadable.is_empty() {
        let lines: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
        notes.push(format!(".authorized_keys: no key on line {}: passed over", lines.join(", ")));
    }
    if keys.is_empty() {
        notes.push(".authorized_keys has no readable key: who may push stays as it was".to_owned());
        return (repository.keys.clone(), notes);
    }
    (keys, notes)
}

async fn restart<H: Host, B: Builder>(shared: std::sync::Arc<super::Shared<H, B>>, id: InstanceId, job: Job) {
    job.say(Stage::Boot, Level::Info, format!("{}: powering off, then starting again", id.name));
    let result = shared.host.restart(&id).await;
    let failure = result.as_ref().err().map(|error| chain(error));
    // The loop being gone means that the agent stops.
    drop(shared.events.send(Event::Lane(id.clone(), result)).await);
    if let Some(text) = failure {
        return job.end(Stage::Boot, Outcome::Failed, format!("{}: {text}", id.name));
    }
    let ready = wait_for_guest(&shared, &id, |text| job.say(Stage::Boot, Level::Info, format!("{}: {text}", id.name))).await;
    match ready {
        Ok(_) => job.end(Stage::Run, Outcome::Done, format!("{} is running", id.name)),
        Err(text) => {
            for line in logs::last_words(&shared.host, &id).await {
                job.say(Stage::Boot, Level::Detail, line);
            }
            job.end(Stage::Boot, Outcome::Failed, format!("{}: {text}", id.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_key_file_changes_nothing_and_says_so() {
        let key = access::fingerprint(b"x");
        let repository = Repository { name: "a".parse().unwrap(), owner: key.clone(), keys: vec![key.clone()], created: 0 };
        let (keys, notes) = new_keys(&repository, Some("nonsense here\n"));
        assert_eq!(keys, std::slice::from_ref(&key));
        assert!(notes[0].contains("line 1") && notes[1].contains("stays as it was"), "{notes:?}");
        assert_eq!(new_keys(&repository, None), (vec![key], vec![]));
    }
}

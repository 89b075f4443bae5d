//! Repositories: who may open one, what a push of one leads to, and planting it.

use super::{
    Agent, Event, chain, now,
    queue::Mode,
    request::{Answer, Reply, Request, invalid, json, principal, source},
};
use crate::{
    build::{Builder, Place, source},
    bus::{Opened, Planted, Pushed, Refusal},
    host::Host,
    spec::{
        access::{self, Grant, Principal, Repository, Verb, Visibility},
        authorized_keys,
        caller::ANYBODY,
        name::{Commit, FlakeUri, RefName, RepoName},
    },
    state::{Ask, Batch, Change, Plant, State},
};

/// How many repositories one key may create.
const MAX_REPOSITORIES: usize = 32;

/// What was read of a repository.
pub struct Read {
    branch: RefName,
    /// Where that branch is.
    head: Option<Commit>,
    /// The `.authorized_keys` of the commit that was pushed, or why it could not be read.
    keys: Result<Option<String>, String>,
}

/// For what is asked of a repository of this host, and never gets here.
fn bug() -> Refusal {
    Refusal::Failed("this is a bug in Seed: nothing of this host's repositories was asked".to_owned())
}

fn is_zero(commit: &Commit) -> bool {
    commit.as_str().bytes().all(|digit| digit == b'0')
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Answers, at once or when the repository was measured.
    pub(super) async fn open_repository(&mut self, who: &str, name: &str, access: &str, answer: Answer) {
        let reply = match self.opened(who, name, access).await {
            Ok((opened, None)) => Ok(json(&opened)),
            Ok((opened, Some(room))) => {
                return drop(tokio::spawn(async move {
                    let reply = room.await.map(|room| json(&Opened { room, ..opened }));
                    // Who has stopped waiting does not care.
                    drop(answer.send(reply));
                }));
            }
            Err(refusal) => Err(refusal),
        };
        drop(answer.send(reply));
    }

    /// What the door is to know; for a push to a repository that is there, its room has to be measured.
    async fn opened(
        &mut self,
        who: &str,
        name: &str,
        access: &str,
    ) -> Result<(Opened, Option<impl Future<Output = Result<u64, Refusal>> + Send + use<H, S, B>>), Refusal> {
        if who == ANYBODY {
            return self.opened_by_anybody(name, access).map(|opened| (opened, None));
        }
        let who = principal(who)?;
        let name: RepoName = name.parse().map_err(invalid)?;
        let verb = match access {
            "read" => Verb::Read,
            "write" => Verb::Write,
            other => return Err(Refusal::Invalid(format!("access {other:?} is neither read nor write"))),
        };
        let planted = self.memory.plants.contains_key(&FlakeUri::Silo(name.clone()).namespace());
        if let Some(repository) = self.memory.repos.get(&name) {
            if access::may(&who, verb, repository, now()) {
                let opened = Opened { name: name.to_string(), created: false, planted, room: 0 };
                return Ok((opened, (verb == Verb::Write).then(|| self.room_in(&name))));
            }
            return Err(denied(&who, verb, repository));
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
        // What lies there was somebody else's.
        super::access::clear(&self.shared.settings.repositories, &name)?;
        let repository = Repository::new(name.clone(), owner, now());
        self.commit(vec![Change::Repo(name.clone(), Some(repository))]).await?;
        tracing::info!(repository = %name, "repository created");
        let room = self.quota_of(&FlakeUri::Silo(name.clone()).namespace()).repository.0;
        Ok((Opened { name: name.to_string(), created: true, planted, room }, None))
    }

    /// Who shows no key reads what is public, and is told nothing of the rest.
    fn opened_by_anybody(&self, name: &str, access: &str) -> Result<Opened, Refusal> {
        let name: RepoName = name.parse().map_err(invalid)?;
        if access != "read" {
            return Err(Refusal::Denied("only the holder of an SSH key may write".to_owned()));
        }
        let found = self.memory.repos.get(&name).filter(|repository| repository.visibility == Visibility::Public);
        found.ok_or_else(|| Refusal::NotFound(format!("there is no repository {name} that anybody may read")))?;
        let planted = self.memory.plants.contains_key(&FlakeUri::Silo(name.clone()).namespace());
        Ok(Opened { name: name.to_string(), created: false, planted, room: 0 })
    }

    /// The repository of that name, if `who` may write to it.
    fn writable(&self, who: &Principal, name: &RepoName) -> Result<&Repository, Refusal> {
        match self.memory.repos.get(name) {
            Some(repository) if access::may(who, Verb::Write, repository, now()) => Ok(repository),
            Some(repository) if access::may(who, Verb::Read, repository, now()) => Err(denied(who, Verb::Write, repository)),
            // One that they may not even read is there for nobody.
            _ => Err(Refusal::NotFound(format!("there is no repository {name}: push it first"))),
        }
    }

    /// Reads what a push or a plant needs to know of its repository, beside the loop, and comes back to it with [`Event::Read`].
    pub(super) fn read_first(&mut self, request: Request, answer: Answer) {
        let (name, commit) = match self.readable(&request) {
            Ok(found) => found,
            // Who has stopped waiting does not care.
            Err(refusal) => return drop(answer.send(Err(refusal))),
        };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let place = Place::Silo(shared.settings.repositories.join(format!("{name}.git")));
            let reader = &shared.settings.reader;
            let read = match commit {
                Some((reference, commit)) => reader.pushed(&place, reference, commit).await,
                None => reader.head(&place).await,
            };
            match read {
                // The loop being gone means that the agent stops.
                Ok(source::Head { branch, commit, keys }) => {
                    drop(shared.events.send(Event::Read(request, Read { branch, head: commit, keys }, answer)).await)
                }
                Err(error) => drop(answer.send(Err(Refusal::Failed(chain(&error))))),
            }
        });
    }

    /// Takes a push of which the doors have read what there is to know. They could as well have put anything into the repository, which is
    /// theirs, and who may decide what is the agent's to say all the same.
    pub(super) async fn push_read(&mut self, request: Request, answer: Answer) {
        let read = match &request {
            Request::Push { read: Some(read), .. } => {
                let large = read.keys.as_ref().is_some_and(|keys| keys.len() as u64 > source::MAX_KEYS_FILE);
                let keys = if large { Err("it is larger than 256 KiB".to_owned()) } else { Ok(read.keys.clone()) };
                Read { branch: read.branch.clone(), head: None, keys }
            }
            // Who has stopped waiting does not care.
            _ => return drop(answer.send(Err(bug()))),
        };
        self.read(request, read, answer).await;
    }

    /// The repository that a push or a plant is about, if the asker may write to it, and the commit whose keys count.
    fn readable(&self, request: &Request) -> Result<(RepoName, Option<(RefName, Commit)>), Refusal> {
        match request {
            Request::Push { who, repository, reference, new, .. } => {
                let name: RepoName = repository.parse().map_err(invalid)?;
                let (reference, commit): (RefName, Commit) = (reference.parse().map_err(invalid)?, new.parse().map_err(invalid)?);
                self.writable(&principal(who)?, &name)?;
                Ok((name, (!is_zero(&commit)).then_some((reference, commit))))
            }
            Request::Plant { who, uri, .. } => {
                let FlakeUri::Silo(name) = uri.parse().map_err(invalid)? else { return Err(bug()) };
                self.writable(&principal(who)?, &name)?;
                Ok((name, None))
            }
            Request::Deploy { who, repository } => {
                let name: RepoName = repository.parse().map_err(invalid)?;
                self.writable(&principal(who)?, &name)?;
                Ok((name, None))
            }
            _ => Err(bug()),
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
            _ => Err(bug()),
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
        let Principal::Key(by) = who.clone() else { return Err(Refusal::Invalid("a push has a key".to_owned())) };
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
        let (keys, said) = new_keys(&repository, &who, read.keys, now());
        notes.extend(said.into_iter().map(|note| match note.strip_prefix(ACCESS) {
            // Its branch has moved, and deploying it later does not do this: whoever takes a key out has to know.
            Some(change) if mode == Mode::Plan => format!("access, once it is pushed without -o plan: {change}"),
            _ => note,
        }));
        if mode == Mode::Plan && !planted {
            notes.push(format!("{name} is not planted yet, so there is no plan; with an invite code: plant silo:{name} CODE"));
            return Ok(json(&Pushed { job: String::new(), notes }));
        }
        if mode == Mode::Plan {
            let job = self.start_plan(namespace, ask)?;
            return Ok(json(&Pushed { job: job.name, notes }));
        }
        let mut batch: Batch = Vec::new();
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
        batch.extend(self.superseded(&namespace));
        self.commit(batch).await?;
        let job = self.enqueue(namespace, ask);
        Ok(json(&Pushed { job: job.name, notes }))
    }

    async fn plant(&mut self, who: &str, uri: &str, code: &str, read: Read) -> Result<Reply, Refusal> {
        let (from, who) = (source(who), principal(who)?);
        let uri: FlakeUri = uri.parse().map_err(invalid)?;
        let FlakeUri::Silo(name) = &uri else { return Err(bug()) };
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
        self.is_no_heir(&who, &uri, &repository.owner)?;
        let mut batch: Batch = Vec::new();
        if who != Principal::Operator || !code.is_empty() {
            let invite = self.use_invite(&who, from, code, &uri)?;
            batch.push(Change::Invite(invite.id.clone(), Some(invite)));
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
        Ok(json(&Planted { version: 1, namespace: namespace.to_string(), flake: uri.to_string(), job, suffix }))
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
        let mut batch = self.superseded(&namespace);
        batch.push(Change::Ask(namespace.clone(), Some(ask.clone())));
        self.commit(batch).await?;
        Ok(Reply::Text(self.enqueue(namespace, ask).name))
    }
}

/// Why `who` may not do `verb` to a repository that is there. One that they may not even read is there for nobody.
pub(super) fn denied(who: &Principal, verb: Verb, repository: &Repository) -> Refusal {
    let name = &repository.name;
    let key = match who {
        Principal::Key(key) => key.as_str(),
        Principal::Operator => "operator",
    };
    match (access::standing(who, repository, now()), verb) {
        (Some(standing), _) => Refusal::Denied(format!(
            "your key {key} is {standing} in {name}, which is not enough for this: ask its owner for another role in .authorized_keys"
        )),
        (None, Verb::Read | Verb::See) => Refusal::NotFound(format!("there is no repository {name} that your key {key} may read")),
        (None, _) => Refusal::Denied(format!(
            "the repository {name} is another's: your key {key} is not in its .authorized_keys, or no longer; ask its owner to push it \
             there, or choose another name"
        )),
    }
}

/// What a note about a change of who has access begins with.
pub(super) const ACCESS: &str = "access: ";
/// How many lines of a key file, or changes by one, a push is told about.
const TOLD: usize = 10;

/// The keys that a repository has after a push by `who`, and what to tell the pusher. A file that is missing, empty or unreadable changes
/// nothing, and neither does one that was pushed by a key that may not decide about the repository.
pub(super) fn new_keys(
    repository: &Repository,
    who: &Principal,
    file: Result<Option<String>, String>,
    now: u64,
) -> (Vec<Grant>, Vec<String>) {
    let before = || repository.keys.clone();
    let text = match file {
        Ok(Some(text)) => text,
        Ok(None) if repository.keys.is_empty() => return (before(), Vec::new()),
        Ok(None) => {
            return (before(), vec!["there is no .authorized_keys file in this commit: who has access stays as it was".to_owned()]);
        }
        Err(why) => return (before(), vec![format!(".authorized_keys could not be read ({why}): who has access stays as it was")]),
    };
    let (grants, passed) = authorized_keys::read(&text);
    let mut notes: Vec<String> = passed
        .iter()
        .take(TOLD)
        .map(|passed| format!(".authorized_keys: line {} {}: passed over", passed.line, passed.why))
        .collect();
    if passed.len() > TOLD {
        notes.push(format!(".authorized_keys: {} more lines were passed over", passed.len() - TOLD));
    }
    if grants.is_empty() {
        notes.push(".authorized_keys has no readable key: who has access stays as it was".to_owned());
        return (before(), notes);
    }
    let new = grants.iter().filter(|grant| !repository.keys.contains(grant)).map(|grant| format!("now {grant}"));
    let gone = repository.keys.iter().filter(|grant| !grants.contains(grant)).map(|grant| format!("no longer {grant}"));
    let changes: Vec<String> = new.chain(gone).collect();
    if changes.is_empty() {
        return (before(), notes);
    }
    if !access::may(who, Verb::Administer, repository, now) {
        notes.push(".authorized_keys was changed, but your key is none of an admin: who has access stays as it was".to_owned());
        return (before(), notes);
    }
    notes.extend(changes.iter().take(TOLD).map(|change| format!("{ACCESS}{change}")));
    if changes.len() > TOLD {
        notes.push(format!("{ACCESS}{} more changes", changes.len() - TOLD));
    }
    (grants, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_key_file_changes_and_what_is_said() {
        let line = |n: u8| {
            let blob: Vec<u8> = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 1, n]].concat();
            (access::fingerprint(&blob), format!("ssh-ed25519 {} x\n", data_encoding::BASE64.encode(&blob)))
        };
        let (key, text) = line(1);
        let (other, other_text) = line(2);
        let owner = access::fingerprint(b"owner");
        let grants = vec![Grant::deploy(key.clone())];
        let repository = Repository { keys: grants.clone(), ..Repository::new("a".parse().unwrap(), owner.clone(), 0) };
        let both = vec![grants[0].clone(), Grant::deploy(other)];
        let admin = format!("environment=\"SEED_ROLE=admin\" {text}");
        let file = |text: &str| Ok(Some(text.to_owned()));
        let table = [
            // pusher, file, what it makes of the keys, what is said
            (&owner, file(&text), &grants, ""),
            (&owner, file(&format!("{text}{other_text}")), &both, "access: now"),
            (&owner, file(&other_text), &both[1..].to_vec(), "access: no longer"),
            (&owner, file("nonsense\n"), &grants, "stays as it was"),
            (&owner, file(&format!("nonsense\n{text}")), &grants, "line 1 is no key"),
            (&owner, file("# nobody\n"), &grants, "stays as it was"),
            (&owner, file(""), &grants, "stays as it was"),
            (&owner, file(&"x\n".repeat(30)), &grants, "20 more lines"),
            (&owner, Ok(None), &grants, "stays as it was"),
            (&owner, Err("it is larger than 256 KiB".to_owned()), &grants, "256 KiB"),
            (&key, file(&text), &grants, ""),
            (&key, file(&admin), &grants, "none of an admin"),
            (&key, file(&other_text), &grants, "none of an admin"),
        ];
        for (who, file, expected, said) in table {
            let (keys, notes) = new_keys(&repository, &Principal::Key(who.clone()), file.clone(), 0);
            assert_eq!(&keys, expected, "{file:?}");
            assert_eq!(notes.is_empty(), said.is_empty(), "{file:?}: {notes:?}");
            assert!(notes.iter().any(|note| note.contains(said)) || said.is_empty(), "{file:?}: {notes:?}");
        }
        let fresh = Repository { keys: vec![], ..repository };
        assert_eq!(new_keys(&fresh, &Principal::Key(owner), Ok(None), 0), (vec![], vec![]));
    }
}

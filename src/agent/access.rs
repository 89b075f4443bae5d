//! Repositories as things that one owns: which there are, who may read them, what they are called, and their end. And the audit log.

use std::path::{Path, PathBuf};

use super::{
    Agent, chain, now,
    request::{Answer, Reply, invalid, json, principal},
};
use crate::{
    build::Builder,
    bus::{
        Refusal,
        access::{AuditEntry, AuditTrail, RepositoryList, RepositorySummary},
        shell::AuditChecked,
    },
    host::Host,
    spec::{
        access::{self, Principal, Repository, Verb, Visibility},
        name::{FlakeUri, RepoName},
    },
    state::{
        Change, State,
        audit::{self, Act, Entry},
    },
};

/// A question of this kind, in plain text as it came over the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    Repositories { who: String },
    Visibility { who: String, name: String, visibility: String },
    Rename { who: String, name: String, to: String },
    Delete { who: String, name: String, again: String },
    Quota { who: String, filter: String },
    SetQuota { namespace: String, changes: String },
    Audit { who: String, since: u64, lines: u32 },
    VerifyAudit,
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Answers, at once or from a task.
    pub(super) async fn access(&mut self, question: Question, answer: Answer) {
        let reply = match question {
            Question::Repositories { who } => self.repositories(&who),
            Question::Visibility { who, name, visibility } => self.set_visibility(&who, &name, &visibility).await,
            Question::Rename { who, name, to } => self.rename_repository(&who, &name, &to).await,
            Question::Delete { who, name, again } => self.delete_repository(&who, &name, &again).await,
            Question::Quota { who, filter } => return self.quota(&who, &filter, answer),
            Question::SetQuota { namespace, changes } => self.set_quota(&namespace, &changes).await,
            Question::Audit { who, since, lines } => return self.audit(&who, since, lines, answer),
            Question::VerifyAudit => return self.verify_audit(answer),
        };
        // Who has stopped waiting does not care.
        drop(answer.send(reply));
    }

    fn repositories(&self, who: &str) -> Result<Reply, Refusal> {
        let (who, now) = (principal(who)?, now());
        let one = |repository: &Repository| {
            let standing = access::standing(&who, repository, now)?;
            let namespace = FlakeUri::Silo(repository.name.clone()).namespace();
            let planted = self.memory.plants.contains_key(&namespace);
            Some(RepositorySummary {
                name: repository.name.to_string(),
                standing,
                visibility: repository.visibility,
                owner: repository.owner.to_string(),
                access: repository.keys.iter().map(ToString::to_string).collect(),
                created: repository.created,
                namespace: if planted { namespace.to_string() } else { String::new() },
            })
        };
        let repositories = self.memory.repos.values().filter_map(one).collect();
        Ok(json(&RepositoryList { version: 1, repositories }))
    }

    /// The repository of that name, if `who` may decide about it.
    fn administered(&self, who: &Principal, name: &str) -> Result<Repository, Refusal> {
        let name: RepoName = name.parse().map_err(invalid)?;
        match self.memory.repos.get(&name) {
            Some(repository) if access::may(who, Verb::Administer, repository, now()) => Ok(repository.clone()),
            Some(repository) if access::may(who, Verb::Read, repository, now()) => {
                Err(super::repository::denied(who, Verb::Administer, repository))
            }
            // One that they may not even read is there for nobody.
            _ => Err(Refusal::NotFound(format!("you have no repository {name}: repo list shows those that there are"))),
        }
    }

    /// As [`Self::administered`], for what cannot be done while something runs under the repository's name.
    fn unplanted(&self, who: &Principal, name: &str, deed: &str) -> Result<Repository, Refusal> {
        let repository = self.administered(who, name)?;
        let namespace = FlakeUri::Silo(repository.name.clone()).namespace();
        if self.memory.plants.contains_key(&namespace) {
            return Err(Refusal::Invalid(format!(
                "{name} is planted as {namespace}, and names, addresses and volumes hang on that: unplant it before you {deed} it"
            )));
        }
        Ok(repository)
    }

    async fn set_visibility(&mut self, who: &str, name: &str, visibility: &str) -> Result<Reply, Refusal> {
        let repository = self.administered(&principal(who)?, name)?;
        let visibility = match visibility {
            "public" => Visibility::Public,
            "private" => Visibility::Private,
            other => return Err(Refusal::Invalid(format!("{other:?} is neither public nor private"))),
        };
        self.commit(vec![Change::Repo(repository.name.clone(), Some(Repository { visibility, ..repository }))]).await?;
        Ok(Reply::Nothing)
    }

    /// Under its new name first in what is remembered: a crash before the directory has followed leaves an empty repository to push to,
    /// and the old directory, which the next owner of the old name does not get (see [`clear`]).
    async fn rename_repository(&mut self, who: &str, name: &str, to: &str) -> Result<Reply, Refusal> {
        let repository = self.unplanted(&principal(who)?, name, "rename")?;
        let to: RepoName = to.parse().map_err(invalid)?;
        if self.memory.repos.contains_key(&to) {
            return Err(Refusal::Invalid(format!("there is a repository {to} already: choose another name")));
        }
        let old = repository.name.clone();
        let renamed = Repository { name: to.clone(), named: now(), ..repository };
        let repositories = self.shared.settings.repositories.clone();
        clear(&repositories, &to)?;
        self.commit(vec![Change::Repo(old.clone(), None), Change::Repo(to.clone(), Some(renamed))]).await?;
        let moved = match std::fs::rename(path_of(&repositories, &old), path_of(&repositories, &to)) {
            // What is pushed from here on is looked for under this name, also after a power cut.
            Ok(()) => std::fs::File::open(&repositories).and_then(|folder| folder.sync_all()),
            moved => moved,
        };
        match moved {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Refusal::Failed(format!(
                "{old} is {to} now, but its commits could not be moved ({error}): push them again, or ask the operator"
            ))),
            _ => Ok(Reply::Nothing),
        }
    }

    async fn delete_repository(&mut self, who: &str, name: &str, again: &str) -> Result<Reply, Refusal> {
        let repository = self.unplanted(&principal(who)?, name, "delete")?;
        if again != name {
            return Err(Refusal::Invalid(format!(
                "this deletes {name} and all its commits for ever: say its name once more if you mean it, as in repo delete {name} {name}"
            )));
        }
        let repositories = self.shared.settings.repositories.clone();
        // First the commits: whoever gets the name next must not get them.
        clear(&repositories, &repository.name)?;
        self.commit(vec![Change::Repo(repository.name, None)]).await?;
        Ok(Reply::Nothing)
    }

    /// What `who` did, and what was done to the repositories that they decide about, as long as these are theirs.
    fn audit(&self, who: &str, since: u64, lines: u32, answer: Answer) {
        let who = match principal(who) {
            Ok(who) => who,
            Err(refusal) => return drop(answer.send(Err(refusal))),
        };
        let now = now();
        let mine = |repository: &&Repository| access::may(&who, Verb::Administer, repository, now);
        let mut known: std::collections::BTreeMap<String, u64> =
            self.memory.repos.values().filter(mine).map(|repository| (repository.name.to_string(), since_of(repository))).collect();
        for plant in self.memory.plants.values() {
            if let (FlakeUri::Remote(_), Some(repository)) = (&plant.uri, self.memory.repository_of(plant).filter(mine)) {
                known.insert(super::resolve::recorded(plant), since_of(repository));
            }
        }
        let mine = known;
        let directory = self.record.audit.directory().to_owned();
        tokio::task::spawn_blocking(move || {
            let wanted = |entry: &Entry| match &who {
                Principal::Operator => true,
                Principal::Key(key) => {
                    entry.act.who == key.as_str() || mine.get(&entry.act.repository).is_some_and(|created| entry.act.at >= *created)
                }
            };
            let most = lines.clamp(1, 10_000) as usize;
            let found = audit::read(&directory, since, most, wanted);
            let reply = found
                .map(|entries| json(&AuditTrail { version: 1, entries: entries.into_iter().map(shown).collect() }))
                .map_err(|error| Refusal::Failed(format!("the audit log cannot be read: {}", chain(&error))));
            // Who has stopped waiting does not care.
            drop(answer.send(reply));
        });
    }

    fn verify_audit(&self, answer: Answer) {
        let directory = self.record.audit.directory().to_owned();
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let known = match shared.host.audited().await {
                Ok(lines) => lines.iter().filter_map(|line| audit::checkpoint(line)).collect::<Vec<_>>(),
                Err(error) => {
                    let refusal = Refusal::Failed(format!("the system's journal cannot be read: {}", chain(&error)));
                    return drop(answer.send(Err(refusal)));
                }
            };
            let verified = tokio::task::spawn_blocking(move || audit::verify(&directory, &known)).await;
            let reply = verified
                .map_err(|error| Refusal::Failed(error.to_string()))
                .and_then(|verified| verified.map_err(|error| Refusal::Failed(chain(&error))))
                .map(|audit::Verified { entries, first, since, hash }| {
                    json(&AuditChecked { version: 1, entries, first, since, hash })
                });
            // Who has stopped waiting does not care.
            drop(answer.send(reply));
        });
    }
}

/// From when on what is written down under a repository's name is about it, and not about one that had the name before.
fn since_of(repository: &Repository) -> u64 {
    let named = if repository.named == 0 { 0 } else { repository.named + 1 };
    repository.created.max(named)
}

fn shown(entry: Entry) -> AuditEntry {
    let Act { at, who, source, verb, arguments, repository, result } = entry.act;
    AuditEntry { number: entry.number, at, who, source, verb, arguments, repository, result }
}

fn path_of(repositories: &Path, name: &RepoName) -> PathBuf {
    repositories.join(format!("{name}.git"))
}

/// Takes away what lies where the repository of that name is to be: at once out of its place, and then from the disk. The doors remove
/// `.new-…` when they start, should this be interrupted.
pub(super) fn clear(repositories: &Path, name: &RepoName) -> Result<(), Refusal> {
    let from = path_of(repositories, name);
    let aside = (0..1000).map(|n| repositories.join(format!(".new-deleted-{}-{n}", now()))).find(|path| !path.exists());
    let Some(aside) = aside else { return Err(Refusal::Failed("too much is being deleted at once: try again".to_owned())) };
    match std::fs::rename(&from, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Refusal::Failed(format!("could not take {name} away: {error}"))),
    }
    tokio::task::spawn_blocking(move || {
        if let Err(error) = std::fs::remove_dir_all(&aside) {
            tracing::warn!(%error, path = %aside.display(), "a deleted repository is still on the disk");
        }
    });
    Ok(())
}

//! What is asked of the agent, and the answers. Every question is authorised here: doors say who asks, they do not decide.

use std::os::fd::OwnedFd;

use tokio::sync::oneshot;

use super::{Agent, access::Question, acme, chain, domain, enter::Enter, history::History, logs, now, remote, resolve};
use crate::{
    build::Builder,
    bus::{PushRead, Refusal, shell::StepList},
    host::Host,
    spec::{
        access::{self, Principal, Reach, Verb},
        caller::Caller,
        name::{FlakeUri, NameError},
    },
    state::{Plant, State},
};

/// A question, in plain text as it came over the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Status { who: String, filter: String },
    Plan,
    OpenRepository { who: String, name: String, access: String },
    Push { who: String, repository: String, reference: String, old: String, new: String, mode: String, read: Option<PushRead> },
    Plant { who: String, uri: String, code: String },
    Deploy { who: String, repository: String },
    Follow { who: String, job: String },
    Logs { who: String, instance: String, query: String },
    Restart { who: String, instance: String },
    Enter(Enter),
    NewInvite { uses: u32, expires_secs: u64, note: String },
    ListInvites,
    RevokeInvite { id: String },
    Acme(acme::Request),
    Domain(domain::Question),
    Access(Question),
    Remote(remote::Question),
    History(History),
}

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// A document, a name, a code.
    Text(String),
    /// The end of a pipe to read from.
    Pipe(OwnedFd),
    /// A stream into a guest, and a document about it.
    Way(OwnedFd, String),
    Nothing,
}

impl Reply {
    /// The text that a question of its kind is answered with.
    pub fn text(self) -> Result<String, Refusal> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Pipe(_) | Self::Way(..) | Self::Nothing => Err(Refusal::Failed("this is a bug in Seed: not a text".to_owned())),
        }
    }
}

pub type Answer = oneshot::Sender<Result<Reply, Refusal>>;

/// The text of a refusal, without its kind.
pub fn text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NotFound(text) | Refusal::Denied(text) | Refusal::Invalid(text) | Refusal::Failed(text) => text.clone(),
        Refusal::ZBus(error) => error.to_string(),
    }
}

pub(super) fn invalid(error: NameError) -> Refusal {
    Refusal::Invalid(error.to_string())
}

pub(super) fn principal(who: &str) -> Result<Principal, Refusal> {
    if who.is_empty() {
        return Ok(Principal::Operator);
    }
    who.parse::<Caller>().map(|caller| Principal::Key(caller.key().clone())).map_err(invalid)
}

/// Where who asks called from, if a door said so.
pub(super) fn source(who: &str) -> Option<std::net::IpAddr> {
    who.parse::<Caller>().ok().and_then(|caller| caller.source())
}

pub(super) fn json(document: &impl serde::Serialize) -> Reply {
    Reply::Text(serde_json::to_string(document).expect("plain data is JSON"))
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Answers a question, at once or from a task.
    pub(super) async fn request(&mut self, request: Request, answer: Answer) {
        let answer = self.record.before(&self.memory, &request, answer);
        let reply = match request {
            Request::Status { who, filter } => return self.status(&who, &filter, answer),
            Request::Plan => return self.plan(answer),
            Request::OpenRepository { who, name, access } => return self.open_repository(&who, &name, &access, answer).await,
            Request::Plant { who, uri, code } if remote::is_remote(&uri) => {
                let question = remote::Question::Plant { who, uri, code, line: String::new(), lent: remote::Lent::Nothing };
                return self.remote(question, answer).await;
            }
            Request::Deploy { who, repository } if self.is_elsewhere(&who, &repository) => {
                return self.deploy_remote(&who, &repository, answer);
            }
            Request::Remote(question) => return self.remote(question, answer).await,
            Request::Push { read: Some(_), .. } => return self.push_read(request, answer).await,
            Request::Push { .. } | Request::Plant { .. } | Request::Deploy { .. } => return self.read_first(request, answer),
            Request::Follow { who, job } => self.follow(&who, &job),
            Request::Logs { who, instance, query } => self.logs(&who, &instance, &query),
            Request::Restart { who, instance } => self.restart(&who, &instance),
            Request::Enter(ask) => return self.enter(ask, answer),
            Request::NewInvite { uses, expires_secs, note } => self.new_invite(uses, expires_secs, note).await,
            Request::ListInvites => Ok(self.invites()),
            Request::RevokeInvite { id } => self.revoke_invite(&id).await,
            Request::Acme(request) => self.acme(request).await,
            Request::Domain(question) => self.domain(question).await,
            Request::Access(question) => return self.access(question, answer).await,
            Request::History(History::Unplant { who, repository, again }) => {
                return self.unplant(&who, &repository, &again, answer).await;
            }
            Request::History(request) => self.history(request).await,
        };
        // Who has stopped waiting does not care.
        drop(answer.send(reply));
    }

    fn status(&self, who: &str, filter: &str, answer: Answer) {
        let picture = principal(who).and_then(|who| {
            let plants = resolve::plants(&self.memory, &who, filter)?;
            Ok(self.picture(&who, &plants, filter))
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

    fn plan(&mut self, answer: Answer) {
        let (shared, target) = (self.shared.clone(), self.target());
        tokio::spawn(async move {
            let reply = match shared.host.observe().await {
                Ok(observed) => {
                    let steps = crate::plan::plan(&target, &observed);
                    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
                    Ok(json(&StepList { version: 1, steps }))
                }
                Err(error) => Err(Refusal::Failed(format!("could not look at the machine: {}", chain(&error)))),
            };
            drop(answer.send(reply));
        });
    }

    fn follow(&self, who: &str, name: &str) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let unknown = || Refusal::NotFound(format!("there is no job {name:?}, or it ended long ago"));
        let job = self.jobs.get(name).ok_or_else(unknown)?;
        // A key for one instance has nothing to do with what becomes of the others.
        let seen = |plant: &Plant| match resolve::reach(&self.memory, &who, Verb::See, plant) {
            Reach::Nothing => false,
            Reach::Only(instances) => job.instance.as_ref().is_some_and(|instance| instances.contains(instance)),
            Reach::Everything => true,
        };
        let may = who == Principal::Operator
            || matches!((&who, &job.by), (Principal::Key(who), Some(by)) if who == by)
            || self.memory.plants.get(&job.namespace).is_some_and(seen)
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
            .any(|repo| FlakeUri::Silo(repo.name.clone()).namespace() == *namespace && access::may(who, Verb::See, repo, now()))
    }

    fn logs(&self, who: &str, instance: &str, query: &str) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let id = resolve::instance(&self.memory, &who, Verb::See, instance)?;
        let query = logs::checked(query)?;
        // It is the log of all its instances.
        let whole = self.memory.plants.get(&id.namespace).is_some_and(|plant| resolve::may(&self.memory, &who, Verb::See, plant));
        if query.build && !whole {
            return Err(Refusal::Denied(
                "your key may look at this instance, but the log of a deploy is of all of them".to_owned(),
            ));
        }
        let pipe = match query.build {
            true => {
                let path = logs::kept(&self.shared.settings.layout, &id.namespace);
                logs::of_deploy(self.last_deploy.get(&id.namespace).cloned(), path, query)?
            }
            false => logs::pipe(self.shared.clone(), id, query),
        };
        pipe.map(Reply::Pipe).map_err(|error| Refusal::Failed(format!("could not make a pipe: {error}")))
    }
}

//! Which questions change something, and what is written down of them. Secrets (invite codes) are not.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    access::Question,
    domain,
    history::History,
    now,
    patience::Patience,
    remote,
    request::{Answer, Reply, Request, principal, text},
    resolve,
};
use crate::{
    bus::Refusal,
    spec::{
        access::{Principal, Verb},
        caller::Caller,
        name::{Commit, RefName},
    },
    state::{
        Memory, Plant,
        audit::{Act, Audit},
    },
};

/// The longest argument and result that are written down.
const LONGEST: usize = 200;

/// The log, and how many refusals were written into it lately.
pub(super) struct Record {
    pub audit: Arc<Audit>,
    /// Whoever has a key can be refused as often as they like: the log is not theirs to fill.
    refusals: Arc<std::sync::Mutex<Patience<String>>>,
}

impl Record {
    pub fn new(audit: Audit) -> Self {
        Self { audit: Arc::new(audit), refusals: Arc::new(std::sync::Mutex::new(Patience::new(20, 60))) }
    }

    /// Where the answer to `request` is to go: if it changes something, it is written down first.
    pub fn before(&self, memory: &Memory, request: &Request, answer: Answer) -> Answer {
        let Some(mut act) = act_of(memory, request) else { return answer };
        let (inner, reply) = oneshot::channel();
        let (audit, refusals) = (Arc::clone(&self.audit), Arc::clone(&self.refusals));
        tokio::spawn(async move {
            let Ok(reply) = reply.await else { return };
            let Some(result) = result_of(&act, &reply) else { return drop(answer.send(reply)) };
            act.result = cut(&result);
            act.at = now();
            let written_down = reply.is_ok() || {
                let mut refusals = refusals.lock().expect("no panic while held");
                let patient = refusals.wait(&act.source, act.at) == 0;
                if patient {
                    refusals.count(&act.source, act.at);
                }
                patient
            };
            let reply = match written_down {
                true => match audit.write(act).await {
                    Ok(()) => reply,
                    Err(error) => {
                        let what = if reply.is_ok() { "it was done, but" } else { "and" };
                        Err(Refusal::Failed(format!("{what} this host could not write its audit log: {error}")))
                    }
                },
                false => reply,
            };
            // Who has stopped waiting does not care.
            drop(answer.send(reply));
        });
        inner
    }

    /// A commit of a repository from elsewhere is taken up, which nobody with a key has asked for: a webhook came, or it was time.
    pub async fn fetched(&self, plant: &Plant, branch: &RefName, commit: &Commit, job: &str, notes: &[String]) {
        let act = Act {
            at: now(),
            who: "agent".to_owned(),
            verb: "fetch".to_owned(),
            arguments: vec![plant.uri.to_string(), branch.to_string(), commit.to_string()],
            repository: resolve::recorded(plant),
            result: cut(&done(job, notes.iter().cloned())),
            ..Act::default()
        };
        if let Err(error) = self.audit.write(act).await {
            tracing::error!(%error, "a fetch is not in the audit log");
        }
    }
}

/// Whether what is said of a commit tells of a change of who may what.
pub(super) fn is_about_access(note: &str) -> bool {
    note.starts_with(super::repository::ACCESS)
}

/// That it was done: the job that follows from it, and whom it lets in or no longer.
fn done(job: &str, notes: impl Iterator<Item = String>) -> String {
    let job = if job.is_empty() { "ok".to_owned() } else { format!("ok: {job}") };
    std::iter::once(job).chain(notes.filter(|note| is_about_access(note))).collect::<Vec<_>>().join("; ")
}

/// A tenant's text on one line, and not too much of it.
fn cut(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(clean).take(LONGEST).collect()
}

/// What is asked, if it changes something. The result and the time come later.
fn act_of(memory: &Memory, request: &Request) -> Option<Act> {
    let act = |who: &str, verb: &str, repository: &str, arguments: &[&str]| {
        let caller = who.parse::<Caller>().ok();
        let name = match (&caller, who) {
            (Some(caller), _) => caller.key().to_string(),
            (None, "") => "operator".to_owned(),
            (None, other) => cut(other),
        };
        Some(Act {
            at: 0,
            who: name,
            source: caller.and_then(|caller| caller.source()).map(|source| source.to_string()).unwrap_or_default(),
            verb: verb.to_owned(),
            arguments: arguments.iter().map(|argument| cut(argument)).collect(),
            repository: cut(repository),
            result: String::new(),
        })
    };
    match request {
        Request::OpenRepository { who, name, access } if access == "write" => act(who, "create", name, &[name]),
        Request::Push { who, repository, reference, new, mode, .. } => {
            // What is only planned has moved the branch all the same.
            let option = if mode == "plan" { &["-o plan"][..] } else { &[] };
            act(who, "push", repository, &[&[repository.as_str(), reference, new][..], option].concat())
        }
        Request::Plant { who, uri, .. } => {
            let name = uri.strip_prefix("silo:").unwrap_or(uri);
            act(who, "plant", name.strip_suffix(".git").unwrap_or(name), &[uri])
        }
        Request::Deploy { who, repository } => {
            // What is of this host comes first there.
            let here = repository.parse().is_ok_and(|name| memory.repos.contains_key(&name));
            let name = if here { repository.clone() } else { called(memory, who, repository) };
            act(who, "deploy", &name, &[repository])
        }
        Request::Restart { who, instance } => act(who, "restart", &repository_of(memory, who, instance), &[instance]),
        Request::Enter(ask) => {
            act(&ask.who, &ask.act, &repository_of(memory, &ask.who, &ask.instance), &[&ask.instance, &ask.what])
        }
        Request::NewInvite { uses, expires_secs, note } => act(
            "",
            "invite new",
            "",
            &[&format!("--uses {uses}"), &format!("--expires {expires_secs}s"), &format!("--note {note}")],
        ),
        Request::RevokeInvite { id } => act("", "invite revoke", "", &[id]),
        Request::Access(question) => match question {
            Question::Visibility { who, name, visibility } => act(who, "repo visibility", name, &[name, visibility]),
            Question::Rename { who, name, to } => act(who, "repo rename", name, &[name, to]),
            Question::Delete { who, name, .. } => act(who, "repo delete", name, &[name]),
            Question::SetQuota { namespace, changes } => {
                let plants = resolve::plants(memory, &Principal::Operator, namespace).unwrap_or_default();
                let repository = plants.first().map(|plant| resolve::recorded(plant)).unwrap_or_default();
                act("", "quota", &repository, &[namespace, changes])
            }
            Question::Repositories { .. } | Question::Quota { .. } | Question::Audit { .. } | Question::VerifyAudit => None,
        },
        Request::Domain(question) => match question {
            domain::Question::Add { who, instance, name } => {
                act(who, "domain add", &repository_of(memory, who, instance), &[instance, name])
            }
            domain::Question::Remove { who, name } => {
                let claimed = principal(who).and_then(|who| domain::claimed(memory, &who, name)).ok();
                let plant = claimed.and_then(|(_, namespace)| memory.plants.get(&namespace));
                act(who, "domain remove", &plant.map(resolve::recorded).unwrap_or_default(), &[name])
            }
            // What the DNS says is nobody's act.
            domain::Question::List { .. } | domain::Question::Due | domain::Question::Seen { .. } => None,
        },
        Request::Remote(question) => match question {
            remote::Question::Plant { who, uri, .. } => act(who, "plant", uri, &[uri]),
            remote::Question::PlantKey { who, uri, .. } => act(who, "plant key", uri, &[uri]),
            remote::Question::Key { who, repository } => act(who, "remote key", &called(memory, who, repository), &[repository]),
            remote::Question::Trust { who, repository, host_key } => {
                act(who, "remote trust", &called(memory, who, repository), &[repository, host_key])
            }
            remote::Question::SetToken { who, repository, .. } => {
                act(who, "remote token", &called(memory, who, repository), &[repository])
            }
            remote::Question::ForgetToken { who, repository } => {
                act(who, "remote forget", &called(memory, who, repository), &[repository])
            }
            remote::Question::NewSecret { who, repository } => {
                act(who, "remote secret", &called(memory, who, repository), &[repository])
            }
            // A delivery has no key; the deploy that follows from it is in the history.
            remote::Question::Show { .. } | remote::Question::Hook { .. } => None,
        },
        Request::History(question) => match question {
            History::Deploys { .. } => None,
            History::Rollback { who, instance, generation } => {
                act(who, "rollback", &repository_of(memory, who, instance), &[instance, generation])
            }
            History::Pin { who, instance } => act(who, "pin", &repository_of(memory, who, instance), &[instance]),
            History::Unpin { who, instance } => act(who, "unpin", &repository_of(memory, who, instance), &[instance]),
            History::Stop { who, instance } => act(who, "stop", &repository_of(memory, who, instance), &[instance]),
            History::Start { who, instance } => act(who, "start", &repository_of(memory, who, instance), &[instance]),
            History::Destroy { who, instance, .. } => act(who, "destroy", &repository_of(memory, who, instance), &[instance]),
            History::Unplant { who, repository, .. } => act(who, "unplant", &called(memory, who, repository), &[repository]),
        },
        Request::OpenRepository { .. }
        | Request::Status { .. }
        | Request::Plan
        | Request::Follow { .. }
        | Request::Logs { .. }
        | Request::ListInvites
        | Request::Acme(_) => None,
    }
}

/// The plant that `who` calls `name`, as it is recorded; or else that name.
fn called(memory: &Memory, who: &str, name: &str) -> String {
    let plants = principal(who).and_then(|who| resolve::plants(memory, &who, name)).unwrap_or_default();
    plants.first().map_or_else(|| name.to_owned(), |plant| resolve::recorded(plant))
}

/// The repository of an instance, so that its owner finds what others did to it.
fn repository_of(memory: &Memory, who: &str, instance: &str) -> String {
    let id = principal(who).and_then(|who| resolve::instance(memory, &who, Verb::See, instance));
    let plant = id.ok().and_then(|id| memory.plants.get(&id.namespace));
    plant.map(resolve::recorded).unwrap_or_default()
}

/// How it ended; none if nothing was changed that is worth a line.
fn result_of(act: &Act, reply: &Result<Reply, Refusal>) -> Option<String> {
    let said = match reply {
        Ok(Reply::Text(said)) => said,
        Ok(Reply::Pipe(_) | Reply::Way(..) | Reply::Nothing) => return Some("ok".to_owned()),
        Err(refusal) => {
            let kind = match refusal {
                Refusal::NotFound(_) => "not found",
                Refusal::Denied(_) => "denied",
                Refusal::Invalid(_) => "invalid",
                Refusal::Failed(_) | Refusal::ZBus(_) => "failed",
            };
            return Some(format!("{kind}: {}", text(refusal)));
        }
    };
    let document: serde_json::Value = serde_json::from_str(said).unwrap_or_default();
    match act.verb.as_str() {
        // To open one that is there changes nothing: the push does.
        "create" => document["created"].as_bool().unwrap_or_default().then(|| "ok".to_owned()),
        "restart" | "deploy" | "rollback" | "start" => Some(format!("ok: {said}")),
        // The id, and no more of the code.
        "invite new" => Some(format!("ok: {}", said.get(..6).unwrap_or_default())),
        _ => {
            let notes = document["notes"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
            let job = document["job"].as_str().unwrap_or_default();
            Some(done(job, notes.map(str::to_owned)))
        }
    }
}

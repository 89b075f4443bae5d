//! Planting a repository from elsewhere. Whoever plants it first has its namespace, so the repository itself has to say that it is
//! theirs ([`ownership`]): it is fetched and its `.authorized_keys` read before an invite is spent and before anything is remembered.

use tokio::sync::Semaphore;

use super::{Fetched, Notice, Settings, bring};
use crate::{
    agent::{
        Agent, Event,
        hook::new_secret,
        now,
        request::{Answer, Reply, invalid, json, principal, source},
    },
    build::{
        Builder,
        fetch::{Credential, FetchError},
    },
    bus::{
        Refusal,
        github::{RemoteKey, RemotePlanted},
    },
    host::Host,
    spec::{
        access::{Principal, Repository, fingerprint},
        authorized_keys,
        name::{FlakeUri, KeyId, Namespace, Remote},
        ownership,
    },
    state::{Change, Invite, Plant, Secret, State, Upstream},
};

/// How many first fetches may be under way at once; more wait.
static PLANTINGS: Semaphore = Semaphore::const_new(2);

/// Who plants what, with which invite code.
pub struct Planting {
    who: Principal,
    source: Option<std::net::IpAddr>,
    uri: FlakeUri,
    remote: Remote,
    code: String,
    /// The public key of whoever plants, for them to see.
    line: String,
    /// What it is read with.
    lent: Option<Credential>,
}

/// What a repository is to be planted with, if it is private.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lent {
    Nothing,
    Token(Secret),
    /// The deploy key that [`super::Question::PlantKey`] has made.
    Key,
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Fetches what is to be planted, in a task that answers.
    pub(super) fn plant_remote(&mut self, who: &str, uri: &str, code: String, line: String, lent: &Lent, answer: Answer) {
        let planting = match self.planting(who, uri, code, line).and_then(|planting| self.lend(planting, lent)) {
            Ok(planting) => planting,
            // Who has stopped waiting does not care.
            Err(refusal) => return drop(answer.send(Err(refusal))),
        };
        let wanted = self.wanted(&planting.uri.namespace(), &planting.remote, planting.lent.clone());
        let shared = self.shared.clone();
        tokio::spawn(async move {
            // It is never closed. Who may plant something is not yet known, and has no more than some of the turns.
            let turn = PLANTINGS.acquire().await;
            let fetched = bring(&shared, &wanted).await;
            drop(turn);
            // The loop being gone means that the agent stops.
            drop(shared.events.send(Event::Remote(Notice::Tried(Box::new(planting), fetched, answer))).await);
        });
    }

    fn planting(&mut self, who: &str, uri: &str, code: String, line: String) -> Result<Planting, Refusal> {
        let (source, principal) = (source(who), principal(who)?);
        let uri: FlakeUri = uri.parse().map_err(invalid)?;
        let FlakeUri::Remote(remote) = uri.clone() else {
            return Err(Refusal::Invalid(format!("{uri} is a repository of this host")));
        };
        let planting = Planting { who: principal, source, uri, remote, code, line, lent: None };
        if let Some(invite) = self.may_plant(&planting)? {
            self.guesses.attempt(&invite, now())?;
        }
        Ok(planting)
    }

    fn lend(&self, planting: Planting, lent: &Lent) -> Result<Planting, Refusal> {
        let credentials = &self.shared.settings.remotes.credentials;
        let lent = match lent {
            Lent::Nothing if planting.remote.is_ssh() => {
                return Err(Refusal::Invalid(format!(
                    "{} is read with a deploy key: plant {} CODE --key",
                    planting.uri, planting.uri
                )));
            }
            Lent::Token(_) if planting.remote.is_ssh() => {
                return Err(Refusal::Invalid(format!("{} is read over SSH, and takes no token: --key", planting.uri)));
            }
            Lent::Nothing => None,
            Lent::Token(token) => Some(Credential::Token(credentials.lend(name_of(&planting.who), &planting.uri, token)?)),
            Lent::Key => Some(Credential::Key(credentials.lend_key(name_of(&planting.who), &planting.uri)?.0)),
        };
        Ok(Planting { lent, ..planting })
    }

    /// The deploy key that a repository is to be planted with, for its owner to add there first.
    pub(super) fn plant_key(&mut self, who: &str, uri: &str, code: String) -> Result<Reply, Refusal> {
        let planting = self.planting(who, uri, code, String::new())?;
        let credentials = &self.shared.settings.remotes.credentials;
        let (_, key, made) = credentials.lend_key(name_of(&planting.who), &planting.uri)?;
        Ok(json(&RemoteKey { version: 1, flake: planting.uri.to_string(), key, made }))
    }

    /// Checks all that can be checked without asking the forge. Returns the invite as it is after this use; the operator needs none.
    fn may_plant(&mut self, planting: &Planting) -> Result<Option<Invite>, Refusal> {
        let uri = &planting.uri;
        if let Some(other) = self.memory.plants.get(&uri.namespace()) {
            let why = if other.uri == *uri {
                "is planted already"
            } else {
                "has the short name of another flake: name a branch, or rename it"
            };
            return Err(Refusal::Invalid(format!("{uri} {why} (namespace {})", uri.namespace())));
        }
        if let Principal::Key(key) = &planting.who {
            self.is_no_heir(&planting.who, uri, key)?;
        }
        if planting.who == Principal::Operator && planting.code.is_empty() {
            return Ok(None);
        }
        self.use_invite(&planting.who, planting.source, &planting.code, uri).map(Some)
    }

    /// What comes of it once it was fetched, or could not be.
    pub(super) async fn tried(&mut self, planting: Planting, fetched: Result<Fetched, FetchError>) -> Result<Reply, Refusal> {
        let (lent, namespace) = (planting.lent.clone(), planting.uri.namespace());
        let reply = match fetched {
            Ok(fetched) => self.planted_remote(planting, fetched).await,
            Err(error) => Err(unreadable(&error)),
        };
        if let (Err(_), Some(lent)) = (&reply, lent) {
            self.shared.settings.remotes.credentials.give_back(&lent);
        }
        // What was brought here for nothing does not stay.
        if reply.is_err() && !self.memory.plants.contains_key(&namespace) {
            self.forget_fetched(namespace);
        }
        reply
    }

    /// Has what was fetched for a namespace removed, beside the loop.
    pub(in crate::agent) fn forget_fetched(&self, namespace: Namespace) {
        let fetcher = self.shared.settings.remotes.fetcher.clone();
        tokio::spawn(async move {
            if let Err(error) = fetcher.forget(&namespace).await {
                tracing::warn!(%namespace, %error, "what was fetched stays on the disk");
            }
        });
    }

    async fn planted_remote(&mut self, planting: Planting, fetched: Fetched) -> Result<Reply, Refusal> {
        let by = owner(&planting, &fetched)?;
        // Others were heard while it was fetched.
        let invite = self.may_plant(&planting)?;
        let Planting { uri, lent, .. } = planting;
        let namespace = uri.namespace();
        let secret = new_secret().map_err(|error| Refusal::Failed(format!("no randomness: {error}")))?;
        let name = namespace.as_str().parse().map_err(invalid)?;
        let repository = Repository::new(name, by.clone(), now());
        let upstream =
            Upstream { repository, secret: secret.clone(), branch: None, seen: None, host_key: fetched.found.host_key.clone() };
        let plant = Plant { uri: uri.clone(), namespace: namespace.clone(), hash: uri.hash(), by, at: now() };
        let Settings { credentials, every, .. } = self.shared.settings.remotes.clone();
        // A token of an earlier life of this plant was given for another's sake.
        credentials.forget(&namespace)?;
        let mut batch = vec![Change::Plant(namespace.clone(), Some(plant)), Change::Upstream(namespace.clone(), Some(upstream))];
        batch.extend(invite.map(|invite| Change::Invite(invite.id.clone(), Some(invite))));
        // First: whoever is killed in between plants once more, and finds nothing that the plant lacks.
        if let Some(lent) = &lent {
            credentials.adopt(lent, &namespace)?;
        }
        if let Err(refusal) = self.commit(batch).await {
            credentials.forget(&namespace)?;
            return Err(refusal);
        }
        tracing::info!(%namespace, flake = %uri, "planted");
        let job = self.jobs.create(namespace.clone());
        self.take_up(&namespace, fetched, Some(job.clone())).await;
        self.fetch_in(&namespace, every);
        let suffix = format!("{namespace}.{}", self.shared.settings.layout.domain);
        let (webhook, job) = (self.webhook(secret), job.name);
        Ok(json(&RemotePlanted { version: 1, namespace: namespace.to_string(), flake: uri.to_string(), job, suffix, webhook }))
    }
}

fn name_of(who: &Principal) -> &str {
    match who {
        Principal::Key(key) => key.as_str(),
        Principal::Operator => "operator",
    }
}

/// The key that the namespace will belong to. The operator's word is enough, but the namespace has to be somebody's.
fn owner(planting: &Planting, fetched: &Fetched) -> Result<KeyId, Refusal> {
    let (uri, branch) = (&planting.uri, fetched.found.branch.short());
    let (text, trouble) = match &fetched.keys {
        Ok(Some(text)) => (text.as_str(), None),
        Ok(None) => ("", Some(format!("there is no .authorized_keys at the top of {branch}"))),
        Err(why) => ("", Some(format!(".authorized_keys at the top of {branch} cannot be read ({why})"))),
    };
    let (grants, passed) = authorized_keys::read(text);
    let mut owners = ownership::owners(&grants, now());
    let key = match &planting.who {
        Principal::Key(key) if owners.any(|owner| owner == key) => return Ok(key.clone()),
        Principal::Key(key) => key,
        Principal::Operator => {
            return owners.next().cloned().ok_or_else(|| {
                let why = trouble.unwrap_or_else(|| format!(".authorized_keys at the top of {branch} has no line of one"));
                Refusal::Invalid(format!("{uri} needs an owner, and {why}: push the line of a key that may deploy"))
            });
        }
    };
    let (lacking, prefix) = ownership::lacking(&grants, key, now());
    let mut why = trouble.unwrap_or_else(|| format!(".authorized_keys at the top of {branch} {lacking}"));
    if let Some(passed) = passed.first() {
        why.push_str(&format!(" (its line {} {}: passed over)", passed.line, passed.why));
    }
    let line = match authorized_keys::blob(&planting.line).filter(|blob| fingerprint(blob) == *key) {
        Some(_) => planting.line.trim().to_owned(),
        None => format!("the line of the .pub file of {key}"),
    };
    Err(Refusal::Denied(format!(
        "{uri} does not say that it is yours: {why}. Push this line in that file, and plant it again (the code was not spent): {prefix}{line}"
    )))
}

/// Why something is not planted: its first fetch failed.
fn unreadable(error: &FetchError) -> Refusal {
    match error {
        FetchError::Host(_) => Refusal::Failed(format!("{error}; the code was not spent")),
        FetchError::Refused(_) => Refusal::NotFound(format!(
            "{error}; it was not planted, and the code was not spent. If it is private: plant it with --key, or with --token and a token on standard input"
        )),
    }
}

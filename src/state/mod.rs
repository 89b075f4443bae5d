//! What is remembered over a restart: what was asked, by whom, and what was leased. What is running is never stored.
//!
//! | key | value (JSON) | written when |
//! |---|---|---|
//! | `plant/<namespace>` | [`Plant`] | an invite is spent |
//! | `former/<namespace>` | [`Former`] | it is unplanted; replaced when another life of it ends |
//! | `repo/<name>` | [`Repository`] | a repository is created; its keys, when its default branch is pushed |
//! | `want/<namespace>` | [`Deployment`] | a deployment was built and is to run; while it is there, its routes are claimed |
//! | `past/<namespace>/<at, 20 digits>` | [`Deployment`] | it was replaced; the last N are kept |
//! | `ask/<namespace>` | [`Ask`] | a push was acknowledged and is not deployed yet; the newest wins |
//! | `lease/<namespace>/<name>` | [`Lease`] | an instance is first wanted; `…/<name>.b`: a set of units is to start beside it. Removed when that is gone from the machine |
//! | `rolling/<namespace>/<name>` | [`Rolling`] | a version of an instance is to be rolled out, is ready, or the one before has drained |
//! | `invite/<id>` | [`Invite`] | by the operator; when it is used or revoked; the oldest that can no longer be used are removed |
//! | `quota/<namespace>` | [`Quota`] | the operator gives a namespace another quota than the configuration's |
//! | `upstream/<namespace>` | [`Upstream`] | a repository from elsewhere is planted, or a new commit of it was found |
//! | `acme-account/<id>` | [`acme::Account`] | an instance's ACME client registers its key |
//! | `acme-order/<id>` | [`acme::Order`] | it orders; and at every step towards its certificate, before the step is taken |
//! | `acme-certificate/<id>` | [`acme::Certificate`] | in one batch with the order that it ends |
//! | `domain/<name>/<namespace>` | [`Claim`] | a namespace claims a name of its own, and with each look at the DNS; all claims to a name in one batch |
//! | `secret/domains` | [`Secret`] | the first claim is made; what proofs in TXT records are made with |
//! | `stopped/<namespace>/<name>` | [`Stopped`] | somebody turned an instance off; removed when it is started, or gone |
//! | `pin/<namespace>/<name>` | [`Pin`] | an instance is held, or was gone back with; removed with either, or with the instance |
//! | `deploy/<namespace>/<began, 20 digits>` | [`Record`] | a deploy has ended; the last 50 are kept |
//!
//! The agent's store is [`sled`]: a journal in front, sled for what is older; its module says which files, and what a crash leaves in
//! them. Every change is one [`Batch`], applied whole or not at all, and durable when [`State::commit`] returns. A crash between a commit
//! and what follows from it leaves work that the next start finds: an `ask` that is deployed again (deploying is idempotent), a `want`
//! that is not running yet, a lease whose set of units nobody wants, which is dropped, a claim that is due, at which the doors look again.
//! A `rolling` is written in one batch with the `want` that it is for and the lease of the new set, so that the set that serves is never in
//! doubt: until the new one was seen to be ready and that is on the disk, it is the old one, which no step of the plan touches. From there
//! on it is the new one; names follow the document, and are published anew at each start. Whatever a crash leaves beside it is started,
//! stopped or removed by the next pass.
#![allow(clippy::disallowed_methods, reason = "this room keeps files")]

pub mod audit;
pub mod history;
pub mod memory;
pub mod record;
pub mod sled;

use std::future::Future;

use serde::{Deserialize, Serialize};

pub use history::{Pin, Record, Stopped};

use crate::{
    journal::JournalError,
    spec::{
        access::Repository,
        acme,
        address::Lease,
        desired::Deployment,
        domain::Claim,
        name::{Commit, CustomDomain, FlakeUri, InstanceId, KeyId, Namespace, RefName, RepoName, SetId},
        quota::Quota,
        rollout::Rolling,
    },
};

/// A flake that this host runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plant {
    pub uri: FlakeUri,
    pub namespace: Namespace,
    /// The full hash of the URI: the key that the short name stands for.
    pub hash: String,
    pub by: KeyId,
    /// Seconds since 1970.
    pub at: u64,
}

/// A flake that this host ran once. Names elsewhere may lead to its instances for ever (a CNAME that nobody removed), and to lead there
/// proves a name: so its short name is nobody else's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Former {
    pub uri: FlakeUri,
    /// As [`Plant::hash`].
    pub hash: String,
    /// Of its repository, if that was on this host; else who had planted it.
    pub owner: KeyId,
    /// When it was unplanted, in seconds since 1970.
    pub at: u64,
}

/// A push that was acknowledged and is to be deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ask {
    pub repo: RepoName,
    pub reference: RefName,
    pub commit: Commit,
    pub by: KeyId,
    /// Seconds since 1970.
    pub at: u64,
}

/// A planted repository that is somewhere else: what a repository of this host has in [`Repository`], and what it takes to follow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upstream {
    /// Who may do what with it. Its name is the namespace.
    pub repository: Repository,
    /// What its forge signs deliveries with.
    pub secret: Secret,
    /// The branch that was found last.
    #[serde(default)]
    pub branch: Option<RefName>,
    /// The commit that was asked to be deployed last.
    #[serde(default)]
    pub seen: Option<Commit>,
    /// The host key that its server had when it was first asked over SSH.
    #[serde(default)]
    pub host_key: Option<KeyId>,
}

/// A text that is shown to nobody by accident.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// A right to plant. The code itself is not stored: its SHA-256 is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Invite {
    /// The first characters of the code, by which people speak of it.
    pub id: String,
    /// SHA-256 of the code, in hexadecimal.
    pub hash: String,
    pub uses_left: u32,
    /// Seconds since 1970; 0 for never.
    pub expires: u64,
    pub note: String,
    /// Seconds since 1970; 0 if it was made before this was remembered.
    #[serde(default)]
    pub created: u64,
    /// Seconds since 1970; 0 if it was not revoked.
    #[serde(default)]
    pub revoked: u64,
    /// Who used it, oldest first.
    #[serde(default)]
    pub used: Vec<Spent>,
}

/// One use of an invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spent {
    /// None if the operator did.
    pub key: Option<KeyId>,
    pub source: Option<std::net::IpAddr>,
    /// What was planted with it.
    pub flake: FlakeUri,
    /// Seconds since 1970.
    pub at: u64,
}

/// One write. `None` removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Plant(Namespace, Option<Plant>),
    Former(Namespace, Option<Former>),
    Repo(RepoName, Option<Repository>),
    Want(Namespace, Option<Deployment>),
    Past(Namespace, u64, Option<Deployment>),
    Ask(Namespace, Option<Ask>),
    Lease(SetId, Option<Lease>),
    Rolling(InstanceId, Option<Rolling>),
    Invite(String, Option<Invite>),
    AcmeAccount(String, Option<acme::Account>),
    AcmeOrder(String, Option<acme::Order>),
    AcmeCertificate(String, Option<acme::Certificate>),
    AcmeRegistrations(Option<Vec<u64>>),
    Quota(Namespace, Option<Quota>),
    Upstream(Namespace, Option<Upstream>),
    Domain(CustomDomain, Namespace, Option<Claim>),
    DomainSecret(Option<Secret>),
    Stopped(InstanceId, Option<Stopped>),
    Pin(InstanceId, Option<Pin>),
    Record(Namespace, u64, Option<Record>),
}

/// Writes that happen together.
pub type Batch = Vec<Change>;

/// Everything that is remembered, as it was at the last commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    pub plants: std::collections::BTreeMap<Namespace, Plant>,
    pub formers: std::collections::BTreeMap<Namespace, Former>,
    pub repos: std::collections::BTreeMap<RepoName, Repository>,
    pub wants: std::collections::BTreeMap<Namespace, Deployment>,
    pub past: std::collections::BTreeMap<(Namespace, u64), Deployment>,
    pub asks: std::collections::BTreeMap<Namespace, Ask>,
    pub leases: std::collections::BTreeMap<SetId, Lease>,
    pub rolling: std::collections::BTreeMap<InstanceId, Rolling>,
    pub invites: std::collections::BTreeMap<String, Invite>,
    pub acme: acme::Ledger,
    pub quotas: std::collections::BTreeMap<Namespace, Quota>,
    pub upstreams: std::collections::BTreeMap<Namespace, Upstream>,
    /// Of each name, the claims of namespaces; never an empty map.
    pub domains: std::collections::BTreeMap<CustomDomain, std::collections::BTreeMap<Namespace, Claim>>,
    pub domain_secret: Option<Secret>,
    pub stopped: std::collections::BTreeMap<InstanceId, Stopped>,
    pub pins: std::collections::BTreeMap<InstanceId, Pin>,
    pub records: std::collections::BTreeMap<(Namespace, u64), Record>,
}

/// Where it is remembered. The agent holds a [`Memory`] that it reads from; a store only loads it once and takes batches.
pub trait State: Send + Sync + 'static {
    /// Reads everything. What cannot be read is an error that names the key: nothing is guessed.
    fn load(&self) -> impl Future<Output = Result<Memory, StateError>> + Send;
    /// Applies a batch, whole; returns when it is on the disk. Batches that wait at the same time share one sync.
    fn commit(&self, batch: Batch) -> impl Future<Output = Result<(), StateError>> + Send;
}

/// Why something could not be remembered or recalled.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("could not open the state in {path}")]
    Open { path: std::path::PathBuf, source: ::sled::Error },
    #[error("the state holds {key}, which this version cannot read")]
    Read { key: String, source: serde_json::Error },
    #[error("the state holds a key this version does not know: {0:?}")]
    Key(String),
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    #[error("could not write the state")]
    Write(#[from] ::sled::Error),
    #[error("could not sync the state to the disk")]
    Sync(#[from] std::io::Error),
    /// Not by a crash: what was once on the disk is no longer what it was.
    #[error("{path} is damaged at byte {at}: restore it from a backup, or move it away to start without what it holds")]
    Damaged { path: std::path::PathBuf, at: u64 },
    #[error("{path} is in use by another agent: stop it first")]
    InUse { path: std::path::PathBuf },
    /// An earlier error left unclear what is on the disk.
    #[error("the state takes no more writes since a write failed: restart the agent once the disk is well")]
    Stopped,
}

impl From<JournalError> for StateError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::File(source) => Self::Sync(source),
            JournalError::Damaged { path, at } => Self::Damaged { path, at },
        }
    }
}

impl Memory {
    /// Who may do what with a plant, wherever its repository is. `None` if that is not known: then nobody but the operator may.
    pub fn repository_of(&self, plant: &Plant) -> Option<&Repository> {
        match &plant.uri {
            FlakeUri::Silo(name) => self.repos.get(name),
            FlakeUri::Remote(_) => self.upstreams.get(&plant.namespace).map(|upstream| &upstream.repository),
        }
    }

    /// Makes one change to the picture.
    pub fn apply(&mut self, change: Change) {
        fn set<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => drop(map.insert(key, value)),
                None => drop(map.remove(&key)),
            }
        }
        match change {
            Change::Plant(key, value) => set(&mut self.plants, key, value),
            Change::Former(key, value) => set(&mut self.formers, key, value),
            Change::Repo(key, value) => set(&mut self.repos, key, value),
            Change::Want(key, value) => set(&mut self.wants, key, value),
            Change::Past(namespace, at, value) => set(&mut self.past, (namespace, at), value),
            Change::Ask(key, value) => set(&mut self.asks, key, value),
            Change::Lease(key, value) => set(&mut self.leases, key, value),
            Change::Rolling(key, value) => set(&mut self.rolling, key, value),
            Change::Invite(key, value) => set(&mut self.invites, key, value),
            Change::AcmeAccount(key, value) => set(&mut self.acme.accounts, key, value),
            Change::AcmeOrder(key, value) => set(&mut self.acme.orders, key, value),
            Change::AcmeCertificate(key, value) => set(&mut self.acme.certificates, key, value),
            Change::AcmeRegistrations(value) => self.acme.registrations = value.unwrap_or_default(),
            Change::Quota(key, value) => set(&mut self.quotas, key, value),
            Change::Upstream(key, value) => set(&mut self.upstreams, key, value),
            Change::Domain(name, namespace, value) => {
                let claims = self.domains.entry(name.clone()).or_default();
                set(claims, namespace, value);
                if claims.is_empty() {
                    self.domains.remove(&name);
                }
            }
            Change::DomainSecret(value) => self.domain_secret = value,
            Change::Stopped(key, value) => set(&mut self.stopped, key, value),
            Change::Pin(key, value) => set(&mut self.pins, key, value),
            Change::Record(namespace, at, value) => set(&mut self.records, (namespace, at), value),
        }
    }
}

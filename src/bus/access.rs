//! The interface `farm.loom.Seed1.Access`: repositories and who reads them, quotas, the audit log.

use serde::{Deserialize, Serialize};

use crate::spec::{access::Visibility, quota::Quota, quota::Share};

/// The agent, for those who decide about repositories.
#[zbus::proxy(interface = "farm.loom.Seed1.Access", default_service = "farm.loom.Seed1", default_path = "/farm/loom/Seed1")]
pub trait Access {
    /// The repositories that `who` has a part in: a [`RepositoryList`].
    fn list_repositories(&self, who: &str) -> zbus::Result<String>;
    /// `public`: anybody may clone it; `private`: only its owner and the keys in its `.authorized_keys`.
    fn set_visibility(&self, who: &str, repository: &str, visibility: &str) -> zbus::Result<()>;
    /// Gives a repository that is not planted another name.
    fn rename_repository(&self, who: &str, repository: &str, to: &str) -> zbus::Result<()>;
    /// Deletes a repository that is not planted, for ever. `again` is its name once more.
    fn delete_repository(&self, who: &str, repository: &str, again: &str) -> zbus::Result<()>;
    /// What each namespace that `who` may see has and may have: `{"version":1,"namespaces":[…]}` of [`QuotaReport`].
    fn quota(&self, who: &str, filter: &str) -> zbus::Result<String>;
    /// Changes the quota of a namespace (`memory=8Gi vcpus=4`), or gives it the configuration's again (`default`). For the operator.
    fn set_quota(&self, namespace: &str, changes: &str) -> zbus::Result<()>;
    /// The last `lines` acts since `since` (seconds since 1970) of `who` and on what is theirs: an [`AuditTrail`].
    fn audit(&self, who: &str, since: u64, lines: u32) -> zbus::Result<String>;
    /// Checks the whole audit log: `{"version":1,"entries":N,"first":1,"since":SECONDS,"hash":"…"}`, or an error that names the line. `first` is the
    /// number of the oldest entry that is kept, `since` its time. For the operator.
    fn verify_audit(&self) -> zbus::Result<String>;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryList {
    pub version: u32,
    pub repositories: Vec<RepositorySummary>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositorySummary {
    pub name: String,
    /// What the asker is to it: `owner`, `admin`, `deploy`, `read of web`, `operator`.
    pub standing: String,
    pub visibility: Visibility,
    pub owner: String,
    /// Who else: `SHA256:… deploy, until 20300101Z`.
    pub access: Vec<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Empty if it is not planted.
    pub namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaReport {
    pub namespace: String,
    pub repository: String,
    /// Whether the operator gave it a quota of its own.
    pub own: bool,
    pub quota: QuotaMost,
    pub used: QuotaUse,
}

/// The most that there may be, in the units of [`QuotaUse`], so that the two can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaMost {
    pub instances: u32,
    pub vcpus: u32,
    pub memory: u64,
    pub volumes: u64,
    pub repository: u64,
    pub builds: u32,
    pub logs: u64,
    pub routes: u32,
}

impl From<&Quota> for QuotaMost {
    fn from(quota: &Quota) -> Self {
        let Quota { instances, vcpus, memory, volumes, repository, builds, logs, routes } = *quota;
        let [memory, volumes, repository, logs] = [memory, volumes, repository, logs].map(|bytes| bytes.0);
        Self { instances, vcpus, memory, volumes, repository, builds, logs, routes }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaUse {
    /// What is wanted now; bytes for memory, volumes (retired ones included) and logs.
    #[serde(flatten)]
    pub share: Share,
    /// Bytes on the disk.
    pub repository: u64,
    pub builds: u32,
    /// Public ports.
    #[serde(default)]
    pub routes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditTrail {
    pub version: u32,
    /// Oldest first.
    pub entries: Vec<AuditEntry>,
}

/// One act, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    pub number: u64,
    /// Seconds since 1970.
    pub at: u64,
    pub who: String,
    pub source: String,
    pub verb: String,
    pub arguments: Vec<String>,
    pub repository: String,
    pub result: String,
}

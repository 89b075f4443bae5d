//! `farm.loom.Seed1.History`: what was deployed, going back, holding still, turning off, and taking away. On the same object as the rest.

use serde::{Deserialize, Serialize};

use super::{Outcome, Stage};

/// What is asked about deploys and about what becomes of instances.
#[zbus::proxy(interface = "farm.loom.Seed1.History", default_service = "farm.loom.Seed1", default_path = "/farm/loom/Seed1")]
pub trait History {
    /// The deploys of what `who` may see, in `namespace-or-repository` or everywhere if that is empty, newest first: a [`Deploys`].
    fn deploys(&self, who: &str, filter: &str) -> zbus::Result<String>;
    /// Runs an instance as it was in `generation`, or before the last change if that is empty. Returns the job to follow.
    fn rollback(&self, who: &str, instance: &str, generation: &str) -> zbus::Result<String>;
    /// Holds an instance at the version it has: deploys leave it alone until `Unpin`. Returns a [`Pinned`].
    fn pin(&self, who: &str, instance: &str) -> zbus::Result<String>;
    /// Lets deploys change an instance again. Returns a [`Pinned`].
    fn unpin(&self, who: &str, instance: &str) -> zbus::Result<String>;
    /// Powers an instance off and keeps it off, over pushes and reboots, until `Start`. Returns the job to follow.
    fn stop(&self, who: &str, instance: &str) -> zbus::Result<String>;
    /// Starts an instance that is off. Returns the job to follow.
    fn start(&self, who: &str, instance: &str) -> zbus::Result<String>;
    /// Takes an instance off this host; its volumes are kept. `again` is its name once more. Returns the job to follow.
    fn destroy(&self, who: &str, instance: &str, again: &str) -> zbus::Result<String>;
    /// Takes all instances of a repository off this host and ends its deploys; if there are any, `again` is to be its name. Returns an
    /// [`Unplanted`].
    fn unplant(&self, who: &str, repository: &str, again: &str) -> zbus::Result<String>;
}

/// The answer to `Deploys`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deploys {
    pub version: u32,
    pub namespaces: Vec<NamespaceDeploys>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceDeploys {
    pub namespace: String,
    /// `silo:my-app`
    pub flake: String,
    /// The generation that is wanted now; empty before the first.
    pub generation: String,
    /// Generations that `rollback` can go back to, newest first, without the one that is wanted now.
    pub kept: Vec<String>,
    /// Newest first; one that is under way has no outcome.
    pub deploys: Vec<DeployEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployEntry {
    /// Seconds since 1970 at which it began.
    pub at: u64,
    pub seconds: u64,
    /// The fingerprint of the key that asked, or `operator`.
    pub by: String,
    /// `push` or `rollback`
    pub kind: String,
    pub branch: String,
    pub commit: String,
    /// What runs since; empty if it came to nothing.
    pub generation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The stages that it went through, in order. If it failed, then at the last.
    pub stages: Vec<StageTime>,
    /// What it changed, a line each: `web: restart (system changed)`.
    pub changes: Vec<String>,
    /// How it ended, in words.
    pub text: String,
}

/// How long a stage took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StageTime {
    pub stage: Stage,
    pub milliseconds: u64,
}

/// The answer to `Pin` and `Unpin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    pub version: u32,
    /// `my-app/web`
    pub instance: String,
    pub pinned: bool,
    /// Whether this call changed it.
    pub changed: bool,
}

/// The answer to `Unplant`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unplanted {
    pub version: u32,
    pub namespace: String,
    pub flake: String,
    /// The job that stops its instances.
    pub job: String,
    /// What is kept, a line each.
    pub kept: Vec<String>,
}

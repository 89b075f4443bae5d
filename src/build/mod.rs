//! A commit becomes store paths. The flake is hostile: evaluation and build run in units of their own, unprivileged and limited.
#![allow(clippy::disallowed_methods, reason = "this room runs nix")]

pub mod complaint;
pub mod disk;
pub mod fetch;
pub mod git_ssh;
mod mirror;
pub mod nix;
mod reach;
mod roots;
pub mod source;

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tokio::sync::mpsc;

use crate::spec::name::{Namespace, StorePath};

/// One attribute of `seeds`, as evaluation yields it; nothing in it has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    pub meta: Value,
    /// The derivation of `toplevel`.
    pub drv: StorePath,
    /// Where the build of `toplevel` will be.
    pub out: StorePath,
}

/// What is looked at of a flake, as evaluation yields it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outputs {
    pub seeds: BTreeMap<String, Evaluated>,
    /// Public ports; `None` if the flake has no such output. Nothing in them has been checked.
    pub ipv4: Option<Value>,
    pub ipv6: Option<Value>,
}

/// A system that was built and is protected from garbage collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realised {
    pub toplevel: StorePath,
    /// Sorted; contains `toplevel`.
    pub closure: Vec<StorePath>,
    /// The text of `<toplevel>/kernel-params`, trimmed; one line of printable ASCII.
    pub kernel_params: String,
}

/// One job's name and place: `seed-build@<job>-eval.service`, and a directory of its own.
#[derive(Debug, Clone)]
pub struct Job {
    /// `[a-z0-9-]`, unique on this host since it started.
    pub name: String,
    pub namespace: Namespace,
    /// The commit's tree as an uncompressed tar, with a single directory at its top.
    pub source: PathBuf,
}

/// Where a bare repository is, and with it whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Of this host; it belongs to the user of the doors.
    Silo(PathBuf),
    /// Fetched from elsewhere for this namespace; it belongs to a user of its own.
    Mirror(Namespace, PathBuf),
}

impl Place {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Silo(path) | Self::Mirror(_, path) => path,
        }
    }
}

/// What turns sources into systems.
pub trait Builder: Send + Sync + 'static {
    /// Evaluates all that is looked at of a flake, at once. Lines of progress go to `log`.
    fn eval(&self, job: &Job, log: mpsc::Sender<String>) -> impl Future<Output = Result<Outputs, BuildError>> + Send;
    /// Builds the derivations. Lines of progress go to `log`. `root` names the garbage collection root of each result:
    /// `<ns>/<name>/<12 characters of the store path's hash>`.
    fn realise(
        &self,
        job: &Job,
        wanted: &BTreeMap<String, Evaluated>,
        log: mpsc::Sender<String>,
    ) -> impl Future<Output = Result<BTreeMap<String, Realised>, BuildError>> + Send;
    /// Drops the garbage collection roots of a namespace that are not among `keep`.
    fn retain(&self, namespace: &Namespace, keep: &[StorePath]) -> impl Future<Output = Result<(), BuildError>> + Send;
}

/// Why there is no system. The tenant's fault unless it is `Host`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// `lines` are the lines that matter, at most 40; `remedy` says what to do.
    #[error("{what}")]
    Failed { what: String, lines: Vec<String>, remedy: String },
    #[error("this host could not run the build: {0}")]
    Host(String),
}

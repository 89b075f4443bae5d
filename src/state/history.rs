//! Documents about what became of instances: who turned them off, who holds them still, and how each deploy went.

use serde::{Deserialize, Serialize};

use crate::spec::{
    instance::Instance,
    name::{Commit, Generation, KeyId, RefName},
};

/// An instance that is to be off until somebody starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stopped {
    /// `None` for the operator.
    pub by: Option<KeyId>,
    /// Seconds since 1970.
    pub at: u64,
}

/// An instance that deploys leave as it is: all of them, or only those that would bring back what somebody went back from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pin {
    /// `None` for the operator.
    pub by: Option<KeyId>,
    /// Seconds since 1970.
    pub at: u64,
    /// Whether every deploy is kept away, as `pin` asks for.
    pub held: bool,
    /// The versions that were gone back from. A deploy that would bring one of them leaves the instance as it is.
    pub refused: Vec<Instance>,
}

impl Pin {
    /// Whether a deploy may not bring this version.
    pub fn keeps_away(&self, version: &Instance) -> bool {
        self.held || self.refused.iter().any(|refused| refused.is_version_of(version))
    }
}

/// How one deploy went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// `push` or `rollback`
    pub kind: String,
    /// `None` for the operator.
    pub by: Option<KeyId>,
    pub reference: RefName,
    pub commit: Commit,
    /// What runs since; `None` if it came to nothing.
    pub generation: Option<Generation>,
    /// Seconds since 1970 at which it ended.
    pub ended: u64,
    /// `done`, `failed`, `superseded`
    pub outcome: String,
    /// The stages that it went through, in order, and the milliseconds that each took.
    pub stages: Vec<(String, u64)>,
    pub changes: Vec<String>,
    pub text: String,
}

//! `farm.loom.Seed1.Domains`: names of tenants' own. The agent says which are to be looked at and judges what was seen; the doors look, for
//! the agent speaks with nobody outside.

use serde::{Deserialize, Serialize};

pub use crate::spec::domain::{Looked, Records, Sight};

/// What is asked about names of tenants' own.
#[zbus::proxy(interface = "farm.loom.Seed1.Domains", default_service = "farm.loom.Seed1", default_path = "/farm/loom/Seed1")]
pub trait Domains {
    /// Claims a name for an instance, or has it looked at again. Returns a [`DomainList`] of it, with what is to be set.
    fn add(&self, who: &str, instance: &str, name: &str) -> zbus::Result<String>;
    /// Ends the claim to `[REPO/]NAME`.
    fn remove(&self, who: &str, name: &str) -> zbus::Result<()>;
    /// The claims that `who` may see, in `namespace-or-repository` or everywhere if that is empty: a [`DomainList`].
    fn list(&self, who: &str, filter: &str) -> zbus::Result<String>;
    /// Which names are to be looked at now: a [`Due`].
    fn due(&self) -> zbus::Result<String>;
    /// What was seen: a [`Seen`]. Returns when what follows from it is on the disk.
    fn seen(&self, report: &str) -> zbus::Result<()>;
    /// Ask for `Due` again.
    #[zbus(signal)]
    fn changed(&self) -> zbus::Result<()>;
}

/// The answer to `List` and `Add`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainList {
    pub version: u32,
    pub domains: Vec<DomainStatus>,
}

/// A name and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainStatus {
    pub name: String,
    pub namespace: String,
    /// `my-app/web`
    pub instance: String,
    /// `flake` or `added`
    pub origin: String,
    /// `pending`: not proven. `waiting`: proven, but another namespace has it still. `proven`. `failing`: proven once, and the proof is gone.
    pub state: String,
    /// Seconds since 1970 at which that began; of a claim that is pending, at which it was made.
    pub since: u64,
    /// When a name that is failing is lost; 0 for the others.
    #[serde(default)]
    pub lost_at: u64,
    /// What the last look saw.
    pub detail: String,
    /// When it is looked at next.
    pub next: u64,
    pub records: Records,
    /// Whether `_acme-challenge.<name>` leads here, without which there are no certificates.
    pub delegated: bool,
}

/// The answer to `Due`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Due {
    pub names: Vec<String>,
    /// To be said with what is seen.
    pub turn: u64,
    /// Seconds after which to ask again, if nothing is said before.
    pub pause: u64,
}

/// What was seen of one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seen {
    pub name: String,
    /// Of the [`Due`] for which it was looked at: who has asked for a look since then is owed another.
    pub turn: u64,
    pub sight: Sight,
}

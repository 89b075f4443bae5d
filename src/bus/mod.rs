//! The system bus interface `farm.loom.Seed1`: what the doors and the command line ask of the agent. Names here are what
//! `busctl introspect farm.loom.Seed1 /farm/loom/Seed1` shows.
//!
//! `who` is the fingerprint of the SSH key that a door has verified and the address it came from (`SHA256:…@ADDRESS`, see
//! [`crate::spec::caller`]), or empty for the operator: the agent takes an empty `who` from root only. Documents are JSON, the same that `--json` prints; each has a `version`.

pub mod access;
pub mod acme;
pub mod domain;
pub mod history;
pub mod shell;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::spec::name::RefName;

pub mod github;
pub mod guest;

pub use crate::render::zone::{Zone, ZoneChange, ZoneEntry};

/// The well-known name of the agent, and the interface of its object.
pub const NAME: &str = "farm.loom.Seed1";
/// The agent's object.
pub const PATH: &str = "/farm/loom/Seed1";

/// The agent, as doors and the command line see it.
#[zbus::proxy(interface = "farm.loom.Seed1", default_service = "farm.loom.Seed1", default_path = "/farm/loom/Seed1")]
pub trait Seed {
    /// Every instance that `who` may see, in `namespace-or-repository` or everywhere if that is empty: a [`Status`].
    fn status(&self, who: &str, filter: &str) -> zbus::Result<String>;
    /// The steps that a pass would make now: `{"version":1,"steps":["…"]}`. For the operator.
    fn plan(&self) -> zbus::Result<String>;
    /// Asks whether `who` may `access` (`read`, `write`) the repository; a first write creates it. Returns a [`Opened`].
    fn open_repository(&self, who: &str, name: &str, access: &str) -> zbus::Result<String>;
    /// Says that a push has moved `reference` from `old` to `new` (40 digits; zeros for none), and what to do about it: `deploy` or
    /// `plan`. Returns a [`Pushed`]; the work goes on when the caller leaves.
    fn push(&self, who: &str, repository: &str, reference: &str, old: &str, new: &str, mode: &str) -> zbus::Result<String>;
    /// The same, from doors that have read what the agent would have to read of the repository: `read` is a [`PushRead`]. It is the doors'
    /// to say: the repository is theirs, and it is their user as whom the agent reads it.
    #[expect(clippy::too_many_arguments, reason = "each is one word of the method's signature on the bus")]
    fn push_read(
        &self,
        who: &str,
        repository: &str,
        reference: &str,
        old: &str,
        new: &str,
        mode: &str,
        read: &str,
    ) -> zbus::Result<String>;
    /// Registers a flake (`silo:NAME`) with an invite code, and deploys its default branch. Returns a [`Planted`].
    fn plant(&self, who: &str, uri: &str, code: &str) -> zbus::Result<String>;
    /// Deploys what the default branch of a repository is at, again: after a plan, or when the host was at fault. Returns the job.
    fn deploy(&self, who: &str, repository: &str) -> zbus::Result<String>;
    /// A pipe with the progress of a job from its beginning, a JSON [`Progress`] a line; it ends with one that has an `outcome`.
    fn follow(&self, who: &str, job: &str) -> zbus::Result<zbus::OwnedFd>;
    /// A pipe with lines of an instance's journal and console in order, a JSON [`LogLine`] a line. `query` is a [`LogQuery`].
    fn logs(&self, who: &str, instance: &str, query: &str) -> zbus::Result<zbus::OwnedFd>;
    /// Powers an instance off and starts it again. Returns the name of a job to follow.
    fn restart(&self, who: &str, instance: &str) -> zbus::Result<String>;
    /// Makes an invite code. For the operator. `expires_secs` from now; 0 for never.
    fn new_invite(&self, uses: u32, expires_secs: u64, note: &str) -> zbus::Result<String>;
    /// Invites with their state (`usable`, `used`, `revoked`, `expired`) and who used them: `{"version":1,"invites":[…]}`. For the operator.
    fn list_invites(&self) -> zbus::Result<String>;
    /// Revokes an invite by its id. For the operator.
    fn revoke_invite(&self, id: &str) -> zbus::Result<()>;
    /// What the DNS server answers from: a [`Zone`].
    fn zone(&self) -> zbus::Result<String>;
    /// The zone has changed; `serial` is the new one, and `change` a [`ZoneChange`]. Who has another zone than that which it is a change
    /// of asks for the whole; so does everybody if `change` is empty.
    #[zbus(signal)]
    fn zone_changed(&self, serial: u32, change: &str) -> zbus::Result<()>;
    /// The version of the agent.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
    /// The hypervisor in use and why: `qemu, emulating: /dev/kvm is not there`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn hypervisor(&self) -> zbus::Result<String>;
    /// The domain of the zone.
    #[zbus(property(emits_changed_signal = "const"))]
    fn domain(&self) -> zbus::Result<String>;
}

/// An error of the agent, as it travels over the bus: the name says which kind, the text says all the rest and the remedy.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "farm.loom.Seed1.Error")]
pub enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    /// There is no such thing, or it is ambiguous; the text lists the candidates.
    NotFound(String),
    /// The caller may not do this.
    Denied(String),
    /// What was given cannot be used.
    Invalid(String),
    /// The host could not do it; the journal says more.
    Failed(String),
}

impl Refusal {
    /// The exit code of a command that ends with this: 3 not found, 4 denied, 2 invalid, 1 otherwise, 5 if nobody answers on the bus.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) => 3,
            Self::Denied(_) => 4,
            Self::Invalid(_) => 2,
            Self::Failed(_) => 1,
            Self::ZBus(_) => 5,
        }
    }
}

/// The answer to `Status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub version: u32,
    pub namespaces: Vec<NamespaceStatus>,
    /// Repositories that the caller may push to but that are not planted.
    pub unplanted: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceStatus {
    pub namespace: String,
    /// `silo:my-app`
    pub flake: String,
    /// Of the deployment that is wanted; empty before the first.
    pub generation: String,
    pub commit: String,
    /// What a deployment in progress is doing: `building`, or empty.
    pub deploying: String,
    pub instances: Vec<InstanceStatus>,
    /// Volumes of this namespace that are no longer declared: `web/data (64Mi)`.
    pub retired: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    pub name: String,
    /// `running`, `degraded` (it runs, and units in it have failed), `booting`, `restarting`, `stopping`, `stopped`, `failed`
    pub state: String,
    /// What there is to say about it: the target reached, the units that failed, the reason.
    pub detail: String,
    /// Seconds since 1970; 0 if unknown.
    pub since: u64,
    pub restarts: u32,
    /// Full DNS name.
    pub fqdn: String,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// `http 80/tcp`, …
    pub ports: Vec<String>,
    /// Ports of this host's public addresses that lead to it.
    #[serde(default)]
    pub routes: Vec<RouteStatus>,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Bytes in use on the host, where the kernel accounts it.
    pub memory_used: Option<u64>,
    /// Thousandths of one CPU in use since somebody asked last, at most five minutes ago; else since it was started.
    #[serde(default)]
    pub cpu_milli: Option<u32>,
    pub volumes: Vec<VolumeStatus>,
    /// Units in it that have failed.
    #[serde(default)]
    pub failed_units: Vec<String>,
    /// Who turned it off: the fingerprint of a key, or `operator`; empty if nobody did.
    #[serde(default)]
    pub stopped_by: String,
    /// Who holds it at its version; empty if nobody does.
    #[serde(default)]
    pub pinned_by: String,
    /// Names of its own that it claims.
    #[serde(default)]
    pub domains: Vec<domain::DomainStatus>,
    /// Whether this host is about to change it, or to try so again.
    pub restart_pending: bool,
    /// While a new version is rolled out: the virtual machine beside the one that serves, of which all else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<SetStatus>,
}

/// The virtual machine that an instance has beside the one that serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetStatus {
    /// `coming`: it serves as soon as it is ready; `draining`: it served before, and goes on for those that are connected to it.
    pub role: String,
    /// As in the names of its units and in `logs`: `web`, `web.b`.
    pub name: String,
    /// As of an instance.
    pub state: String,
    pub detail: String,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// When it is stopped, in seconds since 1970; 0 if it is to serve.
    #[serde(default)]
    pub until: u64,
}

/// One route of the outputs `ipv4` and `ipv6`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    pub name: String,
    /// Of this host; empty if it has none of them any more.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    /// `tcp`, `udp`, `tcp+udp`
    pub protocol: String,
    /// The port of the instance.
    pub target_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes in use in its file system, as `df` says it in the guest, up to half a minute old. If that cannot be read: the bytes that it takes on
    /// the host.
    pub used: Option<u64>,
    pub mount_point: String,
}

/// The answer to `OpenRepository`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Opened {
    pub name: String,
    /// Whether this call created it: the bare repository may have to be made.
    pub created: bool,
    /// Whether it is planted.
    pub planted: bool,
    /// How many bytes may be pushed to it before it is as large as it may be.
    #[serde(default = "no_limit")]
    pub room: u64,
}

fn first() -> u32 {
    1
}

fn no_limit() -> u64 {
    u64::MAX
}

/// The answer to `Push`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pushed {
    /// The job to follow; empty if there is nothing to do.
    pub job: String,
    /// What to tell the pusher at once, a line each: not planted yet, not the default branch, unreadable lines of `.authorized_keys`.
    pub notes: Vec<String>,
}

/// What doors read of a repository after a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushRead {
    /// The default branch.
    pub branch: RefName,
    /// The text of `.authorized_keys` in the commit that was pushed, if it is of that branch and there is one.
    pub keys: Option<String>,
}

/// The answer to `Plant`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Planted {
    #[serde(default = "first")]
    pub version: u32,
    pub namespace: String,
    pub flake: String,
    /// The job of the first deployment; empty if the repository has no default branch yet.
    pub job: String,
    /// Names end in this: `<instance>.<namespace>.<domain>`.
    pub suffix: String,
}

/// How far a job has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Milliseconds since 1970.
    pub at: u64,
    pub stage: Stage,
    /// `info`, `detail` (a line of a log), `error`
    pub level: Level,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Queue,
    Fetch,
    Eval,
    Build,
    Plan,
    Boot,
    Run,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Detail,
    Error,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Done,
    Failed,
    /// A newer push took its place.
    Superseded,
}

/// Which lines `Logs` is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LogQuery {
    /// The last so many, at least one.
    pub lines: u32,
    /// Go on with those that come until the pipe is closed.
    pub follow: bool,
    /// None from before this, in seconds since 1970.
    pub since: u64,
    /// Only of this unit of the guest, if it is not empty.
    pub unit: String,
    /// None from before the last start of the machine.
    pub boot: bool,
    /// What the last deploy said, instead of what the instance did.
    pub build: bool,
}

/// One line of `logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// Microseconds since 1970.
    pub at: u64,
    /// `console`, or the identifier or unit that logged it.
    pub source: String,
    /// syslog priority, 0 to 7.
    pub priority: u8,
    pub text: String,
    /// The unit of the guest that logged it; empty if it was none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// The process that logged it, as the guest numbers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

#[cfg(test)]
mod tests;

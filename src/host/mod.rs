//! The machine: the only room that changes it. Each step is carried out as it stands.
#![allow(clippy::disallowed_methods, reason = "this room touches the machine")]

pub mod journal;
pub mod sim;

use std::{future::Future, path::PathBuf};

use tokio::sync::mpsc;

use crate::{
    bus::LogLine,
    plan::{Observed, Step},
    spec::name::InstanceId,
};

/// The seam between deciding and doing.
pub trait Host: Send + Sync + 'static {
    /// Looks at the machine and says what is there.
    fn observe(&self) -> impl Future<Output = Result<Observed, HostError>> + Send;
    /// Makes one change.
    fn apply(&self, step: &Step) -> impl Future<Output = Result<(), HostError>> + Send;
    /// Looks closer at running guests: for `status` and for a deploy that waits.
    fn inspect(&self, ids: &[InstanceId]) -> impl Future<Output = Result<Vec<Guest>, HostError>> + Send;
    /// Starts the vm unit again although nothing changed: `restart`.
    fn restart(&self, id: &InstanceId) -> impl Future<Output = Result<(), HostError>> + Send;
    /// Reads an instance's journal and console in order, and puts the lines into `sink`; returns at the end, or when nobody listens.
    fn journal(
        &self,
        id: &InstanceId,
        query: JournalQuery,
        sink: mpsc::Sender<LogLine>,
    ) -> impl Future<Output = Result<(), HostError>> + Send;
    /// The volumes that were retired: `(namespace, instance/volume and size, in words)`.
    fn retired(&self) -> impl Future<Output = Result<Vec<(String, String)>, HostError>> + Send;
    /// Returns when a unit of Seed's has changed since the last call (or since start).
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

/// Which lines of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalQuery {
    /// The last so many.
    pub lines: u32,
    /// Go on with those that come.
    pub follow: bool,
    /// None from before the vm unit was started last.
    pub this_boot: bool,
}

/// How one guest is doing, in systemd's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guest {
    pub id: Option<InstanceId>,
    /// `active`, `activating`, `failed`, …
    pub active_state: String,
    /// `running`, `start`, `auto-restart`, …
    pub sub_state: String,
    /// What the guest reported last, through its notify socket: `booting: network.target reached`.
    pub status_text: String,
    /// `success`, `exit-code`, `timeout`, `start-limit-hit`, …
    pub result: String,
    /// Seconds since 1970 at which it entered its state; 0 if unknown.
    pub since: u64,
    pub restarts: u32,
    /// Bytes of memory in use by all of the vm unit's processes, if the kernel accounts it.
    pub memory: Option<u64>,
    /// CPU time used, in nanoseconds, likewise.
    pub cpu_nsec: Option<u64>,
    /// Whether the files on disk are newer than what runs.
    pub restart_pending: bool,
}

/// Why the machine could not be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("could not {deed} {path}")]
    File { deed: &'static str, path: PathBuf, source: std::io::Error },
    #[error("systemd could not {deed} {unit}")]
    Systemd { deed: &'static str, unit: String, source: zbus::Error },
    #[error("{unit} did not {deed}: systemd says {result}")]
    Job { deed: &'static str, unit: String, result: String },
    #[error("`{command}` failed: {output}")]
    Command { command: String, output: String },
}

//! The machine: the only room that changes it. Each step is carried out as it stands.
//!
//! Every step can be carried out again after it was cut short at any point: what is so already is left alone, files are renamed
//! into place, a tap's alias and the `started` mark are written last. What is running is never remembered here, only looked at.
#![allow(clippy::disallowed_methods, reason = "this room touches the machine")]

mod files;
pub mod hypervisor;
pub mod ingress;
pub mod journal;
pub mod network;
pub mod sim;
pub mod systemd;
pub mod usage;
pub mod volume;
mod vsock;

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc;

use crate::{
    bus::LogLine,
    plan::{Observed, Step, UnitState},
    render::{Layout, Limits, ingress::UNIT, vm_unit},
    spec::name::{Namespace, SetId},
};
use systemd::Systemd;
use usage::{Meter, Subject, Usage};
use volume::VolumeError;

/// The seam between deciding and doing.
pub trait Host: Send + Sync + 'static {
    /// Looks at the machine and says what is there.
    fn observe(&self) -> impl Future<Output = Result<Observed, HostError>> + Send;
    /// Makes one change.
    fn apply(&self, step: &Step) -> impl Future<Output = Result<(), HostError>> + Send;
    /// Looks closer at running guests: for `status` and for a deploy that waits.
    fn inspect(&self, ids: &[SetId]) -> impl Future<Output = Result<Vec<Guest>, HostError>> + Send;
    /// What guests use of the machine, and which of their units have failed, in the order of the question: for `status`.
    fn usage(&self, subjects: Vec<Subject>) -> impl Future<Output = Result<Vec<Usage>, HostError>> + Send;
    /// Starts the vm unit again although nothing changed: `restart`.
    fn restart(&self, id: &SetId) -> impl Future<Output = Result<(), HostError>> + Send;
    /// Reads the journals and consoles of sets of one instance in order, and puts the lines into `sink`; returns at the end, or when
    /// nobody listens. If there is something of more than one of them, each line says which it is of.
    fn journal(
        &self,
        sets: &[SetId],
        query: JournalQuery,
        sink: mpsc::Sender<LogLine>,
    ) -> impl Future<Output = Result<(), HostError>> + Send;
    /// The newest lines that the agent has written into the system's journal about its audit log.
    fn audited(&self) -> impl Future<Output = Result<Vec<String>, HostError>> + Send;
    /// Opens a stream to a vsock port of a running guest.
    fn connect(&self, id: &SetId, port: u32) -> impl Future<Output = Result<OwnedFd, HostError>> + Send;
    /// The volumes that were retired: `(namespace, instance/volume and size, in words)`.
    fn retired(&self) -> impl Future<Output = Result<Vec<(String, String)>, HostError>> + Send;
    /// How many bytes the retired volumes of a namespace may take.
    fn retired_bytes(&self, namespace: &Namespace) -> impl Future<Output = Result<u64, HostError>> + Send;
    /// Returns when a unit of Seed's has changed since the last call (or since start).
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

/// Which lines of a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalQuery {
    /// The last so many.
    pub lines: u32,
    /// Go on with those that come.
    pub follow: bool,
    /// None from before the vm unit was started last.
    pub this_boot: bool,
    /// None from before this, in seconds since 1970.
    pub since: u64,
    /// Only of this unit of the guest; empty for all, and the console.
    pub unit: String,
}

/// How many units systemd is asked about at the same time; each is a few questions.
const AT_ONCE: usize = 16;

/// How one guest is doing, in systemd's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guest {
    pub id: Option<SetId>,
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
}

/// Why the machine could not be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("could not {deed} {path}")]
    File { deed: &'static str, path: PathBuf, source: io::Error },
    #[error("systemd could not {deed} {unit}")]
    Systemd { deed: &'static str, unit: String, source: zbus::Error },
    #[error("{unit} did not {deed}: systemd says {result}")]
    Job { deed: &'static str, unit: String, result: String },
    #[error("could not connect to vsock port {port} of {id}")]
    Connect { id: SetId, port: u32, source: io::Error },
    #[error("`{command}` failed: {output}")]
    Command { command: String, output: String },
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("this is a bug in Seed: a look at the machine died")]
    Died(#[source] tokio::task::JoinError),
}

/// The real machine.
#[derive(Debug)]
pub struct Machine {
    layout: Layout,
    systemd: Systemd,
    eyes: Arc<Mutex<Eyes>>,
    meter: Arc<Mutex<Meter>>,
    changes: tokio::sync::Mutex<tokio::sync::watch::Receiver<u64>>,
}

/// What has to be looked at without systemd, and what was seen there before.
#[derive(Debug, Default)]
struct Eyes {
    files: files::Files,
    taps: network::Taps,
}

impl Machine {
    /// Connects to systemd; changes nothing yet.
    pub async fn new(layout: Layout) -> Result<Self, HostError> {
        let systemd = Systemd::connect().await?;
        let changes = tokio::sync::Mutex::new(systemd.changes());
        Ok(Self { layout, systemd, eyes: Arc::default(), meter: Arc::default(), changes })
    }

    /// Makes what all instances share: folders, the gateway, forwarding. Once, when the agent starts; what is so already stays.
    pub async fn prepare(&self) -> Result<(), HostError> {
        for path in [&self.layout.state, &self.layout.run, &self.layout.units] {
            files::folder(path)?;
        }
        volume::file::prepare(&self.volumes())?;
        // Builds that outlived an agent which was killed: their deploys begin anew.
        let builds: Vec<String> = self.systemd.list(&["seed-build@*.service"]).await?.into_keys().collect();
        self.systemd.stop(&builds, Duration::from_secs(10)).await?;
        if self.layout.ingress.is_some() {
            ingress::prepare(&self.layout)?;
        }
        network::prepare(&self.layout.addressing).await
    }

    fn volumes(&self) -> PathBuf {
        self.layout.state.join("volumes")
    }

    /// The text of the firewall that was applied last.
    fn firewall(&self) -> PathBuf {
        self.layout.run.join("firewall.nft")
    }

    /// The limits that slices were given since the machine started.
    fn slices(&self) -> PathBuf {
        self.layout.run.join("slices.json")
    }

    /// Runs what blocks on disks and programs beside the event loop.
    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        tokio::task::spawn_blocking(work).await.map_err(HostError::Died)?
    }

    async fn look(&self) -> Result<Observed, HostError> {
        let (eyes, layout, firewall, slices) = (self.eyes.clone(), self.layout.clone(), self.firewall(), self.slices());
        let looked = self.beside(move || {
            // A look that panicked has left no more than a missing entry.
            let mut eyes = eyes.lock().unwrap_or_else(PoisonError::into_inner);
            let mut observed = Observed::default();
            eyes.files.observe(&layout, &mut observed)?;
            for (id, tap) in eyes.taps.observe()? {
                observed.instances.entry(id).or_default().tap = Some(tap);
            }
            observed.firewall = read_firewall(&firewall)?;
            observed.slices = read_slices(&slices)?;
            if layout.ingress.is_some() {
                observed.ingress.files = eyes.files.texts(&ingress::paths(&layout))?;
            }
            Ok(observed)
        });
        let mut observed = looked.await?;
        for (name, unit) in self.systemd.list(&["seed-*@*.service", UNIT]).await? {
            // It is not asked before it is up: whoever knocks at its socket starts it.
            if name == UNIT && unit.state() == UnitState::Active && self.layout.ingress.is_some() {
                match ingress::running(&self.layout).await {
                    Ok(running) => observed.ingress.running = Some(running),
                    Err(error) => {
                        tracing::warn!(%error, "HAProxy does not say what it has");
                        observed.ingress.mute = true;
                    }
                }
            }
            let Some(id) = files::instance_of_unit(&name) else { continue };
            let one = observed.instances.entry(id).or_default();
            match name.split_once('@').map(|(kind, _)| kind) {
                Some("seed-vm") => one.vm = unit.state(),
                // One with a job is being started again, by whoever restarts the instance.
                Some("seed-store" | "seed-tpm" | "seed-vsock") => {
                    one.helper_failed |= unit.state() == UnitState::Failed && !unit.job;
                }
                _ => {}
            }
        }
        Ok(observed)
    }

    /// Tells systemd of the limits that have changed, then writes down which there are.
    async fn limit(&self, slices: &BTreeMap<String, Limits>) -> Result<(), HostError> {
        let before = read_slices(&self.slices())?;
        for (name, limits) in slices.iter().filter(|(name, limits)| before.get(*name) != Some(limits)) {
            self.systemd.limit(name, Some(*limits)).await?;
        }
        for name in before.keys().filter(|name| !slices.contains_key(*name)) {
            self.systemd.limit(name, None).await?;
        }
        let text = serde_json::to_string(slices).expect("plain data is JSON");
        files::write(&self.slices(), &text)
    }

    async fn start(&self, id: &SetId, unit: &str) -> Result<(), HostError> {
        self.systemd.start(unit, &[&pattern(id)]).await?;
        files::mark_started(&self.layout, id)
    }

    async fn stop(&self, units: &[String]) -> Result<(), HostError> {
        self.systemd.stop(units, Duration::from_secs(self.layout.stop_timeout_secs.into())).await
    }

    fn write(&self, step: &Step) -> Result<(), HostError> {
        let Step::Write { id, units, files, remove, uid } = step else { return Ok(()) };
        files::clear_started(&self.layout, id)?;
        files::make_run(&self.layout, id, *uid)?;
        for name in remove {
            files::remove(&self.layout.units.join(name))?;
        }
        for file in files {
            if let Some(parent) = file.path.parent().filter(|parent| !parent.exists()) {
                files::folder(parent)?;
            }
            files::write(&file.path, &file.text)?;
        }
        units.iter().try_for_each(|unit| files::write(&self.layout.units.join(&unit.name), &unit.text))
    }
}

/// Matches all units of an instance.
fn pattern(id: &SetId) -> String {
    format!("seed-*@{}.service", id.unit_instance())
}

/// The limits of slices, as they were written down; none if that cannot be read: they are given anew then.
fn read_slices(path: &std::path::Path) -> Result<BTreeMap<String, Limits>, HostError> {
    match std::fs::read(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        read => Ok(serde_json::from_slice(&read.map_err(files::error("read", path))?).unwrap_or_default()),
    }
}

/// The firewall that was applied last, if its table is still there.
fn read_firewall(path: &std::path::Path) -> Result<Option<String>, HostError> {
    let text = match std::fs::read_to_string(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(files::error("read", path))?,
    };
    let there = network::has_table().map_err(files::error("ask the kernel for the firewall of", path))?;
    Ok(there.then_some(text))
}

impl Host for Machine {
    async fn observe(&self) -> Result<Observed, HostError> {
        self.look().await
    }

    async fn apply(&self, step: &Step) -> Result<(), HostError> {
        match step {
            Step::ApplyFirewall(text) => {
                network::apply_firewall(text).await?;
                files::write(&self.firewall(), text)
            }
            Step::LimitSlices(slices) => self.limit(slices).await,
            Step::Route { files, reload, changes } => {
                files.iter().try_for_each(ingress::write)?;
                let changed = ingress::change(&self.layout, changes).await;
                let Some(digest) = reload else { return changed };
                self.systemd.signal(UNIT, "main", libc::SIGUSR2).await?;
                ingress::reloaded(&self.layout, digest).await
            }
            Step::Stop { id, units, kill } => {
                files::clear_started(&self.layout, id)?;
                if *kill {
                    self.systemd.kill(&vm_unit(id)).await?;
                }
                self.stop(units).await
            }
            Step::RemoveInstance { id, units, tap } => {
                for name in units {
                    files::remove(&self.layout.units.join(name))?;
                }
                if let Some(tap) = tap {
                    network::remove_tap(tap).await?;
                }
                // Its user id may be another's next; systemd gives them to whoever has the instance's name when that comes back.
                for kept in [self.layout.tpm_of(id), self.layout.log_of(id)] {
                    files::take_back(&kept)?;
                }
                files::remove_run(&self.layout, id)
            }
            Step::RetireVolume { id, name } => {
                let (image, kept) = (self.layout.volume(id, name), self.volumes().join("retired"));
                let (id, name) = (id.instance(), name.clone());
                self.beside(move || Ok(volume::file::retire(&image, &kept, &id, &name, files::now())?)).await
            }
            Step::CreateVolume { id, name, size, uid } => {
                let (image, size, uid) = (self.layout.volume(id, name), *size, *uid);
                self.beside(move || Ok(volume::file::create(&image, size, uid)?)).await
            }
            Step::GrowVolume { id, name, size } => {
                let (image, size) = (self.layout.volume(id, name), *size);
                self.beside(move || Ok(volume::file::grow(&image, size)?)).await
            }
            Step::CreateTap { id, address } => network::create_tap(id, address, &self.layout.addressing).await,
            Step::Write { .. } => self.write(step),
            Step::Start { id, unit } => self.start(id, unit).await,
        }
    }

    async fn inspect(&self, ids: &[SetId]) -> Result<Vec<Guest>, HostError> {
        let loaded = self.systemd.list(&["seed-vm@*.service"]).await?;
        let ask = async |id: &SetId| {
            let name = vm_unit(id);
            match loaded.get(&name) {
                Some(unit) => {
                    let told = self.systemd.guest(id, unit).await;
                    told.map_err(|source| HostError::Systemd { deed: "tell about", unit: name, source })
                }
                None => Ok(Guest {
                    id: Some(id.clone()),
                    active_state: "inactive".into(),
                    sub_state: "dead".into(),
                    ..Guest::default()
                }),
            }
        };
        let mut guests = Vec::with_capacity(ids.len());
        // The bus refuses who waits for more than 128 answers at once.
        for some in ids.chunks(AT_ONCE) {
            guests.extend(futures_util::future::try_join_all(some.iter().map(&ask)).await?);
        }
        Ok(guests)
    }

    async fn usage(&self, subjects: Vec<Subject>) -> Result<Vec<Usage>, HostError> {
        self.measure(subjects).await
    }

    async fn restart(&self, id: &SetId) -> Result<(), HostError> {
        let pattern = pattern(id);
        let mut units: Vec<String> = self.systemd.list(&[&pattern]).await?.into_keys().collect();
        units.sort_by_key(|name| *name != vm_unit(id));
        // Should this be cut short, the next pass starts it.
        files::clear_started(&self.layout, id)?;
        self.stop(&units).await?;
        self.start(id, &vm_unit(id)).await
    }

    async fn journal(&self, sets: &[SetId], query: JournalQuery, sink: mpsc::Sender<LogLine>) -> Result<(), HostError> {
        // One that was never there has no folder; the first is asked about all the same.
        let there = |at: usize, id: &SetId| at == 0 || self.layout.log_of(id).is_dir();
        let sets: Vec<&SetId> = sets.iter().enumerate().filter(|(at, id)| there(*at, id)).map(|(_, id)| id).collect();
        let mut sources = Vec::new();
        for id in &sets {
            let unit = vm_unit(id);
            let started = if query.this_boot { self.systemd.started_at(&unit).await } else { None };
            let since = started.unwrap_or(0).max(query.since);
            let called = if sets.len() > 1 { id.place() } else { String::new() };
            sources.push(journal::Source { guest: self.layout.log_of(id), unit, called, since });
        }
        journal::read(sources, query, sink).await
    }

    async fn connect(&self, id: &SetId, port: u32) -> Result<OwnedFd, HostError> {
        let connected = vsock::connect(&self.layout.run_of(id), port).await;
        connected.map_err(|source| HostError::Connect { id: id.clone(), port, source })
    }

    async fn audited(&self) -> Result<Vec<String>, HostError> {
        journal::audited().await
    }

    async fn retired(&self) -> Result<Vec<(String, String)>, HostError> {
        let kept = self.volumes().join("retired");
        let found = self.beside(move || Ok(volume::file::retired(&kept)?)).await?;
        let words = |volume: volume::Retired| {
            let text = format!("{}/{} ({})", volume.id.name, volume.name, volume.size);
            (volume.id.namespace.to_string(), text)
        };
        Ok(found.into_iter().map(words).collect())
    }

    async fn retired_bytes(&self, namespace: &Namespace) -> Result<u64, HostError> {
        let kept = self.volumes().join("retired");
        let found = self.beside(move || Ok(volume::file::retired(&kept)?)).await?;
        Ok(found.iter().filter(|volume| volume.id.namespace == *namespace).map(|volume| volume.size.0).sum())
    }

    async fn changed(&self) {
        let mut changes = self.changes.lock().await;
        if changes.changed().await.is_err() {
            // The connection is gone, and with it all word of changes; `observe` says so.
            std::future::pending::<()>().await;
        }
    }
}

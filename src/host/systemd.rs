//! systemd over the system bus: what runs, start, stop, and word of every change.
//!
//! Nothing here reloads systemd on the way of a deploy: that takes seconds on a busy host. A unit that is not loaded is read fresh
//! from its file when it is started, so: stop, wait until it is *unloaded*, write, start. Waiting looks at the state again after
//! each signal instead of collecting signals, so that none can be missed.
//!
//! A unit's properties are only asked for when it is known to be loaded: asking loads it.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, message::Type};

use super::{Guest, HostError};
use crate::{plan::UnitState, render::Limits, spec::name::SetId};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
/// Object paths of units whose names begin with `seed-`.
const OUR_UNITS: &str = "/org/freedesktop/systemd1/unit/seed_2d";
/// How many signals may wait. One that finds no room is lost, and the ones before it say the same: look again.
const QUEUE: NonZeroUsize = NonZeroUsize::new(256).expect("is not zero");
/// After the guest had its time to power off, how long systemd may take to kill what is left and to forget the units.
const FORGET_PATIENCE: Duration = Duration::from_secs(30);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn reload(&self) -> zbus::Result<()>;
    fn set_unit_properties(&self, name: &str, runtime: bool, properties: &[(&str, zbus::Variant<'_>)]) -> zbus::Result<()>;
    fn list_units_by_patterns(&self, states: &[&str], patterns: &[&str]) -> zbus::Result<Vec<Listed>>;
}

/// Name, description, load state, active state, sub state, followed unit, object, job id (0 for none), job type, job object.
type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// A unit that systemd has loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub active_state: String,
    pub sub_state: String,
    pub path: OwnedObjectPath,
    /// Whether a job waits or runs for it.
    pub job: bool,
}

impl Loaded {
    /// Its state in the words of the plan.
    pub fn state(&self) -> UnitState {
        match self.active_state.as_str() {
            "active" | "reloading" | "refreshing" => UnitState::Active,
            "activating" => UnitState::Activating,
            "deactivating" => UnitState::Deactivating,
            "failed" => UnitState::Failed,
            _ => UnitState::Inactive,
        }
    }
}

/// A connection to systemd.
#[derive(Debug)]
pub struct Systemd {
    bus: Connection,
    manager: ManagerProxy<'static>,
    /// Counts the signals about units of Seed's.
    changes: watch::Receiver<u64>,
    told: Arc<Mutex<Told>>,
}

/// What systemd has told of vm units, until it says that something about one has changed: a thousand that just run cost nothing.
#[derive(Debug, Default)]
struct Told {
    /// By object: the count of changes at the last one of it, and what was told since.
    units: BTreeMap<String, (u64, Option<(Instant, Guest)>)>,
    /// The count at the last time that something was dropped from here.
    dropped: u64,
}

/// What was told holds no longer than this: a signal may have been lost.
const BELIEF: Duration = Duration::from_secs(300);
/// More objects than this are not kept apart.
const MOST: usize = 20_000;

impl Told {
    fn changed(&mut self, path: &str, count: u64) {
        if self.units.len() > MOST {
            self.units.clear();
            self.dropped = count;
        }
        self.units.insert(path.to_owned(), (count, None));
    }

    fn known(&self, unit: &Loaded) -> Option<Guest> {
        let (_, told) = self.units.get(unit.path.as_str())?;
        let (at, guest) = told.as_ref()?;
        // One that is starting says something new all the time.
        let same = guest.active_state == unit.active_state && guest.sub_state == unit.sub_state;
        (same && unit.state() != UnitState::Activating && at.elapsed() < BELIEF).then(|| guest.clone())
    }

    /// Keeps what was asked for when `asked` changes had been counted, if nothing has changed since.
    fn keep(&mut self, unit: &Loaded, asked: u64, guest: &Guest) {
        let (changed, told) = self.units.entry(unit.path.to_string()).or_insert((0, None));
        if *changed <= asked && self.dropped <= asked {
            *told = Some((Instant::now(), guest.clone()));
        }
    }
}

/// Whether a loaded unit is older than its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outdated(bool);

fn failed(deed: &'static str, unit: &str) -> impl FnOnce(zbus::Error) -> HostError {
    move |source| HostError::Systemd { deed, unit: unit.to_owned(), source }
}

impl Systemd {
    /// Connects to the system bus and listens for changes of units of Seed's.
    pub async fn connect() -> Result<Self, HostError> {
        let listen = failed("be listened to for", "seed-*");
        let bus = Connection::system().await.map_err(failed("be reached for", "seed-*"))?;
        let connected = async {
            let manager = ManagerProxy::builder(&bus).cache_properties(zbus::proxy::CacheProperties::No).build().await?;
            let signal = || MatchRule::builder().msg_type(Type::Signal).sender(SYSTEMD);
            let rules = [
                signal().interface("org.freedesktop.DBus.Properties").path_namespace("/org/freedesktop/systemd1/unit").build()?,
                signal().interface(MANAGER).member("UnitNew").build()?,
                signal().interface(MANAGER).member("UnitRemoved").build()?,
            ];
            let mut streams = Vec::new();
            for rule in rules {
                streams.push(MessageStream::for_match_rule(rule, &bus, Some(QUEUE)).await?);
            }
            manager.subscribe().await?;
            Ok::<_, zbus::Error>((manager, streams))
        };
        let (manager, streams) = connected.await.map_err(listen)?;
        let (count, changes) = watch::channel(0);
        let told: Arc<Mutex<Told>> = Arc::default();
        let forget = told.clone();
        tokio::spawn(async move {
            let mut signals = futures_util::stream::select_all(streams);
            // The stream ends with the connection, the receiver with the `Systemd`.
            while let Some(signal) = signals.next().await {
                if count.is_closed() {
                    return;
                }
                let Some(path) = signal.ok().and_then(|signal| unit_of(&signal)) else { continue };
                // First what was told is forgotten, then whoever waits is woken and asks.
                let next = *count.borrow() + 1;
                forget.lock().unwrap_or_else(PoisonError::into_inner).changed(&path, next);
                count.send_replace(next);
            }
            tracing::error!("the system bus hung up: changes of units go unnoticed until the agent is started again");
        });
        Ok(Self { bus, manager, changes, told })
    }

    /// Counts changes; wakes whoever waits for the next.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// The loaded units whose names match one of `patterns`, in one call.
    pub async fn list(&self, patterns: &[&str]) -> Result<BTreeMap<String, Loaded>, HostError> {
        let listed = self.manager.list_units_by_patterns(&[], patterns).await.map_err(failed("list", "seed-*"))?;
        let units = listed.into_iter().map(|(name, _, _, active_state, sub_state, _, path, job, _, _)| {
            (name, Loaded { active_state, sub_state, path, job: job != 0 })
        });
        Ok(units.collect())
    }

    /// Queues the start of a unit, and does not wait for it. `patterns` match the unit and all that it pulls in: whatever of that is
    /// loaded from older files is read anew before.
    pub async fn start(&self, name: &str, patterns: &[&str]) -> Result<(), HostError> {
        let before = self.forget_failures(patterns).await?;
        if before == Some(Outdated(true)) {
            tracing::error!(unit = name, "a unit was still loaded when its files were written: systemd reloads, which takes time");
            self.manager.reload().await.map_err(failed("reload", name))?;
        }
        self.manager.start_unit(name, "replace").await.map_err(failed("start", name))?;
        // What was not loaded before is read from the files of now. Only a unit that was may have been forgotten too late.
        if before.is_some() && self.forget_failures(patterns).await? == Some(Outdated(true)) {
            tracing::error!(
                unit = name,
                "a unit was started from files that were replaced: restart it to bring the new ones into use"
            );
            self.manager.reload().await.map_err(failed("reload", name))?;
        }
        Ok(())
    }

    /// Makes systemd forget that units have failed. Says whether one is loaded whose file has changed since; `None` if none is loaded.
    async fn forget_failures(&self, patterns: &[&str]) -> Result<Option<Outdated>, HostError> {
        let loaded = self.list(patterns).await?;
        let mut outdated = false;
        for (name, unit) in &loaded {
            if unit.state() == UnitState::Failed {
                self.reset_failed(name).await?;
            } else {
                let property = self.property(&unit.path, UNIT, "NeedDaemonReload").await;
                outdated |= property.map_err(failed("tell about", name))?.is_some_and(|value| value.try_into() == Ok(true));
            }
        }
        Ok((!loaded.is_empty()).then_some(Outdated(outdated)))
    }

    /// Limits a slice at once, loaded or not, until the machine restarts; without `limits` it has none. This reloads nothing.
    pub async fn limit(&self, slice: &str, limits: Option<Limits>) -> Result<(), HostError> {
        let memory = limits.map_or(u64::MAX, |limits| limits.memory);
        let cpu_usec = limits.map_or(u64::MAX, |limits| u64::from(limits.cpus) * 1_000_000);
        let properties = [("MemoryMax", memory.into()), ("CPUQuotaPerSecUSec", cpu_usec.into())];
        self.manager.set_unit_properties(slice, true, &properties).await.map_err(failed("limit", slice))
    }

    async fn reset_failed(&self, name: &str) -> Result<(), HostError> {
        match self.manager.reset_failed_unit(name).await {
            Err(error) if is_no_such_unit(&error) => Ok(()),
            done => done.map_err(failed("reset", name)),
        }
    }

    /// Stops units and waits until systemd has forgotten all of them, so that their files are read anew when they are started. The first
    /// is asked first: what is only wanted by it, as its journal is, goes at once unless it is stopping already.
    /// `patience` is the time that their own TimeoutStopSec may take.
    pub async fn stop(&self, units: &[String], patience: Duration) -> Result<(), HostError> {
        let names: Vec<&str> = units.iter().map(String::as_str).collect();
        if names.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + patience + FORGET_PATIENCE;
        let mut changes = self.changes();
        let mut asked = BTreeMap::new();
        loop {
            changes.borrow_and_update();
            let loaded = self.list(&names).await?;
            let Some((first, state)) = loaded.first_key_value() else { return Ok(()) };
            if Instant::now() > deadline {
                let result = format!("it is {} ({})", state.active_state, state.sub_state);
                return Err(HostError::Job { deed: "stop", unit: first.clone(), result });
            }
            for (name, unit) in units.iter().filter_map(|name| loaded.get_key_value(name)) {
                match unit.state() {
                    UnitState::Failed => self.reset_failed(name).await?,
                    UnitState::Active | UnitState::Activating => {
                        // All are asked at once: systemd stops them in the reverse of the order in which it starts them.
                        // Asked again only when systemd has dropped the job, as it does if someone starts the unit meanwhile.
                        if !asked.contains_key(name) || !unit.job {
                            match self.manager.stop_unit(name, "replace").await {
                                Err(error) if !is_no_such_unit(&error) => return Err(failed("stop", name)(error)),
                                _ => drop(asked.insert(name.clone(), ())),
                            }
                        }
                    }
                    UnitState::Inactive | UnitState::Deactivating => {}
                }
            }
            // A unit is forgotten a moment after it has stopped; the timeout is for a signal that found no room.
            drop(timeout(Duration::from_millis(250), changes.changed()).await);
        }
    }

    /// Kills every process of a unit; nothing, if it has none. Stop it right after, or systemd starts it again.
    pub async fn kill(&self, name: &str) -> Result<(), HostError> {
        self.signal(name, "all", libc::SIGKILL).await
    }

    /// Sends a signal to `all` processes of a unit, or its `main` one; nothing, if it has none.
    pub async fn signal(&self, name: &str, whom: &str, signal: i32) -> Result<(), HostError> {
        match self.manager.kill_unit(name, whom, signal).await {
            Err(error) if is_no_such_unit(&error) || is_no_process(&error) => Ok(()),
            done => done.map_err(failed("signal", name)),
        }
    }

    /// What systemd says about a loaded vm unit.
    pub async fn guest(&self, id: &SetId, unit: &Loaded) -> zbus::Result<Guest> {
        if let Some(known) = self.told.lock().unwrap_or_else(PoisonError::into_inner).known(unit) {
            return Ok(Guest { id: Some(id.clone()), ..known });
        }
        let asked = *self.changes.borrow();
        let get = |interface, name| self.property(&unit.path, interface, name);
        let (since, status, result, restarts) = tokio::try_join!(
            get(UNIT, "StateChangeTimestamp"),
            get(SERVICE, "StatusText"),
            get(SERVICE, "Result"),
            get(SERVICE, "NRestarts"),
        )?;
        let number = |value: Option<OwnedVariant>| value.and_then(|value| u64::try_from(value).ok());
        let text = |value: Option<OwnedVariant>| value.and_then(|value| String::try_from(value).ok()).unwrap_or_default();
        let guest = Guest {
            id: Some(id.clone()),
            active_state: unit.active_state.clone(),
            sub_state: unit.sub_state.clone(),
            status_text: text(status),
            result: text(result),
            since: number(since).unwrap_or(0) / 1_000_000,
            restarts: restarts.and_then(|value| u32::try_from(value).ok()).unwrap_or(0),
        };
        self.told.lock().unwrap_or_else(PoisonError::into_inner).keep(unit, asked, &guest);
        Ok(guest)
    }

    /// When the main process of a unit was started last, in seconds since 1970; `None` if that is not known.
    pub async fn started_at(&self, name: &str) -> Option<u64> {
        let loaded = self.list(&[name]).await.ok()?;
        let value = self.property(&loaded.get(name)?.path, SERVICE, "ExecMainStartTimestamp").await.ok()??;
        u64::try_from(value).ok().filter(|micros| *micros != 0).map(|micros| micros / 1_000_000)
    }

    /// One property; `None` if the unit is gone.
    async fn property(&self, path: &OwnedObjectPath, interface: &str, name: &str) -> zbus::Result<Option<OwnedVariant>> {
        let properties = Some("org.freedesktop.DBus.Properties");
        match self.bus.call_method(Some(SYSTEMD), path, properties, "Get", &(interface, name)).await {
            Ok(reply) => reply.body().deserialize().map(Some),
            Err(error) if is_no_such_unit(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn is_no_such_unit(error: &zbus::Error) -> bool {
    const GONE: [&str; 3] =
        ["org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.systemd1.LoadFailed"];
    matches!(error, zbus::Error::MethodError(name, _, _) if GONE.contains(&name.as_str()))
}

fn is_no_process(error: &zbus::Error) -> bool {
    const NONE: [&str; 2] = ["org.freedesktop.systemd1.NoSuchProcess", "org.freedesktop.DBus.Error.UnixProcessIdUnknown"];
    matches!(error, zbus::Error::MethodError(name, _, _) if NONE.contains(&name.as_str()))
}

/// The object of the unit of Seed's that a signal is about.
fn unit_of(signal: &Message) -> Option<String> {
    let header = signal.header();
    if header.interface().is_some_and(|interface| interface.as_str() == MANAGER) {
        let (name, path) = signal.body().deserialize::<(String, OwnedObjectPath)>().ok()?;
        return name.starts_with("seed-").then(|| path.to_string());
    }
    header.path().map(|path| path.to_string()).filter(|path| path.starts_with(OUR_UNITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_holds_until_something_changes() {
        let unit = |state: &str| Loaded {
            active_state: state.into(),
            sub_state: "running".into(),
            path: "/org/freedesktop/systemd1/unit/seed_2dvm_40x".try_into().unwrap(),
            job: false,
        };
        let guest = Guest { active_state: "active".into(), sub_state: "running".into(), restarts: 3, ..Guest::default() };
        let mut told = Told::default();
        let (active, path) = (unit("active"), unit("active").path.to_string());
        assert_eq!(told.known(&active), None);
        told.keep(&active, 0, &guest);
        assert_eq!(told.known(&active), Some(guest.clone()));
        assert_eq!(told.known(&unit("failed")), None, "its state is another");
        told.changed(&path, 1);
        assert_eq!(told.known(&active), None);
        // Asked before the change, answered after it.
        told.keep(&active, 0, &guest);
        assert_eq!(told.known(&active), None);
        told.keep(&active, 1, &guest);
        assert_eq!(told.known(&active), Some(guest.clone()));
        // What is starting is always asked anew.
        let starting = Guest { active_state: "activating".into(), ..guest };
        told.keep(&unit("activating"), 1, &starting);
        assert_eq!(told.known(&unit("activating")), None);
    }
}

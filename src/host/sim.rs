//! A machine made of memory: every step is applied to a value, so that plans and the agent can be tested by the thousand.
//! It is stricter than a real one: a step that a real machine would carry out on something it should not (writing the units of what
//! runs, a tap that another instance has) is an error here. It has no clock: boots end at once, or at [`Sim::tick`].

mod guest;
mod ingress;

use std::{
    collections::BTreeMap,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, mpsc};

use self::ingress::Ingress;
use super::{
    Guest, Host, HostError, JournalQuery,
    usage::{Subject, Usage},
};
use crate::{
    bus::LogLine,
    plan::{Observed, ObservedInstance, Step, Tap, UnitState},
    render::{Limits, vm_unit},
    spec::{
        name::{Namespace, SetId, VolumeName},
        quantity::Bytes,
    },
};

/// What happens when a guest is started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Boot {
    /// It is ready before the start returns.
    #[default]
    AtOnce,
    /// It is ready at the next tick.
    AtTick,
    /// It never gets ready.
    Hangs,
    /// Its unit fails, with this result of systemd's: `exit-code`, `timeout`, …
    Fails(String),
    /// The same, the first time; from then on it starts as others do.
    FailsOnce(String),
}

/// A volume. Its bytes are told apart from all others by a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimVolume {
    pub bytes: u64,
    pub size: Bytes,
    pub uid: u32,
}

/// The simulated machine. A clone is the same machine.
#[derive(Clone, Default)]
pub struct Sim {
    machine: Arc<Mutex<Machine>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Machine {
    instances: BTreeMap<SetId, SimInstance>,
    firewall: Option<String>,
    slices: BTreeMap<String, Limits>,
    ingress: Ingress,
    retired: Vec<(SetId, VolumeName, SimVolume)>,
    boot: Boot,
    boots: BTreeMap<SetId, Boot>,
    failed_units: BTreeMap<SetId, Vec<String>>,
    audited: Vec<String>,
    applied: Vec<Step>,
    observations: usize,
    fail_apply: Option<usize>,
    fail_observe: Option<usize>,
    /// The guests' ends of streams that were opened to them.
    entered: Vec<(SetId, u32, UnixStream)>,
    /// Counts events: there is no other time here.
    clock: u64,
}

#[derive(Default, Clone)]
struct SimInstance {
    units: BTreeMap<String, String>,
    files: BTreeMap<PathBuf, String>,
    vm: UnitState,
    helper_failed: bool,
    started: bool,
    tap: Option<Tap>,
    volumes: BTreeMap<VolumeName, SimVolume>,
    /// The text of the vm unit that runs.
    running: Option<String>,
    boots: u32,
    restarts: u32,
    result: String,
    since: u64,
}

impl Sim {
    /// An empty machine whose guests are ready at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// What happens when a guest is started, unless [`Sim::boot_of`] says otherwise.
    pub fn boot(&self, boot: Boot) {
        self.lock().boot = boot;
    }

    /// What happens when this guest is started.
    pub fn boot_of(&self, id: impl Into<SetId>, boot: Boot) {
        self.lock().boots.insert(id.into(), boot);
    }

    /// The machine applies `after` more steps and fails the next one without doing anything; then it works again.
    pub fn fail_apply(&self, after: usize) {
        self.lock().fail_apply = Some(after);
    }

    /// Likewise for looking.
    pub fn fail_observe(&self, after: usize) {
        self.lock().fail_observe = Some(after);
    }

    /// The streams that were opened to guests since this was last asked: the guests' ends.
    pub fn entered(&self) -> Vec<(SetId, u32, UnixStream)> {
        std::mem::take(&mut self.lock().entered)
    }

    /// Time passes: guests that were to get ready at a tick are.
    pub fn tick(&self) {
        let mut machine = self.lock();
        let default = machine.boot.clone();
        let Machine { instances, boots, clock, .. } = &mut *machine;
        for (id, instance) in instances.iter_mut().filter(|(_, instance)| instance.vm == UnitState::Activating) {
            match boots.get(id).unwrap_or(&default) {
                Boot::AtOnce | Boot::AtTick => instance.enter(UnitState::Active, "success", clock),
                Boot::Hangs => {}
                Boot::Fails(result) | Boot::FailsOnce(result) => instance.enter(UnitState::Failed, result, clock),
            }
        }
        drop(machine);
        self.changed.notify_one();
    }

    /// The VMM dies; systemd starts it again.
    pub fn kill_vm(&self, id: impl Into<SetId>) {
        self.event(&id.into(), |instance, boot, clock| {
            if instance.vm == UnitState::Active {
                instance.restarts += 1;
                instance.start(boot, clock);
            }
        });
    }

    /// One of the programs that the VMM needs dies; the VMM goes on without it.
    pub fn kill_helper(&self, id: impl Into<SetId>) {
        self.event(&id.into(), |instance, _, _| instance.helper_failed = true);
    }

    /// Units of the guest have failed; the guest runs on.
    pub fn fail_units(&self, id: impl Into<SetId>, units: &[&str]) {
        self.lock().failed_units.insert(id.into(), units.iter().map(|unit| (*unit).to_owned()).collect());
    }

    /// The system's journal has this line about the audit log.
    pub fn audited_line(&self, line: String) {
        self.lock().audited.push(line);
    }

    /// systemd gives the guest up.
    pub fn give_up(&self, id: impl Into<SetId>, result: &str) {
        self.event(&id.into(), |instance, _, clock| instance.enter(UnitState::Failed, result, clock));
    }

    /// A person stops the vm unit with systemctl.
    pub fn stop_by_hand(&self, id: impl Into<SetId>) {
        self.event(&id.into(), |instance, _, clock| instance.enter(UnitState::Inactive, "success", clock));
    }

    /// A person starts the vm unit with systemctl.
    pub fn start_by_hand(&self, id: impl Into<SetId>) {
        self.event(&id.into(), |instance, boot, clock| instance.start(boot, clock));
    }

    /// The machine restarts: what is below /run is gone, and nothing runs.
    pub fn reboot(&self) {
        let mut machine = self.lock();
        (machine.firewall, machine.slices, machine.ingress) = (None, BTreeMap::new(), Ingress::default());
        for instance in machine.instances.values_mut() {
            *instance = SimInstance { volumes: std::mem::take(&mut instance.volumes), ..SimInstance::default() };
        }
        drop(machine);
        self.changed.notify_one();
    }

    /// Every step that was applied, in order.
    pub fn applied(&self) -> Vec<Step> {
        self.lock().applied.clone()
    }

    /// How many times the machine was looked at.
    pub fn observations(&self) -> usize {
        self.lock().observations
    }

    /// What would be observed now; not counted, and it cannot fail.
    pub fn look(&self) -> Observed {
        self.lock().observe()
    }

    /// How many times the guest was started, by whomever.
    pub fn boots(&self, id: impl Into<SetId>) -> u32 {
        self.lock().instances.get(&id.into()).map_or(0, |instance| instance.boots)
    }

    /// The text of the vm unit that the guest runs from; none if it does not run.
    pub fn running(&self, id: impl Into<SetId>) -> Option<String> {
        self.lock().instances.get(&id.into()).and_then(|instance| instance.running.clone())
    }

    /// Every volume that is there, and every one that was set aside.
    pub fn volumes(&self) -> (Vec<SimVolume>, Vec<SimVolume>) {
        let machine = self.lock();
        let present = machine.instances.values().flat_map(|instance| instance.volumes.values().copied()).collect();
        (present, machine.retired.iter().map(|(_, _, volume)| *volume).collect())
    }

    /// Applies a step at once.
    pub fn apply_now(&self, step: &Step) -> Result<(), HostError> {
        let result = self.lock().apply(step);
        self.changed.notify_one();
        result
    }

    fn event(&self, id: &SetId, happen: impl FnOnce(&mut SimInstance, &Boot, &mut u64)) {
        let mut machine = self.lock();
        let boot = machine.boot_of(id);
        let Machine { instances, clock, .. } = &mut *machine;
        if let Some(instance) = instances.get_mut(id) {
            happen(instance, &boot, clock);
        }
        drop(machine);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        // A test that panicked elsewhere still wants to look at the machine.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for Sim {
    async fn observe(&self) -> Result<Observed, HostError> {
        let mut machine = self.lock();
        machine.observations += 1;
        if counted_down(&mut machine.fail_observe) {
            return Err(refuse("observe", "the machine was told to fail"));
        }
        Ok(machine.observe())
    }

    async fn apply(&self, step: &Step) -> Result<(), HostError> {
        // As on a real machine, others get their turn.
        tokio::task::yield_now().await;
        self.apply_now(step)
    }

    async fn inspect(&self, ids: &[SetId]) -> Result<Vec<Guest>, HostError> {
        let machine = self.lock();
        let known = ids.iter().filter_map(|id| Some((id, machine.instances.get(id)?)));
        Ok(known.map(|(id, instance)| instance.guest(id)).collect())
    }

    async fn usage(&self, subjects: Vec<Subject>) -> Result<Vec<Usage>, HostError> {
        let machine = self.lock();
        let failed = |subject: &Subject| machine.failed_units.get(&subject.id).filter(|_| subject.up).cloned().unwrap_or_default();
        Ok(subjects.iter().map(|subject| Usage { failed_units: failed(subject), ..Usage::default() }).collect())
    }

    async fn restart(&self, id: &SetId) -> Result<(), HostError> {
        let known = self.lock().instances.get(id).is_some_and(|instance| instance.units.contains_key(&vm_unit(id)));
        if !known {
            return Err(refuse(&format!("restart {id}"), "there is no such unit"));
        }
        self.start_by_hand(id);
        Ok(())
    }

    async fn journal(&self, sets: &[SetId], _query: JournalQuery, sink: mpsc::Sender<LogLine>) -> Result<(), HostError> {
        for id in sets.iter().filter(|id| self.boots(*id) > 0) {
            let (source, text) = ("console".to_owned(), format!("a line of {id}"));
            // Nobody listening is as good as having read it.
            drop(sink.send(LogLine { at: 1, source, priority: 6, text, ..LogLine::default() }).await);
        }
        Ok(())
    }

    async fn connect(&self, id: &SetId, port: u32) -> Result<OwnedFd, HostError> {
        let failed = |source| HostError::Connect { id: id.clone(), port, source };
        let mut machine = self.lock();
        if machine.instances.get(id).is_none_or(|instance| instance.running.is_none()) {
            return Err(failed(std::io::ErrorKind::NotFound.into()));
        }
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        machine.entered.push((id.clone(), port, theirs));
        Ok(ours.into())
    }

    async fn audited(&self) -> Result<Vec<String>, HostError> {
        Ok(self.lock().audited.clone())
    }

    async fn retired(&self) -> Result<Vec<(String, String)>, HostError> {
        let one = |(id, name, volume): &(SetId, VolumeName, SimVolume)| {
            (id.namespace.to_string(), format!("{}/{name} ({})", id.name, volume.size))
        };
        Ok(self.lock().retired.iter().map(one).collect())
    }

    async fn retired_bytes(&self, namespace: &Namespace) -> Result<u64, HostError> {
        let mine = |(id, _, volume): &(SetId, _, SimVolume)| if id.namespace == *namespace { volume.size.0 } else { 0 };
        Ok(self.lock().retired.iter().map(mine).sum())
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Machine {
    fn observe(&self) -> Observed {
        let instances = self.instances.iter().filter_map(|(id, instance)| Some((id.clone(), instance.observe()?)));
        Observed {
            instances: instances.collect(),
            firewall: self.firewall.clone(),
            slices: self.slices.clone(),
            ingress: self.ingress.there.clone(),
        }
    }

    fn boot_of(&mut self, id: &SetId) -> Boot {
        let boot = self.boots.get(id).unwrap_or(&self.boot).clone();
        if matches!(boot, Boot::FailsOnce(_)) {
            self.boots.remove(id);
        }
        boot
    }

    fn apply(&mut self, step: &Step) -> Result<(), HostError> {
        if counted_down(&mut self.fail_apply) {
            return Err(refuse(&step.to_string(), "the machine was told to fail"));
        }
        self.change(step).map_err(|why| refuse(&step.to_string(), why))?;
        self.applied.push(step.clone());
        Ok(())
    }

    fn change(&mut self, step: &Step) -> Result<(), &'static str> {
        let Some(id) = step.set() else {
            match step {
                Step::ApplyFirewall(text) => self.firewall = Some(text.clone()),
                Step::LimitSlices(slices) => self.slices.clone_from(slices),
                Step::Route { .. } => self.ingress.route(step)?,
                _ => {}
            }
            return Ok(());
        };
        if let Step::CreateTap { address, .. } = step {
            let taken = |other: &SimInstance| other.tap.as_ref().is_some_and(|tap| tap.name == address.tap);
            if self.instances.iter().any(|(other, instance)| other != id && taken(instance)) {
                return Err("another instance has this tap");
            }
        }
        let boot = if matches!(step, Step::Start { .. }) { self.boot_of(id) } else { Boot::default() };
        self.clock += 1;
        let fresh = self.clock;
        let firewall = self.firewall.is_some();
        let instance = self.instances.entry(id.clone()).or_default();
        let stopped = instance.vm == UnitState::Inactive && !instance.helper_failed;
        match step {
            Step::Stop { .. } => {
                instance.started = false;
                instance.helper_failed = false;
                instance.enter(UnitState::Inactive, "success", &mut self.clock);
            }
            Step::Start { unit, .. } => {
                let text = instance.units.get(unit).ok_or("there is no such unit")?;
                let tap = instance.tap.as_ref().ok_or("it has no tap")?;
                if !firewall {
                    return Err("there is no firewall yet");
                }
                if !text.contains(&format!("ifname={},", tap.name)) && !text.contains(&format!("tap={},", tap.name)) {
                    return Err("its unit names another tap");
                }
                for image in images(text) {
                    let volume = instance.volumes.iter().find(|(name, _)| name.as_str() == image);
                    let (_, volume) = volume.ok_or("one of its volumes is not there")?;
                    if volume.uid != tap.uid {
                        return Err("it may not open one of its volumes");
                    }
                }
                instance.started = true;
                if stopped {
                    instance.start(&boot, &mut self.clock);
                }
            }
            // The guest's disk may be in use: setting it aside is a rename.
            Step::RetireVolume { name, .. } => {
                let volume = instance.volumes.remove(name).ok_or("there is no such volume")?;
                self.retired.push((id.clone(), name.clone(), volume));
            }
            _ if !stopped => return Err("it is not stopped"),
            Step::RemoveInstance { .. } => {
                *instance = SimInstance { volumes: std::mem::take(&mut instance.volumes), ..SimInstance::default() };
            }
            Step::CreateVolume { name, size, uid, .. } => {
                if instance.volumes.contains_key(name) {
                    return Err("the volume is there already");
                }
                instance.volumes.insert(name.clone(), SimVolume { bytes: fresh, size: *size, uid: *uid });
            }
            Step::GrowVolume { name, size, .. } => {
                let volume = instance.volumes.get_mut(name).ok_or("there is no such volume")?;
                if volume.size > *size {
                    return Err("a volume cannot shrink");
                }
                volume.size = *size;
            }
            Step::CreateTap { address, .. } => instance.tap = Some(Tap::of(address)),
            Step::Write { units, files, remove, .. } => {
                instance.units.retain(|name, _| !remove.contains(name));
                instance.units.extend(units.iter().map(|unit| (unit.name.clone(), unit.text.clone())));
                instance.files.extend(files.iter().map(|file| (file.path.clone(), file.text.clone())));
                instance.started = false;
            }
            Step::ApplyFirewall(_) | Step::LimitSlices(_) | Step::Route { .. } => {}
        }
        Ok(())
    }
}

impl SimInstance {
    /// Nothing, if nothing is left of it.
    fn observe(&self) -> Option<ObservedInstance> {
        let seen = ObservedInstance {
            units: self.units.clone(),
            files: self.files.clone(),
            vm: self.vm,
            helper_failed: self.helper_failed,
            started: self.started,
            tap: self.tap.clone(),
            volumes: self.volumes.iter().map(|(name, volume)| (name.clone(), volume.size)).collect(),
        };
        (seen != ObservedInstance::default()).then_some(seen)
    }

    fn start(&mut self, boot: &Boot, clock: &mut u64) {
        self.boots += 1;
        self.running = self.units.iter().find(|(name, _)| name.starts_with("seed-vm@")).map(|(_, text)| text.clone());
        match boot {
            Boot::AtOnce => self.enter(UnitState::Active, "success", clock),
            Boot::AtTick | Boot::Hangs => self.enter(UnitState::Activating, "success", clock),
            Boot::Fails(result) | Boot::FailsOnce(result) => self.enter(UnitState::Failed, result, clock),
        }
    }

    fn enter(&mut self, state: UnitState, result: &str, clock: &mut u64) {
        *clock += 1;
        (self.vm, self.since) = (state, *clock);
        self.result = result.to_owned();
        if matches!(state, UnitState::Inactive | UnitState::Failed) {
            self.running = None;
        }
    }
}

/// The volumes that a vm unit names.
fn images(text: &str) -> Vec<&str> {
    let mut before: Vec<&str> = text.split(".img").collect();
    before.pop();
    before.iter().map(|path| path.rsplit('/').next().unwrap_or(path)).collect()
}

/// Whether the countdown has come to its end with this event.
fn counted_down(countdown: &mut Option<usize>) -> bool {
    let left = countdown.take();
    *countdown = left.and_then(|left| left.checked_sub(1));
    left == Some(0)
}

fn refuse(command: &str, why: &str) -> HostError {
    HostError::Command { command: command.to_owned(), output: why.to_owned() }
}

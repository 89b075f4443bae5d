//! Passes: look, render, plan, carry out. Lanes, and when to try again what failed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{Agent, Event, Shared, chain};
use crate::{
    build::Builder,
    host::{Host, HostError},
    plan::{self, Observed, Step},
    spec::name::{InstanceId, SetId},
    state::{Change, State},
};

/// Which sets of units are being worked on, who waits for them, and what failed how often.
#[derive(Default)]
pub struct Lanes {
    /// A look is under way.
    looking: bool,
    /// Something happened since it began: look again.
    again: bool,
    /// Steps of the host itself are being carried out.
    host_busy: bool,
    /// They were while the machine was being looked at: what was seen of the host may be old.
    host_stale: bool,
    busy: BTreeSet<SetId>,
    /// Those that were worked on while the machine was being looked at: what was seen of them may be old.
    stale: BTreeSet<SetId>,
    /// How often a lane ran lately, and when last.
    runs: BTreeMap<SetId, (u32, Instant)>,
    /// Failed, and waiting for their time.
    resting: BTreeSet<SetId>,
    waiters: Vec<Waiter>,
}

struct Waiter {
    id: InstanceId,
    /// A pass has begun since it waits: only such a pass can find that there is nothing left to do.
    fresh: bool,
    answer: oneshot::Sender<Result<(), String>>,
}

impl Lanes {
    /// Resolves when a pass that begins from now on has nothing (left) to do for `id`, or failed to do it.
    pub fn wait_for(&mut self, id: InstanceId) -> super::deploy::Settled {
        let (answer, done) = oneshot::channel();
        // Whoever waits wants it tried now.
        self.forgive(&id);
        self.waiters.push(Waiter { id: id.clone(), fresh: false, answer });
        super::deploy::Settled { id, done }
    }

    fn settle(&mut self, id: &InstanceId, result: &Result<(), String>) {
        let (settled, waiting): (Vec<Waiter>, Vec<Waiter>) =
            std::mem::take(&mut self.waiters).into_iter().partition(|waiter| waiter.id == *id && (waiter.fresh || result.is_err()));
        self.waiters = waiting;
        for waiter in settled {
            // A waiter that left does not care.
            drop(waiter.answer.send(result.clone()));
        }
    }

    /// Lets a lane run at once again: a person asked.
    pub fn forgive(&mut self, id: &InstanceId) {
        self.resting.retain(|set| !set.is_of(id));
        self.runs.retain(|set, _| !set.is_of(id));
    }

    /// Counts a run of a lane; runs more than ten minutes apart start from one.
    fn count(&mut self, id: &SetId) -> u32 {
        let now = Instant::now();
        let entry = self.runs.entry(id.clone()).or_insert((0, now));
        *entry = if now - entry.1 > Duration::from_secs(600) { (1, now) } else { (entry.0 + 1, now) };
        entry.0
    }

    /// Says that `id` is being worked on, until [`Event::Lane`] says that it has ended.
    pub fn occupy(&mut self, id: &SetId) {
        self.busy.insert(id.clone());
    }

    /// Whether `id` is about to be changed, or a change of it is to be tried again.
    pub fn is_pending(&self, id: &InstanceId) -> bool {
        self.busy.iter().chain(&self.resting).any(|set| set.is_of(id))
    }

    /// Whether a set is being worked on.
    pub fn is_busy(&self, id: &SetId) -> bool {
        self.busy.contains(id)
    }

    /// Whether what was seen of `id` may be old: it is being worked on, or was during the look.
    pub fn is_unsure(&self, id: &InstanceId) -> bool {
        self.busy.iter().chain(&self.stale).any(|set| set.is_of(id))
    }
}

/// How long a lane that ran `runs` times rests: 2 s, 4 s, … 5 min.
fn rest(runs: u32) -> Duration {
    Duration::from_secs((1u64 << runs.min(9)).min(300))
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Begins a look at the machine, or has the one under way followed by another.
    pub(super) fn look(&mut self) {
        if self.lanes.looking {
            self.lanes.again = true;
            return;
        }
        self.lanes.looking = true;
        self.lanes.again = false;
        self.lanes.stale = self.lanes.busy.clone();
        self.lanes.host_stale = self.lanes.host_busy;
        for waiter in &mut self.lanes.waiters {
            waiter.fresh = true;
        }
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let observed = shared.host.observe().await;
            // The loop being gone means that the agent stops.
            drop(shared.events.send(Event::Observed(observed)).await);
        });
    }

    /// Plans from what was seen, and sets the lanes going.
    pub(super) async fn observed(&mut self, observed: Result<Observed, HostError>) {
        self.lanes.looking = false;
        let observed = match observed {
            Ok(observed) => observed,
            Err(error) => {
                tracing::error!(error = %chain(&error), "could not look at the machine; trying again in 5 s");
                self.later(Duration::from_secs(5), Event::Tick);
                return;
            }
        };
        self.roll(&observed).await;
        self.release(&observed).await;
        let steps = self.steps(&observed);
        let mut host_steps = Vec::new();
        let mut lanes: BTreeMap<SetId, Vec<Step>> = BTreeMap::new();
        for step in steps {
            match step.set() {
                None => host_steps.push(step),
                Some(id) => lanes.entry(id.clone()).or_default().push(step),
            }
        }
        // The host's own steps are part of what is waited for: a port leads to an instance by the firewall alone. The ingress is not: one
        // that refuses its configuration holds up no deploy.
        let settled = host_steps.iter().all(|step| matches!(step, Step::Route { .. }));
        let idle: Vec<InstanceId> = self
            .lanes
            .waiters
            .iter()
            .filter(|_| settled)
            .map(|waiter| waiter.id.clone())
            .filter(|id| !lanes.keys().any(|set| set.is_of(id)) && !self.lanes.is_unsure(id))
            .collect();
        for id in idle {
            self.lanes.settle(&id, &Ok(()));
        }
        lanes.retain(|id, _| !self.lanes.busy.contains(id) && !self.lanes.stale.contains(id) && !self.lanes.resting.contains(id));
        let waits = self.lanes.host_busy || self.lanes.host_stale;
        if waits && host_steps.iter().any(|step| !matches!(step, Step::Route { .. })) {
            // Nothing is started before the firewall and the limits that it is to have. The end of those steps has us look again.
            lanes.clear();
        }
        let host_steps = if waits { Vec::new() } else { host_steps };
        if self.lanes.again {
            self.look();
        }
        if lanes.is_empty() && host_steps.is_empty() {
            return;
        }
        self.lanes.busy.extend(lanes.keys().cloned());
        self.lanes.host_busy |= !host_steps.is_empty();
        tokio::spawn(carry_out(self.shared.clone(), host_steps, lanes));
    }

    /// The steps that a pass would make, given what was seen.
    fn steps(&mut self, observed: &Observed) -> Vec<Step> {
        plan::plan(&self.target(), observed)
    }

    pub(super) fn host_steps_done(&mut self, result: Result<(), HostError>) {
        self.lanes.host_busy = false;
        self.lanes.host_stale = true;
        match result {
            Ok(()) => self.look(),
            Err(error) => {
                tracing::error!(error = %chain(&error), "could not change the host; trying again in 10 s");
                self.later(Duration::from_secs(10), Event::Tick);
            }
        }
    }

    pub(super) fn lane_done(&mut self, id: SetId, result: Result<(), HostError>) {
        self.lanes.busy.remove(&id);
        // What a look under way has seen of it may be from before.
        self.lanes.stale.insert(id.clone());
        match result {
            // A lane that runs again and again (its helpers keep failing) is slowed down like one that fails.
            Ok(()) if self.lanes.count(&id) <= 4 => {}
            Ok(()) => self.rest(id),
            Err(error) => {
                let text = chain(&error);
                tracing::error!(instance = %id, error = %text, "could not change an instance");
                self.lanes.settle(&id.instance(), &Err(text));
                self.lanes.count(&id);
                self.rest(id);
            }
        }
        self.look();
    }

    pub(super) fn lane_retry(&mut self, id: &SetId) {
        self.lanes.resting.remove(id);
        self.look();
    }

    /// Leaves an instance alone for a while.
    fn rest(&mut self, id: SetId) {
        let pause = rest(self.lanes.runs.get(&id).map_or(0, |(runs, _)| *runs));
        self.lanes.resting.insert(id.clone());
        self.later(pause, Event::Retry(id));
    }

    /// Sends an event to the loop after a while.
    pub(super) fn later(&self, pause: Duration, event: Event) {
        let events = self.shared.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            // The loop being gone means that the agent stops.
            drop(events.send(event).await);
        });
    }

    /// Gives back the leases of sets that are gone from the machine.
    async fn release(&mut self, observed: &Observed) {
        let addressing = &self.shared.settings.layout.addressing;
        let gone: Vec<Change> = self
            .memory
            .leases
            .iter()
            .filter(|(id, _)| !self.is_wanted_set(id) && !observed.instances.contains_key(*id) && !self.lanes.is_busy(id))
            // Whoever has the address next gets none of its visitors.
            .filter(|(_, lease)| !observed.ingress.leads_to(addressing.v4(**lease)))
            .map(|(id, _)| Change::Lease(id.clone(), None))
            .collect();
        if !gone.is_empty() && self.commit(gone).await.is_err() {
            tracing::warn!("leases of removed instances are kept until the next pass");
        }
    }
}

/// Carries out the host's own steps, then the lanes side by side.
async fn carry_out<H: Host, B: Builder>(shared: Arc<Shared<H, B>>, host_steps: Vec<Step>, lanes: BTreeMap<SetId, Vec<Step>>) {
    if !host_steps.is_empty() {
        let mut result = Ok(());
        let mut routing = false;
        for step in &host_steps {
            tracing::info!(%step, "step");
            routing = matches!(step, Step::Route { .. });
            result = shared.host.apply(step).await;
            if result.is_err() {
                break;
            }
        }
        // Visitors that go astray for a while are no reason to start nothing.
        let failed = result.is_err() && !routing;
        drop(shared.events.send(Event::HostSteps(result)).await);
        if failed {
            // Nothing is started behind a firewall that is not the right one.
            for id in lanes.into_keys() {
                drop(shared.events.send(Event::Lane(id, Ok(()))).await);
            }
            return;
        }
    }
    for (id, steps) in lanes {
        let shared = shared.clone();
        tokio::spawn(async move {
            let mut result = Ok(());
            for step in &steps {
                tracing::info!(instance = %id, %step, "step");
                result = shared.host.apply(step).await;
                if result.is_err() {
                    break;
                }
            }
            shared.changed.send_modify(|turn| *turn += 1);
            drop(shared.events.send(Event::Lane(id, result)).await);
        });
    }
}

//! Rolling out: which sets of units an instance has, and whoever waits for the new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{Agent, Event, Shared, deploy::Deploy, guest::wait_for_guest, now};
use crate::{
    build::{Builder, Evaluated},
    bus::Refusal,
    host::{Guest, Host},
    plan::{
        Observed,
        rollout::{self as step, Seen},
    },
    spec::{
        desired::Deployment,
        instance::Instance,
        manifest::{Manifest, Problem},
        name::{Generation, InstanceId, InstanceName, Namespace, SetId, StorePath},
        quota::Share,
        rollout::{self, Beside, Rolling},
    },
    state::{Batch, Change, State},
};

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// The set of an instance that serves.
    pub(super) fn serving(&self, id: &InstanceId) -> SetId {
        id.set(rollout::serving(self.memory.rolling.get(id)))
    }

    /// Whether a set is to be on this host.
    pub(super) fn is_wanted_set(&self, set: &SetId) -> bool {
        let id = set.instance();
        let sets = self.version_of(&id).map(|wanted| rollout::sets(self.memory.rolling.get(&id), wanted));
        sets.is_some_and(|sets| sets.iter().any(|(slot, _)| *slot == set.slot))
    }

    /// What `new` in the place of `old` makes of the roll-outs of a namespace, and the sets that it needs leases for.
    pub(super) fn roll_out(&self, namespace: &Namespace, old: Option<&Deployment>, new: &Deployment) -> (Batch, Vec<SetId>) {
        let id = |name: &InstanceName| InstanceId { namespace: namespace.clone(), name: name.clone() };
        let mut sets = Vec::new();
        let mut batch = Batch::new();
        for (name, instance) in &new.instances {
            let id = id(name);
            let had = self.memory.rolling.get(&id);
            let old = old.and_then(|old| old.instances.get(name));
            let rolling = rollout::accept(had.cloned(), old, instance);
            sets.extend(rollout::sets(rolling.as_ref(), instance).into_iter().map(|(slot, _)| id.set(slot)));
            if rolling.as_ref() != had {
                batch.push(Change::Rolling(id, rolling));
            }
        }
        let mine = self.memory.rolling.keys().filter(|id| id.namespace == *namespace);
        batch.extend(mine.filter(|id| !new.instances.contains_key(&id.name)).map(|id| Change::Rolling(id.clone(), None)));
        (batch, sets)
    }

    /// Lets roll-outs go on, given what was seen. What is being worked on is left for a look from after that.
    pub(super) async fn roll(&mut self, observed: &Observed) {
        if self.memory.rolling.is_empty() {
            return;
        }
        let target = self.target();
        let drain = u64::from(self.shared.settings.drain_secs);
        let mut batch = Batch::new();
        let mut moved: BTreeSet<Namespace> = BTreeSet::new();
        let mut drains = None;
        for (id, rolling) in self.memory.rolling.iter().filter(|(id, _)| !self.lanes.is_unsure(id)) {
            let off = self.memory.stopped.contains_key(id);
            let seen = |slot| Seen::of(id, slot, &target, observed);
            let next = self.version_of(id).and_then(|wanted| step::advance(rolling.clone(), wanted, off, seen, now(), drain));
            if next.as_ref() == Some(rolling) {
                continue;
            }
            moved.insert(id.namespace.clone());
            if rollout::serving(next.as_ref()) != rolling.slot {
                tracing::info!(instance = %id, set = %id.set(rolling.slot.other()), "the new version serves");
            }
            match next.as_ref().and_then(|next| next.beside.as_ref()) {
                Some(Beside::Draining { until, .. }) => drains = drains.max(Some(*until)),
                // Its place had one, which may have been given back.
                Some(Beside::Coming { .. }) if !self.memory.leases.contains_key(&id.set(rolling.slot.other())) => {
                    let taken = self.memory.leases.values().copied().collect();
                    let Some(lease) = self.free_lease(&taken) else {
                        tracing::warn!(instance = %id, "there is no address for its new version: all of network.pool4 are in use");
                        continue;
                    };
                    batch.push(Change::Lease(id.set(rolling.slot.other()), Some(lease)));
                    batch.push(Change::Rolling(id.clone(), next));
                    // Two of them would be given the same one: the other has its turn at the next look.
                    break;
                }
                _ => {}
            }
            batch.push(Change::Rolling(id.clone(), next));
        }
        if batch.is_empty() {
            return;
        }
        if self.commit(batch).await.is_err() {
            tracing::error!("versions that are ready do not serve yet");
            return self.later(Duration::from_secs(5), Event::Tick);
        }
        for namespace in moved {
            self.publish_namespace(&namespace);
        }
        if let Some(until) = drains {
            self.later(Duration::from_secs(until.saturating_sub(now()) + 1), Event::Tick);
        }
    }

    /// Takes up what an earlier life of the agent has begun. What has a deploy that is made again is that one's.
    pub(super) fn take_up_rolling(&self) {
        for (id, rolling) in &self.memory.rolling {
            match &rolling.beside {
                Some(Beside::Draining { until, .. }) => {
                    self.later(Duration::from_secs(until.saturating_sub(now()) + 1), Event::Tick);
                }
                Some(Beside::Coming { version }) if !self.memory.asks.contains_key(&id.namespace) => {
                    let (shared, id, version) = (self.shared.clone(), id.clone(), version.clone());
                    tokio::spawn(async move {
                        if let Err((_, text)) = wait_for_version(&shared, &id, &version, |_| ()).await {
                            tracing::warn!(instance = %id, text, "a version that was to take over did not get ready");
                            // The loop being gone means that the agent stops.
                            drop(shared.events.send(Event::GaveUp(id, Box::new(version))).await);
                        }
                    });
                }
                _ => {}
            }
        }
    }

    /// What serves is what is wanted, if `version` is still what is to take over from it.
    pub(super) async fn gave_up(&mut self, id: &InstanceId, version: &Instance) {
        let Some(rolling) = self.memory.rolling.get(id).filter(|rolling| rolling.coming() == Some(version)) else { return };
        let Some(want) = self.memory.wants.get(&id.namespace) else { return };
        let mut back = want.clone();
        back.instances.insert(id.name.clone(), rolling.serves.clone());
        back.generation = Generation::of(back.instances.iter().map(|(name, instance)| (name, &instance.toplevel)));
        back.at = now();
        let namespace = id.namespace.clone();
        let accepted: Result<_, Refusal> = self.accept(&namespace, back).await;
        if accepted.is_err() {
            tracing::error!(instance = %id, "a version that did not get ready is kept beside the one that serves");
        }
    }
}

impl<H: Host, B: Builder> Deploy<H, B> {
    /// Whether what is rolled out has room beside what serves.
    pub(super) fn room_to_roll(
        &self,
        manifests: &BTreeMap<InstanceName, Manifest>,
        evaluated: &BTreeMap<String, Evaluated>,
        kept: Share,
    ) -> Vec<Problem> {
        let log_max = self.shared.settings.layout.log_max;
        let new = self.made_of(manifests, evaluated);
        let old = self.old();
        let share = |instance: &Instance| Share::of(&instance.size, &instance.volumes, log_max);
        let rolled: BTreeMap<InstanceName, Share> = new
            .iter()
            .filter_map(|(name, instance)| Some((name, old.get(name)?, instance)))
            .filter(|(_, before, instance)| rollout::rolls(before, instance))
            .map(|(name, before, instance)| (name.clone(), share(before).and(share(instance))))
            .collect();
        let all = new.iter().map(|(name, instance)| (name.clone(), rolled.get(name).copied().unwrap_or_else(|| share(instance))));
        let problems = self.quota.check(&all.collect(), |name| !rolled.contains_key(name), kept);
        let names: Vec<&str> = rolled.keys().map(InstanceName::as_str).collect();
        let more = |problem: Problem| {
            let what = format!(
                "while {} run twice, for a roll-out, they {}. Or write rollout = \"recreate\", which needs no room beside",
                names.join(", "),
                problem.what
            );
            Problem::new("seeds".to_owned(), what)
        };
        problems.into_iter().map(more).collect()
    }

    /// The version of an instance that serves, if another is rolled out beside it.
    pub(super) fn serves(&self, name: &InstanceName) -> Option<Instance> {
        let id = InstanceId { namespace: self.namespace.clone(), name: name.clone() };
        self.shared.rolling.borrow().get(&id).map(|rolling| rolling.serves.clone())
    }

    /// The systems that run beside those that serve: what drains does so for a while longer.
    pub(super) fn systems_beside(&self) -> Vec<StorePath> {
        let rolling = self.shared.rolling.borrow();
        let mine = rolling.iter().filter(|(id, _)| id.namespace == self.namespace);
        mine.filter_map(|(_, rolling)| Some(rolling.beside.as_ref()?.version().toplevel.clone())).collect()
    }
}

/// What runs which version of an instance.
fn place(rolling: Option<&Rolling>, id: &InstanceId, version: &Instance) -> Place {
    let Some(rolling) = rolling.filter(|rolling| !rolling.serves.runs_like(version)) else { return Place::Serves };
    match &rolling.beside {
        Some(Beside::Coming { version: coming }) if coming.runs_like(version) => Place::Comes(id.set(rolling.slot.other())),
        Some(Beside::Coming { .. }) => Place::Nowhere,
        Some(Beside::Draining { until, .. }) => Place::Waits(Some(*until)),
        None => Place::Waits(None),
    }
}

enum Place {
    Serves,
    Comes(SetId),
    /// For a place: another version drains there until then, or is being removed.
    Waits(Option<u64>),
    Nowhere,
}

/// Waits until a version of an instance serves and is ready, and returns its set. Says each step through `say`; fails with the reason,
/// and the set to whose last words it is worth to listen.
pub(super) async fn wait_for_version<H: Host, B: Builder>(
    shared: &Arc<Shared<H, B>>,
    id: &InstanceId,
    version: &Instance,
    mut say: impl FnMut(&str),
) -> Result<(SetId, Guest), (SetId, String)> {
    let mut rolling = shared.rolling.subscribe();
    let mut told = String::new();
    loop {
        let (serves, place) = {
            let rolling = rolling.borrow_and_update();
            let rolling = rolling.get(id);
            (id.set(rollout::serving(rolling)), place(rolling, id, version))
        };
        match place {
            Place::Serves => {
                let ready = wait_for_guest(shared, &serves, say).await;
                return ready.map(|guest| (serves.clone(), guest)).map_err(|text| (serves, text));
            }
            Place::Comes(set) => tokio::select! {
                // Cancel-safe: it only looks. What changes may be that it is not to come any more.
                ready = wait_for_guest(shared, &set, &mut say) => if let Err(text) = ready {
                    return Err((set, text));
                },
                _ = rolling.changed() => {}
            },
            Place::Waits(until) => {
                let left = until.map(|until| until.saturating_sub(now())).unwrap_or_default();
                let text = match until {
                    Some(_) => format!("waiting: the version before the one that serves drains, for {left} s more"),
                    None => "waiting until the version before the one that serves is gone".to_owned(),
                };
                if told.is_empty() {
                    say(&text);
                    told = text;
                }
            }
            Place::Nowhere => return Err((serves, "another version took its place meanwhile".to_owned())),
        }
        if shared.stopped.borrow().contains(id) {
            return Err((serves, "it was stopped meanwhile".to_owned()));
        }
        tokio::select! {
            // Cancel-safe: the turn is compared, not consumed.
            _ = rolling.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

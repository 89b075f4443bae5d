//! What was deployed and how it went; going back to a version that was kept; holding an instance at the one it has.

use std::collections::BTreeSet;

use super::{
    Agent, Event,
    deploy::{Deploy, Settled},
    now,
    request::{Reply, invalid, json, principal},
    resolve,
};
use crate::{
    build::Builder,
    bus::{
        Level, Outcome, Refusal, Stage,
        history::{DeployEntry, Deploys, NamespaceDeploys, Pinned, StageTime},
    },
    host::Host,
    spec::{
        access::{Principal, Reach, Verb},
        desired::Deployment,
        instance::Instance,
        name::{FlakeUri, Generation, InstanceId, InstanceName, KeyId, Namespace},
        route,
    },
    state::{Ask, Batch, Change, Pin, Record, State},
};

/// What is asked about deploys and about what becomes of instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum History {
    Deploys { who: String, filter: String },
    Rollback { who: String, instance: String, generation: String },
    Pin { who: String, instance: String },
    Unpin { who: String, instance: String },
    Stop { who: String, instance: String },
    Start { who: String, instance: String },
    Destroy { who: String, instance: String, again: String },
    Unplant { who: String, repository: String, again: String },
}

/// How many deploys of a namespace are remembered.
const RECORDS: usize = 50;

/// Who did something, in words.
pub(super) fn who(key: Option<&KeyId>) -> String {
    key.map_or_else(|| "operator".to_owned(), ToString::to_string)
}

/// The key of whoever asks; `None` for the operator.
pub(super) fn key(who: &Principal) -> Option<KeyId> {
    match who {
        Principal::Operator => None,
        Principal::Key(key) => Some(key.clone()),
    }
}

/// A deploy that begins.
pub(super) fn under_way(ask: &Ask, kind: &str, by: Option<&KeyId>) -> DeployEntry {
    DeployEntry {
        at: now(),
        seconds: 0,
        by: who(by),
        kind: kind.to_owned(),
        branch: ask.reference.short().to_owned(),
        commit: ask.commit.to_string(),
        generation: String::new(),
        outcome: None,
        stages: Vec::new(),
        changes: Vec::new(),
        text: String::new(),
    }
}

/// What somebody sees of a deploy who may not see all instances.
fn seen(mut entry: DeployEntry, reach: &Reach) -> DeployEntry {
    if *reach != Reach::Everything {
        let is_seen = |line: &String| {
            let name = line.split(':').next().and_then(|name| name.parse().ok());
            name.is_some_and(|name| reach.includes(&name))
        };
        entry.changes.retain(is_seen);
        entry.text.clear();
    }
    entry
}

/// A value of a closed set, as documents spell it.
pub(super) fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn read<T: serde::de::DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
}

fn entry(at: u64, record: &Record) -> DeployEntry {
    let stage = |(stage, milliseconds): &(String, u64)| Some(StageTime { stage: read(stage)?, milliseconds: *milliseconds });
    DeployEntry {
        at,
        seconds: record.ended.saturating_sub(at),
        by: who(record.by.as_ref()),
        kind: record.kind.clone(),
        branch: record.reference.short().to_owned(),
        commit: record.commit.to_string(),
        generation: record.generation.as_ref().map(ToString::to_string).unwrap_or_default(),
        outcome: Some(read(&record.outcome).unwrap_or(Outcome::Failed)),
        stages: record.stages.iter().filter_map(stage).collect(),
        changes: record.changes.clone(),
        text: record.text.clone(),
    }
}

impl<H: Host, B: Builder> Deploy<H, B> {
    /// Tells the loop that it has ended, and how. The loop says what runs since.
    pub(super) async fn ended(&self, ask: Option<Ask>, outcome: Outcome, stage: Stage, text: &str) {
        let summary = self.job.summary();
        let mut stages: Vec<(String, u64)> = summary.stages.iter().map(|(stage, took)| (word(stage), *took)).collect();
        // It may say its first word of the stage that it fails at with its last.
        if outcome == Outcome::Failed
            && let Some(at) = stages.iter().position(|(name, _)| *name == word(&stage))
        {
            stages.truncate(at + 1);
        }
        let record = Record {
            kind: self.kind.to_owned(),
            by: self.by.clone(),
            reference: self.ask.reference.clone(),
            commit: self.ask.commit.clone(),
            generation: None,
            ended: now(),
            outcome: word(&outcome),
            stages,
            changes: summary.plan,
            text: text.to_owned(),
        };
        // The loop being gone means that the agent stops.
        drop(self.shared.events.send(Event::DeployEnded(self.namespace.clone(), ask, Box::new(record))).await);
    }

    /// Waits for what was gone back to; if it does not come up, what was there before is started again.
    async fn back(self, name: InstanceName, deployment: Deployment, settled: Vec<Settled>) {
        let failed = self.not_ready(settled, &deployment.instances, &BTreeSet::from([name.clone()])).await;
        let (outcome, stage, text) = if failed.is_empty() {
            drop(self.shared.events.send(Event::Proven(self.namespace.clone())).await);
            let text = format!("{name} is as it was; generation {} runs", deployment.generation);
            (Outcome::Done, Stage::Run, text)
        } else {
            self.go_back(deployment, failed).await;
            (Outcome::Failed, Stage::Boot, format!("{name} did not come up as it was"))
        };
        self.ended(None, outcome, stage, &text).await;
        self.job.end(stage, outcome, text);
    }
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Answers what can be answered at once.
    pub(super) async fn history(&mut self, request: History) -> Result<Reply, Refusal> {
        match request {
            History::Deploys { who, filter } => self.deploys(&who, &filter),
            History::Rollback { who, instance, generation } => self.rollback(&who, &instance, &generation).await,
            History::Pin { who, instance } => self.pin(&who, &instance, true).await,
            History::Unpin { who, instance } => self.pin(&who, &instance, false).await,
            History::Stop { who, instance } => self.stop(&who, &instance).await,
            History::Start { who, instance } => self.start(&who, &instance).await,
            History::Destroy { who, instance, again } => self.destroy(&who, &instance, &again).await,
            History::Unplant { .. } => Err(Refusal::Failed("this is a bug in Seed: unplant waits for the machine".to_owned())),
        }
    }

    pub(super) fn deploys(&self, who: &str, filter: &str) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let plants = resolve::plants(&self.memory, &who, filter)?;
        let namespaces = plants.iter().map(|plant| {
            let namespace = &plant.namespace;
            let reach = resolve::reach(&self.memory, &who, Verb::See, plant);
            let from = (namespace.clone(), 0)..=(namespace.clone(), u64::MAX);
            let ended = self.memory.records.range(from).rev().map(|((_, at), record)| entry(*at, record));
            let under_way = self.deploying.get(namespace).map(|one| {
                let summary = one.job.summary();
                DeployEntry {
                    seconds: now().saturating_sub(one.entry.at),
                    stages: summary.stages.iter().map(|(stage, took)| StageTime { stage: *stage, milliseconds: *took }).collect(),
                    changes: summary.plan,
                    ..one.entry.clone()
                }
            });
            let generation = self.memory.wants.get(namespace).map(|want| want.generation.to_string()).unwrap_or_default();
            let mut kept: Vec<String> = Vec::new();
            for past in self.kept(namespace) {
                let name = past.generation.to_string();
                if name != generation && !kept.contains(&name) {
                    kept.push(name);
                }
            }
            NamespaceDeploys {
                namespace: namespace.to_string(),
                flake: plant.uri.to_string(),
                generation,
                kept,
                deploys: under_way.into_iter().chain(ended).map(|entry| seen(entry, &reach)).collect(),
            }
        });
        Ok(json(&Deploys { version: 1, namespaces: namespaces.collect() }))
    }

    /// The deployments that were replaced and are kept, newest first.
    fn kept(&self, namespace: &Namespace) -> impl Iterator<Item = &Deployment> {
        self.memory.past.range((namespace.clone(), 0)..=(namespace.clone(), u64::MAX)).rev().map(|(_, past)| past)
    }

    /// The changes that remember a deploy, at a time of its own.
    pub(super) fn remember(&self, namespace: &Namespace, began: u64, mut record: Record) -> Batch {
        let mut at = began;
        while self.memory.records.contains_key(&(namespace.clone(), at)) {
            at += 1;
        }
        if record.outcome == word(&Outcome::Done) {
            record.generation = self.memory.wants.get(namespace).map(|want| want.generation.clone());
        }
        // A burst of pushes leaves many that were superseded: they go first, so that it does not take the history of what ran with it.
        let superseded = word(&Outcome::Superseded);
        let mut all: Vec<(bool, u64)> = self
            .memory
            .records
            .range((namespace.clone(), 0)..=(namespace.clone(), u64::MAX))
            .map(|((_, at), record)| (record.outcome != superseded, *at))
            .collect();
        all.sort_unstable();
        let surplus = (all.len() + 1).saturating_sub(RECORDS);
        let mut batch: Batch = all.into_iter().take(surplus).map(|(_, at)| Change::Record(namespace.clone(), at, None)).collect();
        batch.push(Change::Record(namespace.clone(), at, Some(record)));
        batch
    }

    /// Keeps the deployment that `new` takes the place of, and drops the oldest of too many.
    pub(super) fn set_aside(&self, namespace: &Namespace, old: Option<&Deployment>, new: &Deployment) -> Batch {
        let Some(old) = old.filter(|old| old.instances != new.instances) else { return Batch::new() };
        let twin = self.kept(namespace).find(|past| past.instances == old.instances);
        let keep = |one: &Deployment| Change::Past(namespace.clone(), one.at, Some(one.clone()));
        let went = self.memory.pins.iter().any(|(id, pin)| id.namespace == *namespace && !pin.refused.is_empty());
        if let Some(twin) = twin.filter(|_| went) {
            // Going back and forth keeps what is kept, in its order.
            return vec![keep(&Deployment { proven: twin.proven || old.proven, ..twin.clone() })];
        }
        let twin = twin.map(|twin| twin.at);
        let others: Vec<u64> = self.kept(namespace).map(|past| past.at).filter(|at| Some(*at) != twin).collect();
        let keeping = self.shared.settings.keep.saturating_sub(1);
        let dropped = twin.into_iter().chain(others.into_iter().skip(keeping));
        let mut batch: Batch = dropped.map(|at| Change::Past(namespace.clone(), at, None)).collect();
        batch.push(keep(old));
        batch
    }

    /// What a new deployment makes pointless: that an instance which is gone is off or pinned, and that a version was gone back from
    /// once another has taken its place.
    pub(super) fn outdated_by(&self, namespace: &Namespace, old: Option<&Deployment>, new: &Deployment) -> Batch {
        let gone = |id: &&InstanceId| id.namespace == *namespace && !new.instances.contains_key(&id.name);
        let mut batch: Batch = self.memory.stopped.keys().filter(gone).map(|id| Change::Stopped(id.clone(), None)).collect();
        batch.extend(self.memory.pins.keys().filter(gone).map(|id| Change::Pin(id.clone(), None)));
        for (id, pin) in self.memory.pins.iter().filter(|(id, _)| id.namespace == *namespace) {
            let had = old.and_then(|old| old.instances.get(&id.name));
            if !pin.held && new.instances.get(&id.name).is_some_and(|version| Some(version) != had) {
                batch.push(Change::Pin(id.clone(), None));
            }
        }
        batch
    }

    /// Refuses to change a namespace that a deploy is about to change.
    pub(super) fn not_deploying(&self, namespace: &Namespace) -> Result<(), Refusal> {
        if !self.deploying.contains_key(namespace) && !self.queued.contains_key(namespace) {
            return Ok(());
        }
        let name = self.memory.plants.get(namespace).map(resolve::repository).unwrap_or_default();
        Err(Refusal::Failed(format!(
            "{name} is being deployed right now: try again when that has ended (`deploys {name}` shows it)"
        )))
    }

    /// When a version of an instance was first replaced, of those that are kept; what never was is newer than all.
    fn first(&self, id: &InstanceId, version: &Instance) -> u64 {
        let is_it = |past: &&Deployment| past.instances.get(&id.name).is_some_and(|one| one.is_version_of(version));
        self.kept(&id.namespace).filter(is_it).map(|past| past.at).min().unwrap_or(u64::MAX)
    }

    pub(super) async fn rollback(&mut self, who: &str, instance: &str, generation: &str) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let id = resolve::instance(&self.memory, &who, Verb::Act, instance)?;
        self.not_deploying(&id.namespace)?;
        let Some(now_wanted) = self.memory.wants.get(&id.namespace).cloned() else {
            return Err(Refusal::NotFound(format!("{instance} was never deployed")));
        };
        let past = self.version(&id, &now_wanted, generation)?;
        let version = past.instances[&id.name].clone();
        let mut instances = now_wanted.instances.clone();
        let Some(had) = instances.insert(id.name.clone(), version.clone()) else {
            return Err(Refusal::NotFound(format!("{instance} is no longer wanted")));
        };
        let whole = instances == past.instances;
        let (commit, reference) = if whole { (&past.commit, &past.reference) } else { (&now_wanted.commit, &now_wanted.reference) };
        let plant = self.memory.plants.get(&id.namespace).cloned();
        let Some(plant) = plant else { return Err(Refusal::NotFound(format!("{instance} is no longer planted"))) };
        let by = key(&who);
        let deployment = Deployment {
            generation: Generation::of(instances.iter().map(|(name, instance)| (name, &instance.toplevel))),
            commit: commit.clone(),
            reference: reference.clone(),
            by: by.clone().unwrap_or_else(|| plant.by.clone()),
            at: now(),
            proven: false,
            instances,
            // What leads to it goes back with it: that version exposes what its routes lead to.
            routes: route::with_those_of(&id.name, &now_wanted.routes, &past.routes),
        };
        let mut pin = self.memory.pins.get(&id).cloned().unwrap_or(Pin { by: None, at: 0, held: false, refused: Vec::new() });
        (pin.by, pin.at) = (by.clone(), now());
        pin.refused.retain(|refused| !refused.is_version_of(&version) && !refused.is_version_of(&had));
        if self.first(&id, &version) < self.first(&id, &had) {
            pin.refused.push(had);
        }
        let pin = Some(pin).filter(|pin| pin.held || !pin.refused.is_empty());
        let repo = match plant.uri {
            FlakeUri::Silo(repo) => repo,
            FlakeUri::Remote(_) => id.namespace.as_str().parse().map_err(invalid)?,
        };
        let asked = Ask {
            repo,
            reference: now_wanted.reference.clone(),
            commit: now_wanted.commit.clone(),
            by: deployment.by.clone(),
            at: now(),
        };
        tracing::info!(instance = %id, generation = %past.generation, "rollback asked for");
        // What is gone back to counts as the deploy's beginning: it has to be known before the state changes.
        let job = self.jobs.about(&id);
        let deploy = self.begin(id.namespace.clone(), asked, job.clone(), "rollback", by);
        let deploy = Deploy { good: Some(now_wanted.clone()), ..deploy };
        job.say(
            Stage::Plan,
            Level::Info,
            format!("{}: going back to generation {} of commit {:.10}", id.name, past.generation, past.commit.as_str()),
        );
        for volume in now_wanted.instances[&id.name].volumes.keys().filter(|volume| !version.volumes.contains_key(*volume)) {
            job.say(
                Stage::Plan,
                Level::Info,
                format!("{}: that version has no volume {volume}: it is kept, and not attached", id.name),
            );
        }
        deploy.say_routes(&deployment.routes);
        let accepted = self.accept_with(&id.namespace, deployment.clone(), vec![Change::Pin(id.clone(), pin)]).await;
        let settled = match accepted {
            Ok(settled) => settled,
            Err(refusal) => {
                self.deploying.remove(&id.namespace);
                job.end(Stage::Plan, Outcome::Failed, super::request::text(&refusal));
                return Err(refusal);
            }
        };
        tokio::spawn(deploy.back(id.name, deployment, settled));
        Ok(Reply::Text(job.name))
    }

    /// The kept deployment that has the version of an instance to go back to.
    fn version(&self, id: &InstanceId, wanted: &Deployment, generation: &str) -> Result<Deployment, Refusal> {
        let current = wanted.instances.get(&id.name);
        let has = |past: &&Deployment| past.instances.contains_key(&id.name);
        let differs = |past: &&Deployment| {
            past.instances.get(&id.name).zip(current).is_some_and(|(version, current)| !version.is_version_of(current))
        };
        let names = || {
            let mut names: Vec<String> = Vec::new();
            for past in self.kept(&id.namespace).filter(has).filter(differs) {
                let name = past.generation.to_string();
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            if names.is_empty() { "no other version is kept".to_owned() } else { format!("there is {}", names.join(", ")) }
        };
        if generation.is_empty() {
            // After a rollback the newest of the others is what was gone back from: going back once more means further back.
            let went = self.memory.pins.get(id).is_some_and(|pin| !pin.refused.is_empty());
            let limit = current.filter(|_| went).map_or(u64::MAX, |current| self.first(id, current));
            let earlier = |past: &&Deployment| !went || self.first(id, &past.instances[&id.name]) < limit;
            let found = self.kept(&id.namespace).filter(|past| past.proven).filter(has).filter(differs).filter(earlier);
            let found = found.max_by_key(|past| if went { self.first(id, &past.instances[&id.name]) } else { past.at });
            return found
                .cloned()
                .ok_or_else(|| Refusal::NotFound(format!("{} has no earlier version that ran: {}", id.name, names())));
        }
        if generation.len() < 4 || !generation.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Refusal::Invalid(format!("{generation:?} is no generation (at least 4 of its digits): {}", names())));
        }
        let called = |past: &&Deployment| past.generation.to_string().starts_with(generation);
        if wanted.generation.to_string().starts_with(generation) {
            return Err(Refusal::Invalid(format!("generation {} is what is wanted now: {}", wanted.generation, names())));
        }
        let mut found: Vec<&Deployment> = self.kept(&id.namespace).filter(has).filter(called).collect();
        found.dedup_by(|a, b| a.generation == b.generation);
        match found.as_slice() {
            [] => Err(Refusal::NotFound(format!("no generation {generation:?} of {} is kept: {}", id.name, names()))),
            [one] if differs(one) => Ok((*one).clone()),
            [one] => Err(Refusal::Invalid(format!("{} is the same in generation {}: {}", id.name, one.generation, names()))),
            _ => Err(Refusal::Invalid(format!("{generation:?} begins several generations: {}", names()))),
        }
    }

    pub(super) async fn pin(&mut self, who: &str, instance: &str, held: bool) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let id = resolve::instance(&self.memory, &who, Verb::Act, instance)?;
        let before = self.memory.pins.get(&id).cloned();
        let after = held.then(|| Pin {
            by: key(&who),
            at: now(),
            held: true,
            refused: before.as_ref().map(|pin| pin.refused.clone()).unwrap_or_default(),
        });
        let changed = before.as_ref().map(|pin| pin.held) != after.as_ref().map(|pin| pin.held);
        if changed {
            self.not_deploying(&id.namespace)?;
            self.commit(vec![Change::Pin(id.clone(), after)]).await?;
        }
        let place = self.memory.plants.get(&id.namespace).map(resolve::repository).unwrap_or_default();
        Ok(json(&Pinned { version: 1, instance: format!("{place}/{}", id.name), pinned: held, changed }))
    }
}

//! The queue of deploys: one at a time for each namespace, the newest wins, so many at once in all.

use std::collections::BTreeMap;

use super::{Agent, Event, Queued, UnderWay, deploy::Deploy, history, job::Job, now};
use crate::{
    build::{Builder, Place},
    bus::{Level, Outcome, Refusal, Stage},
    host::Host,
    spec::{
        desired::Deployment,
        name::{FlakeUri, InstanceName, KeyId, Namespace, RepoName},
    },
    state::{Ask, Batch, Change, Pin, Record, State},
};

/// What to do with a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Deploy,
    /// Evaluate and say what would change.
    Plan,
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Puts a deploy in the queue of its namespace. The newest wins: one that waits there is superseded.
    pub(super) fn enqueue(&mut self, namespace: Namespace, ask: Ask) -> Job {
        let job = self.jobs.create(namespace.clone());
        self.enqueue_as(namespace, ask, job.clone());
        job
    }

    /// The same, as a job that has begun already.
    pub(super) fn enqueue_as(&mut self, namespace: Namespace, ask: Ask, job: Job) {
        if self.deploying.contains_key(&namespace) {
            job.say(Stage::Queue, Level::Info, "waiting for the deploy that is under way");
        } else if self.deploying.len() >= self.shared.settings.parallel {
            job.say(Stage::Queue, Level::Info, "waiting for a free builder");
        }
        let queued = Queued { ask, job };
        if let Some(older) = self.queued.insert(namespace, queued) {
            older.job.end(Stage::Queue, Outcome::Superseded, "a newer push took its place");
        }
    }

    /// What remembers the deploy that waits in the queue of a namespace as superseded. It is for the batch with the ask that takes its place.
    pub(super) fn superseded(&self, namespace: &Namespace) -> Batch {
        let Some(Queued { ask, job }) = self.queued.get(namespace) else { return Batch::new() };
        let record = Record {
            kind: "push".to_owned(),
            by: Some(ask.by.clone()),
            reference: ask.reference.clone(),
            commit: ask.commit.clone(),
            generation: None,
            ended: now(),
            outcome: history::word(&Outcome::Superseded),
            stages: job.summary().stages.iter().map(|(stage, took)| (history::word(stage), *took)).collect(),
            changes: Vec::new(),
            text: "a newer push took its place".to_owned(),
        };
        self.remember(namespace, ask.at, record)
    }

    /// Starts queued deploys: one at a time for each namespace, so many at once in all.
    pub(super) fn start_queued(&mut self) {
        while self.deploying.len() < self.shared.settings.parallel {
            let free = |namespace: &&Namespace| {
                !self.deploying.contains_key(*namespace) && self.plans(namespace) < self.quota_of(namespace).builds
            };
            let next = self.queued.keys().find(free).cloned();
            let Some(namespace) = next else { return };
            let Some(Queued { ask, job }) = self.queued.remove(&namespace) else { return };
            let by = Some(ask.by.clone());
            let deploy = self.begin(namespace, ask, job, "push", by);
            tokio::spawn(deploy.run());
        }
    }

    /// Evaluates a commit and says what deploying it would change. Not in the queue of deploys, for it touches nothing; but refused when
    /// the namespace has as many builds as it may have.
    pub(super) fn start_plan(&mut self, namespace: Namespace, ask: Ask) -> Result<Job, Refusal> {
        self.planning.retain(|job| !job.ended());
        let most = self.quota_of(&namespace).builds;
        let builds = self.plans(&namespace) + u32::from(self.deploying.contains_key(&namespace));
        if builds >= most {
            return Err(Refusal::Denied(format!(
                "{namespace} has {builds} builds under way and may have {most} at once: push again when one has ended"
            )));
        }
        let job = self.jobs.create(namespace.clone());
        self.planning.push(job.clone());
        let by = Some(ask.by.clone());
        let deploy = self.deploy(namespace, ask, job.clone(), "plan", by);
        let events = self.shared.events.clone();
        tokio::spawn(async move {
            deploy.plan_only().await;
            // The loop being gone means that the agent stops.
            drop(events.send(Event::PlanEnded).await);
        });
        Ok(job)
    }

    /// How many plans of a namespace are under way.
    pub(super) fn plans(&self, namespace: &Namespace) -> u32 {
        let mine = self.planning.iter().filter(|job| job.namespace == *namespace && !job.ended());
        u32::try_from(mine.count()).unwrap_or(u32::MAX)
    }

    /// A deploy that begins now: until it ends, the next of its namespace waits.
    pub(super) fn begin(
        &mut self,
        namespace: Namespace,
        ask: Ask,
        job: Job,
        kind: &'static str,
        by: Option<KeyId>,
    ) -> Deploy<H, B> {
        let entry = history::under_way(&ask, kind, by.as_ref());
        self.last_deploy.insert(namespace.clone(), job.clone());
        self.deploying.insert(namespace.clone(), UnderWay { job: job.clone(), entry });
        self.deploy(namespace, ask, job, kind, by)
    }

    fn deploy(&self, namespace: Namespace, ask: Ask, job: Job, kind: &'static str, by: Option<KeyId>) -> Deploy<H, B> {
        let before = self.memory.wants.get(&namespace).cloned();
        let past = self.memory.past.iter().filter(|((other, _), _)| *other == namespace);
        let kept: Vec<Deployment> = past.map(|(_, deployment)| deployment.clone()).collect();
        // The latest is last: the key ends with the time.
        let good = before.iter().chain(kept.iter().rev()).find(|deployment| deployment.proven).cloned();
        let quota = self.quota_of(&namespace).clone();
        let pins: BTreeMap<InstanceName, Pin> = self
            .memory
            .pins
            .iter()
            .filter(|(id, _)| id.namespace == namespace)
            .map(|(id, pin)| (id.name.clone(), pin.clone()))
            .collect();
        let place = self.place_of(&namespace, &ask.repo);
        let taken = self.claimed_by_others(&namespace);
        Deploy { shared: self.shared.clone(), namespace, ask, place, job, before, good, kept, quota, pins, taken, kind, by }
    }

    /// Where the repository of a deploy is.
    fn place_of(&self, namespace: &Namespace, repository: &RepoName) -> Place {
        let settings = &self.shared.settings;
        match self.memory.plants.get(namespace).map(|plant| &plant.uri) {
            Some(FlakeUri::Remote(_)) => Place::Mirror(namespace.clone(), settings.remotes.fetcher.path(namespace)),
            _ => Place::Silo(settings.repositories.join(format!("{repository}.git"))),
        }
    }

    /// Remembers that what is wanted now may be gone back to.
    pub(super) async fn proven(&mut self, namespace: &Namespace) {
        let Some(want) = self.memory.wants.get(namespace).filter(|want| !want.proven) else { return };
        let want = Deployment { proven: true, ..want.clone() };
        if self.commit(vec![Change::Want(namespace.clone(), Some(want))]).await.is_err() {
            tracing::warn!(%namespace, "this deployment will not be gone back to");
        }
    }

    /// Remembers how it went, and forgets the ask if it is still the one that was worked on.
    pub(super) async fn deploy_ended(&mut self, namespace: Namespace, ask: Option<Ask>, record: Record) {
        let began = self.deploying.remove(&namespace).map_or(record.ended, |under_way| under_way.entry.at);
        let mut batch: Batch = self.remember(&namespace, began, record);
        if ask.is_some() && self.memory.asks.get(&namespace) == ask.as_ref() {
            batch.push(Change::Ask(namespace.clone(), None));
        }
        if self.commit(batch).await.is_err() {
            tracing::warn!(%namespace, "a deploy that has ended will be made again at the next start");
        }
    }
}

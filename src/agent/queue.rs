//! The queue of deploys: one at a time for each namespace, the newest wins, so many at once in all.

use super::{Agent, Queued, deploy::Deploy, job::Job};
use crate::{
    build::{Builder, Place},
    bus::{Level, Outcome, Stage},
    host::Host,
    spec::{
        desired::Deployment,
        name::{FlakeUri, Namespace, RepoName},
    },
    state::{Ask, Change, State},
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

    /// Starts queued deploys: one at a time for each namespace, so many at once in all.
    pub(super) fn start_queued(&mut self) {
        while self.deploying.len() < self.shared.settings.parallel {
            let next = self.queued.keys().find(|namespace| !self.deploying.contains_key(*namespace)).cloned();
            let Some(namespace) = next else { return };
            let Some(Queued { ask, job }) = self.queued.remove(&namespace) else { return };
            self.deploying.insert(namespace.clone(), job.clone());
            let deploy = self.deploy(namespace, ask, job);
            tokio::spawn(deploy.run());
        }
    }

    /// Evaluates a commit and says what deploying it would change. Not in the queue of deploys, for it touches nothing; but
    /// one at a time.
    pub(super) fn start_plan(&mut self, namespace: Namespace, ask: Ask) -> Job {
        let job = self.jobs.create(namespace.clone());
        let deploy = self.deploy(namespace, ask, job.clone());
        tokio::spawn(deploy.plan_only());
        job
    }

    fn deploy(&self, namespace: Namespace, ask: Ask, job: Job) -> Deploy<H, B> {
        let before = self.memory.wants.get(&namespace).cloned();
        let past = self.memory.past.iter().filter(|((other, _), _)| *other == namespace);
        let kept: Vec<Deployment> = past.map(|(_, deployment)| deployment.clone()).collect();
        // The latest is last: the key ends with the time.
        let good = before.iter().chain(kept.iter().rev()).find(|deployment| deployment.proven).cloned();
        let place = self.place_of(&namespace, &ask.repo);
        Deploy { shared: self.shared.clone(), namespace, ask, place, job, before, good, kept }
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

    /// Forgets the ask if it is still the one that was worked on.
    pub(super) async fn deploy_ended(&mut self, namespace: Namespace, ask: Option<Ask>) {
        self.deploying.remove(&namespace);
        if ask.is_some() && self.memory.asks.get(&namespace) == ask.as_ref() {
            let forget = vec![Change::Ask(namespace.clone(), None)];
            if self.commit(forget).await.is_err() {
                tracing::warn!(%namespace, "a deploy that has ended will be made again at the next start");
            }
        }
    }
}

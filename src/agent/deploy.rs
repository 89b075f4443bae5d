//! One deploy: from a commit to running instances, or to the stage that failed, the lines that matter and what to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Event, Shared, chain, guest::wait_for_guest, job::Job, logs, now};
use crate::{
    build::{self, BuildError, Builder, Evaluated, Place},
    bus::{Level, Outcome, Stage},
    host::Host,
    spec::{
        desired::{self, Change as InstanceChange, Deployment},
        instance::Instance,
        manifest::{self, Manifest, Problem},
        name::{Generation, InstanceId, InstanceName, KeyId, Namespace},
        quota::{Quota, Share},
    },
    state::{Ask, Pin},
};

/// The most instances that one flake may have.
const MAX_INSTANCES: usize = 64;

/// Resolves when the machine was brought to what was accepted, as far as `id` is concerned, or could not be.
pub struct Settled {
    pub id: InstanceId,
    pub done: oneshot::Receiver<Result<(), String>>,
}

/// How a deploy failed; what to say about it has been said.
struct Failed(Stage);

/// One deploy, with all it needs: it runs beside the loop.
pub(super) struct Deploy<H, B> {
    pub(super) shared: Arc<Shared<H, B>>,
    pub(super) namespace: Namespace,
    pub(super) ask: Ask,
    /// Where the commit is.
    pub(super) place: Place,
    pub(super) job: Job,
    /// What is wanted now.
    pub(super) before: Option<Deployment>,
    /// The latest deployment that got ready: what is gone back to.
    pub(super) good: Option<Deployment>,
    /// Replaced deployments whose systems are kept.
    pub(super) kept: Vec<Deployment>,
    /// What the namespace may have.
    pub(super) quota: Quota,
    /// What deploys may not change.
    pub(super) pins: BTreeMap<InstanceName, Pin>,
    /// `push` or `rollback`
    pub(super) kind: &'static str,
    /// Who asked; `None` for the operator.
    pub(super) by: Option<KeyId>,
}

impl<H: Host, B: Builder> Deploy<H, B> {
    fn info(&self, stage: Stage, text: impl Into<String>) {
        self.job.say(stage, Level::Info, text);
    }

    fn error(&self, stage: Stage, text: impl Into<String>) {
        self.job.say(stage, Level::Error, text);
    }

    /// To the end, whatever it is.
    pub(super) async fn run(self) {
        let span = tracing::info_span!("deploy", namespace = %self.namespace, commit = %self.ask.commit, job = %self.job.name);
        tracing::info!(parent: &span, "began");
        let (outcome, stage, text) = match self.deploy().await {
            Ok(text) => (Outcome::Done, Stage::Run, text),
            Err(Failed(stage)) => (Outcome::Failed, stage, "nothing else was changed; mend it and push again".to_owned()),
        };
        tracing::info!(parent: &span, ?outcome, ?stage, "ended");
        // First the state, then the word: who hears the end finds the host in that state.
        self.ended(Some(self.ask.clone()), outcome, stage, &text).await;
        self.job.end(stage, outcome, text);
        if let Err(error) = logs::keep(&logs::kept(&self.shared.settings.layout, &self.namespace), &self.job) {
            tracing::warn!(%error, "what this deploy said is forgotten when the agent stops");
        }
    }

    /// Evaluates, and says what would change.
    pub(super) async fn plan_only(self) {
        static PLANS: Semaphore = Semaphore::const_new(1);
        if PLANS.available_permits() == 0 {
            self.info(Stage::Queue, "waiting for another plan");
        }
        // It is never closed.
        let _turn = PLANS.acquire().await;
        let (outcome, stage, text) = match self.evaluate().await {
            Err(Failed(stage)) => (Outcome::Failed, stage, "nothing was changed".to_owned()),
            Ok((_, manifests, evaluated)) => {
                self.say_changes(&self.foreseen(&manifests, &evaluated));
                let mut instances = self.made_of(&manifests, &evaluated);
                self.hold(&mut instances).into_iter().for_each(|text| self.info(Stage::Plan, text));
                (Outcome::Done, Stage::Plan, format!("this is a plan: nothing was changed; to deploy it: deploy {}", self.ask.repo))
            }
        };
        self.job.end(stage, outcome, text);
    }

    /// Everything, in order. Returns what to say at the end.
    async fn deploy(&self) -> Result<String, Failed> {
        let (build_job, manifests, evaluated) = self.evaluate().await?;
        let changes = self.foreseen(&manifests, &evaluated);
        let mut instances = self.realise(&build_job, manifests, &evaluated).await?;
        let held = self.hold(&mut instances);
        self.say_changes(&changes);
        held.into_iter().for_each(|text| self.info(Stage::Plan, text));

        let old = self.old();
        // What was wanted but never got ready (the agent was stopped meanwhile, say) has still to show that it does.
        let proven = self.before.as_ref().is_none_or(|before| before.proven);
        let touched: BTreeSet<InstanceName> = desired::changes(&old, &instances)
            .into_iter()
            .filter(|(_, change)| *change != InstanceChange::Keep || !proven)
            .map(|(name, _)| name)
            .collect();
        let deployment = self.deployment(instances);
        let systems: Vec<_> = std::iter::once(&deployment)
            .chain(&self.before)
            .chain(&self.good)
            .chain(&self.kept)
            .flat_map(|deployment| deployment.instances.values().map(|instance| instance.toplevel.clone()))
            .collect();
        let failed = self.bring_up(deployment.clone(), &touched).await?;
        if failed.is_empty() {
            drop(self.shared.events.send(Event::Proven(self.namespace.clone())).await);
            if let Err(error) = self.shared.builder.retain(&self.namespace, &systems).await {
                tracing::warn!(error = %chain(&error), "old systems are kept until the next deploy");
            }
            return Ok(self.summary(&deployment));
        }
        self.go_back(deployment, failed).await;
        Err(Failed(Stage::Boot))
    }

    fn deployment(&self, instances: BTreeMap<InstanceName, Instance>) -> Deployment {
        Deployment {
            generation: Generation::of(instances.iter().map(|(name, instance)| (name, &instance.toplevel))),
            commit: self.ask.commit.clone(),
            reference: self.ask.reference.clone(),
            by: self.ask.by.clone(),
            at: now(),
            proven: false,
            instances,
        }
    }

    /// Source archive, evaluation, and every check that needs no build.
    async fn evaluate(&self) -> Result<(build::Job, BTreeMap<InstanceName, Manifest>, BTreeMap<String, Evaluated>), Failed> {
        let settings = &self.shared.settings;
        let archive = settings.work.join(format!("{}.tar", self.job.name));
        if let Err(error) = settings.reader.export(&self.place, &self.ask.commit, &archive).await {
            self.error(Stage::Eval, chain(&error));
            return Err(Failed(Stage::Eval));
        }
        let job = build::Job { name: self.job.name.clone(), namespace: self.namespace.clone(), source: archive.clone() };
        self.info(Stage::Eval, format!("evaluating {} at {}", self.ask.reference.short(), &self.ask.commit.as_str()[..12]));
        let log = self.log(Stage::Eval);
        let evaluated = self.shared.builder.eval(&job, log).await;
        // It was read, or could not be; either way nobody needs it any more.
        drop(std::fs::remove_file(&archive));
        let evaluated = evaluated.map_err(|error| self.build_failed(Stage::Eval, error))?;

        let retired = self.shared.host.retired_bytes(&self.namespace).await.map_err(|error| {
            self.error(Stage::Eval, format!("could not look at this host: {}", chain(&error)));
            Failed(Stage::Eval)
        })?;
        let manifests = self.check(&evaluated, retired).map_err(|problems| {
            for problem in problems {
                self.error(Stage::Eval, problem.to_string());
            }
            Failed(Stage::Eval)
        })?;
        let names: Vec<&str> = manifests.keys().map(InstanceName::as_str).collect();
        let count = names.len();
        self.info(Stage::Eval, format!("{} ({count} instance{})", names.join(", "), if count == 1 { "" } else { "s" }));
        Ok((job, manifests, evaluated))
    }

    /// Every problem of every instance, at once. `retired` bytes are in volumes that are kept and no longer declared.
    fn check(
        &self,
        evaluated: &BTreeMap<String, Evaluated>,
        retired: u64,
    ) -> Result<BTreeMap<InstanceName, Manifest>, Vec<Problem>> {
        let mut problems = Vec::new();
        if evaluated.is_empty() {
            problems.push(Problem::new("seeds", "is empty: give it at least one instance, as seeds.web = seed.lib.mkSeed { … }"));
        }
        if evaluated.len() > MAX_INSTANCES {
            let what = format!("has {} instances: one flake may have {MAX_INSTANCES}", evaluated.len());
            return Err(vec![Problem::new("seeds", what)]);
        }
        let mut manifests = BTreeMap::new();
        for (attribute, evaluated) in evaluated {
            match manifest::read(attribute, &evaluated.meta) {
                Ok(manifest) => drop(manifests.insert(manifest.name.clone(), manifest)),
                Err(found) => problems.extend(found),
            }
        }
        if let Some(before) = &self.before {
            let after = self.instances(&manifests, |name| Some((evaluated.get(name)?.out.clone(), Vec::new(), String::new())));
            problems.extend(desired::check_change(&before.instances, &after));
        }
        let log_max = self.shared.settings.layout.log_max;
        let share =
            |(name, manifest): (&InstanceName, &Manifest)| (name.clone(), Share::of(&manifest.size, &manifest.volumes, log_max));
        let runs = |name: &InstanceName| self.before.as_ref().is_some_and(|before| before.instances.contains_key(name));
        // What this drops is kept as well.
        let dropped: u64 = self
            .before
            .iter()
            .flat_map(|before| &before.instances)
            .flat_map(|(name, before)| before.volumes.iter().map(move |(key, volume)| (name, key, volume.size.0)))
            .filter(|(name, key, _)| !manifests.get(*name).is_some_and(|manifest| manifest.volumes.contains_key(*key)))
            .map(|(_, _, size)| size)
            .sum();
        let kept = Share { volumes: retired.saturating_add(dropped), ..Share::default() };
        problems.extend(self.quota.check(&manifests.iter().map(share).collect(), runs, kept));
        if problems.is_empty() { Ok(manifests) } else { Err(problems) }
    }

    /// The instances of `manifests`, each with the system that `system` gives for it: toplevel, closure, kernel parameters.
    fn instances(
        &self,
        manifests: &BTreeMap<InstanceName, Manifest>,
        mut system: impl FnMut(&str) -> Option<(crate::spec::name::StorePath, Vec<crate::spec::name::StorePath>, String)>,
    ) -> BTreeMap<InstanceName, Instance> {
        let instance = |(name, manifest): (&InstanceName, &Manifest)| {
            let (toplevel, closure, kernel_params) = system(name.as_str())?;
            let Manifest { name: _, size, ports, volumes, rollout, acme, shoot, tpm } = manifest.clone();
            let made = Instance { toplevel, kernel_params, closure, size, ports, volumes, rollout, acme, shoot, tpm };
            Some((name.clone(), made))
        };
        manifests.iter().filter_map(instance).collect()
    }

    /// What will change, as far as it is known before the build: closure and kernel parameters follow from the system's path.
    fn foreseen(
        &self,
        manifests: &BTreeMap<InstanceName, Manifest>,
        evaluated: &BTreeMap<String, Evaluated>,
    ) -> BTreeMap<InstanceName, InstanceChange> {
        let mut new = self.made_of(manifests, evaluated);
        self.hold(&mut new);
        desired::changes(&self.old(), &new)
    }

    /// The instances as far as they are known before the build.
    fn made_of(
        &self,
        manifests: &BTreeMap<InstanceName, Manifest>,
        evaluated: &BTreeMap<String, Evaluated>,
    ) -> BTreeMap<InstanceName, Instance> {
        let old = self.old();
        self.instances(manifests, |name| {
            let out = evaluated.get(name)?.out.clone();
            let same = old.values().find(|instance| instance.toplevel == out);
            let (closure, params) = same.map(|same| (same.closure.clone(), same.kernel_params.clone())).unwrap_or_default();
            Some((out, closure, params))
        })
    }

    /// What is wanted now.
    fn old(&self) -> BTreeMap<InstanceName, Instance> {
        self.before.as_ref().map(|before| before.instances.clone()).unwrap_or_default()
    }

    /// Puts what is pinned back as it is wanted now, and says so.
    fn hold(&self, instances: &mut BTreeMap<InstanceName, Instance>) -> Vec<String> {
        let Some(before) = &self.before else { return Vec::new() };
        let mut said = Vec::new();
        for (name, pin) in &self.pins {
            let (Some(new), Some(old)) = (instances.get_mut(name), before.instances.get(name)) else { continue };
            if new.is_version_of(old) || !pin.keeps_away(new) {
                continue;
            }
            *new = old.clone();
            let by = super::history::who(pin.by.as_ref());
            said.push(match pin.held {
                true => format!(
                    "{name}: pinned by {by}, stays as it is; to let this version in: unpin {name}, then deploy {}",
                    self.ask.repo
                ),
                false => format!(
                    "{name}: this version was gone back from by {by}, stays as it is; change it, or: unpin {name}, then deploy {}",
                    self.ask.repo
                ),
            });
        }
        said
    }

    fn say_changes(&self, changes: &BTreeMap<InstanceName, InstanceChange>) {
        for (name, change) in changes {
            let text = match change {
                InstanceChange::Start => format!("{name}: start (new)"),
                InstanceChange::Restart(reasons) => format!("{name}: restart ({})", reasons.join(", ")),
                InstanceChange::Keep => format!("{name}: unchanged, not touched"),
                InstanceChange::Remove => format!("{name}: remove (no longer in the flake; its volumes are kept)"),
            };
            self.info(Stage::Plan, text);
        }
    }

    async fn realise(
        &self,
        job: &build::Job,
        manifests: BTreeMap<InstanceName, Manifest>,
        evaluated: &BTreeMap<String, Evaluated>,
    ) -> Result<BTreeMap<InstanceName, Instance>, Failed> {
        self.info(Stage::Build, format!("building {} system{}", evaluated.len(), if evaluated.len() == 1 { "" } else { "s" }));
        let began = std::time::Instant::now();
        let realised = self.shared.builder.realise(job, evaluated, self.log(Stage::Build)).await;
        let realised = realised.map_err(|error| self.build_failed(Stage::Build, error))?;
        let paths: BTreeSet<_> = realised.values().flat_map(|system| &system.closure).collect();
        self.info(Stage::Build, format!("built: {} store paths in {:.1} s", paths.len(), began.elapsed().as_secs_f32()));
        Ok(self.instances(&manifests, |name| {
            let system = realised.get(name)?;
            Some((system.toplevel.clone(), system.closure.clone(), system.kernel_params.clone()))
        }))
    }

    fn build_failed(&self, stage: Stage, error: BuildError) -> Failed {
        match error {
            BuildError::Failed { what, lines, remedy } => {
                self.error(stage, what);
                for line in lines {
                    self.job.say(stage, Level::Detail, line);
                }
                if !remedy.is_empty() {
                    self.error(stage, remedy);
                }
            }
            BuildError::Host(what) => {
                tracing::error!(error = what, "a build could not be run");
                self.error(
                    stage,
                    format!("this host could not do it: {what}; its operator finds more in the journal of seed-agent"),
                );
            }
        }
        Failed(stage)
    }

    /// A sender whose lines become details of the job.
    fn log(&self, stage: Stage) -> mpsc::Sender<String> {
        let (sender, mut lines) = mpsc::channel::<String>(256);
        let job = self.job.clone();
        tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                job.say(stage, Level::Detail, line);
            }
        });
        sender
    }

    /// Has the deployment accepted, and waits until every instance that it touches is ready or has failed. Returns those that failed.
    async fn bring_up(&self, deployment: Deployment, touched: &BTreeSet<InstanceName>) -> Result<Vec<InstanceName>, Failed> {
        let wanted: BTreeSet<InstanceName> = deployment.instances.keys().cloned().collect();
        let settled = self.accept(deployment).await?;
        Ok(self.not_ready(settled, &wanted, touched).await)
    }

    /// Waits until what is touched is ready, or gone if it is not wanted, and returns what is neither.
    pub(super) async fn not_ready(
        &self,
        settled: Vec<Settled>,
        wanted: &BTreeSet<InstanceName>,
        touched: &BTreeSet<InstanceName>,
    ) -> Vec<InstanceName> {
        let ready = settled.into_iter().filter(|settled| touched.contains(&settled.id.name)).map(|settled| {
            let runs = wanted.contains(&settled.id.name);
            async move {
                let name = settled.id.name.clone();
                (name, self.wait_ready(settled, runs).await)
            }
        });
        let ready = futures_util::future::join_all(ready).await;
        ready.into_iter().filter(|(_, ready)| !ready).map(|(name, _)| name).collect()
    }

    async fn accept(&self, deployment: Deployment) -> Result<Vec<Settled>, Failed> {
        let (answer, accepted) = oneshot::channel();
        let event = Event::Accept(self.namespace.clone(), deployment, answer);
        let refused = |text: String| {
            self.error(Stage::Plan, text);
            Failed(Stage::Plan)
        };
        let stopping = || "the agent is stopping; the deploy goes on when it is back".to_owned();
        self.shared.events.send(event).await.map_err(|_| refused(stopping()))?;
        let accepted = accepted.await.map_err(|_| refused(stopping()))?;
        accepted.map_err(|refusal| refused(super::request::text(&refusal)))
    }

    /// Waits until the instance is ready (or gone, if it is not to run), saying how far it is. Returns whether it is.
    async fn wait_ready(&self, settled: Settled, runs: bool) -> bool {
        let Settled { id, done } = settled;
        let result = done.await.unwrap_or_else(|_| Err("the agent is stopping".to_owned()));
        if let Err(text) = result {
            self.error(Stage::Boot, format!("{}: {text}", id.name));
            return false;
        }
        if !runs {
            self.info(Stage::Run, format!("{}: stopped; its volumes are kept", id.name));
            return true;
        }
        let is_off = || self.shared.stopped.borrow().contains(&id);
        let off = format!("{0} is off, and ready for `start {0}`", id.name);
        if is_off() {
            self.info(Stage::Run, off);
            return true;
        }
        let ready = wait_for_guest(&self.shared, &id, |text| self.info(Stage::Boot, format!("{}: {text}", id.name))).await;
        match ready {
            // Somebody stopped it meanwhile.
            Err(_) if is_off() => {
                self.info(Stage::Run, off);
                true
            }
            Ok(guest) => {
                self.info(
                    Stage::Run,
                    format!("{} is {}", id.name, if guest.status_text.is_empty() { "running" } else { &guest.status_text }),
                );
                self.say_failed_units(&id).await;
                true
            }
            Err(text) => {
                self.error(Stage::Boot, format!("{}: {text}", id.name));
                for line in logs::last_words(&self.shared.host, &id).await {
                    self.job.say(Stage::Boot, Level::Detail, line);
                }
                false
            }
        }
    }

    /// A guest that is up but has failed units runs; the pusher should know all the same.
    async fn say_failed_units(&self, id: &InstanceId) {
        for unit in logs::failed_units(&self.shared.host, id).await {
            self.error(Stage::Run, format!("{}: {unit} failed in the guest: see `logs {}`", id.name, id.name));
        }
    }

    /// Starts the previous version of what failed again; what came up stays.
    pub(super) async fn go_back(&self, mut deployment: Deployment, failed: Vec<InstanceName>) {
        let old = self.good.as_ref().map(|good| good.instances.clone()).unwrap_or_default();
        let touched: BTreeSet<InstanceName> = failed.iter().cloned().collect();
        for name in &failed {
            match old.get(name) {
                Some(before) => {
                    self.info(Stage::Boot, format!("{name}: starting the previous version again"));
                    deployment.instances.insert(name.clone(), before.clone());
                }
                None => {
                    self.info(Stage::Boot, format!("{name}: stopping it: there is no previous version; its volumes are kept"));
                    deployment.instances.remove(name);
                }
            }
        }
        let back = self.deployment(deployment.instances);
        let Ok(still) = self.bring_up(back, &touched).await else { return };
        if still.is_empty() {
            drop(self.shared.events.send(Event::Proven(self.namespace.clone())).await);
        }
        for name in still {
            self.error(Stage::Boot, format!("{name}: the previous version did not come up either: see `logs {name}`"));
        }
    }

    fn summary(&self, deployment: &Deployment) -> String {
        let suffix = format!("{}.{}", self.namespace, self.shared.settings.layout.domain);
        let names: Vec<String> = deployment.instances.keys().map(|name| format!("{name}.{suffix}")).collect();
        format!("generation {} runs: {}", deployment.generation, names.join(", "))
    }
}

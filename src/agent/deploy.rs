//! One deploy: from a commit to running instances, or to the stage that failed, the lines that matter and what to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Event, Shared, chain, evaluate::Checked, job::Job, logs, now, rolling::wait_for_version};
use crate::{
    build::{self, BuildError, Builder, Evaluated, Place},
    bus::{Level, Outcome, Stage},
    host::Host,
    spec::{
        desired::{self, Change as InstanceChange, Deployment},
        instance::Instance,
        manifest::Manifest,
        name::{Generation, InstanceId, InstanceName, KeyId, Namespace, SetId},
        quota::Quota,
        route::{self, Route},
    },
    state::{Ask, Pin},
};

/// Resolves when the machine was brought to what was accepted, as far as `id` is concerned, or could not be.
pub struct Settled {
    pub id: InstanceId,
    pub done: oneshot::Receiver<Result<(), String>>,
}

/// Whether a deployment is new, or one that is gone back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    On,
    Back,
}

/// How a deploy failed; what to say about it has been said.
pub(super) struct Failed(pub(super) Stage);

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
    /// Public ports that other namespaces have.
    pub(super) taken: Vec<Route>,
    /// `push` or `rollback`
    pub(super) kind: &'static str,
    /// Who asked; `None` for the operator.
    pub(super) by: Option<KeyId>,
}

impl<H: Host, B: Builder> Deploy<H, B> {
    pub(super) fn info(&self, stage: Stage, text: impl Into<String>) {
        self.job.say(stage, Level::Info, text);
    }

    pub(super) fn error(&self, stage: Stage, text: impl Into<String>) {
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
            Ok(Checked { manifests, evaluated, mut routes, .. }) => {
                self.say_changes(&self.foreseen(&manifests, &evaluated));
                let mut instances = self.made_of(&manifests, &evaluated);
                self.hold(&mut instances, &mut routes).into_iter().for_each(|text| self.info(Stage::Plan, text));
                self.say_routes(&routes);
                (Outcome::Done, Stage::Plan, format!("this is a plan: nothing was changed; to deploy it: deploy {}", self.ask.repo))
            }
        };
        self.job.end(stage, outcome, text);
    }

    /// Everything, in order. Returns what to say at the end.
    async fn deploy(&self) -> Result<String, Failed> {
        let Checked { build_job, manifests, evaluated, mut routes } = self.evaluate().await?;
        let changes = self.foreseen(&manifests, &evaluated);
        let mut instances = self.realise(&build_job, manifests, &evaluated).await?;
        let held = self.hold(&mut instances, &mut routes);
        self.say_changes(&changes);
        held.into_iter().for_each(|text| self.info(Stage::Plan, text));
        self.say_routes(&routes);

        let old = self.old();
        // What was wanted but never got ready (the agent was stopped meanwhile, say) has still to show that it does.
        let proven = self.before.as_ref().is_none_or(|before| before.proven);
        let touched: BTreeSet<InstanceName> = desired::changes(&old, &instances)
            .into_iter()
            .filter(|(_, change)| *change != InstanceChange::Keep || !proven)
            .map(|(name, _)| name)
            .collect();
        let deployment = self.deployment(instances, routes);
        let mut systems: Vec<_> = std::iter::once(&deployment)
            .chain(&self.before)
            .chain(&self.good)
            .chain(&self.kept)
            .flat_map(|deployment| deployment.instances.values().map(|instance| instance.toplevel.clone()))
            .collect();
        let failed = self.bring_up(deployment.clone(), &touched, Way::On).await?;
        if failed.is_empty() {
            drop(self.shared.events.send(Event::Proven(self.namespace.clone())).await);
            systems.extend(self.systems_beside());
            if let Err(error) = self.shared.builder.retain(&self.namespace, &systems).await {
                tracing::warn!(error = %chain(&error), "old systems are kept until the next deploy");
            }
            self.say_unproven().await;
            return Ok(self.summary(&deployment));
        }
        self.go_back(deployment, failed).await;
        Err(Failed(Stage::Boot))
    }

    fn deployment(&self, instances: BTreeMap<InstanceName, Instance>, routes: Vec<Route>) -> Deployment {
        Deployment {
            generation: Generation::of(instances.iter().map(|(name, instance)| (name, &instance.toplevel))),
            commit: self.ask.commit.clone(),
            reference: self.ask.reference.clone(),
            by: self.ask.by.clone(),
            at: now(),
            proven: false,
            instances,
            routes,
        }
    }

    /// The instances of `manifests`, each with the system that `system` gives for it: toplevel, closure, kernel parameters.
    pub(super) fn instances(
        &self,
        manifests: &BTreeMap<InstanceName, Manifest>,
        mut system: impl FnMut(&str) -> Option<(crate::spec::name::StorePath, Vec<crate::spec::name::StorePath>, String)>,
    ) -> BTreeMap<InstanceName, Instance> {
        let instance = |(name, manifest): (&InstanceName, &Manifest)| {
            let (toplevel, closure, kernel_params) = system(name.as_str())?;
            let Manifest { name: _, size, ports, volumes, rollout, acme, shoot, tpm, domains } = manifest.clone();
            let made = Instance { toplevel, kernel_params, closure, size, ports, volumes, rollout, acme, shoot, tpm, domains };
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
        self.hold(&mut new, &mut Vec::new());
        desired::changes(&self.old(), &new)
    }

    /// The instances as far as they are known before the build.
    pub(super) fn made_of(
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
    pub(super) fn old(&self) -> BTreeMap<InstanceName, Instance> {
        self.before.as_ref().map(|before| before.instances.clone()).unwrap_or_default()
    }

    /// Puts what is pinned back as it is wanted now, with what leads to it, and says so.
    fn hold(&self, instances: &mut BTreeMap<InstanceName, Instance>, routes: &mut Vec<Route>) -> Vec<String> {
        let Some(before) = &self.before else { return Vec::new() };
        let mut said = Vec::new();
        for (name, pin) in &self.pins {
            let (Some(new), Some(old)) = (instances.get_mut(name), before.instances.get(name)) else { continue };
            if new.is_version_of(old) || !pin.keeps_away(new) {
                continue;
            }
            *new = old.clone();
            *routes = route::with_those_of(name, routes, &before.routes);
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
                InstanceChange::Roll(reasons) => {
                    format!("{name}: roll out ({}): it starts beside the one that serves", reasons.join(", "))
                }
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

    pub(super) fn build_failed(&self, stage: Stage, error: BuildError) -> Failed {
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
    pub(super) fn log(&self, stage: Stage) -> mpsc::Sender<String> {
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
    async fn bring_up(
        &self,
        deployment: Deployment,
        touched: &BTreeSet<InstanceName>,
        way: Way,
    ) -> Result<Vec<InstanceName>, Failed> {
        let wanted = deployment.instances.clone();
        let moved = self.old_routes() != deployment.routes;
        let (settled, rest): (Vec<_>, Vec<_>) =
            self.accept(deployment, way).await?.into_iter().partition(|settled| touched.contains(&settled.id.name));
        let failed = self.not_ready(settled, &wanted, touched).await;
        if moved {
            // Public ports lead where they should once a pass has nothing left to do.
            futures_util::future::join_all(rest.into_iter().map(|settled| settled.done)).await;
        }
        Ok(failed)
    }

    /// Waits until what is touched is ready, or gone if it is not wanted, and returns what is neither.
    pub(super) async fn not_ready(
        &self,
        settled: Vec<Settled>,
        wanted: &BTreeMap<InstanceName, Instance>,
        touched: &BTreeSet<InstanceName>,
    ) -> Vec<InstanceName> {
        let ready = settled.into_iter().filter(|settled| touched.contains(&settled.id.name)).map(|settled| {
            let version = wanted.get(&settled.id.name);
            async move {
                let name = settled.id.name.clone();
                (name, self.wait_ready(settled, version).await)
            }
        });
        let ready = futures_util::future::join_all(ready).await;
        ready.into_iter().filter(|(_, ready)| !ready).map(|(name, _)| name).collect()
    }

    async fn accept(&self, deployment: Deployment, way: Way) -> Result<Vec<Settled>, Failed> {
        let (answer, accepted) = oneshot::channel();
        let event = Event::Accept(self.namespace.clone(), deployment, way, answer);
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
    async fn wait_ready(&self, settled: Settled, version: Option<&Instance>) -> bool {
        let Settled { id, done } = settled;
        let result = done.await.unwrap_or_else(|_| Err("the agent is stopping".to_owned()));
        if let Err(text) = result {
            self.error(Stage::Boot, format!("{}: {text}", id.name));
            return false;
        }
        let Some(version) = version else {
            self.info(Stage::Run, format!("{}: stopped; its volumes are kept", id.name));
            return true;
        };
        let is_off = || self.shared.stopped.borrow().contains(&id);
        let off = format!("{0} is off, and ready for `start {0}`", id.name);
        if is_off() {
            self.info(Stage::Run, off);
            return true;
        }
        let say = |text: &str| self.info(Stage::Boot, format!("{}: {text}", id.name));
        match wait_for_version(&self.shared, &id, version, say).await {
            // Somebody stopped it meanwhile.
            Err(_) if is_off() => {
                self.info(Stage::Run, off);
                true
            }
            Ok((set, guest)) => {
                self.info(
                    Stage::Run,
                    format!("{} is {}", id.name, if guest.status_text.is_empty() { "running" } else { &guest.status_text }),
                );
                self.say_failed_units(&set).await;
                true
            }
            Err((set, text)) => {
                self.error(Stage::Boot, format!("{}: {text}", id.name));
                for line in logs::last_words(&self.shared.host, &set).await {
                    self.job.say(Stage::Boot, Level::Detail, line);
                }
                false
            }
        }
    }

    /// A guest that is up but has failed units runs; the pusher should know all the same.
    async fn say_failed_units(&self, id: &SetId) {
        for unit in logs::failed_units(&self.shared.host, id).await {
            self.error(Stage::Run, format!("{}: {unit} failed in the guest: see `logs {}`", id.name, id.name));
        }
    }

    /// Says what to set for names of the tenant's own that are not proven.
    async fn say_unproven(&self) {
        let (answer, lines) = oneshot::channel();
        if self.shared.events.send(Event::Unproven(self.namespace.clone(), answer)).await.is_ok() {
            lines.await.unwrap_or_default().into_iter().for_each(|line| self.info(Stage::Run, line));
        }
    }

    /// Starts the previous version of what failed again; what came up stays. Where that version serves still, only the new one is removed.
    pub(super) async fn go_back(&self, mut deployment: Deployment, failed: Vec<InstanceName>) {
        let old = self.good.as_ref().map(|good| good.instances.clone()).unwrap_or_default();
        let touched: BTreeSet<InstanceName> = failed.iter().cloned().collect();
        let had = self.good.as_ref().map(|good| good.routes.as_slice()).unwrap_or_default();
        deployment.routes = Self::routes_as_in(&touched, &deployment.routes, had);
        for name in &failed {
            if let Some(serves) = self.serves(name).filter(|serves| Some(serves) != deployment.instances.get(name)) {
                self.info(
                    Stage::Boot,
                    format!("{name}: the new version is taken away; the one before serves, and was not touched"),
                );
                deployment.instances.insert(name.clone(), serves);
                continue;
            }
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
        let back = self.deployment(deployment.instances, deployment.routes);
        let Ok(still) = self.bring_up(back, &touched, Way::Back).await else { return };
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

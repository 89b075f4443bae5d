//! Who does it, in which order: one closed event loop. Everything that wakes the agent is a variant of [`Event`].
//!
//! The loop owns what is remembered ([`Memory`]) and decides; slow work (looking at the machine, carrying out steps, building) runs
//! in tasks that report back as events. The work on one instance is a *lane*: lanes run side by side, the steps of one lane in order,
//! and an instance whose lane is busy is left alone until it has ended.
#![allow(clippy::disallowed_methods, reason = "this room has the clock")]

pub mod access;
pub mod acme;
mod acts;
pub mod authority;
pub mod bus;
pub mod credentials;
pub mod deploy;
pub mod domain;
pub mod enter;
mod evaluate;
mod guest;
pub mod history;
pub mod hook;
mod invite;
pub mod job;
pub mod logs;
mod patience;
mod power;
mod queue;
mod quota;
pub mod reconcile;
pub mod remote;
mod repository;
pub mod request;
pub mod resolve;
mod rolling;
mod routes;
#[cfg(test)]
pub mod samples;
pub mod status;
mod unplant;
pub mod zone;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{mpsc, oneshot, watch};

use self::{
    job::{Job, Jobs},
    reconcile::Lanes,
    request::{Reply, Request},
};
use crate::{
    build::{Builder, source::Reader},
    bus::{Refusal, ZoneEntry, history::DeployEntry},
    host::{Host, HostError},
    plan::Observed,
    render::{self, Layout},
    spec::{
        self,
        address::Lease,
        desired::{Deployment, Desired, Wanted},
        instance::Instance,
        name::{CustomDomain, InstanceId, InstanceName, Namespace, SetId},
        quota::Quota,
        rollout::{self, Rolling},
        route::Reserved,
    },
    state::{Ask, Batch, Change, Memory, Record, State, StateError, audit::Audit},
};

/// What the agent needs to know of its configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    pub layout: Layout,
    /// Where silo's bare repositories are: `<name>.git`.
    pub repositories: PathBuf,
    /// How they are read.
    pub reader: Reader,
    /// What it takes to follow repositories from elsewhere.
    pub remotes: remote::Settings,
    /// Where source archives for builds are put.
    pub work: PathBuf,
    /// How long a version that was rolled over goes on for those that are connected to it, in seconds.
    pub drain_secs: u32,
    /// How many deploys may build at once.
    pub parallel: usize,
    /// How many replaced deployments of a namespace are kept.
    pub keep: usize,
    /// What a namespace may have that was given no quota of its own.
    pub quota: Quota,
    /// Ports that no namespace gets: those of the doors, and what the operator keeps.
    pub reserved: Vec<Reserved>,
    /// Where the audit log is.
    pub audit: PathBuf,
    /// How many bytes of it are kept.
    pub audit_keep: u64,
    /// What the zone has of the host itself.
    pub apex: render::zone::Apex,
    /// How often the CA may be asked.
    pub acme: acme::budget::Limits,
    /// `qemu, emulating: /dev/kvm is not there`
    pub hypervisor: String,
    /// What opens guests; `layout.guest_ca` is its public half.
    pub authority: authority::Authority,
}

/// Everything that wakes the loop.
pub enum Event {
    /// Somebody asks something.
    Request(Request, oneshot::Sender<Result<Reply, Refusal>>),
    /// What a question needs to know of a repository was read.
    Read(Request, repository::Read, request::Answer),
    /// A look at the machine has ended.
    Observed(Result<Observed, HostError>),
    /// Steps that belong to no instance were carried out.
    HostSteps(Result<(), HostError>),
    /// The steps of one set of units were carried out, or one of them failed.
    Lane(SetId, Result<(), HostError>),
    /// A lane that had failed may be tried again.
    Retry(SetId),
    /// This version was to take over, did not get ready, and has no deploy that would say so.
    GaveUp(InstanceId, Box<Instance>),
    /// A deploy was built and is to run: remember it, and say when its instances have been acted upon.
    Accept(Namespace, Deployment, deploy::Way, oneshot::Sender<Result<Vec<deploy::Settled>, Refusal>>),
    /// All instances of the deployment that is wanted got ready.
    Proven(Namespace),
    /// A deploy wants to say what is to be done for names that are not proven.
    Unproven(Namespace, oneshot::Sender<Vec<String>>),
    /// A deploy has ended, well or not.
    DeployEnded(Namespace, Option<Ask>, Box<Record>),
    /// A plan was said.
    PlanEnded,
    /// A repository from elsewhere was fetched, or should be.
    Remote(remote::Notice),
    /// Something changed on the machine.
    Changed,
    /// Time to look anyway.
    Tick,
    /// Stop.
    Quit,
}

/// What tasks share with the loop.
pub struct Shared<H, B> {
    pub host: H,
    pub builder: B,
    pub settings: Settings,
    pub events: mpsc::Sender<Event>,
    /// Bumped whenever something may have changed on the machine.
    pub changed: watch::Sender<u64>,
    /// Instances that are to be off: whoever waits for one to get ready waits in vain.
    pub stopped: watch::Sender<BTreeSet<InstanceId>>,
    /// Which sets serve, come and drain, where that is not simply the one.
    pub rolling: watch::Sender<BTreeMap<InstanceId, Rolling>>,
}

/// A deploy that waits for its turn.
struct Queued {
    ask: Ask,
    job: Job,
}

/// A deploy that is being made.
struct UnderWay {
    job: Job,
    entry: DeployEntry,
}

/// The loop's own memory.
pub struct Agent<H, S, B> {
    shared: Arc<Shared<H, B>>,
    state: S,
    memory: Memory,
    /// What `memory` makes of the machine, until `memory` changes: most passes find nothing new to render.
    target: Option<Arc<render::Target>>,
    inbox: mpsc::Receiver<Event>,
    jobs: Jobs,
    queued: BTreeMap<Namespace, Queued>,
    deploying: BTreeMap<Namespace, UnderWay>,
    /// Of each namespace, the deploy that began last.
    last_deploy: BTreeMap<Namespace, Job>,
    lanes: Lanes,
    remotes: remote::Remotes,
    zone: watch::Sender<zone::Book>,
    /// Bumped whenever other names of tenants' own may have to be looked at.
    due: watch::Sender<u64>,
    /// Names for which a look was asked for, and at which turn of `due`.
    asked: BTreeMap<CustomDomain, u64>,
    record: acts::Record,
    guesses: invite::Guesses,
    /// Plans under way.
    planning: Vec<Job>,
}

/// How the bus and tests speak with a running agent.
#[derive(Clone)]
pub struct Handle {
    events: mpsc::Sender<Event>,
    pub zone: watch::Receiver<zone::Book>,
    pub due: watch::Receiver<u64>,
    /// As [`Shared::rolling`].
    pub rolling: watch::Receiver<BTreeMap<InstanceId, Rolling>>,
}

impl Handle {
    /// Asks and waits for the answer.
    pub async fn ask(&self, request: Request) -> Result<Reply, Refusal> {
        let gone = || Refusal::Failed("the agent is stopping: try again in a moment".to_owned());
        let (answer, reply) = oneshot::channel();
        self.events.send(Event::Request(request, answer)).await.map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?
    }

    /// The same, of a question that is answered with a text.
    pub async fn text(&self, request: Request) -> Result<String, Refusal> {
        self.ask(request).await?.text()
    }

    /// Ends the loop.
    pub async fn quit(&self) {
        // Nobody there any more means that it has ended.
        drop(self.events.send(Event::Quit).await);
    }
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// An agent that remembers what `state` holds. Call [`Agent::run`] to set it going.
    pub async fn new(host: H, state: S, builder: B, settings: Settings) -> Result<(Self, Handle), StateError> {
        let memory = state.load().await?;
        let record = acts::Record::new(Audit::open(&settings.audit, settings.audit_keep, now())?);
        let (events, inbox) = mpsc::channel(1024);
        let stopped = watch::Sender::new(memory.stopped.keys().cloned().collect());
        let (changed, rolling) = (watch::Sender::new(0), watch::Sender::new(memory.rolling.clone()));
        let shared = Arc::new(Shared { host, builder, settings, events: events.clone(), changed, stopped, rolling });
        let zone = watch::Sender::new(zone::Book::default());
        // So that it also grows over a start.
        let due = watch::Sender::new(now());
        let handle = Handle { events, zone: zone.subscribe(), due: due.subscribe(), rolling: shared.rolling.subscribe() };
        let agent = Self {
            shared,
            state,
            memory,
            target: None,
            inbox,
            jobs: Jobs::new(now()),
            queued: BTreeMap::new(),
            deploying: BTreeMap::new(),
            last_deploy: BTreeMap::new(),
            lanes: Lanes::default(),
            remotes: remote::Remotes::default(),
            zone,
            due,
            asked: BTreeMap::new(),
            record,
            guesses: invite::Guesses::default(),
            planning: Vec::new(),
        };
        Ok((agent, handle))
    }

    /// Runs until [`Event::Quit`]. What was asked for in an earlier life and is not done yet is done now.
    pub async fn run(mut self) {
        self.publish_zone();
        for (namespace, ask) in self.memory.asks.clone() {
            tracing::info!(%namespace, commit = %ask.commit, "taking up a deploy that was not finished");
            self.enqueue(namespace, ask);
        }
        let watcher = tokio::spawn(watch_host(self.shared.clone()));
        self.look();
        self.take_up_rolling();
        self.follow_remotes();
        while let Some(event) = self.inbox.recv().await {
            if matches!(event, Event::Quit) {
                break;
            }
            self.handle(event).await;
            self.start_queued();
        }
        watcher.abort();
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Request(request, answer) => self.request(request, answer).await,
            Event::Read(request, read, answer) => self.read(request, read, answer).await,
            Event::Observed(observed) => self.observed(observed).await,
            Event::HostSteps(result) => self.host_steps_done(result),
            Event::Lane(id, result) => self.lane_done(id, result),
            Event::Retry(id) => self.lane_retry(&id),
            Event::GaveUp(id, version) => self.gave_up(&id, &version).await,
            Event::Accept(namespace, mut deployment, way, answer) => {
                if way == deploy::Way::Back {
                    self.drop_lost_claims(&namespace, &mut deployment);
                }
                let accepted = self.accept(&namespace, deployment).await;
                // A deploy whose task is gone has nobody to tell.
                drop(answer.send(accepted));
            }
            Event::Proven(namespace) => self.proven(&namespace).await,
            // As above.
            Event::Unproven(namespace, answer) => drop(answer.send(self.unproven(&namespace))),
            Event::DeployEnded(namespace, ask, record) => self.deploy_ended(namespace, ask, *record).await,
            Event::Remote(notice) => self.remote_notice(notice).await,
            Event::Changed | Event::Tick => self.look(),
            // What waits for a build is started after every event.
            Event::PlanEnded | Event::Quit => {}
        }
    }

    /// Commits to the disk, then to the picture.
    async fn commit(&mut self, batch: Batch) -> Result<(), Refusal> {
        self.state.commit(batch.clone()).await.map_err(|error| {
            tracing::error!(error = %chain(&error), "could not remember a change");
            Refusal::Failed(format!("this host could not write its state ({error}); nothing was changed"))
        })?;
        self.target = None;
        let rolls = batch.iter().any(|change| matches!(change, Change::Rolling(..)));
        for change in batch {
            self.memory.apply(change);
        }
        if rolls {
            self.shared.rolling.send_replace(self.memory.rolling.clone());
        }
        self.shared.stopped.send_if_modified(|stopped| {
            let differs = !stopped.iter().eq(self.memory.stopped.keys());
            if differs {
                *stopped = self.memory.stopped.keys().cloned().collect();
            }
            differs
        });
        Ok(())
    }

    /// What this host should run.
    fn desired(&self) -> Desired {
        let mut desired = Desired::default();
        for (namespace, deployment) in &self.memory.wants {
            if !deployment.instances.is_empty() {
                desired.quotas.insert(namespace.clone(), self.quota_of(namespace).clone());
            }
            for (name, instance) in &deployment.instances {
                let id = InstanceId { namespace: namespace.clone(), name: name.clone() };
                let rolling = self.memory.rolling.get(&id);
                for (slot, version) in rollout::sets(rolling, instance) {
                    let set = id.set(slot);
                    // Leases are written in the same batch as the deployment.
                    let Some(lease) = self.memory.leases.get(&set).copied() else { continue };
                    if self.memory.stopped.contains_key(&id) {
                        desired.stopped.insert(set.clone());
                    }
                    if slot != rollout::serving(rolling) {
                        desired.beside.insert(set.clone());
                    }
                    desired.instances.insert(set, Wanted { instance: version.clone(), lease });
                }
            }
            desired.routes.append(&mut self.led(namespace, deployment));
        }
        desired.domains = spec::domain::held(&self.memory.domains).filter(|(_, id)| self.is_wanted(id)).collect();
        desired
    }

    /// The same, rendered.
    fn target(&mut self) -> Arc<render::Target> {
        if let Some(target) = &self.target {
            return target.clone();
        }
        let target = Arc::new(render::target(&self.desired(), &self.shared.settings.layout));
        self.target = Some(target.clone());
        target
    }

    /// Tells the DNS door what there is now.
    fn publish_zone(&self) {
        let settings = &self.shared.settings;
        let serial = zone::next(self.zone.borrow().zone().serial, now());
        let mut zone = render::zone::zone(&self.desired(), &settings.layout, &settings.apex, serial);
        zone.challenges = self.memory.acme.challenges();
        self.zone.send_modify(|book| book.begin(zone));
    }

    /// Tells the DNS door what there is now of one namespace.
    fn publish_namespace(&self, namespace: &Namespace) {
        let names = self.memory.wants.get(namespace).into_iter().flat_map(|deployment| deployment.instances.keys());
        let entry = |name: &InstanceName| {
            let id = InstanceId { namespace: namespace.clone(), name: name.clone() };
            let (set, rolling) = (self.serving(&id), self.memory.rolling.get(&id));
            let lease = |set| self.memory.leases.get(set).copied();
            let other = rolling.filter(|rolling| rolling.beside.is_some()).map(|rolling| id.set(rolling.slot.other()));
            let beside = other.as_ref().and_then(|other| Some((other, lease(other)?)));
            let entry = render::zone::entry((&set, lease(&set)?), beside, &self.shared.settings.layout);
            Some((name.to_string(), entry))
        };
        let instances: BTreeMap<String, ZoneEntry> = names.filter_map(entry).collect();
        self.zone.send_if_modified(|book| book.namespace(namespace.as_str(), now(), &instances));
    }

    /// Remembers a deployment as the one that is to run, hands out leases, and asks for a pass.
    async fn accept(&mut self, namespace: &Namespace, new: Deployment) -> Result<Vec<deploy::Settled>, Refusal> {
        self.accept_with(namespace, new, Batch::new()).await
    }

    /// The same, together with other changes.
    async fn accept_with(
        &mut self,
        namespace: &Namespace,
        mut new: Deployment,
        more: Batch,
    ) -> Result<Vec<deploy::Settled>, Refusal> {
        self.check_claims(namespace, self.memory.wants.get(namespace), &new)?;
        let id = |name| InstanceId { namespace: namespace.clone(), name };
        let old = self.memory.wants.get(namespace).cloned();
        let (mut batch, sets) = self.roll_out(namespace, old.as_ref(), &new);
        let mut taken: BTreeSet<Lease> = self.memory.leases.values().copied().collect();
        for set in sets.into_iter().filter(|set| !self.memory.leases.contains_key(set)) {
            let Some(free) = self.free_lease(&taken) else {
                let capacity = self.shared.settings.layout.addressing.capacity();
                return Err(Refusal::Failed(format!(
                    "this host has no address left: all {capacity} of its pool are in use; ask its operator for a larger network.pool4"
                )));
            };
            taken.insert(free);
            batch.push(Change::Lease(set, Some(free)));
        }
        if let Some(old) = &old {
            // Two within a second still have an order.
            new.at = new.at.max(old.at + 1);
        }
        batch.extend(self.set_aside(namespace, old.as_ref(), &new));
        batch.extend(self.outdated_by(namespace, old.as_ref(), &new));
        let claims = self.claims_after(namespace, &new.instances)?;
        let claimed = domain::names(&claims);
        batch.extend(claims);
        batch.extend(more);
        let ids: BTreeSet<InstanceId> =
            new.instances.keys().chain(old.iter().flat_map(|old| old.instances.keys())).cloned().map(id).collect();
        batch.push(Change::Want(namespace.clone(), Some(new)));
        self.commit(batch).await?;
        if !claimed.is_empty() {
            self.domains_changed(claimed);
        }
        self.publish_namespace(namespace);
        let settled = ids.into_iter().map(|id| self.lanes.wait_for(id)).collect();
        self.look();
        Ok(settled)
    }

    /// A lease that nobody has.
    fn free_lease(&self, taken: &BTreeSet<Lease>) -> Option<Lease> {
        (0..self.shared.settings.layout.addressing.capacity()).map(Lease).find(|lease| !taken.contains(lease))
    }

    fn is_wanted(&self, id: &InstanceId) -> bool {
        self.version_of(id).is_some()
    }

    /// The version of an instance that is wanted.
    fn version_of(&self, id: &InstanceId) -> Option<&Instance> {
        self.memory.wants.get(&id.namespace)?.instances.get(&id.name)
    }
}

/// Turns what the host notices, and a slow tick, into events.
async fn watch_host<H: Host, B: Builder>(shared: Arc<Shared<H, B>>) {
    loop {
        let event = tokio::select! {
            // Cancel-safe: a change that is not waited for is seen by the look that the tick causes.
            () = shared.host.changed() => Event::Changed,
            () = tokio::time::sleep(Duration::from_secs(60)) => Event::Tick,
        };
        shared.changed.send_modify(|turn| *turn += 1);
        if shared.events.send(event).await.is_err() {
            return;
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

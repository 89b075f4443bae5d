//! Turning instances off and on, and taking them away, because somebody asked.

use super::{
    Agent, Event, chain,
    deploy::Settled,
    guest::wait_for_guest,
    history::{key, who},
    job::Job,
    logs, now,
    request::{Reply, principal},
    resolve,
};
use crate::{
    build::Builder,
    bus::{Level, Outcome, Refusal, Stage},
    host::Host,
    spec::{
        access::Verb,
        desired::Deployment,
        name::{Generation, InstanceId, SetId},
        rollout,
    },
    state::{Change, State, Stopped},
};

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    pub(super) fn restart(&mut self, asker: &str, instance: &str) -> Result<Reply, Refusal> {
        let id = resolve::instance(&self.memory, &principal(asker)?, Verb::Act, instance)?;
        if let Some(stopped) = self.memory.stopped.get(&id) {
            let by = who(stopped.by.as_ref());
            return Err(Refusal::Failed(format!("{0} was stopped by {by}: start {0}", id.name)));
        }
        // What serves, also of an instance that is rolled out: who asks wants this guest to begin anew, and needs no room beside it.
        let set = self.serving(&id);
        if self.lanes.is_busy(&set) {
            return Err(Refusal::Failed(format!("{} is being changed right now: try again in a moment", id.name)));
        }
        let job = self.jobs.about(&id);
        tracing::info!(instance = %id, "restart asked for");
        self.lanes.forgive(&id);
        // A restart is the lane's work: no pass and no second restart comes between.
        self.lanes.occupy(&set);
        job.say(Stage::Boot, Level::Info, format!("{}: powering off, then starting again", id.name));
        tokio::spawn(restart(self.shared.clone(), set, job.clone()));
        Ok(Reply::Text(job.name))
    }

    pub(super) async fn stop(&mut self, asker: &str, instance: &str) -> Result<Reply, Refusal> {
        let asker = principal(asker)?;
        let id = resolve::instance(&self.memory, &asker, Verb::Act, instance)?;
        if !self.memory.stopped.contains_key(&id) {
            let stopped = Stopped { by: key(&asker), at: now() };
            self.commit(vec![Change::Stopped(id.clone(), Some(stopped))]).await?;
        }
        tracing::info!(instance = %id, "stop asked for");
        let job = self.jobs.about(&id);
        let settled = self.lanes.wait_for(id.clone());
        self.look();
        job.say(Stage::Run, Level::Info, format!("{}: powering off", id.name));
        let text = format!("{0} is off, and stays so until `start {0}`", id.name);
        tokio::spawn(settle(job.clone(), settled, text));
        Ok(Reply::Text(job.name))
    }

    pub(super) async fn start(&mut self, asker: &str, instance: &str) -> Result<Reply, Refusal> {
        let id = resolve::instance(&self.memory, &principal(asker)?, Verb::Act, instance)?;
        if self.memory.stopped.contains_key(&id) {
            self.commit(vec![Change::Stopped(id.clone(), None)]).await?;
            tracing::info!(instance = %id, "start asked for");
            let job = self.jobs.about(&id);
            let settled = self.lanes.wait_for(id.clone());
            self.look();
            tokio::spawn(start(self.shared.clone(), id, job.clone(), settled));
            return Ok(Reply::Text(job.name));
        }
        let set = self.serving(&id);
        if self.lanes.is_busy(&set) {
            return Err(Refusal::Failed(format!("{} is being changed right now: try again in a moment", id.name)));
        }
        // It runs, or systemd has given it up, or a person has stopped its unit.
        let job = self.jobs.about(&id);
        self.lanes.forgive(&id);
        self.lanes.occupy(&set);
        tokio::spawn(start_if_off(self.shared.clone(), set, job.clone()));
        Ok(Reply::Text(job.name))
    }

    pub(super) async fn destroy(&mut self, asker: &str, instance: &str, again: &str) -> Result<Reply, Refusal> {
        let asker = principal(asker)?;
        let id = resolve::instance(&self.memory, &asker, Verb::Administer, instance)?;
        let place = self.memory.plants.get(&id.namespace).map(resolve::repository).unwrap_or_default();
        if again != id.name.as_str() && again != format!("{place}/{}", id.name) {
            return Err(Refusal::Invalid(format!(
                "destroy takes {0} of {place} off this host and keeps its volumes. If you mean it, say its name again: destroy {instance} {0}",
                id.name
            )));
        }
        self.not_deploying(&id.namespace)?;
        let Some(wanted) = self.memory.wants.get(&id.namespace) else {
            return Err(Refusal::NotFound(format!("{instance} was never deployed")));
        };
        let mut instances = wanted.instances.clone();
        let volumes: Vec<String> =
            instances.remove(&id.name).iter().flat_map(|one| one.volumes.keys()).map(ToString::to_string).collect();
        let deployment = Deployment {
            generation: Generation::of(instances.iter().map(|(name, instance)| (name, &instance.toplevel))),
            by: key(&asker).unwrap_or_else(|| wanted.by.clone()),
            at: now(),
            instances,
            routes: wanted.routes.iter().filter(|route| route.instance != id.name).cloned().collect(),
            ..wanted.clone()
        };
        tracing::info!(instance = %id, "destroy asked for");
        let settled = self.accept(&id.namespace, deployment).await?;
        let job = self.jobs.about(&id);
        job.say(Stage::Run, Level::Info, format!("{}: powering off, then taking it away", id.name));
        let kept = match volumes.as_slice() {
            [] => "it had no volumes".to_owned(),
            names => format!("kept, and listed by status: {}", names.join(", ")),
        };
        let text = format!("{} is gone; {kept}; a push or `deploy {place}` makes it anew", id.name);
        let name = job.name.clone();
        // It was wanted, so there is one.
        if let Some(own) = settled.into_iter().find(|settled| settled.id == id) {
            tokio::spawn(settle(job, own, text));
        }
        Ok(Reply::Text(name))
    }
}

/// Ends a job when a pass has nothing left to do for its instance.
async fn settle(job: Job, settled: Settled, text: String) {
    match settled.done.await.unwrap_or_else(|_| Err("the agent is stopping; it goes on when it is back".to_owned())) {
        Ok(()) => job.end(Stage::Run, Outcome::Done, text),
        Err(error) => job.end(Stage::Run, Outcome::Failed, format!("{}: {error}", settled.id.name)),
    }
}

async fn start<H: Host, B: Builder>(shared: std::sync::Arc<super::Shared<H, B>>, id: InstanceId, job: Job, settled: Settled) {
    job.say(Stage::Boot, Level::Info, format!("{}: starting", id.name));
    match settled.done.await.unwrap_or_else(|_| Err("the agent is stopping; it goes on when it is back".to_owned())) {
        Ok(()) => {
            let slot = rollout::serving(shared.rolling.borrow().get(&id));
            ready(&shared, &id.set(slot), &job).await;
        }
        Err(error) => job.end(Stage::Boot, Outcome::Failed, format!("{}: {error}", id.name)),
    }
}

/// The lane is this task's until it says otherwise.
async fn start_if_off<H: Host, B: Builder>(shared: std::sync::Arc<super::Shared<H, B>>, id: SetId, job: Job) {
    let state = match shared.host.inspect(std::slice::from_ref(&id)).await {
        Ok(guests) => guests.into_iter().next().unwrap_or_default().active_state,
        Err(error) => {
            job.end(Stage::Boot, Outcome::Failed, format!("{}: {}", id.name, chain(&error)));
            String::new()
        }
    };
    match state.as_str() {
        "active" | "activating" | "reloading" => {
            drop(shared.events.send(Event::Lane(id.clone(), Ok(()))).await);
            job.say(Stage::Boot, Level::Info, format!("{} is on already", id.name));
            ready(&shared, &id, &job).await;
        }
        "" => drop(shared.events.send(Event::Lane(id, Ok(()))).await),
        _ => {
            job.say(Stage::Boot, Level::Info, format!("{}: starting", id.name));
            restart(shared, id, job).await;
        }
    }
}

async fn restart<H: Host, B: Builder>(shared: std::sync::Arc<super::Shared<H, B>>, id: SetId, job: Job) {
    let result = shared.host.restart(&id).await;
    let failure = result.as_ref().err().map(|error| chain(error));
    // The loop being gone means that the agent stops.
    drop(shared.events.send(Event::Lane(id.clone(), result)).await);
    if let Some(text) = failure {
        return job.end(Stage::Boot, Outcome::Failed, format!("{}: {text}", id.name));
    }
    ready(&shared, &id, &job).await;
}

/// Ends a job when the guest is ready, or with its last words.
async fn ready<H: Host, B: Builder>(shared: &super::Shared<H, B>, id: &SetId, job: &Job) {
    let ready = wait_for_guest(shared, id, |text| job.say(Stage::Boot, Level::Info, format!("{}: {text}", id.name))).await;
    match ready {
        Ok(_) => job.end(Stage::Run, Outcome::Done, format!("{} is running", id.name)),
        Err(text) => {
            for line in logs::last_words(&shared.host, id).await {
                job.say(Stage::Boot, Level::Detail, line);
            }
            job.end(Stage::Boot, Outcome::Failed, format!("{}: {text}", id.name));
        }
    }
}

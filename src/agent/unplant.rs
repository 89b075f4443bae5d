//! Taking a repository's instances off this host. The repository itself, and everything that was stored, is kept.

use super::{
    Agent, Event, chain,
    deploy::Settled,
    job::Job,
    logs, now,
    request::{Answer, json, principal},
    resolve,
};
use crate::{
    build::Builder,
    bus::{Level, Outcome, Refusal, Stage, history::Unplanted},
    host::Host,
    spec::{
        access::{Principal, Verb},
        name::{FlakeUri, InstanceId, KeyId, Namespace},
    },
    state::{Batch, Change, Former, Plant, State},
};

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Stops everything of a plant, and answers with what is kept.
    pub(super) async fn unplant(&mut self, who: &str, name: &str, again: &str, answer: Answer) {
        match self.uproot(who, name, again).await {
            Ok((plant, kept, settled)) => {
                // There may be nothing left in which they have a part.
                let by = principal(who).ok().as_ref().and_then(super::history::key);
                let job = self.jobs.create_by(plant.namespace.clone(), by);
                let shared = self.shared.clone();
                tokio::spawn(async move {
                    let kept = [kept, earlier(&shared, &plant.namespace).await].concat();
                    let document = Unplanted {
                        version: 1,
                        namespace: plant.namespace.to_string(),
                        flake: plant.uri.to_string(),
                        job: job.name.clone(),
                        kept,
                    };
                    // Who has stopped waiting does not care.
                    drop(answer.send(Ok(json(&document))));
                    gone(&shared, &plant.namespace, settled, job).await;
                });
            }
            Err(refusal) => drop(answer.send(Err(refusal))),
        }
    }

    async fn uproot(&mut self, who: &str, name: &str, again: &str) -> Result<(Plant, Vec<String>, Vec<Settled>), Refusal> {
        let who = principal(who)?;
        if name.is_empty() {
            return Err(Refusal::Invalid("unplant needs a repository: unplant my-app".to_owned()));
        }
        let found = resolve::plants(&self.memory, &who, name)?;
        let [plant] = found.as_slice() else {
            return Err(Refusal::Invalid(format!("{name:?} is the name of several: use the namespace (`status` shows it)")));
        };
        let plant = (*plant).clone();
        if !resolve::may(&self.memory, &who, Verb::Administer, &plant) {
            return Err(Refusal::Denied(format!("your key may look at {name}, but not unplant it")));
        }
        self.not_deploying(&plant.namespace)?;
        let namespace = &plant.namespace;
        let instances = self.memory.wants.get(namespace).map(|want| want.instances.clone()).unwrap_or_default();
        if !instances.is_empty() && again != name && again != resolve::repository(&plant) {
            let names: Vec<String> = instances.keys().take(20).map(ToString::to_string).collect();
            return Err(Refusal::Invalid(format!(
                "unplant takes {} off this host and keeps their volumes. If you mean it, say its name again: unplant {name} {name}",
                names.join(", ")
            )));
        }
        let mut kept: Vec<String> = Vec::new();
        for (name, instance) in &instances {
            kept.extend(instance.volumes.iter().map(|(volume, spec)| format!("the volume {name}/{volume} ({})", spec.size)));
        }
        match &plant.uri {
            FlakeUri::Silo(_) => kept.insert(0, format!("the repository {} and who may push to it", plant.uri)),
            // First the token: it was given for this plant, and must not outlive it.
            FlakeUri::Remote(_) => drop(self.shared.settings.remotes.credentials.forget(namespace)?),
        }
        let owner = self.memory.repository_of(&plant).map_or(&plant.by, |repository| &repository.owner).clone();
        let former = Former { uri: plant.uri.clone(), hash: plant.hash.clone(), owner, at: now() };
        let mut batch = self.forget(namespace);
        batch.push(Change::Former(namespace.clone(), Some(former)));
        self.commit(batch).await?;
        if let FlakeUri::Remote(_) = &plant.uri {
            self.forget_fetched(namespace.clone());
        }
        self.publish_namespace(namespace);
        tracing::info!(%namespace, flake = %plant.uri, "unplanted");
        let id = |name: &_| InstanceId { namespace: namespace.clone(), name: Clone::clone(name) };
        let settled = instances.keys().map(|name| self.lanes.wait_for(id(name))).collect();
        self.look();
        Ok((plant, kept, settled))
    }

    /// Refuses what would inherit the names of a flake that was unplanted. The operator may give them on.
    pub(super) fn is_no_heir(&self, who: &Principal, uri: &FlakeUri, owner: &KeyId) -> Result<(), Refusal> {
        let namespace = uri.namespace();
        let Some(former) = self.memory.formers.get(&namespace).filter(|_| *who != Principal::Operator) else { return Ok(()) };
        let why = if former.hash != uri.hash() {
            "has the short name of another flake"
        } else if matches!(uri, FlakeUri::Silo(_)) && former.owner != *owner {
            "was another owner's repository"
        } else {
            return Ok(());
        };
        Err(Refusal::Denied(format!(
            "{uri} {why} that ran on this host, and names elsewhere may still lead there (namespace {namespace}): take another name, \
             or ask the host's operator to plant it"
        )))
    }

    /// The changes that forget a namespace.
    fn forget(&self, namespace: &Namespace) -> Batch {
        let memory = &self.memory;
        let mine = |id: &&InstanceId| id.namespace == *namespace;
        let all = (namespace.clone(), 0)..=(namespace.clone(), u64::MAX);
        let mut batch: Batch = vec![
            Change::Plant(namespace.clone(), None),
            Change::Want(namespace.clone(), None),
            Change::Ask(namespace.clone(), None),
            Change::Upstream(namespace.clone(), None),
        ];
        batch.extend(memory.past.range(all.clone()).map(|((_, at), _)| Change::Past(namespace.clone(), *at, None)));
        batch.extend(memory.records.range(all).map(|((_, at), _)| Change::Record(namespace.clone(), *at, None)));
        let claimed = memory.domains.iter().filter(|(_, claims)| claims.contains_key(namespace));
        batch.extend(claimed.map(|(name, _)| Change::Domain(name.clone(), namespace.clone(), None)));
        batch.extend(memory.stopped.keys().filter(mine).map(|id| Change::Stopped(id.clone(), None)));
        batch.extend(memory.rolling.keys().filter(mine).map(|id| Change::Rolling(id.clone(), None)));
        batch.extend(memory.pins.keys().filter(mine).map(|id| Change::Pin(id.clone(), None)));
        batch
    }
}

/// Volumes that had been dropped from the flake before.
async fn earlier<H: Host, B: Builder>(shared: &super::Shared<H, B>, namespace: &Namespace) -> Vec<String> {
    match shared.host.retired().await {
        Ok(retired) => {
            let mine = retired.into_iter().filter(|(other, _)| other == namespace.as_str());
            mine.map(|(_, volume)| format!("the volume {volume}, which the flake had dropped before")).collect()
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "could not list the volumes that are kept");
            Vec::new()
        }
    }
}

/// Waits until all are gone, then lets their systems be collected.
async fn gone<H: Host, B: Builder>(shared: &super::Shared<H, B>, namespace: &Namespace, settled: Vec<Settled>, job: Job) {
    let mut failed = false;
    for Settled { id, done } in settled {
        match done.await.unwrap_or_else(|_| Err("the agent is stopping; it goes on when it is back".to_owned())) {
            Ok(()) => job.say(Stage::Run, Level::Info, format!("{} is gone", id.name)),
            Err(error) => {
                failed = true;
                job.say(Stage::Run, Level::Error, format!("{}: {error}", id.name));
            }
        }
    }
    if let Err(error) = shared.builder.retain(namespace, &[]).await {
        tracing::warn!(error = %chain(&error), "the systems of an unplanted repository are kept");
    }
    match std::fs::remove_file(logs::kept(&shared.settings.layout, namespace)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => tracing::warn!(%error, "the log of a deploy is kept"),
        _ => {}
    }
    // The loop being gone means that the agent stops.
    drop(shared.events.send(Event::Changed).await);
    match failed {
        false => job.end(Stage::Run, Outcome::Done, "nothing of it runs here any more"),
        true => job.end(Stage::Run, Outcome::Failed, "some of it could not be stopped yet: this host goes on trying"),
    }
}

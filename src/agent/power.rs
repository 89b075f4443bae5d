//! Turning instances off and on because somebody asked.

use super::{
    Agent, Event, chain,
    guest::wait_for_guest,
    job::Job,
    logs,
    request::{Reply, principal},
    resolve,
};
use crate::{
    build::Builder,
    bus::{Level, Outcome, Refusal, Stage},
    host::Host,
    spec::{access::Verb, name::InstanceId},
    state::State,
};

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    pub(super) fn restart(&mut self, who: &str, instance: &str) -> Result<Reply, Refusal> {
        let id = resolve::instance(&self.memory, &principal(who)?, Verb::Act, instance)?;
        if self.lanes.is_busy(&id) {
            return Err(Refusal::Failed(format!("{} is being changed right now: try again in a moment", id.name)));
        }
        let job = self.jobs.create(id.namespace.clone());
        tracing::info!(instance = %id, "restart asked for");
        self.lanes.forgive(&id);
        // A restart is the lane's work: no pass and no second restart comes between.
        self.lanes.occupy(&id);
        tokio::spawn(restart(self.shared.clone(), id, job.clone()));
        Ok(Reply::Text(job.name))
    }
}

async fn restart<H: Host, B: Builder>(shared: std::sync::Arc<super::Shared<H, B>>, id: InstanceId, job: Job) {
    job.say(Stage::Boot, Level::Info, format!("{}: powering off, then starting again", id.name));
    let result = shared.host.restart(&id).await;
    let failure = result.as_ref().err().map(|error| chain(error));
    // The loop being gone means that the agent stops.
    drop(shared.events.send(Event::Lane(id.clone(), result)).await);
    if let Some(text) = failure {
        return job.end(Stage::Boot, Outcome::Failed, format!("{}: {text}", id.name));
    }
    let ready = wait_for_guest(&shared, &id, |text| job.say(Stage::Boot, Level::Info, format!("{}: {text}", id.name))).await;
    match ready {
        Ok(_) => job.end(Stage::Run, Outcome::Done, format!("{} is running", id.name)),
        Err(text) => {
            for line in logs::last_words(&shared.host, &id).await {
                job.say(Stage::Boot, Level::Detail, line);
            }
            job.end(Stage::Boot, Outcome::Failed, format!("{}: {text}", id.name));
        }
    }
}

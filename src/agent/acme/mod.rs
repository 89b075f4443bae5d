//! The agent's side of the ACME door: whose an address is, what it may have, what is spent, and what came of asking the CA. Every step is
//! on the disk before its answer leaves, so that a kill at any point leaves an order that the next life goes on with.

pub mod budget;
mod decide;
mod own;
mod report;

use std::net::IpAddr;

use super::{
    Agent, now,
    request::{Reply, json},
};
use crate::{
    build::Builder,
    bus::{
        Refusal,
        acme::{Asked, Question, Report, Told},
    },
    host::Host,
    spec::{
        acme::{Holder, Order, Problem, Stage, names_of, names_of_host},
        name::InstanceId,
    },
    state::{Batch, State},
};

/// A question about certificates, in plain text as it came over the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Ask {
        address: String,
        question: String,
    },
    /// The doors want the certificate of this host itself.
    Own {
        asked: String,
    },
    /// How it is with that certificate.
    Certificate,
    Work,
    Report {
        report: String,
    },
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    pub(super) async fn acme(&mut self, request: Request) -> Result<Reply, Refusal> {
        match request {
            Request::Ask { address, question } => {
                let question = serde_json::from_str(&question).map_err(unreadable)?;
                self.acme_ask(&address, question).await.map(|told| json(&told))
            }
            Request::Own { asked } => {
                let asked = serde_json::from_str(&asked).map_err(unreadable)?;
                self.acme_own(asked).await
            }
            Request::Certificate => {
                let names = names_of_host(&self.shared.settings.layout.domain);
                Ok(json(&own::state(&self.memory.acme, &names)))
            }
            Request::Work => self.acme_work().await,
            Request::Report { report } => {
                let report = serde_json::from_str(&report).map_err(unreadable)?;
                self.acme_report(report).await
            }
        }
    }

    async fn acme_ask(&mut self, address: &str, question: Question) -> Result<Told, Refusal> {
        let address: IpAddr = address.parse().map_err(|_| Refusal::Invalid(format!("{address:?} is no address")))?;
        let Some(instance) = self.instance_at(address.to_canonical()) else {
            let detail = format!("{address} is no instance's address: certificates are for the instances of this host");
            return Ok(Told::Problem(Problem::new(403, "unauthorized", detail)));
        };
        let id = new_id().map_err(|error| Refusal::Failed(format!("no randomness: {error}")))?;
        let case = decide::Case {
            ledger: &self.memory.acme,
            instance: &instance,
            names: names_of(&instance, &self.shared.settings.layout.domain),
            aliases: self.proven_domains(&instance),
            unproven: self.domains_of(&instance).into_iter().map(|domain| (domain.name, unproven(domain.detail))).collect(),
            limits: self.shared.settings.acme,
            now: now(),
            id,
        };
        match case.answer(question) {
            Ok((told, batch)) => {
                self.acme_commit(batch).await?;
                Ok(told)
            }
            Err(problem) => {
                tracing::info!(%instance, %problem, "refused a certificate's client");
                Ok(Told::Problem(problem))
            }
        }
    }

    async fn acme_own(&mut self, asked: Asked) -> Result<Reply, Refusal> {
        let id = new_id().map_err(|error| Refusal::Failed(format!("no randomness: {error}")))?;
        let names = names_of_host(&self.shared.settings.layout.domain);
        let answer = own::answer(&self.memory.acme, &names, asked, self.shared.settings.acme, now(), id);
        let (own, batch) = answer.map_err(Refusal::Invalid)?;
        self.acme_commit(batch).await?;
        Ok(json(&own))
    }

    /// The orders for which the CA is to be asked. Those for names that are not wanted any more end here, and their proofs with them.
    async fn acme_work(&mut self) -> Result<Reply, Refusal> {
        let working = |order: &&Order| matches!(order.stage, Stage::Working(_));
        let orders = self.memory.acme.orders.values().filter(working);
        let gone: Vec<String> = orders.filter(|order| !self.is_still_for(order)).map(|order| order.id.clone()).collect();
        for order in gone {
            let problem = Problem::new(403, "rejectedIdentifier", "what the certificate is for does not exist any more");
            self.acme_report(Report::Failed { order, problem }).await?;
        }
        Ok(json(&self.memory.acme.orders.values().filter(working).collect::<Vec<_>>()))
    }

    async fn acme_report(&mut self, report: Report) -> Result<Reply, Refusal> {
        let wanted = |order: &Order| self.is_still_for(order);
        let batch = report::apply(&self.memory.acme, report, wanted, now()).map_err(Refusal::Invalid)?;
        self.acme_commit(batch).await?;
        Ok(Reply::Nothing)
    }

    /// Whether an order is still for something: its instance is wanted and has its names, or they are this host's.
    fn is_still_for(&self, order: &Order) -> bool {
        match &order.holder {
            Holder::Host => order.names == names_of_host(&self.shared.settings.layout.domain),
            Holder::Instance(id) => {
                let (own, proven) = (names_of(id, &self.shared.settings.layout.domain), self.proven_domains(id));
                self.is_wanted(id) && order.names.iter().all(|name| own.contains(name) || proven.contains_key(name))
            }
        }
    }

    /// Remembers, and tells the DNS door if what the CA looks for has changed.
    async fn acme_commit(&mut self, batch: Batch) -> Result<(), Refusal> {
        if batch.is_empty() {
            return Ok(());
        }
        let target = self.target.take();
        let before = self.memory.acme.challenges();
        self.commit(batch).await?;
        // Nothing of this is rendered into units.
        self.target = target;
        let after = self.memory.acme.challenges();
        for name in before.keys().chain(after.keys()) {
            let texts = after.get(name).cloned().unwrap_or_default();
            self.zone.send_if_modified(|book| book.challenge(name, now(), texts));
        }
        Ok(())
    }

    /// The instance that an address belongs to. The firewall pins it to the instance's tap.
    fn instance_at(&self, address: IpAddr) -> Option<InstanceId> {
        let addressing = &self.shared.settings.layout.addressing;
        let found = self.memory.leases.iter().find(|(id, lease)| match address {
            IpAddr::V4(v4) => addressing.v4(**lease) == v4,
            IpAddr::V6(v6) => addressing.of(id, **lease).v6 == v6,
        });
        // Of whichever of its sets: a new version asks for its certificate before it serves.
        found.map(|(set, _)| set.instance()).filter(|id| self.is_wanted(id))
    }
}

/// What the last look saw of a name that is not proven.
fn unproven(saw: String) -> String {
    if saw.is_empty() { "its DNS was not looked at yet".to_owned() } else { saw }
}

fn unreadable(error: serde_json::Error) -> Refusal {
    Refusal::Invalid(format!("this cannot be read ({error}): the agent and the doors are of different versions"))
}

/// 104 bits that nobody guesses, as text that can stand in an address.
pub(super) fn new_id() -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = [0u8; 13];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase())
}

#[cfg(test)]
mod siege_tests;
#[cfg(test)]
mod tests;

//! The observed world in the words of a user.

use std::collections::BTreeMap;

use super::{Shared, chain, job::Job, now, resolve};
use crate::{
    build::Builder,
    bus::{InstanceStatus, NamespaceStatus, Refusal, Status},
    host::{Guest, Host},
    spec::{
        access::{self, Principal, Verb},
        address::Lease,
        desired::Deployment,
        instance::Instance,
        name::{FlakeUri, InstanceId, Namespace},
    },
    state::{Memory, Plant},
};

/// What the loop knows; a task adds what the machine says.
pub struct Picture {
    plants: Vec<(Plant, Option<Deployment>, String)>,
    leases: BTreeMap<InstanceId, Lease>,
    unplanted: Vec<String>,
}

impl Picture {
    /// Of `plants`, which `who` may see.
    pub fn new(
        memory: &Memory,
        who: &Principal,
        plants: &[&Plant],
        deploying: &BTreeMap<Namespace, Job>,
        queued: &[Namespace],
        filter: &str,
    ) -> Self {
        let doing = |namespace: &Namespace| {
            if deploying.contains_key(namespace) {
                "deploying".to_owned()
            } else if queued.contains(namespace) {
                "queued".to_owned()
            } else {
                String::new()
            }
        };
        let of = |plant: &&Plant| {
            let seen = resolve::reach(memory, who, Verb::See, plant);
            let mut deployment = memory.wants.get(&plant.namespace).cloned();
            if let Some(deployment) = &mut deployment {
                deployment.instances.retain(|name, _| seen.includes(name));
            }
            ((*plant).clone(), deployment, doing(&plant.namespace))
        };
        let mut unplanted: Vec<String> = memory
            .repos
            .values()
            .filter(|repository| filter.is_empty() && access::may(who, Verb::See, repository, now()))
            .filter(|repository| !memory.plants.contains_key(&FlakeUri::Silo(repository.name.clone()).namespace()))
            .map(|repository| repository.name.to_string())
            .collect();
        unplanted.sort();
        let leases = memory.leases.iter().filter(|(id, _)| plants.iter().any(|plant| plant.namespace == id.namespace));
        Self {
            plants: plants.iter().map(of).collect(),
            leases: leases.map(|(id, lease)| (id.clone(), *lease)).collect(),
            unplanted,
        }
    }

    /// Asks the machine how the instances are doing.
    pub async fn look<H: Host, B: Builder>(self, shared: &Shared<H, B>) -> Result<Status, Refusal> {
        let ids: Vec<InstanceId> = self.leases.keys().cloned().collect();
        let failed = |error| Refusal::Failed(format!("could not look at the machine: {}", chain(&error)));
        let guests = shared.host.inspect(&ids).await.map_err(failed)?;
        let guests: BTreeMap<InstanceId, Guest> =
            guests.into_iter().filter_map(|guest| guest.id.clone().map(|id| (id, guest))).collect();
        let retired = shared.host.retired().await.map_err(failed)?;
        let namespaces = self.plants.iter().map(|(plant, deployment, doing)| {
            let mine = retired.iter().filter(|(namespace, _)| namespace == plant.namespace.as_str());
            NamespaceStatus {
                namespace: plant.namespace.to_string(),
                flake: plant.uri.to_string(),
                generation: deployment.as_ref().map(|deployment| deployment.generation.to_string()).unwrap_or_default(),
                commit: deployment.as_ref().map(|deployment| deployment.commit.to_string()).unwrap_or_default(),
                deploying: doing.clone(),
                instances: self.instances(plant, deployment.as_ref(), &guests, shared),
                retired: mine.map(|(_, volume)| volume.clone()).collect(),
            }
        });
        Ok(Status { version: 1, namespaces: namespaces.collect(), unplanted: self.unplanted.clone() })
    }

    fn instances<H: Host, B: Builder>(
        &self,
        plant: &Plant,
        deployment: Option<&Deployment>,
        guests: &BTreeMap<InstanceId, Guest>,
        shared: &Shared<H, B>,
    ) -> Vec<InstanceStatus> {
        let layout = &shared.settings.layout;
        let one = |(name, instance): (&crate::spec::name::InstanceName, &Instance)| {
            let id = InstanceId { namespace: plant.namespace.clone(), name: name.clone() };
            let address = layout.addressing.of(&id, *self.leases.get(&id)?);
            let guest = guests.get(&id).cloned().unwrap_or_default();
            let (state, detail) = words(&guest);
            Some(InstanceStatus {
                name: name.to_string(),
                state,
                detail,
                since: guest.since,
                restarts: guest.restarts,
                fqdn: format!("{name}.{}.{}", plant.namespace, layout.domain),
                ipv4: address.v4,
                ipv6: address.v6,
                ports: instance.ports.iter().map(|(name, port)| port_text(name.as_str(), port)).collect(),
                vcpus: instance.size.vcpus,
                memory_mib: instance.size.memory_mib,
                memory_used: guest.memory,
                volumes: instance
                    .volumes
                    .iter()
                    .map(|(name, volume)| format!("{name} {} at {}", volume.size, volume.mount_point))
                    .collect(),
                restart_pending: guest.restart_pending,
            })
        };
        deployment.map(|deployment| deployment.instances.iter().filter_map(one).collect()).unwrap_or_default()
    }
}

fn port_text(name: &str, port: &crate::spec::instance::Port) -> String {
    let transport = match (port.protocol.tcp(), port.protocol.udp()) {
        (true, true) => "tcp+udp",
        (false, true) => "udp",
        _ => "tcp",
    };
    format!("{name} {}/{transport}", port.port)
}

/// systemd's states in a user's words, and what there is to say.
fn words(guest: &Guest) -> (String, String) {
    let state = match guest.active_state.as_str() {
        "active" | "reloading" => "running",
        "activating" if guest.sub_state.starts_with("auto-restart") => "restarting",
        "activating" => "booting",
        "deactivating" => "stopping",
        "failed" => "failed",
        _ if guest.result != "success" && !guest.result.is_empty() => "failed",
        _ => "stopped",
    };
    let detail = match state {
        "failed" | "restarting" => format!("{} {}", guest.result, guest.status_text).trim().to_owned(),
        "running" if guest.status_text == "running" => String::new(),
        _ => guest.status_text.clone(),
    };
    (state.to_owned(), detail)
}

/// The name by which people call the repository of a namespace; for messages.
pub fn repository(plant: &Plant) -> String {
    resolve::repository(plant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_states_have_plain_words() {
        let guest = |active: &str, sub: &str, result: &str, status: &str| Guest {
            active_state: active.into(),
            sub_state: sub.into(),
            result: result.into(),
            status_text: status.into(),
            ..Guest::default()
        };
        let table = [
            (guest("active", "running", "success", "running"), ("running", "")),
            (
                guest("activating", "start", "success", "booting: network.target reached"),
                ("booting", "booting: network.target reached"),
            ),
            (guest("activating", "auto-restart", "exit-code", ""), ("restarting", "exit-code")),
            (guest("failed", "failed", "timeout", "booting"), ("failed", "timeout booting")),
            (guest("inactive", "dead", "success", ""), ("stopped", "")),
            (guest("inactive", "dead", "signal", ""), ("failed", "signal")),
        ];
        for (guest, (state, detail)) in table {
            assert_eq!(words(&guest), (state.to_owned(), detail.to_owned()), "{guest:?}");
        }
    }
}

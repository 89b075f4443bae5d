//! The observed world in the words of a user.

use std::collections::BTreeMap;

use super::{Agent, Shared, chain, guest::reason, history::who, now, resolve};
use crate::{
    build::Builder,
    bus::{InstanceStatus, NamespaceStatus, Refusal, SetStatus, Status, VolumeStatus},
    host::{Guest, Host, usage::Subject},
    spec::{
        access::{self, Principal, Reach, Verb},
        instance::Instance,
        name::{FlakeUri, InstanceId, Namespace, SetId, VolumeName},
        rollout::Beside,
    },
    state::{Plant, State},
};

/// What the loop knows; a task adds what the machine says.
pub struct Picture {
    /// Whether all of it is seen, and what of it is.
    namespaces: Vec<(NamespaceStatus, bool, Vec<Known>)>,
    unplanted: Vec<String>,
}

/// An instance, as far as the loop knows it.
struct Known {
    /// The set that serves.
    id: SetId,
    /// The other one, if there is one.
    beside: Option<SetId>,
    volumes: Vec<VolumeName>,
    status: InstanceStatus,
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// What there is to say of `plants`, which `asker` may see.
    pub(super) fn picture(&self, asker: &Principal, plants: &[&Plant], filter: &str) -> Picture {
        let memory = &self.memory;
        let mut unplanted: Vec<String> = memory
            .repos
            .values()
            .filter(|repository| filter.is_empty() && access::may(asker, Verb::See, repository, now()))
            .filter(|repository| !memory.plants.contains_key(&FlakeUri::Silo(repository.name.clone()).namespace()))
            .map(|repository| repository.name.to_string())
            .collect();
        unplanted.sort();
        Picture { namespaces: plants.iter().map(|plant| self.known(asker, plant)).collect(), unplanted }
    }

    fn known(&self, asker: &Principal, plant: &Plant) -> (NamespaceStatus, bool, Vec<Known>) {
        let namespace = &plant.namespace;
        let deployment = self.memory.wants.get(namespace);
        let status = NamespaceStatus {
            namespace: namespace.to_string(),
            flake: plant.uri.to_string(),
            generation: deployment.map(|deployment| deployment.generation.to_string()).unwrap_or_default(),
            commit: deployment.map(|deployment| deployment.commit.to_string()).unwrap_or_default(),
            deploying: self.doing(namespace).to_owned(),
            instances: Vec::new(),
            retired: Vec::new(),
        };
        let instances = deployment.iter().flat_map(|deployment| &deployment.instances);
        let seen = resolve::reach(&self.memory, asker, Verb::See, plant);
        let known = instances.filter(|(name, _)| seen.includes(name)).filter_map(|(name, instance)| {
            let id = InstanceId { namespace: namespace.clone(), name: name.clone() };
            let rolling = self.memory.rolling.get(&id);
            let status = self.instance_status(&id, instance)?;
            let beside = rolling.filter(|rolling| rolling.beside.is_some()).map(|rolling| id.set(rolling.slot.other()));
            Some(Known { id: self.serving(&id), beside, volumes: instance.volumes.keys().cloned().collect(), status })
        });
        (status, seen == Reach::Everything, known.collect())
    }

    fn doing(&self, namespace: &Namespace) -> &'static str {
        match (self.deploying.contains_key(namespace), self.queued.contains_key(namespace)) {
            (true, _) => "deploying",
            (false, true) => "queued",
            (false, false) => "",
        }
    }

    /// What is known of an instance without looking at the machine.
    fn instance_status(&self, id: &InstanceId, instance: &Instance) -> Option<InstanceStatus> {
        let layout = &self.shared.settings.layout;
        let set = self.serving(id);
        let address = layout.addressing.of(&set, *self.memory.leases.get(&set)?);
        let beside = self.memory.rolling.get(id).and_then(|rolling| {
            let set = id.set(rolling.slot.other());
            let address = layout.addressing.of(&set, *self.memory.leases.get(&set)?);
            let (role, until) = match rolling.beside.as_ref()? {
                Beside::Coming { .. } => ("coming", 0),
                Beside::Draining { until, .. } => ("draining", *until),
            };
            let (state, detail) = (String::new(), String::new());
            Some(SetStatus { role: role.to_owned(), name: set.place(), state, detail, ipv4: address.v4, ipv6: address.v6, until })
        });
        let volumes = instance.volumes.iter().map(|(name, volume)| VolumeStatus {
            name: name.to_string(),
            size: volume.size.0,
            used: None,
            mount_point: volume.mount_point.clone(),
        });
        let pin = self.memory.pins.get(id).filter(|pin| pin.held);
        Some(InstanceStatus {
            name: id.name.to_string(),
            state: String::new(),
            detail: String::new(),
            since: 0,
            restarts: 0,
            fqdn: format!("{}.{}.{}", id.name, id.namespace, layout.domain),
            ipv4: address.v4,
            ipv6: address.v6,
            ports: instance.ports.iter().map(|(name, port)| port_text(name.as_str(), port)).collect(),
            routes: self.routes_of(id),
            vcpus: instance.size.vcpus,
            memory_mib: instance.size.memory_mib,
            memory_used: None,
            cpu_milli: None,
            volumes: volumes.collect(),
            failed_units: Vec::new(),
            stopped_by: self.memory.stopped.get(id).map(|stopped| who(stopped.by.as_ref())).unwrap_or_default(),
            pinned_by: pin.map(|pin| who(pin.by.as_ref())).unwrap_or_default(),
            domains: self.domains_of(id),
            restart_pending: self.lanes.is_pending(id),
            beside,
        })
    }
}

impl Picture {
    /// Asks the machine how the instances are doing.
    pub async fn look<H: Host, B: Builder>(self, shared: &Shared<H, B>) -> Result<Status, Refusal> {
        // Who has nothing here costs the machine no look.
        if self.namespaces.is_empty() {
            return Ok(Status { version: 1, namespaces: Vec::new(), unplanted: self.unplanted });
        }
        let failed = |error| Refusal::Failed(format!("could not look at the machine: {}", chain(&error)));
        let all = || self.namespaces.iter().flat_map(|(_, _, known)| known);
        let ids: Vec<SetId> = all().flat_map(|known| std::iter::once(&known.id).chain(&known.beside)).cloned().collect();
        let guests = shared.host.inspect(&ids).await.map_err(failed)?;
        let guests: BTreeMap<SetId, Guest> =
            guests.into_iter().filter_map(|guest| guest.id.clone().map(|id| (id, guest))).collect();
        let subjects = all().map(|known| {
            let guest = guests.get(&known.id);
            let up = guest.is_some_and(|guest| guest.active_state == "active");
            let since = guest.map_or(0, |guest| guest.since);
            Subject { id: known.id.clone(), volumes: known.volumes.clone(), since, up }
        });
        let usages = shared.host.usage(subjects.collect()).await.map_err(failed)?;
        let retired = shared.host.retired().await.map_err(failed)?;
        let mut usages = usages.into_iter();
        let namespaces = self.namespaces.into_iter().map(|(mut namespace, whole, known)| {
            // Whoever sees one instance only does not see what was another's.
            let names: Vec<&str> = known.iter().map(|known| known.status.name.as_str()).collect();
            let is_seen = |volume: &str| whole || volume.split('/').next().is_some_and(|name| names.contains(&name));
            let mine = retired.iter().filter(|(other, volume)| *other == namespace.namespace && is_seen(volume));
            namespace.retired = mine.map(|(_, volume)| volume.clone()).collect();
            namespace.instances = known
                .into_iter()
                .map(|Known { id, beside, mut status, .. }| {
                    let usage = usages.next().unwrap_or_default();
                    (status.memory_used, status.cpu_milli) = (usage.memory, usage.cpu_milli);
                    for volume in &mut status.volumes {
                        volume.used = usage.volumes.iter().find(|(name, _)| name.as_str() == volume.name).map(|(_, used)| *used);
                    }
                    status.failed_units = usage.failed_units;
                    let guest = |id: &SetId| guests.get(id).cloned().unwrap_or_default();
                    if let Some((beside, id)) = status.beside.as_mut().zip(beside) {
                        let (state, detail) = words(&guest(&id));
                        (beside.state, beside.detail) = (state.to_owned(), detail);
                    }
                    say(&mut status, &guest(&id));
                    status
                })
                .collect();
            namespace
        });
        Ok(Status { version: 1, namespaces: namespaces.collect(), unplanted: self.unplanted })
    }
}

fn port_text(name: &str, port: &crate::spec::instance::Port) -> String {
    format!("{name} {}/{}", port.port, port.protocol.transport())
}

/// Adds how the guest is doing, in a user's words.
fn say(status: &mut InstanceStatus, guest: &Guest) {
    let (state, detail) = words(guest);
    (status.state, status.since, status.restarts) = (state.to_owned(), guest.since, guest.restarts);
    let mut said: Vec<String> = Vec::new();
    if state == "running" && !status.failed_units.is_empty() {
        status.state = "degraded".to_owned();
        said.push(format!("failed in it: {}", status.failed_units.join(", ")));
    }
    match (state, status.stopped_by.as_str()) {
        ("stopped", "") => said.push(format!("stopped on the host: start {}", status.name)),
        ("stopped", by) => said.push(format!("by {by}, until start {}", status.name)),
        _ if !detail.is_empty() => said.push(detail),
        _ => {}
    }
    if let Some(beside) = &status.beside {
        let SetStatus { name, state, ipv4, until, .. } = beside;
        said.push(match beside.role.as_str() {
            "coming" => format!("a new version, {name} at {ipv4}, takes over when it is ready: it is {state}"),
            _ => format!("the version before, {name} at {ipv4}, drains for {} s more", until.saturating_sub(now())),
        });
    }
    if !status.pinned_by.is_empty() {
        said.push(format!("pinned by {}", status.pinned_by));
    }
    status.detail = said.join("; ");
}

/// systemd's states in a user's words, and what there is to say.
fn words(guest: &Guest) -> (&'static str, String) {
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
        "failed" | "restarting" if guest.status_text.is_empty() => reason(&guest.result).to_owned(),
        "failed" | "restarting" => format!("{}; last: {}", reason(&guest.result), guest.status_text),
        "running" if guest.status_text == "running" => String::new(),
        _ => guest.status_text.clone(),
    };
    (state, detail)
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
            (
                guest("activating", "auto-restart", "exit-code", ""),
                ("restarting", "the virtual machine ended before the guest was ready"),
            ),
            (guest("failed", "failed", "timeout", "booting"), ("failed", "the guest did not get ready in time; last: booting")),
            (guest("inactive", "dead", "success", ""), ("stopped", "")),
            (guest("inactive", "dead", "signal", ""), ("failed", "the virtual machine ended before the guest was ready")),
        ];
        for (guest, (state, detail)) in table {
            assert_eq!(words(&guest), (state, detail.to_owned()), "{guest:?}");
        }
    }
}

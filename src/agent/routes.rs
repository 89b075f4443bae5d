//! Public ports: who has which, what a deploy does to them, and what to say of it.
//!
//! Nothing is remembered of a claim but the deployment that makes it: what is wanted of all namespaces is what is claimed. The loop
//! accepts one deployment at a time, so the first claim stands.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Agent, deploy::Deploy};
use crate::{
    build::{Builder, Outputs},
    bus::{Level, Refusal, RouteStatus, Stage},
    host::Host,
    spec::{
        desired::Deployment,
        manifest::{Manifest, Problem},
        name::{InstanceId, InstanceName, Namespace},
        route::{self, Ground, Route},
    },
    state::State,
};

/// Why a route cannot be had, if it cannot.
fn obstacle(route: &Route, ground: Ground<'_>) -> Option<String> {
    if ground.reserved.iter().any(|reserved| reserved.clashes(route)) {
        return Some(route::reserved(route));
    }
    ground.taken.iter().any(|other| other.clashes(route)).then(|| route::taken(route))
}

/// Two routes of one deployment that want one port.
fn own_clash(routes: &[Route]) -> Option<String> {
    routes.iter().enumerate().find_map(|(at, route)| {
        let other = routes[..at].iter().find(|other| other.clashes(route))?;
        Some(format!("public port {route} cannot lead to {} and to {}", other.instance, route.instance))
    })
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// What other namespaces have claimed.
    pub(super) fn claimed_by_others(&self, namespace: &Namespace) -> Vec<Route> {
        let others = self.memory.wants.iter().filter(|(other, _)| *other != namespace);
        others.flat_map(|(_, want)| want.routes.iter().cloned()).collect()
    }

    /// Refuses a deployment whose public ports cannot be had: what was free when its deploy began may not be now.
    pub(super) fn check_claims(&self, namespace: &Namespace, old: Option<&Deployment>, new: &Deployment) -> Result<(), Refusal> {
        let had = |route: &Route| old.is_some_and(|old| old.routes.contains(route));
        let taken = self.claimed_by_others(namespace);
        let ground = self.ground(&taken);
        let gained: Vec<&Route> = new.routes.iter().filter(|route| !had(route)).collect();
        let mut said: Vec<String> = gained.iter().filter_map(|route| obstacle(route, ground)).collect();
        said.extend(own_clash(&new.routes));
        if said.is_empty() && !gained.is_empty() {
            said.extend(self.quota_of(namespace).check_routes(&new.routes, had).map(|problem| problem.to_string()));
        }
        if said.is_empty() { Ok(()) } else { Err(Refusal::Failed(said.join("; "))) }
    }

    /// Leaves out of a deployment that is gone back to what cannot be had any more, and says so: an instance without a port is better
    /// than none.
    pub(super) fn drop_lost_claims(&self, namespace: &Namespace, new: &mut Deployment) {
        let taken = self.claimed_by_others(namespace);
        let ground = self.ground(&taken);
        let had = self.memory.wants.get(namespace).map(|want| want.routes.clone()).unwrap_or_default();
        let mut kept: Vec<Route> = Vec::new();
        for route in std::mem::take(&mut new.routes) {
            let obstacle = Some(()).filter(|()| !had.contains(&route)).and_then(|()| obstacle(&route, ground));
            match obstacle.or_else(|| own_clash(&[kept.clone(), vec![route.clone()]].concat())) {
                None => kept.push(route),
                Some(what) => {
                    if let Some(under_way) = self.deploying.get(namespace) {
                        under_way.job.say(
                            Stage::Plan,
                            Level::Error,
                            format!("{}: goes back without a port: {what}", route.instance),
                        );
                    }
                }
            }
        }
        new.routes = kept;
    }

    fn ground<'a>(&'a self, taken: &'a [Route]) -> Ground<'a> {
        let settings = &self.shared.settings;
        Ground { public: &settings.layout.public, reserved: &settings.reserved, taken }
    }

    /// What leads to each instance. A port that the host has come to need for itself since is the host's.
    pub(super) fn led(&self, namespace: &Namespace, deployment: &Deployment) -> BTreeMap<InstanceId, Vec<Route>> {
        let reserved = &self.shared.settings.reserved;
        let mut led: BTreeMap<InstanceId, Vec<Route>> = BTreeMap::new();
        for route in deployment.routes.iter().filter(|route| !reserved.iter().any(|reserved| reserved.clashes(route))) {
            let id = InstanceId { namespace: namespace.clone(), name: route.instance.clone() };
            led.entry(id).or_default().push(route.clone());
        }
        led
    }

    /// The public ports of an instance, for `status`.
    pub(super) fn routes_of(&self, id: &InstanceId) -> Vec<RouteStatus> {
        let public = &self.shared.settings.layout.public;
        let routes = self.memory.wants.get(&id.namespace).map(|want| want.routes.as_slice()).unwrap_or_default();
        let own = routes.iter().filter(|route| route.instance == id.name);
        let status = |route: &Route| RouteStatus {
            name: route.name.to_string(),
            addresses: route.addresses(public).map(|one| one.address).collect(),
            port: route.port,
            protocol: route.protocol.transport().to_owned(),
            target_port: route.target_port,
        };
        own.map(status).collect()
    }
}

impl<H: Host, B: Builder> Deploy<H, B> {
    /// The public ports that the flake wants, or every problem with them at once.
    pub(super) fn routes(
        &self,
        outputs: &Outputs,
        manifests: &BTreeMap<InstanceName, Manifest>,
    ) -> Result<Vec<Route>, Vec<Problem>> {
        let settings = &self.shared.settings;
        let ground = Ground { public: &settings.layout.public, reserved: &settings.reserved, taken: &self.taken };
        let named = outputs.seeds.keys().filter_map(|name| name.parse::<InstanceName>().ok());
        let instances = named.map(|name| {
            let ports = manifests.get(&name).map(|manifest| manifest.ports.clone());
            (name, ports)
        });
        let (ipv4, ipv6): (Option<&Value>, Option<&Value>) = (outputs.ipv4.as_ref(), outputs.ipv6.as_ref());
        let routes = route::read(ipv4, ipv6, &instances.collect(), ground)?;
        let had = self.old_routes();
        match self.quota.check_routes(&routes, |route| had.contains(route)) {
            None => Ok(routes),
            Some(problem) => Err(vec![problem]),
        }
    }

    /// What is claimed now.
    pub(super) fn old_routes(&self) -> &[Route] {
        self.before.as_ref().map(|before| before.routes.as_slice()).unwrap_or_default()
    }

    /// Says which public ports are claimed and which are given back.
    pub(super) fn say_routes(&self, new: &[Route]) {
        let old = self.old_routes();
        for route in new.iter().filter(|route| !old.contains(route)) {
            let text = format!("{}: claims public port {route}, which leads to its port {}", route.instance, route.target_port);
            self.job.say(Stage::Plan, Level::Info, text);
        }
        for route in old.iter().filter(|route| !new.contains(route)) {
            self.job.say(Stage::Plan, Level::Info, format!("{}: gives public port {route} back", route.instance));
        }
    }

    /// The routes that a deployment gets whose instances of these names are as in `other`.
    pub(super) fn routes_as_in(names: &BTreeSet<InstanceName>, routes: &[Route], other: &[Route]) -> Vec<Route> {
        names.iter().fold(routes.to_vec(), |routes, name| route::with_those_of(name, &routes, other))
    }
}

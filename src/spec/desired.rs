//! What this host should run: the deployments of all namespaces, and what changes from one deployment to the next.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    address::Lease,
    instance::Instance,
    manifest::Problem,
    name::{Commit, CustomDomain, Generation, InstanceId, InstanceName, KeyId, Namespace, RefName, SetId},
    quota::Quota,
    rollout,
    route::Route,
};

/// The instances of one namespace at one commit, as they were accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deployment {
    pub generation: Generation,
    pub commit: Commit,
    pub reference: RefName,
    /// The key that pushed it.
    pub by: KeyId,
    /// Seconds since 1970.
    pub at: u64,
    /// Whether all its instances got ready once. Only such a deployment is gone back to.
    pub proven: bool,
    pub instances: BTreeMap<InstanceName, Instance>,
    /// The public ports that lead to them, sorted: while this deployment is wanted, they are its namespace's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
}

/// One set of units that this host should run, with the lease it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub instance: Instance,
    pub lease: Lease,
}

/// All that this host should run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    pub instances: BTreeMap<SetId, Wanted>,
    /// Those of them that are to be off: made ready, and not started.
    pub stopped: BTreeSet<SetId>,
    /// Those of them that run beside the set that serves: no name leads to them.
    pub beside: BTreeSet<SetId>,
    /// What the namespaces of instances may have.
    pub quotas: BTreeMap<Namespace, Quota>,
    /// The public ports that lead to an instance.
    pub routes: BTreeMap<InstanceId, Vec<Route>>,
    /// Names of tenants' own that are proven, and whose they are.
    pub domains: BTreeMap<CustomDomain, InstanceId>,
}

impl Desired {
    /// The sets that serve: one of each instance, the one that its names lead to.
    pub fn serving(&self) -> impl Iterator<Item = (&SetId, &Wanted)> {
        self.instances.iter().filter(|(id, _)| !self.beside.contains(id))
    }
}

/// What a deployment does to one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Start,
    /// Restarted, for these reasons.
    Restart(Vec<String>),
    /// Started anew beside the one that serves, for these reasons.
    Roll(Vec<String>),
    Keep,
    Remove,
}

/// What happens to each instance when `new` takes the place of `old`.
pub fn changes(old: &BTreeMap<InstanceName, Instance>, new: &BTreeMap<InstanceName, Instance>) -> BTreeMap<InstanceName, Change> {
    let mut made: BTreeMap<InstanceName, Change> = BTreeMap::new();
    for (name, instance) in new {
        let change = match old.get(name) {
            None => Change::Start,
            Some(before) if before.machine() == instance.machine() => Change::Keep,
            Some(before) if rollout::rolls(before, instance) => Change::Roll(reasons(before, instance)),
            Some(before) => Change::Restart(reasons(before, instance)),
        };
        made.insert(name.clone(), change);
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        made.insert(name.clone(), Change::Remove);
    }
    made
}

fn reasons(old: &Instance, new: &Instance) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut say = |differs: bool, text: &str| {
        if differs {
            reasons.push(text.to_owned());
        }
    };
    say(old.toplevel != new.toplevel, "system changed");
    say(old.size != new.size, "size changed");
    say(old.ports != new.ports, "exposed ports changed");
    say(old.volumes != new.volumes, "volumes changed");
    say(old.tpm != new.tpm, "TPM changed");
    say(old.acme != new.acme || old.shoot != new.shoot, "environment changed");
    if reasons.is_empty() {
        reasons.push("configuration changed".to_owned());
    }
    reasons
}

/// What cannot be done on the way from `old` to `new`: a volume cannot shrink.
pub fn check_change(old: &BTreeMap<InstanceName, Instance>, new: &BTreeMap<InstanceName, Instance>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, instance) in new {
        let Some(before) = old.get(name) else { continue };
        for (key, volume) in &instance.volumes {
            let Some(had) = before.volumes.get(key).filter(|had| had.size > volume.size) else { continue };
            problems.push(Problem::new(
                format!("seeds.{name}.meta.storage.{key}.size"),
                format!(
                    "{} is less than the {} it has: a volume cannot shrink; write {} or more, or take a new volume name",
                    volume.size, had.size, had.size
                ),
            ));
        }
    }
    problems
}

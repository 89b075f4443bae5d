//! Made-up deployments for the tests of this room.

use std::collections::BTreeMap;

use crate::spec::{
    access::fingerprint,
    desired::Deployment,
    instance::{Instance, Rollout, sizes},
    name::{Generation, InstanceName, StorePath},
};

/// A store path that is told apart by `tag`.
pub fn path(tag: &str) -> StorePath {
    format!("/nix/store/{:0>32}-{tag}", tag.bytes().map(|b| char::from(b'a' + b % 20)).collect::<String>()).parse().expect("a path")
}

/// An instance whose system is told apart by `tag`.
pub fn instance(tag: &str) -> Instance {
    Instance {
        toplevel: path(tag),
        kernel_params: "quiet".to_owned(),
        closure: vec![path(tag)],
        size: sizes()["xs"].clone(),
        ports: BTreeMap::new(),
        volumes: BTreeMap::new(),
        rollout: Rollout::Recreate,
        acme: false,
        shoot: false,
        tpm: false,
        domains: std::collections::BTreeSet::new(),
    }
}

/// A deployment of instances with these names.
pub fn deployment(names: &[&str]) -> Deployment {
    let instances: BTreeMap<InstanceName, Instance> =
        names.iter().map(|name| (name.parse().expect("a name"), instance(name))).collect();
    Deployment {
        generation: Generation::of(instances.iter().map(|(name, instance)| (name, &instance.toplevel))),
        commit: "0".repeat(40).parse().expect("a commit"),
        reference: "refs/heads/main".parse().expect("a branch"),
        by: fingerprint(b"ann"),
        at: 1,
        proven: true,
        instances,
        routes: Vec::new(),
    }
}

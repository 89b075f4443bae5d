//! Namespaces with instances that the agent remembers from an earlier life.

use std::collections::{BTreeMap, BTreeSet};

use seed::{
    spec::{
        access::{Repository, fingerprint},
        address::Lease,
        desired::Deployment,
        instance::{Instance, Rollout, Size},
        name::{FlakeUri, InstanceId, StorePath},
    },
    state::{Memory, Plant},
};
use serde_json::json;

/// The instances of some repositories; the first has the first lease.
pub fn memory(all: impl IntoIterator<Item = (String, Vec<String>)>) -> (Memory, Vec<InstanceId>) {
    let (mut memory, mut ids) = (Memory::default(), Vec::new());
    for (repository, names) in all {
        let (uri, by): (FlakeUri, _) = (format!("silo:{repository}").parse().unwrap(), fingerprint(b"ann"));
        let namespace = uri.namespace();
        let owned = Repository::new(repository.parse().unwrap(), by.clone(), 0);
        memory.repos.insert(owned.name.clone(), owned);
        let plant = Plant { hash: uri.hash(), uri, namespace: namespace.clone(), by, at: 0 };
        memory.plants.insert(namespace.clone(), plant);
        let mut instances = BTreeMap::new();
        for name in names {
            let id = InstanceId { namespace: namespace.clone(), name: name.parse().unwrap() };
            instances.insert(id.name.clone(), instance(&repository));
            memory.leases.insert((&id).into(), Lease(ids.len() as u16));
            ids.push(id);
        }
        let deployment = Deployment {
            generation: serde_json::from_value(json!("0123456789ab")).unwrap(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            reference: "refs/heads/main".parse().unwrap(),
            by: fingerprint(b"ann"),
            at: 1,
            proven: true,
            instances,
            routes: Vec::new(),
        };
        memory.wants.insert(namespace, deployment);
    }
    (memory, ids)
}

fn instance(repository: &str) -> Instance {
    let toplevel: StorePath = format!("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-{repository}").parse().unwrap();
    Instance {
        closure: vec![toplevel.clone()],
        toplevel,
        kernel_params: String::new(),
        size: Size { vcpus: 1, memory_mib: 512 },
        ports: BTreeMap::new(),
        volumes: BTreeMap::new(),
        rollout: Rollout::Recreate,
        acme: true,
        shoot: false,
        tpm: false,
        domains: BTreeSet::new(),
    }
}

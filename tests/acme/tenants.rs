//! Namespaces with instances that the agent remembers from an earlier life.

use std::collections::BTreeMap;

use seed::{
    spec::{
        access::fingerprint,
        address::Lease,
        desired::Deployment,
        instance::{Instance, Rollout, Size},
        name::{FlakeUri, InstanceId, StorePath},
    },
    state::Memory,
};
use serde_json::json;

/// The instances of some repositories; the first has the first lease.
pub fn memory(all: impl IntoIterator<Item = (String, Vec<String>)>) -> (Memory, Vec<InstanceId>) {
    let (mut memory, mut ids) = (Memory::default(), Vec::new());
    for (repository, names) in all {
        let namespace = format!("silo:{repository}").parse::<FlakeUri>().unwrap().namespace();
        let mut instances = BTreeMap::new();
        for name in names {
            let id = InstanceId { namespace: namespace.clone(), name: name.parse().unwrap() };
            instances.insert(id.name.clone(), instance(&repository));
            memory.leases.insert(id.clone(), Lease(ids.len() as u16));
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
    }
}

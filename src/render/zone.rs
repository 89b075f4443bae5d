//! The names of what is wanted, as the DNS server answers them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use super::Layout;
use crate::spec::{
    desired::Desired,
    name::{Domain, InstanceId, Namespace},
};

/// What the DNS server answers from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Zone {
    pub serial: u32,
    pub domain: String,
    /// The host's own public addresses: apex, `ns1`, `silo`.
    pub host4: Vec<Ipv4Addr>,
    pub host6: Vec<Ipv6Addr>,
    /// By namespace, then instance.
    pub namespaces: BTreeMap<String, BTreeMap<String, ZoneEntry>>,
}

/// The addresses of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneEntry {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

/// The zone of what is wanted. `host4` and `host6` are the host's public addresses.
pub fn zone(desired: &Desired, layout: &Layout, host4: &[Ipv4Addr], host6: &[Ipv6Addr], serial: u32) -> Zone {
    let mut namespaces: BTreeMap<String, BTreeMap<String, ZoneEntry>> = BTreeMap::new();
    for (id, wanted) in &desired.instances {
        let address = layout.addressing.of(id, wanted.lease);
        let entry = ZoneEntry { ipv4: address.v4, ipv6: address.v6 };
        namespaces.entry(id.namespace.to_string()).or_default().insert(id.name.to_string(), entry);
    }
    Zone { serial, domain: layout.domain.to_string(), host4: host4.to_vec(), host6: host6.to_vec(), namespaces }
}

/// What the names of a namespace end in: `<namespace>.<domain>`.
pub fn suffix(namespace: &Namespace, domain: &Domain) -> String {
    format!("{namespace}.{domain}")
}

/// The full name of an instance: `<instance>.<namespace>.<domain>`, without a final dot.
pub fn fqdn(id: &InstanceId, domain: &Domain) -> String {
    format!("{}.{}", id.name, suffix(&id.namespace, domain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn every_wanted_instance_has_both_addresses() {
        let layout = samples::layout();
        let zone = zone(&samples::desired(), &layout, &["192.0.2.1".parse().unwrap()], &[], 7);
        assert_eq!((zone.serial, zone.domain.as_str(), zone.host4.len(), zone.host6.len()), (7, "seed.example", 1, 0));
        let (id, wanted) = samples::instance("web");
        let address = layout.addressing.of(&id, wanted.lease);
        let entry = &zone.namespaces["s-gaydazldmnsg"]["web"];
        assert_eq!((entry.ipv4, entry.ipv6), (address.v4, address.v6));
        assert_eq!(fqdn(&id, &layout.domain), "web.s-gaydazldmnsg.seed.example");
    }
}

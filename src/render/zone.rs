//! The names of what is wanted, as the DNS server answers them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use super::Layout;
use crate::spec::{
    address::Lease,
    desired::Desired,
    name::{Domain, InstanceId, Namespace, SetId},
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
    /// Name servers of the zone besides `ns1`.
    #[serde(default)]
    pub nameservers: Vec<String>,
    /// Which authorities may issue certificates for the names of the zone, as CAA records have it; none: any may.
    #[serde(default)]
    pub caa: Vec<String>,
    /// TXT records that prove to a certificate authority that a name is ours, while it looks: full name without a final dot
    /// (`_acme-challenge.web.<ns>.<domain>`), and what it is to say.
    #[serde(default)]
    pub challenges: BTreeMap<String, Vec<String>>,
}

/// What has changed from one serial to the next; its size is that of the change, not of the zone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneChange {
    /// The serial of the zone that this is a change of.
    pub from: u32,
    pub serial: u32,
    /// By `<namespace>/<instance>`; `None`: it is gone.
    #[serde(default)]
    pub instances: BTreeMap<String, Option<ZoneEntry>>,
    /// By full name, whole; empty: it is gone.
    #[serde(default)]
    pub challenges: BTreeMap<String, Vec<String>>,
}

impl Zone {
    /// Makes a change. It must be one of this zone's serial.
    pub fn apply(&mut self, change: &ZoneChange) {
        self.serial = change.serial;
        for (id, entry) in &change.instances {
            let Some((namespace, name)) = id.split_once('/') else { continue };
            match entry {
                Some(entry) => {
                    self.namespaces.entry(namespace.to_owned()).or_default().insert(name.to_owned(), entry.clone());
                }
                None => {
                    if let Some(instances) = self.namespaces.get_mut(namespace) {
                        instances.remove(name);
                        if instances.is_empty() {
                            self.namespaces.remove(namespace);
                        }
                    }
                }
            }
        }
        for (name, texts) in &change.challenges {
            if texts.is_empty() {
                self.challenges.remove(name);
            } else {
                self.challenges.insert(name.clone(), texts.clone());
            }
        }
    }
}

/// The addresses of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneEntry {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// The addresses of the set beside the one that serves: names do not lead to it, and it may ask all that the other may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<IpAddr>,
}

impl ZoneEntry {
    /// Every address from which the instance asks.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [IpAddr::V4(self.ipv4), IpAddr::V6(self.ipv6)].into_iter().chain(self.beside.iter().copied())
    }
}

/// What the zone has of the host itself. From the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Apex {
    /// The host's own public addresses.
    pub host4: Vec<Ipv4Addr>,
    pub host6: Vec<Ipv6Addr>,
    pub nameservers: Vec<String>,
    pub caa: Vec<String>,
}

/// The zone of what is wanted: of each instance the set that serves.
pub fn zone(desired: &Desired, layout: &Layout, apex: &Apex, serial: u32) -> Zone {
    let apex = apex.clone();
    let mut namespaces: BTreeMap<String, BTreeMap<String, ZoneEntry>> = BTreeMap::new();
    for (id, wanted) in desired.serving() {
        let other = id.instance().set(id.slot.other());
        let beside = desired.instances.get(&other).map(|wanted| (&other, wanted.lease));
        let entry = entry((id, wanted.lease), beside, layout);
        namespaces.entry(id.namespace.to_string()).or_default().insert(id.name.to_string(), entry);
    }
    Zone {
        serial,
        domain: layout.domain.to_string(),
        host4: apex.host4,
        host6: apex.host6,
        nameservers: apex.nameservers,
        caa: apex.caa,
        namespaces,
        challenges: BTreeMap::new(),
    }
}

/// The addresses of the set that serves and of the one beside it, each with its lease.
pub fn entry(serving: (&SetId, Lease), beside: Option<(&SetId, Lease)>, layout: &Layout) -> ZoneEntry {
    let of = |(id, lease)| layout.addressing.of(id, lease);
    let address = of(serving);
    let beside = beside.map(of).into_iter().flat_map(|other| [IpAddr::V4(other.v4), IpAddr::V6(other.v6)]);
    ZoneEntry { ipv4: address.v4, ipv6: address.v6, beside: beside.collect() }
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
        let zone = zone(&samples::desired(), &layout, &Apex { host4: vec![[192, 0, 2, 1].into()], ..Apex::default() }, 7);
        assert_eq!((zone.serial, zone.domain.as_str(), zone.host4.len(), zone.host6.len()), (7, "seed.example", 1, 0));
        let (id, wanted) = samples::instance("web");
        let address = layout.addressing.of(&id, wanted.lease);
        let entry = &zone.namespaces["s-gaydazldmnsg"]["web"];
        assert_eq!((entry.ipv4, entry.ipv6), (address.v4, address.v6));
        assert_eq!(fqdn(&id.instance(), &layout.domain), "web.s-gaydazldmnsg.seed.example");
    }
    #[test]
    fn a_change_leaves_nothing_behind() {
        let layout = samples::layout();
        let empty = zone(&Desired::default(), &layout, &Apex::default(), 7);
        let mut one = empty.clone();
        let entry = ZoneEntry { ipv4: [10, 88, 0, 2].into(), ipv6: "fd5e::2".parse().unwrap(), beside: Vec::new() };
        let name = "_acme-challenge.web.s-aaaaaaaaaaaa.seed.example".to_owned();
        one.apply(&ZoneChange {
            from: 7,
            serial: 8,
            instances: [("s-aaaaaaaaaaaa/web".to_owned(), Some(entry.clone()))].into(),
            challenges: [(name.clone(), vec!["proof".to_owned()])].into(),
        });
        assert_eq!(
            (&one.namespaces["s-aaaaaaaaaaaa"]["web"], &one.challenges[&name], one.serial),
            (&entry, &vec!["proof".to_owned()], 8)
        );
        one.apply(&ZoneChange {
            from: 8,
            serial: 9,
            instances: [("s-aaaaaaaaaaaa/web".to_owned(), None)].into(),
            challenges: [(name, vec![])].into(),
        });
        assert_eq!(one, Zone { serial: 9, ..empty });
    }
}

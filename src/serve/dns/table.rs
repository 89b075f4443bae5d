//! The zone as answers are made from it: every name in one step, every record as it stands on the wire. A change costs what it changes.
#![allow(
    clippy::disallowed_types,
    reason = "names are looked up for strangers, in one step whatever they chose; nothing is printed from here"
)]

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::bus::{Zone, ZoneChange, ZoneEntry};

/// How long an instance's address may be remembered, in seconds; and that a name does not exist.
pub const TTL: u32 = 30;
/// The same for what belongs to the host itself.
pub const HOST_TTL: u32 = 3600;

/// Which addresses are whose. From the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Near {
    /// Instances and the gateway have addresses of these.
    pub pool4: Ipv4Net,
    pub pool6: Ipv6Net,
    pub gateways: Vec<IpAddr>,
    /// Who may know the inside addresses of all instances: networks that are routed to them.
    pub inside: Vec<IpNet>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asker {
    /// Anybody.
    World,
    /// This host, or a network that is routed to the instances.
    Inside,
    /// An instance of this namespace, known by the address that the firewall pins to its tap.
    Guest(Arc<[u8]>),
    /// An address of an instance that is none, or no longer.
    Nobody,
}

/// What there is under a name of the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    Apex,
    /// `ns1`, `silo`
    Host,
    /// There is something below it.
    Empty,
    /// With the label of its namespace.
    Instance(&'a [u8], &'a ZoneEntry),
    /// A proof for a certificate authority: the data of TXT records.
    Texts(&'a [Box<[u8]>]),
    Nothing,
}

/// The zone.
#[derive(Debug, Default)]
pub struct Table {
    pub serial: u32,
    /// Empty until the agent has spoken.
    pub domain: Box<[u8]>,
    pub host4: Vec<Ipv4Addr>,
    pub host6: Vec<Ipv6Addr>,
    /// Data of the records of the apex.
    pub soa: Box<[u8]>,
    pub servers: Vec<Box<[u8]>>,
    pub authorities: Vec<Box<[u8]>>,
    namespaces: HashMap<Arc<[u8]>, HashMap<Box<[u8]>, ZoneEntry>>,
    /// The namespace that an address belongs to.
    owners: HashMap<IpAddr, Arc<[u8]>>,
    texts: HashMap<Box<[u8]>, Vec<Box<[u8]>>>,
    /// How many names with texts stand below a name.
    above: HashMap<Box<[u8]>, u32>,
}

/// A name on the wire, in lower case. `None` if it cannot be one.
pub fn wire(name: &str) -> Option<Box<[u8]>> {
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        wire.push(length);
        wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    wire.push(0);
    (wire.len() <= 255).then(|| wire.into())
}

/// A name with one more label in front.
pub fn child(label: &[u8], parent: &[u8]) -> Box<[u8]> {
    let length = u8::try_from(label.len()).unwrap_or(0);
    [&[length][..], label, parent].concat().into()
}

/// The first label of a name that has one.
pub fn label(name: &[u8]) -> &[u8] {
    &name[1..1 + usize::from(name[0])]
}

/// How many labels a name has.
pub fn labels(name: &[u8]) -> u8 {
    let (mut count, mut at) = (0, 0);
    while name[at] != 0 {
        count += 1;
        at += 1 + usize::from(name[at]);
    }
    count
}

/// The data of a TXT record, in strings of at most 255 bytes.
fn text(text: &str) -> Box<[u8]> {
    let part = |part: &[u8]| [&[u8::try_from(part.len()).unwrap_or(0)][..], part].concat();
    if text.is_empty() { Box::from([0]) } else { text.as_bytes().chunks(255).flat_map(part).collect() }
}

/// The data of a CAA record that lets `issuer` issue certificates.
fn issue(issuer: &String) -> Box<[u8]> {
    [b"\0\x05issue", issuer.as_bytes()].concat().into()
}

impl Table {
    /// Takes a whole zone.
    pub fn new(zone: &Zone) -> Self {
        let domain = if zone.domain.is_empty() { Box::default() } else { wire(&zone.domain).unwrap_or_default() };
        let mut servers = vec![child(b"ns1", &domain)];
        servers.extend(zone.nameservers.iter().filter_map(|name| wire(name)));
        let soa = [&*servers[0], &*child(b"hostmaster", &domain)].concat();
        let times = [zone.serial, 3600, 600, 604_800, TTL].map(u32::to_be_bytes).concat();
        let mut table = Self {
            serial: zone.serial,
            soa: [soa, times].concat().into(),
            domain,
            host4: zone.host4.clone(),
            host6: zone.host6.clone(),
            servers,
            authorities: zone.caa.iter().map(issue).collect(),
            ..Self::default()
        };
        for (namespace, instances) in &zone.namespaces {
            for (name, entry) in instances {
                table.set_instance(namespace, name, Some(entry));
            }
        }
        for (name, texts) in &zone.challenges {
            table.set_texts(name, texts);
        }
        table
    }

    /// Makes a change. False if it is a change of another zone than this.
    pub fn apply(&mut self, change: &ZoneChange) -> bool {
        if self.domain.is_empty() || change.from != self.serial {
            return false;
        }
        self.serial = change.serial;
        let at = self.soa.len() - 20;
        self.soa[at..at + 4].copy_from_slice(&change.serial.to_be_bytes());
        // First what goes: its address may be another's now.
        let mut instances: Vec<(&String, Option<&ZoneEntry>)> =
            change.instances.iter().map(|(id, entry)| (id, entry.as_ref())).collect();
        instances.sort_by_key(|(_, entry)| entry.is_some());
        for (id, entry) in instances {
            if let Some((namespace, name)) = id.split_once('/') {
                self.set_instance(namespace, name, entry);
            }
        }
        for (name, texts) in &change.challenges {
            self.set_texts(name, texts);
        }
        true
    }

    fn set_instance(&mut self, namespace: &str, name: &str, entry: Option<&ZoneEntry>) {
        let key = match self.namespaces.get_key_value(namespace.as_bytes()) {
            Some((key, _)) => Arc::clone(key),
            None => namespace.as_bytes().into(),
        };
        let instances = self.namespaces.entry(Arc::clone(&key)).or_default();
        let old = match entry {
            Some(entry) => instances.insert(name.as_bytes().into(), entry.clone()),
            None => instances.remove(name.as_bytes()),
        };
        if instances.is_empty() {
            self.namespaces.remove(&key);
        }
        for address in old.iter().flat_map(ZoneEntry::addresses) {
            // Unless it is another namespace's by now.
            if self.owners.get(&address) == Some(&key) {
                self.owners.remove(&address);
            }
        }
        for address in entry.into_iter().flat_map(ZoneEntry::addresses) {
            self.owners.insert(address, Arc::clone(&key));
        }
    }

    /// Whether the TXT record of a name says this.
    pub fn says(&self, name: &str, one: &str) -> bool {
        let texts = wire(name).and_then(|name| self.texts.get(&name));
        texts.is_some_and(|texts| texts.contains(&text(one)))
    }

    fn set_texts(&mut self, name: &str, texts: &[String]) {
        let Some(name) = wire(name).filter(|name| self.is_below(name)) else {
            tracing::warn!(name, "a proof for a name that is not in this zone cannot be shown");
            return;
        };
        let new = if texts.is_empty() {
            self.texts.remove(&name).is_none()
        } else {
            // Two that are the same are one record.
            let mut data: Vec<Box<[u8]>> = texts.iter().map(|one| text(one)).collect();
            data.sort();
            data.dedup();
            self.texts.insert(name.clone(), data).is_some()
        };
        // Nothing came and nothing went.
        if new {
            return;
        }
        let mut at = 1 + usize::from(name[0]);
        while name.len() - at > self.domain.len() {
            let count = self.above.entry(name[at..].into()).or_default();
            *count = if texts.is_empty() { count.saturating_sub(1) } else { *count + 1 };
            if *count == 0 {
                self.above.remove(&name[at..]);
            }
            at += 1 + usize::from(name[at]);
        }
    }

    fn is_below(&self, name: &[u8]) -> bool {
        let mut at = 0;
        while name[at] != 0 && name.len() - at > self.domain.len() {
            at += 1 + usize::from(name[at]);
        }
        at > 0 && name[at..] == *self.domain
    }

    /// What there is under a name, of which `below` labels stand before the domain.
    pub fn find(&self, name: &[u8], below: usize) -> Found<'_> {
        let first = label(name);
        match below {
            0 => return Found::Apex,
            1 if matches!(first, b"ns1" | b"silo") => return Found::Host,
            1 if self.namespaces.contains_key(first) => return Found::Empty,
            2 => {
                let found = self.namespaces.get_key_value(label(&name[1 + first.len()..]));
                if let Some((namespace, instances)) = found
                    && let Some(entry) = instances.get(first)
                {
                    return Found::Instance(namespace, entry);
                }
            }
            _ => {}
        }
        // Most of the time there are none, and nobody has to compute where they would be.
        if self.texts.is_empty() {
            return Found::Nothing;
        }
        match self.texts.get(name) {
            Some(texts) => Found::Texts(texts),
            None if self.above.contains_key(name) => Found::Empty,
            None => Found::Nothing,
        }
    }

    /// The same for a bare name of a namespace.
    pub fn find_in(&self, namespace: &[u8], label: &[u8]) -> Option<&ZoneEntry> {
        self.namespaces.get(namespace)?.get(label)
    }

    /// Who asks from an address.
    pub fn asker(&self, near: &Near, from: IpAddr) -> Asker {
        if let Some(namespace) = self.owners.get(&from) {
            return Asker::Guest(Arc::clone(namespace));
        }
        let of_host = |address| match address {
            IpAddr::V4(v4) => self.host4.contains(&v4),
            IpAddr::V6(v6) => self.host6.contains(&v6),
        };
        if from.is_loopback() || near.gateways.contains(&from) || near.inside.iter().any(|net| net.contains(&from)) || of_host(from)
        {
            return Asker::Inside;
        }
        match from {
            IpAddr::V4(v4) if near.pool4.contains(&v4) => Asker::Nobody,
            IpAddr::V6(v6) if near.pool6.contains(&v6) || v6.is_unicast_link_local() => Asker::Nobody,
            _ => Asker::World,
        }
    }

    /// Every instance: its namespace, its name, its addresses. In no order.
    pub fn instances(&self) -> impl Iterator<Item = (&[u8], &[u8], &ZoneEntry)> {
        self.namespaces
            .iter()
            .flat_map(|(namespace, instances)| instances.iter().map(move |(name, entry)| (&**namespace, &**name, entry)))
    }

    /// Every name with texts.
    pub fn all_texts(&self) -> impl Iterator<Item = (&[u8], &[Box<[u8]>])> {
        self.texts.iter().map(|(name, texts)| (&**name, texts.as_slice()))
    }

    /// What one who asks is told of an instance. Inside addresses are for those inside: for its own namespace, and for whoever is routed
    /// to it. Everybody else is told an address that the whole world may know: the instance's own, or the host's, where its traffic comes
    /// in. A host that has told us no public address is a laboratory: there, the rest of the network is told the inside one.
    pub fn addresses<'a>(&'a self, asker: &Asker, namespace: &[u8], entry: &'a ZoneEntry) -> (&'a [Ipv4Addr], &'a [Ipv6Addr]) {
        let (v4, v6) = (std::slice::from_ref(&entry.ipv4), std::slice::from_ref(&entry.ipv6));
        let inside = match asker {
            Asker::Inside => true,
            Asker::Guest(own) => **own == *namespace,
            Asker::World => self.host4.is_empty() && self.host6.is_empty(),
            Asker::Nobody => false,
        };
        let v4 = if inside || is_public4(entry.ipv4) { v4 } else { &self.host4 };
        let v6 = if inside || is_public6(entry.ipv6) { v6 } else { &self.host6 };
        (v4, v6)
    }
}

fn is_public4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    // 100.64.0.0/10 is what providers put behind their own translation.
    !(address.is_private() || address.is_loopback() || address.is_link_local() || (a == 100 && b & 0xc0 == 64))
}

fn is_public6(address: Ipv6Addr) -> bool {
    !(address.is_unique_local() || address.is_unicast_link_local() || address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::dns::question::{Read, read};

    fn entry(n: u8) -> ZoneEntry {
        ZoneEntry { ipv4: [10, 88, 0, n].into(), ipv6: format!("fd5e::{n}").parse().unwrap(), beside: Vec::new() }
    }

    #[test]
    fn a_set_beside_the_one_that_serves_asks_as_its_namespace_does() {
        let mut table = Table::default();
        let near = near();
        let beside = IpAddr::from([10, 88, 0, 3]);
        table.set_instance("s-a", "web", Some(&ZoneEntry { beside: vec![beside], ..entry(2) }));
        assert!(matches!(table.asker(&near, beside), Asker::Guest(own) if *own == *b"s-a"));
        table.set_instance("s-a", "web", Some(&ZoneEntry { beside: vec![entry(2).ipv4.into()], ..entry(3) }));
        assert!(matches!(table.asker(&near, beside), Asker::Guest(_)), "they have changed places");
        table.set_instance("s-a", "web", Some(&entry(3)));
        assert!(matches!(table.asker(&near, entry(2).ipv4.into()), Asker::Nobody));
    }

    #[test]
    fn what_was_told_holds_no_longer_than_what_is_rolled_over_drains() {
        let config = |secs: u32| crate::config::Config::parse(&format!("domain = \"a.example\"\n[rollout]\ndrain_secs = {secs}"));
        assert!(config(TTL - 1).is_err() && config(TTL).is_ok());
    }

    fn near() -> Near {
        Near {
            pool4: "10.88.0.0/24".parse().unwrap(),
            pool6: "fd5e::/64".parse().unwrap(),
            gateways: vec![[10, 88, 0, 1].into()],
            inside: vec!["172.16.0.0/12".parse().unwrap()],
        }
    }

    fn found<'a>(table: &'a Table, name: &str) -> Found<'a> {
        let packet = [&[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &wire(name).unwrap(), &[0, 1, 0, 1]].concat();
        let Read::Question(asked) = read(&packet) else { panic!("{name}") };
        let below = asked.name.below(&table.domain).expect("in the zone");
        table.find(asked.name.wire(), below)
    }

    #[test]
    fn changes_leave_the_same_as_the_whole() {
        let mut zone = Zone { serial: 1, domain: "seed.example".into(), ..Zone::default() };
        let mut table = Table::new(&zone);
        let deep = "_acme-challenge.web.s-b.seed.example";
        let changes = [
            (vec![("s-a/web", Some(entry(2))), ("s-a/api", Some(entry(3)))], vec![("_acme-challenge.seed.example", vec!["x"])]),
            // An address changes hands in one change.
            (vec![("s-a/web", None), ("s-b/db", Some(entry(2)))], vec![(deep, vec!["y", "z"])]),
            (vec![("s-b/db", None), ("s-a/db", Some(entry(2)))], vec![(deep, vec!["y"])]),
            (vec![("s-a/api", None)], vec![(deep, vec![]), ("_acme-challenge.elsewhere.example", vec!["no"])]),
        ];
        for (instances, challenges) in changes {
            let change = ZoneChange {
                from: zone.serial,
                serial: zone.serial + 1,
                instances: instances.into_iter().map(|(id, entry)| (id.to_owned(), entry)).collect(),
                challenges: challenges
                    .into_iter()
                    .map(|(name, texts)| (name.to_owned(), texts.into_iter().map(str::to_owned).collect()))
                    .collect(),
            };
            zone.apply(&change);
            assert!(table.apply(&change));
            assert!(!table.apply(&change), "a second time");
            let whole = Table::new(&zone);
            assert_eq!(table.namespaces, whole.namespaces);
            assert_eq!(table.owners, whole.owners);
            assert_eq!((&table.texts, &table.above, &table.soa), (&whole.texts, &whole.above, &whole.soa));
            let has = !zone.challenges.contains_key(deep);
            assert_eq!(found(&table, "web.s-b.seed.example") == Found::Nothing, has, "an empty name above one that is not");
        }
        assert!(table.above.is_empty() && table.owners.len() == 2);
        assert!(matches!(found(&table, "_acme-challenge.seed.example"), Found::Texts(_)));
        assert!(!Table::default().apply(&ZoneChange::default()), "before the agent has spoken");
    }

    #[test]
    fn inside_addresses_are_for_those_inside() {
        let mut zone = Zone { serial: 1, domain: "seed.example".into(), host4: vec![[192, 0, 2, 1].into()], ..Zone::default() };
        zone.namespaces.insert("s-a".into(), [("web".to_owned(), entry(2))].into());
        zone.namespaces.insert("s-b".into(), [("db".to_owned(), entry(3))].into());
        let near = near();
        let table = Table::new(&zone);
        let told = |table: &Table, from: &str| {
            let asker = table.asker(&near, from.parse().unwrap());
            let (v4, v6) = table.addresses(&asker, b"s-a", &zone.namespaces["s-a"]["web"]);
            (v4.to_vec(), v6.to_vec())
        };
        let inside = (vec![[10, 88, 0, 2].into()], vec!["fd5e::2".parse().unwrap()]);
        let outside = (vec![[192, 0, 2, 1].into()], vec![]);
        for (from, expected) in [
            ("10.88.0.2", &inside),
            ("fd5e::2", &inside),
            ("127.0.0.1", &inside),
            ("10.88.0.1", &inside),
            ("192.0.2.1", &inside),
            ("172.16.3.4", &inside),
            ("10.88.0.3", &outside),
            ("fd5e::3", &outside),
            ("10.88.0.9", &outside),
            ("fe80::1", &outside),
            ("198.51.100.1", &outside),
        ] {
            assert_eq!(&told(&table, from), expected, "{from}");
        }
        assert_eq!(table.asker(&near, "10.88.0.9".parse().unwrap()), Asker::Nobody);
        zone.host4.clear();
        let laboratory = Table::new(&zone);
        assert_eq!(told(&laboratory, "198.51.100.1"), inside);
        assert_eq!(told(&laboratory, "10.88.0.3"), (vec![], vec![]));
        // A public network of instances is everybody's.
        let mut public = zone.clone();
        public.namespaces.get_mut("s-a").unwrap().get_mut("web").unwrap().ipv6 = "2001:db8::2".parse().unwrap();
        let table = Table::new(&public);
        let asker = Asker::Guest(b"s-b"[..].into());
        assert_eq!(table.addresses(&asker, b"s-a", &public.namespaces["s-a"]["web"]).1.len(), 1);
    }
}

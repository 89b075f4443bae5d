//! Who may talk to whom, as one nftables table that is replaced whole in one transaction.
//!
//! - A packet from a tap must carry that tap's own MAC and address; all others are dropped before anything else looks at them. A source
//!   address is then a proof of which instance speaks.
//! - Members of one namespace reach each other on every port. Everybody reaches exposed ports and gets an answer to a ping: it says
//!   no more than DNS does, and it is the first thing that a person tries.
//! - Guests reach the world, but not the addresses at which clouds tell what they know about their *host*.
//! - Of the host itself, guests reach DNS, ACME and shoots on the gateway, and nothing else.
//! - A program on the host reaches no more of a guest than a stranger does: a fixed-output build of a tenant's runs there, too.
//! - That a connection is established gives no right by itself. Packets of its first direction are judged each time; answers pass to
//!   whoever began it, known by the connection's mark, and not to who holds the address now.
//!
//! The table judges only what comes from or goes to a tap (`seed*`); all else it lets pass, as it is the operator's. Rules are the same
//! for any number of instances: instances are elements of sets and maps.

use std::{collections::BTreeMap, fmt::Write};

use sha2::{Digest, Sha256};

use super::{
    Layout,
    credentials::{ACME_PORT, SHOOT_PORT},
};
use crate::spec::{
    address::Address,
    desired::{Desired, Wanted},
    name::{InstanceId, Namespace},
};

/// The text for `nft -f` that replaces the table, whether it was there or not.
pub fn ruleset(desired: &Desired, layout: &Layout) -> String {
    let numbers = numbers(desired);
    let guests: Vec<Guest<'_>> = desired
        .instances
        .iter()
        .map(|(id, wanted)| Guest {
            wanted,
            address: layout.addressing.of(id, wanted.lease),
            namespace: numbers[&id.namespace],
            id,
        })
        .collect();

    let mut text = String::from("table inet seed {}\ndelete table inet seed\ntable inet seed {\n");
    let set = |text: &mut String, name, kind: &str, keys: &dyn Fn(&Guest<'_>) -> Vec<String>| {
        elements(text, name, kind, &guests, |guest| keys(guest).into_iter().map(|key| (key, String::new())).collect());
    };
    let pinned =
        |g: &Guest<'_>, address: &dyn std::fmt::Display| vec![format!("\"{}\" . {} . {address}", g.address.tap, g.address.mac)];
    set(&mut text, "set sources4", "ifname . ether_addr . ipv4_addr", &|g| pinned(g, &g.address.v4));
    set(&mut text, "set sources6", "ifname . ether_addr . ipv6_addr", &|g| pinned(g, &g.address.v6));
    set(&mut text, "set links6", "ifname . ether_addr . ipv6_addr", &|g| pinned(g, &g.address.link6()));
    elements(&mut text, "map owners", "ifname : mark", &guests, |g| {
        vec![(format!("\"{}\"", g.address.tap), format!(" : {}", g.mark()))]
    });
    set(&mut text, "set owners4", "ipv4_addr . mark", &|g| vec![format!("{} . {}", g.address.v4, g.mark())]);
    set(&mut text, "set owners6", "ipv6_addr . mark", &|g| vec![format!("{} . {}", g.address.v6, g.mark())]);
    // The number of the namespace that an address belongs to, and the members of each: two look-ups tell whether two addresses
    // belong together.
    let value = |guest: &Guest<'_>| format!(" : {}", guest.namespace);
    elements(&mut text, "map namespace4", "ipv4_addr : mark", &guests, |g| vec![(g.address.v4.to_string(), value(g))]);
    elements(&mut text, "map namespace6", "ipv6_addr : mark", &guests, |g| vec![(g.address.v6.to_string(), value(g))]);
    set(&mut text, "set members4", "ipv4_addr . mark", &|g| vec![format!("{} . {}", g.address.v4, g.namespace)]);
    set(&mut text, "set members6", "ipv6_addr . mark", &|g| vec![format!("{} . {}", g.address.v6, g.namespace)]);
    let exposed = |guest: &Guest<'_>, address: &dyn std::fmt::Display| -> Vec<String> {
        guest.ports().iter().map(|(protocol, port)| format!("{address} . {protocol} . {port}")).collect()
    };
    set(&mut text, "set exposed4", "ipv4_addr . inet_proto . inet_service", &|g| exposed(g, &g.address.v4));
    set(&mut text, "set exposed6", "ipv6_addr . inet_proto . inet_service", &|g| exposed(g, &g.address.v6));
    text.push_str(&rules(layout));
    text.push_str("}\n");
    text
}

struct Guest<'a> {
    id: &'a InstanceId,
    wanted: &'a Wanted,
    address: Address,
    namespace: u32,
}

impl Guest<'_> {
    /// What marks the connections that it begins: a number of its own, never 0.
    fn mark(&self) -> u32 {
        let digest = Sha256::digest(self.id.to_string().as_bytes());
        u32::from_be_bytes(digest[..4].try_into().expect("four bytes")) | 1
    }

    /// `(tcp, 80)`, …
    fn ports(&self) -> Vec<(&'static str, u16)> {
        let ports = self.wanted.instance.ports.values();
        let each = ports.flat_map(|port| {
            let protocols = [("tcp", port.protocol.tcp()), ("udp", port.protocol.udp())];
            protocols.into_iter().filter(|(_, used)| *used).map(|(name, _)| (name, port.port))
        });
        each.collect()
    }
}

/// A number for each namespace, from 1.
fn numbers(desired: &Desired) -> BTreeMap<&Namespace, u32> {
    let mut numbers = BTreeMap::new();
    for id in desired.instances.keys() {
        let next = numbers.len() as u32 + 1;
        numbers.entry(&id.namespace).or_insert(next);
    }
    numbers
}

/// A named set or map with its elements: keys, each with what follows it (` : value` in a map), and whose they are.
fn elements(text: &mut String, name: &str, kind: &str, guests: &[Guest<'_>], of: impl Fn(&Guest<'_>) -> Vec<(String, String)>) {
    write!(text, "  {name} {{\n    type {kind};\n").expect("writing to a String cannot fail");
    let line = |guest: &Guest<'_>, (key, value)| format!("      {key} comment \"{}\"{value}", guest.id);
    let lines: Vec<String> = guests.iter().flat_map(|guest| of(guest).into_iter().map(|one| line(guest, one))).collect();
    // An empty list of elements is a syntax error.
    if !lines.is_empty() {
        write!(text, "    elements = {{\n{}\n    }}\n", lines.join(",\n")).expect("writing to a String cannot fail");
    }
    text.push_str("  }\n");
}

/// What does not depend on the instances.
fn rules(layout: &Layout) -> String {
    let addressing = &layout.addressing;
    let (gateway4, gateway6) = (addressing.gateway4(), addressing.gateway6());
    let (pool4, pool6) = (addressing.pool4.trunc(), addressing.pool6.trunc());
    // Unique local addresses mean nothing to the world: they leave under the host's, as private IPv4 addresses do.
    let local6 = addressing.pool6.network().segments()[0] & 0xfe00 == 0xfc00;
    let masquerade6 = if local6 { format!("    ip6 saddr {pool6} oifname != \"seed*\" masquerade\n") } else { String::new() };
    format!(
        r#"
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname "seed*" jump from_tap
  }}
  chain from_tap {{
    iifname . ether saddr . ip saddr @sources4 return
    iifname . ether saddr . ip6 saddr @sources6 return
    # The guest's kernel looks for its gateway from its link-local address too. Only from its one: each makes an entry in a table
    # that all guests share.
    iifname . ether saddr . ip6 saddr @links6 ip6 hoplimit 255 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} return
    counter drop
  }}

  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "seed*" jump to_host
  }}
  chain to_host {{
    ct state invalid drop
    ct direction reply ct state established accept
    ct state related accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip daddr {gateway4} jump to_gateway
    ip6 daddr {gateway6} jump to_gateway
    counter reject with icmpx admin-prohibited
  }}
  chain to_gateway {{
    udp dport 53 accept
    tcp dport {{ 53, {ACME_PORT}, {SHOOT_PORT} }} accept
    icmp type echo-request accept
    icmpv6 type echo-request accept
  }}

  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "seed*" jump from_host
  }}
  chain from_host {{
    ct direction reply ct state established accept
    # ICMP and ICMPv6, by number: not every host has a list of names.
    meta l4proto {{ 1, 58 }} accept
    jump exposed
    counter drop
  }}

  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "seed*" jump forward_tap
    oifname "seed*" jump forward_tap
  }}
  chain forward_tap {{
    ct state invalid drop
    icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} drop
    iifname "seed*" ct direction original ct mark set iifname map @owners
    ct direction reply ct state {{ established, related }} oifname != "seed*" accept
    ct direction reply ct state {{ established, related }} ip daddr . ct mark @owners4 accept
    ct direction reply ct state {{ established, related }} ip6 daddr . ct mark @owners6 accept
    ct direction original ct state related accept
    iifname "seed*" oifname "seed*" jump between
    # What is exposed is exposed to the world, not to the neighbours: they come in as the world does.
    iifname "seed*" oifname "seed*" counter reject with icmpx admin-prohibited
    oifname "seed*" jump exposed
    iifname != "seed*" counter drop
    # AWS, Google, Azure, Alibaba, Oracle: most at the first.
    ip daddr {{ 169.254.0.0/16, 168.63.129.16, 100.100.100.200, 192.0.0.192 }} counter reject with icmpx admin-prohibited
    ip6 daddr {{ fd00:ec2::254, fd20:ce::254 }} counter reject with icmpx admin-prohibited
    accept
  }}
  chain between {{
    meta mark set ip saddr map @namespace4
    meta mark set ip6 saddr map @namespace6
    ip daddr . meta mark @members4 meta mark set 0 accept
    ip6 daddr . meta mark @members6 meta mark set 0 accept
    meta mark set 0
  }}
  chain exposed {{
    ip daddr . meta l4proto . th dport @exposed4 accept
    ip6 daddr . meta l4proto . th dport @exposed6 accept
    icmp type echo-request accept
    icmpv6 type echo-request accept
  }}

  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool4} oifname != "seed*" masquerade
{masquerade6}  }}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    fn rule_lines(text: &str) -> usize {
        text.lines().filter(|line| !line.starts_with("      ")).count()
    }

    #[test]
    fn instances_are_elements_and_never_rules() {
        let layout = samples::layout();
        let (few, none) = (ruleset(&samples::desired(), &layout), ruleset(&Desired::default(), &layout));
        // Two lines around the elements of each of twelve sets.
        assert_eq!(rule_lines(&few), rule_lines(&none) + 24);
        assert!(!none.contains("elements"));
    }

    #[test]
    fn an_address_is_pinned_to_its_tap_and_namespaces_have_their_own_numbers() {
        let text = ruleset(&samples::desired(), &samples::layout());
        for part in [
            "\"seed0\" . 02:cf:b4:9f:e1:1f . 10.88.0.2 comment \"s-gaydazldmnsg/web\"",
            "10.88.0.2 comment \"s-gaydazldmnsg/web\" : 2",
            "10.88.0.4 comment \"s-aaaaaaaaaaaa/web\" : 1",
            "10.88.0.3 . tcp . 53 comment",
            "10.88.0.3 . udp . 53 comment",
            "10.88.0.3 . udp . 9000 comment",
            "10.88.0.3 . tcp . 5432 comment",
            "10.88.0.2 . tcp . 80 comment",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains(". tcp . 9000") && !text.contains(". udp . 80"));
    }

    #[test]
    fn only_unique_local_addresses_are_masqueraded() {
        let mut layout = samples::layout();
        assert!(ruleset(&Desired::default(), &layout).contains("ip6 saddr fd5e:ed00::/64 oifname"));
        layout.addressing.pool6 = "2001:db8:1::/64".parse().unwrap();
        assert!(!ruleset(&Desired::default(), &layout).contains("ip6 saddr 2001"), "a guest's global address leaves as it is");
    }
}

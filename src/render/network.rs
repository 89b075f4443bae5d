//! Who may talk to whom, as one nftables table that is replaced whole in one transaction.
//!
//! - A packet from a tap must carry that tap's own MAC and address; all others are dropped before anything else looks at them. A source
//!   address is then a proof of which instance speaks.
//! - Members of one namespace reach each other on every port. Everybody reaches exposed ports and gets an answer to a ping: it says
//!   no more than DNS does, and it is the first thing that a person tries.
//! - Guests reach the world, but not the addresses at which clouds tell what they know about their *host*.
//! - Of the host itself, guests reach DNS, ACME and shoots on the gateway, and nothing else.
//! - A program on the host reaches no more of a guest than a stranger does: a fixed-output build of a tenant's runs there, too.
//! - A public port leads to an instance by DNAT, and lets nobody in who would not be let in at the instance's own address: the port must
//!   be exposed as well. The instance sees who comes from the world as they are. The neighbours come in by it as the world does, and the
//!   namespace too; the instance sees them as the gateway, since to be answered they must be (and inside addresses stay inside).
//!   A program on the host is not led anywhere: its connections to the host are the host's.
//! - That a connection is established gives no right by itself. Packets of its first direction are judged each time; answers pass to
//!   whoever began it, known by the connection's mark, and not to who holds the address now.
//!
//! The table judges only what comes from or goes to a tap (`seed*`); all else it lets pass, as it is the operator's. Rules are the same
//! for any number of instances: instances are elements of sets and maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
};

use sha2::{Digest, Sha256};

use super::{
    Layout,
    credentials::{ACME_PORT, SHOOT_PORT},
};
use crate::spec::{
    address::Address,
    desired::{Desired, Wanted},
    name::{Namespace, SetId},
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
        guest.ports(false).iter().map(|(protocol, port)| format!("{address} . {protocol} . {port}")).collect()
    };
    // With an ingress, that speaks the PROXY protocol for them.
    let proxied = |guest: &Guest<'_>| -> Vec<String> {
        guest.ports(true).iter().map(|(protocol, port)| format!("{} . {protocol} . {port}", guest.address.v4)).collect()
    };
    set(&mut text, "set exposed4", "ipv4_addr . inet_proto . inet_service", &|g| exposed(g, &g.address.v4));
    set(&mut text, "set exposed6", "ipv6_addr . inet_proto . inet_service", &|g| exposed(g, &g.address.v6));
    let routed = |guest: &Guest<'_>, v4: bool| -> Vec<(String, String)> {
        // What drains keeps its connections, and gets no new ones this way.
        let keys = if desired.beside.contains(guest.id) { Vec::new() } else { ways(desired, layout, guest, v4) };
        keys.into_iter().map(|way| (format!("{} . {} . {}", way.from, way.transport, way.port), way.to(guest))).collect()
    };
    elements(&mut text, "map routes4", "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service", &guests, |g| {
        routed(g, true)
    });
    elements(&mut text, "map routes6", "ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service", &guests, |g| {
        routed(g, false)
    });
    // What they lead to.
    let led = |guest: &Guest<'_>, v4: bool| -> Vec<String> {
        let ways = ways(desired, layout, guest, v4);
        let keys: BTreeSet<String> =
            ways.iter().map(|way| format!("{} . {} . {}", guest.inside(v4), way.transport, way.target)).collect();
        keys.into_iter().collect()
    };
    set(&mut text, "set led4", "ipv4_addr . inet_proto . inet_service", &|g| led(g, true));
    set(&mut text, "set led6", "ipv6_addr . inet_proto . inet_service", &|g| led(g, false));
    if layout.ingress.is_some() {
        set(&mut text, "set proxied4", "ipv4_addr . inet_proto . inet_service", &proxied);
    }
    text.push_str(&rules(layout));
    text.push_str("}\n");
    text
}

/// One port of one address of this host that leads to a port of an instance.
struct Way {
    from: IpAddr,
    transport: &'static str,
    port: u16,
    target: u16,
}

impl Way {
    /// ` : 10.88.0.2 . 80`
    fn to(&self, guest: &Guest<'_>) -> String {
        format!(" : {} . {}", guest.inside(self.from.is_ipv4()), self.target)
    }
}

/// All ways to an instance, of one family. What is sent to a public address may arrive at another; guests reach it under its own.
fn ways(desired: &Desired, layout: &Layout, guest: &Guest<'_>, v4: bool) -> Vec<Way> {
    let mut ways = BTreeMap::new();
    for route in desired.routes.get(&guest.id.instance()).into_iter().flatten() {
        for address in route.addresses(&layout.public).flat_map(|one| [one.address, one.arrives]) {
            for (transport, used) in [("tcp", route.protocol.tcp()), ("udp", route.protocol.udp())] {
                if used && address.is_ipv4() == v4 {
                    let way = Way { from: address, transport, port: route.port, target: route.target_port };
                    ways.insert((address, transport, route.port), way);
                }
            }
        }
    }
    ways.into_values().collect()
}

struct Guest<'a> {
    id: &'a SetId,
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

    fn inside(&self, v4: bool) -> IpAddr {
        if v4 { self.address.v4.into() } else { self.address.v6.into() }
    }

    /// `(tcp, 80)`, …: those that everybody reaches, or those where nobody but the ingress may say who is connected.
    fn ports(&self, proxied: bool) -> Vec<(&'static str, u16)> {
        let ports = self.wanted.instance.ports.values().filter(|port| port.proxy_protocol == proxied);
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
    // Only a first packet makes a connection: those that follow may be of a socket that nobody holds any more.
    let ingress = layout.ingress.map_or_else(String::new, |user| {
        let to = "ip daddr . meta l4proto . th dport @proxied4";
        format!("    {to} meta skuid {user} accept\n    {to} tcp flags & (syn | ack) != syn accept\n")
    });
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

  chain destination {{
    type nat hook prerouting priority dstnat; policy accept;
    meta l4proto {{ tcp, udp }} dnat ip to ip daddr . meta l4proto . th dport map @routes4
    meta l4proto {{ tcp, udp }} dnat ip6 to ip6 daddr . meta l4proto . th dport map @routes6
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
{ingress}    jump exposed
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
    iifname "seed*" oifname "seed*" ct status dnat jump led
    iifname "seed*" oifname "seed*" counter reject with icmpx admin-prohibited
    oifname "seed*" ct status dnat jump still_led
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
  chain led {{
    ip daddr . meta l4proto . th dport @led4 jump exposed
    ip6 daddr . meta l4proto . th dport @led6 jump exposed
  }}
  # Whoever came in by a public port is in as long as it leads there. Marks of guests are odd; what the operator leads here has none.
  chain still_led {{
    ip daddr . meta l4proto . th dport @led4 ct mark set 2 return
    ip6 daddr . meta l4proto . th dport @led6 ct mark set 2 return
    ct mark 2 counter drop
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
{masquerade6}    ip saddr {pool4} oifname "seed*" ct status dnat masquerade
    ip6 saddr {pool6} oifname "seed*" ct status dnat masquerade
  }}
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
    fn public_ports_are_elements_for_each_address_and_transport() {
        let mut layout = samples::layout();
        let public = |address: &str, arrives: &str| crate::spec::route::PublicAddress {
            address: address.parse().unwrap(),
            arrives: arrives.parse().unwrap(),
        };
        layout.public =
            vec![public("203.0.113.7", "10.0.0.5"), public("192.0.2.8", "192.0.2.8"), public("2001:db8::7", "2001:db8::7")];
        let mut desired = samples::desired();
        let without = rule_lines(&ruleset(&desired, &layout));
        let route = |family: &str, host: &str| {
            let text =
                format!(r#"{{"family":"{family}","name":"a","port":5300,"protocol":"dns","instance":"db","targetPort":53{host}}}"#);
            serde_json::from_str(&text).unwrap()
        };
        let routes = vec![route("ipv4", r#","host":"203.0.113.7""#), route("ipv6", "")];
        desired.routes.insert("s-gaydazldmnsg/db".parse().unwrap(), routes);
        let text = ruleset(&desired, &layout);
        assert_eq!(rule_lines(&text), without + 8, "two lines around the elements of four sets");
        let db = "comment \"s-gaydazldmnsg/db\"";
        let mut lines = Vec::new();
        for transport in ["tcp", "udp"] {
            lines.push(format!("203.0.113.7 . {transport} . 5300 {db} : 10.88.0.3 . 53"));
            lines.push(format!("10.0.0.5 . {transport} . 5300 {db} : 10.88.0.3 . 53"));
            lines.push(format!("10.88.0.3 . {transport} . 53 {db}"));
            lines.push(format!("2001:db8::7 . {transport} . 5300 {db} : fd5e:ed00::"));
        }
        for line in lines {
            assert!(text.contains(&line), "{line}\n{text}");
        }
        assert!(!text.contains("192.0.2.8"), "a route for one address is for no other");
        // What this host no longer has leads nowhere.
        layout.public.clear();
        assert_eq!(ruleset(&desired, &layout), ruleset(&samples::desired(), &layout));
    }

    #[test]
    fn where_the_ingress_says_who_is_connected_nobody_else_can() {
        let mut desired = samples::desired();
        desired.instances.values_mut().for_each(|one| one.instance.ports.values_mut().for_each(|port| port.proxy_protocol = true));
        let without = ruleset(&desired, &samples::layout());
        assert!(!without.contains(". tcp . 80 ") && !without.contains("proxied4"), "there is no ingress, and so nobody");
        let text = ruleset(&desired, &Layout { ingress: Some(990), ..samples::layout() });
        let (before, proxied) = text.split_once("set proxied4").expect("the set");
        assert!(!before.contains(". tcp . 80 "), "over neither protocol: {text}");
        assert!(proxied.contains("10.88.0.2 . tcp . 80 comment") && proxied.contains("meta skuid 990 accept"), "{text}");
    }

    #[test]
    fn only_unique_local_addresses_are_masqueraded() {
        let mut layout = samples::layout();
        assert!(ruleset(&Desired::default(), &layout).contains("ip6 saddr fd5e:ed00::/64 oifname"));
        layout.addressing.pool6 = "2001:db8:1::/64".parse().unwrap();
        assert!(
            !ruleset(&Desired::default(), &layout).contains("ip6 saddr 2001:db8:1::/64 oifname !="),
            "a guest's global address leaves as it is"
        );
    }
}

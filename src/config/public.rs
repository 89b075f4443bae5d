//! This host's public addresses and ports: what is its own, and what namespaces may claim.

use std::net::IpAddr;

use super::{Config, Network, Reader};
use crate::{
    render::credentials::{ACME_PORT, SHOOT_PORT},
    spec::route::{PublicAddress, Reserved},
};

/// Where the addresses of one family arrive: pairs in the order in which they are written.
fn pairs(network: &Network, v4: bool) -> Vec<PublicAddress> {
    let of = |list: &[IpAddr]| list.iter().copied().filter(|address| address.is_ipv4() == v4).collect::<Vec<_>>();
    let (public, nat) = (of(&network.public_addresses), of(&network.nat_addresses));
    let pair = |(at, address): (usize, &IpAddr)| PublicAddress { address: *address, arrives: *nat.get(at).unwrap_or(address) };
    public.iter().enumerate().map(pair).collect()
}

/// Says what is wrong with the addresses behind a NAT.
pub(super) fn check(reader: &mut Reader<'_>, network: &Network) {
    let (public, nat) = (&network.public_addresses, &network.nat_addresses);
    if let Some(twice) = nat.iter().enumerate().find_map(|(at, one)| nat[..at].iter().chain(public).find(|other| *other == one)) {
        let what =
            format!("{twice} stands there twice, or is a public address as well: what arrives at it could be meant for either");
        return reader.demand("network", "nat_addresses", &what);
    }
    for v4 in [true, false] {
        let count = |list: &[IpAddr]| list.iter().filter(|address| address.is_ipv4() == v4).count();
        let (public, nat) = (count(&network.public_addresses), count(&network.nat_addresses));
        if nat != 0 && nat != public {
            let family = if v4 { "IPv4" } else { "IPv6" };
            let what = format!(
                "has {nat} {family} addresses, and public_addresses has {public}: write one for each, in the same order, or none where they \
                 are on an interface of this host"
            );
            reader.demand("network", "nat_addresses", &what);
        }
    }
}

impl Config {
    /// The addresses under which the world reaches this host, IPv4 first, and where what is sent to them arrives.
    pub fn public(&self) -> Vec<PublicAddress> {
        [pairs(&self.network, true), pairs(&self.network, false)].concat()
    }

    /// Ports that no namespace gets: those of the doors and of ingress, SSH's own in any case, and what the operator keeps.
    pub fn reserved(&self) -> Vec<Reserved> {
        let doors = [22, self.ssh.port, 80, 443, ACME_PORT, SHOOT_PORT].map(Reserved::tcp);
        [&doors[..], &[Reserved::both(53)], &self.network.reserved_ports].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(lines: &str) -> Result<Config, String> {
        Config::parse(&format!("domain = \"seed.example\"\n[network]\n{lines}\n"))
            .map_err(|problems| problems.iter().map(|problem| format!("{problem}\n")).collect())
    }

    #[test]
    fn an_address_behind_a_nat_arrives_where_it_is_said_to() {
        let public = "public_addresses = [\"203.0.113.7\", \"2001:db8::7\", \"203.0.113.8\"]\n";
        let said = |config: Config| -> Vec<String> {
            config.public().iter().map(|one| format!("{} {}", one.address, one.arrives)).collect()
        };
        assert_eq!(
            said(config(public).unwrap()),
            ["203.0.113.7 203.0.113.7", "203.0.113.8 203.0.113.8", "2001:db8::7 2001:db8::7"]
        );
        let nat = format!("{public}nat_addresses = [\"10.0.0.5\", \"10.0.0.6\"]");
        assert_eq!(said(config(&nat).unwrap()), ["203.0.113.7 10.0.0.5", "203.0.113.8 10.0.0.6", "2001:db8::7 2001:db8::7"]);
        for bad in ["[\"10.0.0.5\"]", "[\"10.0.0.5\", \"10.0.0.6\", \"10.0.0.7\"]", "[\"fd00::1\", \"fd00::2\"]"] {
            let said = config(&format!("{public}nat_addresses = {bad}")).unwrap_err();
            assert!(said.contains("network.nat_addresses") && said.contains("write one for each, in the same order"), "{said}");
        }
        for bad in ["[\"10.0.0.5\", \"10.0.0.5\"]", "[\"203.0.113.8\", \"10.0.0.6\"]"] {
            let said = config(&format!("{public}nat_addresses = {bad}")).unwrap_err();
            assert!(said.contains("could be meant for either"), "{said}");
        }
    }

    #[test]
    fn what_the_host_uses_nobody_claims() {
        let own = config("reserved_ports = [\"2200/tcp\", \"51820/udp\"]\n[ssh]\nport = 2222").unwrap().reserved();
        for port in [22, 2222, 80, 443, 9876, 9877, 2200, 53] {
            assert!(own.iter().any(|one| one.port == port && one.tcp), "{port}");
        }
        for port in [53, 51820] {
            assert!(own.iter().any(|one| one.port == port && one.udp), "{port}");
        }
        assert!(config("reserved_ports = [\"ssh\"]").unwrap_err().contains("is no port: write one with its transport"));
    }
}

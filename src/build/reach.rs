//! What units that work for tenants may reach of the network: the internet, but neither this host nor private networks, except what the
//! operator allows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What a tenant's flake has no business to reach from inside the host.
const PRIVATE: [&str; 9] = [
    "localhost",
    "link-local",
    "multicast",
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
];

/// The servers that names are looked up at: without them nothing public can be fetched either, and they are often in a private range.
fn resolvers() -> Vec<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    servers.filter_map(|server| server.trim().parse().ok()).collect()
}

/// The settings of a unit that reaches no more than it should.
pub(super) fn properties(allowed: &[IpNet]) -> Vec<String> {
    let deny = PRIVATE.iter().map(|range| format!("IPAddressDeny={range}"));
    let allow = allowed.iter().map(|range| format!("IPAddressAllow={range}"));
    deny.chain(allow).chain(resolvers().into_iter().map(|server| format!("IPAddressAllow={server}"))).collect()
}

/// Whether an address is one of the world's, or allowed. What systemd enforces where the kernel lets it, said here for each address that
/// a name stands for: it is checked even where the kernel does not help, and it can be explained.
pub(super) fn may(address: IpAddr, allowed: &[IpNet]) -> bool {
    let address = address.to_canonical();
    allowed.iter().any(|net| net.contains(&address)) || is_public(address)
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public4(v4),
        IpAddr::V6(v6) => is_public6(v6),
    }
}

fn is_public4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmarks = a == 198 && (18..20).contains(&b);
    let protocols = a == 192 && b == 0 && c == 0;
    let private = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_documentation();
    !(private || shared || benchmarks || protocols || a == 0 || a >= 224)
}

fn is_public6(v6: Ipv6Addr) -> bool {
    // The world is 2000::/3. What stands for an IPv4 address (6to4, Teredo) is that address, and nobody's server.
    let first = v6.segments();
    let stands_for_v4 = first[0] == 0x2002 || (first[0] == 0x2001 && first[1] == 0);
    let documentation = first[0] == 0x2001 && first[1] == 0xdb8;
    first[0] & 0xe000 == 0x2000 && !stands_for_v4 && !documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_world_is_reached_and_the_neighbourhood_is_not() {
        let public = ["140.82.121.4", "1.1.1.1", "223.255.255.254", "2606:50c0:8000::153", "2a00:1450::1"];
        let private = [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd5e:ed00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001::1",
        ];
        for (addresses, expected) in [(&public[..], true), (&private[..], false)] {
            for address in addresses {
                assert_eq!(may(address.parse().unwrap(), &[]), expected, "{address}");
            }
        }
        let allowed = ["10.1.0.0/16".parse().unwrap()];
        assert!(may("10.1.2.3".parse().unwrap(), &allowed) && may("::ffff:10.1.2.3".parse().unwrap(), &allowed));
        assert!(!may("10.2.2.3".parse().unwrap(), &allowed));
    }

    #[test]
    fn systemd_is_told_the_same() {
        let told = properties(&["10.1.0.0/16".parse().unwrap()]);
        for property in ["IPAddressDeny=localhost", "IPAddressDeny=192.168.0.0/16", "IPAddressAllow=10.1.0.0/16"] {
            assert!(told.iter().any(|line| line == property), "{told:?}");
        }
    }
}

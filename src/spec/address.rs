//! Addresses and numbers of an instance. IPv4, user id and vsock CID follow from a lease, which is remembered; IPv6 and MAC from the name.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::name::SetId;

/// The number that a set of units holds while it exists; the lowest free one is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lease(pub u16);

/// The ranges that leases are turned into addresses by. From the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressing {
    /// Inside IPv4 addresses: the first host address is the gateway, lease 0 is the second.
    pub pool4: Ipv4Net,
    /// Inside IPv6 addresses, a /64: `::1` is the gateway.
    pub pool6: Ipv6Net,
    /// The user id of lease 0.
    pub uid_base: u32,
}

/// What one set of units is known by on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// `02:…`, locally administered.
    pub mac: String,
    /// vsock context id, 3 and above.
    pub cid: u32,
    /// The Unix user (and group) that its VMM runs as.
    pub uid: u32,
    /// The name of its tap: `seed` and the lease, at most 15 characters.
    pub tap: String,
}

impl Address {
    /// The link-local address that its kernel gives itself: EUI-64, from the MAC.
    pub fn link6(&self) -> Ipv6Addr {
        let mut parts = self.mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap_or(0));
        let [a, b, c, d, e, f]: [u8; 6] = std::array::from_fn(|_| parts.next().unwrap_or(0));
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl Addressing {
    /// How many leases there are.
    pub fn capacity(&self) -> u16 {
        let hosts = 1u64 << (32 - u32::from(self.pool4.prefix_len()));
        hosts.saturating_sub(4).min(30_000) as u16
    }
    /// The gateway that every tap has: the first host address.
    pub fn gateway4(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.pool4.network()) + 1)
    }
    /// The gateway that every tap has: `::1` of the prefix.
    pub fn gateway6(&self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.pool6.network()) + 1)
    }
    /// The IPv4 address of the instance that holds `lease`.
    pub fn v4(&self, lease: Lease) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.pool4.network()) + 2 + u32::from(lease.0))
    }
    /// The addresses of the instance that holds `lease`.
    pub fn of(&self, id: &SetId, lease: Lease) -> Address {
        let digest = Sha256::digest(id.to_string().as_bytes());
        // The top bit of the host part is set, so that no name can hash to the gateway.
        let host = u64::from_be_bytes(digest[..8].try_into().expect("eight bytes")) | 1 << 63;
        let mac: Vec<String> = digest[8..13].iter().map(|byte| format!("{byte:02x}")).collect();
        Address {
            v4: self.v4(lease),
            v6: Ipv6Addr::from(u128::from(self.pool6.network()) | u128::from(host)),
            mac: format!("02:{}", mac.join(":")),
            cid: 3 + u32::from(lease.0),
            uid: self.uid_base + u32::from(lease.0),
            tap: format!("seed{}", lease.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::name::{FlakeUri, Slot};

    #[test]
    fn leases_become_addresses_apart_from_the_gateway() {
        let addressing =
            Addressing { pool4: "10.88.0.0/24".parse().unwrap(), pool6: "fd5e:ed00::/64".parse().unwrap(), uid_base: 800_000 };
        let namespace = "silo:x".parse::<FlakeUri>().unwrap().namespace();
        let id = SetId { namespace, name: "web".parse().unwrap(), slot: Slot::A };
        let first = addressing.of(&id, Lease(0));
        assert_eq!((first.v4.to_string(), first.cid, first.uid, first.tap.as_str()), ("10.88.0.2".into(), 3, 800_000, "seed0"));
        let last = addressing.of(&id, Lease(addressing.capacity() - 1));
        assert!(addressing.pool4.contains(&last.v4) && last.v4 < addressing.pool4.broadcast());
        assert!(addressing.pool6.contains(&first.v6) && first.v6 != addressing.gateway6());
        assert_eq!(first.v6, last.v6);
        let beside = addressing.of(&SetId { slot: Slot::B, ..id }, Lease(1));
        assert!(beside.v6 != first.v6 && beside.mac != first.mac, "the set beside it is another machine");
        let mac = Address { mac: "02:cf:b4:9f:e1:1f".into(), ..first };
        assert_eq!(mac.link6(), "fe80::cf:b4ff:fe9f:e11f".parse::<Ipv6Addr>().unwrap());
        assert_eq!(addressing.gateway4().to_string(), "10.88.0.1");
    }
}

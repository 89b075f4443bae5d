//! Nonces: each is good once, for the client that got it. What a client does not use falls out when it has too many; so nobody makes
//! this host remember more than its share, or throws out another's.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

/// Of one client.
const OF_ONE: usize = 64;
/// Clients; there are no more instances than this on a host.
const CLIENTS: usize = 65_536;

/// All nonces that are good.
#[derive(Debug, Default)]
pub struct Nonces(Mutex<BTreeMap<IpAddr, VecDeque<[u8; 16]>>>);

impl Nonces {
    /// A new one.
    pub fn issue(&self, client: IpAddr) -> String {
        let mut nonce = [0; 16];
        aws_lc_rs::rand::fill(&mut nonce).expect("the kernel has randomness");
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= CLIENTS && !all.contains_key(&client) {
            all.pop_first();
        }
        let own = all.entry(client).or_default();
        if own.len() >= OF_ONE {
            own.pop_front();
        }
        own.push_back(nonce);
        BASE64_URL_SAFE_NO_PAD.encode(nonce)
    }

    /// Whether it was good; it is not any more.
    pub fn spend(&self, client: IpAddr, nonce: &str) -> bool {
        let Ok(nonce) = BASE64_URL_SAFE_NO_PAD.decode(nonce) else { return false };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = all.get_mut(&client) else { return false };
        let found = own.iter().position(|known| known[..] == nonce[..]);
        found.is_some_and(|at| own.remove(at).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_and_for_its_client() {
        let (nonces, ann, bob) = (Nonces::default(), IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3]));
        let nonce = nonces.issue(ann);
        assert!(!nonces.spend(bob, &nonce));
        assert!(nonces.spend(ann, &nonce));
        assert!(!nonces.spend(ann, &nonce));
        for wrong in ["", "x", "AAAAAAAAAAAAAAAAAAAAAA", "*"] {
            assert!(!nonces.spend(ann, wrong), "{wrong}");
        }
    }

    #[test]
    fn a_flood_of_one_throws_out_its_own() {
        let (nonces, ann, bob) = (Nonces::default(), IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3]));
        let (first, other) = (nonces.issue(ann), nonces.issue(bob));
        let last = (0..1000).map(|_| nonces.issue(ann)).last().unwrap();
        assert!(!nonces.spend(ann, &first) && nonces.spend(ann, &last) && nonces.spend(bob, &other));
    }
}

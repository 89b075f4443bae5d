//! Cookies of DNS (RFC 7873): who shows the one that it was given has the address that it writes on its questions. It is then not held to
//! the limit for those who may be pretending.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    net::IpAddr,
};

/// How long a cookie is good, in seconds.
const GOOD: u32 = 3600;
/// The client's half and ours.
pub const LENGTH: usize = 24;

/// What our halves are made with. Made anew at each start: then a client gets a new one.
#[derive(Debug, Default)]
pub struct Baker(RandomState);

impl Baker {
    /// The whole cookie for a client's half. `now` is in seconds.
    pub fn bake(&self, client: [u8; 8], from: IpAddr, now: u32) -> [u8; LENGTH] {
        let mut cookie = [0; LENGTH];
        cookie[..8].copy_from_slice(&client);
        // Version 1, as RFC 9018 lays it out.
        cookie[8] = 1;
        cookie[12..16].copy_from_slice(&now.to_be_bytes());
        let mut hasher = self.0.build_hasher();
        cookie[..16].hash(&mut hasher);
        from.hash(&mut hasher);
        cookie[16..].copy_from_slice(&hasher.finish().to_be_bytes());
        cookie
    }

    /// Whether a cookie is one of ours, given to this address not long ago.
    pub fn knows(&self, cookie: &[u8], from: IpAddr, now: u32) -> bool {
        let Ok(given) = <[u8; LENGTH]>::try_from(cookie) else { return false };
        let [a, b, c, d, e, f, g, h, _, _, _, _, t0, t1, t2, t3, ..] = given;
        let at = u32::from_be_bytes([t0, t1, t2, t3]);
        now.wrapping_sub(at) <= GOOD && self.bake([a, b, c, d, e, f, g, h], from, at) == given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_known_again_at_its_address_for_an_hour() {
        let (baker, here): (Baker, IpAddr) = (Baker::default(), [198, 51, 100, 1].into());
        let cookie = baker.bake([7; 8], here, 5000);
        assert!(baker.knows(&cookie, here, 5000) && baker.knows(&cookie, here, 8600));
        assert!(!baker.knows(&cookie, here, 8601), "too old");
        assert!(!baker.knows(&cookie, here, 4999), "from the future");
        assert!(!baker.knows(&cookie, [198, 51, 100, 2].into(), 5000));
        assert!(!baker.knows(&cookie[..8], here, 5000));
        for at in 0..LENGTH {
            let mut other = cookie;
            other[at] ^= 1;
            assert!(!baker.knows(&other, here, 5000), "byte {at}");
        }
        assert!(!Baker::default().knows(&cookie, here, 5000), "another's");
    }
}

//! Strangers at a door: connections that have not proved a key yet. There is a limit for each neighbourhood of addresses and one for
//! all; when it is passed, the one that has waited longest in the most crowded neighbourhood goes. So a flood throws out itself, and
//! a newcomer always gets his chance.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Strangers of one neighbourhood at a time.
const IN_ONE: usize = 32;
/// Strangers at a time.
const IN_ALL: usize = 256;

/// All strangers.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    // By the order in which they came.
    waiting: Mutex<(u64, BTreeMap<u64, (Neighbourhood, CancellationToken)>)>,
}

/// One stranger's place. Given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
}

/// The first 24 bits of an IPv4 address, 48 of IPv6.
type Neighbourhood = u128;

fn neighbourhood(address: IpAddr) -> Neighbourhood {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(u32::from(v4) >> 8),
        IpAddr::V6(v6) => 1 << 64 | u128::from(v6) >> 80,
    }
}

impl Crowd {
    /// Takes a stranger in; `close` is cancelled if he has to go.
    pub fn enter(self: &Arc<Self>, address: IpAddr, close: CancellationToken) -> Place {
        let here = neighbourhood(address);
        let mut waiting = self.lock();
        waiting.0 += 1;
        let number = waiting.0;
        waiting.1.insert(number, (here, close));
        let mut sizes: BTreeMap<Neighbourhood, usize> = BTreeMap::new();
        for (neighbourhood, _) in waiting.1.values() {
            *sizes.entry(*neighbourhood).or_default() += 1;
        }
        let crowded = if sizes[&here] > IN_ONE {
            Some(here)
        } else if waiting.1.len() > IN_ALL {
            sizes.iter().max_by_key(|(_, size)| **size).map(|(neighbourhood, _)| *neighbourhood)
        } else {
            None
        };
        let oldest = waiting.1.iter().find(|(_, (neighbourhood, _))| Some(*neighbourhood) == crowded).map(|(number, _)| *number);
        if let Some((_, close)) = oldest.and_then(|number| waiting.1.remove(&number)) {
            close.cancel();
        }
        Place { crowd: Arc::clone(self), number }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, (Neighbourhood, CancellationToken)>)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.lock().1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_most_crowded_neighbourhood_goes() {
        let crowd = Arc::new(Crowd::default());
        let enter = |address: String| {
            let token = CancellationToken::new();
            (crowd.enter(address.parse().unwrap(), token.clone()), token)
        };
        let other = enter("198.51.100.7".into());
        let flood: Vec<_> = (0..40).map(|n| enter(format!("203.0.113.{n}"))).collect();
        assert!(!other.1.is_cancelled());
        let thrown_out: Vec<bool> = flood.iter().map(|(_, token)| token.is_cancelled()).collect();
        assert_eq!(thrown_out, (0..40).map(|n| n < 8).collect::<Vec<_>>());
        let many: Vec<_> = (0..300).map(|n| enter(format!("2001:db8:{n:x}::1"))).collect();
        assert!(!other.1.is_cancelled() && many.iter().filter(|(_, token)| token.is_cancelled()).count() > 30);
        drop((flood, many, other));
        assert_eq!(crowd.lock().1.len(), 0);
    }
}

//! Strangers at a door: connections that have not proved a key yet. There is a limit for each neighbourhood of addresses and one for
//! all; when it is passed, the one that has waited longest in the most crowded neighbourhood goes. So a flood throws out itself, and
//! a newcomer always gets his chance. Who has proved a key is a guest; of those, too, only so many come from one neighbourhood.

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

/// Guests from one neighbourhood at a time.
const GUESTS_FROM_ONE: usize = 128;
/// Guests at a time.
const GUESTS: usize = 1024;

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    came: u64,
    // By the order in which they came.
    strangers: BTreeMap<u64, (Neighbourhood, CancellationToken)>,
    guests: BTreeMap<Neighbourhood, usize>,
}

/// One connection's place. Given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
    here: Neighbourhood,
    guest: bool,
}

/// The first 24 bits of an IPv4 address, 48 of IPv6.
pub(super) type Neighbourhood = u128;

pub(super) fn neighbourhood(address: IpAddr) -> Neighbourhood {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(u32::from(v4) >> 8),
        IpAddr::V6(v6) => 1 << 64 | u128::from(v6) >> 80,
    }
}

impl Crowd {
    /// Takes a stranger in; `close` is cancelled if he has to go.
    pub fn enter(self: &Arc<Self>, address: IpAddr, close: CancellationToken) -> Place {
        let here = neighbourhood(address);
        let mut state = self.lock();
        state.came += 1;
        let number = state.came;
        state.strangers.insert(number, (here, close));
        let mut sizes: BTreeMap<Neighbourhood, usize> = BTreeMap::new();
        for (neighbourhood, _) in state.strangers.values() {
            *sizes.entry(*neighbourhood).or_default() += 1;
        }
        let crowded = if sizes[&here] > IN_ONE {
            Some(here)
        } else if state.strangers.len() > IN_ALL {
            sizes.iter().max_by_key(|(_, size)| **size).map(|(neighbourhood, _)| *neighbourhood)
        } else {
            None
        };
        let oldest =
            state.strangers.iter().find(|(_, (neighbourhood, _))| Some(*neighbourhood) == crowded).map(|(number, _)| *number);
        if let Some((_, close)) = oldest.and_then(|number| state.strangers.remove(&number)) {
            close.cancel();
        }
        Place { crowd: Arc::clone(self), number, here, guest: false }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Makes the stranger a guest. False if there are too many.
    pub fn welcome(&mut self) -> bool {
        let mut state = self.crowd.lock();
        state.strangers.remove(&self.number);
        let all: usize = state.guests.values().sum();
        let from_here = state.guests.entry(self.here).or_default();
        if *from_here >= GUESTS_FROM_ONE || all >= GUESTS {
            return false;
        }
        *from_here += 1;
        self.guest = true;
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.crowd.lock();
        state.strangers.remove(&self.number);
        if self.guest
            && let Some(count) = state.guests.get_mut(&self.here)
        {
            *count -= 1;
        }
        state.guests.retain(|_, count| *count > 0);
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
        assert_eq!(crowd.lock().strangers.len(), 0);
    }

    #[test]
    fn guests_are_counted_while_they_stay() {
        let crowd = Arc::new(Crowd::default());
        let guest = |n: usize| {
            let mut place = crowd.enter([203, 0, 113, n as u8].into(), CancellationToken::new());
            let welcome = place.welcome();
            (place, welcome)
        };
        let mut guests: Vec<_> = (0..130).map(guest).collect();
        assert_eq!(guests.iter().filter(|(_, welcome)| *welcome).count(), GUESTS_FROM_ONE);
        guests.truncate(100);
        assert!(guest(0).1);
        drop(guests);
        assert!(crowd.lock().guests.is_empty() && crowd.lock().strangers.is_empty());
    }
}

//! How many programs run for clients at a time: in all, and for one neighbourhood of addresses, so that nobody keeps the others out by
//! taking his time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::crowd::{Neighbourhood, neighbourhood};

/// How long a client waits for a slot.
const PATIENCE: Duration = Duration::from_secs(30);

/// All slots of one kind.
#[derive(Debug)]
pub struct Slots {
    all: Arc<Semaphore>,
    of_one: usize,
    patience: Duration,
    of: Mutex<BTreeMap<Neighbourhood, Arc<Semaphore>>>,
}

/// A slot; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("this host serves as many clones and pushes to your network as it can: try again in a minute")]
    Neighbourhood,
    #[error("this host serves as many clones and pushes as it can: try again in a minute")]
    All,
}

impl Slots {
    /// So many in all, and for one neighbourhood.
    pub fn new(all: usize, of_one: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_one, patience: PATIENCE, of: Mutex::default() }
    }

    /// Waits for a slot, for a while. Clients of unknown addresses are one neighbourhood.
    pub async fn take(&self, client: Option<IpAddr>) -> Result<Slot, Full> {
        let here = neighbourhood(client.unwrap_or(Ipv6Addr::UNSPECIFIED.into()));
        let own = {
            let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            of.retain(|_, slots| Arc::strong_count(slots) > 1);
            Arc::clone(of.entry(here).or_insert_with(|| Arc::new(Semaphore::new(self.of_one))))
        };
        let Ok(Ok(own)) = timeout(self.patience, own.acquire_owned()).await else { return Err(Full::Neighbourhood) };
        let Ok(Ok(all)) = timeout(self.patience, Arc::clone(&self.all).acquire_owned()).await else { return Err(Full::All) };
        Ok(Slot { _own: own, _all: all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_neighbourhood_leaves_room_for_another_and_what_is_given_back_can_be_taken() {
        let slots = Slots { patience: Duration::from_millis(50), ..Slots::new(3, 2) };
        let [ann, bob] = ["192.0.2.7", "198.51.100.7"].map(|address| Some(address.parse().unwrap()));
        let held = [slots.take(ann).await.unwrap(), slots.take(Some("192.0.2.8".parse().unwrap())).await.unwrap()];
        assert_eq!(slots.take(ann).await.unwrap_err(), Full::Neighbourhood);
        let _his = slots.take(bob).await.unwrap();
        assert_eq!(slots.take(bob).await.unwrap_err(), Full::All);
        drop(held);
        let _hers = slots.take(ann).await.unwrap();
        let _his = slots.take(bob).await.unwrap();
    }
}

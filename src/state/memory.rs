//! A store made of memory, for tests: it remembers as long as someone holds it, and can be told to fail.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::state::{Batch, Memory, State, StateError};

/// A store that forgets. Clones share what they remember, so that a test can stop an agent and start another one.
#[derive(Debug, Clone, Default)]
pub struct MemoryState {
    memory: Arc<Mutex<Memory>>,
    failing: Arc<AtomicBool>,
    stall: Arc<Mutex<Option<Stall>>>,
}

/// A commit that never returns.
#[derive(Debug, Clone, Copy)]
struct Stall {
    /// How many commits come before it.
    after: usize,
    /// Whether what it writes is remembered all the same.
    applied: bool,
    reached: bool,
}

impl MemoryState {
    /// A store that remembers this.
    pub fn with(memory: Memory) -> Self {
        Self { memory: Arc::new(Mutex::new(memory)), failing: Arc::default(), stall: Arc::default() }
    }

    /// What is remembered now.
    pub fn memory(&self) -> Memory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets `after` more commits return, and none after them: whoever commits stands still as if killed there, before or after the
    /// next was `applied`.
    pub fn stall(&self, after: usize, applied: bool) {
        *self.stall.lock().unwrap_or_else(PoisonError::into_inner) = Some(Stall { after, applied, reached: false });
    }

    /// Whether a commit stands still.
    pub fn stalled(&self) -> bool {
        self.stall.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|stall| stall.reached)
    }

    /// Commits return again; what stands still goes on standing.
    pub fn go_on(&self) {
        *self.stall.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether this commit returns, and whether it is applied.
    fn pass(&self) -> (bool, bool) {
        let mut stall = self.stall.lock().unwrap_or_else(PoisonError::into_inner);
        match stall.as_mut() {
            None => (true, true),
            Some(Stall { after: after @ 1.., .. }) => {
                *after -= 1;
                (true, true)
            }
            Some(stall) => {
                let applied = stall.applied && !stall.reached;
                stall.reached = true;
                (false, applied)
            }
        }
    }

    /// Makes every commit fail from now on, as a full disk would, or stops that.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }
}

impl State for MemoryState {
    async fn load(&self) -> Result<Memory, StateError> {
        Ok(self.memory())
    }

    async fn commit(&self, batch: Batch) -> Result<(), StateError> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(StateError::Sync(std::io::ErrorKind::StorageFull.into()));
        }
        let (returns, applied) = self.pass();
        if applied {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            batch.into_iter().for_each(|change| memory.apply(change));
        }
        if !returns {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spec::address::Lease, state::Change};

    #[tokio::test]
    async fn a_clone_remembers_the_same_and_a_failing_commit_changes_nothing() {
        let state = MemoryState::default();
        let id: crate::spec::name::SetId = "s-aaaaaaaaaaaa/web".parse().expect("valid");
        state.commit(vec![Change::Lease(id.clone(), Some(Lease(3)))]).await.expect("memory has room");
        state.fail(true);
        state.commit(vec![Change::Lease(id.clone(), None)]).await.expect_err("told to fail");
        assert_eq!(state.clone().load().await.expect("memory can be read").leases[&id], Lease(3));
    }
}

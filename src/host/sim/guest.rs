//! How a guest of the machine made of memory is doing, in systemd's words.

use super::SimInstance;
use crate::{host::Guest, plan::UnitState, spec::name::SetId};

impl SimInstance {
    pub(super) fn guest(&self, id: &SetId) -> Guest {
        let (active, sub, status) = match self.vm {
            UnitState::Inactive => ("inactive", "dead", ""),
            UnitState::Activating => ("activating", "start", "booting: sysinit.target reached"),
            UnitState::Active => ("active", "running", "running"),
            UnitState::Deactivating => ("deactivating", "stop-sigterm", "running"),
            UnitState::Failed => ("failed", "failed", ""),
        };
        Guest {
            id: Some(id.clone()),
            active_state: active.into(),
            sub_state: sub.into(),
            status_text: status.into(),
            result: if self.result.is_empty() { "success".into() } else { self.result.clone() },
            since: self.since,
            restarts: self.restarts,
        }
    }
}

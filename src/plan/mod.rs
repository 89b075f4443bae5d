//! What must change: the difference between what was rendered and what was observed, as steps in the order they must be made.

pub mod observed;
pub mod step;

pub use observed::{Observed, ObservedInstance, UnitState};
pub use step::Step;

use crate::render::{Layout, Target};

/// The steps from `observed` to `target`, in a total order. Every step that belongs to an instance names it, and the steps of
/// different instances do not depend on each other; steps of the host come first (before) or last (after) as they stand.
pub fn plan(target: &Target, observed: &Observed, layout: &Layout) -> Vec<Step> {
    let _ = (target, observed, layout);
    Vec::new()
}

//! What must change: the difference between what was rendered and what was observed, as steps in the order they must be made.
//!
//! Equal texts mean an untouched instance. Nothing here is remembered from one plan to the next: a plan that was cut short after any
//! step is followed by another, from what is there then. A helper that fails at every start therefore makes the same plan every time:
//! whoever carries plans out waits longer from one try to the next.

mod ingress;
pub mod observed;
pub mod rollout;
pub mod step;

pub use observed::{Observed, ObservedIngress, ObservedInstance, RunningIngress, Tap, UnitState};
pub use step::{MapChange, Step};

use crate::{
    render::{InstanceTarget, Target, Unit, vm_unit},
    spec::name::SetId,
};

/// The steps from `observed` to `target`, in a total order.
///
/// A step of the host stands before all others: the firewall is in force before anything that it protects starts, and what is to be
/// removed loses its network a moment before it stops, as what is to be stopped loses its visitors. Then come the steps of what is not wanted, then those of what is. Every one of
/// them names its instance; the steps of one instance must be made in order, the steps of different instances do not depend on each
/// other. That presumes that no wanted instance has the lease of one that is still there: a lease is free when its instance is gone
/// from what was observed.
pub fn plan(target: &Target, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    if observed.firewall.as_ref() != Some(&target.firewall) {
        steps.push(Step::ApplyFirewall(target.firewall.clone()));
    }
    // Before anything is started that they are to hold.
    if observed.slices != target.slices {
        steps.push(Step::LimitSlices(target.slices.clone()));
    }
    let host = steps.len();
    for (id, there) in &observed.instances {
        if !target.instances.contains_key(id) {
            remove(&mut steps, id, there);
        }
    }
    let nothing = ObservedInstance::default();
    for (id, wanted) in &target.instances {
        converge(&mut steps, id, wanted, observed.instances.get(id).unwrap_or(&nothing));
    }
    if let Some(step) = ingress::route(target, observed, &steps) {
        steps.insert(host, step);
    }
    steps
}

/// Takes away what is there of an instance; its volumes are kept aside.
fn remove(steps: &mut Vec<Step>, id: &SetId, there: &ObservedInstance) {
    if runs_or_failed(there) {
        steps.push(stop(id, &[], there));
    }
    let retired = there.volumes.keys().map(|name| Step::RetireVolume { id: id.clone(), name: name.clone() });
    steps.extend(retired);
    if !there.units.is_empty() || !there.files.is_empty() || there.tap.is_some() || there.started {
        let units = there.units.keys().cloned().collect();
        steps.push(Step::RemoveInstance { id: id.clone(), units, tap: there.tap.as_ref().map(|tap| tap.name.clone()) });
    }
}

/// Makes a wanted instance what it should be, and leaves it alone if it is.
fn converge(steps: &mut Vec<Step>, id: &SetId, wanted: &InstanceTarget, there: &ObservedInstance) {
    let written = is_written(wanted, there);
    let tap_fits = there.tap.as_ref() == Some(&Tap::of(&wanted.address));
    let grows = wanted.volumes.iter().any(|(name, size)| there.volumes.get(name).is_some_and(|have| have < size));

    if written && tap_fits && !grows {
        match there.vm {
            UnitState::Inactive if !wanted.runs && !there.helper_failed => return retire_dropped(steps, id, wanted, there),
            _ if !wanted.runs => {}
            // systemd is at work, or has given up: that is for a person or a newer version to change.
            UnitState::Activating | UnitState::Deactivating | UnitState::Failed => return retire_dropped(steps, id, wanted, there),
            UnitState::Active if !there.helper_failed => return retire_dropped(steps, id, wanted, there),
            // Somebody stopped it, and may start it again.
            UnitState::Inactive if there.started && !there.helper_failed => return retire_dropped(steps, id, wanted, there),
            UnitState::Active | UnitState::Inactive => {}
        }
    }
    if runs_or_failed(there) {
        steps.push(stop(id, &wanted.units, there));
    }
    retire_dropped(steps, id, wanted, there);
    for (name, size) in &wanted.volumes {
        let (id, name, size) = (id.clone(), name.clone(), *size);
        match there.volumes.get(&name) {
            None => steps.push(Step::CreateVolume { id, name, size, uid: wanted.address.uid }),
            Some(have) if *have < size => steps.push(Step::GrowVolume { id, name, size }),
            // A volume never shrinks.
            Some(_) => {}
        }
    }
    if !tap_fits {
        steps.push(Step::CreateTap { id: id.clone(), address: wanted.address.clone() });
    }
    if !written {
        let stale = there.units.keys().filter(|name| !wanted.units.iter().any(|unit| unit.name == **name)).cloned().collect();
        let (units, files) = (wanted.units.clone(), wanted.files.clone());
        steps.push(Step::Write { id: id.clone(), units, files, remove: stale, uid: wanted.address.uid });
    }
    if wanted.runs {
        steps.push(Step::Start { id: id.clone(), unit: vm_unit(id) });
    }
}

/// Sets aside the volumes that are there and not declared: what runs was not given them.
fn retire_dropped(steps: &mut Vec<Step>, id: &SetId, wanted: &InstanceTarget, there: &ObservedInstance) {
    let dropped = there.volumes.keys().filter(|name| !wanted.volumes.contains_key(*name));
    steps.extend(dropped.map(|name| Step::RetireVolume { id: id.clone(), name: name.clone() }));
}

/// Whether the units, and no others, and the files are there to the byte.
fn is_written(wanted: &InstanceTarget, there: &ObservedInstance) -> bool {
    let units = wanted.units.iter().all(|unit| there.units.get(&unit.name) == Some(&unit.text));
    let files = wanted.files.iter().all(|file| there.files.get(&file.path) == Some(&file.text));
    units && files && wanted.units.len() == there.units.len()
}

fn runs_or_failed(there: &ObservedInstance) -> bool {
    there.vm != UnitState::Inactive || there.helper_failed
}

/// Stops every unit that may be loaded: those on the disk, and those wanted, whose files somebody may have removed. The vm unit first.
fn stop(id: &SetId, wanted: &[Unit], there: &ObservedInstance) -> Step {
    let vm = vm_unit(id);
    let mut rest: Vec<String> = there.units.keys().cloned().chain(wanted.iter().map(|unit| unit.name.clone())).collect();
    rest.retain(|name| *name != vm);
    rest.sort();
    rest.dedup();
    Step::Stop { id: id.clone(), units: std::iter::once(vm).chain(rest).collect(), kill: there.helper_failed }
}

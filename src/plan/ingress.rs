//! Which instance the names lead to now: those that are ready, and are to stay so.

use std::collections::{BTreeMap, BTreeSet};

use super::{MapChange, Observed, ObservedIngress, RunningIngress, Step, UnitState};
use crate::{
    render::{
        InstanceTarget, Target,
        ingress::{Condition, Map, Maps},
    },
    spec::name::SetId,
};

/// The step that has the ingress lead where it should, if it does not; `steps` are those of the instances.
pub(super) fn route(target: &Target, observed: &Observed, steps: &[Step]) -> Option<Step> {
    let ingress = target.ingress.as_ref()?;
    let stopping: BTreeSet<&SetId> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Stop { id, .. } => Some(id),
            _ => None,
        })
        .collect();
    let maps = ingress.maps(|id| condition(id, target.instances.get(id), observed, stopping.contains(id)));
    let ObservedIngress { files, running, .. } = &observed.ingress;
    let digest = ingress.digest();
    let reload = running.as_ref().filter(|running| running.digest != digest).map(|_| digest);
    // Also where it is to read its files anew: should it refuse to, names lead nowhere that they must not.
    let changes = running.iter().flat_map(|running| changes(running, &maps)).collect::<Vec<_>>();
    let files: Vec<_> = ingress.files(&maps).into_iter().filter(|file| files.get(&file.path) != Some(&file.text)).collect();
    (reload.is_some() || !changes.is_empty() || !files.is_empty()).then_some(Step::Route { files, reload, changes })
}

/// What an instance can do for whoever comes. One that is about to be stopped is not ready any more.
fn condition(id: &SetId, wanted: Option<&InstanceTarget>, observed: &Observed, stops: bool) -> Condition {
    let nothing = super::ObservedInstance::default();
    let there = observed.instances.get(id).unwrap_or(&nothing);
    let Some(wanted) = wanted else { return Condition::Stopped };
    match there.vm {
        UnitState::Active if !stops => Condition::Ready(wanted.address.v4),
        UnitState::Active | UnitState::Deactivating => Condition::Stopping,
        _ if !wanted.runs => Condition::Stopped,
        UnitState::Failed if !stops => Condition::Failed,
        // A person stopped it.
        UnitState::Inactive if there.started && !stops => Condition::Stopped,
        UnitState::Activating | UnitState::Inactive | UnitState::Failed => Condition::Booting,
    }
}

/// What has to change in the maps that HAProxy has in its memory.
fn changes(running: &RunningIngress, wanted: &Maps) -> Vec<MapChange> {
    let mut changes = Vec::new();
    let none = BTreeMap::new();
    for map in Map::ALL {
        let wanted = wanted.get(&map).unwrap_or(&none);
        let mut there: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, value) in running.maps.get(&map).into_iter().flatten() {
            there.entry(name).or_default().push(value);
        }
        for (name, values) in &there {
            // A name that is there twice was added while HAProxy read it from the file: it begins anew.
            if !wanted.contains_key(*name) || values.len() > 1 {
                changes.push(MapChange::Remove { map, name: (*name).to_owned() });
            }
        }
        for (name, value) in wanted {
            let (name, value) = (name.clone(), value.clone());
            match there.get(name.as_str()).map(Vec::as_slice) {
                Some([one]) if *one == value => {}
                Some([_]) => changes.push(MapChange::Set { map, name, value }),
                _ => changes.push(MapChange::Add { map, name, value }),
            }
        }
    }
    changes
}

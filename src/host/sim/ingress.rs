//! The ingress of the machine made of memory: its files, and what HAProxy has of them while it runs.

use super::Sim;
use crate::{
    plan::{MapChange, ObservedIngress, RunningIngress, Step},
    render::ingress::Map,
};

impl Sim {
    /// HAProxy starts, and reads its files.
    pub fn start_ingress(&self) {
        let mut machine = self.lock();
        machine.ingress.start();
        drop(machine);
        self.changed.notify_one();
    }

    /// From now on HAProxy takes no changes, or does again.
    pub fn fail_routes(&self, fail: bool) {
        self.lock().ingress.fails = fail;
    }

    /// HAProxy dies.
    pub fn kill_ingress(&self) {
        self.lock().ingress.there.running = None;
        self.changed.notify_one();
    }
}

/// The files, what HAProxy has, and whether it takes changes.
#[derive(Default)]
pub(super) struct Ingress {
    pub there: ObservedIngress,
    pub fails: bool,
}

impl Ingress {
    fn start(&mut self) {
        self.there.running = Some(started(&self.there));
    }

    /// Carries out the step that is for the ingress.
    pub fn route(&mut self, step: &Step) -> Result<(), &'static str> {
        let Step::Route { files, reload, changes } = step else { return Ok(()) };
        self.there.files.extend(files.iter().map(|file| (file.path.clone(), file.text.clone())));
        if self.fails {
            return Err("HAProxy does not take it");
        }
        changes.iter().try_for_each(|change| self::change(&mut self.there, change))?;
        if reload.is_some() {
            self.start();
        }
        Ok(())
    }
}

/// What HAProxy has when it has read the files.
fn started(ingress: &ObservedIngress) -> RunningIngress {
    let text = |name: &str| ingress.files.iter().find(|(path, _)| path.ends_with(name)).map_or("", |(_, text)| text);
    let words = |line: &str| line.split_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let lines = |name| text(name).lines().filter_map(words).collect();
    let maps = [(Map::Https, "https.map"), (Map::Http, "http.map"), (Map::Away, "away.map")];
    let digest = text("haproxy.cfg").lines().find_map(|line| line.trim().strip_prefix("description "));
    RunningIngress {
        digest: digest.unwrap_or_default().to_owned(),
        maps: maps.into_iter().map(|(map, name)| (map, lines(name))).collect(),
    }
}

fn change(ingress: &mut ObservedIngress, change: &MapChange) -> Result<(), &'static str> {
    let running = ingress.running.as_mut().ok_or("HAProxy does not run")?;
    let (MapChange::Add { map, name, .. } | MapChange::Set { map, name, .. } | MapChange::Remove { map, name }) = change;
    let lines = running.maps.entry(*map).or_default();
    let count = lines.iter().filter(|(key, _)| key == name).count();
    match change {
        MapChange::Add { value, .. } if count == 0 => lines.push((name.clone(), value.clone())),
        MapChange::Set { value, .. } if count == 1 => {
            lines.iter_mut().filter(|(key, _)| key == name).for_each(|line| line.1.clone_from(value));
        }
        MapChange::Remove { .. } if count > 0 => lines.retain(|(key, _)| key != name),
        _ => return Err("the map does not have that line"),
    }
    Ok(())
}

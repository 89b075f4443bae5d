//! What a person means by a name: which instances they may see, and which of them `web`, `my-app/web` or `s-…/web` is.

use super::now;
use crate::{
    bus::Refusal,
    spec::{
        access::{self, Principal, Reach, Verb},
        name::{FlakeUri, InstanceId},
    },
    state::{Memory, Plant},
};

/// How far `who` may do `verb` to what was planted as `plant`.
pub fn reach(memory: &Memory, who: &Principal, verb: Verb, plant: &Plant) -> Reach {
    match memory.repository_of(plant) {
        Some(repository) => access::reach(who, verb, repository, now()),
        None if *who == Principal::Operator => Reach::Everything,
        None => Reach::Nothing,
    }
}

/// Whether `who` may do `verb` to all of what was planted as `plant`.
pub fn may(memory: &Memory, who: &Principal, verb: Verb, plant: &Plant) -> bool {
    reach(memory, who, verb, plant) == Reach::Everything
}

/// Whether there is anything in `plant` that `who` may see.
fn is_seen(memory: &Memory, who: &Principal, plant: &Plant) -> bool {
    reach(memory, who, Verb::See, plant) != Reach::Nothing
}

/// The plants of which `who` may see something, those that match `filter` (a repository or a namespace) or all if it is empty. Of a
/// plant's instances, those within [`reach`] are shown.
pub fn plants<'a>(memory: &'a Memory, who: &Principal, filter: &str) -> Result<Vec<&'a Plant>, Refusal> {
    let visible: Vec<&Plant> = memory.plants.values().filter(|plant| is_seen(memory, who, plant)).collect();
    if filter.is_empty() {
        return Ok(visible);
    }
    let found: Vec<&Plant> = visible.iter().copied().filter(|plant| is_called(plant, filter)).collect();
    if found.is_empty() {
        if let Some(refusal) = unplanted(memory, who, filter) {
            return Err(refusal);
        }
        let names = visible.iter().map(|plant| repository(plant));
        return Err(Refusal::NotFound(format!("you have no repository {filter:?}{}", candidates(names))));
    }
    Ok(found)
}

/// The one instance that `who` calls `name` and may do `verb` to.
pub fn instance(memory: &Memory, who: &Principal, verb: Verb, name: &str) -> Result<InstanceId, Refusal> {
    // A flake has slashes of its own (github:user/repo/web); an instance has none.
    let (place, wanted) = name.rsplit_once('/').map_or((None, name), |(place, wanted)| (Some(place), wanted));
    let mut found = Vec::new();
    let mut all = Vec::new();
    for plant in memory.plants.values() {
        let seen = reach(memory, who, Verb::See, plant);
        let Some(deployment) = memory.wants.get(&plant.namespace) else { continue };
        for instance in deployment.instances.keys().filter(|instance| seen.includes(instance)) {
            let full = format!("{}/{instance}", repository(plant));
            if instance.as_str() == wanted && place.is_none_or(|place| is_called(plant, place)) {
                found.push((full.clone(), InstanceId { namespace: plant.namespace.clone(), name: instance.clone() }));
            }
            all.push(full);
        }
    }
    match found.len() {
        1 => {
            let (full, id) = found.remove(0);
            let plant = memory.plants.get(&id.namespace);
            match plant.is_some_and(|plant| reach(memory, who, verb, plant).includes(&id.name)) {
                true => Ok(id),
                false => Err(Refusal::Denied(format!(
                    "your key may look at {full}, but not do this: ask for another role in its .authorized_keys"
                ))),
            }
        }
        0 => Err(place
            .and_then(|place| unplanted(memory, who, place))
            .unwrap_or_else(|| Refusal::NotFound(format!("you have no instance {name:?}{}", candidates(all.into_iter()))))),
        _ => {
            let names = found.into_iter().map(|(full, _)| full);
            Err(Refusal::NotFound(format!("{name:?} is ambiguous{}", candidates(names))))
        }
    }
}

/// What to say of a repository that `who` may see, if nothing runs because it is not planted (any more).
fn unplanted(memory: &Memory, who: &Principal, name: &str) -> Option<Refusal> {
    let mut all = memory.repos.values();
    let repository = all.find(|repository| repository.name.as_str() == name && access::may(who, Verb::See, repository, now()))?;
    let uri = FlakeUri::Silo(repository.name.clone());
    let is_planted = memory.plants.contains_key(&uri.namespace());
    (!is_planted).then(|| Refusal::NotFound(format!("{name} is not planted, so nothing of it runs here: plant {uri} CODE")))
}

/// The name of the repository that was planted.
pub fn repository(plant: &Plant) -> String {
    plant.uri.repository().to_owned()
}

/// What it is called in the record of who did what: what is elsewhere by its whole URI, which no repository of this host can be called.
pub fn recorded(plant: &Plant) -> String {
    match &plant.uri {
        FlakeUri::Silo(name) => name.to_string(),
        FlakeUri::Remote(_) => plant.uri.to_string(),
    }
}

fn is_called(plant: &Plant, name: &str) -> bool {
    plant.namespace.as_str() == name || repository(plant) == name || plant.uri.to_string() == name
}

fn candidates(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    names.sort();
    let more = names.len().saturating_sub(20);
    names.truncate(20);
    match (names.is_empty(), more) {
        (true, _) => "; you have none yet: push a repository and `plant` it (`help` says how)".to_owned(),
        (false, 0) => format!("; there is {}", names.join(", ")),
        (false, more) => format!("; there is {} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::samples,
        spec::{
            access::{Repository, fingerprint},
            name::FlakeUri,
        },
    };

    fn memory() -> (Memory, Principal) {
        let mut memory = Memory::default();
        let ann = fingerprint(b"ann");
        for (name, owner, instances) in
            [("one", &ann, vec!["web", "api"]), ("two", &ann, vec!["web"]), ("secret", &fingerprint(b"bob"), vec!["db"])]
        {
            let uri: FlakeUri = format!("silo:{name}").parse().unwrap();
            let repo = Repository::new(name.parse().unwrap(), owner.clone(), 0);
            memory.repos.insert(repo.name.clone(), repo);
            let namespace = uri.namespace();
            let plant = Plant { hash: uri.hash(), uri, namespace: namespace.clone(), by: owner.clone(), at: 0 };
            memory.plants.insert(namespace.clone(), plant);
            memory.wants.insert(namespace, samples::deployment(&instances));
        }
        (memory, Principal::Key(ann))
    }

    #[test]
    fn an_instance_is_found_by_its_name_or_the_candidates_are_listed() {
        let (memory, ann) = memory();
        assert_eq!(instance(&memory, &ann, Verb::See, "api").unwrap().name.as_str(), "api");
        assert_eq!(
            instance(&memory, &ann, Verb::See, "two/web").unwrap().namespace,
            "silo:two".parse::<FlakeUri>().unwrap().namespace()
        );
        let said = |name: &str| instance(&memory, &ann, Verb::See, name).unwrap_err().to_string();
        assert!(said("web").contains("ambiguous; there is one/web, two/web"), "{}", said("web"));
        assert!(said("nope").contains("there is one/api, one/web, two/web"), "{}", said("nope"));
        assert!(instance(&memory, &Principal::Operator, Verb::See, "db").is_ok());
    }

    #[test]
    fn who_has_a_repository_that_is_not_planted_is_not_told_that_there_is_none() {
        let (mut memory, ann) = memory();
        memory.plants.remove(&"silo:one".parse::<FlakeUri>().unwrap().namespace());
        memory.plants.remove(&"silo:secret".parse::<FlakeUri>().unwrap().namespace());
        let [own, anothers] = ["one", "secret"].map(|name| {
            let place = plants(&memory, &ann, name).unwrap_err();
            (place, instance(&memory, &ann, Verb::See, &format!("{name}/web")).unwrap_err())
        });
        for refusal in [&own.0, &own.1] {
            assert!(matches!(refusal, Refusal::NotFound(text) if text.contains("plant silo:one CODE")), "{refusal}");
        }
        for refusal in [&anothers.0, &anothers.1] {
            assert!(!refusal.to_string().contains("not planted"), "{refusal}");
        }
    }

    #[test]
    fn what_belongs_to_another_is_not_even_named() {
        let (memory, ann) = memory();
        let said = instance(&memory, &ann, Verb::See, "db").unwrap_err().to_string();
        assert!(!said.contains("secret"), "{said}");
        assert_eq!(plants(&memory, &ann, "").unwrap().len(), 2);
        assert!(plants(&memory, &ann, "secret").is_err());
        assert!(plants(&memory, &Principal::Key(fingerprint(b"new")), "").unwrap().is_empty());
    }
}

//! Names of tenants' own: who claims which, and what follows from what the doors saw of them in the DNS. What a look means is decided in
//! [`crate::spec::domain`]; here it is remembered, all claims to one name in one batch.

use std::collections::BTreeMap;

use super::{
    Agent, now,
    request::{Reply, invalid, json, principal},
    resolve,
};
use crate::{
    build::Builder,
    bus::{
        Refusal,
        domain::{DomainList, DomainStatus, Due, Seen},
    },
    host::Host,
    spec::{
        access::{Principal, Verb},
        domain::{self, Claim, Origin, Records, Stage},
        instance::Instance,
        name::{CustomDomain, InstanceId, InstanceName, Namespace},
    },
    state::{Batch, Change, Memory, Secret, State},
};

/// The longest that the doors wait before they ask again what is due, and how many names they are told at once.
const PAUSE: u64 = 600;
const AT_ONCE: usize = 256;
/// How many of those may be one namespace's, so that no namespace keeps the others waiting.
const OF_ONE: usize = 32;

/// A question of this kind, in plain text as it came over the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    Add { who: String, instance: String, name: String },
    Remove { who: String, name: String },
    List { who: String, filter: String },
    Due,
    Seen { report: String },
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    pub(super) async fn domain(&mut self, question: Question) -> Result<Reply, Refusal> {
        match question {
            Question::Add { who, instance, name } => self.add_domain(&who, &instance, &name).await,
            Question::Remove { who, name } => self.remove_domain(&who, &name).await,
            Question::List { who, filter } => self.list_domains(&who, &filter),
            Question::Due => Ok(json(&self.due_domains())),
            Question::Seen { report } => self.seen_domains(&report).await,
        }
    }

    async fn add_domain(&mut self, who: &str, instance: &str, name: &str) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let id = resolve::instance(&self.memory, &who, Verb::Act, instance)?;
        let name: CustomDomain = name.parse().map_err(invalid)?;
        may_write(&self.memory, &who, &id.namespace)?;
        if let Some(what) = domain::refused(&name, &self.shared.settings.layout.domain) {
            return Err(Refusal::Invalid(what));
        }
        let claim = match self.memory.domains.get(&name).and_then(|claims| claims.get(&id.namespace)) {
            Some(claim) if claim.origin == Origin::Flake && claim.instance != id.name => {
                let what = format!("the flake gives {name} to {}: change seed.domains there, and push", claim.instance);
                return Err(Refusal::Invalid(what));
            }
            Some(claim) => Claim { instance: id.name.clone(), ..claim.due(now()) },
            None => {
                let mine = self.memory.domains.values().filter_map(|claims| claims.get(&id.namespace));
                let (all, same) = mine.fold((0, 0), |(all, same), claim| (all + 1, same + usize::from(claim.instance == id.name)));
                if all >= domain::OF_NAMESPACE || same >= domain::OF_INSTANCE {
                    return Err(Refusal::Invalid(format!(
                        "{} has {same} names, and its namespace {all}: an instance may have {} and a namespace {}; domain remove makes room",
                        id.name,
                        domain::OF_INSTANCE,
                        domain::OF_NAMESPACE
                    )));
                }
                Claim::new(id.name.clone(), Origin::Added, now())
            }
        };
        let mut batch = self.secret_for_domains()?;
        batch.push(Change::Domain(name.clone(), id.namespace.clone(), Some(claim)));
        self.commit_domains(batch, vec![name.clone()]).await?;
        let one = self.memory.domains.get(&name).and_then(|claims| claims.get(&id.namespace));
        let domains = one.map(|claim| self.domain_status(&name, &id.namespace, claim)).into_iter().collect();
        Ok(json(&DomainList { version: 1, domains }))
    }

    async fn remove_domain(&mut self, who: &str, name: &str) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let (name, namespace) = claimed(&self.memory, &who, name)?;
        may_write(&self.memory, &who, &namespace)?;
        let claim = self.memory.domains.get(&name).and_then(|claims| claims.get(&namespace));
        if let Some(claim) = claim.filter(|claim| claim.origin == Origin::Flake) {
            return Err(Refusal::Invalid(format!(
                "the flake says that {} has {name}: remove it from seed.domains there, and push",
                claim.instance
            )));
        }
        let mut batch = vec![Change::Domain(name.clone(), namespace, None)];
        // Who waits for it should not wait longer.
        batch.extend(self.look_again(&name));
        self.commit_domains(batch, vec![name]).await?;
        Ok(Reply::Nothing)
    }

    fn list_domains(&self, who: &str, filter: &str) -> Result<Reply, Refusal> {
        let who = principal(who)?;
        let plants = resolve::plants(&self.memory, &who, filter)?;
        let seen = |namespace: &Namespace, claim: &Claim| {
            let plant = plants.iter().find(|plant| plant.namespace == *namespace);
            plant.is_some_and(|plant| resolve::reach(&self.memory, &who, Verb::See, plant).includes(&claim.instance))
        };
        let claims = self.memory.domains.iter().flat_map(|(name, claims)| claims.iter().map(move |(ns, claim)| (name, ns, claim)));
        let mut domains: Vec<DomainStatus> = claims
            .filter(|(_, namespace, claim)| seen(namespace, claim))
            .map(|(name, namespace, claim)| self.domain_status(name, namespace, claim))
            .collect();
        domains.sort_by(|a, b| (&a.instance, &a.name).cmp(&(&b.instance, &b.name)));
        Ok(json(&DomainList { version: 1, domains }))
    }

    fn due_domains(&self) -> Due {
        let now = now();
        let next = |claims: &BTreeMap<Namespace, Claim>| claims.values().map(|claim| claim.next).min().unwrap_or(u64::MAX);
        let due = self.memory.domains.iter().filter(|(_, claims)| next(claims) <= now);
        let mut due: Vec<_> = due.map(|(name, claims)| (next(claims), name, claims)).collect();
        // Who has waited longest comes first.
        due.sort_by_key(|(next, name, _)| (*next, *name));
        let mut given: BTreeMap<&Namespace, usize> = BTreeMap::new();
        let due = due.into_iter().filter(|(_, _, claims)| {
            // Whoever claims it, it counts as one of theirs.
            let room = claims.keys().any(|namespace| given.get(namespace).is_none_or(|given| *given < OF_ONE));
            claims.keys().for_each(|namespace| *given.entry(namespace).or_default() += 1);
            room
        });
        let later = self.memory.domains.values().map(next).filter(|next| *next > now).min();
        Due {
            names: due.map(|(_, name, _)| name.to_string()).take(AT_ONCE).collect(),
            turn: *self.due.borrow(),
            pause: later.map_or(PAUSE, |later| (later - now).clamp(1, PAUSE)),
        }
    }

    async fn seen_domains(&mut self, report: &str) -> Result<Reply, Refusal> {
        let Seen { name, turn, sight } = serde_json::from_str(report).map_err(|error| {
            Refusal::Invalid(format!("this cannot be read ({error}): the agent and the doors are of different versions"))
        })?;
        let name: CustomDomain = name.parse().map_err(invalid)?;
        // Somebody has asked for a look since that one began, or nobody claims it any more.
        let old = self.asked.get(&name).is_some_and(|asked| turn < *asked);
        let Some(claims) = self.memory.domains.get(&name).filter(|_| !old) else { return Ok(Reply::Nothing) };
        let mut verdicts = BTreeMap::new();
        let mut looked = claims.clone();
        for (namespace, claim) in &mut looked {
            let records = self.records(&name, namespace, &claim.instance);
            let (verdict, saw) = domain::judge(&records, &sight);
            claim.saw = saw;
            claim.delegated = domain::delegated(&records.acme, &sight.acme).unwrap_or(claim.delegated);
            verdicts.insert(namespace.clone(), verdict);
        }
        let mut batch = Batch::new();
        for (namespace, claim) in domain::settle(&looked, &verdicts, now()) {
            match (claims.get(&namespace).is_some_and(Claim::is_held), claim.is_held()) {
                (false, true) => tracing::info!(%name, %namespace, "a domain was proven"),
                (true, false) => tracing::warn!(%name, %namespace, "a domain was lost: its proof is gone"),
                _ => {}
            }
            batch.push(Change::Domain(name.clone(), namespace, Some(claim)));
        }
        self.commit_domains(batch, Vec::new()).await?;
        self.asked.remove(&name);
        Ok(Reply::Nothing)
    }

    /// Commits, and has the doors ask again what is due; `asked` are to be looked at anew.
    async fn commit_domains(&mut self, batch: Batch, asked: Vec<CustomDomain>) -> Result<(), Refusal> {
        let held = |memory: &Memory| domain::held(&memory.domains).collect::<BTreeMap<_, _>>();
        let (target, before) = (self.target.take(), held(&self.memory));
        let done = self.commit(batch).await;
        let same = before == held(&self.memory);
        if same {
            // Of a claim alone nothing is rendered.
            self.target = target;
        } else {
            self.look();
        }
        done?;
        self.domains_changed(asked);
        Ok(())
    }

    /// Has the doors ask again what is due; `asked` are to be looked at anew.
    pub(super) fn domains_changed(&mut self, asked: Vec<CustomDomain>) {
        self.due.send_modify(|turn| *turn += 1);
        let turn = *self.due.borrow();
        for name in asked {
            // Who asks again and again does not have each look begin anew.
            self.asked.entry(name).or_insert(turn);
        }
        self.asked.retain(|name, _| self.memory.domains.contains_key(name));
    }

    /// The change that makes the secret from which proofs are made, if there is none yet.
    fn secret_for_domains(&self) -> Result<Batch, Refusal> {
        if self.memory.domain_secret.is_some() {
            return Ok(Batch::new());
        }
        let part = || super::acme::new_id().map_err(|error| Refusal::Failed(format!("no randomness: {error}")));
        Ok(vec![Change::DomainSecret(Some(Secret(part()? + &part()?)))])
    }

    /// Everybody else who claims a name is due for a look.
    fn look_again(&self, name: &CustomDomain) -> Batch {
        let others = self.memory.domains.get(name).into_iter().flatten();
        let waiting = others.filter(|(_, claim)| matches!(claim.stage, Stage::Waiting { .. }));
        waiting.map(|(other, claim)| Change::Domain(name.clone(), other.clone(), Some(claim.due(now())))).collect()
    }

    /// The changes to a namespace's claims when these are its instances.
    pub(super) fn claims_after(
        &self,
        namespace: &Namespace,
        instances: &BTreeMap<InstanceName, Instance>,
    ) -> Result<Batch, Refusal> {
        let mut named: BTreeMap<&CustomDomain, &InstanceName> = BTreeMap::new();
        for (instance, name) in instances.iter().flat_map(|(name, one)| one.domains.iter().map(move |domain| (name, domain))) {
            // Two of one flake were refused; what goes back to two versions takes the first.
            named.entry(name).or_insert(instance);
        }
        let mut batch = Batch::new();
        for (name, claims) in &self.memory.domains {
            let Some(claim) = claims.get(namespace) else { continue };
            let after = match named.remove(name) {
                Some(instance) if claim.instance == *instance && claim.origin == Origin::Flake => continue,
                Some(instance) => Some(Claim { instance: instance.clone(), origin: Origin::Flake, ..claim.due(now()) }),
                None if claim.origin == Origin::Added && instances.contains_key(&claim.instance) => continue,
                None => None,
            };
            if after.is_none() {
                batch.extend(self.look_again(name));
            }
            batch.push(Change::Domain(name.clone(), namespace.clone(), after));
        }
        for (name, instance) in named {
            let claim = Claim::new(instance.clone(), Origin::Flake, now());
            batch.push(Change::Domain(name.clone(), namespace.clone(), Some(claim)));
        }
        if !batch.is_empty() {
            batch.extend(self.secret_for_domains()?);
        }
        Ok(batch)
    }

    /// What the records of a name have to say for a namespace.
    fn records(&self, name: &CustomDomain, namespace: &Namespace, instance: &InstanceName) -> Records {
        let plant = self.memory.plants.get(namespace);
        let hash = plant.map_or(namespace.as_str(), |plant| plant.hash.as_str());
        // A repository that is made anew under an old name is another's.
        let made = plant.and_then(|plant| self.memory.repository_of(plant)).map_or(0, |repository| repository.created);
        let secret = self.memory.domain_secret.as_ref().map_or("", |secret| secret.0.as_str());
        let id = InstanceId { namespace: namespace.clone(), name: instance.clone() };
        Records::of(name, &id, &self.shared.settings.layout.domain, secret, &format!("{hash}\n{made}"))
    }

    fn domain_status(&self, name: &CustomDomain, namespace: &Namespace, claim: &Claim) -> DomainStatus {
        let (state, since, lost_at) = match claim.stage {
            Stage::Pending => ("pending", claim.at, 0),
            Stage::Waiting { since } => ("waiting", since, 0),
            Stage::Held { since, failing: None } => ("proven", since, 0),
            Stage::Held { failing: Some(failing), .. } => ("failing", failing, failing + domain::LOST),
        };
        let plant = self.memory.plants.get(namespace).map_or_else(|| namespace.to_string(), resolve::repository);
        DomainStatus {
            name: name.to_string(),
            namespace: namespace.to_string(),
            instance: format!("{plant}/{}", claim.instance),
            origin: match claim.origin {
                Origin::Flake => "flake".to_owned(),
                Origin::Added => "added".to_owned(),
            },
            state: state.to_owned(),
            since,
            lost_at,
            detail: claim.saw.clone(),
            next: claim.next,
            records: self.records(name, namespace, &claim.instance),
            delegated: claim.delegated,
        }
    }

    /// The names that an instance claims, and how each is.
    pub(super) fn domains_of(&self, id: &InstanceId) -> Vec<DomainStatus> {
        let mine = self.memory.domains.iter().filter_map(|(name, claims)| Some((name, claims.get(&id.namespace)?)));
        mine.filter(|(_, claim)| claim.instance == id.name)
            .map(|(name, claim)| self.domain_status(name, &id.namespace, claim))
            .collect()
    }

    /// What a pusher has to do for the names of a namespace that are not proven, a line each.
    pub(super) fn unproven(&self, namespace: &Namespace) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, claims) in &self.memory.domains {
            let Some(claim) = claims.get(namespace) else { continue };
            match claim.stage {
                Stage::Held { failing: None, .. } => continue,
                Stage::Waiting { .. } => {
                    lines.push(format!(
                        "{}: {name} is proven, and another repository's until its proof is gone for an hour",
                        claim.instance
                    ));
                    continue;
                }
                Stage::Held { failing: Some(_), .. } | Stage::Pending => {}
            }
            let id = InstanceId { namespace: namespace.clone(), name: claim.instance.clone() };
            let acme = self.memory.wants.get(namespace).and_then(|want| want.instances.get(&id.name)).is_some_and(|one| one.acme);
            lines.push(format!(
                "{}: {name} {}; set in its DNS:",
                id.name,
                if claim.is_held() { "loses its proof" } else { "is not proven to be yours yet" }
            ));
            lines.extend(self.records(name, namespace, &id.name).lines(name, acme).into_iter().map(|line| format!("    {line}")));
        }
        lines
    }

    /// The names of its own that an instance has proven, and where in this host's zone a certificate authority finds its proofs for them.
    pub(super) fn proven_domains(&self, id: &InstanceId) -> BTreeMap<String, String> {
        let zone = &self.shared.settings.layout.domain;
        let held =
            self.memory.domains.iter().filter(|(_, claims)| {
                claims.get(&id.namespace).is_some_and(|claim| claim.is_proven() && claim.instance == id.name)
            });
        held.map(|(name, _)| (name.to_string(), domain::acme_alias(name, &id.namespace, zone))).collect()
    }
}

/// The names that a batch says something of.
pub(super) fn names(batch: &Batch) -> Vec<CustomDomain> {
    batch.iter().filter_map(|change| if let Change::Domain(name, ..) = change { Some(name.clone()) } else { None }).collect()
}

/// Which claim `[REPO/]NAME` is, among those of which `who` may see something.
pub(super) fn claimed(memory: &Memory, who: &Principal, name: &str) -> Result<(CustomDomain, Namespace), Refusal> {
    let (place, name) = name.rsplit_once('/').map_or(("", name), |(place, name)| (place, name));
    let name: CustomDomain = name.parse().map_err(invalid)?;
    let plants = resolve::plants(memory, who, place)?;
    let claims = memory.domains.get(&name);
    let found = plants.into_iter().filter(|plant| {
        let claim = claims.and_then(|claims| claims.get(&plant.namespace));
        claim.is_some_and(|claim| resolve::reach(memory, who, Verb::See, plant).includes(&claim.instance))
    });
    let found: Vec<_> = found.collect();
    match found.as_slice() {
        [one] => Ok((name, one.namespace.clone())),
        [] => Err(Refusal::NotFound(format!("none of your instances claims {name}: domain list shows those that are claimed"))),
        many => {
            let names: Vec<String> = many.iter().map(|plant| format!("{}/{name}", resolve::repository(plant))).collect();
            Err(Refusal::NotFound(format!("{name} is claimed by several: say {}", names.join(" or "))))
        }
    }
}

/// A name is claimed by whoever may push, which can claim it, too; a key for one instance may not.
fn may_write(memory: &Memory, who: &Principal, namespace: &Namespace) -> Result<(), Refusal> {
    match memory.plants.get(namespace).is_some_and(|plant| resolve::may(memory, who, Verb::Write, plant)) {
        true => Ok(()),
        false => Err(Refusal::Denied("your key may not push here, and so claim no name: ask for another role".to_owned())),
    }
}

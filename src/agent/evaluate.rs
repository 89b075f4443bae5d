//! What a flake is: evaluated once, and checked for everything that needs no build.

use std::collections::BTreeMap;

use super::{
    chain,
    deploy::{Deploy, Failed},
};
use crate::{
    build::{self, Builder, Evaluated, Outputs},
    bus::Stage,
    host::Host,
    spec::{
        desired, domain,
        manifest::{self, Manifest, Problem},
        name::InstanceName,
        quota::Share,
        route::Route,
    },
};

/// The most instances that one flake may have.
const MAX_INSTANCES: usize = 64;

/// A flake that was evaluated and found good.
pub(super) struct Checked {
    pub(super) build_job: build::Job,
    pub(super) manifests: BTreeMap<InstanceName, Manifest>,
    pub(super) evaluated: BTreeMap<String, Evaluated>,
    pub(super) routes: Vec<Route>,
}

impl<H: Host, B: Builder> Deploy<H, B> {
    /// Source archive, evaluation, and every check that needs no build.
    pub(super) async fn evaluate(&self) -> Result<Checked, Failed> {
        let settings = &self.shared.settings;
        let archive = settings.work.join(format!("{}.tar", self.job.name));
        if let Err(error) = settings.reader.export(&self.place, &self.ask.commit, &archive).await {
            self.error(Stage::Eval, chain(&error));
            return Err(Failed(Stage::Eval));
        }
        let job = build::Job { name: self.job.name.clone(), namespace: self.namespace.clone(), source: archive.clone() };
        self.info(Stage::Eval, format!("evaluating {} at {}", self.ask.reference.short(), &self.ask.commit.as_str()[..12]));
        let log = self.log(Stage::Eval);
        let outputs = self.shared.builder.eval(&job, log).await;
        // It was read, or could not be; either way nobody needs it any more.
        drop(std::fs::remove_file(&archive));
        let outputs = outputs.map_err(|error| self.build_failed(Stage::Eval, error))?;

        let retired = self.shared.host.retired_bytes(&self.namespace).await.map_err(|error| {
            self.error(Stage::Eval, format!("could not look at this host: {}", chain(&error)));
            Failed(Stage::Eval)
        })?;
        let (manifests, routes) = self.check(&outputs, retired).map_err(|problems| {
            for problem in problems {
                self.error(Stage::Eval, problem.to_string());
            }
            Failed(Stage::Eval)
        })?;
        let names: Vec<&str> = manifests.keys().map(InstanceName::as_str).collect();
        let count = names.len();
        self.info(Stage::Eval, format!("{} ({count} instance{})", names.join(", "), if count == 1 { "" } else { "s" }));
        Ok(Checked { build_job: job, manifests, evaluated: outputs.seeds, routes })
    }

    /// Every problem of every instance, at once. `retired` bytes are in volumes that are kept and no longer declared.
    fn check(&self, outputs: &Outputs, retired: u64) -> Result<(BTreeMap<InstanceName, Manifest>, Vec<Route>), Vec<Problem>> {
        let evaluated = &outputs.seeds;
        let mut problems = Vec::new();
        if evaluated.is_empty() {
            problems.push(Problem::new("seeds", "is empty: give it at least one instance, as seeds.web = seed.lib.mkSeed { … }"));
        }
        if evaluated.len() > MAX_INSTANCES {
            let what = format!("has {} instances: one flake may have {MAX_INSTANCES}", evaluated.len());
            return Err(vec![Problem::new("seeds", what)]);
        }
        let mut manifests = BTreeMap::new();
        for (attribute, evaluated) in evaluated {
            match manifest::read(attribute, &evaluated.meta) {
                Ok(manifest) => drop(manifests.insert(manifest.name.clone(), manifest)),
                Err(found) => problems.extend(found),
            }
        }
        if let Some(before) = &self.before {
            let after = self.instances(&manifests, |name| Some((evaluated.get(name)?.out.clone(), Vec::new(), String::new())));
            problems.extend(desired::check_change(&before.instances, &after));
        }
        let log_max = self.shared.settings.layout.log_max;
        let share =
            |(name, manifest): (&InstanceName, &Manifest)| (name.clone(), Share::of(&manifest.size, &manifest.volumes, log_max));
        let runs = |name: &InstanceName| self.before.as_ref().is_some_and(|before| before.instances.contains_key(name));
        // What this drops is kept as well.
        let dropped: u64 = self
            .before
            .iter()
            .flat_map(|before| &before.instances)
            .flat_map(|(name, before)| before.volumes.iter().map(move |(key, volume)| (name, key, volume.size.0)))
            .filter(|(name, key, _)| !manifests.get(*name).is_some_and(|manifest| manifest.volumes.contains_key(*key)))
            .map(|(_, _, size)| size)
            .sum();
        let kept = Share { volumes: retired.saturating_add(dropped), ..Share::default() };
        let named = manifests.iter().flat_map(|(name, manifest)| manifest.domains.iter().map(move |domain| (name, domain)));
        problems.extend(domain::check(named, &self.shared.settings.layout.domain));
        let alone = self.quota.check(&manifests.iter().map(share).collect(), runs, kept);
        if alone.is_empty() && problems.is_empty() {
            problems.extend(self.room_to_roll(&manifests, evaluated, kept));
        }
        problems.extend(alone);
        let routes = self.routes(outputs, &manifests).unwrap_or_else(|found| {
            problems.extend(found);
            Vec::new()
        });
        if problems.is_empty() { Ok((manifests, routes)) } else { Err(problems) }
    }
}

//! How much each namespace has and may have.

use std::collections::BTreeMap;

use super::{
    Agent, chain,
    request::{Answer, Reply, json, principal},
    resolve,
};
use crate::{
    build::{Builder, disk::bytes_of_repository},
    bus::{
        Refusal,
        access::{QuotaMost, QuotaReport, QuotaUse},
        shell::QuotaList,
    },
    host::Host,
    spec::{
        access::{Principal, Verb},
        name::{FlakeUri, InstanceId, InstanceName, Namespace, RepoName},
        quantity::Bytes,
        quota::{Quota, Share},
        rollout,
    },
    state::{Change, Plant, State},
};

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// What a namespace may have: its own quota, or what the configuration gives to all.
    pub(super) fn quota_of(&self, namespace: &Namespace) -> &Quota {
        self.memory.quotas.get(namespace).unwrap_or(&self.shared.settings.quota)
    }

    /// What each instance that is wanted takes.
    fn shares(&self, namespace: &Namespace) -> BTreeMap<InstanceName, Share> {
        let log_max = self.shared.settings.layout.log_max;
        let instances = self.memory.wants.get(namespace).map(|deployment| &deployment.instances);
        let share = |(name, instance): (&InstanceName, &crate::spec::instance::Instance)| {
            let id = InstanceId { namespace: namespace.clone(), name: name.clone() };
            let sets = rollout::sets(self.memory.rolling.get(&id), instance).into_iter();
            let shares = sets.map(|(_, version)| Share::of(&version.size, &version.volumes, log_max));
            (name.clone(), shares.fold(Share::default(), Share::and))
        };
        instances.map(|instances| instances.iter().map(share).collect()).unwrap_or_default()
    }

    pub(super) fn quota(&self, who: &str, filter: &str, answer: Answer) {
        let seen = principal(who).and_then(|who| {
            let plants = resolve::plants(&self.memory, &who, filter)?;
            let whole = plants.into_iter().filter(|plant| resolve::may(&self.memory, &who, Verb::See, plant));
            let bare = |plant: &Plant| match &plant.uri {
                FlakeUri::Silo(name) => self.shared.settings.repositories.join(format!("{name}.git")),
                // A repository here of the same name is another's.
                FlakeUri::Remote(_) => self.shared.settings.remotes.fetcher.path(&plant.namespace),
            };
            Ok(whole.map(|plant| (resolve::repository(plant), bare(plant), plant.namespace.clone())).collect::<Vec<_>>())
        });
        let seen = match seen {
            Ok(seen) => seen,
            // Who has stopped waiting does not care.
            Err(refusal) => return drop(answer.send(Err(refusal))),
        };
        let rows: Vec<_> = seen
            .into_iter()
            .map(|(repository, bare, namespace)| {
                let share = self.shares(&namespace).into_values().fold(Share::default(), Share::and);
                let builds = u32::from(self.deploying.contains_key(&namespace)) + self.plans(&namespace);
                let own = self.memory.quotas.contains_key(&namespace);
                let routes = self.memory.wants.get(&namespace).map_or(0, |want| want.routes.len());
                (repository, bare, QuotaMost::from(self.quota_of(&namespace)), own, share, builds, routes, namespace)
            })
            .collect();
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let mut namespaces = Vec::new();
            for (repository, bare, quota, own, mut share, builds, routes, namespace) in rows {
                let kept = match shared.host.retired_bytes(&namespace).await {
                    Ok(kept) => kept,
                    Err(error) => {
                        let refusal = Refusal::Failed(format!("could not look at the machine: {}", chain(&error)));
                        // Who has stopped waiting does not care.
                        return drop(answer.send(Err(refusal)));
                    }
                };
                share.volumes = share.volumes.saturating_add(kept);
                let bytes = tokio::task::spawn_blocking(move || bytes_of_repository(&bare)).await.unwrap_or_default();
                let used = QuotaUse { share, repository: bytes, builds, routes: u32::try_from(routes).unwrap_or(u32::MAX) };
                namespaces.push(QuotaReport { namespace: namespace.to_string(), repository, own, quota, used });
            }
            // Who has stopped waiting does not care.
            drop(answer.send(Ok(json(&QuotaList { version: 1, namespaces }))));
        });
    }

    /// `changes` is `memory=8Gi vcpus=4`, or `default`. What runs goes on, even if it is more.
    pub(super) async fn set_quota(&mut self, name: &str, changes: &str) -> Result<Reply, Refusal> {
        let plants = resolve::plants(&self.memory, &Principal::Operator, name)?;
        let [plant] = plants[..] else {
            return Err(Refusal::Invalid("a quota is of one namespace: name it, or its repository".to_owned()));
        };
        let namespace = plant.namespace.clone();
        if changes == "default" {
            self.commit(vec![Change::Quota(namespace, None)]).await?;
            self.look();
            return Ok(Reply::Nothing);
        }
        let mut quota = self.quota_of(&namespace).clone();
        for change in changes.split(' ').filter(|change| !change.is_empty()) {
            let (key, value) = change
                .split_once('=')
                .ok_or_else(|| Refusal::Invalid(format!("{change:?} changes no quota: write memory=8Gi, or default")))?;
            quota.set(key, value).map_err(Refusal::Invalid)?;
        }
        self.commit(vec![Change::Quota(namespace, Some(quota))]).await?;
        // Its slice is to follow.
        self.look();
        Ok(Reply::Nothing)
    }

    /// How many bytes may still be pushed to a repository; refused if there are none.
    pub(super) fn room_in(&self, name: &RepoName) -> impl Future<Output = Result<u64, Refusal>> + Send + use<H, S, B> {
        let name = name.clone();
        let most = self.quota_of(&FlakeUri::Silo(name.clone()).namespace()).repository;
        let path = self.shared.settings.repositories.join(format!("{name}.git"));
        async move {
            let used = tokio::task::spawn_blocking(move || bytes_of_repository(&path)).await.unwrap_or(u64::MAX);
            if used < most.0 {
                return Ok(most.0 - used);
            }
            Err(Refusal::Denied(format!(
                "{name} takes {} on the disk of this host, and may take {most}: ask the operator for more, or begin it anew without its \
             large files (repo delete {name} {name}, then push)",
                Bytes(used)
            )))
        }
    }
}

//! How much of a host one namespace may have, and what to say when it asks for more.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{
    instance::{Size, Volume, sizes},
    manifest::Problem,
    name::{InstanceName, VolumeName},
    quantity::Bytes,
    route::Route,
};

/// The most that one namespace may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quota {
    pub instances: u32,
    pub vcpus: u32,
    /// Of all its instances together.
    pub memory: Bytes,
    /// Of all its volumes together.
    pub volumes: Bytes,
    /// Of its repository, as it lies on the disk.
    pub repository: Bytes,
    /// Evaluations and builds at once, plans included.
    pub builds: u32,
    /// Of all journals together.
    pub logs: Bytes,
    /// Ports of the host's public addresses: each route of the outputs `ipv4` and `ipv6` is one.
    #[serde(default)]
    pub routes: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            instances: 16,
            vcpus: 32,
            memory: Bytes(64 << 30),
            volumes: Bytes(1 << 40),
            repository: Bytes(4 << 30),
            builds: 2,
            logs: Bytes(2 << 30),
            // There is only one of each for the whole host: they are given, not had.
            routes: 0,
        }
    }
}

/// What some instances take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    pub instances: u64,
    pub vcpus: u64,
    pub memory: u64,
    pub volumes: u64,
    pub logs: u64,
}

impl Share {
    /// What one instance takes, with at most so many bytes of journal.
    pub fn of(size: &Size, volumes: &BTreeMap<VolumeName, Volume>, log_max: Bytes) -> Self {
        Self {
            instances: 1,
            vcpus: size.vcpus.into(),
            memory: size.memory_mib.saturating_mul(1 << 20),
            volumes: volumes.values().fold(0, |sum: u64, volume| sum.saturating_add(volume.size.0)),
            logs: log_max.0,
        }
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            instances: self.instances.saturating_add(other.instances),
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory: self.memory.saturating_add(other.memory),
            volumes: self.volumes.saturating_add(other.volumes),
            logs: self.logs.saturating_add(other.logs),
        }
    }
}

/// One of the things that there is only so much of: what it is called, how much is wanted, how much there may be.
struct Measure {
    what: &'static str,
    wanted: u64,
    most: u64,
    bytes: bool,
}

impl Measure {
    fn say(&self, amount: u64) -> String {
        if self.bytes { rough(amount) } else { amount.to_string() }
    }
}

/// For people: `1.5Gi` becomes `1536Mi`, which can be written into a flake as it is.
fn rough(bytes: u64) -> String {
    Bytes(bytes).rough().to_string()
}

impl Quota {
    fn measures(&self, share: Share) -> [Measure; 5] {
        let count = |what, wanted, most: u32| Measure { what, wanted, most: most.into(), bytes: false };
        let bytes = |what, wanted, most: Bytes| Measure { what, wanted, most: most.0, bytes: true };
        [
            count("instances", share.instances, self.instances),
            count("CPUs", share.vcpus, self.vcpus),
            bytes("of memory", share.memory, self.memory),
            bytes("of volumes", share.volumes, self.volumes),
            bytes("of journals", share.logs, self.logs),
        ]
    }

    /// Whether this fits.
    pub fn fits(&self, share: Share) -> bool {
        self.measures(share).iter().all(|measure| measure.wanted <= measure.most)
    }

    /// What there is too much of, with what would fit: those that run are counted first, in the order of their names. `kept` is what
    /// the namespace has already besides instances: volumes that it no longer declares.
    pub fn check(&self, wanted: &BTreeMap<InstanceName, Share>, runs: impl Fn(&InstanceName) -> bool, kept: Share) -> Vec<Problem> {
        let all = wanted.values().fold(kept, |sum, share| sum.and(*share));
        let measures = self.measures(all);
        let mut said: Vec<String> = Vec::new();
        for measure in measures.iter().filter(|measure| measure.wanted > measure.most) {
            said.push(format!("{} {}, where it may have {}", measure.say(measure.wanted), measure.what, measure.say(measure.most)));
        }
        if said.is_empty() {
            return Vec::new();
        }
        let (mut fitting, mut sum) = (Vec::new(), kept);
        let (first, second): (Vec<_>, Vec<_>) = wanted.iter().partition(|(name, _)| runs(name));
        for (name, share) in first.into_iter().chain(second) {
            if self.fits(sum.and(*share)) {
                sum = sum.and(*share);
                fitting.push(name.as_str());
            }
        }
        fitting.sort_unstable();
        let fits = match fitting.len() {
            0 => format!("none of them fits{}", self.largest(kept)),
            _ => format!("{} would fit", fitting.join(", ")),
        };
        let what = format!(
            "want {}; {fits}. Make some smaller or take them out, or ask the operator for a larger quota",
            said.join(", and ")
        );
        vec![Problem::new("seeds", what)]
    }

    /// The largest size of which one instance would fit, for somebody whose only one does not.
    fn largest(&self, kept: Share) -> String {
        let fits = |size: &Size| {
            self.fits(kept.and(Share { instances: 1, vcpus: size.vcpus.into(), memory: size.memory_mib << 20, ..Share::default() }))
        };
        let sizes = sizes();
        let largest = sizes.iter().filter(|(_, size)| fits(size)).max_by_key(|(_, size)| (size.memory_mib, size.vcpus));
        largest
            .map(|(name, size)| format!("; one of size {name} ({} CPU, {}Mi) would", size.vcpus, size.memory_mib))
            .unwrap_or_default()
    }

    /// What to say if these are more public ports than there may be: those that it has are counted first.
    pub fn check_routes(&self, wanted: &[Route], has: impl Fn(&Route) -> bool) -> Option<Problem> {
        let most = self.routes as usize;
        if wanted.len() <= most {
            return None;
        }
        let count = if wanted.len() == 1 { "one public port".to_owned() } else { format!("{} public ports", wanted.len()) };
        let what = if most == 0 {
            format!("{count} wanted, where this namespace may have none: take them out, or ask the operator for a quota of routes")
        } else {
            let (first, second): (Vec<&Route>, Vec<&Route>) = wanted.iter().partition(|route| has(route));
            let fit: Vec<String> = first.into_iter().chain(second).take(most).map(Route::place).collect();
            format!(
                "{count} wanted, where this namespace may have {most}; {} would fit. Take some out, or ask the operator for a larger quota of routes",
                fit.join(", ")
            )
        };
        Some(Problem::new("routes", what))
    }

    /// Sets one of them by its name, as it is written in the configuration.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{name}={text:?} is no number: write {name}=8"));
        let bytes = |text: &str| text.parse::<Bytes>().map_err(|error| error.to_string());
        match name {
            "instances" => self.instances = number(value)?,
            "vcpus" => self.vcpus = number(value)?,
            "builds" => {
                self.builds =
                    number(value).and_then(|n| if n == 0 { Err("builds must be at least 1".to_owned()) } else { Ok(n) })?
            }
            "memory" => self.memory = bytes(value)?,
            "volumes" => self.volumes = bytes(value)?,
            "repository" => self.repository = bytes(value)?,
            "logs" => self.logs = bytes(value)?,
            "routes" => self.routes = number(value)?,
            other => {
                let given: String = other.chars().take(40).collect();
                return Err(format!(
                    "there is no quota {given:?}: there are instances, vcpus, memory, volumes, repository, builds, logs, routes"
                ));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instances, vcpus, memory, volumes, repository, builds, logs, routes } = self;
        write!(
            f,
            "instances={instances} vcpus={vcpus} memory={memory} volumes={volumes} repository={repository} builds={builds} logs={logs} routes={routes}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(vcpus: u64, memory_mib: u64, volumes_mib: u64) -> Share {
        Share { instances: 1, vcpus, memory: memory_mib << 20, volumes: volumes_mib << 20, logs: 64 << 20 }
    }

    fn said(quota: &Quota, wanted: &[(&str, Share)], runs: &[&str], kept: u64) -> String {
        let wanted = wanted.iter().map(|(name, share)| (name.parse().unwrap(), *share)).collect();
        let kept = Share { volumes: kept << 20, ..Share::default() };
        let problems = quota.check(&wanted, |name| runs.contains(&name.as_str()), kept);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn too_much_is_refused_with_what_would_fit() {
        let quota = Quota {
            instances: 3,
            vcpus: 4,
            memory: Bytes(4 << 30),
            volumes: Bytes(1 << 30),
            logs: Bytes(192 << 20),
            ..Quota::default()
        };
        let (s, l) = (share(1, 1024, 100), share(4, 4096, 0));
        assert_eq!(said(&quota, &[("a", s), ("b", s), ("c", s)], &[], 0), "");
        let table = [
            (
                vec![("a", s), ("b", s), ("c", s), ("d", s)],
                vec!["d"],
                0,
                vec!["4 instances, where it may have 3", "a, b, d would fit", "256Mi of journals, where it may have 192Mi"],
            ),
            (
                vec![("a", s), ("b", l)],
                vec![],
                0,
                vec!["5 CPUs, where it may have 4", "5Gi of memory, where it may have 4Gi", "; a would fit"],
            ),
            (vec![("a", s), ("b", l)], vec!["b"], 0, vec!["; b would fit"]),
            (vec![("a", share(8, 8192, 0))], vec![], 0, vec!["none of them fits; one of size l (4 CPU, 4096Mi) would"]),
            (vec![("a", s)], vec!["a"], 1000, vec!["1100Mi of volumes, where it may have 1Gi"]),
            (vec![("a", share(1, 512, u64::MAX >> 20))], vec![], 1, vec!["of volumes, where it may have 1Gi"]),
        ];
        for (wanted, runs, kept, expected) in table {
            let text = said(&quota, &wanted, &runs, kept);
            for part in expected {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }

    #[test]
    fn public_ports_are_counted_and_those_that_are_had_come_first() {
        let route = |name: &str, port: u16| -> Route {
            let text =
                format!(r#"{{"family":"ipv6","name":"{name}","port":{port},"protocol":"tcp","instance":"web","targetPort":80}}"#);
            serde_json::from_str(&text).unwrap()
        };
        let (a, b, c) = (route("a", 1), route("b", 2), route("c", 3));
        let quota = |routes| Quota { routes, ..Quota::default() };
        let said = |quota: Quota, wanted: &[Route]| quota.check_routes(wanted, |one| *one == c).map(|problem| problem.to_string());
        assert_eq!((said(quota(0), &[]), said(quota(1), std::slice::from_ref(&a))), (None, None));
        let none = said(Quota::default(), std::slice::from_ref(&a)).unwrap();
        assert!(
            none.starts_with("routes: one public port wanted, where this namespace may have none: take them out, or ask"),
            "{none}"
        );
        let some = said(quota(2), &[a, b, c.clone()]).unwrap();
        assert!(
            some.contains("3 public ports wanted, where this namespace may have 2; ipv6.routes.c, ipv6.routes.a would fit"),
            "{some}"
        );
    }

    #[test]
    fn a_quota_from_before_there_were_routes_has_none() {
        let mut document = serde_json::to_value(Quota::default()).unwrap();
        document.as_object_mut().unwrap().remove("routes");
        assert_eq!(serde_json::from_value::<Quota>(document).unwrap(), Quota::default());
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut quota = Quota::default();
        let other = Quota { instances: 1, memory: Bytes(3 << 20), builds: 7, routes: 5, ..Quota::default() };
        for word in other.to_string().split(' ') {
            let (name, value) = word.split_once('=').unwrap();
            quota.set(name, value).unwrap();
        }
        assert_eq!(quota, other);
        for (name, value) in
            [("cpu", "1"), ("memory", "1"), ("instances", "-1"), ("builds", "0"), ("vcpus", "1Gi"), ("routes", "-1")]
        {
            assert!(quota.set(name, value).is_err(), "{name}={value}");
        }
        assert_eq!(quota, other);
    }
}

//! The configuration of a host: one TOML file, `/etc/seed/seed.toml`, read in one pass that finds every problem.
//!
//! `units/seed.toml` is the manual: every key, its default, and what it does. A test keeps it equal to [`Config::default_of`].
#![allow(clippy::disallowed_methods, reason = "this room reads the configuration and looks for programs")]

mod acme;
mod dns;
mod public;
mod reader;
pub mod tools;
mod value;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reader::Reader;
use value::{address, directory, http_url, net, one_of, pool4, pool6, server, size, ssh_url};

pub use acme::Acme;
pub use dns::Dns;
pub use reader::Problem;

use crate::{
    render::{Layout, Tools, Vmm},
    spec::{address::Addressing, name::Domain, quantity::Bytes, quota::Quota, route::Reserved},
};

/// Where the configuration is if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/seed/seed.toml";

/// The configuration, whole and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The zone that the names of instances are in.
    pub domain: Domain,
    pub network: Network,
    pub dns: Dns,
    pub hypervisor: Hypervisor,
    pub storage: Storage,
    pub build: Build,
    pub rollout: Rollout,
    pub ssh: Ssh,
    pub github: GitHub,
    pub logs: Logs,
    pub audit: Audit,
    pub acme: Acme,
    pub ingress: Ingress,
    /// What each namespace may have unless it is given a quota of its own.
    pub quota: Quota,
    pub paths: Paths,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub pool4: Ipv4Net,
    /// A /64.
    pub pool6: Ipv6Net,
    /// The addresses under which the world reaches this host; what the zone's apex answers.
    pub public_addresses: Vec<IpAddr>,
    /// Where what is sent to them arrives, one for each of a family in the same order; empty: at themselves.
    pub nat_addresses: Vec<IpAddr>,
    /// Ports of them that no namespace gets, besides those of the doors.
    pub reserved_ports: Vec<Reserved>,
    /// Where names outside the zone are looked up; empty for the servers in /etc/resolv.conf.
    pub upstream_dns: Vec<SocketAddr>,
    pub uid_base: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hypervisor {
    pub kind: HypervisorKind,
    pub acceleration: Acceleration,
    pub boot_timeout_secs: u32,
    pub stop_timeout_secs: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HypervisorKind {
    /// Cloud Hypervisor where it can run, else QEMU.
    Auto,
    CloudHypervisor,
    Qemu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// KVM where it can be used, else emulation.
    Auto,
    Kvm,
    /// Emulation; slow, runs anywhere.
    Tcg,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Holds all that outlives a reboot: state, repositories, volumes, TPMs, logs.
    pub directory: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// How long the version before goes on once the new one serves.
    pub drain_secs: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// How many deployments are evaluated and built at the same time.
    pub parallel: u32,
    pub eval_timeout_secs: u32,
    pub eval_memory: Bytes,
    pub build_timeout_secs: u32,
    /// What evaluations and builds may reach of the networks that are not public.
    pub allow_addresses: Vec<IpNet>,
    /// How many generations of a namespace are kept from garbage collection.
    pub keep_generations: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// The port that people are told; the socket unit is what listens.
    pub port: u16,
    /// The largest push.
    pub max_pack: Bytes,
}

/// Repositories from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitHub {
    /// What `github:` stands for: a URL without a slash at its end.
    pub server: String,
    /// The same over SSH; `None`: `ssh://git@` and the host of `server`.
    pub ssh_server: Option<String>,
    /// Where forges are told to send their deliveries; `None`: to the HTTP door, by the domain.
    pub webhook: Option<String>,
    pub fetch_every_secs: u32,
    pub fetch_timeout_secs: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    pub max_per_instance: Bytes,
}

/// The log of who changed what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Of more than this, the oldest files are removed.
    pub keep: Bytes,
}

/// What comes from outside to ports 80 and 443.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ingress {
    /// Whether `seed-ingress.service` passes it to the instances by name.
    pub enable: bool,
}

/// Where things are. A program that is `None` is looked for; see [`tools::find`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Sockets and what else does not outlive a reboot.
    pub run: PathBuf,
    pub seed: Option<PathBuf>,
    pub cloud_hypervisor: Option<PathBuf>,
    pub qemu: Option<PathBuf>,
    pub virtiofsd: Option<PathBuf>,
    pub swtpm: Option<PathBuf>,
    pub vhost_device_vsock: Option<PathBuf>,
    pub journal_remote: Option<PathBuf>,
    pub nix: Option<PathBuf>,
    pub git: Option<PathBuf>,
}

/// Why there is no configuration. Its text has a line for each problem.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read {path}: write one (the manual is seed.toml of the package), or name another with --config")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} cannot be used:{}", Listed(.problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

struct Listed<'a>(&'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
    }

    /// Checks a text: the configuration, or every problem with it.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader::new(text);
        let config = read(&mut reader);
        let problems = reader.finish();
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// The configuration that says no more than its domain.
    pub fn default_of(domain: Domain) -> Self {
        Self {
            domain,
            network: Network {
                pool4: Ipv4Net::new_assert(Ipv4Addr::new(10, 83, 0, 0), 16),
                pool6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd5e, 0xed00, 0, 0, 0, 0, 0, 0), 64),
                public_addresses: Vec::new(),
                nat_addresses: Vec::new(),
                reserved_ports: Vec::new(),
                upstream_dns: Vec::new(),
                // Between what container managers hand out and what systemd gives to foreign disk images: nobody's range.
                uid_base: 1_900_000_000,
            },
            dns: Dns::default(),
            hypervisor: Hypervisor {
                kind: HypervisorKind::Auto,
                acceleration: Acceleration::Auto,
                boot_timeout_secs: 300,
                stop_timeout_secs: 90,
            },
            storage: Storage { directory: PathBuf::from("/var/lib/seed") },
            build: Build {
                parallel: 2,
                eval_timeout_secs: 60,
                eval_memory: Bytes(2 << 30),
                build_timeout_secs: 3600,
                allow_addresses: Vec::new(),
                keep_generations: 5,
            },
            rollout: Rollout { drain_secs: 60 },
            ssh: Ssh { port: 22, max_pack: Bytes(1 << 30) },
            github: GitHub {
                server: "https://github.com".to_owned(),
                ssh_server: None,
                webhook: None,
                fetch_every_secs: 600,
                fetch_timeout_secs: 300,
            },
            logs: Logs { max_per_instance: Bytes(64 << 20) },
            audit: Audit { keep: Bytes(1 << 30) },
            acme: Acme::default(),
            ingress: Ingress::default(),
            quota: Quota::default(),
            paths: Paths {
                run: PathBuf::from("/run/seed"),
                seed: None,
                cloud_hypervisor: None,
                qemu: None,
                virtiofsd: None,
                swtpm: None,
                vhost_device_vsock: None,
                journal_remote: None,
                nix: None,
                git: None,
            },
        }
    }

    /// What turns leases into addresses.
    pub fn addressing(&self) -> Addressing {
        Addressing { pool4: self.network.pool4, pool6: self.network.pool6, uid_base: self.network.uid_base }
    }

    /// What rendering needs to know of this host.
    pub fn layout(&self, vmm: Vmm, tools: Tools) -> Layout {
        Layout {
            state: self.storage.directory.clone(),
            run: self.paths.run.clone(),
            units: PathBuf::from("/run/systemd/system"),
            domain: self.domain.clone(),
            addressing: self.addressing(),
            vmm,
            tools,
            stop_timeout_secs: self.hypervisor.stop_timeout_secs,
            boot_timeout_secs: self.hypervisor.boot_timeout_secs,
            guest_ca: String::new(),
            log_max: self.logs.max_per_instance,
            public: self.public(),
            ingress: None,
        }
    }

    /// The directory of what the agent remembers.
    pub fn state_directory(&self) -> PathBuf {
        self.storage.directory.join("state")
    }

    /// The key that signs certificates for guests.
    pub fn guest_ca(&self) -> PathBuf {
        self.storage.directory.join("guest-ca")
    }

    /// The directory of the audit log.
    pub fn audit_directory(&self) -> PathBuf {
        self.storage.directory.join("audit")
    }

    /// The directory of the repositories, `<name>.git` in it.
    pub fn repositories(&self) -> PathBuf {
        self.storage.directory.join("repos")
    }

    /// The directory of the tokens with which private repositories are read.
    pub fn credentials_directory(&self) -> PathBuf {
        self.storage.directory.join("credentials")
    }

    /// What `github:` stands for over SSH.
    pub fn github_ssh(&self) -> String {
        self.github.ssh_server.clone().unwrap_or_else(|| {
            let (_, place) = self.github.server.split_once("://").unwrap_or_default();
            let authority = place.split('/').next().unwrap_or_default();
            let host = if authority.starts_with('[') { authority } else { authority.split(':').next().unwrap_or_default() };
            format!("ssh://git@{host}")
        })
    }

    /// Where forges are told to send their deliveries.
    pub fn webhook(&self) -> String {
        let scheme = if self.acme.directory.is_some() { "https" } else { "http" };
        self.github.webhook.clone().unwrap_or_else(|| format!("{scheme}://{}/webhook/github", self.domain))
    }

    /// The key that signs the zone, if it is signed.
    pub fn zone_key(&self) -> PathBuf {
        self.storage.directory.join("dns/zone.key")
    }

    /// The directory of the host key of the SSH door.
    pub fn ssh_directory(&self) -> PathBuf {
        self.storage.directory.join("ssh")
    }

    /// The directory of the account at the CA.
    pub fn acme_directory(&self) -> PathBuf {
        self.storage.directory.join("acme")
    }

    /// Where names outside the zone are looked up: as configured, else as this host does. Never this host itself: that would go round in a
    /// circle. Empty if there is nobody to ask.
    pub fn upstream_dns(&self) -> Vec<SocketAddr> {
        if !self.network.upstream_dns.is_empty() {
            return self.network.upstream_dns.clone();
        }
        // Where systemd-resolved runs, /etc/resolv.conf names its stub, and this file the servers that it asks.
        let text =
            ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"].iter().find_map(|path| std::fs::read_to_string(path).ok());
        let own = |address: &IpAddr| {
            address.is_loopback()
                || *address == IpAddr::from(self.addressing().gateway4())
                || *address == IpAddr::from(self.addressing().gateway6())
                || self.network.public_addresses.contains(address)
        };
        nameservers(&text.unwrap_or_default())
            .into_iter()
            .filter(|address| !own(address))
            .map(|address| SocketAddr::new(address, 53))
            .collect()
    }

    /// This host's own addresses, by family.
    pub fn public_addresses(&self) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in &self.network.public_addresses {
            match address {
                IpAddr::V4(address) => v4.push(*address),
                IpAddr::V6(address) => v6.push(*address),
            }
        }
        (v4, v6)
    }
}

/// The addresses of the `nameserver` lines of a resolv.conf(5). One with a zone (`fe80::1%eth0`) is passed over.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| line.strip_prefix("nameserver")?.trim().parse().ok();
    text.lines().filter_map(address).collect()
}

/// Reads every key, each in its range. What is wrong is noted in the reader and replaced by its default.
fn read(reader: &mut Reader<'_>) -> Config {
    let placeholder: Domain = "seed.example".parse().expect("a domain");
    if !reader.has("", "domain") {
        reader.demand("", "domain", "is missing: write the domain of this host's names, as in domain = \"seed.example\"");
    }
    let base = Config::default_of(reader.text("", "domain", placeholder));
    let network = Network {
        pool4: reader.parsed("network", "pool4", base.network.pool4, pool4),
        pool6: reader.parsed("network", "pool6", base.network.pool6, pool6),
        public_addresses: reader.list("network", "public_addresses", address),
        nat_addresses: reader.list("network", "nat_addresses", address),
        reserved_ports: reader.list("network", "reserved_ports", |text| text.parse::<Reserved>()),
        upstream_dns: reader.list("network", "upstream_dns", server),
        uid_base: reader.number("network", "uid_base", base.network.uid_base, 1_000..=4_294_900_000),
    };
    public::check(reader, &network);
    let addressing = Addressing { pool4: network.pool4, pool6: network.pool6, uid_base: network.uid_base };
    let last = network.uid_base.saturating_add(addressing.capacity().into());
    if (network.uid_base..=last).contains(&65_534) || (network.uid_base..=last).contains(&65_535) {
        let what = format!("the users up to {last} would include nobody (65534): begin above 65535");
        reader.demand("network", "uid_base", &what);
    }
    let words =
        [("auto", HypervisorKind::Auto), ("cloud-hypervisor", HypervisorKind::CloudHypervisor), ("qemu", HypervisorKind::Qemu)];
    let kind = reader.parsed("hypervisor", "kind", base.hypervisor.kind, |text| one_of(text, &words));
    let words = [("auto", Acceleration::Auto), ("kvm", Acceleration::Kvm), ("tcg", Acceleration::Tcg)];
    let acceleration = reader.parsed("hypervisor", "acceleration", base.hypervisor.acceleration, |text| one_of(text, &words));
    if (kind, acceleration) == (HypervisorKind::CloudHypervisor, Acceleration::Tcg) {
        reader.demand("hypervisor", "acceleration", "Cloud Hypervisor cannot emulate: write \"kvm\", or kind = \"qemu\"");
    }
    Config {
        network,
        dns: dns::read(reader, &base.domain),
        hypervisor: Hypervisor {
            kind,
            acceleration,
            boot_timeout_secs: reader.number("hypervisor", "boot_timeout_secs", base.hypervisor.boot_timeout_secs, 5..=3_600),
            stop_timeout_secs: reader.number("hypervisor", "stop_timeout_secs", base.hypervisor.stop_timeout_secs, 1..=600),
        },
        storage: Storage { directory: reader.parsed("storage", "directory", base.storage.directory, directory) },
        build: Build {
            parallel: reader.number("build", "parallel", base.build.parallel, 1..=64),
            eval_timeout_secs: reader.number("build", "eval_timeout_secs", base.build.eval_timeout_secs, 1..=3_600),
            eval_memory: reader.parsed("build", "eval_memory", base.build.eval_memory, |text| size(text, "128Mi", "256Gi")),
            build_timeout_secs: reader.number("build", "build_timeout_secs", base.build.build_timeout_secs, 1..=86_400),
            allow_addresses: reader.list("build", "allow_addresses", net),
            keep_generations: reader.number("build", "keep_generations", base.build.keep_generations, 1..=100),
        },
        // Not below the time for which resolvers keep the address of what is drained.
        rollout: Rollout { drain_secs: reader.number("rollout", "drain_secs", base.rollout.drain_secs, 30..=3_600) },
        ssh: Ssh {
            port: u16::try_from(reader.number("ssh", "port", base.ssh.port.into(), 1..=65_535)).expect("in range"),
            max_pack: reader.parsed("ssh", "max_pack", base.ssh.max_pack, |text| size(text, "64Ki", "64Gi")),
        },
        github: GitHub {
            server: reader.parsed("github", "server", base.github.server, http_url),
            ssh_server: reader.parsed("github", "ssh_server", base.github.ssh_server, |text| {
                if text.is_empty() { Ok(None) } else { ssh_url(text).map(Some) }
            }),
            webhook: reader.parsed("github", "webhook", base.github.webhook, |text| {
                if text.is_empty() { Ok(None) } else { http_url(text).map(Some) }
            }),
            fetch_every_secs: reader.number("github", "fetch_every_secs", base.github.fetch_every_secs, 10..=86_400),
            fetch_timeout_secs: reader.number("github", "fetch_timeout_secs", base.github.fetch_timeout_secs, 10..=3_600),
        },
        logs: Logs {
            max_per_instance: reader
                .parsed("logs", "max_per_instance", base.logs.max_per_instance, |text| size(text, "16Mi", "64Gi")),
        },
        audit: Audit { keep: reader.parsed("audit", "keep", base.audit.keep, |text| size(text, "128Mi", "1024Ti")) },
        acme: acme::read(reader),
        ingress: Ingress { enable: reader.flag("ingress", "enable", base.ingress.enable) },
        quota: Quota {
            instances: reader.number("quota", "instances", base.quota.instances, 1..=1_000),
            vcpus: reader.number("quota", "vcpus", base.quota.vcpus, 1..=100_000),
            memory: reader.parsed("quota", "memory", base.quota.memory, |text| size(text, "512Mi", "1024Ti")),
            volumes: reader.parsed("quota", "volumes", base.quota.volumes, |text| size(text, "8Mi", "1024Ti")),
            repository: reader.parsed("quota", "repository", base.quota.repository, |text| size(text, "1Mi", "1024Ti")),
            builds: reader.number("quota", "builds", base.quota.builds, 1..=64),
            logs: reader.parsed("quota", "logs", base.quota.logs, |text| size(text, "16Mi", "1024Ti")),
            routes: reader.number("quota", "routes", base.quota.routes, 0..=65_535),
        },
        paths: Paths {
            run: reader.parsed("paths", "run", base.paths.run, directory),
            seed: program(reader, "seed"),
            cloud_hypervisor: program(reader, "cloud_hypervisor"),
            qemu: program(reader, "qemu"),
            virtiofsd: program(reader, "virtiofsd"),
            swtpm: program(reader, "swtpm"),
            vhost_device_vsock: program(reader, "vhost_device_vsock"),
            journal_remote: program(reader, "journal_remote"),
            nix: program(reader, "nix"),
            git: program(reader, "git"),
        },
        domain: base.domain,
    }
}

fn program(reader: &mut Reader<'_>, key: &'static str) -> Option<PathBuf> {
    reader.parsed("paths", key, None, |text| if text.is_empty() { Ok(None) } else { directory(text).map(Some) })
}

#[cfg(test)]
mod tests;

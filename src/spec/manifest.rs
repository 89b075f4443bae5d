//! The meta JSON that a tenant's flake gives as `seeds.<name>.meta`, and what must hold of it. Written by
//! `nixos-modules/instance/manifest.nix`, read here; unknown fields and unknown versions are refused.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::{
    domain,
    instance::{Port, Protocol, Rollout, Size, Volume, services, sizes},
    name::{CustomDomain, InstanceName, PortName, VolumeName},
    quantity::{Bytes, SizeError},
};

/// The only version of the meta JSON there is.
pub const VERSION: u64 = 1;
/// The smallest volume: ext4 with a journal needs that much.
pub const MIN_VOLUME: Bytes = Bytes(8 << 20);
/// The largest volume a tenant can ask for.
pub const MAX_VOLUME: Bytes = Bytes(16 << 40);

/// The most ports and the most volumes of one instance: a virtual machine has slots for no more disks.
pub const MAX_PORTS: usize = 128;
pub const MAX_VOLUMES: usize = 16;
/// The most that is said about one instance.
const MAX_PROBLEMS: usize = 50;
/// The longest text of one problem, in bytes.
const MAX_TEXT: usize = 1000;

/// One thing that is wrong, said so that its writer can mend it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Problem {
    /// Where: `seeds.web.meta.storage.data.size`.
    pub place: String,
    /// What was given, why it cannot be, what to write.
    pub what: String,
}

impl Problem {
    pub fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        // What is quoted in it may be as long as its writer likes.
        let cut = |mut text: String| {
            if text.len() > MAX_TEXT {
                let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                text.truncate(end);
                text.push('…');
            }
            text
        };
        Self { place: cut(place.into()), what: cut(what.into()) }
    }
}

/// The meta of one instance, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub name: InstanceName,
    pub size: Size,
    pub ports: BTreeMap<PortName, Port>,
    pub volumes: BTreeMap<VolumeName, Volume>,
    pub rollout: Rollout,
    pub acme: bool,
    pub shoot: bool,
    pub tpm: bool,
    pub domains: BTreeSet<CustomDomain>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    /// Read before the rest; here so that it is no unknown field.
    #[serde(rename = "version")]
    _version: u64,
    name: String,
    #[serde(default = "default_system")]
    system: String,
    #[serde(default = "default_size")]
    size: String,
    #[serde(default)]
    expose: BTreeMap<String, WirePort>,
    #[serde(default)]
    storage: BTreeMap<String, WireVolume>,
    #[serde(default)]
    rollout: Option<Rollout>,
    #[serde(default)]
    acme: bool,
    #[serde(default)]
    shoot: bool,
    #[serde(default)]
    tpm: bool,
    #[serde(default)]
    domains: Vec<String>,
}

fn default_system() -> String {
    "x86_64-linux".to_owned()
}

fn default_size() -> String {
    "xs".to_owned()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WirePort {
    /// Left out: that of the well-known service of this name.
    #[serde(default)]
    port: Option<i64>,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    proxy_protocol: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireVolume {
    size: String,
    #[serde(default)]
    mount_point: Option<String>,
}

/// Reads the meta of the instance that the flake calls `attribute`. Returns the manifest, or every problem at once.
pub fn read(attribute: &str, meta: &Value) -> Result<Manifest, Vec<Problem>> {
    // The name stands in every other problem: one that is no name is said alone.
    if let Err(error) = attribute.parse::<InstanceName>() {
        return Err(vec![Problem::new("seeds", error.to_string())]);
    }
    let place = format!("seeds.{attribute}.meta");
    match meta.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(other) => {
            let what =
                format!("is {other}, which this host does not know (it knows {VERSION}): use the `seed` input that fits the host");
            return Err(vec![Problem::new(format!("{place}.version"), what)]);
        }
        None => {
            let what = format!("is missing: write `version = {VERSION};`, or use seed.lib.mkSeed, which does");
            return Err(vec![Problem::new(format!("{place}.version"), what)]);
        }
    }
    let wire: Wire = match serde_json::from_value(meta.clone()) {
        Ok(wire) => wire,
        Err(error) => return Err(vec![Problem::new(place, format!("cannot be read: {error}"))]),
    };
    check(&place, attribute, wire)
}

fn check(place: &str, attribute: &str, wire: Wire) -> Result<Manifest, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut say = |at: &str, what: String| problems.push(Problem::new(format!("{place}{at}"), what));

    if wire.system != default_system() {
        say(".system", format!("{:?} cannot run here: this host runs {}", wire.system, default_system()));
    }
    if wire.name != attribute {
        say(".name", format!("{:?} differs from the attribute `seeds.{attribute}`: give both the same name", wire.name));
    }
    let name: Option<InstanceName> = attribute.parse().map_err(|error| say("", format!("{error}"))).ok();
    let size = sizes().get(&wire.size).cloned();
    if size.is_none() {
        say(".size", format!("{:?} is no size: write one of xs, s, m, l, xl", wire.size));
    }

    let counts = [
        (".expose", wire.expose.len(), MAX_PORTS),
        (".storage", wire.storage.len(), MAX_VOLUMES),
        (".domains", wire.domains.len(), domain::OF_INSTANCE),
    ];
    for (at, count, most) in counts {
        if count > most {
            return Err(vec![Problem::new(format!("{place}{at}"), format!("has {count} entries: one instance may have {most}"))]);
        }
    }

    let known = services();
    let mut ports: BTreeMap<PortName, Port> = BTreeMap::new();
    for (key, wanted) in &wire.expose {
        let at = format!(".expose.{key}");
        let known = known.get(key);
        let port = match wanted.port {
            Some(number) => {
                let port = u16::try_from(number).ok().filter(|port| *port != 0);
                if port.is_none() {
                    say(&format!("{at}.port"), format!("{number} is no port: write a number from 1 to 65535"));
                }
                port
            }
            None => {
                if known.is_none() {
                    say(
                        &at,
                        "is no well-known service, and no port was given: write { port = 9090; protocol = \"tcp\"; }".to_owned(),
                    );
                }
                known.map(|known| known.port)
            }
        };
        let parsed: Option<PortName> = key.parse().map_err(|error| say(&at, format!("{error}"))).ok();
        let (Some(port), Some(key)) = (port, parsed) else { continue };
        let protocol = wanted.protocol.or(known.map(|known| known.protocol)).unwrap_or(Protocol::Tcp);
        if wanted.proxy_protocol && !protocol.tcp() {
            say(&format!("{at}.proxyProtocol"), "is for ports with TCP, and this one has none: leave it out".to_owned());
        }
        let clash = ports.iter().find(|(_, other)| {
            other.port == port && ((other.protocol.tcp() && protocol.tcp()) || (other.protocol.udp() && protocol.udp()))
        });
        if let Some((other, _)) = clash {
            say(&at, format!("port {port} is exposed as {other} already: one name for each port"));
        } else {
            ports.insert(key, Port { port, protocol, proxy_protocol: wanted.proxy_protocol });
        }
    }

    let mut volumes: BTreeMap<VolumeName, Volume> = BTreeMap::new();
    for (key, wanted) in &wire.storage {
        let at = format!(".storage.{key}");
        let mut refuse = |what: &str| say(&format!("{at}.size"), format!("{:?} {what}", wanted.size));
        let range = format!("is out of range: write {MIN_VOLUME} to {MAX_VOLUME}");
        let size = match wanted.size.parse::<Bytes>() {
            Ok(size) if (MIN_VOLUME..=MAX_VOLUME).contains(&size) => Some(size),
            Ok(size) => {
                refuse(&format!("({size}) {range}"));
                None
            }
            Err(SizeError::Large(_)) => {
                refuse(&range);
                None
            }
            Err(error @ SizeError::Form(_)) => {
                say(&format!("{at}.size"), error.to_string());
                None
            }
        };
        let mount_point = wanted.mount_point.clone().unwrap_or_else(|| format!("/seed/storage/{key}"));
        if let Err(what) = check_mount_point(&mount_point) {
            say(&format!("{at}.mountPoint"), what);
        }
        let parsed: Option<VolumeName> = key.parse().map_err(|error| say(&at, format!("{error}"))).ok();
        if let Some((other, _)) = volumes.iter().find(|(_, other)| nested(&other.mount_point, &mount_point)) {
            say(&format!("{at}.mountPoint"), format!("{mount_point} collides with the volume {other}: mount points must be apart"));
        }
        if let (Some(key), Some(size)) = (parsed, size) {
            volumes.insert(key, Volume { size, mount_point });
        }
    }

    let mut domains = BTreeSet::new();
    for given in &wire.domains {
        match given.parse::<CustomDomain>() {
            Ok(domain) => drop(domains.insert(domain)),
            Err(error) => say(".domains", error.to_string()),
        }
    }

    let rollout = wire.rollout.unwrap_or(Rollout::Recreate);
    if rollout == Rollout::Rolling && !wire.storage.is_empty() {
        let what = "\"rolling\" runs two machines at once, and two machines cannot mount one volume: write \"recreate\", or drop the volumes";
        say(".rollout", what.to_owned());
    } else if rollout == Rollout::Rolling && wire.tpm {
        let what =
            "\"rolling\" runs two machines at once, and two machines cannot have one TPM: write \"recreate\", or tpm = false";
        say(".rollout", what.to_owned());
    }

    match (name, size) {
        (Some(name), Some(size)) if problems.is_empty() => {
            let Wire { acme, shoot, tpm, .. } = wire;
            Ok(Manifest { name, size, ports, volumes, rollout, acme, shoot, tpm, domains })
        }
        _ => {
            problems.truncate(MAX_PROBLEMS);
            Err(problems)
        }
    }
}

/// Whether one path is the other or lies below it.
fn nested(a: &str, b: &str) -> bool {
    let below = |outer: &str, inner: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below(a, b) || below(b, a)
}

/// Refuses what could not be mounted, what would hide the system, and what an fstab line could misread.
fn check_mount_point(path: &str) -> Result<(), String> {
    let parts_ok = path.starts_with('/') && path[1..].split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !parts_ok || path.len() > 200 {
        return Err(format!("{path:?} is no absolute path without '.', '..' or doubled slashes (as in /seed/storage/data)"));
    }
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@".contains(&b)) {
        return Err(format!("{path:?} may have only letters, digits and any of / . _ - + @"));
    }
    const RESERVED: [&str; 10] = ["/nix", "/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/usr", "/seed/tpm", "/bin"];
    match RESERVED.iter().find(|taken| nested(taken, path)) {
        Some(taken) => Err(format!("{path:?} would hide {taken}: choose another place, as /seed/storage/data or /var/lib/app")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(meta: Value) -> String {
        let found = read("web", &meta).expect_err("refused");
        found.iter().map(|problem| format!("{problem}\n")).collect()
    }

    #[test]
    fn the_smallest_meta_has_the_published_defaults() {
        let made = read("web", &json!({ "version": 1, "name": "web" })).unwrap();
        assert_eq!((made.size.vcpus, made.size.memory_mib), (1, 512));
        assert_eq!((made.rollout, made.tpm, made.ports.len()), (Rollout::Recreate, false, 0));
    }

    #[test]
    fn a_well_known_name_says_what_was_left_out() {
        let meta =
            json!({ "version": 1, "name": "web", "expose": { "https": {}, "dns": { "port": 5353 }, "my-app": { "port": 1 } } });
        let made = read("web", &meta).unwrap();
        let ports: Vec<_> = made.ports.iter().map(|(name, port)| (name.as_str(), port.port, port.protocol)).collect();
        assert_eq!(ports, [("dns", 5353, Protocol::Dns), ("https", 443, Protocol::Http), ("my-app", 1, Protocol::Tcp)]);
        let said = problems(json!({ "version": 1, "name": "web", "expose": { "my-app": {} } }));
        assert!(said.contains("expose.my-app: is no well-known service, and no port was given"), "{said}");
    }

    #[test]
    fn the_proxy_protocol_is_for_ports_with_tcp() {
        let expose = |protocol: &str| {
            json!({ "version": 1, "name": "web",
                    "expose": { "https": { "proxyProtocol": true }, "x": { "port": 9, "protocol": protocol, "proxyProtocol": true } } })
        };
        let made = read("web", &expose("tcp")).unwrap();
        assert!(made.ports.values().all(|port| port.proxy_protocol));
        assert!(problems(expose("udp")).contains("expose.x.proxyProtocol: is for ports with TCP"));
        // What was remembered before there was such a thing reads as it did, and is written as it was.
        let old = r#"{"port":80,"protocol":"http"}"#;
        let port: Port = serde_json::from_str(old).unwrap();
        assert_eq!((port.proxy_protocol, serde_json::to_string(&port).unwrap().as_str()), (false, old));
    }

    #[test]
    fn every_problem_is_said_at_once() {
        let said = problems(json!({
            "version": 1, "name": "api", "size": "xxl", "rollout": "rolling",
            "expose": { "http": { "port": 0 }, "UP": { "port": 1 }, "a": { "port": 80 }, "b": { "port": 80, "protocol": "dns" } },
            "domains": ["WWW.example.com", "www.example.com", "192.0.2.1"],
            "storage": { "z": { "size": "0Mi" }, "big": { "size": "1048577Ti" }, "zib": { "size": "1073741824Ti" }, "n": { "size": "12" },
                         "nix": { "size": "1Gi", "mountPoint": "/nix/store" }, "up": { "size": "1Gi", "mountPoint": "/a/../b" } },
        }));
        for part in [
            "seeds.web.meta.name: \"api\" differs",
            "seeds.web.meta.size: \"xxl\" is no size: write one of xs",
            "expose.http.port: 0 is no port",
            "seeds.web.meta.domains: domain \"WWW.example.com\" is no DNS label",
            "seeds.web.meta.domains: domain \"192.0.2.1\" is an address",
            "expose.UP: port name \"UP\" is no DNS label",
            "expose.b: port 80 is exposed as a already",
            "storage.z.size: \"0Mi\" (0Ki) is out of range: write 8Mi to 16Ti",
            "storage.n.size: \"12\" is no size",
            "storage.big.size: \"1048577Ti\"",
            "storage.zib.size: \"1073741824Ti\" is out of range: write 8Mi to 16Ti",
            "storage.nix.mountPoint: \"/nix/store\" would hide /nix",
            "storage.up.mountPoint:",
            "rollout: \"rolling\" runs two machines at once",
        ] {
            assert!(said.contains(part), "{part}\n--\n{said}");
        }
    }

    #[test]
    fn what_is_said_stays_short_whatever_is_given() {
        let long = "x".repeat(1 << 20);
        let said = |attribute: &str, meta: &Value| -> usize {
            read(attribute, meta).expect_err("refused").iter().map(|problem| problem.to_string().len()).sum()
        };
        let many: serde_json::Map<String, Value> = (0..20_000).map(|n| (format!("-{n}"), json!({ "port": 0 }))).collect();
        assert!(said(&long, &json!({ "version": 1, "name": "web", "expose": many })) < 10_000);
        assert!(said("web", &json!({ "version": 1, "name": "web", "expose": many })) < 10_000);
        assert!(said("web", &json!({ "version": 1, "name": long, "size": long, "system": long })) < 10_000);
        assert!(said("web", &json!({ "version": 1, "name": "web", (long.as_str()): 1 })) < 10_000);
        let volumes: serde_json::Map<String, Value> = (0..17).map(|n| (format!("v{n}"), json!({ "size": "1Gi" }))).collect();
        assert!(
            problems(json!({ "version": 1, "name": "web", "storage": volumes })).contains("17 entries: one instance may have 16")
        );
    }

    #[test]
    fn an_unknown_version_or_field_is_refused_by_name() {
        assert!(
            problems(json!({ "version": 9, "name": "web" })).contains("version: is 9, which this host does not know (it knows 1)")
        );
        assert!(problems(json!({ "name": "web" })).contains("version: is missing"));
        assert!(problems(json!([1])).contains("version: is missing"));
        assert!(problems(json!({ "version": 1, "name": "web", "sise": "s" })).contains("unknown field `sise`"));
    }

    #[test]
    fn what_is_rolled_out_has_nothing_that_two_machines_cannot_share() {
        let meta = json!({ "version": 1, "name": "web", "rollout": "rolling", "tpm": true });
        assert!(problems(meta).contains("rollout: \"rolling\" runs two machines at once, and two machines cannot have one TPM"));
        let meta = json!({ "version": 1, "name": "web", "rollout": "rolling" });
        assert_eq!(read("web", &meta).unwrap().rollout, Rollout::Rolling);
    }

    #[test]
    fn mount_points_cannot_hide_the_system_or_each_other() {
        for bad in ["/", "/nix", "/nix/x", "/etc/foo", "relative", "/a b", "/a\nb", "/run", "/seed/tpm/x", "/a//b", "/a/"] {
            assert!(check_mount_point(bad).is_err(), "{bad}");
        }
        for good in ["/seed/storage/data", "/var/lib/caddy", "/tmp/cache", "/nixos"] {
            assert_eq!(check_mount_point(good), Ok(()), "{good}");
        }
        let meta = json!({ "version": 1, "name": "web", "storage": {
            "a": { "size": "1Gi", "mountPoint": "/data" }, "b": { "size": "1Gi", "mountPoint": "/data/b" } } });
        assert!(problems(meta).contains("storage.b.mountPoint: /data/b collides with the volume a"));
    }
}

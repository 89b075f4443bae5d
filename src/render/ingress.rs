//! Where what comes to ports 80 and 443 goes: the configuration of HAProxy, and its maps.
//!
//! The configuration is the same for any number of instances: they are lines of maps, which are changed while HAProxy runs. A name is
//! in [`Map::Https`] and [`Map::Http`] exactly while its instance is ready; else [`Map::Away`] has what port 80 says of it. What is not
//! in the maps goes to the doors: over 443 they show the host's own certificate or an alert of TLS, over 80 they have the host's own names.
//!
//! Keys are names of the zone, or names that were proven; each is checked once more before it becomes a line ([`is_name`]). Values are
//! made of words of this file, addresses and numbers.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    net::Ipv4Addr,
    path::PathBuf,
};

use sha2::{Digest, Sha256};

use super::{File, Layout, zone};
use crate::spec::{
    desired::Desired,
    instance::{Instance, Port, Protocol},
    name::{InstanceId, SetId},
};

/// The unit that runs HAProxy.
pub const UNIT: &str = "seed-ingress.service";

/// The maps, each a file of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Map {
    /// By TLS server name: `plain/10.83.0.2/443`, or `proxied/…` where the guest wants the PROXY protocol.
    Https,
    /// By Host, likewise.
    Http,
    /// By Host: why it is not in the others. [`ONLY_HTTPS`]: it is ready, and has no port for HTTP.
    Away,
}

/// What [`Map::Away`] has for an instance that is sent on to HTTPS.
pub const ONLY_HTTPS: &str = "https";

impl Map {
    pub const ALL: [Self; 3] = [Self::Https, Self::Http, Self::Away];

    /// Where it is.
    pub fn path(self, layout: &Layout) -> PathBuf {
        let name = match self {
            Self::Https => "https.map",
            Self::Http => "http.map",
            Self::Away => "away.map",
        };
        folder(layout).join(name)
    }
}

/// /run/seed/ingress
pub fn folder(layout: &Layout) -> PathBuf {
    layout.run.join("ingress")
}

/// Where HAProxy takes commands.
pub fn admin_socket(layout: &Layout) -> PathBuf {
    folder(layout).join("admin.sock")
}

/// What the maps hold: name to value.
pub type Maps = BTreeMap<Map, BTreeMap<String, String>>;

/// What an instance can do for whoever comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It is ready, at this address.
    Ready(Ipv4Addr),
    Booting,
    Stopping,
    Stopped,
    Failed,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "ready",
            Self::Booting => "booting",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// The ports of an instance that names lead to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entrance {
    pub https: Option<Port>,
    pub http: Option<Port>,
}

/// All that does not depend on what runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ingress {
    /// haproxy.cfg
    pub config: File,
    /// Where the maps are.
    pub maps: BTreeMap<Map, PathBuf>,
    /// Each name once; only those of instances that have an entrance.
    pub names: BTreeMap<String, SetId>,
    pub entrances: BTreeMap<SetId, Entrance>,
}

/// Every name under which an instance is reached, and the instance: its own, and the domains that were proven. Whatever gives instances more
/// names adds them here: maps and pages follow. Of a name that stands here twice, the first counts.
pub fn names(desired: &Desired, layout: &Layout) -> Vec<(String, SetId)> {
    let serving: BTreeMap<InstanceId, &SetId> = desired.serving().map(|(set, _)| (set.instance(), set)).collect();
    let own = serving.iter().map(|(id, set)| (zone::fqdn(id, &layout.domain), (*set).clone()));
    own.chain(desired.domains.iter().filter_map(|(name, id)| Some((name.to_string(), (*serving.get(id)?).clone())))).collect()
}

/// The names of this host itself.
pub fn own_names(layout: &Layout) -> Vec<String> {
    let domain = &layout.domain;
    vec![domain.to_string(), format!("silo.{domain}"), format!("ns1.{domain}")]
}

/// Whether a text can be the key of a line: a name in lower case, without a dot at its end.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// The ports that names lead to: `https`, else 443; `http`, else 80, else the lowest that speaks HTTP and is not the first.
pub fn entrance(instance: &Instance) -> Entrance {
    let tcp = || instance.ports.iter().filter(|(_, port)| port.protocol.tcp());
    let named = |name: &str, number: u16| {
        let by_name = tcp().find(|(key, _)| key.as_str() == name);
        by_name.or_else(|| tcp().find(|(_, port)| port.port == number)).map(|(_, port)| port.clone())
    };
    let https = named("https", 443);
    let speaks = tcp().map(|(_, port)| port).filter(|port| port.protocol == Protocol::Http && https.as_ref() != Some(port));
    let http = named("http", 80).or_else(|| speaks.min_by_key(|port| port.port).cloned());
    Entrance { https, http }
}

/// The ingress of what is wanted.
pub fn ingress(desired: &Desired, layout: &Layout) -> Ingress {
    let entrances: BTreeMap<SetId, Entrance> = desired
        .instances
        .iter()
        .map(|(id, wanted)| (id.clone(), entrance(&wanted.instance)))
        .filter(|(_, entrance)| *entrance != Entrance::default())
        .collect();
    let known = admitted(names(desired, layout), &own_names(layout), &entrances);
    let maps = Map::ALL.iter().map(|map| (*map, map.path(layout))).collect();
    Ingress { config: File { path: folder(layout).join("haproxy.cfg"), text: config(layout) }, maps, names: known, entrances }
}

/// Those names that can be lines of the maps: none of the host's own, and none without an entrance behind it.
fn admitted(names: Vec<(String, SetId)>, own: &[String], entrances: &BTreeMap<SetId, Entrance>) -> BTreeMap<String, SetId> {
    let mut known = BTreeMap::new();
    for (name, id) in names {
        if is_name(&name) && entrances.contains_key(&id) && !own.contains(&name) {
            known.entry(name).or_insert(id);
        }
    }
    known
}

impl Ingress {
    /// That of a host without instances.
    pub fn empty(layout: &Layout) -> Self {
        ingress(&Desired::default(), layout)
    }

    /// What the maps are to hold, given what the instances can do.
    pub fn maps(&self, condition: impl Fn(&SetId) -> Condition) -> Maps {
        let mut maps: Maps = Map::ALL.iter().map(|map| (*map, BTreeMap::new())).collect();
        let mut put = |map: Map, name: &str, value: String| {
            maps.entry(map).or_default().insert(name.to_owned(), value);
        };
        for (name, id) in &self.names {
            let Some(entrance) = self.entrances.get(id) else { continue };
            match condition(id) {
                Condition::Ready(address) => {
                    let to = |port: &Port| {
                        let how = if port.proxy_protocol { "proxied" } else { "plain" };
                        format!("{how}/{address}/{}", port.port)
                    };
                    if let Some(port) = &entrance.https {
                        put(Map::Https, name, to(port));
                    }
                    match &entrance.http {
                        Some(port) => put(Map::Http, name, to(port)),
                        None => put(Map::Away, name, ONLY_HTTPS.to_owned()),
                    }
                }
                away => put(Map::Away, name, away.to_string()),
            }
        }
        maps
    }

    /// The files that are to be there.
    pub fn files(&self, maps: &Maps) -> Vec<File> {
        let lines = |lines: &BTreeMap<String, String>| lines.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        let text = |map| maps.get(map).map(lines).unwrap_or_default();
        let files = self.maps.iter().map(|(map, path)| File { path: path.clone(), text: text(map) });
        std::iter::once(self.config.clone()).chain(files).collect()
    }

    /// What a running HAProxy says of its configuration.
    pub fn digest(&self) -> String {
        digest(&self.config.text)
    }
}

/// What stands in a configuration to tell it from others: the line with it excepted, the hash of its text.
fn digest(text: &str) -> String {
    let mut hash = Sha256::new();
    for line in text.lines().filter(|line| !line.starts_with(DESCRIPTION)) {
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    let hash = hash.finalize();
    hash[..8].iter().fold(String::from("seed-"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

const DESCRIPTION: &str = "    description ";

/// haproxy.cfg, for HAProxy 2.6 and newer. Its sockets are those of `seed-ingress.socket`, in that order: 80 and 443,
/// each for IPv4 and IPv6 (else an IPv4 client would look like one of a single neighbourhood of IPv6), and that for commands.
fn config(layout: &Layout) -> String {
    let path = |map: Map| map.path(layout).display().to_string();
    let (https, http, away) = (path(Map::Https), path(Map::Http), path(Map::Away));
    let doors = layout.run.join("doors");
    let doors = doors.display();
    let own = own_names(layout).join(" ");
    let refused = r"%[var(txn.name)] is running, but does not take connections at its port for HTTP.\n";
    let text = format!(
        r#"# Written by seed-agent; changes are lost. Instances are in the maps beside this file.

global
    stats socket fd@7 level admin
    stats timeout 10s
    maxconn 8000
    # After a reload, connections of the configuration before last so long.
    hard-stop-after 1h
    log stderr format short daemon notice

defaults
    log global
    # A guest that does not take a connection in this time has no port there.
    timeout connect 5s
    retries 1
    option dontlognull

# Who is connected how often: by neighbourhood (an IPv4 address, a /48), and by whom they want.
backend near-https
    stick-table type ipv6 size 100k expire 2m store conn_cur
backend near-http
    stick-table type ipv6 size 100k expire 2m store conn_cur
backend far-https
    stick-table type string len 64 size 20k expire 2m store conn_cur
backend far-http
    stick-table type string len 64 size 20k expire 2m store conn_cur

# --- 443: by server name, ending in the guest ------------------------------------------------------------------------------------------

frontend https
    mode tcp
    bind fd@5
    bind fd@6
    maxconn 4000
    timeout client 1h
    timeout client-fin 30s
    option clitcpka
    tcp-request connection track-sc0 src,ipmask(32,48) table near-https
    tcp-request connection reject if {{ sc_conn_cur(0,near-https) gt 128 }}
    # Nothing is decided before the whole greeting is there, or its time is over.
    tcp-request inspect-delay 5s
    tcp-request content reject unless {{ req.ssl_hello_type 1 }}
    tcp-request content set-var(txn.to) req.ssl_sni,lower,map_str({https}) if {{ req.ssl_sni -m found }}
    tcp-request content track-sc1 var(txn.to) table far-https if {{ var(txn.to) -m found }}
    tcp-request content reject if {{ sc_conn_cur(1,far-https) gt 2000 }}
    tcp-request content set-dst var(txn.to),field(2,/) if {{ var(txn.to) -m found }}
    tcp-request content set-dst-port var(txn.to),field(3,/) if {{ var(txn.to) -m found }}
    use_backend https-proxied if {{ var(txn.to) -m beg proxied/ }}
    use_backend https-plain if {{ var(txn.to) -m beg plain/ }}
    default_backend https-doors

defaults tcp
    mode tcp
    log global
    timeout connect 5s
    timeout server 1h
    timeout server-fin 30s
    retries 1
    option srvtcpka

# One server for all instances: where it is, each connection says.
backend https-plain
    server guest 0.0.0.0:0
backend https-proxied
    server guest 0.0.0.0:0 send-proxy-v2
# Names that are not ready, unknown names and the host's own: the doors answer with TLS.
backend https-doors
    server doors unix@{doors}/https.sock send-proxy-v2

# --- 80: by Host -----------------------------------------------------------------------------------------------------------------------

defaults http
    mode http
    log global
    timeout connect 5s
    timeout client 60s
    timeout client-fin 30s
    timeout http-request 10s
    timeout http-keep-alive 15s
    timeout server 5m
    timeout server-fin 30s
    timeout tunnel 1h
    retries 1
    # A connection to a guest belongs to the one client that it was made for.
    http-reuse never
    option http-keep-alive
    option dontlognull

frontend http
    bind fd@3
    bind fd@4
    maxconn 4000
    # One connection is one request at a time: what is counted below is connections.
    option disable-h2-upgrade
    # X_Forwarded_For is the same as X-Forwarded-For to many programs.
    option http-restrict-req-hdr-names delete
    tcp-request connection track-sc0 src,ipmask(32,48) table near-http
    tcp-request connection reject if {{ sc_conn_cur(0,near-http) gt 128 }}
    http-request set-var(txn.name) req.hdr(host),host_only,lower,rtrim(.)
    http-request set-var(txn.to) var(txn.name),map_str({http})
    http-request set-var(txn.away) var(txn.name),map_str({away})
    acl own var(txn.name) -m str {own}
    acl there var(txn.to) -m found
    acl away var(txn.away) -m found
    # What was said of the way before here, anybody could have said.
    http-request del-header Forwarded
    http-request del-header X-Real-IP
    http-request del-header X-Forwarded-Host
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto http
    http-request return status 404 content-type "text/plain; charset=utf-8" hdr Cache-Control no-store string "There is nothing by this name here.\n" unless own or there or away
    http-request redirect scheme https code 308 if !there {{ var(txn.away) -m str {ONLY_HTTPS} }}
    http-request return status 503 content-type "text/plain; charset=utf-8" hdr Cache-Control no-store hdr Retry-After 5 lf-string "%[var(txn.name)] is %[var(txn.away)].\n" if !there away
    http-request track-sc1 var(txn.to) table far-http if there
    http-request return status 503 content-type "text/plain; charset=utf-8" hdr Cache-Control no-store hdr Retry-After 5 lf-string "%[var(txn.name)] is busy.\n" if {{ sc_conn_cur(1,far-http) gt 2000 }}
    http-request set-dst var(txn.to),field(2,/) if there
    http-request set-dst-port var(txn.to),field(3,/) if there
    use_backend http-proxied if {{ var(txn.to) -m beg proxied/ }}
    use_backend http-plain if there
    default_backend http-doors

backend http-plain
    http-error status 503 content-type "text/plain; charset=utf-8" lf-string "{refused}"
    server guest 0.0.0.0:0
backend http-proxied
    http-error status 503 content-type "text/plain; charset=utf-8" lf-string "{refused}"
    server guest 0.0.0.0:0 send-proxy-v2
backend http-doors
    http-error status 503 content-type "text/plain; charset=utf-8" string "This host has no door for HTTP.\n"
    server doors unix@{doors}/http.sock send-proxy-v2
"#
    );
    let described = format!("global\n{DESCRIPTION}{}\n", digest(&text));
    text.replacen("global\n", &described, 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::render::samples;

    fn layout() -> Layout {
        Layout { ingress: Some(1), ..samples::layout() }
    }

    fn exposing(ports: &[(&str, u16, Protocol)]) -> Instance {
        let (_, wanted) = samples::instance("web");
        let ports = ports.iter().map(|(name, port, protocol)| (name.parse().unwrap(), Port::new(*port, *protocol)));
        Instance { ports: ports.collect(), ..wanted.instance }
    }

    #[test]
    fn a_name_leads_to_the_ports_that_people_mean() {
        use Protocol::{Dns, Http, Tcp, Udp};
        let table: [(&[(&str, u16, Protocol)], Option<u16>, Option<u16>); 10] = [
            (&[], None, None),
            (&[("pg", 5432, Tcp), ("dns", 53, Dns)], None, None),
            (&[("http", 80, Tcp), ("https", 443, Http)], Some(443), Some(80)),
            (&[("https", 443, Http)], Some(443), None),
            (&[("https", 8443, Tcp), ("a", 443, Tcp)], Some(8443), None),
            (&[("grpc", 443, Protocol::Grpc)], Some(443), None),
            (&[("web", 80, Tcp)], None, Some(80)),
            (&[("http", 3000, Tcp), ("a", 80, Tcp)], None, Some(3000)),
            (&[("z", 3000, Http), ("a", 4000, Http), ("b", 2000, Tcp)], None, Some(3000)),
            (&[("https", 443, Udp), ("http", 80, Udp)], None, None),
        ];
        for (ports, https, http) in table {
            let found = entrance(&exposing(ports));
            assert_eq!((found.https.map(|port| port.port), found.http.map(|port| port.port)), (https, http), "{ports:?}");
        }
    }

    #[test]
    fn a_name_is_in_the_maps_exactly_while_its_instance_is_ready() {
        let mut desired = samples::desired();
        let (web, _) = samples::instance("web");
        let both = exposing(&[("http", 80, Protocol::Tcp), ("https", 443, Protocol::Http)]);
        let mut proxied = exposing(&[("https", 443, Protocol::Http)]);
        proxied.ports.values_mut().for_each(|port| port.proxy_protocol = true);
        let (other, _) = samples::instance("other");
        desired.instances.get_mut(&web).unwrap().instance = both;
        desired.instances.get_mut(&other).unwrap().instance = proxied;
        desired.domains.insert("www.example.org".parse().unwrap(), web.instance());
        let ingress = ingress(&desired, &layout());
        let (name, second) = ("web.s-gaydazldmnsg.seed.example", "web.s-aaaaaaaaaaaa.seed.example");
        assert_eq!(ingress.names.keys().collect::<Vec<_>>(), [second, name, "www.example.org"], "the database has no entrance");
        let maps = ingress.maps(|_| Condition::Ready([10, 88, 0, 2].into()));
        let line = |maps: &Maps, map, name: &str| maps[&map].get(name).cloned();
        assert_eq!(line(&maps, Map::Https, name).as_deref(), Some("plain/10.88.0.2/443"));
        assert_eq!(line(&maps, Map::Http, name).as_deref(), Some("plain/10.88.0.2/80"));
        assert_eq!(line(&maps, Map::Away, name), None);
        assert_eq!(line(&maps, Map::Https, second).as_deref(), Some("proxied/10.88.0.2/443"));
        assert_eq!((line(&maps, Map::Http, second), line(&maps, Map::Away, second).as_deref()), (None, Some(ONLY_HTTPS)));
        for (condition, said) in [
            (Condition::Booting, "booting"),
            (Condition::Stopping, "stopping"),
            (Condition::Stopped, "stopped"),
            (Condition::Failed, "failed"),
        ] {
            let maps = ingress.maps(|_| condition);
            assert!(maps[&Map::Https].is_empty() && maps[&Map::Http].is_empty());
            assert_eq!(line(&maps, Map::Away, name).as_deref(), Some(said));
        }
        let files = ingress.files(&maps);
        assert_eq!(files.len(), 4);
        let own = format!("{second} proxied/10.88.0.2/443\n{name} plain/10.88.0.2/443\n");
        assert_eq!(files[1].text, format!("{own}www.example.org plain/10.88.0.2/443\n"));
    }

    #[test]
    fn the_configuration_does_not_know_the_instances_and_says_which_it_is() {
        let (none, some) = (Ingress::empty(&layout()), ingress(&samples::desired(), &layout()));
        assert_eq!(none.config, some.config);
        let described: Vec<&str> = some.config.text.lines().filter_map(|line| line.strip_prefix(DESCRIPTION)).collect();
        assert_eq!(described, [some.digest()]);
        let mut elsewhere = layout();
        elsewhere.domain = "other.example".parse().unwrap();
        assert_ne!(Ingress::empty(&elsewhere).digest(), none.digest());
    }

    proptest! {
        #[test]
        fn no_name_breaks_a_line_or_takes_the_hosts_own(
            texts in prop::collection::vec(prop_oneof![".*", "[a-zA-Z0-9.;# -]{0,80}", "[a-z.]{1,8}", Just("seed.example".to_owned())], 0..20),
        ) {
            let (id, wanted) = samples::instance("web");
            let entrances = BTreeMap::from([(id.clone(), entrance(&wanted.instance))]);
            let own = own_names(&layout());
            let known = admitted(texts.iter().map(|text| (text.clone(), id.clone())).collect(), &own, &entrances);
            let ingress = Ingress { names: known, entrances, maps: [(Map::Http, PathBuf::from("/x"))].into(), ..Ingress::default() };
            let file = &ingress.files(&ingress.maps(|_| Condition::Ready([10, 0, 0, 1].into())))[1];
            for line in file.text.lines() {
                let (name, value) = line.split_once(' ').unwrap();
                prop_assert!(texts.iter().any(|text| text == name) && !own.iter().any(|own| own == name));
                prop_assert_eq!(value, "plain/10.0.0.1/80");
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte)));
            }
            prop_assert_eq!(file.text.lines().count(), ingress.names.len());
        }
    }
}

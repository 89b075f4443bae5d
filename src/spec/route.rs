//! Public ports: what a flake's outputs `ipv4` and `ipv6` claim of the ports of this host's public addresses.
//!
//! ```nix
//! ipv4.routes.smtp = { port = 25; protocol = "tcp"; instance = "mail"; targetPort = 2525; host = "192.0.2.7"; };
//! ```
//!
//! A claim is part of the deployment that makes it, and stands as long as that deployment is wanted: there is no second record that
//! could say something else.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    instance::{Port, Protocol},
    manifest::Problem,
    name::{InstanceName, PortName, RouteName},
};

/// The most routes of one output.
pub const MAX_ROUTES: usize = 256;
/// The most that is said about one output.
const MAX_PROBLEMS: usize = 50;

/// Which of the two outputs a route stands in, and so what its addresses look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// Whether an address is of this family.
    pub fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::Ipv4)
    }

    /// The name of the flake's output.
    pub fn output(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// One port of this host's public addresses, and the port of an instance that it leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    pub family: Family,
    pub name: RouteName,
    pub port: u16,
    pub protocol: Protocol,
    pub instance: InstanceName,
    /// An exposed port of the instance.
    pub target_port: u16,
    /// The public address that it is for; `None`: all of the family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<IpAddr>,
}

impl Route {
    /// Whether both would take what arrives at one port of one address.
    pub fn clashes(&self, other: &Self) -> bool {
        let transport = self.protocol.tcp() && other.protocol.tcp() || self.protocol.udp() && other.protocol.udp();
        let address = self.host.is_none() || other.host.is_none() || self.host == other.host;
        self.family == other.family && self.port == other.port && transport && address
    }

    /// Where in the flake it is written.
    pub fn place(&self) -> String {
        format!("{}.routes.{}", self.family.output(), self.name)
    }

    /// Of this host's public addresses those that it is for.
    pub fn addresses<'a>(&self, public: &'a [PublicAddress]) -> impl Iterator<Item = &'a PublicAddress> + use<'a> {
        let (family, host) = (self.family, self.host);
        public.iter().filter(move |one| family.has(one.address) && host.is_none_or(|host| host == one.address))
    }
}

/// `25/tcp of 192.0.2.7`, `53/tcp+udp of every IPv4 address`
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} of ", self.port, self.protocol.transport())?;
        match self.host {
            Some(host) => write!(f, "{host}"),
            None => write!(f, "every {} address", self.family),
        }
    }
}

/// `routes` with those of one instance as they are in `other`.
pub fn with_those_of(instance: &InstanceName, routes: &[Route], other: &[Route]) -> Vec<Route> {
    let rest = routes.iter().filter(|route| route.instance != *instance);
    let own = other.iter().filter(|route| route.instance == *instance);
    let mut all: Vec<Route> = rest.chain(own).cloned().collect();
    all.sort();
    all
}

/// One of the addresses under which the world reaches this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicAddress {
    pub address: IpAddr,
    /// Where what is sent to it arrives: itself, or an address of this host behind somebody else's NAT.
    pub arrives: IpAddr,
}

/// A port that the host itself uses, or whose operator keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    pub port: u16,
    pub tcp: bool,
    pub udp: bool,
}

impl Reserved {
    /// A TCP port.
    pub const fn tcp(port: u16) -> Self {
        Self { port, tcp: true, udp: false }
    }

    /// A port of both transports.
    pub const fn both(port: u16) -> Self {
        Self { port, tcp: true, udp: true }
    }

    /// Whether a route would take it.
    pub fn clashes(&self, route: &Route) -> bool {
        self.port == route.port && (self.tcp && route.protocol.tcp() || self.udp && route.protocol.udp())
    }
}

/// `2200/tcp`, `51820/udp`; `8080` for both.
impl FromStr for Reserved {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "is no port: write one with its transport, as in \"2200/tcp\" or \"51820/udp\", or \"8080\" for both".to_owned();
        let (port, transport) = text.split_once('/').map_or((text, ""), |(port, transport)| (port, transport));
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        match transport {
            "" if !text.contains('/') => Ok(Self::both(port)),
            "tcp" => Ok(Self::tcp(port)),
            "udp" => Ok(Self { port, tcp: false, udp: true }),
            _ => Err(wrong()),
        }
    }
}

/// What routes have to fit.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    pub public: &'a [PublicAddress],
    pub reserved: &'a [Reserved],
    /// What other namespaces have claimed.
    pub taken: &'a [Route],
}

/// What is said of a port that another namespace has; not which.
pub fn taken(route: &Route) -> String {
    format!("public port {route} is taken by another repository of this host: choose another port")
}

/// What is said of a port that the host itself uses.
pub fn reserved(route: &Route) -> String {
    format!("public port {route} is one that this host uses itself: choose another port")
}

/// The instances of a flake, with the ports that each exposes; `None` where that could not be read, which is said elsewhere.
pub type Instances = BTreeMap<InstanceName, Option<BTreeMap<PortName, Port>>>;

/// Reads the outputs `ipv4` and `ipv6` of a flake, of which `instances` are the instances. Returns the routes, sorted, or every
/// problem at once.
pub fn read(
    ipv4: Option<&Value>,
    ipv6: Option<&Value>,
    instances: &Instances,
    ground: Ground<'_>,
) -> Result<Vec<Route>, Vec<Problem>> {
    let mut reader = Reader { instances, ground, problems: Vec::new(), routes: Vec::new() };
    let mut problems = Vec::new();
    for (family, output) in [(Family::Ipv4, ipv4), (Family::Ipv6, ipv6)] {
        if let Some(output) = output {
            reader.output(family, output);
        }
        reader.problems.truncate(MAX_PROBLEMS);
        problems.append(&mut reader.problems);
    }
    reader.routes.sort();
    if problems.is_empty() { Ok(reader.routes) } else { Err(problems) }
}

struct Reader<'a> {
    instances: &'a Instances,
    ground: Ground<'a>,
    problems: Vec<Problem>,
    routes: Vec<Route>,
}

impl Reader<'_> {
    fn say(&mut self, place: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(place, what));
    }

    /// An attribute set that has no fields but these.
    fn attributes<'v>(&mut self, place: &str, value: &'v Value, known: &[&str], example: &str) -> Option<&'v Map<String, Value>> {
        let Some(fields) = value.as_object() else {
            self.say(place, format!("is {}: write {example}", kind(value)));
            return None;
        };
        for field in fields.keys().filter(|field| !known.is_empty() && !known.contains(&field.as_str())) {
            self.say(place, format!("has no field {field:?}: there are {}", known.join(", ")));
        }
        Some(fields)
    }

    fn output(&mut self, family: Family, output: &Value) {
        let place = family.output();
        let example = format!("{place}.routes.<name> = {{ port = 25; instance = \"mail\"; }}");
        let Some(fields) = self.attributes(place, output, &["enable", "routes"], &example) else { return };
        let enabled = match fields.get("enable") {
            None => true,
            Some(Value::Bool(enabled)) => *enabled,
            Some(other) => {
                self.say(&format!("{place}.enable"), format!("is {}: write true or false", kind(other)));
                true
            }
        };
        let Some(routes) = fields.get("routes") else { return };
        let Some(routes) = self.attributes(&format!("{place}.routes"), routes, &[], &example) else { return };
        if routes.len() > MAX_ROUTES {
            self.say(&format!("{place}.routes"), format!("has {} entries: one flake may have {MAX_ROUTES}", routes.len()));
            return;
        }
        // What is turned off is checked for what it is, and claims nothing.
        let public = self.ground.public.iter().any(|one| family.has(one.address));
        if enabled && !public && !routes.is_empty() {
            let what =
                format!("this host has no public {family} address: leave it out, or ask its operator for network.public_addresses");
            self.say(place, what);
        }
        for (name, route) in routes {
            let Some(route) = self.route(family, name, route, enabled && public) else { continue };
            if enabled {
                self.claim(route);
            }
        }
    }

    fn route(&mut self, family: Family, name: &str, value: &Value, has_public: bool) -> Option<Route> {
        let place = format!("{}.routes.{name}", family.output());
        let parsed = match name.parse::<RouteName>() {
            Ok(name) => name,
            Err(error) => {
                self.say(&format!("{}.routes", family.output()), error.to_string());
                return None;
            }
        };
        let known = ["port", "protocol", "instance", "targetPort", "host"];
        let fields = self.attributes(&place, value, &known, "{ port = 25; instance = \"mail\"; }")?;
        let port = match fields.get("port") {
            None => {
                self.say(&format!("{place}.port"), "is missing: write the public port, as in port = 25");
                None
            }
            Some(value) => self.port(&format!("{place}.port"), value),
        };
        let target = match fields.get("targetPort") {
            None | Some(Value::Null) => port,
            Some(value) => self.port(&format!("{place}.targetPort"), value),
        };
        let protocol = match fields.get("protocol") {
            None | Some(Value::Null) => Some(Protocol::Tcp),
            Some(value) => match serde_json::from_value::<Protocol>(value.clone()) {
                Ok(protocol) => Some(protocol),
                Err(_) => {
                    self.say(
                        &format!("{place}.protocol"),
                        format!("{} is no protocol: write one of tcp, udp, dns, http, grpc", quote(value)),
                    );
                    None
                }
            },
        };
        let host = match fields.get("host") {
            None | Some(Value::Null) => Some(None),
            Some(value) => self.host(family, &format!("{place}.host"), value, has_public),
        };
        let instance = self.instance(&format!("{place}.instance"), fields.get("instance"));
        let (port, target_port, protocol, host, instance) = (port?, target?, protocol?, host?, instance?);
        let ports = self.instances.get(&instance).and_then(Option::as_ref);
        if let Some(ports) = ports.filter(|ports| !exposes(ports, target_port, protocol)) {
            let what = not_exposed(&instance, ports, target_port, protocol);
            self.say(&place, what);
            return None;
        }
        Some(Route { family, name: parsed, port, protocol, instance, target_port, host })
    }

    fn port(&mut self, place: &str, value: &Value) -> Option<u16> {
        let port = value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0);
        if port.is_none() {
            self.say(place, format!("{} is no port: write a number from 1 to 65535", quote(value)));
        }
        port
    }

    fn host(&mut self, family: Family, place: &str, value: &Value, has_public: bool) -> Option<Option<IpAddr>> {
        let address = value.as_str().and_then(|text| text.parse::<IpAddr>().ok()).filter(|address| family.has(*address));
        let Some(address) = address else {
            let example = if family == Family::Ipv4 { "192.0.2.7" } else { "2001:db8::7" };
            self.say(
                place,
                format!("{} is no {family} address: write one, as in \"{example}\", or leave it out for all", quote(value)),
            );
            return None;
        };
        let own: Vec<String> =
            self.ground.public.iter().filter(|one| family.has(one.address)).map(|one| one.address.to_string()).collect();
        if has_public && !own.contains(&address.to_string()) {
            let what =
                format!("{address} is no public address of this host: write one of {}, or leave it out for all", own.join(", "));
            self.say(place, what);
            return None;
        }
        Some(Some(address))
    }

    fn instance(&mut self, place: &str, value: Option<&Value>) -> Option<InstanceName> {
        let names: Vec<&str> = self.instances.keys().map(InstanceName::as_str).collect();
        let names = names.join(", ");
        let found = match value {
            None => {
                self.say(place, format!("is missing: write the instance that it leads to, one of {names}"));
                return None;
            }
            Some(value) => value.as_str().and_then(|text| self.instances.keys().find(|name| name.as_str() == text)).cloned(),
        };
        if found.is_none() {
            let given = value.map(quote).unwrap_or_default();
            self.say(place, format!("{given} is no instance of this flake: write one of {names}"));
        }
        found
    }

    /// Takes a route if nobody has its port.
    fn claim(&mut self, route: Route) {
        let place = route.place();
        if self.ground.reserved.iter().any(|reserved| reserved.clashes(&route)) {
            return self.say(&place, reserved(&route));
        }
        if let Some(other) = self.routes.iter().find(|other| other.clashes(&route)) {
            let what = format!("public port {route} is that of {} already: one route for each port", other.place());
            return self.say(&place, what);
        }
        if self.ground.taken.iter().any(|other| other.clashes(&route)) {
            return self.say(&place, taken(&route));
        }
        self.routes.push(route);
    }
}

/// Whether ports include this one for all that the protocol uses.
fn exposes(ports: &BTreeMap<PortName, Port>, port: u16, protocol: Protocol) -> bool {
    // What the ingress alone may speak to, no client can: it would be believed whoever it says it is.
    let open = || ports.values().filter(|one| !one.proxy_protocol);
    let any = |uses: fn(Protocol) -> bool| open().any(|one| one.port == port && uses(one.protocol));
    (!protocol.tcp() || any(Protocol::tcp)) && (!protocol.udp() || any(Protocol::udp))
}

fn not_exposed(instance: &InstanceName, ports: &BTreeMap<PortName, Port>, port: u16, protocol: Protocol) -> String {
    let transport = protocol.transport();
    let word = if protocol.tcp() && protocol.udp() { "dns" } else { transport };
    let list: Vec<String> = ports
        .values()
        .map(|one| {
            format!("{}/{}{}", one.port, one.protocol.transport(), if one.proxy_protocol { " for the ingress alone" } else { "" })
        })
        .collect();
    let has = if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
    format!(
        "{instance} does not expose {port}/{transport} (it exposes {has}): add seed.expose.<name> = {{ port = {port}; protocol = \"{word}\"; }} \
         to it, or write the targetPort that is meant"
    )
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an attribute set",
    }
}

/// A value as it may be shown: short, and without anything that a terminal obeys.
fn quote(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;

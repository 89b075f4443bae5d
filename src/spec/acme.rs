//! What the ACME facade keeps: accounts of instances, orders, and certificates, also this host's own. Every name in them was decided by
//! this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::name::{Domain, InstanceId, NameError, Namespace};

/// Whose an order or a certificate is. As text it is the instance, or `host`, which no instance is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Holder {
    /// This host itself, for its HTTPS door.
    Host,
    Instance(InstanceId),
}

impl Holder {
    /// `None` for the host.
    pub fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::Host => None,
            Self::Instance(id) => Some(&id.namespace),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Instance(id) => id.fmt(f),
        }
    }
}

impl From<Holder> for String {
    fn from(holder: Holder) -> Self {
        holder.to_string()
    }
}

impl TryFrom<String> for Holder {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        if text == "host" { Ok(Self::Host) } else { text.parse().map(Self::Instance) }
    }
}

impl PartialEq<InstanceId> for Holder {
    fn eq(&self, other: &InstanceId) -> bool {
        matches!(self, Self::Instance(id) if id == other)
    }
}

/// An account of an instance's client: a key that signs its requests. The instance itself is known by its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Account {
    pub id: String,
    pub instance: InstanceId,
    /// The public key, as the JSON of its required members in order: what its thumbprint is made of.
    pub key: String,
    pub contact: Vec<String>,
    pub deactivated: bool,
    /// Seconds since 1970.
    pub at: u64,
}

/// An order of an instance's client, or of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    pub id: String,
    /// Empty for this host's own, which has no account here.
    pub account: String,
    #[serde(alias = "instance")]
    pub holder: Holder,
    /// Full names, without a final dot.
    pub names: BTreeSet<String>,
    /// Of those that are not of this host's zone, the name in it at which the CA finds the proof.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, String>,
    /// The certificate that it is to replace, as ARI names it.
    pub replaces: Option<String>,
    /// Seconds since 1970.
    pub at: u64,
    pub expires: u64,
    /// When the CA was asked, for the budgets; `None` if it was not, or the answer was kept from before.
    pub begun: Option<u64>,
    /// Whether these names had a certificate then: the first of a name has a budget of its own.
    pub renewal: bool,
    pub stage: Stage,
}

/// How far an order is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Stage {
    /// Proven, because the host knows whose the names are; a CSR is waited for.
    Ready,
    /// The CA is being asked.
    Working(Work),
    /// The id of the certificate.
    Valid(String),
    /// Since when, and why.
    Invalid(u64, Problem),
}

/// What the CA is asked with, so that a new life goes on where the old one was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Work {
    /// DER in base64url.
    pub csr: String,
    /// SHA-256 of the public key in it (SubjectPublicKeyInfo), in hexadecimal.
    pub key: String,
    /// The order of the CA's, once it has one.
    pub upstream: Option<String>,
    /// TXT records that the CA looks for: full name to values.
    pub challenges: BTreeMap<String, BTreeSet<String>>,
}

/// A certificate of an instance, or of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Certificate {
    pub id: String,
    #[serde(alias = "instance")]
    pub holder: Holder,
    pub names: BTreeSet<String>,
    /// As in [`Work`].
    pub key: String,
    /// PEM: its own, then those that sign it.
    pub chain: String,
    /// SHA-256 of its DER, in hexadecimal.
    pub fingerprint: String,
    /// How ARI names it: two base64url texts with a dot between.
    pub ari: String,
    /// Seconds since 1970.
    pub not_before: u64,
    pub not_after: u64,
    /// When the CA wants it renewed, if it says so.
    pub window: Option<Window>,
    pub revoked: bool,
}

/// From when to when a certificate is best renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Window {
    pub start: u64,
    pub end: u64,
}

impl Certificate {
    /// When it is to be renewed: as the CA says, else in the last third of its life.
    pub fn window(&self) -> Window {
        let life = self.not_after.saturating_sub(self.not_before);
        let third = Window { start: self.not_before + life / 3 * 2, end: self.not_before + life / 4 * 3 };
        let last = Window { start: self.not_before, end: self.not_before };
        if self.revoked { last } else { self.window.unwrap_or(third) }
    }

    /// When this host renews one of its own: somewhere in the window, by its fingerprint, so that certificates that were issued together
    /// are not renewed together.
    pub fn renew_at(&self) -> u64 {
        let Window { start, end } = self.window();
        let spread = u64::from_str_radix(self.fingerprint.get(..8).unwrap_or_default(), 16).unwrap_or(0);
        start + spread % end.saturating_sub(start).max(1)
    }

    /// Whether somebody who asks for it again may get this one.
    pub fn is_fresh(&self, now: u64) -> bool {
        !self.revoked && now < self.window().start && now < self.not_after
    }
}

/// Why something was refused, as RFC 8555 says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{kind}: {detail}")]
pub struct Problem {
    /// What follows `urn:ietf:params:acme:error:`.
    pub kind: String,
    pub detail: String,
    /// Of HTTP.
    pub status: u16,
    /// Seconds after which trying again may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// The names that are refused, each with its own problem.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<(String, Problem)>,
}

impl Problem {
    /// A problem without more to say.
    pub fn new(status: u16, kind: &str, detail: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), detail: detail.into(), status, retry_after: None, names: Vec::new() }
    }

    /// `rateLimited`, with the time to wait.
    pub fn limited(detail: impl Into<String>, secs: u64) -> Self {
        Self { retry_after: Some(secs.max(1)), ..Self::new(429, "rateLimited", detail) }
    }
}

/// The full names that an instance may have in a certificate.
pub fn names_of(instance: &InstanceId, domain: &Domain) -> BTreeSet<String> {
    BTreeSet::from([format!("{}.{}.{domain}", instance.name, instance.namespace)])
}

/// The full names of this host that its HTTPS door answers to: the zone's apex, by which people reach it, and `silo`, the git hosting. `ns1`
/// is not among them: nobody browses a name server.
pub fn names_of_host(domain: &Domain) -> BTreeSet<String> {
    BTreeSet::from([domain.to_string(), format!("silo.{domain}")])
}

/// Everything that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    pub accounts: BTreeMap<String, Account>,
    pub orders: BTreeMap<String, Order>,
    pub certificates: BTreeMap<String, Certificate>,
    /// When accounts of this host were made at the CA, or may have been, lately.
    pub registrations: Vec<u64>,
}

impl Ledger {
    /// The TXT records of the moment.
    pub fn challenges(&self) -> BTreeMap<String, Vec<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for order in self.orders.values() {
            let Stage::Working(work) = &order.stage else { continue };
            for (name, values) in &work.challenges {
                all.entry(name.clone()).or_default().extend(values.iter().cloned());
            }
        }
        all.into_iter().map(|(name, values)| (name, values.into_iter().collect())).collect()
    }
}

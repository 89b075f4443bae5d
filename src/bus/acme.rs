//! `farm.loom.Seed1.Acme`: what the ACME door asks of the agent. The door reads requests and checks signatures; the agent knows whose an
//! address is, which names are its, what may be spent, and what was issued.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use crate::spec::acme::{Account, Certificate, Order, Problem, Stage, Window, Work};

/// The agent, as the ACME door sees it. All texts are JSON.
#[zbus::proxy(interface = "farm.loom.Seed1.Acme", default_service = "farm.loom.Seed1", default_path = "/farm/loom/Seed1")]
pub trait Acme {
    /// The client at `address` asks a [`Question`]. Returns a [`Told`].
    fn ask(&self, address: &str, question: &str) -> zbus::Result<String>;
    /// The doors want a certificate for the names of this host itself: an [`Asked`]. Returns an [`Own`].
    fn own(&self, asked: &str) -> zbus::Result<String>;
    /// The orders that the CA is to be asked for, now and after every restart: a list of [`Order`].
    fn work(&self) -> zbus::Result<String>;
    /// What came of asking the CA: a [`Report`]. Returns when it is on the disk.
    fn report(&self, report: &str) -> zbus::Result<()>;
    /// How it is with the certificate of this host itself: a [`State`].
    #[zbus(property(emits_changed_signal = "false"))]
    fn certificate(&self) -> zbus::Result<String>;
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Question {
    /// The account with this key; made if there is none, unless it has to exist. Told an [`Account`], and whether it is new.
    Register {
        key: String,
        contact: Vec<String>,
        existing: bool,
    },
    /// An account of this instance's, to check a signature with.
    Account {
        id: String,
    },
    Update {
        account: String,
        contact: Option<Vec<String>>,
        deactivate: bool,
    },
    ChangeKey {
        account: String,
        key: String,
    },
    /// The ids of its orders.
    Orders {
        account: String,
    },
    NewOrder {
        account: String,
        names: BTreeSet<String>,
        replaces: Option<String>,
    },
    Order {
        account: String,
        id: String,
    },
    /// `csr` is DER in base64url; `key` the hash of its public key, `names` its names, as the door read them.
    Finalize {
        account: String,
        id: String,
        csr: String,
        key: String,
        names: BTreeSet<String>,
    },
    Certificate {
        account: String,
        id: String,
    },
    /// A certificate of this instance's by the SHA-256 of its DER, to revoke it.
    Issued {
        fingerprint: String,
    },
    /// A certificate of this instance's as ARI names it.
    Renewal {
        ari: String,
    },
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Told {
    /// And whether it was made just now.
    Account(Account, bool),
    Orders(Vec<String>),
    Order(Order),
    Certificate(Box<Certificate>),
    Problem(Problem),
}

/// What the doors have for a certificate of this host's own. They may ask at any time, and get what there is: only when that is due, or there
/// is none, an order is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Asked {
    /// DER in base64url.
    pub csr: String,
    /// The hash of its public key.
    pub key: String,
    /// Its names, which must be those that the agent holds for this host's.
    pub names: BTreeSet<String>,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Own {
    /// The one to be used, for that key.
    pub certificate: Option<Certificate>,
    /// The order that is under way.
    pub order: Option<Order>,
    /// Why none is, although one is due.
    pub problem: Option<Problem>,
}

/// How it is with the certificate of this host itself, for whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub version: u32,
    pub names: BTreeSet<String>,
    /// Seconds since 1970; 0: there is no certificate.
    pub not_after: u64,
    /// When it is renewed.
    pub renew_at: u64,
    /// Whether the CA is being asked.
    pub ordering: bool,
    /// Why the last order failed; empty if it did not.
    pub problem: String,
}

/// What came of asking the CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Report {
    /// An account of this host is about to be made at the CA. Refused if that was done too often of late.
    Registering,
    /// The CA made none.
    NotRegistered,
    /// The CA has an order of its own for this one.
    Begun {
        order: String,
        upstream: String,
    },
    /// The CA looks for this TXT record.
    Challenge {
        order: String,
        name: String,
        value: String,
    },
    /// It will not be.
    Failed {
        order: String,
        problem: Problem,
    },
    /// The certificate, as the door read it; its id, instance, names and key are the order's.
    Issued {
        order: String,
        chain: String,
        fingerprint: String,
        ari: String,
        not_before: u64,
        not_after: u64,
    },
    Revoked {
        certificate: String,
    },
    /// The CA has said when to renew.
    Window {
        certificate: String,
        window: Window,
    },
}

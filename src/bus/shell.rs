//! Documents of verbs that are not the answer to one question of the bus, or too small for a place of their own.

use serde::{Deserialize, Serialize};

use super::access::QuotaReport;

/// `whoami`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Whoami {
    pub version: u32,
    /// The fingerprint of the key, or `operator`.
    pub key: String,
    /// The address that it came from; none on the host itself.
    pub source: Option<std::net::IpAddr>,
}

/// `help`, of all verbs or of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerbList {
    pub version: u32,
    pub verbs: Vec<VerbHelp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerbHelp {
    pub name: String,
    /// `logs [REPO/]INSTANCE [-f] …`
    pub usage: String,
    /// One line.
    pub short: String,
    /// The rest; may be empty.
    pub long: String,
}

/// `plan`: the steps that a pass would make now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepList {
    pub version: u32,
    pub steps: Vec<String>,
}

/// `quota`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaList {
    pub version: u32,
    pub namespaces: Vec<QuotaReport>,
}

/// `quota set`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaSet {
    pub version: u32,
    /// What was changed, as it was typed: `memory=8Gi vcpus=4`, `default`.
    pub quota: String,
}

/// `invite new`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewInvite {
    pub version: u32,
    /// Shown once; its first six letters are the invite's id.
    pub code: String,
    pub uses_left: u32,
    /// Seconds since 1970; 0 for never.
    pub expires: u64,
}

/// `invite list`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InviteList {
    pub version: u32,
    pub invites: Vec<InviteSummary>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InviteSummary {
    pub id: String,
    /// `usable`, `used`, `revoked`, `expired`
    pub state: String,
    pub uses_left: u32,
    /// Seconds since 1970; 0 for never.
    pub expires: u64,
    pub note: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Seconds since 1970; 0 if it was not.
    pub revoked: u64,
    pub used: Vec<InviteUse>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InviteUse {
    /// The fingerprint of the key; none if it was the operator.
    pub key: Option<String>,
    /// The address that it came from; none if it came from the host itself.
    pub source: Option<String>,
    /// What was planted: `silo:my-app`.
    pub flake: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// `invite revoke`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InviteRevoked {
    pub version: u32,
    /// Its id.
    pub revoked: String,
}

/// `repo visibility`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VisibilitySet {
    pub version: u32,
    /// `public`, `private`
    pub visibility: String,
}

/// `repo rename`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Renamed {
    pub version: u32,
    /// The new one.
    pub name: String,
}

/// `repo delete`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deleted {
    pub version: u32,
    /// Its name.
    pub deleted: String,
}

/// `domain remove`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainRemoved {
    pub version: u32,
    pub removed: String,
}

/// `remote REPO token`, `trust`, `forget`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    pub version: u32,
    /// What was done, in words.
    pub done: String,
}

/// `audit --verify`: nothing in the log was changed or cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditChecked {
    pub version: u32,
    pub entries: u64,
    /// The number of the oldest entry that is kept.
    pub first: u64,
    /// Its time, in seconds since 1970.
    pub since: u64,
    /// Of the newest entry.
    pub hash: String,
}

/// `cp` on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copied {
    pub version: u32,
    pub files: u64,
    pub bytes: u64,
    /// Sockets, devices and the like, by their paths.
    pub left_out: Vec<String>,
}

/// `forward` on the host; it goes on until it is ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Forwarding {
    pub version: u32,
    /// Of this host: `127.0.0.1:8080`.
    pub address: String,
    pub instance: String,
    pub port: u16,
}

/// What goes to standard error, with `--json`, when a verb does not end well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub version: u32,
    pub error: Trouble,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// `notFound`, `denied`, `invalid`, `failed`, `away`
    pub kind: String,
    pub text: String,
}

/// A document as it is printed: one line.
pub fn line(document: &impl Serialize) -> String {
    let mut text = serde_json::to_string(document).expect("plain data is JSON");
    text.push('\n');
    text
}

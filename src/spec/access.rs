//! Who may do what. An SSH key is the identity; what it may do follows from who created the repository and from the repository's
//! own `.authorized_keys` (see [`super::authorized_keys`]).
//!
//! | role | reads a private repository | status, logs | push, deploy, restart, get inside | access, visibility, name, deletion |
//! |---|---|---|---|---|
//! | `read` | yes | yes | | |
//! | `deploy` | yes | yes | yes | |
//! | `admin`, and the owner | yes | yes | yes | yes |
//!
//! A key for one instance has its role there only, and no say in the repository: it cannot push.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use super::name::{InstanceName, KeyId, RepoName};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// root on this host, over the bus.
    Operator,
    /// The holder of an SSH key.
    Key(KeyId),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Clone and fetch.
    Read,
    /// Push.
    Write,
    /// Look at its instances: status, logs.
    See,
    /// Change how they run: restart, deploy.
    Act,
    /// Get inside of them.
    Enter,
    /// Decide about the repository itself.
    Administer,
}

/// What a key in `.authorized_keys` is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Read,
    Deploy,
    Admin,
}

impl Role {
    fn allows(self, verb: Verb) -> bool {
        match verb {
            Verb::Read | Verb::See => true,
            Verb::Write | Verb::Act | Verb::Enter => self >= Self::Deploy,
            Verb::Administer => self == Self::Admin,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        })
    }
}

/// What one line of `.authorized_keys` gives to its key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "StoredGrant", rename_all = "camelCase")]
pub struct Grant {
    pub key: KeyId,
    pub role: Role,
    /// Seconds since 1970 from which on it gives nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// The only instance that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceName>,
}

/// A grant as it is stored. Before there were roles, it was a key that could push.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredGrant {
    Key(KeyId),
    #[serde(rename_all = "camelCase")]
    Grant {
        key: KeyId,
        role: Role,
        until: Option<u64>,
        instance: Option<InstanceName>,
    },
}

impl From<StoredGrant> for Grant {
    fn from(stored: StoredGrant) -> Self {
        match stored {
            StoredGrant::Key(key) => Self::deploy(key),
            StoredGrant::Grant { key, role, until, instance } => Self { key, role, until, instance },
        }
    }
}

impl Grant {
    /// What a line without options gives.
    pub fn deploy(key: KeyId) -> Self {
        Self { key, role: Role::Deploy, until: None, instance: None }
    }
}

impl fmt::Display for Grant {
    /// `SHA256:… deploy, only web, until 20300101Z`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.role)?;
        if let Some(instance) = &self.instance {
            write!(f, ", only {instance}")?;
        }
        match self.until {
            Some(until) => write!(f, ", until {}", super::authorized_keys::date(until)),
            None => Ok(()),
        }
    }
}

/// Who may clone a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Anybody.
    #[default]
    Public,
    /// Its owner and the keys in its `.authorized_keys`.
    Private,
}

/// A repository in silo and who has a say in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Repository {
    pub name: RepoName,
    /// The key that created it; no push can remove it.
    pub owner: KeyId,
    /// What `.authorized_keys` gave at the last push of the default branch that could change it.
    pub keys: Vec<Grant>,
    /// Seconds since 1970.
    pub created: u64,
    #[serde(default)]
    pub visibility: Visibility,
    /// When it was renamed last, in seconds since 1970; 0 if it never was. The name was perhaps another's before.
    #[serde(default)]
    pub named: u64,
}

impl Repository {
    /// A repository that was created just now.
    pub fn new(name: RepoName, owner: KeyId, created: u64) -> Self {
        Self { name, owner, keys: Vec::new(), created, visibility: Visibility::default(), named: 0 }
    }
}

/// How far a right goes within one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    Nothing,
    /// These instances, and nothing that concerns the repository as a whole.
    Only(BTreeSet<InstanceName>),
    Everything,
}

impl Reach {
    /// Whether it goes as far as this instance.
    pub fn includes(&self, instance: &InstanceName) -> bool {
        match self {
            Self::Nothing => false,
            Self::Only(instances) => instances.contains(instance),
            Self::Everything => true,
        }
    }
}

/// How far `who` may do `verb` in `repository` at `now` (seconds since 1970).
pub fn reach(who: &Principal, verb: Verb, repository: &Repository, now: u64) -> Reach {
    let Principal::Key(key) = who else { return Reach::Everything };
    if *key == repository.owner || (verb == Verb::Read && repository.visibility == Visibility::Public) {
        return Reach::Everything;
    }
    let live = |grant: &&Grant| grant.key == *key && grant.until.is_none_or(|until| now < until) && grant.role.allows(verb);
    let mut instances = BTreeSet::new();
    for grant in repository.keys.iter().filter(live) {
        match (&grant.instance, verb) {
            (None, _) => return Reach::Everything,
            (Some(instance), Verb::See | Verb::Act | Verb::Enter | Verb::Administer) => drop(instances.insert(instance.clone())),
            (Some(_), Verb::Read | Verb::Write) => {}
        }
    }
    if instances.is_empty() { Reach::Nothing } else { Reach::Only(instances) }
}

/// Whether `who` may do `verb` to all of `repository` at `now`.
pub fn may(who: &Principal, verb: Verb, repository: &Repository, now: u64) -> bool {
    reach(who, verb, repository, now) == Reach::Everything
}

/// What `who` is to a repository, in a word, if it is anything.
pub fn standing(who: &Principal, repository: &Repository, now: u64) -> Option<String> {
    let Principal::Key(key) = who else { return Some("operator".to_owned()) };
    if *key == repository.owner {
        return Some("owner".to_owned());
    }
    let live = repository.keys.iter().filter(|grant| grant.key == *key && grant.until.is_none_or(|until| now < until));
    let words: Vec<String> = live
        .map(|grant| match &grant.instance {
            Some(instance) => format!("{} of {instance}", grant.role),
            None => grant.role.to_string(),
        })
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// The fingerprint of a public key blob, as `ssh-keygen -l` prints it.
pub fn fingerprint(blob: &[u8]) -> KeyId {
    use sha2::{Digest, Sha256};
    let text = format!("SHA256:{}", data_encoding::BASE64_NOPAD.encode(&Sha256::digest(blob)));
    text.parse().expect("32 bytes are 43 characters of base64")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBS: [Verb; 6] = [Verb::Read, Verb::Write, Verb::See, Verb::Act, Verb::Enter, Verb::Administer];

    /// Each kind of key against each verb: `*` for the whole repository, `1` for one instance, `-` for nothing.
    #[test]
    fn each_role_against_each_verb() {
        let key = |name: &str| fingerprint(name.as_bytes());
        let grant = |name: &str, role, until, instance: Option<&str>| Grant {
            key: key(name),
            role,
            until,
            instance: instance.map(|name| name.parse().unwrap()),
        };
        let mut repository = Repository::new("app".parse().unwrap(), key("owner"), 0);
        repository.keys = vec![
            grant("reader", Role::Read, None, None),
            grant("plain", Role::Deploy, None, None),
            grant("admin", Role::Admin, Some(101), None),
            grant("expired", Role::Admin, Some(100), None),
            grant("looks at web", Role::Read, None, Some("web")),
            grant("runs web", Role::Deploy, None, Some("web")),
            grant("has web", Role::Admin, None, Some("web")),
            grant("two lines", Role::Read, None, None),
            grant("two lines", Role::Deploy, None, Some("web")),
            grant("owner", Role::Read, Some(1), None),
        ];
        //           read write see act enter administer
        let table = [
            ("operator", "* * * * * *"),
            ("owner", "* * * * * *"),
            ("admin", "* * * * * *"),
            ("plain", "* * * * * -"),
            ("reader", "* - * - - -"),
            ("looks at web", "- - 1 - - -"),
            ("runs web", "- - 1 1 1 -"),
            ("has web", "- - 1 1 1 1"),
            ("two lines", "* - * 1 1 -"),
            ("expired", "- - - - - -"),
            ("stranger", "- - - - - -"),
        ];
        let only_web = Reach::Only(BTreeSet::from(["web".parse().unwrap()]));
        for visibility in [Visibility::Private, Visibility::Public] {
            repository.visibility = visibility;
            for (name, expected) in table {
                let who = if name == "operator" { Principal::Operator } else { Principal::Key(key(name)) };
                for (verb, expected) in VERBS.into_iter().zip(expected.split(' ')) {
                    let expected = match expected {
                        "*" => Reach::Everything,
                        "1" => only_web.clone(),
                        _ if verb == Verb::Read && visibility == Visibility::Public => Reach::Everything,
                        _ => Reach::Nothing,
                    };
                    assert_eq!(reach(&who, verb, &repository, 100), expected, "{name} {verb:?} {visibility:?}");
                    assert_eq!(may(&who, verb, &repository, 100), expected == Reach::Everything);
                }
            }
        }
    }

    #[test]
    fn a_repository_of_before_there_were_roles_can_be_read() {
        let key = fingerprint(b"x");
        let old = format!(r#"{{"name":"app","owner":"{key}","keys":["{key}"],"created":7}}"#);
        let repository: Repository = serde_json::from_str(&old).unwrap();
        assert_eq!((&repository.keys[..], repository.visibility), (&[Grant::deploy(key.clone())][..], Visibility::Public));
        let grant = Grant { role: Role::Admin, until: Some(5), instance: Some("web".parse().unwrap()), ..Grant::deploy(key) };
        for repository in [repository.clone(), Repository { keys: vec![grant], visibility: Visibility::Private, ..repository }] {
            let text = serde_json::to_string(&repository).unwrap();
            assert_eq!(serde_json::from_str::<Repository>(&text).unwrap(), repository, "{text}");
        }
    }
}

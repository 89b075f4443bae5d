//! Changes as bytes: the key of each document and its JSON. One place, so that every store writes the same and reads the same.

use serde::{Serialize, de::DeserializeOwned};

use crate::state::{Change, StateError};

/// A write as bytes: a key and its new value, or its removal.
pub type Write = (String, Option<Vec<u8>>);

/// Stands for the length of a value that is removed.
const REMOVED: u32 = u32::MAX;

/// The key of a change, and its value as JSON.
pub fn encode(change: &Change) -> Write {
    fn json<T: Serialize>(value: &Option<T>) -> Option<Vec<u8>> {
        value.as_ref().map(|value| serde_json::to_vec(value).expect("documents have text keys and no failing serializers"))
    }
    match change {
        Change::Plant(namespace, value) => (format!("plant/{namespace}"), json(value)),
        Change::Former(namespace, value) => (format!("former/{namespace}"), json(value)),
        Change::Repo(name, value) => (format!("repo/{name}"), json(value)),
        Change::Want(namespace, value) => (format!("want/{namespace}"), json(value)),
        Change::Past(namespace, at, value) => (format!("past/{namespace}/{at:020}"), json(value)),
        Change::Ask(namespace, value) => (format!("ask/{namespace}"), json(value)),
        Change::Lease(id, value) => (format!("lease/{id}"), json(value)),
        Change::Rolling(id, value) => (format!("rolling/{id}"), json(value)),
        Change::Invite(id, value) => (format!("invite/{id}"), json(value)),
        Change::AcmeAccount(id, value) => (format!("acme-account/{id}"), json(value)),
        Change::AcmeOrder(id, value) => (format!("acme-order/{id}"), json(value)),
        Change::AcmeCertificate(id, value) => (format!("acme-certificate/{id}"), json(value)),
        Change::AcmeRegistrations(value) => ("acme/registrations".to_owned(), json(value)),
        Change::Quota(namespace, value) => (format!("quota/{namespace}"), json(value)),
        Change::Upstream(namespace, value) => (format!("upstream/{namespace}"), json(value)),
        Change::Domain(name, namespace, value) => (format!("domain/{name}/{namespace}"), json(value)),
        Change::DomainSecret(value) => ("secret/domains".to_owned(), json(value)),
        Change::Stopped(id, value) => (format!("stopped/{id}"), json(value)),
        Change::Pin(id, value) => (format!("pin/{id}"), json(value)),
        Change::Record(namespace, at, value) => (format!("deploy/{namespace}/{at:020}"), json(value)),
    }
}

/// The change that puts a stored document back. What cannot be read is an error that names the key.
pub fn decode(key: &str, value: &[u8]) -> Result<Change, StateError> {
    fn json<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<Option<T>, StateError> {
        serde_json::from_slice(value).map(Some).map_err(|source| StateError::Read { key: key.to_owned(), source })
    }
    let unknown = || StateError::Key(key.to_owned());
    let (kind, name) = key.split_once('/').ok_or_else(unknown)?;
    Ok(match kind {
        "plant" => Change::Plant(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "former" => Change::Former(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "repo" => Change::Repo(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "want" => Change::Want(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "past" => {
            let (namespace, at) = name.split_once('/').ok_or_else(unknown)?;
            Change::Past(namespace.parse().map_err(|_| unknown())?, at.parse().map_err(|_| unknown())?, json(key, value)?)
        }
        "ask" => Change::Ask(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "lease" => Change::Lease(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "rolling" => Change::Rolling(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "invite" => Change::Invite(name.to_owned(), json(key, value)?),
        "acme-account" => Change::AcmeAccount(name.to_owned(), json(key, value)?),
        "acme-order" => Change::AcmeOrder(name.to_owned(), json(key, value)?),
        "acme-certificate" => Change::AcmeCertificate(name.to_owned(), json(key, value)?),
        "acme" if name == "registrations" => Change::AcmeRegistrations(json(key, value)?),
        "quota" => Change::Quota(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "upstream" => Change::Upstream(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "domain" => {
            let (name, namespace) = name.split_once('/').ok_or_else(unknown)?;
            Change::Domain(name.parse().map_err(|_| unknown())?, namespace.parse().map_err(|_| unknown())?, json(key, value)?)
        }
        "secret" if name == "domains" => Change::DomainSecret(json(key, value)?),
        "stopped" => Change::Stopped(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "pin" => Change::Pin(name.parse().map_err(|_| unknown())?, json(key, value)?),
        "deploy" => {
            let (namespace, at) = name.split_once('/').ok_or_else(unknown)?;
            Change::Record(namespace.parse().map_err(|_| unknown())?, at.parse().map_err(|_| unknown())?, json(key, value)?)
        }
        _ => return Err(unknown()),
    })
}

/// A batch as the payload of a record: for each write the length of its key (2), the key, the length of its value (4; all ones for a
/// removal) and the value.
pub fn payload(batch: &[Write]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in batch {
        bytes.extend(u16::try_from(key.len()).expect("keys are made of short names").to_le_bytes());
        bytes.extend(key.as_bytes());
        match value {
            None => bytes.extend(REMOVED.to_le_bytes()),
            Some(value) => {
                bytes.extend(u32::try_from(value.len()).expect("a document is far below 4 GiB").to_le_bytes());
                bytes.extend(value);
            }
        }
    }
    bytes
}

/// The batch that a payload is, if it is one.
pub fn writes(mut payload: &[u8]) -> Option<Vec<Write>> {
    fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = from.split_at_checked(count)?;
        *from = rest;
        Some(taken)
    }
    let mut writes = Vec::new();
    while !payload.is_empty() {
        let length = u16::from_le_bytes(take(&mut payload, 2)?.try_into().ok()?);
        let key = String::from_utf8(take(&mut payload, length.into())?.to_vec()).ok()?;
        let value = match u32::from_le_bytes(take(&mut payload, 4)?.try_into().ok()?) {
            REMOVED => None,
            length => Some(take(&mut payload, length as usize)?.to_vec()),
        };
        writes.push((key, value));
    }
    Some(writes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        spec::{
            access::Repository,
            address::Lease,
            domain::{Claim, Origin, Stage},
            name::FlakeUri,
        },
        state::{Ask, Former, Invite, Pin, Record, Secret, Stopped, Upstream},
    };

    fn record() -> Record {
        Record {
            kind: "push".into(),
            by: None,
            reference: "refs/heads/main".parse().expect("valid"),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().expect("valid"),
            generation: None,
            ended: 9,
            outcome: "failed".into(),
            stages: vec![("eval".into(), 12)],
            changes: vec!["web: start (new)".into()],
            text: "no".into(),
        }
    }

    #[test]
    fn documents_come_back_as_they_were_written() {
        let namespace = "silo:app".parse::<FlakeUri>().expect("valid").namespace();
        let invite =
            Invite { id: "k7".into(), hash: "00".into(), uses_left: 1, note: "für \"Ann\"\n".into(), ..Invite::default() };
        let ask = Ask {
            repo: "app".parse().expect("valid"),
            reference: "refs/heads/main".parse().expect("valid"),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().expect("valid"),
            by: crate::spec::access::fingerprint(b"key"),
            at: 7,
        };
        let upstream = Upstream {
            repository: Repository::new(namespace.as_str().parse().expect("valid"), crate::spec::access::fingerprint(b"key"), 7),
            secret: Secret("s3cret".into()),
            branch: None,
            seen: None,
            host_key: None,
        };
        assert!(!format!("{upstream:?}").contains("s3cret"), "a secret is not printed");
        let claim = Claim {
            stage: Stage::Held { since: 7, failing: Some(8) },
            ..Claim::new("web".parse().expect("valid"), Origin::Flake, 7)
        };
        let table = [
            Change::Upstream(namespace.clone(), Some(upstream)),
            Change::Invite("k7".into(), Some(invite)),
            Change::Former(
                namespace.clone(),
                Some(Former {
                    uri: "silo:app".parse().expect("valid"),
                    hash: "00".into(),
                    owner: crate::spec::access::fingerprint(b"key"),
                    at: 7,
                }),
            ),
            Change::Ask(namespace.clone(), Some(ask)),
            Change::Lease(format!("{namespace}/web").parse().expect("valid"), Some(Lease(7))),
            Change::Stopped(format!("{namespace}/web").parse().expect("valid"), Some(Stopped { by: None, at: 7 })),
            Change::Pin(
                format!("{namespace}/web").parse().expect("valid"),
                Some(Pin { by: Some(crate::spec::access::fingerprint(b"key")), at: 7, held: true, refused: Vec::new() }),
            ),
            Change::Record(namespace.clone(), 42, Some(record())),
            Change::Domain("www.example.com".parse().expect("valid"), namespace.clone(), Some(claim)),
            Change::DomainSecret(Some(Secret("s3cret".into()))),
        ];
        for change in table {
            let (key, value) = encode(&change);
            assert_eq!(decode(&key, &value.expect("a value was given")).expect("readable"), change, "{key}");
        }
        let (key, none) = encode(&Change::Past(namespace.clone(), 42, None));
        assert_eq!((key, none), (format!("past/{namespace}/00000000000000000042"), None));
    }

    #[test]
    fn what_this_version_does_not_know_is_refused_by_name() {
        for key in [
            "",
            "plant",
            "plant/",
            "plant/x",
            "former/x",
            "lease/x",
            "past/s-aaaaaaaaaaaa/x",
            "deploy/s-aaaaaaaaaaaa/x",
            "stopped/x",
            "zone/x",
            "domain/www.example.com",
            "domain/WWW.example.com/s-aaaaaaaaaaaa",
            "domain/www.example.com/x",
            "secret/x",
            "acme/x",
            "want/S-AAAAAAAAAAAA",
        ] {
            assert!(matches!(decode(key, b"{}"), Err(StateError::Key(given)) if given == key), "{key}");
        }
        let error = decode("lease/s-aaaaaaaaaaaa/web", b"\"x\"").expect_err("no number");
        assert_eq!(error.to_string(), "the state holds lease/s-aaaaaaaaaaaa/web, which this version cannot read");
    }
}

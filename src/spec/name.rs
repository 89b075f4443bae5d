//! Names. Each is a type that can only be made from valid text, so that nothing downstream has to check, quote or escape.
//!
//! Every name below is made of `[a-z0-9._-]` and never begins with `-`: it can stand in a unit name, a path, an argument
//! list, an nftables set and a DNS label without escaping.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use super::{
    flake::{FlakeUri, Remote},
    set::{SetId, Slot},
};

/// What the journals in a repository of this host are called, before their number: `<name>.git/pushes-N`.
pub const PUSH_JOURNAL: &str = "pushes-";

/// Why a text is not the name it should be. The message says what was given, what is wrong and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} {reason}")]
pub struct NameError {
    /// What the name names: "instance name", "repository name", …
    pub what: &'static str,
    /// The offending text, cut to 80 characters.
    pub given: String,
    /// What is wrong and what to write instead.
    pub reason: &'static str,
}

fn refuse(what: &'static str, given: &str, reason: &'static str) -> NameError {
    NameError { what, given: given.chars().take(80).collect(), reason }
}

/// Checks the rule of RFC 1123 for one DNS label, in lower case, of at most `max` characters.
fn label(what: &'static str, text: &str, max: usize, too_long: &'static str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(refuse(what, text, "is empty: write lower-case letters, digits and hyphens"));
    }
    if text.len() > max {
        return Err(refuse(what, text, too_long));
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err(refuse(what, text, "is no DNS label: use only lower-case letters, digits and hyphens"));
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(refuse(what, text, "is no DNS label: it may not begin or end with a hyphen"));
    }
    Ok(())
}

/// Makes the traits that every name shares: text in, text out, ordered by text, a JSON string.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);
        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(text)?;
                Ok(Self(text.to_owned()))
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of an instance inside its namespace: one DNS label, at most 40 characters.
    InstanceName,
    |text| label("instance name", text, 40, "is longer than 40 characters")
);
name!(
    /// The name of a volume inside its instance: one DNS label, at most 20 characters, because it is also the serial number of the
    /// virtio disk, which has room for 20.
    VolumeName,
    |text| label("volume name", text, 20, "is longer than 20 characters, which is all a virtio disk's serial number holds")
);
name!(
    /// The name of an exposed port, as in `seed.expose.<name>`: one DNS label.
    PortName,
    |text| label("port name", text, 40, "is longer than 40 characters")
);
name!(
    /// The name of a public port, as in `ipv4.routes.<name>`: one DNS label.
    RouteName,
    |text| label("route name", text, 40, "is longer than 40 characters")
);
name!(
    /// The name of a repository in silo, without `.git`.
    RepoName,
    |text| {
        let what = "repository name";
        if text.is_empty() || text.len() > 64 {
            return Err(refuse(what, text, "must have 1 to 64 characters"));
        }
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)) {
            return Err(refuse(what, text, "may have only lower-case letters, digits, '.', '_' and '-' (as in my-app)"));
        }
        if !text.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(refuse(what, text, "must begin with a letter or a digit"));
        }
        if text.contains("..") || text.ends_with('.') || text.ends_with(".git") || text.ends_with(".lock") {
            return Err(refuse(what, text, "may not contain '..' or end with '.', '.git' or '.lock'"));
        }
        Ok(())
    }
);
name!(
    /// The short name of a namespace: `s-` and 12 characters of base32. Serves DNS and people; the key is the full hash.
    Namespace,
    |text| {
        let tail = text.strip_prefix("s-").unwrap_or("");
        if tail.len() == 12 && tail.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b)) {
            Ok(())
        } else {
            Err(refuse("namespace", text, "is not 's-' and 12 characters of a-z and 2-7"))
        }
    }
);
name!(
    /// A Git object id: 40 lower-case hexadecimal digits.
    Commit,
    |text| {
        if text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(())
        } else {
            Err(refuse("commit", text, "is not 40 lower-case hexadecimal digits"))
        }
    }
);
name!(
    /// A branch that may be pushed and deployed: `refs/heads/…` or `refs/tags/…`, no component beginning with `-` or `.`.
    RefName,
    |text| {
        let what = "ref";
        let tail = text.strip_prefix("refs/heads/").or_else(|| text.strip_prefix("refs/tags/"));
        let Some(tail) = tail else {
            return Err(refuse(what, text, "is neither a branch (refs/heads/…) nor a tag (refs/tags/…)"));
        };
        if text.len() > 200 {
            return Err(refuse(what, text, "is longer than 200 characters"));
        }
        if !tail.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/+@".contains(&b)) {
            return Err(refuse(what, text, "may have only letters, digits and any of . _ - / + @"));
        }
        let bad = |part: &str| part.is_empty() || part.starts_with(['-', '.']) || part.ends_with('.') || part.ends_with(".lock");
        if tail.split('/').any(bad) || tail.contains("..") || tail.contains("@{") {
            return Err(refuse(what, text, "has a part that is empty, begins with '-' or '.', or ends with '.' or '.lock'"));
        }
        Ok(())
    }
);
name!(
    /// A path of one Nix store object, `/nix/store/<32 characters of hash>-<name>`; never anything below it.
    StorePath,
    |text| {
        let what = "store path";
        let Some(base) = text.strip_prefix("/nix/store/") else {
            return Err(refuse(what, text, "is not below /nix/store"));
        };
        let hash_ok = base.len() > 33
            && base.len() <= 32 + 1 + 211
            && base.as_bytes()[32] == b'-'
            && base[..32].bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if hash_ok && base[33..].bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b)) {
            Ok(())
        } else {
            Err(refuse(what, text, "is not /nix/store/<hash>-<name>"))
        }
    }
);
name!(
    /// The domain of the zone: at least one label, each a DNS label, at most 180 characters so that instance names fit below it.
    Domain,
    |text| {
        if text.len() > 180 {
            return Err(refuse("domain", text, "is longer than 180 characters"));
        }
        text.split('.').try_for_each(|part| label("domain", part, 63, "has a label longer than 63 characters")).map_err(|error| {
            refuse("domain", text, error.reason)
        })
    }
);
name!(
    /// A name of somebody's own, as in `www.example.com`: at least two DNS labels in lower case, no wildcard, no address. What is not ASCII is
    /// in it as punycode.
    CustomDomain,
    |text| {
        let what = "domain";
        if !text.is_ascii() {
            return Err(refuse(what, text, "has letters that DNS has not: write it in punycode, as in xn--mnchen-3ya.example"));
        }
        if text.ends_with('.') {
            return Err(refuse(what, text, "ends with a dot: write it without"));
        }
        if text.parse::<std::net::IpAddr>().is_ok() || text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return Err(refuse(what, text, "is an address or nothing: write a name, as in www.example.com"));
        }
        if text.starts_with("*.") {
            return Err(refuse(what, text, "is a wildcard: write each name that there is to be"));
        }
        if text.len() > 237 {
            return Err(refuse(what, text, "is longer than 237 characters: `_acme-challenge.` has to fit before it"));
        }
        if !text.contains('.') {
            return Err(refuse(what, text, "has one label only: write the whole name, as in www.example.com"));
        }
        text.split('.').try_for_each(|part| label(what, part, 63, "has a label longer than 63 characters")).map_err(|error| {
            refuse(what, text, error.reason)
        })
    }
);
name!(
    /// The identity of a person or program: the SHA-256 fingerprint of an SSH public key, as `ssh-keygen -l` prints it.
    KeyId,
    |text| {
        let tail = text.strip_prefix("SHA256:").unwrap_or("");
        if tail.len() == 43 && tail.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/') {
            Ok(())
        } else {
            Err(refuse("key", text, "is not 'SHA256:' and 43 characters of base64"))
        }
    }
);

impl StorePath {
    /// The part after `/nix/store/`.
    pub fn base_name(&self) -> &str {
        &self.0["/nix/store/".len()..]
    }
}

impl RefName {
    /// The part after `refs/heads/` or `refs/tags/`.
    pub fn short(&self) -> &str {
        self.0.splitn(3, '/').nth(2).unwrap_or(&self.0)
    }
    /// Whether this is a branch.
    pub fn is_branch(&self) -> bool {
        self.0.starts_with("refs/heads/")
    }
}

/// The short name of a namespace, from the hash of its flake.
pub(super) fn namespace_of_hash(hash: &str) -> Namespace {
    let base32 = data_encoding::BASE32_NOPAD.encode(&hash.as_bytes()[..20]).to_lowercase();
    Namespace(format!("s-{}", &base32[..12]))
}

/// One instance on this host: `<namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId {
    pub namespace: Namespace,
    pub name: InstanceName,
}

impl InstanceId {
    /// `<namespace>-<name>`: unambiguous, since a namespace has a fixed length.
    pub fn unit_instance(&self) -> String {
        format!("{}-{}", self.namespace, self.name)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for InstanceId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.split_once('/').ok_or_else(|| refuse("instance", text, "is not <namespace>/<name>"))?;
        Ok(Self { namespace: namespace.parse()?, name: name.parse()? })
    }
}

impl TryFrom<String> for InstanceId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> String {
        id.to_string()
    }
}

/// What a deployment boils down to: the first 12 hexadecimal digits of sha256 over the sorted lines `name=storepath\n`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation(String);

impl Generation {
    /// Computes the generation of a set of instances.
    pub fn of<'a>(instances: impl IntoIterator<Item = (&'a InstanceName, &'a StorePath)>) -> Self {
        let mut lines: Vec<String> = instances.into_iter().map(|(name, path)| format!("{name}={path}\n")).collect();
        lines.sort();
        Self(data_encoding::HEXLOWER.encode(&Sha256::digest(lines.concat().as_bytes()))[..12].to_owned())
    }
    /// The 12 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_namespace_of_a_known_uri_is_the_published_one() {
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(b"github:loomtex/seed"));
        assert_eq!(namespace_of_hash(&hash).as_str(), "s-gaydazldmnsg");
    }

    #[test]
    fn names_that_could_be_mistaken_for_something_else_are_refused() {
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a b", "a\n", "ä", "..", &"a".repeat(41)] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
        for bad in ["", "-a", ".a", "a..b", "a.git", "a.lock", "a/b", "../a", "a\0", "~a", "A", "a b"] {
            assert!(bad.parse::<RepoName>().is_err(), "{bad:?}");
        }
        for bad in [
            "main",
            "refs/heads/",
            "refs/heads/-x",
            "refs/heads/a/-b",
            "refs/heads/a..b",
            "refs/heads/a b",
            "refs/heads/.a",
            "refs/heads/a.lock",
            "refs/notes/x",
            "refs/heads/a//b",
            "refs/heads/@{1}",
        ] {
            assert!(bad.parse::<RefName>().is_err(), "{bad:?}");
        }
        for bad in ["path:/etc", "/etc", "git+file:///x", "silo:", "silo:-x", "silo:../x", "--impure"] {
            assert!(bad.parse::<FlakeUri>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn good_names_are_taken() {
        assert_eq!("silo:my-app.git".parse::<FlakeUri>().unwrap().to_string(), "silo:my-app");
        assert_eq!("refs/heads/feature/x".parse::<RefName>().unwrap().short(), "feature/x");
        let path = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-toplevel-1.0";
        assert_eq!(path.parse::<StorePath>().unwrap().base_name(), &path[11..]);
        assert!("seed.example".parse::<Domain>().is_ok());
    }

    #[test]
    fn a_domain_is_a_whole_name_of_plain_labels() {
        let long = format!("{}.example", vec!["a".repeat(60); 4].join("."));
        for (bad, why) in [
            ("", "an address or nothing"),
            ("localhost", "one label only"),
            ("münchen.example", "xn--mnchen-3ya"),
            ("*.example.com", "wildcard"),
            ("www.example.com.", "without"),
            ("WWW.example.com", "lower-case"),
            ("a_b.example.com", "no DNS label"),
            ("a..b", "is empty"),
            (".example.com", "is empty"),
            ("-a.example.com", "hyphen"),
            ("a b.example.com", "no DNS label"),
            ("192.0.2.1", "address"),
            ("2001:db8::1", "address"),
            ("www.example.1", "address"),
            ("a.example\n", "no DNS label"),
            (&format!("{}.example", "a".repeat(64)), "63"),
            (&long, "237"),
        ] {
            let said = bad.parse::<CustomDomain>().expect_err(bad).to_string();
            assert!(said.contains(why), "{bad}: {said}");
        }
        for good in ["example.com", "www.example.com", "xn--mnchen-3ya.example", "1.example", "a.b.c.d.e.f"] {
            assert!(good.parse::<CustomDomain>().is_ok(), "{good}");
        }
    }

    proptest! {
        #[test]
        fn an_instance_is_found_again_from_its_unit(name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?") {
            let id = InstanceId { namespace: FlakeUri::Silo("x".parse().unwrap()).namespace(), name: name.parse().unwrap() };
            prop_assert_eq!(id.set(Slot::A).unit_instance(), id.unit_instance());
            for set in [id.set(Slot::A), id.set(Slot::B)] {
                prop_assert_eq!(SetId::from_unit_instance(&set.unit_instance()), Some(set.clone()));
                prop_assert_eq!(set.to_string().parse::<SetId>().unwrap(), set);
            }
            prop_assert_eq!(id.to_string().parse::<InstanceId>().unwrap(), id);
        }

        #[test]
        fn parsing_never_panics_and_never_lets_a_separator_in(text in "\\PC*") {
            for made in [
                text.parse::<InstanceName>().map(String::from).ok(),
                text.parse::<RepoName>().map(String::from).ok(),
                text.parse::<VolumeName>().map(String::from).ok(),
            ].into_iter().flatten() {
                prop_assert!(!made.starts_with('-') && !made.contains(['/', '\n', ' ', '\0', '%', '"', '\\']));
            }
            if let Ok(domain) = text.parse::<CustomDomain>() {
                prop_assert!(!domain.as_str().starts_with(['-', '.']) && domain.as_str().contains('.'));
            }
            let _ignored_on_purpose = (text.parse::<RefName>(), text.parse::<StorePath>(), text.parse::<FlakeUri>());
        }
    }
}

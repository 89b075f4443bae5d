//! Who asks through a door, and from where: a verified key and the address of its holder, as one word on the bus (`SHA256:…@ADDRESS`).

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::name::{KeyId, NameError};

/// How doors name whoever shows no key. It is no [`Caller`]: only what anybody may do takes it.
pub const ANYBODY: &str = "anybody";

/// The holder of a key. Doors make it; the agent reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Caller {
    key: KeyId,
    source: Option<IpAddr>,
    text: String,
    line: String,
}

impl Caller {
    /// Whoever proved `key` from this address.
    pub fn new(key: KeyId, source: IpAddr) -> Self {
        // An IPv4 client of an IPv6 socket is known by its IPv4 address.
        let source = source.to_canonical();
        let text = format!("{key}@{source}");
        Self { key, source: Some(source), text, line: String::new() }
    }

    /// The same, with the public key as a line of `.authorized_keys`. It is no part of the word.
    pub fn with_line(self, line: String) -> Self {
        Self { line, ..self }
    }

    /// The public key, as a line of `.authorized_keys`; empty if it is not known.
    pub fn line(&self) -> &str {
        &self.line
    }

    pub fn key(&self) -> &KeyId {
        &self.key
    }

    /// Where they called from, if the door said so.
    pub fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// What is said on the bus.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<KeyId> for Caller {
    /// Somebody whose address is not known.
    fn from(key: KeyId) -> Self {
        Self { text: key.to_string(), key, source: None, line: String::new() }
    }
}

impl FromStr for Caller {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((key, address)) = text.split_once('@') else { return Ok(Self::from(text.parse::<KeyId>()?)) };
        let source = address.parse().map_err(|_| NameError {
            what: "caller",
            given: text.chars().take(80).collect(),
            reason: "does not end in an IP address: write SHA256:…@ADDRESS",
        })?;
        Ok(Self::new(key.parse()?, source))
    }
}

impl TryFrom<String> for Caller {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Caller> for String {
    fn from(caller: Caller) -> Self {
        caller.text
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_one_word_and_back() {
        let key = crate::spec::access::fingerprint(b"ann");
        for (given, said) in [("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::7", "2001:db8::7")] {
            let caller = Caller::new(key.clone(), given.parse().unwrap());
            assert_eq!(caller.as_str(), format!("{key}@{said}"));
            assert_eq!(caller.as_str().parse::<Caller>().unwrap(), caller);
            assert_eq!((caller.key(), caller.source()), (&key, Some(said.parse().unwrap())));
        }
        assert_eq!(key.as_str().parse::<Caller>().unwrap().source(), None);
    }

    #[test]
    fn what_is_no_caller_is_refused() {
        let key = crate::spec::access::fingerprint(b"ann");
        for text in
            ["", "@192.0.2.7", "ann@192.0.2.7", &format!("{key}@"), &format!("{key}@host"), &format!("{key}@192.0.2.7@192.0.2.8")]
        {
            assert!(text.parse::<Caller>().is_err(), "{text}");
        }
    }
}

//! Who may do what. An SSH key is the identity; what it may do follows from who created the repository and from the repository's
//! own `.authorized_keys`.

use serde::{Deserialize, Serialize};

use super::name::{KeyId, RepoName};

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

/// A repository in silo and who has a say in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Repository {
    pub name: RepoName,
    /// The key that created it; no push can remove it.
    pub owner: KeyId,
    /// The keys of `.authorized_keys` at the last accepted push of the default branch.
    pub keys: Vec<KeyId>,
    /// Seconds since 1970.
    pub created: u64,
}

/// Whether `who` may do `verb` to `repository`. Reading is public.
pub fn may(who: &Principal, verb: Verb, repository: &Repository) -> bool {
    match (who, verb) {
        (Principal::Operator, _) | (_, Verb::Read) => true,
        (Principal::Key(key), Verb::Write | Verb::See | Verb::Act | Verb::Enter | Verb::Administer) => {
            *key == repository.owner || repository.keys.contains(key)
        }
    }
}

/// The keys in the text of an `.authorized_keys` file, in the format of `sshd(8)`. Lines that are no key are returned too, by number
/// (from 1), so that a push can name them.
pub fn authorized_keys(text: &str) -> (Vec<KeyId>, Vec<usize>) {
    let mut keys = Vec::new();
    let mut unreadable = Vec::new();
    for (index, line) in text.lines().enumerate().take(1000) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match key_of_line(line) {
            Some(key) if !keys.contains(&key) => keys.push(key),
            Some(_) => {}
            None => unreadable.push(index + 1),
        }
    }
    (keys, unreadable)
}

/// The fingerprint of the key on one line. Options may stand before the key type; they may hold quoted spaces. The key is the first
/// word that is base64 of a blob which begins with the key type that stands before it.
fn key_of_line(line: &str) -> Option<KeyId> {
    let words = split_words(line);
    words.windows(2).take(4).find_map(|pair| {
        let blob = data_encoding::BASE64.decode(pair[1].as_bytes()).ok()?;
        let length = u32::from_be_bytes(blob.get(..4)?.try_into().ok()?) as usize;
        let kind = blob.get(4..4 + length)?;
        (kind == pair[0].as_bytes()).then(|| fingerprint(&blob))
    })
}

/// The fingerprint of a public key blob, as `ssh-keygen -l` prints it.
pub fn fingerprint(blob: &[u8]) -> KeyId {
    use sha2::{Digest, Sha256};
    let text = format!("SHA256:{}", data_encoding::BASE64_NOPAD.encode(&Sha256::digest(blob)));
    text.parse().expect("32 bytes are 43 characters of base64")
}

fn split_words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in line.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            ' ' | '\t' if !quoted => {
                if start < at {
                    words.push(&line[start..at]);
                }
                start = at + 1;
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    if start < line.len() {
        words.push(&line[start..]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0ZWTmzNGYBGYHcRl5mS7a1Zkp6Yz2hT3l8e7o0dHQk";

    #[test]
    fn keys_are_found_behind_options_and_comments_are_passed_over() {
        let text = format!("# people\n\n{KEY} ann@home\nno-pty,command=\"echo \\\"hi there\\\"\" {KEY}\nnonsense\n");
        let (keys, unreadable) = authorized_keys(&text);
        assert_eq!((keys.len(), unreadable), (1, vec![5]));
        assert!(keys[0].as_str().starts_with("SHA256:"));
    }

    #[test]
    fn only_the_owner_and_listed_keys_write() {
        let key = |n: u8| fingerprint(&[n]);
        let repository = Repository { name: "app".parse().unwrap(), owner: key(1), keys: vec![key(2)], created: 0 };
        let table = [
            (Principal::Key(key(1)), true),
            (Principal::Key(key(2)), true),
            (Principal::Key(key(3)), false),
            (Principal::Operator, true),
        ];
        for (who, allowed) in table {
            assert_eq!(may(&who, Verb::Write, &repository), allowed, "{who:?}");
            assert_eq!(may(&who, Verb::Act, &repository), allowed, "{who:?}");
            assert!(may(&who, Verb::Read, &repository));
        }
    }
}

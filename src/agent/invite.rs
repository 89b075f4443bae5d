//! Invites: codes with which a repository may be planted. The code itself is not stored.

use sha2::{Digest, Sha256};

use super::{
    Agent, now,
    request::{Reply, json},
};
use crate::{
    build::Builder,
    bus::Refusal,
    host::Host,
    state::{Change, Invite, Memory, State},
};

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    pub(super) async fn new_invite(&mut self, uses: u32, expires_secs: u64, note: String) -> Result<Reply, Refusal> {
        if uses == 0 || uses > 10_000 {
            return Err(Refusal::Invalid(format!("{uses} uses make no invite: write 1 to 10000")));
        }
        if note.len() > 200 || note.chars().any(char::is_control) {
            return Err(Refusal::Invalid("the note must be one line of at most 200 characters".to_owned()));
        }
        let code = new_code().map_err(|error| Refusal::Failed(format!("no randomness: {error}")))?;
        let id = code[..6].to_owned();
        let expires = if expires_secs == 0 { 0 } else { now().saturating_add(expires_secs) };
        let invite = Invite { id: id.clone(), hash: hash(&code), uses_left: uses, expires, note };
        self.commit(vec![Change::Invite(id, Some(invite))]).await?;
        Ok(Reply::Text(code))
    }

    pub(super) fn invites(&self) -> Reply {
        let show = |invite: &Invite| serde_json::json!({ "id": invite.id, "usesLeft": invite.uses_left, "expires": invite.expires, "note": invite.note });
        let usable = self.memory.invites.values().filter(|invite| invite.expires == 0 || invite.expires > now());
        json(&serde_json::json!({ "version": 1, "invites": usable.map(show).collect::<Vec<_>>() }))
    }

    pub(super) async fn revoke_invite(&mut self, id: &str) -> Result<Reply, Refusal> {
        if !self.memory.invites.contains_key(id) {
            let ids: Vec<&str> = self.memory.invites.keys().map(String::as_str).collect();
            let there = if ids.is_empty() { "there is none".to_owned() } else { format!("there is {}", ids.join(", ")) };
            return Err(Refusal::NotFound(format!("there is no invite {id:?}; {there}")));
        }
        self.commit(vec![Change::Invite(id.to_owned(), None)]).await?;
        Ok(Reply::Nothing)
    }
}

/// 26 characters of base32: 130 bits.
fn new_code() -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = [0u8; 17];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase()[..26].to_owned())
}

fn hash(code: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(code.as_bytes()))
}

/// The invite that `code` is good for. Hashes are compared, so the time it takes says nothing about the code.
pub(super) fn find_invite(memory: &Memory, code: &str) -> Result<Invite, Refusal> {
    let wanted = hash(code.trim());
    let usable = |invite: &&Invite| invite.hash == wanted && (invite.expires == 0 || invite.expires > now());
    memory.invites.values().find(usable).cloned().ok_or_else(|| {
        Refusal::Denied(
            "this invite code is not valid (unknown, used up, revoked or expired): ask the host's operator for one".to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_long_and_differ() {
        let (a, b) = (new_code().unwrap(), new_code().unwrap());
        assert_eq!((a.len(), a == b), (26, false));
    }

    #[test]
    fn an_expired_or_unknown_code_is_refused() {
        let mut memory = Memory::default();
        let invite = Invite { id: "a".into(), hash: hash("secret"), uses_left: 1, expires: 0, note: String::new() };
        memory.invites.insert("a".into(), invite.clone());
        assert!(find_invite(&memory, "secret").is_ok() && find_invite(&memory, "Secret").is_err());
        memory.invites.insert("a".into(), Invite { expires: 1, ..invite });
        assert!(find_invite(&memory, "secret").is_err());
    }
}

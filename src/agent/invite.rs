//! Invites: codes with which a repository may be planted. The code itself is not stored. One that was used up, revoked or has expired
//! can do nothing any more, but is kept for a while, so that one can look up who used it.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::{
    Agent, now,
    patience::Patience,
    request::{Reply, json},
};
use crate::{
    build::Builder,
    bus::{
        Refusal,
        shell::{InviteList, InviteSummary, InviteUse},
    },
    host::Host,
    spec::{
        access::Principal,
        name::{FlakeUri, KeyId},
    },
    state::{Batch, Change, Invite, Memory, Spent, State},
};

/// How many invites that can do nothing any more are kept.
const KEPT: usize = 500;

/// Wrong codes that were tried lately, by key and by network.
#[derive(Debug)]
pub(super) struct Guesses {
    keys: Patience<KeyId>,
    sources: Patience<u128>,
    /// Plantings from elsewhere, by invite and by which of its uses: a code is spent only when the repository is the planter's own, and each
    /// try is a fetch.
    tries: Patience<(String, u32)>,
}

impl Default for Guesses {
    fn default() -> Self {
        // Keys cost nothing: behind one address there may be many, of people too.
        Self { keys: Patience::new(5, 60), sources: Patience::new(20, 30), tries: Patience::new(10, 300) }
    }
}

/// An IPv4 address, or the 48 bits of IPv6 that one subscriber may have.
fn network(source: IpAddr) -> u128 {
    match source.to_canonical() {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => 1 << 64 | u128::from(address) >> 80,
    }
}

impl Guesses {
    /// Refuses who has tried too many wrong codes. The right one is refused too: how it is answered must not tell.
    fn check(&self, key: &KeyId, source: Option<IpAddr>, now: u64) -> Result<(), Refusal> {
        let wait = self.keys.wait(key, now).max(source.map_or(0, |source| self.sources.wait(&network(source), now)));
        if wait == 0 {
            return Ok(());
        }
        Err(Refusal::Denied(format!("too many wrong invite codes came from your key or your network: try again in {wait} s")))
    }

    /// Counts a try to plant something from elsewhere with this invite, as it would be after that.
    pub(super) fn attempt(&mut self, invite: &Invite, now: u64) -> Result<(), Refusal> {
        let uses = (0..=invite.uses_left.min(99)).map(|nth| (invite.id.clone(), nth));
        let (wait, next) = uses.map(|nth| (self.tries.wait(&nth, now), nth)).min().unwrap_or((0, (invite.id.clone(), 0)));
        if wait > 0 {
            return Err(Refusal::Denied(format!("too much was tried with this invite code: try again in {wait} s")));
        }
        self.tries.count(&next, now);
        Ok(())
    }

    fn wrong(&mut self, key: &KeyId, source: Option<IpAddr>, now: u64) {
        self.keys.count(key, now);
        if let Some(source) = source {
            self.sources.count(&network(source), now);
        }
    }
}

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
        if self.memory.invites.contains_key(&id) {
            return Err(Refusal::Failed("this code would be called like another: try again".to_owned()));
        }
        let created = now();
        let expires = if expires_secs == 0 { 0 } else { created.saturating_add(expires_secs) };
        let invite = Invite { id: id.clone(), hash: hash(&code), uses_left: uses, expires, note, created, ..Invite::default() };
        let mut batch: Batch = surplus(&self.memory, created).into_iter().map(|id| Change::Invite(id, None)).collect();
        batch.push(Change::Invite(id, Some(invite)));
        self.commit(batch).await?;
        Ok(Reply::Text(code))
    }

    pub(super) fn invites(&self) -> Reply {
        let now = now();
        let show = |invite: &Invite| InviteSummary {
            id: invite.id.clone(),
            state: state(invite, now).to_owned(),
            uses_left: invite.uses_left,
            expires: invite.expires,
            note: invite.note.clone(),
            created: invite.created,
            revoked: invite.revoked,
            used: invite
                .used
                .iter()
                .map(|spent| InviteUse {
                    key: spent.key.as_ref().map(ToString::to_string),
                    source: spent.source.map(|source| source.to_string()),
                    flake: spent.flake.to_string(),
                    at: spent.at,
                })
                .collect(),
        };
        let mut invites: Vec<&Invite> = self.memory.invites.values().collect();
        invites.sort_by_key(|invite| (invite.created, &invite.id));
        json(&InviteList { version: 1, invites: invites.into_iter().map(show).collect() })
    }

    pub(super) async fn revoke_invite(&mut self, id: &str) -> Result<Reply, Refusal> {
        let now = now();
        let usable = |invite: &&Invite| state(invite, now) == "usable";
        let Some(invite) = self.memory.invites.get(id).filter(usable).cloned() else {
            let ids: Vec<&str> = self.memory.invites.values().filter(usable).map(|invite| invite.id.as_str()).collect();
            let there = if ids.is_empty() { "there is none".to_owned() } else { format!("there is {}", ids.join(", ")) };
            return Err(Refusal::NotFound(format!("there is no invite {id:?} that could still be used; {there}")));
        };
        self.commit(vec![Change::Invite(id.to_owned(), Some(Invite { revoked: now, ..invite }))]).await?;
        Ok(Reply::Nothing)
    }

    /// The invite that `code` is good for, as it is after `who` has used it for `flake`.
    pub(super) fn use_invite(
        &mut self,
        who: &Principal,
        source: Option<IpAddr>,
        code: &str,
        flake: &FlakeUri,
    ) -> Result<Invite, Refusal> {
        let now = now();
        let key = match who {
            Principal::Operator => None,
            Principal::Key(key) => Some(key),
        };
        if let Some(key) = key {
            self.guesses.check(key, source, now)?;
        }
        let Some(mut invite) = find(&self.memory, code, now) else {
            if let Some(key) = key {
                self.guesses.wrong(key, source, now);
                tracing::warn!(%key, source = source.map(tracing::field::display), "a wrong invite code");
            }
            return Err(Refusal::Denied(
                "this invite code is not valid (unknown, used up, revoked or expired): ask the host's operator for one".to_owned(),
            ));
        };
        invite.uses_left -= 1;
        invite.used.push(Spent { key: key.cloned(), source, flake: flake.clone(), at: now });
        Ok(invite)
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

/// What can be done with it: `usable`, `used`, `revoked`, `expired`.
fn state(invite: &Invite, now: u64) -> &'static str {
    match invite {
        Invite { revoked: 1.., .. } => "revoked",
        Invite { uses_left: 0, .. } => "used",
        Invite { expires, .. } if *expires != 0 && *expires <= now => "expired",
        _ => "usable",
    }
}

/// The oldest of those that can do nothing any more, if there are too many.
fn surplus(memory: &Memory, now: u64) -> Vec<String> {
    let mut over: Vec<(u64, &String)> = memory
        .invites
        .values()
        .filter(|invite| state(invite, now) != "usable")
        .map(|invite| (invite.created, &invite.id))
        .collect();
    over.sort();
    over.iter().take((over.len() + 1).saturating_sub(KEPT)).map(|(_, id)| (*id).clone()).collect()
}

/// The usable invite with this code. Every invite is compared, each to its last byte, so that the time it takes says nothing.
fn find(memory: &Memory, code: &str, now: u64) -> Option<Invite> {
    let wanted = hash(code.trim());
    let mut found = None;
    for invite in memory.invites.values() {
        let differences = invite.hash.bytes().zip(wanted.bytes()).fold(0u8, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        if differences == 0 && invite.hash.len() == wanted.len() {
            found = Some(invite);
        }
    }
    found.filter(|invite| state(invite, now) == "usable").cloned()
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
    fn a_code_that_is_unknown_expired_revoked_or_used_up_is_none() {
        let mut memory = Memory::default();
        let invite = Invite { id: "a".into(), hash: hash("secret"), uses_left: 1, ..Invite::default() };
        let cut = Invite { id: "b".into(), hash: hash("secret")[..60].to_owned(), uses_left: 1, ..Invite::default() };
        memory.invites.insert("b".into(), cut);
        let cases = [
            (invite.clone(), true),
            (Invite { expires: 10, ..invite.clone() }, false),
            (Invite { expires: 11, ..invite.clone() }, true),
            (Invite { revoked: 1, ..invite.clone() }, false),
            (Invite { uses_left: 0, ..invite }, false),
        ];
        for (invite, good) in cases {
            memory.invites.insert("a".into(), invite.clone());
            assert_eq!(find(&memory, " secret\n", 10).is_some(), good, "{invite:?}");
            assert!(find(&memory, "Secret", 10).is_none() && find(&memory, "", 10).is_none());
        }
    }

    #[test]
    fn guessing_is_slowed_down_by_key_and_by_network() {
        let key = |n: u32| crate::spec::access::fingerprint(&n.to_be_bytes());
        let source = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let mut guesses = Guesses::default();
        for _ in 0..5 {
            guesses.check(&key(0), source("192.0.2.1"), 0).unwrap();
            guesses.wrong(&key(0), source("192.0.2.1"), 0);
        }
        let Err(Refusal::Denied(text)) = guesses.check(&key(0), source("198.51.100.1"), 0) else { panic!("not slowed down") };
        assert!(text.contains("60 s"), "{text}");
        guesses.check(&key(1), source("192.0.2.1"), 0).unwrap();
        // A key of its own for each guess does not help, and neither does an address of its own out of one's /48.
        let mut guesses = Guesses::default();
        for n in 0..20 {
            let here = source(&format!("2001:db8:7:{n:x}::{n:x}"));
            guesses.check(&key(n), here, 0).unwrap();
            guesses.wrong(&key(n), here, 0);
        }
        assert!(guesses.check(&key(99), source("2001:db8:7:ffff::1"), 0).is_err());
        guesses.check(&key(99), source("2001:db8:8::1"), 0).unwrap();
        guesses.check(&key(99), source("2001:db8:7:ffff::1"), 30).unwrap();
    }

    #[test]
    fn an_invite_is_good_for_some_tries_for_each_of_its_uses() {
        let mut guesses = Guesses::default();
        for (uses_left, tries) in [(0, 10), (2, 30)] {
            let invite = Invite { id: format!("{uses_left}"), uses_left, ..Invite::default() };
            (0..tries).for_each(|_| guesses.attempt(&invite, 1000).unwrap());
            let Err(Refusal::Denied(text)) = guesses.attempt(&invite, 1000) else { panic!("goes on") };
            assert!(text.contains("300 s"), "{text}");
            guesses.attempt(&invite, 1300).unwrap();
        }
    }

    #[test]
    fn of_spent_invites_the_oldest_go() {
        let mut memory = Memory::default();
        for n in 0..KEPT as u64 + 10 {
            let invite = Invite { id: format!("{n:04}"), created: n, uses_left: u32::from(n < 5), ..Invite::default() };
            memory.invites.insert(invite.id.clone(), invite);
        }
        assert_eq!(surplus(&memory, 0), (5..11).map(|n| format!("{n:04}")).collect::<Vec<_>>());
    }
}

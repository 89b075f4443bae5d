//! Whose a repository is that is somewhere else: its own `.authorized_keys` says so. Whoever may put a line there may push to it, so a line
//! is the proof that its key belongs to one of its owners.
//!
//! A line counts that gives its key all of the repository, now, with leave to push: none with `SEED_ROLE=read`, `SEED_INSTANCE=` or an
//! `expiry-time=` that is over. If a line that counts says `SEED_ROLE=admin`, only those do: whoever owns the namespace may all that an
//! admin may.

use super::{
    access::{Grant, Role},
    name::KeyId,
};

fn counts(grant: &Grant, now: u64) -> bool {
    grant.role >= Role::Deploy && grant.instance.is_none() && grant.until.is_none_or(|until| now < until)
}

fn names_admins(grants: &[Grant], now: u64) -> bool {
    grants.iter().any(|grant| counts(grant, now) && grant.role == Role::Admin)
}

/// The keys that a file proves to be an owner's, in its order.
pub fn owners(grants: &[Grant], now: u64) -> impl Iterator<Item = &KeyId> {
    let least = if names_admins(grants, now) { Role::Admin } else { Role::Deploy };
    grants.iter().filter(move |grant| counts(grant, now) && grant.role >= least).map(|grant| &grant.key)
}

/// Why a key is none of those, and what its line has to begin with.
pub fn lacking(grants: &[Grant], key: &KeyId, now: u64) -> (String, &'static str) {
    let prefix = if names_admins(grants, now) { "environment=\"SEED_ROLE=admin\" " } else { "" };
    let mine: Vec<&Grant> = grants.iter().filter(|grant| grant.key == *key).collect();
    let why = if mine.iter().any(|grant| counts(grant, now)) {
        format!("names admins, and your key {key} is none of them")
    } else if mine.is_empty() {
        format!("has no line for your key {key}")
    } else {
        let lines: Vec<String> = mine.iter().map(ToString::to_string).collect();
        format!("gives your key too little ({}): it takes leave to push, for all of it, that has not expired", lines.join("; "))
    };
    (why, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{access::fingerprint, authorized_keys};

    const ANN: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0ZWTmzNGYBGYHcRl5mS7a1Zkp6Yz2hT3l8e7o0dHQk";
    const BOB: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0ZWTmzNGYBGYHcRl5mS7a1Zkp6Yz2hT3l8e7o0dHQl";

    fn key(line: &str) -> KeyId {
        let blob = line.split(' ').nth(1).unwrap();
        fingerprint(&data_encoding::BASE64.decode(blob.as_bytes()).unwrap())
    }

    #[test]
    fn which_lines_prove_whose_it_is() {
        let read = "environment=\"SEED_ROLE=read\"";
        let admin = "environment=\"SEED_ROLE=admin\"";
        let web = "environment=\"SEED_INSTANCE=web\"";
        let (over, later) = ("expiry-time=\"19700102Z\"", "expiry-time=\"20300101Z\"");
        //  file, whether ann owns it, or what she is told
        let table = [
            (format!("{ANN} ann\n"), ""),
            (format!("restrict {ANN}\n"), ""),
            (format!("environment=\"SEED_ROLE=deploy\" {ANN}\n"), ""),
            (format!("{later} {ANN}\n"), ""),
            (format!("{admin},{later} {ANN}\n"), ""),
            (format!("{admin} {ANN}\n{BOB}\n"), ""),
            (format!("{read} {ANN}\n{ANN}\n"), ""),
            (format!("{admin} {BOB}\n{admin} {ANN}\n"), ""),
            // An admin who is none any more, or of one instance, takes it from nobody.
            (format!("{admin},{over} {BOB}\n{ANN}\n"), ""),
            (format!("{admin},{web} {BOB}\n{ANN}\n"), ""),
            (format!("{BOB}\n"), "has no line for your key"),
            (String::new(), "has no line for your key"),
            (format!("{read} {ANN}\n"), "too little"),
            (format!("{web} {ANN}\n"), "only web"),
            (format!("{admin},{web} {ANN}\n"), "only web"),
            (format!("{over} {ANN}\n"), "until 19700102Z"),
            (format!("{admin},{over} {ANN}\n"), "until 19700102Z"),
            (format!("{read} {ANN}\n{web} {ANN}\n"), "too little"),
            (format!("{ANN}\n{admin} {BOB}\n"), "is none of them"),
            (format!("from=\"10.0.0.0/8\" {ANN}\n"), "has no line for your key"),
        ];
        for (file, expected) in table {
            let (grants, _) = authorized_keys::read(&file);
            let owns = owners(&grants, 86_400).any(|owner| *owner == key(ANN));
            assert_eq!(owns, expected.is_empty(), "{file}");
            if !owns {
                let (why, prefix) = lacking(&grants, &key(ANN), 86_400);
                assert!(why.contains(expected), "{file}: {why}");
                // What is told is enough.
                let (grants, _) = authorized_keys::read(&format!("{file}{prefix}{ANN}\n"));
                assert!(owners(&grants, 86_400).any(|owner| *owner == key(ANN)), "{file}: {prefix}");
            }
        }
    }
}

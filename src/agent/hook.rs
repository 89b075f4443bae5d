//! Webhooks of repositories from elsewhere, and the secrets that they are signed with. A delivery is only ever a reason to look: what is deployed is what the branch is at
//! when it is fetched, so one that is kept and sent again later brings nothing old back. It must be signed with the plant's secret all
//! the same, or anybody could keep this host busy.

use std::{collections::VecDeque, fs, io};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::{
    Agent, Event,
    remote::Notice,
    request::{Answer, Reply},
};
use crate::{
    build::Builder,
    bus::Refusal,
    host::Host,
    spec::name::{FlakeUri, Namespace},
    state::{Secret, State},
};

/// How many deliveries are remembered.
const REMEMBERED: usize = 1024;

/// Signatures of deliveries that were heard.
#[derive(Debug, Default)]
pub(super) struct Heard(VecDeque<Signature>);

type Signature = [u8; 32];

impl Heard {
    /// Whether it is the first time.
    fn first(&mut self, signature: &Signature) -> bool {
        if self.0.contains(signature) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(*signature);
        true
    }
}

/// A delivery whose signature was compared with the secrets of all plants that it could be meant for.
pub struct Delivery {
    branch: String,
    signature: Signature,
    /// Those whose secret it was signed with.
    meant: Vec<Namespace>,
}

/// `sha256=` and 64 digits.
fn parse(signature: &str) -> Option<Signature> {
    let digits = signature.strip_prefix("sha256=")?;
    data_encoding::HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?.try_into().ok()
}

/// Whether `body` was signed with `secret`, in a time that does not say how much of the signature is right.
fn is_signed(secret: &Secret, body: &[u8], signature: &Signature) -> bool {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()) else { return false };
    mac.update(body);
    mac.verify_slice(signature).is_ok()
}

fn unknown() -> Refusal {
    Refusal::Denied("no plant of this host has this repository and this secret".to_owned())
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Compares a delivery with the secrets that it may be signed with, beside the loop. Who has none learns nothing: a repository that
    /// is not planted here takes as long, and gets the same answer.
    pub(super) fn hook(&self, repository: &str, branch: String, signature: &str, body: Vec<u8>, answer: Answer) {
        let Some(signature) = parse(signature) else {
            return drop(
                answer.send(Err(Refusal::Denied("there is no signature: give the webhook the plant's secret".to_owned()))),
            );
        };
        let mut secrets: Vec<(Option<Namespace>, Secret)> = Vec::new();
        for plant in self.memory.plants.values() {
            let (FlakeUri::Remote(remote), Some(upstream)) = (&plant.uri, self.memory.upstreams.get(&plant.namespace)) else {
                continue;
            };
            if remote.is_called(repository) {
                secrets.push((Some(plant.namespace.clone()), upstream.secret.clone()));
            }
        }
        if secrets.is_empty() {
            secrets.push((None, Secret(String::new())));
        }
        let events = self.shared.events.clone();
        tokio::task::spawn_blocking(move || {
            let signed = secrets.into_iter().filter(|(_, secret)| is_signed(secret, &body, &signature));
            let meant: Vec<Namespace> = signed.filter_map(|(namespace, _)| namespace).collect();
            let delivery = Delivery { branch, signature, meant };
            // The loop being gone means that the agent stops.
            drop(events.blocking_send(Event::Remote(Notice::Delivered(delivery, answer))));
        });
    }

    /// What comes of a delivery.
    pub(super) fn delivered(&mut self, delivery: &Delivery) -> Result<Reply, Refusal> {
        let word = |word: &str| Ok(Reply::Text(word.to_owned()));
        if delivery.meant.is_empty() {
            return Err(unknown());
        }
        if delivery.branch.is_empty() {
            return word("welcome");
        }
        if !self.remotes.heard.first(&delivery.signature) {
            return word("repeated");
        }
        let follows = |namespace: &&Namespace| {
            let branch = self.branch_of(namespace);
            branch.is_none_or(|branch| branch.as_str() == delivery.branch)
        };
        let moved: Vec<Namespace> = delivery.meant.iter().filter(follows).cloned().collect();
        for namespace in &moved {
            self.fetch_soon(namespace);
        }
        word(if moved.is_empty() { "otherBranch" } else { "fetching" })
    }
}

/// A secret that a webhook is to be signed with: 160 bits.
pub(super) fn new_secret() -> io::Result<Secret> {
    let mut bytes = [0u8; 20];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(Secret(data_encoding::HEXLOWER.encode(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_taken_as_github_makes_it() {
        // The example of GitHub's documentation.
        let secret = Secret("It's a Secret to Everybody".to_owned());
        let said = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let signature = parse(said).unwrap();
        assert!(is_signed(&secret, b"Hello, World!", &signature));
        assert!(!is_signed(&secret, b"Hello, World?", &signature));
        assert!(!is_signed(&Secret("another".into()), b"Hello, World!", &signature));
        assert!(!is_signed(&Secret(String::new()), b"Hello, World!", &signature));
        for bad in
            ["", "sha1=757107ea0eb2509fc211221cce984b8a37570b6d", &said[..70], &said.replace("75", "zz"), &format!("{said}00")]
        {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_delivery_is_heard_once_and_the_oldest_are_forgotten() {
        let mut heard = Heard::default();
        let of = |n: usize| {
            let mut signature = [0; 32];
            signature[..8].copy_from_slice(&n.to_be_bytes());
            signature
        };
        assert!((0..REMEMBERED + 1).all(|n| heard.first(&of(n))));
        assert!((1..REMEMBERED + 1).all(|n| !heard.first(&of(n))));
        assert!(heard.first(&of(0)), "it made room for another");
    }
}

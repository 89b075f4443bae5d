//! The key that opens guests: what it signs lets one holder of one key into one instance, for some minutes, to do one kind of thing.
//!
//! Guests are told its public half at boot (`render::credentials`). The private one is made at the agent's first start and never
//! leaves it; a new one would need every guest to boot again.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use russh::keys::{
    Algorithm, PrivateKey, PublicKey,
    key::safe_rng,
    ssh_key::{
        self, LineEnding,
        certificate::{Builder, CertType},
    },
};

use crate::{bus::guest::Act, secret_file};

/// How long a certificate can be used to get inside; who is inside stays.
const LIVES: u64 = 5 * 60;
/// How far a guest's clock may be behind.
const SLACK: u64 = 60 * 60;

/// Signs certificates.
#[derive(Debug, Clone)]
pub struct Authority(PrivateKey);

/// Why there is no authority, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("could not {deed} {path}, the key that opens guests")]
    File { deed: &'static str, path: PathBuf, source: std::io::Error },
    #[error("could not {deed} the key that opens guests")]
    Key { deed: &'static str, source: ssh_key::Error },
}

fn failed(deed: &'static str) -> impl Fn(ssh_key::Error) -> AuthorityError {
    move |source| AuthorityError::Key { deed, source }
}

impl Authority {
    /// A new one that nobody else has.
    pub fn new() -> Result<Self, AuthorityError> {
        PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).map(Self).map_err(failed("make"))
    }

    /// Reads the key, or makes one if there is none. One that is there but cannot be read is an error.
    pub fn load_or_make(path: &Path) -> Result<Self, AuthorityError> {
        let file = |deed| move |source| AuthorityError::File { deed, path: path.to_owned(), source };
        match std::fs::read_to_string(path) {
            Ok(text) => PrivateKey::from_openssh(&text).map(Self).map_err(failed("read")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let made = Self::new()?;
                let text = made.0.to_openssh(LineEnding::LF).map_err(failed("write"))?;
                secret_file::write(path, text.as_bytes()).map_err(file("write"))?;
                tracing::info!(path = %path.display(), "made the key that opens guests");
                Ok(made)
            }
            Err(error) => Err(file("read")(error)),
        }
    }

    /// The public half, as OpenSSH writes it, without a comment.
    pub fn public(&self) -> String {
        let mut key = self.0.public_key().clone();
        key.set_comment("");
        key.to_openssh().unwrap_or_default().trim().to_owned()
    }

    /// A certificate by which the holder of `key` may do `act` as the guest's root, from now on for some minutes. `principal` names the
    /// instance, `holder` is what the guest's journal says of who came.
    pub fn certify(&self, key: &PublicKey, principal: &str, holder: &str, act: Act, now: u64) -> Result<String, AuthorityError> {
        let sign = || {
            let mut made = Builder::new_with_random_nonce(&mut safe_rng(), key, now.saturating_sub(SLACK), now + LIVES)?;
            made.serial(now)?.key_id(holder)?.cert_type(CertType::User)?.valid_principal(principal)?;
            match act {
                Act::Exec => made.extension("permit-pty", "")?,
                Act::Forward => made.extension("permit-port-forwarding", "")?,
                Act::Copy => &mut made,
            };
            made.sign(&self.0)?.to_openssh()
        };
        sign().map_err(failed("sign with"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_for_root_alone_and_a_broken_one_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest-ca");
        let first = Authority::load_or_make(&path).unwrap();
        assert!(first.public().starts_with("ssh-ed25519 AAAA") && first.public().split(' ').count() == 2, "{}", first.public());
        assert_eq!(Authority::load_or_make(&path).unwrap().public(), first.public());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "nonsense").unwrap();
        assert!(Authority::load_or_make(&path).is_err());
    }

    #[test]
    fn a_certificate_allows_one_thing_in_one_place_for_minutes() {
        let authority = Authority::new().unwrap();
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        for (act, allowed) in [(Act::Exec, &["permit-pty"][..]), (Act::Copy, &[]), (Act::Forward, &["permit-port-forwarding"])] {
            let text = authority.certify(key.public_key(), "s-aaaaaaaaaaaa-web", "SHA256:x@192.0.2.7", act, 1_000_000).unwrap();
            let made = ssh_key::Certificate::from_openssh(&text).unwrap();
            assert_eq!((made.valid_principals(), made.key_id()), (&["s-aaaaaaaaaaaa-web".to_owned()][..], "SHA256:x@192.0.2.7"));
            assert_eq!((made.valid_after(), made.valid_before()), (1_000_000 - 3600, 1_000_000 + 300));
            assert_eq!(made.extensions().keys().collect::<Vec<_>>(), allowed);
            assert_eq!(made.public_key(), key.public_key().key_data());
            let by = authority.0.public_key().fingerprint(russh::keys::HashAlg::Sha256);
            assert!(made.validate_at(1_000_100, [&by]).is_ok() && made.validate_at(1_000_301, [&by]).is_err());
        }
    }
}

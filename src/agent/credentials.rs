//! What private repositories are read with, tokens and deploy keys: a file each that only root can read. systemd hands it to the unit that fetches, and to nobody
//! else; it is in no argument list, no environment and no document of the state.
//!
//! `<namespace>.token` and `<namespace>.key` are a namespace's. `plant-….token` was given for planting, and lives as long as that takes: an
//! interrupted one is removed at the next. `plant-….key` waits for its public half to be added to the repository.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use russh::keys::{Algorithm, PrivateKey, key::safe_rng, ssh_key::LineEnding};
use sha2::{Digest, Sha256};

use super::chain;
use crate::{
    build::fetch::Credential,
    bus::Refusal,
    secret_file,
    spec::name::{FlakeUri, Namespace},
    state::Secret,
};

/// What was given for planting is of no use any more after this, and a key that was made for it after that.
const LENT: Duration = Duration::from_secs(60 * 60);
const WAITS: Duration = Duration::from_secs(24 * 60 * 60);
/// How many of those there may be. To have one made takes an invite code, but one code may be shown for many repositories.
const MOST_LENT: usize = 500;

/// The folder that they are in.
#[derive(Debug, Clone)]
pub struct Credentials(pub PathBuf);

/// A token as it is kept.
fn checked(token: &Secret) -> Result<&[u8], Refusal> {
    let token = token.0.trim();
    if token.is_empty() || token.len() > 1024 || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Refusal::Invalid(
            "a token is one word of at most 1024 printable ASCII characters: TOKEN, or USER:TOKEN".to_owned(),
        ));
    }
    Ok(token.as_bytes())
}

fn unkept(error: &io::Error) -> Refusal {
    Refusal::Failed(format!("this host could not keep the token: {}", chain(error)))
}

impl Credentials {
    /// What the repository of a namespace is read with: its token, else its key.
    pub fn of(&self, namespace: &Namespace) -> Option<Credential> {
        let file = |kind| Some(self.path(namespace, kind)).filter(|path| path.exists());
        file("token").map(Credential::Token).or_else(|| file("key").map(Credential::Key))
    }

    fn path(&self, namespace: &Namespace, kind: &str) -> PathBuf {
        self.0.join(format!("{namespace}.{kind}"))
    }

    /// Keeps a token instead of the one before.
    pub fn set_token(&self, namespace: &Namespace, token: &Secret) -> Result<(), Refusal> {
        write(&self.0, &self.path(namespace, "token"), checked(token)?).map_err(|error| unkept(&error))
    }

    /// The public half of the deploy key of a namespace, if it has one.
    pub fn key(&self, namespace: &Namespace) -> Option<String> {
        let text = fs::read_to_string(self.path(namespace, "key")).ok()?;
        PrivateKey::from_openssh(&text).ok().map(|key| public(&key))
    }

    /// The same; it is made if there is none. And whether it was.
    pub fn make_key(&self, namespace: &Namespace) -> Result<(String, bool), Refusal> {
        self.key_at(&self.path(namespace, "key"))
    }

    fn key_at(&self, path: &Path) -> Result<(String, bool), Refusal> {
        let failed =
            |error: &dyn std::error::Error| Refusal::Failed(format!("this host could not make a deploy key: {}", chain(error)));
        match fs::read_to_string(path) {
            Ok(text) => return PrivateKey::from_openssh(&text).map(|key| (public(&key), false)).map_err(|error| failed(&error)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&error)),
            Err(_) => {}
        }
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).map_err(|error| failed(&error))?;
        let text = key.to_openssh(LineEnding::LF).map_err(|error| failed(&error))?;
        write(&self.0, path, text.as_bytes()).map_err(|error| failed(&error))?;
        Ok((public(&key), true))
    }

    /// Where what `who` plants `flake` with is kept.
    fn lent(&self, who: &str, flake: &FlakeUri, kind: &str) -> PathBuf {
        let name = data_encoding::HEXLOWER.encode(&Sha256::digest(format!("{who} {flake}").as_bytes()));
        self.0.join(format!("plant-{}.{kind}", &name[..24]))
    }

    /// Keeps a token for as long as `who` plants `flake` with it.
    pub fn lend(&self, who: &str, flake: &FlakeUri, token: &Secret) -> Result<PathBuf, Refusal> {
        let token = checked(token)?;
        self.sweep()?;
        let path = self.lent(who, flake, "token");
        write(&self.0, &path, token).map_err(|error| unkept(&error))?;
        Ok(path)
    }

    /// The public half of the key that `who` is to plant `flake` with. It is made if there is none; and whether it was.
    pub fn lend_key(&self, who: &str, flake: &FlakeUri) -> Result<(PathBuf, String, bool), Refusal> {
        self.sweep()?;
        let path = self.lent(who, flake, "key");
        let (public, made) = self.key_at(&path)?;
        Ok((path, public, made))
    }

    /// Makes what was lent the namespace's.
    pub fn adopt(&self, lent: &Credential, namespace: &Namespace) -> Result<(), Refusal> {
        let (lent, kind) = match lent {
            Credential::Token(path) => (path, "token"),
            Credential::Key(path) => (path, "key"),
        };
        let adopted = fs::rename(lent, self.path(namespace, kind)).and_then(|()| fs::File::open(&self.0)?.sync_all());
        adopted.map_err(|error| {
            Refusal::Failed(format!(
                "this host could not keep its {kind} ({error}): it was not planted, and the code was not spent"
            ))
        })
    }

    /// Removes a token that was lent. A key goes on waiting for its public half to be added.
    pub fn give_back(&self, lent: &Credential) {
        if let Credential::Token(path) = lent {
            remove(path);
        }
    }

    /// Removes what was lent too long ago.
    fn sweep(&self) -> Result<(), Refusal> {
        let mut there = 0;
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let path = entry.path();
            if !entry.file_name().to_string_lossy().starts_with("plant-") {
                continue;
            }
            let limit = if path.extension().is_some_and(|kind| kind == "key") { WAITS } else { LENT };
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            match modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > limit)) {
                true => remove(&path),
                false => there += 1,
            }
        }
        match there {
            MOST_LENT.. => {
                Err(Refusal::Failed("too many others are planting private repositories here: try again tomorrow".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Removes what there is of a namespace; whether there was something.
    pub fn forget(&self, namespace: &Namespace) -> Result<bool, Refusal> {
        let mut found = false;
        for kind in ["token", "key"] {
            match fs::remove_file(self.path(namespace, kind)) {
                Ok(()) => found = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Refusal::Failed(format!("this host could not remove the {kind}: {error}"))),
            }
        }
        Ok(found)
    }
}

fn remove(lent: &Path) {
    if let Err(error) = fs::remove_file(lent) {
        tracing::warn!(%error, "what was given for planting is removed later");
    }
}

/// As it is added to a repository.
fn public(key: &PrivateKey) -> String {
    let mut key = key.public_key().clone();
    key.set_comment("seed");
    key.to_openssh().unwrap_or_default().trim().to_owned()
}

fn write(folder: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    secret_file::write(path, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn files(credentials: &Credentials) -> usize {
        fs::read_dir(&credentials.0).unwrap().count()
    }

    #[test]
    fn a_token_is_kept_for_root_alone_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials(folder.path().join("credentials"));
        let namespace: Namespace = "s-aaaaaaaaaaaa".parse().unwrap();
        let path = credentials.path(&namespace, "token");
        assert!(credentials.of(&namespace).is_none() && !credentials.forget(&namespace).unwrap());
        for token in ["first", " ann:second\n"] {
            credentials.set_token(&namespace, &Secret(token.into())).unwrap();
            assert_eq!(credentials.of(&namespace), Some(Credential::Token(path.clone())));
            assert_eq!(fs::read_to_string(&path).unwrap(), token.trim());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(&credentials.0).unwrap().permissions().mode() & 0o777, 0o700);
        for bad in ["", " ", "two words", "a\nb", "a\0b", "ü", &"x".repeat(1025)] {
            assert!(matches!(credentials.set_token(&namespace, &Secret(bad.into())), Err(Refusal::Invalid(_))), "{bad:?}");
        }
        assert!(credentials.forget(&namespace).unwrap() && credentials.of(&namespace).is_none());
    }

    #[test]
    fn a_deploy_key_is_made_once_for_root_alone_and_a_token_comes_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials(folder.path().join("credentials"));
        let namespace: Namespace = "s-aaaaaaaaaaaa".parse().unwrap();
        assert_eq!(credentials.key(&namespace), None);
        let (public, made) = credentials.make_key(&namespace).unwrap();
        assert!(made && public.starts_with("ssh-ed25519 AAAA") && public.ends_with(" seed"), "{public}");
        assert_eq!(credentials.make_key(&namespace).unwrap(), (public.clone(), false));
        assert_eq!(credentials.key(&namespace), Some(public));
        let path = credentials.path(&namespace, "key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(credentials.of(&namespace), Some(Credential::Key(path.clone())));
        credentials.set_token(&namespace, &Secret("first".into())).unwrap();
        assert!(matches!(credentials.of(&namespace), Some(Credential::Token(_))));
        assert!(credentials.forget(&namespace).unwrap() && credentials.of(&namespace).is_none());
        fs::write(&path, "nonsense").unwrap();
        assert!(credentials.make_key(&namespace).is_err(), "one that cannot be read is not replaced");
    }

    #[test]
    fn what_is_lent_for_planting_is_adopted_given_back_or_swept() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials(folder.path().join("credentials"));
        let namespace: Namespace = "s-aaaaaaaaaaaa".parse().unwrap();
        let flake: FlakeUri = "github:ann/app".parse().unwrap();
        let token = Secret("s3cret".into());
        let (anns, bobs) =
            (credentials.lend("ann", &flake, &token).unwrap(), credentials.lend("bob", &flake, &Secret("his".into())).unwrap());
        assert!(anns != bobs && credentials.of(&namespace).is_none());
        assert_eq!(fs::metadata(&anns).unwrap().permissions().mode() & 0o777, 0o600);
        credentials.adopt(&Credential::Token(anns), &namespace).unwrap();
        assert_eq!(fs::read_to_string(credentials.path(&namespace, "token")).unwrap(), "s3cret");
        credentials.give_back(&Credential::Token(bobs));
        assert_eq!(files(&credentials), 1);
        let (path, public, made) = credentials.lend_key("ann", &flake).unwrap();
        credentials.give_back(&Credential::Key(path.clone()));
        assert!(made && credentials.lend_key("ann", &flake).unwrap() == (path.clone(), public.clone(), false));
        assert_ne!(credentials.lend_key("bob", &flake).unwrap().1, public);
        credentials.adopt(&Credential::Key(path), &namespace).unwrap();
        assert_eq!(credentials.key(&namespace), Some(public));
        credentials.forget(&namespace).unwrap();
        assert_eq!(files(&credentials), 1);
        // The agent was killed while it fetched.
        let old = credentials.lend("bob", &flake, &token).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&old).unwrap();
        file.set_modified(SystemTime::now() - LENT - Duration::from_secs(1)).unwrap();
        let new = credentials.lend("eve", &flake, &token).unwrap();
        assert!(!old.exists() && new.exists() && files(&credentials) == 2, "bob's key still waits");
    }
}

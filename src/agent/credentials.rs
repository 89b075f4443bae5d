//! What private repositories are read with: a file each that only root can read. systemd hands it to the unit that fetches, and to nobody
//! else; it is in no argument list, no environment and no document of the state.
//!
//! `<namespace>.token` is a namespace's. `plant-….token` was given for planting, and lives as long as that takes: an interrupted one is
//! removed at the next.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};

use super::chain;
use crate::{
    bus::Refusal,
    spec::name::{FlakeUri, Namespace},
    state::Secret,
};

/// What was given for planting is of no use any more after this.
const LENT: Duration = Duration::from_secs(60 * 60);

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
    /// The file with the token of a namespace, if there is one.
    pub fn token(&self, namespace: &Namespace) -> Option<PathBuf> {
        let path = self.path(namespace);
        path.exists().then_some(path)
    }

    fn path(&self, namespace: &Namespace) -> PathBuf {
        self.0.join(format!("{namespace}.token"))
    }

    /// Keeps a token instead of the one before.
    pub fn set_token(&self, namespace: &Namespace, token: &Secret) -> Result<(), Refusal> {
        write(&self.0, &self.path(namespace), checked(token)?).map_err(|error| unkept(&error))
    }

    /// Keeps a token for as long as `who` plants `flake` with it.
    pub fn lend(&self, who: &str, flake: &FlakeUri, token: &Secret) -> Result<PathBuf, Refusal> {
        let token = checked(token)?;
        self.sweep();
        let name = data_encoding::HEXLOWER.encode(&Sha256::digest(format!("{who} {flake}").as_bytes()));
        let path = self.0.join(format!("plant-{}.token", &name[..24]));
        write(&self.0, &path, token).map_err(|error| unkept(&error))?;
        Ok(path)
    }

    /// Makes what was lent the namespace's.
    pub fn adopt(&self, lent: &Path, namespace: &Namespace) -> Result<(), Refusal> {
        let adopted = fs::rename(lent, self.path(namespace)).and_then(|()| fs::File::open(&self.0)?.sync_all());
        adopted.map_err(|error| {
            Refusal::Failed(format!(
                "it is planted, but this host could not keep the token ({error}): give it once more with `remote`"
            ))
        })
    }

    /// Removes what was lent.
    pub fn give_back(&self, lent: &Path) {
        if let Err(error) = fs::remove_file(lent) {
            tracing::warn!(%error, "a token that was given for planting is removed later");
        }
    }

    fn sweep(&self) {
        let old = |path: &Path| {
            let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
            modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > LENT))
        };
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("plant-") && old(&entry.path()) {
                self.give_back(&entry.path());
            }
        }
    }

    /// Removes the token of a namespace; whether there was one.
    pub fn forget(&self, namespace: &Namespace) -> Result<bool, Refusal> {
        match fs::remove_file(self.path(namespace)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Refusal::Failed(format!("this host could not remove the token: {error}"))),
        }
    }
}

fn write(folder: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = path.with_extension("new");
    // What an interrupted write left behind; if it is not there, all the better.
    drop(fs::remove_file(&new));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(folder)?.sync_all()
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
        assert!(credentials.token(&namespace).is_none() && !credentials.forget(&namespace).unwrap());
        for token in ["first", " ann:second\n"] {
            credentials.set_token(&namespace, &Secret(token.into())).unwrap();
            let path = credentials.token(&namespace).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), token.trim());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(&credentials.0).unwrap().permissions().mode() & 0o777, 0o700);
        for bad in ["", " ", "two words", "a\nb", "a\0b", "ü", &"x".repeat(1025)] {
            assert!(matches!(credentials.set_token(&namespace, &Secret(bad.into())), Err(Refusal::Invalid(_))), "{bad:?}");
        }
        assert!(credentials.forget(&namespace).unwrap() && credentials.token(&namespace).is_none());
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
        assert!(anns != bobs && credentials.token(&namespace).is_none());
        assert_eq!(fs::metadata(&anns).unwrap().permissions().mode() & 0o777, 0o600);
        credentials.adopt(&anns, &namespace).unwrap();
        assert_eq!(fs::read_to_string(credentials.token(&namespace).unwrap()).unwrap(), "s3cret");
        credentials.give_back(&bobs);
        assert_eq!(files(&credentials), 1);
        // The agent was killed while it fetched.
        let old = credentials.lend("bob", &flake, &token).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&old).unwrap();
        file.set_modified(SystemTime::now() - LENT - Duration::from_secs(1)).unwrap();
        let new = credentials.lend("eve", &flake, &token).unwrap();
        assert!(!old.exists() && new.exists() && files(&credentials) == 2);
    }
}

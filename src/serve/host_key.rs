//! The key by which clients know the SSH door again.

use std::{fs, io::ErrorKind, path::Path};

use russh::keys::{Algorithm, PrivateKey, key::safe_rng, ssh_key::LineEnding};

use super::ServeError;
use crate::secret_file;

/// Reads the key, or makes one if there is none: written whole and synced before it gets its name. A key that is there but cannot be
/// read is an error: a new one would look like an attack to every client.
pub(super) fn load_or_make(path: &Path) -> Result<PrivateKey, ServeError> {
    let failed =
        |deed, source: Box<dyn std::error::Error + Send + Sync>| ServeError::HostKey { deed, path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => PrivateKey::from_openssh(&text).map_err(|error| failed("read", error.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).map_err(|error| failed("make", error.into()))?;
            let text = key.to_openssh(LineEnding::LF).map_err(|error| failed("make", error.into()))?;
            secret_file::write(path, text.as_bytes()).map_err(|error| failed("write", error.into()))?;
            tracing::info!(path = %path.display(), "made the host key");
            Ok(key)
        }
        Err(error) => Err(failed("read", error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_a_broken_one_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys/host");
        let first = load_or_make(&path).unwrap();
        assert_eq!(first.public_key(), load_or_make(&path).unwrap().public_key());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "not a key").unwrap();
        assert!(load_or_make(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a key");
    }
}

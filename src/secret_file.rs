//! Files that are a secret: keys, tokens. Whoever reads one finds the old or the new, whole, also after a crash.
#![allow(clippy::disallowed_methods, reason = "this room keeps files")]

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Writes `text` to a file that its owner alone may read (mode 600), and syncs it before it gets its name. The folder is made if need be.
pub fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        // What an interrupted write left behind.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
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

    #[test]
    fn it_is_its_owners_alone_and_what_an_interrupted_write_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/one.key");
        fs::create_dir(folder.path().join("keys")).unwrap();
        fs::write(path.with_extension("new"), "half").unwrap();
        for text in ["first", "second"] {
            write(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path().join("keys")).unwrap().count(), 1);
    }
}

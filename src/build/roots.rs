//! Garbage collection roots: links below /nix/var/nix/gcroots to what must be kept. One is made before its target is, so that there is
//! no moment at which a result could be collected.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::spec::name::StorePath;

/// Points `root` at `out`, which need not be there yet.
pub fn make(root: &Path, out: &StorePath) -> io::Result<()> {
    if std::fs::read_link(root).is_ok_and(|target| target == Path::new(out.as_str())) {
        return Ok(());
    }
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let temporary = root.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(out.as_str(), &temporary)?;
    std::fs::rename(temporary, root)
}

/// Removes the roots of a namespace whose targets are not among `keep`.
pub fn retain(roots: &Path, keep: &[StorePath]) -> io::Result<()> {
    let keep: BTreeSet<&str> = keep.iter().map(StorePath::as_str).collect();
    for instance in read_dir(roots)? {
        for root in read_dir(&instance)? {
            let target = std::fs::read_link(&root)?;
            if !target.to_str().is_some_and(|target| keep.contains(target)) {
                std::fs::remove_file(&root)?;
            }
        }
        // Only when nothing is left in it.
        if read_dir(&instance)?.is_empty() {
            std::fs::remove_dir(&instance)?;
        }
    }
    Ok(())
}

fn read_dir(path: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(tag: &str) -> StorePath {
        format!("/nix/store/{}-{tag}", tag.repeat(32).chars().take(32).collect::<String>()).parse().expect("a path")
    }

    #[test]
    fn roots_are_made_before_their_targets_and_dropped_when_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let roots = dir.path().join("s-abc");
        for tag in ["a", "b", "c"] {
            make(&roots.join("web").join(tag), &path(tag)).unwrap();
            make(&roots.join("web").join(tag), &path(tag)).unwrap();
        }
        make(&roots.join("old/x"), &path("d")).unwrap();
        retain(&roots, &[path("a"), path("c")]).unwrap();
        let mut left = read_dir(&roots.join("web")).unwrap();
        left.sort();
        assert_eq!(left, [roots.join("web/a"), roots.join("web/c")]);
        assert!(!roots.join("old").exists());
        retain(&dir.path().join("none"), &[]).unwrap();
    }
}

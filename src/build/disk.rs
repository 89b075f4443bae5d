//! How much room a folder takes.

use std::{os::unix::fs::MetadataExt, path::Path};

use crate::spec::name::PUSH_JOURNAL;

/// How many entries are counted before it is simply too large.
const MAX_ENTRIES: u32 = 2_000_000;

/// Bytes on the disk, of all that is below a directory. Links are not followed; what vanishes meanwhile does not count.
pub fn bytes_of(path: &Path) -> u64 {
    let (mut sum, mut entries) = (0u64, 0u32);
    let mut left = vec![path.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            entries += 1;
            if entries > MAX_ENTRIES {
                return u64::MAX;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            sum = sum.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    sum
}

/// The same, of a repository of this host: its last pushes are there twice for a while, and count once.
pub fn bytes_of_repository(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let journals = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PUSH_JOURNAL));
    let twice: u64 = journals.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks().saturating_mul(512)).sum();
    bytes_of(path).saturating_sub(twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_measured_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("x"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        std::os::unix::fs::symlink("..", inner.join("round")).unwrap();
        let bytes = bytes_of(dir.path());
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
        std::fs::write(dir.path().join("pushes-7"), vec![1; 100_000]).unwrap();
        assert!(bytes_of(dir.path()) >= bytes + 100_000);
        assert_eq!(bytes_of_repository(dir.path()), bytes);
        assert_eq!(bytes_of(&dir.path().join("nothing")), 0);
    }
}

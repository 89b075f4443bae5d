//! The files that a push brings, in their repository.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use gix::ObjectId;

/// A pack and its index, each whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve) struct Files {
    pub pack: Vec<u8>,
    pub index: Vec<u8>,
    /// The pack's checksum, which it has its name from.
    pub sum: ObjectId,
}

impl Files {
    /// Puts them below `repository`, where they get their names with [`Written::name`]. Nothing of it is sure to be on the disk.
    pub fn write(&self, repository: &Path) -> io::Result<Written> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = folder(repository);
        let mut written = Written { renames: Vec::new() };
        // The index last: with it the pack is there for others.
        for (bytes, name) in [(&self.pack, "pack"), (&self.index, "idx")] {
            // git sweeps such names, too.
            let from = folder.join(format!("tmp_{name}_seed-{}-{number}", std::process::id()));
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&from)?;
            written.renames.push((from, folder.join(format!("pack-{}.{name}", self.sum))));
            file.write_all(bytes)?;
        }
        Ok(written)
    }

    /// Whether they are there, byte by byte.
    pub fn are_in(&self, repository: &Path) -> bool {
        let folder = folder(repository);
        let same =
            |bytes: &[u8], name: &str| fs::read(folder.join(format!("pack-{}.{name}", self.sum))).is_ok_and(|found| found == bytes);
        same(&self.pack, "pack") && same(&self.index, "idx")
    }
}

fn folder(repository: &Path) -> PathBuf {
    repository.join("objects/pack")
}

/// Files under names that nobody reads; they go if they do not get others.
#[derive(Debug)]
pub(in crate::serve) struct Written {
    /// From which name to which.
    renames: Vec<(PathBuf, PathBuf)>,
}

impl Written {
    pub fn name(mut self) -> io::Result<()> {
        while let Some((from, to)) = self.renames.first() {
            fs::rename(from, to)?;
            self.renames.remove(0);
        }
        Ok(())
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for (from, _) in &self.renames {
            if let Err(error) = fs::remove_file(from) {
                tracing::warn!(%error, path = %from.display(), "could not remove half a push");
            }
        }
    }
}

//! The refs of a repository, read and moved as git does it: a ref is a file, or a line of `packed-refs` that the file goes before; who
//! changes it holds `<ref>.lock`, and git waits for that as we do for git's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use gix::ObjectId;

use super::Odd;
use crate::{
    serve::pktline,
    spec::name::{Commit, RefName},
};

/// What we can do, as git's own list has it.
const CAPABILITIES: &str =
    "report-status report-status-v2 delete-refs side-band-64k quiet atomic ofs-delta push-options object-format=sha1";
/// A repository of more refs is read by git.
const MAX_REFS: usize = 10_000;

const UNREADABLE: Odd = Odd("refs that cannot be read");

/// All refs of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::serve::receive) struct Refs(BTreeMap<RefName, ObjectId>);

impl Refs {
    /// Reads them, if the repository is as we make them.
    pub fn read(path: &Path) -> Result<Self, Odd> {
        let settings = fs::read_to_string(path.join("config")).map_err(|_| UNREADABLE)?;
        let ours = ["[core]", "repositoryformatversion = 0", "filemode = true", "filemode = false", "bare = true", ""];
        if !settings.lines().all(|line| ours.contains(&line.trim())) {
            return Err(Odd("a repository with settings of its own"));
        }
        if ["shallow", "info/grafts"].iter().any(|name| path.join(name).exists()) {
            return Err(Odd("a repository that is not whole"));
        }
        // Files first: git moves a ref into packed-refs before it takes the file away.
        let mut refs = BTreeMap::new();
        loose(path, Path::new("refs"), &mut refs)?;
        for (name, id) in packed(path)? {
            refs.entry(name).or_insert(id);
        }
        if refs.len() > MAX_REFS { Err(Odd("a repository of many refs")) } else { Ok(Self(refs)) }
    }

    /// What a client is told first: where every ref is, and what it may ask for.
    pub fn advertisement(&self) -> Vec<u8> {
        let abilities = format!("{CAPABILITIES} agent=seed/{}", env!("CARGO_PKG_VERSION"));
        let mut lines = self.0.iter().map(|(name, id)| format!("{id} {name}"));
        let first = lines.next().unwrap_or_else(|| format!("{} capabilities^{{}}", "0".repeat(40)));
        let mut packets = pktline::data(format!("{first}\0{abilities}\n").as_bytes());
        lines.for_each(|line| packets.extend_from_slice(&pktline::data(format!("{line}\n").as_bytes())));
        packets.extend_from_slice(pktline::FLUSH);
        packets
    }

    /// What they lead to.
    pub fn tips(&self) -> BTreeSet<ObjectId> {
        self.0.values().copied().collect()
    }

    /// Where a ref is.
    pub fn at(&self, name: &RefName) -> Option<&ObjectId> {
        self.0.get(name)
    }

    /// Whether there can be no ref of that name, because another is above or below it.
    pub fn leaves_no_place_for(&self, name: &RefName) -> bool {
        let below = |above: &str, name: &str| name.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
        self.0.keys().any(|other| below(other.as_str(), name.as_str()) || below(name.as_str(), other.as_str()))
    }
}

/// Where one ref is, in whatever state a crash has left its repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) enum Now {
    At(ObjectId),
    Nowhere,
    /// Its file is no ref: it did not get to the disk as a whole.
    Torn,
}

impl Now {
    /// Where it is, if it is anywhere.
    pub fn commit(self) -> Option<Commit> {
        match self {
            Self::At(id) => id.to_hex().to_string().parse().ok(),
            Self::Nowhere | Self::Torn => None,
        }
    }

    /// Whether it is at this commit.
    pub fn is(self, commit: &Commit) -> bool {
        matches!(self, Self::At(id) if id.to_hex().to_string().as_str() == commit.as_str())
    }
}

/// Looks where a ref is.
pub(in crate::serve) fn now(repository: &Path, name: &RefName) -> std::io::Result<Now> {
    match fs::read(repository.join(name.as_str())) {
        Ok(bytes) => {
            let line = std::str::from_utf8(&bytes).ok().and_then(|text| id(text.strip_suffix('\n')?).ok());
            Ok(line.map_or(Now::Torn, Now::At))
        }
        // A folder of refs may be there instead, also one that is empty.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::NotADirectory) => {
            let all = packed(repository).map_err(std::io::Error::other)?;
            Ok(all.into_iter().find(|(known, _)| known == name).map_or(Now::Nowhere, |(_, id)| Now::At(id)))
        }
        Err(error) => Err(error),
    }
}

/// A name in a file of git's.
fn id(text: &str) -> Result<ObjectId, Odd> {
    let commit: Commit = text.parse().map_err(|_| UNREADABLE)?;
    ObjectId::from_hex(commit.as_str().as_bytes()).map_err(|_| UNREADABLE)
}

fn loose(path: &Path, folder: &Path, refs: &mut BTreeMap<RefName, ObjectId>) -> Result<(), Odd> {
    for entry in fs::read_dir(path.join(folder)).map_err(|_| UNREADABLE)? {
        let entry = entry.map_err(|_| UNREADABLE)?;
        let (kind, file) = (entry.file_type().map_err(|_| UNREADABLE)?, folder.join(entry.file_name()));
        let name = file.to_str().ok_or(UNREADABLE)?;
        if kind.is_dir() {
            loose(path, &file, refs)?;
        } else if !name.ends_with(".lock") {
            if !kind.is_file() || refs.len() > MAX_REFS {
                return Err(UNREADABLE);
            }
            let text = match fs::read_to_string(entry.path()) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(_) => return Err(UNREADABLE),
            };
            refs.insert(name.parse().map_err(|_| UNREADABLE)?, id(text.trim_end_matches('\n'))?);
        }
    }
    Ok(())
}

fn packed(path: &Path) -> Result<Vec<(RefName, ObjectId)>, Odd> {
    let text = match fs::read_to_string(path.join("packed-refs")) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(_) => return Err(UNREADABLE),
    };
    let lines = text.lines().filter(|line| !line.starts_with(['#', '^']));
    lines
        .map(|line| {
            let (at, name) = line.split_once(' ').ok_or(UNREADABLE)?;
            Ok((name.parse().map_err(|_| UNREADABLE)?, id(at)?))
        })
        .collect()
}

/// A file of git's that nobody else changes meanwhile.
#[derive(Debug)]
pub(in crate::serve) struct Lock {
    file: File,
    lock: PathBuf,
    path: PathBuf,
    held: bool,
}

impl Lock {
    /// Locks a file of the repository, which may not be there yet. Somebody else may have it.
    pub fn take(path: PathBuf) -> std::io::Result<Self> {
        let mut lock = path.clone().into_os_string();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o666).open(&lock)?;
        Ok(Self { file, lock, path, held: true })
    }

    /// Writes the line that is to be there.
    pub fn write(&mut self, line: &str) -> std::io::Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())
    }

    /// Waits until what was written is on the disk; for its place the folder has to be synced, too, when it was put there.
    pub fn sync(&self) -> std::io::Result<()> {
        self.file.sync_all()
    }

    /// Puts what was written into its place.
    pub fn put(mut self) -> std::io::Result<()> {
        fs::rename(&self.lock, &self.path)?;
        // From here on a file of that name is somebody else's.
        self.held = false;
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.held
            && let Err(error) = fs::remove_file(&self.lock)
        {
            tracing::warn!(%error, path = %self.lock.display(), "could not take a lock away");
        }
    }
}

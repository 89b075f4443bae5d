//! The audit log: who did what, when, from where, and what came of it. One JSON line an act, in files that are only appended to, each line
//! synced before whoever acted is answered.
//!
//! Each line holds the hash of the line before it and its own: a line that is changed, taken out or put in breaks the chain from there
//! on. What is cut off at the end breaks nothing; so the hash of each line goes to the system's journal as well, and the newest found
//! there must be in the files (`verify`).
//!
//! Files are `<number of their first act, 20 digits>.jsonl`. A crash leaves at most half a line at the end, of an act that nobody was told
//! of: it is cut off at the next start.
//!
//! When a file is full and all of them are more than is kept, the oldest go, whole and only if their chain is intact. First a line is
//! written and synced that says up to which act, and what its hash was: from there the chain goes on. What begins after an act that no
//! line speaks of was cut off by somebody else.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

/// A file longer than this is followed by another.
const FILE_BYTES: u64 = 64 << 20;
/// How many acts share one sync at most.
const GROUP: usize = 256;
/// Who removes files, and how that is called.
const REMOVAL: (&str, &str) = ("agent", "audit remove");
/// How a line of the system's journal with a checkpoint begins.
pub const CHECKPOINT: &str = "audit";
/// What the first line follows.
const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What was done, before it has its place in the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Act {
    /// Seconds since 1970.
    pub at: u64,
    /// `SHA256:…`, or `operator`.
    pub who: String,
    /// The address it was asked from; empty on the host itself.
    pub source: String,
    pub verb: String,
    pub arguments: Vec<String>,
    /// The repository that it is about, as it was called then; empty if about none.
    pub repository: String,
    /// `ok`, `ok: job …`, or `denied: …`.
    pub result: String,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub number: u64,
    #[serde(flatten)]
    pub act: Act,
    /// The hash of the entry before.
    pub before: String,
    /// SHA-256 of all of the above, as JSON.
    pub hash: String,
}

/// Why there is no log, or why it cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("could not {deed} the audit log {path}")]
    File { deed: &'static str, path: PathBuf, source: io::Error },
    #[error("the audit log {path} was changed: its line {line} {what}")]
    Broken { path: PathBuf, line: usize, what: &'static str },
    #[error(
        "the audit log was cut off or replaced: the system's journal knows entry {number} with the hash {hash}, and the log does not"
    )]
    Missing { number: u64, hash: String },
    #[error("the audit log takes no more entries since a write failed: restart the agent once the disk is well")]
    Stopped,
}

/// The number of an entry and its hash.
pub type Checkpoint = (u64, String);

type Told = oneshot::Sender<Result<(), AuditError>>;

/// The log, open for writing. Dropping it finishes what was asked.
#[derive(Debug)]
pub struct Audit {
    directory: PathBuf,
    sender: mpsc::Sender<(Act, Told)>,
}

struct Writer {
    directory: PathBuf,
    file: File,
    length: u64,
    next: u64,
    before: String,
    room: Room,
}

/// How much room the log has, in bytes.
#[derive(Debug, Clone, Copy)]
struct Room {
    file: u64,
    all: u64,
}

/// A chain that was found intact.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many entries there are.
    pub entries: u64,
    /// The number of the first; those before it were removed to make room.
    pub first: u64,
    /// When the first was written, in seconds since 1970.
    pub since: u64,
    /// The hash of the last.
    pub hash: String,
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Entry {
    fn new(number: u64, before: &str, act: Act) -> Self {
        let mut entry = Self { number, act, before: before.to_owned(), hash: String::new() };
        entry.hash = entry.digest();
        entry
    }

    fn digest(&self) -> String {
        let bare = Self { hash: String::new(), ..self.clone() };
        data_encoding::HEXLOWER.encode(&Sha256::digest(serde_json::to_vec(&bare).expect("plain data is JSON")))
    }
}

/// The files of the log, in their order, each with the number of its first entry.
fn files(directory: &Path) -> Result<Vec<(u64, PathBuf)>, AuditError> {
    let read = |source| AuditError::File { deed: "list", path: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jsonl")?.parse().ok());
        found.extend(stem.map(|first| (first, path)));
    }
    found.sort();
    Ok(found)
}

/// Reads one file from its beginning, checks its chain and calls `each` with every entry. Returns the number and hash that the next entry
/// has to follow, and how many bytes are whole lines.
fn walk(
    path: &Path,
    mut chain: Option<(u64, String)>,
    mut each: impl FnMut(Entry),
) -> Result<(Option<(u64, String)>, u64), AuditError> {
    let fail = |source| AuditError::File { deed: "read", path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(path).map_err(fail)?);
    let (mut text, mut whole, mut line) = (Vec::new(), 0, 0);
    loop {
        text.clear();
        let length = lines.read_until(b'\n', &mut text).map_err(fail)?;
        if length == 0 || text.last() != Some(&b'\n') {
            return Ok((chain, whole));
        }
        line += 1;
        let broken = |what| AuditError::Broken { path: path.to_owned(), line, what };
        let entry: Entry = serde_json::from_slice(&text).map_err(|_| broken("is no entry"))?;
        if entry.digest() != entry.hash {
            return Err(broken("is not what was written"));
        }
        if chain.as_ref().is_some_and(|(number, before)| entry.number != *number || entry.before != *before) {
            return Err(broken("does not follow the one before it"));
        }
        chain = Some((entry.number + 1, entry.hash.clone()));
        whole += length as u64;
        each(entry);
    }
}

/// Checks the whole chain, from the first act or from the last that was removed; and that all of `known`, which are numbers and hashes that
/// the system's journal has, are in it, but for those that were removed.
pub fn verify(directory: &Path, known: &[Checkpoint]) -> Result<Verified, AuditError> {
    let mut found = Verified { hash: BEGINNING.to_owned(), ..Verified::default() };
    let mut missing: BTreeSet<&Checkpoint> = known.iter().collect();
    let (mut chain, mut beginning, mut removals) = (None, None, Vec::new());
    for (_, path) in files(directory)? {
        let (end, _) = walk(&path, chain, |entry| {
            if beginning.is_none() {
                beginning = Some((path.clone(), entry.number, entry.before.clone()));
                (found.first, found.since) = (entry.number, entry.act.at);
            }
            found.entries += 1;
            missing.remove(&(entry.number, entry.hash.clone()));
            removals.extend(removal(&entry));
        })?;
        chain = end;
    }
    if let Some((number, hash)) = missing.iter().find(|(number, _)| *number >= found.first) {
        return Err(AuditError::Missing { number: *number, hash: hash.clone() });
    }
    let Some((path, first, before)) = beginning else { return Ok(found) };
    let recorded = |(last, hash): &(u64, String)| *last + 1 == first && *hash == before;
    if (first, before.as_str()) != (1, BEGINNING) && !removals.iter().any(recorded) {
        return Err(AuditError::Broken {
            path,
            line: 1,
            what: "follows entries that are gone, and no entry says that they were removed",
        });
    }
    found.hash = chain.map_or(found.hash, |(_, hash)| hash);
    Ok(found)
}

/// Up to which entry this one says that all were removed, and the hash of that one.
fn removal(entry: &Entry) -> Option<(u64, String)> {
    let Act { who, verb, arguments, .. } = &entry.act;
    let [last, hash] = arguments.as_slice() else { return None };
    ((who.as_str(), verb.as_str()) == REMOVAL).then(|| Some((last.parse().ok()?, hash.clone())))?
}

/// The last `most` entries since `since` that `wanted` picks, oldest first.
pub fn read(directory: &Path, since: u64, most: usize, wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>, AuditError> {
    let mut found = std::collections::VecDeque::new();
    for (_, path) in files(directory)?.into_iter().rev() {
        let (mut here, mut oldest) = (std::collections::VecDeque::new(), u64::MAX);
        walk(&path, None, |entry| {
            oldest = oldest.min(entry.act.at);
            if entry.act.at >= since && wanted(&entry) {
                here.push_back(entry);
                if here.len() > most {
                    here.pop_front();
                }
            }
        })?;
        here.extend(found);
        found = here;
        if found.len() >= most || oldest < since {
            break;
        }
    }
    Ok(found.into_iter().rev().take(most).rev().collect())
}

/// The checkpoint in a line of the system's journal, if it has one.
pub fn checkpoint(line: &str) -> Option<Checkpoint> {
    let rest = line.strip_prefix(CHECKPOINT)?.strip_prefix(" number=")?;
    let (number, rest) = rest.split_once(' ')?;
    let (_, hash) = rest.rsplit_once(" hash=\"")?;
    Some((number.parse().ok()?, hash.trim_end().strip_suffix('"')?.to_owned()))
}

impl Audit {
    /// Opens the log in `directory`, which is made if it is not there. Of more than `keep` bytes, the oldest files are removed.
    pub fn open(directory: &Path, keep: u64, now: u64) -> Result<Self, AuditError> {
        Self::open_with(directory, Room { file: FILE_BYTES, all: keep }, now)
    }

    fn open_with(directory: &Path, room: Room, now: u64) -> Result<Self, AuditError> {
        let mut writer = Writer::open(directory, room)?;
        writer.make_room(now).map_err(|source| AuditError::File { deed: "shorten", path: directory.to_owned(), source })?;
        let (sender, inbox) = mpsc::channel();
        let run = move || writer.run(&inbox);
        let spawned = thread::Builder::new().name("audit".into()).spawn(run);
        spawned.map_err(|source| AuditError::File { deed: "start writing", path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned(), sender })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes an act down; returns when it is on the disk.
    pub async fn write(&self, act: Act) -> Result<(), AuditError> {
        let (told, written) = oneshot::channel();
        self.sender.send((act, told)).map_err(|_| AuditError::Stopped)?;
        written.await.map_err(|_| AuditError::Stopped)?
    }
}

impl Writer {
    fn open(directory: &Path, room: Room) -> Result<Self, AuditError> {
        let fail = |deed, path: &Path| {
            let path = path.to_owned();
            move |source| AuditError::File { deed, path, source }
        };
        fs::create_dir_all(directory).map_err(fail("make", directory))?;
        // What somebody typed for their own guest is in there.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(fail("close", directory))?;
        let (mut chain, mut last) = ((1, BEGINNING.to_owned()), None);
        // The newest file may have no entry yet. What came before is checked by `verify`.
        for (_, path) in files(directory)?.into_iter().rev() {
            let (end, whole) = walk(&path, None, |_| {})?;
            last = last.or(Some((path, whole)));
            if let Some(end) = end {
                chain = end;
                break;
            }
        }
        let (path, whole) = last.unwrap_or_else(|| (directory.join(format!("{:020}.jsonl", chain.0)), 0));
        let mut file =
            OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&path).map_err(fail("open", &path))?;
        let length = file.seek(SeekFrom::End(0)).map_err(fail("read", &path))?;
        if length > whole {
            tracing::warn!(path = %path.display(), "the audit log ended in half a line, of an act that nobody was told of: cut off");
            file.set_len(whole).map_err(fail("mend", &path))?;
        }
        file.sync_all().map_err(fail("sync", &path))?;
        sync_directory(directory).map_err(fail("sync", directory))?;
        tracing::info!(entries = chain.0 - 1, hash = chain.1, "audit log");
        Ok(Self { directory: directory.to_owned(), file, length: whole, next: chain.0, before: chain.1, room })
    }

    /// Writes what comes until nobody can send any more. All that wait at the same time share one sync.
    fn run(mut self, inbox: &mpsc::Receiver<(Act, Told)>) {
        while let Ok(first) = inbox.recv() {
            let mut group = vec![first];
            group.extend(inbox.try_iter().take(GROUP - 1));
            let (acts, told): (Vec<Act>, Vec<Told>) = group.into_iter().unzip();
            let written = self.append(acts);
            let failed = written.is_err();
            if let Err(source) = &written {
                tracing::error!(error = %source, "could not write the audit log");
            }
            for told in told {
                let path = self.directory.clone();
                let result = match &written {
                    Ok(()) => Ok(()),
                    Err(error) => Err(AuditError::File { deed: "write", path, source: error.kind().into() }),
                };
                // Who has stopped waiting does not care.
                drop(told.send(result));
            }
            if failed {
                // What is on the disk is not known any more: nothing may follow it.
                return;
            }
        }
    }

    fn append(&mut self, acts: Vec<Act>) -> io::Result<()> {
        if self.length > self.room.file {
            let path = self.directory.join(format!("{:020}.jsonl", self.next));
            self.file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)?;
            sync_directory(&self.directory)?;
            self.length = 0;
            self.make_room(acts.first().map_or(0, |act| act.at))?;
        }
        self.add(acts)
    }

    /// Removes the oldest files as long as all together are more than is kept. It is written down first: a crash between leaves files that
    /// the next start removes.
    fn make_room(&mut self, now: u64) -> io::Result<()> {
        let other = |error: AuditError| io::Error::other(error);
        let all = files(&self.directory).map_err(other)?;
        let mut size = 0;
        for (_, path) in &all {
            size += fs::metadata(path)?.len();
        }
        let (mut gone, mut acts) = (Vec::new(), Vec::new());
        // The newest is being written.
        for (_, path) in all.iter().rev().skip(1).rev() {
            if size <= self.room.all {
                break;
            }
            let (end, _) = match walk(path, None, |_| {}) {
                Ok(walked) => walked,
                Err(error @ AuditError::Broken { .. }) => {
                    // It is evidence.
                    tracing::error!(%error, "a file of the audit log is kept, although it is too much");
                    break;
                }
                Err(error) => return Err(other(error)),
            };
            size = size.saturating_sub(fs::metadata(path)?.len());
            gone.push(path);
            let Some((next, hash)) = end else { continue };
            let (who, verb) = REMOVAL;
            acts.push(Act {
                at: now,
                who: who.to_owned(),
                verb: verb.to_owned(),
                arguments: vec![(next - 1).to_string(), hash],
                result: "ok".to_owned(),
                ..Act::default()
            });
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.add(acts)?;
        for path in gone {
            fs::remove_file(path)?;
            tracing::info!(path = %path.display(), "a file of the audit log was removed: the log is larger than is kept");
        }
        sync_directory(&self.directory)
    }

    fn add(&mut self, acts: Vec<Act>) -> io::Result<()> {
        let (mut text, mut checkpoints) = (Vec::new(), Vec::new());
        for act in acts {
            let entry = Entry::new(self.next, &self.before, act);
            serde_json::to_writer(&mut text, &entry)?;
            text.push(b'\n');
            self.next += 1;
            self.before.clone_from(&entry.hash);
            checkpoints.push(entry);
        }
        self.file.write_all(&text)?;
        self.file.sync_data()?;
        self.length += text.len() as u64;
        // What is cut off the files can be told from here. Not before the sync: a crash would leave one of an entry that never was.
        for Entry { number, hash, act: Act { verb, who, .. }, .. } in checkpoints {
            tracing::info!(number, verb, who, hash, "{CHECKPOINT}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

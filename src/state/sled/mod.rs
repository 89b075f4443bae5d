//! The store of the agent: a journal of what was committed, and sled for the rest of it.
//!
//! In the state directory, for some number N that only grows:
//!
//! | file | holds |
//! |---|---|
//! | `journal-N` | every batch since the checkpoint, see [`crate::journal`] |
//! | `sled-N/` | the checkpoint: everything as it was when `journal-N` began; absent for N = 0. Never written again once it is synced |
//! | `lock` | locked by the agent that uses the directory |
//!
//! sled alone is not enough. Its `flush` is `sync_file_range`, which is no durability; and with one fdatasync per commit added, replayed
//! power cuts (each page that was written since the last sync reached the disk, or did not) still lost acknowledged data or left a
//! database that does not open, as soon as a segment was reused between two syncs. A database that is written once, synced, and only
//! then referred to has no such moment.
//!
//! What a crash leaves, by the step it interrupts:
//! - appending: an end of the journal that nobody was told of. It is cut off;
//! - writing the checkpoint N+1: a `sled-N+1` without a `journal-N+1`. Removed at the next start, nothing was in it only;
//! - after `journal-N+1` has its name, which it gets when all of `sled-N+1` is on the disk: leftovers of N. Removed at the next start.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::oneshot;

use crate::{
    journal::{self, Journal, sync_directory},
    state::{
        Batch, Memory, State, StateError,
        record::{self, Write},
    },
};

/// A journal longer than this is worth a checkpoint.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// How many waiting batches share one sync at most.
const GROUP: usize = 256;

/// The store of the agent. Dropping it finishes what was asked.
#[derive(Debug)]
pub struct SledState {
    /// `None` only while it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for SledState {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // A panic of the thread was printed when it happened, and there is nothing left to do for it.
        let _ended = self.thread.take().map(thread::JoinHandle::join);
    }
}

#[derive(Debug)]
enum Job {
    Load(oneshot::Sender<Result<Memory, StateError>>),
    Commit(Vec<Write>, Answer),
}

impl SledState {
    /// Opens the store in `directory`, which is made if it is not there. One process at a time.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        Self::open_with(directory, CHECKPOINT_BYTES)
    }

    /// [`SledState::open`], with a checkpoint whenever the journal is longer than `checkpoint_bytes`.
    pub fn open_with(directory: &Path, checkpoint_bytes: u64) -> Result<Self, StateError> {
        let store = Store::open(directory, checkpoint_bytes)?;
        let (jobs, queue) = mpsc::channel();
        let thread = thread::Builder::new().name("state".to_owned()).spawn(move || work(store, &queue))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, StateError>>) -> Job) -> Result<T, StateError> {
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StateError::Stopped)?;
        jobs.send(job(answer)).map_err(|_| StateError::Stopped)?;
        answered.await.map_err(|_| StateError::Stopped)?
    }
}

impl State for SledState {
    async fn load(&self) -> Result<Memory, StateError> {
        self.ask(Job::Load).await
    }

    async fn commit(&self, batch: Batch) -> Result<(), StateError> {
        let writes = batch.iter().map(record::encode).collect();
        self.ask(|answer| Job::Commit(writes, answer)).await
    }
}

type Answer = oneshot::Sender<Result<(), StateError>>;

/// What the store's thread does until nobody holds the store: whatever waits at the same time shares one sync.
fn work(mut store: Store, queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let mut group = Vec::new();
        for job in std::iter::once(first).chain(queue.try_iter().take(GROUP)) {
            match job {
                Job::Load(answer) => {
                    commit(&mut store, std::mem::take(&mut group));
                    // Whoever asked may be gone; then nobody wants to know.
                    let _gone = answer.send(store.load());
                }
                Job::Commit(writes, answer) => group.push((writes, answer)),
            }
        }
        commit(&mut store, group);
        store.checkpoint_if_due();
    }
}

fn commit(store: &mut Store, group: Vec<(Vec<Write>, Answer)>) {
    if group.is_empty() {
        return;
    }
    let result = store.commit(group.iter().map(|(writes, _)| writes.as_slice()));
    for (_, answer) in group {
        // Whoever asked may be gone; the batch is applied all the same.
        let _gone = answer.send(match &result {
            Ok(()) => Ok(()),
            Err(StateError::Sync(error)) => Err(StateError::Sync(io::Error::new(error.kind(), error.to_string()))),
            Err(_) => Err(StateError::Stopped),
        });
    }
}

/// The directory, as its one user sees it.
#[derive(Debug)]
struct Store {
    directory: PathBuf,
    number: u64,
    journal: Journal,
    checkpoint_bytes: u64,
    /// Whether an error left unclear what is on the disk.
    stopped: bool,
    _lock: Flock<File>,
}

impl Store {
    fn open(directory: &Path, checkpoint_bytes: u64) -> Result<Self, StateError> {
        fs::create_dir_all(directory)?;
        let lock = File::create(directory.join("lock"))?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| StateError::InUse { path: directory.to_owned() })?;
        let (journals, checkpoints) = numbers(directory)?;
        let number = journals.last().copied().unwrap_or(0);
        let (mut journal, _) = match journals.last() {
            Some(_) => Journal::open(&journal_path(directory, number), number)?,
            // A checkpoint is made beside the journal that it replaces: without any journal, one was lost.
            None if !checkpoints.is_empty() => {
                return Err(StateError::Damaged { path: journal_path(directory, checkpoints[0]), at: 0 });
            }
            None => (Journal::create(&journal_path(directory, 0), 0)?, Vec::new()),
        };
        journal.sync()?;
        let mut store = Self { directory: directory.to_owned(), number, journal, checkpoint_bytes, stopped: false, _lock: lock };
        store.remove_others()?;
        store.checkpoint_if_due();
        Ok(store)
    }

    fn commit<'a>(&mut self, batches: impl Iterator<Item = &'a [Write]>) -> Result<(), StateError> {
        if self.stopped {
            return Err(StateError::Stopped);
        }
        self.journal.append(batches.map(record::payload))?;
        Ok(self.journal.sync().inspect_err(|_| self.stopped = true)?)
    }

    fn load(&self) -> Result<Memory, StateError> {
        let mut memory = Memory::default();
        for (key, value) in self.read()? {
            memory.apply(record::decode(&key, &value)?);
        }
        Ok(memory)
    }

    /// Everything, as bytes: the checkpoint and what was committed since.
    fn read(&self) -> Result<BTreeMap<String, Vec<u8>>, StateError> {
        let mut all = if self.number == 0 { BTreeMap::new() } else { read_checkpoint(&self.directory, self.number)? };
        let bytes = fs::read(self.journal.path())?;
        let (payloads, _) = journal::read(self.journal.path(), self.number, &bytes)?;
        for payload in payloads {
            let foreign = || StateError::Key(format!("a record of {}", self.journal.path().display()));
            for (key, value) in record::writes(&payload).ok_or_else(foreign)? {
                match value {
                    Some(value) => drop(all.insert(key, value)),
                    None => drop(all.remove(&key)),
                }
            }
        }
        Ok(all)
    }

    /// Begins a new journal if this one is long. If that fails, the old one goes on: it holds everything.
    fn checkpoint_if_due(&mut self) {
        if self.stopped || self.journal.len() <= self.checkpoint_bytes {
            return;
        }
        match self.checkpoint() {
            Ok(()) => tracing::debug!(number = self.number, "made a checkpoint of the state"),
            Err(error) => {
                // Not again at the next commit, but when the journal has doubled.
                self.checkpoint_bytes = self.journal.len().saturating_mul(2);
                tracing::warn!(error = %chain(&error), "could not make a checkpoint of the state; will try again");
            }
        }
    }

    fn checkpoint(&mut self) -> Result<(), StateError> {
        let next = self.number + 1;
        let all = self.read()?;
        write_checkpoint(&self.directory, next, &all)?;
        if read_checkpoint(&self.directory, next)? != all {
            return Err(StateError::Damaged { path: checkpoint_path(&self.directory, next), at: 0 });
        }
        let path = journal_path(&self.directory, next);
        // Should it have its name in spite of an error, then the next start begins with it, and nothing may be added to the old one.
        self.journal = Journal::create(&path, next).inspect_err(|_| self.stopped = path.exists())?;
        self.number = next;
        self.remove_others()
    }

    /// Removes what belongs to another number, and what a crash left half made.
    fn remove_others(&self) -> Result<(), StateError> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let keep = [journal_path(&self.directory, self.number), checkpoint_path(&self.directory, self.number)];
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if keep.contains(&path) || !["journal-", "sled-", "reading"].iter().any(|ours| name.starts_with(ours)) {
                continue;
            }
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        Ok(())
    }
}

fn journal_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("journal-{number}"))
}

fn checkpoint_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("sled-{number}"))
}

/// The numbers of the journals and of the checkpoints in a directory, in order.
fn numbers(directory: &Path) -> Result<(Vec<u64>, Vec<u64>), StateError> {
    let (mut journals, mut checkpoints) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let name = name.to_str().unwrap_or("");
        journals.extend(name.strip_prefix("journal-").and_then(|number| number.parse::<u64>().ok()));
        checkpoints.extend(name.strip_prefix("sled-").and_then(|number| number.parse::<u64>().ok()));
    }
    journals.sort_unstable();
    checkpoints.sort_unstable();
    Ok((journals, checkpoints))
}

fn open_sled(path: &Path) -> Result<::sled::Db, StateError> {
    ::sled::Config::new()
        .path(path)
        .flush_every_ms(None)
        .cache_capacity(8 << 20)
        .open()
        .map_err(|source| StateError::Open { path: path.to_owned(), source })
}

/// Writes a whole checkpoint and waits until all of it is on the disk.
fn write_checkpoint(directory: &Path, number: u64, all: &BTreeMap<String, Vec<u8>>) -> Result<(), StateError> {
    let path = checkpoint_path(directory, number);
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    let database = open_sled(&path)?;
    let mut batch = ::sled::Batch::default();
    for (key, value) in all {
        batch.insert(key.as_bytes(), value.as_slice());
    }
    database.apply_batch(batch)?;
    database.flush()?;
    drop(database);
    sync_tree(&path)?;
    Ok(sync_directory(directory)?)
}

/// Reads a checkpoint. sled writes to what it opens, if only to note that it did: it gets a copy.
fn read_checkpoint(directory: &Path, number: u64) -> Result<BTreeMap<String, Vec<u8>>, StateError> {
    let copy = directory.join("reading");
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    let path = checkpoint_path(directory, number);
    if !path.join("db").exists() {
        return Err(StateError::Damaged { path, at: 0 });
    }
    copy_tree(&path, &copy)?;
    let database = open_sled(&copy)?;
    let mut all = BTreeMap::new();
    for entry in database.iter() {
        let (key, value) = entry?;
        let key = String::from_utf8(key.to_vec()).map_err(|error| StateError::Key(error.to_string()))?;
        all.insert(key, value.to_vec());
    }
    drop(database);
    fs::remove_dir_all(&copy)?;
    Ok(all)
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), StateError> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { copy_tree(&entry.path(), &target)? } else { fs::copy(entry.path(), target).map(drop)? }
    }
    Ok(())
}

fn sync_tree(path: &Path) -> Result<(), StateError> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { sync_tree(&entry.path())? } else { File::open(entry.path())?.sync_all()? }
    }
    Ok(sync_directory(path)?)
}

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;

//! The journal of each repository: what a push is about to change is on the disk before it is changed, and before anybody is told of it.
//! That is one wait for the disk, where each of the files of a push would take one, and each of their folders.
//!
//! It is a [`crate::journal`], `<name>.git/pushes-N`, beside what it speaks of: it goes where the repository goes. An entry ([`entry`]) is
//! one of two things:
//!
//! - a small push, whole: its ref from where to where, its pack, its index. They are in the repository, too, but when the kernel writes
//!   them there is its business. After a crash, `redo` puts everything to where it was to be. From time to time all repositories
//!   are synced at once ([`Journals::settle`]), and what is in the journals is of no use any more;
//! - that git begins to take a push. It syncs by itself what it does; so that nothing in the journal is redone over it, the repository is
//!   settled before.
//!
//! Both also say who pushed, until the agent has heard of it: what is found at the start it is told then ([`tell`]). Telling twice does
//! no harm: deploying what runs already changes nothing.

mod book;
mod entry;
mod files;
mod recover;
mod redo;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Notify;

use self::{book::Book, entry::Entry};
pub(super) use self::{
    book::Mark,
    files::{Files, Written},
    recover::tell,
};
use super::{git::Place, pktline::Update};
use crate::{
    journal::JournalError,
    spec::{caller::Caller, name::RefName},
};

/// A journal of more bytes is settled before it takes another push.
const FULL: u64 = 8 << 20;
/// One of more bytes takes none, for it could not be begun anew: the agent has not heard of what is in it.
const MOST: u64 = 4 * FULL;
/// With so many of them open, all are settled; each is two open files.
const MANY: usize = 1024;

/// All journals that are in use. Everything here blocks, but what is async.
#[derive(Debug)]
pub struct Journals {
    repositories: PathBuf,
    /// Their folder, open since before the first push: what the kernel could not write since then, it says at the next sync, and only once.
    disk: OnceLock<File>,
    /// Whether it has said so: then nobody knows what is on the disk but by the journals, and each start redoes them.
    failed: AtomicBool,
    /// Those with something left to do.
    open: Mutex<BTreeMap<Place, Arc<Mutex<Book>>>>,
    written: Notify,
    many: Notify,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journals {
    /// The journals of the repositories in this folder, which are on one file system.
    pub fn new(repositories: PathBuf) -> Self {
        let (disk, failed) = (OnceLock::new(), AtomicBool::new(false));
        Self { repositories, disk, failed, open: Mutex::default(), written: Notify::new(), many: Notify::new() }
    }

    /// Waits until no other process has them, but not for long. They are this one's for as long as what is returned lives.
    pub(super) fn alone(&self, patience: Duration) -> io::Result<Flock<File>> {
        let mut file = File::open(&self.repositories)?;
        let began = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((_, error)) if began.elapsed() >= patience => return Err(error.into()),
                Err((unlocked, _)) => file = unlocked,
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Writes a push down, and has it done. If that fails, it is taken back. With `who`, the agent is to hear of it.
    pub(super) fn push(
        &self,
        repository: &Path,
        place: Place,
        update: (&RefName, &Update),
        files: Option<&Files>,
        who: Option<&Caller>,
        done: impl FnOnce() -> io::Result<()>,
    ) -> Result<Option<Mark>, JournalError> {
        let (name, update) = update;
        let entry = Entry::push(who, name, &update.old, &update.new, files);
        self.disk()?;
        let mark = self.with(repository, place, |shared, book| {
            if book.journal.len() > FULL {
                self.settle_one(book)?;
            }
            let end = book.journal.len();
            if end > MOST {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "the journal of this repository is full").into());
            }
            let number = book.write(&entry, files)?;
            if let Err(error) = done() {
                book.entries -= 1;
                book.cut(end);
                return Err(error.into());
            }
            book.needed = true;
            Ok(who.map(|_| {
                book.unheard.insert(number);
                Mark::new(shared, number)
            }))
        })?;
        self.written.notify_one();
        Ok(mark)
    }

    /// Writes down that git begins to take a push. With `who`, the agent is to hear of it.
    pub(super) fn git(&self, repository: &Path, place: Place, who: Option<&Caller>) -> Result<Option<Mark>, JournalError> {
        self.with(repository, place, |shared, book| {
            if book.needed {
                self.settle_one(book)?;
            }
            let number = book.write(&Entry::Git { who: who.cloned() }, None)?;
            Ok(who.map(|_| {
                book.unheard.insert(number);
                Mark::new(shared, number)
            }))
        })
    }

    /// Syncs all repositories, after which no journal is needed before something new is in it. What cannot be done is tried again.
    pub(super) fn settle(&self) {
        let books: Vec<_> = locked(&self.open).values().cloned().collect();
        let written: Vec<_> = books
            .iter()
            .map(|book| {
                let book = locked(book);
                (book.reached(), book.needed)
            })
            .collect();
        if written.iter().any(|(_, needed)| *needed)
            && let Err(error) = self.sync()
        {
            tracing::error!(%error, "could not sync the repositories");
            return self.written.notify_one();
        }
        for (book, (then, _)) in books.iter().zip(written) {
            let mut book = locked(book);
            if let Err(error) = book.settled(then) {
                tracing::warn!(%error, repository = %book.repository.display(), "could not write that a repository is settled");
            }
        }
        let mut open = locked(&self.open);
        open.retain(|_, book| {
            // Somebody may be writing.
            let Ok(mut book) = book.try_lock() else { return true };
            book.closed |= !book.needed && book.unheard.is_empty();
            !book.closed
        });
        // Those that are left are looked at again: each is two open files.
        if !open.is_empty() {
            self.written.notify_one();
        }
    }

    /// Settles one repository. There is no syncing one alone.
    fn settle_one(&self, book: &mut Book) -> Result<(), JournalError> {
        if book.needed {
            self.sync()?;
        }
        book.settled(book.reached())
    }

    /// Settles so long after a push, for as long as it is polled. By then the kernel has written out by itself what was pushed, so there is
    /// little to wait for.
    pub(super) async fn keep_settled(self: Arc<Self>, after: Duration) {
        loop {
            self.written.notified().await;
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                () = self.many.notified() => {}
            }
            self.settle_beside().await;
        }
    }

    /// Settles, on a thread that may wait.
    pub(super) async fn settle_beside(self: &Arc<Self>) {
        let all = Arc::clone(self);
        if tokio::task::spawn_blocking(move || all.settle()).await.is_err() {
            tracing::error!("settling stopped short");
        }
    }

    /// Does something with the journal of a repository, which is still the one that it was.
    fn with<T>(
        &self,
        repository: &Path,
        place: Place,
        what: impl FnOnce(&Arc<Mutex<Book>>, &mut Book) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        loop {
            let shared = {
                let mut open = locked(&self.open);
                match open.get(&place) {
                    Some(book) => Arc::clone(book),
                    None => {
                        let book = Arc::new(Mutex::new(Book::open(repository, place)?));
                        open.insert(place, Arc::clone(&book));
                        self.written.notify_one();
                        if open.len() > MANY {
                            self.many.notify_one();
                        }
                        book
                    }
                }
            };
            let mut book = locked(&shared);
            if !book.closed {
                // It may have been renamed.
                book.repository = repository.to_owned();
                let result = what(&shared, &mut book);
                let closed = book.closed;
                drop(book);
                if closed {
                    self.forget(&shared);
                }
                return result;
            }
            drop(book);
            self.forget(&shared);
        }
    }

    /// Somebody else may have opened it again already: that one stays.
    fn forget(&self, closed: &Arc<Mutex<Book>>) {
        locked(&self.open).retain(|_, book| !Arc::ptr_eq(book, closed));
    }

    fn disk(&self) -> io::Result<&File> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("a sync of the repositories has failed: restart seed-serve once their disk is well"));
        }
        match self.disk.get() {
            Some(disk) => Ok(disk),
            None => {
                let opened = File::open(&self.repositories)?;
                Ok(self.disk.get_or_init(|| opened))
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        let synced = nix::unistd::syncfs(self.disk()?);
        synced.inspect_err(|_| self.failed.store(true, Ordering::Relaxed)).map_err(io::Error::from)
    }
}

//! The journal of one repository.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    entry::{Entry, Left},
    files::Files,
    locked, redo,
};
use crate::{
    journal::{Journal, JournalError, sync_directory},
    serve::git::Place,
    spec::name::PUSH_JOURNAL,
};

/// A journal of more bytes is begun anew when nothing in it is needed.
const LONG: u64 = 64 << 10;

/// The journal of one repository.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) repository: PathBuf,
    place: Place,
    /// As long as it is open, no other folder is at this place.
    folder: File,
    pub(super) journal: Journal,
    number: u64,
    /// How many entries it has.
    pub(super) entries: u64,
    /// Whether pushes in it may be nowhere else on the disk.
    pub(super) needed: bool,
    pub(super) unheard: BTreeSet<u64>,
    /// Whether it may not be used any more: whoever waited for it opens it again.
    pub(super) closed: bool,
}

/// How far a journal was written at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// Of which journal: it may have been begun anew since.
    number: u64,
    entries: u64,
}

/// One push that the agent has to hear of.
#[derive(Debug)]
pub(in crate::serve) struct Mark {
    book: Arc<Mutex<Book>>,
    entry: u64,
    left: AtomicUsize,
}

impl Mark {
    pub(super) fn new(book: &Arc<Mutex<Book>>, entry: u64) -> Self {
        Self { book: Arc::clone(book), entry, left: AtomicUsize::new(1) }
    }

    /// Says how many times the agent has to answer; with 0 it has nothing to hear.
    pub fn expect(&self, answers: usize) {
        self.left.store(answers, Ordering::Relaxed);
        if answers == 0 {
            locked(&self.book).heard(self.entry);
        }
    }

    /// The agent has answered.
    pub fn answered(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            locked(&self.book).heard(self.entry);
        }
    }
}

/// The newest journal in a repository: its number and where it is.
pub(super) fn newest(repository: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let mut newest = None;
    for entry in fs::read_dir(repository)? {
        let name = entry?.file_name();
        newest = newest.max(name.to_str().and_then(|name| name.strip_prefix(PUSH_JOURNAL)?.parse::<u64>().ok()));
    }
    Ok(newest.map(|number| (number, path_of(repository, number))))
}

fn path_of(repository: &Path, number: u64) -> PathBuf {
    repository.join(format!("{PUSH_JOURNAL}{number}"))
}

/// Removes what an interrupted change of journals left.
fn remove_others(repository: &Path, number: u64) -> io::Result<()> {
    for entry in fs::read_dir(repository)? {
        let path = entry?.path();
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PUSH_JOURNAL));
        if ours && path != path_of(repository, number) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// What a journal says, if all of it is ours.
pub(super) fn entries(payloads: &[Vec<u8>]) -> Option<Vec<(Entry, Option<Files>)>> {
    payloads.iter().map(|payload| Entry::read(payload)).collect()
}

/// Puts a damaged journal where an operator finds it, and begins another.
fn set_aside(repository: &Path, path: &Path, at: u64) -> Result<(Journal, u64, Vec<(Entry, Option<Files>)>), JournalError> {
    let number = newest(repository)?.map_or(0, |(number, _)| number + 1);
    let aside = path.with_file_name(format!("damaged-{PUSH_JOURNAL}{number}"));
    tracing::error!(
        journal = %path.display(), at, aside = %aside.display(),
        "a journal is damaged, and set aside: if the power went, the last pushes to this repository may be lost"
    );
    fs::rename(path, &aside)?;
    Ok((Journal::create(&path_of(repository, number), number)?, number, Vec::new()))
}

impl Book {
    /// Opens the journal of a repository, or begins one, and redoes what is left to redo.
    pub(super) fn open(repository: &Path, place: Place) -> Result<Self, JournalError> {
        let folder = File::open(repository)?;
        let same = || match (Place::of_file(&folder), Place::of(repository)) {
            (Ok(opened), Ok(found)) if opened == place && found == place => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "it is another repository now")),
        };
        same()?;
        let (mut journal, number, read) = match Self::newest(repository) {
            Err(JournalError::Damaged { path, at }) => set_aside(repository, &path, at)?,
            opened => opened?,
        };
        remove_others(repository, number)?;
        same()?;
        let left = Left::after(read.iter().map(|(entry, _)| entry));
        if !left.is_empty() {
            journal.sync()?;
        }
        for number in &left.redo {
            let (entry, files) = &read[usize::try_from(*number).expect("it was counted")];
            redo::redo(repository, entry, files.as_ref())?;
        }
        Ok(Self {
            repository: repository.to_owned(),
            place,
            folder,
            journal,
            number,
            entries: read.len() as u64,
            needed: !left.redo.is_empty(),
            unheard: left.unheard,
            closed: false,
        })
    }

    /// The newest journal of a repository, its number, and what it says; or a new one.
    fn newest(repository: &Path) -> Result<(Journal, u64, Vec<(Entry, Option<Files>)>), JournalError> {
        let Some((number, path)) = newest(repository)? else {
            return Ok((Journal::create(&path_of(repository, 0), 0)?, 0, Vec::new()));
        };
        let (journal, payloads) = Journal::open(&path, number)?;
        if journal.is_empty() {
            // Whoever made it may have been killed before its name was on the disk.
            sync_directory(repository)?;
        }
        let read = entries(&payloads).ok_or(JournalError::Damaged { path, at: 0 })?;
        Ok((journal, number, read))
    }

    /// Writes an entry, which is on the disk then; its number.
    pub(super) fn write(&mut self, entry: &Entry, files: Option<&Files>) -> Result<u64, JournalError> {
        let end = self.journal.len();
        self.note(entry, files)?;
        if let Err(error) = self.journal.sync() {
            self.entries -= 1;
            self.cut(end);
            return Err(error);
        }
        Ok(self.entries - 1)
    }

    /// Takes back what was written last.
    pub(super) fn cut(&mut self, end: u64) {
        if let Err(error) = self.journal.cut(end) {
            tracing::error!(%error, repository = %self.repository.display(), "could not take back a push that failed");
            // Nobody knows what is in it now.
            self.closed = true;
        }
    }

    /// Writes an entry that may be lost.
    fn note(&mut self, entry: &Entry, files: Option<&Files>) -> Result<(), JournalError> {
        let end = self.journal.len();
        // Behind half an entry no other one would be found again.
        self.journal.append([entry.payload(files)]).inspect_err(|_| self.cut(end))?;
        self.entries += 1;
        Ok(())
    }

    /// How far it is written.
    pub(super) fn reached(&self) -> Reached {
        Reached { number: self.number, entries: self.entries }
    }

    fn heard(&mut self, entry: u64) {
        // Otherwise it is somebody else's by now, and the agent hears of this once more.
        if self.unheard.remove(&entry)
            && !self.closed
            && let Err(error) = self.note(&Entry::Heard { entry }, None)
        {
            tracing::warn!(%error, repository = %self.repository.display(), "could not write that the agent has heard of a push");
        }
    }

    /// What was written until then is on the disk.
    pub(super) fn settled(&mut self, then: Reached) -> Result<(), JournalError> {
        // One that was begun anew has other entries, of which nothing is known.
        if self.closed || then.number != self.number {
            return Ok(());
        }
        let settles = self.needed;
        self.needed &= then.entries != self.entries;
        if !self.needed && self.unheard.is_empty() && self.journal.len() > LONG {
            return self.begin_anew();
        }
        if settles { self.note(&Entry::Settled { before: then.entries }, None) } else { Ok(()) }
    }

    /// Replaces the journal, of which nothing is needed, by an empty one.
    fn begin_anew(&mut self) -> Result<(), JournalError> {
        // The repository may have been renamed or deleted: then what is in the journal goes with it, or waits for the next start.
        if !Place::of(&self.repository).is_ok_and(|place| place == self.place) {
            return self.note(&Entry::Settled { before: self.entries }, None);
        }
        let next = self.number + 1;
        // Should another one get its name just now, nothing of that is touched.
        let folder = PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()));
        let path = path_of(&folder, next);
        // Should it have its name in spite of an error, then nothing may be added to the old one.
        self.journal = Journal::create(&path, next).inspect_err(|_| self.closed = path.exists())?;
        (self.number, self.entries) = (next, 0);
        Ok(remove_others(&folder, next)?)
    }
}

//! A journal: an append-only file of records, which are on the disk before anybody is told of them. One stands in front of sled
//! (`state/`), and one in each repository that is pushed to (`serve/journal.rs`).
//!
//! A record is `SdJ1`, the length of its payload (4 bytes), how much of the file was on the disk when it was written (8), a check
//! (8), and the payload; numbers are little-endian. The check is the beginning of SHA-256 over the journal's number, the record's
//! place in the file and all its other bytes, so neither a torn record nor an old block that comes back is mistaken for one.
//! What a payload says is its writer's business. The first record is empty and stands for the file itself.
//!
//! What a crash leaves: an end that was never acknowledged, which is cut off. A bad record *before* an end that was once on the disk
//! is no crash but damage, and is refused: nothing is guessed.
#![allow(clippy::disallowed_methods, reason = "this room keeps files")]

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 4] = b"SdJ1";
const HEADER: usize = 24;

/// Why a journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(transparent)]
    File(#[from] io::Error),
    /// Not by a crash: what was once on the disk is no longer what it was.
    #[error("{path} is damaged at byte {at}")]
    Damaged { path: PathBuf, at: u64 },
}

/// A journal that is open for appending.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    number: u64,
    /// Where the next record goes. Everything before it is a record.
    end: u64,
    /// Everything before it is on the disk.
    synced: u64,
}

impl Journal {
    /// Creates the journal with this number at `path`, which appears whole or not at all, and durably.
    pub fn create(path: &Path, number: u64) -> Result<Self, JournalError> {
        let new = path.with_extension("new");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new)?;
        let first = record(number, 0, 0, &[]);
        file.write_all(&first)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        sync_directory(path.parent().unwrap_or(Path::new("/")))?;
        let end = first.len() as u64;
        Ok(Self { file, path: path.to_owned(), number, end, synced: end })
    }

    /// Opens the journal at `path` and returns its payloads in order. An end that is no record is cut off. Before what was read is acted
    /// upon it has to be as durable as if it had been acknowledged: see [`Journal::sync`].
    pub fn open(path: &Path, number: u64) -> Result<(Self, Vec<Vec<u8>>), JournalError> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (payloads, end) = read(path, number, &bytes)?;
        if (end as usize) < bytes.len() {
            tracing::info!(path = %path.display(), bytes = bytes.len() as u64 - end, "cut off an unfinished write of the last run");
            file.set_len(end)?;
        }
        io::Seek::seek(&mut file, io::SeekFrom::Start(end))?;
        Ok((Self { file, path: path.to_owned(), number, end, synced: 0 }, payloads))
    }

    /// Appends payloads with one write. They are on the disk after [`Journal::sync`]. If this fails, nothing has been appended.
    pub fn append(&mut self, payloads: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<(), JournalError> {
        let mut bytes = Vec::new();
        for payload in payloads {
            let at = self.end + bytes.len() as u64;
            bytes.extend(record(self.number, at, self.synced, payload.as_ref()));
        }
        if let Err(error) = self.file.write_all(&bytes) {
            // A disk that is full now may have room later: go back to the last whole record, or give up for good.
            self.file.set_len(self.end)?;
            io::Seek::seek(&mut self.file, io::SeekFrom::Start(self.end))?;
            return Err(error.into());
        }
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Waits until all that was appended is on the disk. After an error nobody knows what is: the journal must be opened again.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.file.sync_data()?;
        self.synced = self.end;
        Ok(())
    }

    /// Takes back all that was appended since it was of this length, and waits for that to be on the disk.
    pub fn cut(&mut self, end: u64) -> Result<(), JournalError> {
        self.file.set_len(end)?;
        io::Seek::seek(&mut self.file, io::SeekFrom::Start(end))?;
        self.end = end;
        self.synced = self.synced.min(end);
        self.sync()
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.end
    }

    /// Whether it holds no payload.
    pub fn is_empty(&self) -> bool {
        self.end == HEADER as u64
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads the payloads of a journal: those before the first record that is none, and where that is.
pub fn read(path: &Path, number: u64, bytes: &[u8]) -> Result<(Vec<Vec<u8>>, u64), JournalError> {
    let damaged = |at: usize| JournalError::Damaged { path: path.to_owned(), at: at as u64 };
    let mut payloads = Vec::new();
    let mut at = 0;
    while let Some((_, payload)) = record_at(number, bytes, at) {
        if at > 0 {
            payloads.push(payload.to_vec());
        }
        at += HEADER + payload.len();
    }
    // The file was given its name after its first record was on the disk, and later records say how much was on the disk before them.
    let later = (at..bytes.len()).filter_map(|later| record_at(number, bytes, later));
    if at == 0 || later.into_iter().any(|(synced, _)| synced > at as u64) {
        return Err(damaged(at));
    }
    Ok((payloads, at as u64))
}

/// Makes a directory's entries durable.
pub fn sync_directory(path: &Path) -> Result<(), JournalError> {
    Ok(File::open(path)?.sync_all()?)
}

/// The record at a place, if there is one: how much was synced when it was written, and its payload.
fn record_at(number: u64, bytes: &[u8], at: usize) -> Option<(u64, &[u8])> {
    let header = bytes.get(at..at + HEADER).filter(|header| header.starts_with(MAGIC))?;
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?) as usize;
    let synced = u64::from_le_bytes(header[8..16].try_into().ok()?);
    let payload = bytes.get(at + HEADER..(at + HEADER).checked_add(length)?)?;
    (header[16..24] == check(number, at as u64, synced, payload)).then_some((synced, payload))
}

fn record(number: u64, at: u64, synced: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a payload is far below 4 GiB");
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&synced.to_le_bytes());
    bytes.extend_from_slice(&check(number, at, synced, payload));
    bytes.extend_from_slice(payload);
    bytes
}

fn check(number: u64, at: u64, synced: u64, payload: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    for part in [number, at, synced, payload.len() as u64] {
        hash.update(part.to_le_bytes());
    }
    hash.update(payload);
    hash.finalize()[..8].try_into().expect("eight bytes of thirty-two")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(n: usize) -> Vec<u8> {
        format!("lease/{n} ").repeat(12 + n * 37 % 50).into_bytes()
    }

    /// A journal with `acknowledged` payloads that are on the disk and `waiting` ones that are not, and where the first ones end.
    fn journal(path: &Path, acknowledged: usize, waiting: usize) -> (Vec<u8>, usize) {
        let mut journal = Journal::create(path, 7).expect("a new file");
        for n in 0..acknowledged {
            journal.append([payload(n)]).expect("room");
            journal.sync().expect("a sound disk");
        }
        let safe = journal.len() as usize;
        journal.append((acknowledged..acknowledged + waiting).map(payload)).expect("room");
        (std::fs::read(path).expect("it is there"), safe)
    }

    #[test]
    fn whatever_a_power_cut_leaves_of_the_end_every_acknowledged_record_is_there_and_none_is_half_applied() {
        let directory = tempfile::tempdir().expect("a place");
        let path = directory.path().join("journal-7");
        let (whole, safe) = journal(&path, 20, 12);
        let all: Vec<_> = (0..32).map(payload).collect();
        let mut images = 0;
        let mut seen = std::collections::BTreeSet::new();
        let mut try_image = |bytes: &[u8]| {
            images += 1;
            let (payloads, _) = read(&path, 7, bytes).expect("a torn end is no damage");
            assert!(payloads.len() >= 20, "only {} of 20 acknowledged payloads survived", payloads.len());
            assert_eq!(payloads, all[..payloads.len()]);
            seen.insert(payloads.len());
        };
        // Cut after every byte of what was not synced; the same with zeros instead of nothing.
        for end in safe..=whole.len() {
            try_image(&whole[..end]);
            let mut zeroed = whole.clone();
            zeroed[end..].fill(0);
            try_image(&zeroed);
        }
        // Every subset of up to twelve sectors that did not reach the disk.
        let sectors: Vec<usize> = (safe.div_ceil(512)..whole.len().div_ceil(512)).take(12).collect();
        for mask in 0u32..1 << sectors.len() {
            let mut torn = whole.clone();
            for (_, sector) in sectors.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0) {
                let end = whole.len().min((sector + 1) * 512);
                torn[sector * 512..end].fill(0);
            }
            try_image(&torn);
        }
        assert!(images > 5_000, "only {images} images");
        assert_eq!(seen, (20..=32).collect(), "some end was never seen");
    }

    #[test]
    fn damage_to_what_was_on_the_disk_is_refused_with_its_place() {
        let directory = tempfile::tempdir().expect("a place");
        let path = directory.path().join("journal-7");
        let (whole, safe) = journal(&path, 20, 1);
        for at in (0..safe * 3 / 4).step_by(97) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            let error = read(&path, 7, &bytes).expect_err("damage");
            assert!(matches!(error, JournalError::Damaged { at: said, .. } if said as usize <= at), "{at}: {error}");
        }
        assert!(read(&path, 8, &whole).is_err(), "a journal with another number was taken");
    }

    #[test]
    fn a_journal_goes_on_where_it_was_cut() {
        let directory = tempfile::tempdir().expect("a place");
        let path = directory.path().join("journal-7");
        let (whole, safe) = journal(&path, 3, 1);
        std::fs::write(&path, &whole[..whole.len() - 1]).expect("room");
        let (mut journal, payloads) = Journal::open(&path, 7).expect("a torn end");
        assert_eq!((payloads.len(), journal.len() as usize), (3, safe));
        journal.append([payload(9)]).expect("room");
        journal.sync().expect("a sound disk");
        drop(journal);
        let (mut journal, payloads) = Journal::open(&path, 7).expect("whole");
        assert_eq!(payloads[3], payload(9));
        journal.cut(safe as u64).expect("a sound disk");
        journal.append([payload(8)]).expect("room");
        let (_, payloads) = Journal::open(&path, 7).expect("whole");
        assert_eq!(payloads[3..], [payload(8)]);
    }
}

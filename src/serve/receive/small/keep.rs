//! How a small push gets to the disk. Each step is there before the next one begins, so that whatever ends this process leaves a whole
//! repository: without the push, or with it and a mark for the agent.
//!
//! 1. `<ref>.lock` is made, and the ref is still where the client believes it is
//! 2. the pack and its index are written under names that nobody reads, and synced
//! 3. they get their names, beside the mark of the push; their folder is synced, so all three last
//! 4. the ref is written, synced and renamed, and its folder synced
//!
//! What is left of 1 and 2 is swept at the next start. A pack that no ref leads to is no harm: git removes it some day.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use gix::ObjectId;

use super::{
    Odd, Place,
    refs::{Lock, Refs},
};
use crate::{
    serve::{pktline::Update, receive::lasting, unheard::Mark},
    spec::{caller::Caller, name::RefName},
};

const MOVED: Odd = Odd("a repository that is another now");
const UNWRITABLE: Odd = Odd("a repository that cannot be written");

/// The ref of a push, as long as nobody else can move it.
#[derive(Debug)]
pub(super) struct Held {
    lock: Lock,
    /// All refs as they are meanwhile.
    pub refs: Refs,
}

/// Locks the ref of `update`, which has to be where the client believes it is.
pub(super) fn hold(path: &Path, place: Place, name: &RefName, update: &Update) -> Result<Held, Odd> {
    // One that is gone is not to be made again, not even in part.
    if Place::of(path).ok() != Some(place) || !path.join("refs/heads").is_dir() {
        return Err(MOVED);
    }
    let lock = Lock::take(path.join(name.as_str())).map_err(|_| Odd("a ref that cannot be locked"))?;
    // Whoever has it now looks at the lock first, too.
    if Place::of(path).ok() != Some(place) {
        return Err(MOVED);
    }
    let refs = Refs::read(path)?;
    let expected = (!update.creates()).then(|| update.old.as_str());
    if refs.at(name).map(ToString::to_string).as_deref() != expected {
        return Err(Odd("a ref that has moved"));
    }
    // A folder may be empty, which git would remove.
    if refs.leaves_no_place_for(name) || path.join(name.as_str()).is_dir() {
        return Err(Odd("a ref above or below another"));
    }
    Ok(Held { lock, refs })
}

/// Keeps what was sent, and moves the ref.
pub(super) fn keep(
    path: &Path,
    held: Held,
    update: &Update,
    files: Option<(Vec<u8>, Vec<u8>, ObjectId)>,
    who: Option<&Caller>,
) -> Result<Option<Arc<Mark>>, Odd> {
    let folder = path.join("objects/pack");
    let written = files.map(|files| Written::write(&folder, files)).transpose().map_err(|_| UNWRITABLE)?;
    let mark = who.map(|who| Mark::place(path, who)).transpose().map_err(|_| UNWRITABLE)?.map(Arc::new);
    let moved = || {
        let kept = written.is_some() || mark.is_some();
        written.map_or(Ok(()), Written::name)?;
        if kept {
            fs::File::open(&folder)?.sync_all()?;
        }
        held.lock.set(update.new.as_str())
    };
    if moved().is_err() {
        if let Some(mark) = mark {
            mark.expect(0);
        }
        return Err(UNWRITABLE);
    }
    lasting::settle(path, std::slice::from_ref(update), false);
    Ok(mark)
}

/// A pack and its index, under names that nobody reads.
struct Written {
    /// From which name to which.
    renames: Vec<(PathBuf, PathBuf)>,
}

impl Written {
    fn write(folder: &Path, (pack, index, sum): (Vec<u8>, Vec<u8>, ObjectId)) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut written = Self { renames: Vec::new() };
        // The index last: with it the pack is there for others.
        for (bytes, name) in [(pack, "pack"), (index, "idx")] {
            // git sweeps such names, too.
            let from = folder.join(format!("tmp_{name}_seed-{}-{number}", std::process::id()));
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&from)?;
            written.renames.push((from, folder.join(format!("pack-{sum}.{name}"))));
            file.write_all(&bytes)?;
            file.sync_all()?;
        }
        Ok(written)
    }

    fn name(mut self) -> io::Result<()> {
        while !self.renames.is_empty() {
            let (from, to) = &self.renames[0];
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

//! How a small push gets to the disk. Each step is there before the next one begins, so that whatever ends this process leaves a whole
//! repository: without the push, or with it and a mark for the agent.
//!
//! 1. `<ref>.lock` is made, and the ref is still where the client believes it is
//! 2. the pack and its index are written under names that nobody reads, and the lock is what the ref is to be
//! 3. the push is written into the journal, whole, and that is on the disk (`serve/journal.rs`)
//! 4. pack, index and ref get their names, and HEAD names the default branch if there was none
//!
//! What is left of 1 and 2 is swept at the next start. Whatever there is of 4, and whatever of it gets to the disk, the next start brings
//! it to its end by the journal.

use std::path::Path;

use super::{
    Odd,
    refs::{Lock, Refs},
};
use crate::{
    serve::{
        git::Place,
        journal::{Files, Journals, Mark, Written},
        pktline::Update,
        receive::lasting,
    },
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
    journals: &Journals,
    (path, place): (&Path, Place),
    held: Held,
    (name, update): (&RefName, &Update),
    files: Option<&Files>,
    who: Option<&Caller>,
) -> Result<Option<Mark>, Odd> {
    let mut lock = held.lock;
    let written = files.map(|files| files.write(path)).transpose().map_err(|_| UNWRITABLE)?;
    lock.write(update.new.as_str()).map_err(|_| UNWRITABLE)?;
    let done = || {
        written.map_or(Ok(()), Written::name)?;
        lock.put()?;
        // Before anybody can say of the journal that all is done.
        lasting::give_default(path, std::slice::from_ref(update));
        Ok(())
    };
    journals.push(path, place, (name, update), files, who, done).map_err(|error| {
        tracing::warn!(%error, path = %path.display(), "could not keep a small push: git is to try it");
        UNWRITABLE
    })
}

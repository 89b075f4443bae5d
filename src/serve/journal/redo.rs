//! Does once more what an entry of the journal says, wherever a crash has left it: what is done already stays as it is.

use std::{io, path::Path};

use super::{
    super::{
        pktline::Update,
        receive::{
            lasting,
            small::refs::{self, Lock, Now},
        },
    },
    entry::Entry,
    files::Files,
};

/// Makes sure that a push is there: its pack, its ref, and the default branch if it was the first.
pub(super) fn redo(repository: &Path, entry: &Entry, files: Option<&Files>) -> io::Result<()> {
    let Entry::Push { reference, old, new, .. } = entry else { return Ok(()) };
    if let Some(files) = files.filter(|files| !files.are_in(repository)) {
        files.write(repository)?.name()?;
    }
    let update = Update { old: old.clone(), new: new.clone(), reference: reference.to_string() };
    let moves = match refs::now(repository, reference)? {
        now @ Now::At(_) => now.is(old),
        // A ref that was there is replaced, and either the old or the new survives that: somebody has deleted it.
        Now::Nowhere => update.creates(),
        Now::Torn => true,
    };
    if moves {
        let mut lock = Lock::take(repository.join(reference.as_str()))?;
        lock.write(new.as_str())?;
        lock.put()?;
        tracing::info!(repository = %repository.display(), %reference, %new, "brought back a push");
    }
    lasting::give_default(repository, &[update]);
    Ok(())
}

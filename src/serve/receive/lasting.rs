//! What makes a push last: its refs, and the default branch that the first one gives a repository, are on the disk before anybody is told
//! of it.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    super::{git, pktline::Update},
    small::refs::Lock,
};
use crate::spec::name::RefName;

/// Gives a repository its default branch if that is not there yet: `main`, else `master`, else the first one pushed. Then makes all that
/// was accepted durable. Blocks.
pub(super) fn settle(path: &Path, accepted: &[Update]) {
    let mut folders = folders(path, accepted);
    folders.insert(0, path.join("objects/pack"));
    if give_default(path, accepted) && !folders.iter().any(|folder| folder == path) {
        folders.push(path.to_owned());
    }
    for folder in folders {
        sync(&folder);
    }
}

/// Gives a repository its default branch, if that is not there yet; whether that changed something.
pub(in crate::serve) fn give_default(path: &Path, accepted: &[Update]) -> bool {
    let Some(branch) = to_be_default(path, accepted) else { return false };
    let set = set_default(path, &branch);
    if let Err(error) = &set {
        tracing::error!(%error, path = %path.display(), "could not set the default branch");
    }
    set.is_ok()
}

/// Makes what happened to the names in a folder durable; one that is not there is passed over.
pub(in crate::serve) fn sync(folder: &Path) {
    if let Err(error) = std::fs::File::open(folder).and_then(|file| file.sync_all())
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(%error, directory = %folder.display(), "could not sync");
    }
}

/// The branch that is to be the default one from now on, if it is another than now.
fn to_be_default(path: &Path, accepted: &[Update]) -> Option<RefName> {
    let now = git::default_branch(path);
    if now.as_ref().is_some_and(|branch| git::exists(path, branch)) {
        return None;
    }
    let branches: Vec<RefName> =
        accepted.iter().filter(|update| !update.deletes()).filter_map(Update::name).filter(RefName::is_branch).collect();
    let named = ["main", "master"].iter().find_map(|name| branches.iter().find(|branch| branch.short() == *name));
    named.or(branches.first()).filter(|branch| now.as_ref() != Some(branch)).cloned()
}

fn set_default(path: &Path, branch: &RefName) -> io::Result<()> {
    let mut lock = Lock::take(path.join("HEAD"))?;
    lock.write(&format!("ref: {branch}"))?;
    lock.sync()?;
    lock.put()
}

/// The folders of the refs that were changed, and those above them, which may be new; heads and tags were always there.
fn folders(path: &Path, accepted: &[Update]) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let lasting = ["refs/heads", "refs/tags"].map(|name| path.join(name));
    for update in accepted {
        let mut folder = path.join(&update.reference);
        while folder.pop() && folder.starts_with(path.join("refs")) && !folders.contains(&folder) {
            folders.push(folder.clone());
            if lasting.contains(&folder) {
                break;
            }
        }
        if update.deletes() && !folders.iter().any(|known| known == path) {
            // It may have stood in packed-refs.
            folders.push(path.to_owned());
        }
    }
    folders
}

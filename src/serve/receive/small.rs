//! Small pushes, without a program: one branch that gets a few plain objects, which is what most pushes are. Starting `git receive-pack`,
//! which starts two more, costs several times what there is to do.
//!
//! Nothing is judged here. What is not obviously what git takes, and how git would take it, is [`Odd`]: the same bytes then go to
//! `git receive-pack`, which knows why and says so. So there are two answers to a push here, "as git would" and "ask git", and never a no.

mod connected;
#[cfg(any(test, feature = "fuzz"))]
pub(in crate::serve) mod fuzz;
#[cfg(test)]
mod judge_tests;
mod keep;
#[cfg(test)]
pub(in crate::serve) mod kill_tests;
mod pack;
mod plain;
pub(in crate::serve) mod refs;
mod shelf;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gix::{ObjectId, objs::Kind};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::Semaphore,
    time::timeout,
};

use self::{
    connected::Here,
    pack::{Entry, Found, Scan},
    plain::Mode,
    refs::Refs,
    shelf::Shelf,
};
use super::{
    super::{
        git,
        git::Place,
        journal::{Files, Journals, Mark},
        pktline::{self, Request, Update},
    },
    IDLE,
};
use crate::{bus::PushRead, spec::caller::Caller};

/// The most bytes of a small pack.
const MOST: u64 = 1 << 20;
/// The largest `.authorized_keys`, commit or folder that is read for the agent.
const MAX_KEYS_FILE: u64 = 256 << 10;
/// How many pushes may be unfolded at a time; each can take tens of megabytes.
static UNFOLDING: Semaphore = Semaphore::const_new(2);

/// How long one waits for that; git has room for more.
const BUSY: Duration = Duration::from_secs(5);

/// Why something is for git to judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Odd(&'static str);

/// The refs of a repository, if it is one that we may read and write ourselves.
pub(super) async fn refs(path: PathBuf) -> Option<Refs> {
    look(move || Refs::read(&path)).await
}

/// Does something that blocks. What is odd, and what falls over, is for git.
async fn look<T: Send + 'static>(what: impl FnOnce() -> Result<T, Odd> + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(what).await {
        Ok(Ok(found)) => Some(found),
        Ok(Err(why)) => {
            tracing::debug!(%why, "this push is for git");
            None
        }
        Err(error) => {
            tracing::error!(%error, "stumbled over a push, which is git's now");
            None
        }
    }
}

/// Whether a push may be a small one: one branch is made or moved.
pub(super) fn may_be(request: &Request) -> bool {
    let one = match &request.updates[..] {
        [update] => {
            !update.deletes()
                && update.old != update.new
                && update.name().is_some_and(|name| name.is_branch() && name.short() != "HEAD")
        }
        _ => false,
    };
    one && !request.shallow
}

/// A pack, as far as it was taken.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub bytes: Vec<u8>,
    /// Its entries, if it is whole and small.
    entries: Option<Vec<Entry>>,
}

/// Takes a pack from the client, until it is whole or no small one.
pub(super) async fn take(input: &mut (impl AsyncRead + Unpin), most: u64, sent: &AtomicU64) -> Taken {
    let mut taken = Taken::default();
    let mut scan = Scan::default();
    let mut buffer = vec![0; 64 << 10];
    while let Ok(Ok(n @ 1..)) = timeout(IDLE, input.read(&mut buffer)).await {
        sent.fetch_add(n as u64, Ordering::Relaxed);
        taken.bytes.extend_from_slice(&buffer[..n]);
        if taken.bytes.len() as u64 > most.min(MOST) {
            return taken;
        }
        let bytes = std::mem::take(&mut taken.bytes);
        // The bytes come back whatever becomes of the scan.
        let looked = tokio::task::spawn_blocking(move || {
            let found = scan.go_on(&bytes);
            (bytes, scan, found)
        });
        let Ok((bytes, scanned, found)) = looked.await else { return taken };
        (taken.bytes, scan) = (bytes, scanned);
        match found {
            Ok(Found::More) => {}
            Ok(Found::End) => {
                taken.entries = Some(scan.entries());
                return taken;
            }
            Err(why) => {
                tracing::debug!(%why, "this push is for git");
                return taken;
            }
        }
    }
    taken
}

/// A push that was taken without git.
#[derive(Debug)]
pub(super) struct Kept {
    pub mark: Option<Mark>,
    /// What git's clients are used to be told of deltas.
    pub said: Option<String>,
    /// What the agent needs to know of the repository, if it was read.
    pub read: Option<PushRead>,
    /// As receive-pack would report.
    pub report: Vec<u8>,
}

/// Keeps a small push, and moves its ref; gives it back if it is for git. With `who` the agent is to hear of it.
pub(super) async fn keep(
    journals: &Arc<Journals>,
    (path, place): (PathBuf, Place),
    update: Update,
    taken: Taken,
    who: Option<Caller>,
) -> Result<Kept, Taken> {
    if taken.entries.is_none() {
        return Err(taken);
    }
    let Ok(Ok(_slot)) = timeout(BUSY, UNFOLDING.acquire()).await else { return Err(taken) };
    let taken = Arc::new(taken);
    let (theirs, journals) = (Arc::clone(&taken), Arc::clone(journals));
    let kept = look(move || push(&journals, (&path, place), &update, &theirs, who.as_ref())).await;
    kept.ok_or_else(|| Arc::try_unwrap(taken).unwrap_or_else(|shared| Taken { bytes: shared.bytes.clone(), entries: None }))
}

/// The whole of it. Blocks.
fn push(
    journals: &Journals,
    (path, place): (&Path, Place),
    update: &Update,
    taken: &Taken,
    who: Option<&Caller>,
) -> Result<Kept, Odd> {
    let entries = taken.entries.as_deref().ok_or(Odd("half a pack"))?;
    let name = update.name().ok_or(Odd("a strange ref"))?;
    let new = ObjectId::from_hex(update.new.as_str().as_bytes()).map_err(|_| Odd("a strange name"))?;
    let held = keep::hold(path, place, &name, update)?;
    let mut shelf = Shelf::open(path)?;
    let sent = pack::unfold(&taken.bytes, entries, |id, most| shelf.read(id, most))?;
    let tips = held.refs.tips();
    Here::new(&sent.objects, &tips, |id, most| shelf.read(id, most)).check(new)?;
    let keys = keys(&new, &mut |id, most| match sent.objects.get(id) {
        Some(object) => Ok((object.data.len() as u64 <= most).then(|| object.clone())),
        None => shelf.read(id, most),
    });
    let said = deltas(sent.deltas, sent.borrowed.len());
    // An empty pack moves a ref to where another is.
    let files = (!sent.objects.is_empty()).then(|| sent.files(&taken.bytes)).transpose()?;
    let mark = keep::keep(journals, (path, place), held, (&name, update), files.as_ref(), who)?;
    let report =
        [pktline::data(b"unpack ok\n"), pktline::data(format!("ok {name}\n").as_bytes()), pktline::FLUSH.to_vec()].concat();
    let read = git::default_branch(path).zip(keys).map(|(branch, keys)| {
        let keys = keys.filter(|_| branch == name);
        PushRead { branch, keys }
    });
    Ok(Kept { mark, said, read, report })
}

/// The text of a commit's `.authorized_keys`, if there is one; `None` if the agent had better look itself.
fn keys(commit: &ObjectId, read: &mut impl FnMut(&ObjectId, u64) -> Result<Option<pack::Object>, Odd>) -> Option<Option<String>> {
    let mut all = |id: &ObjectId, kind| read(id, MAX_KEYS_FILE).ok().flatten().filter(|object| object.kind == kind);
    let commit = all(commit, Kind::Commit)?;
    let (commit, _) = plain::leads_to(&commit.data)?;
    let tree = all(&commit.tree, Kind::Tree)?;
    let entries = plain::entries(&tree.data)?;
    match entries.iter().find(|entry| entry.name == b".authorized_keys") {
        None => Some(None),
        Some(entry) if entry.mode == Mode::File => {
            Some(Some(String::from_utf8_lossy(&all(&entry.id, Kind::Blob)?.data).into_owned()))
        }
        Some(_) => None,
    }
}

/// git's words for what was done with deltas.
fn deltas(count: usize, borrowed: usize) -> Option<String> {
    let end = match borrowed {
        0 => "done".to_owned(),
        1 => "completed with 1 local object".to_owned(),
        many => format!("completed with {many} local objects"),
    };
    (count > 0).then(|| format!("Resolving deltas: 100% ({count}/{count}), {end}.\n"))
}

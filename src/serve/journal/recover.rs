//! What the last run of the doors may not have brought to its end.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    Journals,
    book::{self, Book, Mark},
    entry::{Left, Tell, untold},
    locked,
};
use crate::{
    bus::Pushed,
    journal::{self, JournalError},
    serve::{
        Doors, ask,
        git::{self, Place},
        receive::small::refs,
    },
    spec::name::RepoName,
};

/// A repository with pushes that the agent has not heard of.
#[derive(Debug)]
pub(in crate::serve) struct Found {
    pub(super) name: RepoName,
    /// `None` if its default branch was not pushed to.
    pub(super) tell: Option<Tell>,
    pub(super) marks: Vec<Mark>,
}

impl Journals {
    /// Redoes what the last run may have left undone. To be called before any door opens, and after [`git::sweep`].
    pub(in crate::serve) fn recover(&self) -> Vec<Found> {
        // What a git did that was killed with the doors was synced by nobody: later pushes build on it.
        if let Err(error) = self.sync() {
            tracing::error!(%error, "could not sync the repositories");
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.repositories).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".git")?.parse().ok());
            let Some(name) = name else { continue };
            match self.recovered(&path, name) {
                Ok(None) => {}
                Ok(Some(one)) => found.push(one),
                Err(error) => {
                    tracing::error!(%error, repository = %path.display(), "could not bring back its last pushes: they stay in its journal");
                }
            }
        }
        found
    }

    fn recovered(&self, path: &Path, name: RepoName) -> Result<Option<Found>, JournalError> {
        let Some((number, journal)) = book::newest(path)? else { return Ok(None) };
        // Most have nothing left to do, which is seen without a sync.
        let read = journal::read(&journal, number, &fs::read(&journal)?).ok().and_then(|(payloads, _)| book::entries(&payloads));
        if read.as_ref().is_some_and(|read| Left::after(read.iter().map(|(entry, _)| entry)).is_empty()) {
            return Ok(None);
        }
        let place = Place::of(path)?;
        let book = Book::open(path, place)?;
        self.written.notify_one();
        let default = git::default_branch(path);
        let now = default.as_ref().and_then(|branch| refs::now(path, branch).ok()?.commit());
        let told = read.as_ref().zip(default).zip(now);
        let tell = told.and_then(|((read, branch), now)| untold(read.iter().map(|(entry, _)| entry), &book.unheard, &branch, &now));
        let unheard = book.unheard.clone();
        let book = Arc::new(Mutex::new(book));
        let marks: Vec<_> = unheard.into_iter().map(|number| Mark::new(&book, number)).collect();
        locked(&self.open).insert(place, book);
        Ok((!marks.is_empty()).then_some(Found { name, tell, marks }))
    }
}

/// Tells the agent of the default branches that these pushes may have moved.
pub(in crate::serve) async fn tell(doors: Arc<Doors>, found: Vec<Found>) {
    for Found { name, tell, marks } in found {
        if let Some(tell) = tell {
            tell_of(&doors, &name, tell).await;
        }
        // Somebody may hold the journal and wait for the disk.
        if tokio::task::spawn_blocking(move || marks.iter().for_each(Mark::answered)).await.is_err() {
            tracing::error!(%name, "stumbled over the journal");
        }
    }
}

async fn tell_of(doors: &Doors, name: &RepoName, Tell { who, commit }: Tell) {
    let Some(branch) = git::default_branch(&git::path_of(&doors.settings.repositories, name)) else { return };
    tracing::info!(%name, %branch, %commit, "tell the agent of a push that was interrupted");
    let zero = "0".repeat(40);
    loop {
        let asked = doors.agent.push(who.as_str(), name.as_str(), branch.as_str(), &zero, commit.as_str(), "deploy");
        match ask::document::<Pushed>(asked).await {
            Err(refusal) if ask::away(&refusal) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(refusal) => return tracing::warn!(%name, %refusal, "the agent did not take it"),
            Ok(_) => return,
        }
    }
}

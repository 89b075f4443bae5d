//! Pushes that the agent has not heard of. A mark is put into the repository before git may move a ref, and taken away when the agent
//! has answered; one that is found at a start is a push that ended with a kill or a power cut, and the agent is told then. Telling
//! twice does no harm: deploying what runs already changes nothing.
//!
//! A mark is the file `<name>.git/seed-push-<process>-<number>`; it holds the pusher's key and address.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{Doors, ask, git};
use crate::{
    bus::Pushed,
    spec::{caller::Caller, name::RepoName},
};

const PREFIX: &str = "seed-push-";

/// One push under way.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    left: AtomicUsize,
}

impl Mark {
    /// Marks a push into the repository at `repository`, durably.
    pub fn set(repository: &Path, who: &Caller) -> std::io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = repository.join(format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        // A process that was killed may have had our number.
        let mut file = fs::File::create(&path)?;
        file.write_all(who.as_str().as_bytes())?;
        file.sync_all()?;
        fs::File::open(repository)?.sync_all()?;
        Ok(Self { path, left: AtomicUsize::new(0) })
    }

    /// Says how many times the agent has to answer before the mark goes; with 0 it goes now.
    pub fn expect(&self, answers: usize) {
        self.left.store(answers, Ordering::Relaxed);
        if answers == 0 {
            self.remove();
        }
    }

    /// The agent has answered.
    pub fn answered(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.remove();
        }
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "could not remove the mark of a push");
        }
    }
}

/// What was found at the start: the repository, who pushed last, and the marks.
type Found = (RepoName, Caller, Vec<PathBuf>);

/// Finds the marks of earlier processes. To be called before any door opens.
pub(super) fn find(repositories: &Path) -> Vec<Found> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let mut found = Vec::new();
    for repository in entries(repositories) {
        let name = repository.file_name().and_then(|name| name.to_str()?.strip_suffix(".git")?.parse().ok());
        let is_mark = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        let marks: Vec<PathBuf> = entries(&repository).into_iter().filter(is_mark).collect();
        // A mark that was cut while it was written stands for a push that git never saw.
        let who = marks.iter().rev().find_map(|mark| fs::read_to_string(mark).ok()?.parse().ok());
        match (name, who) {
            (Some(name), Some(who)) => found.push((name, who, marks)),
            _ => marks.iter().for_each(|mark| drop(fs::remove_file(mark))),
        }
    }
    found
}

/// Tells the agent of the default branches that these pushes may have moved.
pub(super) async fn tell(doors: Arc<Doors>, found: Vec<Found>) {
    for (name, who, marks) in found {
        let path = git::path_of(&doors.settings.repositories, &name);
        if let Some(branch) = git::default_branch(&path) {
            let mut command = git::git(&doors, &path, &[]);
            command.arg("--git-dir").arg(&path).args(["rev-parse", "--verify", "--quiet", "--end-of-options"]).arg(branch.as_str());
            if let Ok(head) = git::run(command).await {
                tracing::info!(%name, %branch, "tell the agent of a push that was interrupted");
                let zero = "0".repeat(40);
                loop {
                    let asked = doors.agent.push(who.as_str(), name.as_str(), branch.as_str(), &zero, head.trim(), "deploy");
                    match ask::document::<Pushed>(asked).await {
                        Err(refusal) if ask::away(&refusal) => tokio::time::sleep(Duration::from_secs(1)).await,
                        Err(refusal) => break tracing::warn!(%name, %refusal, "the agent did not take it"),
                        Ok(_) => break,
                    }
                }
            }
        }
        // If one stays, the agent is told once more at the next start.
        marks.iter().for_each(|mark| drop(fs::remove_file(mark)));
    }
}

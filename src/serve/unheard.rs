//! Pushes that the agent has not heard of. A mark is put into the repository before git may move a ref, and taken away when the agent
//! has answered; one that is found at a start is a push that ended with a kill or a power cut, and the agent is told then. Telling
//! twice does no harm: deploying what runs already changes nothing.
//!
//! A mark is the empty file `<name>.git/objects/pack/seed-push-<process>-<number>-<pusher>`, with the pusher's key and address in base64: to
//! make it durable is one sync, of the folder, which a push that brings a pack needs anyway.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;

use super::{Doors, ask, git};
use crate::{
    bus::Pushed,
    spec::{caller::Caller, name::RepoName},
};

const PREFIX: &str = "seed-push-";
/// Where marks are, in a repository.
const FOLDER: &str = "objects/pack";

/// One push under way.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    left: AtomicUsize,
}

impl Mark {
    /// Marks a push into the repository at `repository`, durably.
    pub fn set(repository: &Path, who: &Caller) -> std::io::Result<Self> {
        let mark = Self::place(repository, who)?;
        fs::File::open(repository.join(FOLDER))?.sync_all()?;
        Ok(mark)
    }

    /// The same, but it lasts only when its folder was synced, by whoever asks for it.
    pub fn place(repository: &Path, who: &Caller) -> std::io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (number, who) = (COUNT.fetch_add(1, Ordering::Relaxed), BASE64URL_NOPAD.encode(who.as_str().as_bytes()));
        let path = repository.join(FOLDER).join(format!("{PREFIX}{}-{number}-{who}", std::process::id()));
        // A process that was killed may have had our number.
        fs::File::create(&path)?;
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
        // They were in the repository itself once.
        let marks: Vec<PathBuf> = [repository.join(FOLDER), repository].iter().flat_map(|at| entries(at)).filter(is_mark).collect();
        let who = marks.iter().rev().find_map(|mark| pusher(mark));
        match (name, who) {
            (Some(name), Some(who)) => found.push((name, who, marks)),
            _ => marks.iter().for_each(|mark| drop(fs::remove_file(mark))),
        }
    }
    found
}

/// Who pushed, by the name of a mark.
fn pusher(mark: &Path) -> Option<Caller> {
    let mut parts = mark.file_name()?.to_str()?.strip_prefix(PREFIX)?.splitn(3, '-').skip(2);
    let text = String::from_utf8(BASE64URL_NOPAD.decode(parts.next()?.as_bytes()).ok()?).ok()?;
    text.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_with_its_pusher_and_what_is_none_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (app, other) = (dir.path().join("app.git"), dir.path().join("other.git"));
        fs::create_dir_all(app.join(FOLDER)).unwrap();
        fs::create_dir(&other).unwrap();
        // Base64 of any key may have a dash in it.
        for n in 0..64u8 {
            let who = Caller::new(crate::spec::access::fingerprint(&[n]), "2001:db8::7".parse().unwrap());
            let mark = Mark::set(&app, &who).unwrap();
            let found = find(dir.path());
            assert_eq!((found.len(), &found[0].1, found[0].2.len()), (1, &who, 1));
            mark.expect(0);
        }
        fs::write(other.join("seed-push-1-2"), "").unwrap();
        fs::write(other.join("seed-push-1-2-!"), "").unwrap();
        assert!(find(dir.path()).is_empty() && fs::read_dir(&other).unwrap().next().is_none());
    }
}

//! Reads of a bare repository: its default branch, its `.authorized_keys`, and a commit's tree as an archive. No checkout: the bytes of
//! a tenant's tree are never unpacked by root.
//!
//! The repositories belong to the user of the doors, who may be somebody else's puppet: a link in one can lead anywhere, a pipe can
//! block for ever, a configuration can name programs. So root does not read them. Each read is a process of its own that has that
//! user's rights and no more, and little time and memory. What a tenant pushed is measured before it is read: a few objects can stand for
//! more files than any disk has.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::AtomicBool,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{process::Command, sync::Semaphore};

use super::{
    Place,
    fetch::{most, sandbox},
};
use crate::spec::name::{Commit, RefName};

/// The most files and folders of one commit.
const MAX_ENTRIES: u64 = 200_000;
/// The most bytes of one commit's files.
const MAX_BYTES: u64 = 1 << 30;
/// The deepest folder.
const MAX_DEPTH: u32 = 100;
/// The largest commit or folder, in git's form.
const MAX_OBJECT: u64 = 16 << 20;
/// How long one read may take.
const PATIENCE: u64 = 60;
/// How many reads may be under way at once; more wait.
static READS: Semaphore = Semaphore::const_new(8);

/// The largest `.authorized_keys` that is read.
pub const MAX_KEYS_FILE: u64 = 256 << 10;

/// How repositories are read.
#[derive(Debug, Clone)]
pub enum Reader {
    /// By this process, with its rights. For tests.
    Here,
    /// By `seed read-repository` in a unit of its own.
    Unit { systemd_run: PathBuf, seed: PathBuf, user: String },
}

/// What is asked of a repository. Its name on the command line, and the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The branch that HEAD names, and the commit it is at: JSON.
    Head,
    /// The same, and the text of the `.authorized_keys` of this commit if this ref is that branch: JSON. One question, because each
    /// costs a process.
    Pushed(RefName, Commit),
    /// The tree: a tar archive.
    Export(Commit),
}

/// The default branch of a repository.
#[derive(Debug, Serialize, Deserialize)]
pub struct Head {
    pub branch: RefName,
    /// Where it is; `None` as long as nothing was pushed to it.
    pub commit: Option<Commit>,
    /// An error's text if they cannot be read, which is nothing against the rest.
    pub keys: Result<Option<String>, String>,
}

impl Question {
    /// The words that [`Question::parse`] reads.
    fn words(&self) -> Vec<&str> {
        match self {
            Self::Head => vec!["head"],
            Self::Pushed(reference, commit) => vec!["pushed", reference.as_str(), commit.as_str()],
            Self::Export(commit) => vec!["export", commit.as_str()],
        }
    }

    /// A question from the command line.
    pub fn parse(words: &[String]) -> Option<Self> {
        match words {
            [what] if what == "head" => Some(Self::Head),
            [what, reference, commit] if what == "pushed" => Some(Self::Pushed(reference.parse().ok()?, commit.parse().ok()?)),
            [what, commit] if what == "export" => commit.parse().ok().map(Self::Export),
            _ => None,
        }
    }
}

/// Answers a question about the repository at `path`.
pub fn answer(path: &Path, question: &Question, out: &mut dyn Write) -> Result<(), SourceError> {
    let json = match question {
        Question::Head => head(path, None).map(|head| serde_json::to_vec(&head))?,
        Question::Pushed(reference, commit) => head(path, Some((reference, commit))).map(|head| serde_json::to_vec(&head))?,
        Question::Export(commit) => return export_to(path, commit, out),
    };
    let written = json.map_err(std::io::Error::from).and_then(|json| out.write_all(&json));
    written.map_err(|source| SourceError::Write { path: "the answer".into(), source })
}

impl Reader {
    /// The branch that HEAD names, and the commit it is at; `None` for the commit as long as nothing was pushed to it.
    pub async fn head(&self, place: &Place) -> Result<Head, SourceError> {
        self.ask(place, Question::Head).await
    }

    /// The branch that HEAD names, the commit it is at, and, if that is the branch that was pushed, the text of `.authorized_keys` in the
    /// root of the pushed commit's tree, if there is one.
    pub async fn pushed(&self, place: &Place, reference: RefName, commit: Commit) -> Result<Head, SourceError> {
        self.ask(place, Question::Pushed(reference, commit)).await
    }

    /// Writes a commit's tree to `archive` as an uncompressed tar with the single directory `source/` at its top.
    pub async fn export(&self, place: &Place, commit: &Commit, archive: &Path) -> Result<(), SourceError> {
        let file = File::create(archive).map_err(|source| SourceError::Write { path: archive.to_owned(), source })?;
        let done = self.run(place, Question::Export(commit.clone()), Some(file)).await.map(drop);
        if done.is_err() {
            // Half an archive is of no use; that it stays is of no harm.
            drop(std::fs::remove_file(archive));
        }
        done
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, place: &Place, question: Question) -> Result<T, SourceError> {
        let bytes = self.run(place, question, None).await?;
        serde_json::from_slice(&bytes).map_err(|error| read("the answer", place.path(), error))
    }

    /// Has a question answered: into `file`, or as what is returned.
    async fn run(&self, place: &Place, question: Question, file: Option<File>) -> Result<Vec<u8>, SourceError> {
        let path = place.path();
        let Self::Unit { systemd_run, seed, user } = self else {
            let at = path.to_owned();
            let here = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                match file {
                    Some(mut file) => answer(&at, &question, &mut file)?,
                    None => answer(&at, &question, &mut bytes)?,
                }
                Ok(bytes)
            });
            return here.await.map_err(|error| read("anything", path, error))?;
        };
        let busy = tokio::time::timeout(Duration::from_secs(2 * PATIENCE), READS.acquire()).await;
        let _turn = busy.map_err(|_| read("anything", path, "this host is reading as many repositories as it can"))?;
        let mut command = Command::new(systemd_run);
        command.args(["--wait", "--pipe", "--collect", "--quiet", "--service-type=exec", "--expand-environment=no"]);
        command.arg("--description=Seed: reads a repository");
        match place {
            Place::Silo(_) => drop(command.arg(format!("--uid={user}"))),
            Place::Mirror(namespace, _) => {
                for property in sandbox(namespace) {
                    command.arg("--property").arg(property);
                }
            }
        }
        command.arg(format!("--property=RuntimeMaxSec={PATIENCE}"));
        for property in READER {
            command.arg("--property").arg(property);
        }
        command.arg("--").arg(seed).arg("read-repository").arg(path).args(question.words());
        // NixOS has it where no default PATH looks.
        command.env_clear().env("PATH", "/run/current-system/sw/bin:/usr/bin:/bin");
        command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command.stdout(file.map_or_else(Stdio::piped, Stdio::from));
        let failed = |error: std::io::Error| read("anything", path, error);
        let mut child = command.spawn().map_err(failed)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (bytes, complaint) = tokio::join!(most(stdout, 1 << 20), most(stderr, 4 << 10));
        let status = tokio::time::timeout(Duration::from_secs(PATIENCE + 30), child.wait()).await;
        match status.map_err(|_| read("anything", path, "it took too long"))?.map_err(failed)?.success() {
            true => Ok(bytes),
            false => {
                let said = String::from_utf8_lossy(&complaint);
                let said = super::complaint::plain(said.trim().strip_prefix("error: ").unwrap_or(said.trim()));
                Err(SourceError::Refused(if said.is_empty() { "reading the repository took too long".to_owned() } else { said }))
            }
        }
    }
}

/// Nothing but the files of the user whom the repositories belong to.
const READER: &[&str] = &[
    "MemoryMax=1G",
    "LimitDATA=1G",
    "LimitCORE=0",
    "TasksMax=64",
    "CapabilityBoundingSet=",
    "NoNewPrivileges=yes",
    "PrivateNetwork=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "ProtectProc=invisible",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_UNIX",
    "InaccessiblePaths=-/run/dbus -/run/systemd/private -/run/userdb",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
];

/// Why a repository could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("could not read {what} of the repository {path}: {reason}")]
    Read { what: String, path: PathBuf, reason: String },
    /// In the words of the process that read.
    #[error("{0}")]
    Refused(String),
    #[error("could not write {path}")]
    Write { path: PathBuf, source: std::io::Error },
}

fn open(path: &Path) -> Result<gix::Repository, SourceError> {
    // Whoever owns it: nothing in its configuration may name a program.
    let options = gix::open::Options::isolated().with(gix::sec::Trust::Reduced).open_path_as_is(true);
    gix::open_opts(path, options).map_err(|error| read("HEAD", path, error))
}

fn read(what: impl Into<String>, path: &Path, reason: impl std::fmt::Display) -> SourceError {
    SourceError::Read { what: what.into(), path: path.to_owned(), reason: reason.to_string() }
}

fn head(path: &Path, pushed: Option<(&RefName, &Commit)>) -> Result<Head, SourceError> {
    let (branch, commit) = default_branch(path)?;
    let keys = match pushed {
        Some((reference, pushed)) if *reference == branch => authorized_keys(path, pushed).map_err(|error| error.to_string()),
        _ => Ok(None),
    };
    Ok(Head { branch, commit, keys })
}

/// The branch that HEAD names, and the commit it is at; `None` for the commit as long as nothing was pushed to it.
fn default_branch(path: &Path) -> Result<(RefName, Option<Commit>), SourceError> {
    let repository = open(path)?;
    let head = repository.head().map_err(|error| read("HEAD", path, error))?;
    let name = head.referent_name().map(|name| name.as_bstr().to_string()).unwrap_or_default();
    let name: RefName = name.parse().map_err(|error| read("HEAD", path, error))?;
    let commit = repository
        .try_find_reference(name.as_str())
        .map_err(|error| read(name.as_str(), path, error))?
        .and_then(|mut reference| reference.peel_to_id().ok().map(|id| id.to_string()));
    match commit {
        None => Ok((name, None)),
        Some(id) => id.parse().map(|commit| (name, Some(commit))).map_err(|error| read("HEAD", path, error)),
    }
}

/// The text of `.authorized_keys` in the root of a commit's tree, if there is one.
fn authorized_keys(path: &Path, commit: &Commit) -> Result<Option<String>, SourceError> {
    let repository = open(path)?;
    let tree = tree_of(&repository, path, commit)?;
    let entry = tree.lookup_entry_by_path(".authorized_keys").map_err(|error| read(".authorized_keys", path, error))?;
    let Some(entry) = entry.filter(|entry| entry.mode().is_blob()) else { return Ok(None) };
    let size = repository.find_header(entry.object_id()).map_err(|error| read(".authorized_keys", path, error))?.size();
    if size > MAX_KEYS_FILE {
        return Err(read(".authorized_keys", path, "it is larger than 256 KiB"));
    }
    let object = entry.object().map_err(|error| read(".authorized_keys", path, error))?;
    Ok(Some(String::from_utf8_lossy(&object.data).into_owned()))
}

/// Writes a commit's tree as an uncompressed tar with the single directory `source/` at its top.
fn export_to(path: &Path, commit: &Commit, out: &mut dyn Write) -> Result<(), SourceError> {
    let repository = open(path)?;
    let tree = tree_of(&repository, path, commit)?.id;
    let mut measure = Measure { repository: &repository, path, known: BTreeMap::new(), visited: 0 };
    measure.tree(tree, 0)?;
    let (stream, _index) = repository.worktree_stream(tree).map_err(|error| read("the tree", path, error))?;
    let write = |source| SourceError::Write { path: "the archive".into(), source };
    let mut file = Tar { out: std::io::BufWriter::new(out), at: 0 };
    let options = gix_archive::Options {
        format: gix_archive::Format::Tar,
        tree_prefix: Some("source/".into()),
        // A fixed time: the same tree makes the same archive.
        modification_time: 1,
    };
    repository
        .worktree_archive(stream, &mut file, gix::progress::Discard, &AtomicBool::new(false), options)
        .map_err(|error| read("the tree", path, error))?;
    file.flush().map_err(write)
}

fn tree_of<'a>(repository: &'a gix::Repository, path: &Path, commit: &Commit) -> Result<gix::Tree<'a>, SourceError> {
    let id = gix::ObjectId::from_hex(commit.as_str().as_bytes()).map_err(|error| read(commit.as_str(), path, error))?;
    let small = |id: gix::ObjectId| -> Result<(), SourceError> {
        let size = repository.find_header(id).map_err(|error| read(commit.as_str(), path, error))?.size();
        if size > MAX_OBJECT {
            Err(read(commit.as_str(), path, "it has an object of more than 16 MiB that is no file"))
        } else {
            Ok(())
        }
    };
    small(id)?;
    let found = repository.find_commit(id).map_err(|error| read(commit.as_str(), path, error))?;
    let tree = found.tree_id().map_err(|error| read("the tree", path, error))?;
    small(tree.detach())?;
    found.tree().map_err(|error| read("the tree", path, error))
}

/// Counts what a tree stands for, each object once.
struct Measure<'a> {
    repository: &'a gix::Repository,
    path: &'a Path,
    /// Entries and bytes of each tree that was counted.
    known: BTreeMap<gix::ObjectId, (u64, u64)>,
    visited: u64,
}

impl Measure<'_> {
    /// Entries and bytes of a tree and all below it, if they are not too many.
    fn tree(&mut self, id: gix::ObjectId, depth: u32) -> Result<(u64, u64), SourceError> {
        if let Some(known) = self.known.get(&id) {
            return Ok(*known);
        }
        let (repository, path) = (self.repository, self.path);
        let failed = |error: &dyn std::fmt::Display| read("the tree", path, error);
        if depth > MAX_DEPTH {
            return Err(failed(&"its folders are nested deeper than 100"));
        }
        if self.size(id)? > MAX_OBJECT {
            return Err(failed(&"it has a folder of too many files"));
        }
        let (mut entries, mut bytes) = (0u64, 0u64);
        let tree = repository.find_tree(id).map_err(|error| failed(&error))?;
        for entry in tree.iter() {
            let entry = entry.map_err(|error| failed(&error))?;
            self.visited += 1;
            let (below, size) = match entry.mode() {
                mode if mode.is_tree() => self.tree(entry.object_id(), depth + 1)?,
                mode if mode.is_commit() => (0, 0),
                _ => (0, self.size(entry.object_id())?),
            };
            entries = entries.saturating_add(below).saturating_add(1);
            bytes = bytes.saturating_add(size);
            if entries > MAX_ENTRIES || self.visited > MAX_ENTRIES {
                return Err(failed(&"it has more than 200000 files and folders"));
            }
            if bytes > MAX_BYTES {
                return Err(failed(&"its files have more than 1 GiB"));
            }
        }
        self.known.insert(id, (entries, bytes));
        Ok((entries, bytes))
    }

    fn size(&self, id: gix::ObjectId) -> Result<u64, SourceError> {
        self.repository.find_header(id).map(|header| header.size()).map_err(|error| read("the tree", self.path, error))
    }
}

/// A stream that knows how far it is, and goes nowhere else: all that an archive needs of a file.
struct Tar<W> {
    out: W,
    at: u64,
}

impl<W: Write> Write for Tar<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.at += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

impl<W> std::io::Seek for Tar<W> {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        match to {
            std::io::SeekFrom::Current(0) => Ok(self.at),
            _ => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn git(at: &Path, words: &[&str]) -> String {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]);
        let out = command.args(words).current_dir(at).output().expect("git runs");
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn a_bare_repository_is_read_without_a_checkout() {
        let dir = tempfile::tempdir().unwrap();
        let (work, bare) = (dir.path().join("work"), dir.path().join("bare.git"));
        git(dir.path(), &["init", "-q", "work"]);
        git(dir.path(), &["init", "-q", "--bare", "bare.git"]);
        let (branch, commit) = default_branch(&bare).unwrap();
        assert_eq!((branch.short(), commit), ("main", None));
        std::fs::write(work.join("flake.nix"), "{ }").unwrap();
        std::fs::write(work.join(".authorized_keys"), "# nobody\n").unwrap();
        std::os::unix::fs::symlink("/etc/shadow", work.join("link")).unwrap();
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-qm", "first"]);
        git(&work, &["push", "-q", bare.to_str().unwrap(), "main"]);
        let commit = default_branch(&bare).unwrap().1.expect("pushed");
        assert_eq!(commit.as_str(), git(&work, &["rev-parse", "HEAD"]));
        assert_eq!(authorized_keys(&bare, &commit).unwrap().as_deref(), Some("# nobody\n"));
        let archive = dir.path().join("source.tar");
        export_to(&bare, &commit, &mut File::create(&archive).unwrap()).unwrap();
        let list = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
        let mut names: Vec<String> = String::from_utf8(list.stdout).unwrap().lines().map(str::to_owned).collect();
        names.sort();
        names.retain(|name| !name.ends_with('/'));
        assert_eq!(names, ["source/.authorized_keys", "source/flake.nix", "source/link"]);
    }

    /// The object that `git` makes of what it is given.
    fn made(at: &Path, words: &[&str], input: &str) -> String {
        let mut child = Command::new("git");
        let mut child = child.args(words).current_dir(at).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{words:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn a_few_objects_that_stand_for_more_than_a_disk_holds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q", "--bare", "bare.git"]);
        let bare = dir.path().join("bare.git");
        let commit = |tree: &str| -> Commit { git(&bare, &["commit-tree", "-m", "x", tree]).parse().unwrap() };
        let said = |commit: &Commit| export_to(&bare, commit, &mut std::io::sink()).unwrap_err().to_string();
        let began = std::time::Instant::now();
        // Ten folders of ten folders of …: ten thousand million files.
        let mut object = ("blob", made(&bare, &["hash-object", "-w", "--stdin"], "x"));
        for _ in 0..10 {
            let mode = if object.0 == "blob" { "100644" } else { "040000" };
            let lines: String = (0..10).map(|n| format!("{mode} {} {}\tf{n}\n", object.0, object.1)).collect();
            object = ("tree", made(&bare, &["mktree"], &lines));
        }
        assert!(said(&commit(&object.1)).contains("more than 200000 files"));
        // One folder in another in another.
        let mut tree = made(&bare, &["mktree"], "");
        for _ in 0..300 {
            tree = made(&bare, &["mktree"], &format!("040000 tree {tree}\td\n"));
        }
        assert!(said(&commit(&tree)).contains("nested deeper"));
        // A file that is small only on its way.
        let zeros = "0".repeat(8 << 20);
        let large = made(&bare, &["hash-object", "-w", "--stdin"], &zeros);
        let lines: String = (0..130).map(|n| format!("100644 blob {large}\tf{n}\n")).collect();
        assert!(said(&commit(&made(&bare, &["mktree"], &lines))).contains("more than 1 GiB"));
        let keys = commit(&made(&bare, &["mktree"], &format!("100644 blob {large}\t.authorized_keys\n")));
        assert!(authorized_keys(&bare, &keys).unwrap_err().to_string().contains("larger than 256 KiB"));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }

    #[test]
    fn a_configuration_names_no_program() {
        let dir = tempfile::tempdir().unwrap();
        let (work, bare) = (dir.path().join("work"), dir.path().join("bare.git"));
        git(dir.path(), &["init", "-q", "work"]);
        git(dir.path(), &["init", "-q", "--bare", "bare.git"]);
        std::fs::write(work.join(".gitattributes"), "* filter=evil\n").unwrap();
        std::fs::write(work.join("a"), "a\n").unwrap();
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-qm", "first"]);
        git(&work, &["push", "-q", bare.to_str().unwrap(), "main"]);
        let proof = dir.path().join("proof");
        git(&bare, &["config", "filter.evil.smudge", &format!("touch {}", proof.display())]);
        let commit = default_branch(&bare).unwrap().1.expect("pushed");
        export_to(&bare, &commit, &mut std::io::sink()).unwrap();
        assert!(!proof.exists(), "a program of the configuration has run");
    }
}

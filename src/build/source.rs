//! Reads of a bare repository: its default branch, its `.authorized_keys`, and a commit's tree as an archive. No checkout: the bytes of
//! a tenant's tree are never unpacked by root.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use crate::spec::name::{Commit, RefName};

/// The largest `.authorized_keys` that is read.
const MAX_KEYS_FILE: usize = 256 << 10;

/// Why a repository could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("could not read {what} of the repository {path}: {reason}")]
    Read { what: String, path: PathBuf, reason: String },
    #[error("could not write {path}")]
    Write { path: PathBuf, source: std::io::Error },
}

fn open(path: &Path) -> Result<gix::Repository, SourceError> {
    gix::open_opts(path, gix::open::Options::isolated()).map_err(|error| read("HEAD", path, error))
}

fn read(what: impl Into<String>, path: &Path, reason: impl std::fmt::Display) -> SourceError {
    SourceError::Read { what: what.into(), path: path.to_owned(), reason: reason.to_string() }
}

/// The branch that HEAD names, and the commit it is at; `None` for the commit as long as nothing was pushed to it.
pub fn default_branch(path: &Path) -> Result<(RefName, Option<Commit>), SourceError> {
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
pub fn authorized_keys(path: &Path, commit: &Commit) -> Result<Option<String>, SourceError> {
    let repository = open(path)?;
    let tree = tree_of(&repository, path, commit)?;
    let entry = tree.lookup_entry_by_path(".authorized_keys").map_err(|error| read(".authorized_keys", path, error))?;
    let Some(entry) = entry.filter(|entry| entry.mode().is_blob()) else { return Ok(None) };
    let object = entry.object().map_err(|error| read(".authorized_keys", path, error))?;
    if object.data.len() > MAX_KEYS_FILE {
        return Err(read(".authorized_keys", path, "it is larger than 256 KiB"));
    }
    Ok(Some(String::from_utf8_lossy(&object.data).into_owned()))
}

/// Writes a commit's tree to `archive` as an uncompressed tar with the single directory `source/` at its top.
pub fn export(path: &Path, commit: &Commit, archive: &Path) -> Result<(), SourceError> {
    let repository = open(path)?;
    let tree = tree_of(&repository, path, commit)?.id;
    let (stream, _index) = repository.worktree_stream(tree).map_err(|error| read("the tree", path, error))?;
    let write = |source| SourceError::Write { path: archive.to_owned(), source };
    let mut file = std::io::BufWriter::new(File::create(archive).map_err(write)?);
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
    let commit = repository.find_commit(id).map_err(|error| read(commit.as_str(), path, error))?;
    commit.tree().map_err(|error| read("the tree", path, error))
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
        export(&bare, &commit, &archive).unwrap();
        let list = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
        let mut names: Vec<String> = String::from_utf8(list.stdout).unwrap().lines().map(str::to_owned).collect();
        names.sort();
        names.retain(|name| !name.ends_with('/'));
        assert_eq!(names, ["source/.authorized_keys", "source/flake.nix", "source/link"]);
    }
}

//! Silo, the git hosting: repositories on disk, and the git programs that serve them. Works over whatever stream it is given.
//!
//! Paths are made here from checked names, never from what a client sent. git runs without any configuration but ours, and
//! without hooks. What is pushed is looked at in [`super::receive`].

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

use super::{
    Doors,
    ask::{self, Asked},
    pktline,
    receive::lasting,
};
use crate::{
    bus::{Opened, Refusal},
    spec::{
        caller::Caller,
        name::{RefName, RepoName},
    },
};

/// A client that takes nothing for this long is given up.
const STALLED: Duration = Duration::from_secs(300);

/// Where bytes for a client go. Once the client has left or stalls, everything more is dropped, and `gone` says so.
#[derive(Debug)]
pub struct Outlet<W> {
    to: W,
    gone: CancellationToken,
}

impl<W: AsyncWrite + Unpin> Outlet<W> {
    /// An outlet into `to` that closes when `gone` is cancelled, and cancels it when `to` fails.
    pub fn new(to: W, gone: CancellationToken) -> Self {
        Self { to, gone }
    }
    /// Sends, or drops if the client has left.
    pub async fn send(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.gone.is_cancelled() {
            return;
        }
        let sent = async { self.to.write_all(bytes).await.and(self.to.flush().await) };
        tokio::select! {
            sent = tokio::time::timeout(STALLED, sent) => if !matches!(sent, Ok(Ok(()))) {
                self.gone.cancel();
            },
            () = self.gone.cancelled() => {}
        }
    }
    /// Tells when the client has left.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }
}

/// Which program reads a repository for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// clone and fetch
    UploadPack,
    /// git archive --remote
    UploadArchive,
}

/// Whose turn it is to push to a repository.
#[derive(Debug, Default)]
pub struct Turns(Mutex<BTreeMap<RepoName, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits until no other push is under way, but not for ever: a slow client may not lock the others out.
    pub async fn take(&self, name: &RepoName) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        tokio::time::timeout(Duration::from_secs(10), self.wait(name)).await.ok()
    }

    /// Waits for as long as it takes; who came first is first.
    pub async fn wait(&self, name: &RepoName) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(name.clone()).or_default())
        };
        turn.lock_owned().await
    }
}

/// The directory of a repository.
pub fn path_of(repositories: &Path, name: &RepoName) -> PathBuf {
    repositories.join(format!("{name}.git"))
}

/// Which folder a repository is: there may be another one of the same name, and of another owner, by the time that a client has sent all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    /// The folder that is at `path` now.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        Ok(Self::from(std::fs::metadata(path)?))
    }

    /// The folder that is open.
    pub fn of_file(folder: &std::fs::File) -> std::io::Result<Self> {
        Ok(Self::from(folder.metadata()?))
    }
}

impl From<std::fs::Metadata> for Place {
    fn from(found: std::fs::Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino() }
    }
}

/// git with no environment and no configuration but ours, in the repository at `path`.
pub fn git(doors: &Doors, path: &Path, settings: &[&str]) -> Command {
    let mut command = Command::new(&doors.settings.git);
    command
        .env_clear()
        .env("HOME", "/var/empty")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let always = [
        format!("safe.directory={}", path.display()),
        "core.hooksPath=/dev/null".into(),
        "core.fsmonitor=false".into(),
        // An archive may ask whether its commit is signed: nobody is to run what would find out.
        "gpg.program=/dev/null".into(),
        "gpg.x509.program=/dev/null".into(),
        "gpg.ssh.program=/dev/null".into(),
        "pack.threads=1".into(),
        "pack.windowMemory=128m".into(),
        "gc.autoDetach=false".into(),
    ];
    for setting in always.iter().map(String::as_str).chain(settings.iter().copied()) {
        command.arg("-c").arg(setting);
    }
    command
}

/// Asks the agent whether `who` may `access` the repository: a caller, or anybody.
pub async fn open(doors: &Doors, who: &str, name: &RepoName, access: &str) -> Asked<Opened> {
    ask::document(doors.agent.open_repository(who, name.as_str(), access)).await
}

/// Serves a clone, a fetch or an archive. `protocol` is the value of `GIT_PROTOCOL`, already checked. Returns the exit code.
pub async fn serve_read<R, W>(
    doors: &Arc<Doors>,
    who: &Caller,
    name: &RepoName,
    read: Read,
    protocol: Option<&str>,
    input: R,
    mut out: Outlet<W>,
) -> u8
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send,
{
    if let Err(refusal) = open(doors, who.as_str(), name, "read").await {
        out.send(&pktline::error(&ask::words(&refusal))).await;
        return refusal.exit_code();
    }
    let path = path_of(&doors.settings.repositories, name);
    if !path.is_dir() {
        out.send(&pktline::error(&format!("{name} is empty: nothing was pushed to it yet"))).await;
        return 3;
    }
    let _slot = match doors.read_slots.take(who.source()).await {
        Ok(slot) => slot,
        Err(full) => {
            out.send(&pktline::error(&full.to_string())).await;
            return 1;
        }
    };
    let mut command = git(doors, &path, &["uploadpack.allowFilter=true", "uploadpack.keepAlive=5"]);
    match read {
        Read::UploadPack => command.args(["upload-pack", "--strict", "--timeout=600"]),
        Read::UploadArchive => command.arg("upload-archive"),
    };
    command.arg(&path).stdin(Stdio::piped());
    if let Some(protocol) = protocol {
        command.env("GIT_PROTOCOL", protocol);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            tracing::error!(%error, git = %doors.settings.git.display(), "could not start git");
            out.send(&pktline::error("this host could not start git: tell its operator")).await;
            return 1;
        }
    };
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else { return 1 };
    let complaints = collect(&mut child);
    // A task of its own: what the client sends is always taken, so that the connection goes on.
    let feeding = tokio::spawn(async move {
        let mut input = input;
        // An error means that one of the two has ended, which the other side of this function sees too.
        drop(tokio::io::copy(&mut input, &mut stdin).await);
    });
    let mut buffer = vec![0; 64 << 10];
    let gone = out.gone().clone();
    let finished = loop {
        tokio::select! {
            n = stdout.read(&mut buffer) => match n {
                Ok(0) | Err(_) => break true,
                Ok(n) => out.send(&buffer[..n]).await,
            },
            () = gone.cancelled() => break false,
        }
    };
    feeding.abort();
    if !finished {
        // Reading leaves nothing behind, so it can be ended at any point.
        drop(child);
        return 1;
    }
    finish(child, complaints, name).await
}

/// What a child writes to its standard error, up to 8 KiB of it.
pub fn collect(child: &mut Child) -> tokio::task::JoinHandle<String> {
    let stderr = child.stderr.take();
    tokio::spawn(async move {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
                text.extend_from_slice(&buffer[..n.min(8192_usize.saturating_sub(text.len()))]);
            }
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    })
}

/// Waits for a child of git's, and returns its exit code; what it complained of goes to the journal.
pub async fn finish(mut child: Child, complaints: tokio::task::JoinHandle<String>, name: &RepoName) -> u8 {
    let status = child.wait().await;
    let complaints = complaints.await.unwrap_or_default();
    match status {
        Ok(status) if status.success() => 0,
        Ok(status) => {
            tracing::info!(%name, %status, complaints, "git ended");
            u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)
        }
        Err(error) => {
            tracing::error!(%name, %error, "could not wait for git");
            1
        }
    }
}

/// Whether the largest push would leave some room: anybody may push, and what the agent remembers lies on the same disk.
pub fn has_room(doors: &Doors) -> bool {
    let measured = nix::sys::statvfs::statvfs(&doors.settings.repositories);
    // What cannot be measured is found out by writing.
    measured.map_or(true, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()) > doors.settings.max_pack.0)
}

/// Makes the bare repository if it is not there yet.
pub async fn create(doors: &Doors, name: &RepoName) -> Asked<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let repositories = &doors.settings.repositories;
    let path = path_of(repositories, name);
    if path.is_dir() {
        return Ok(path);
    }
    let new = repositories.join(format!(".new-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let mut command = git(doors, &path, &["core.fsync=all"]);
    command.args(["init", "--quiet", "--bare", "--initial-branch=main", "--template="]).arg(&new);
    let made = run(command).await;
    // Whatever git's settings, it syncs none of these, and without them it is no repository.
    let new_parts = ["config", "HEAD", "objects/pack", "objects", "refs/heads", "refs/tags", "refs", ""].map(|part| new.join(part));
    let synced = tokio::task::spawn_blocking(move || new_parts.iter().for_each(|part| lasting::sync(part))).await;
    let made = made.and_then(|_| synced.map_err(|error| error.to_string()));
    let moved = made.and_then(|_| match std::fs::rename(&new, &path) {
        // Another push made it in the meantime.
        Err(_) if path.is_dir() => Ok(()),
        moved => moved.map_err(|error| error.to_string()),
    });
    if let Err(why) = moved {
        tracing::error!(%name, why, "could not make a repository");
        // It may never have been made.
        drop(tokio::fs::remove_dir_all(&new).await);
        return Err(Refusal::Failed(format!("this host could not make {name}: tell its operator")));
    }
    if new.exists() {
        drop(tokio::fs::remove_dir_all(&new).await);
    }
    let above = repositories.clone();
    if tokio::task::spawn_blocking(move || lasting::sync(&above)).await.is_err() {
        tracing::error!("syncing stopped short");
    }
    Ok(path)
}

/// Runs a git command to its end; what it printed, or what it complained of.
pub async fn run(mut command: Command) -> Result<String, String> {
    let output = command.output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// The branch that HEAD names, whether or not it exists.
pub fn default_branch(path: &Path) -> Option<RefName> {
    std::fs::read_to_string(path.join("HEAD")).ok()?.strip_prefix("ref: ")?.trim().parse().ok()
}

/// Whether a ref exists.
pub fn exists(path: &Path, reference: &RefName) -> bool {
    path.join(reference.as_str()).is_file()
        || std::fs::read_to_string(path.join("packed-refs"))
            .is_ok_and(|packed| packed.lines().any(|line| line.split_once(' ').is_some_and(|(_, name)| name == reference.as_str())))
}

/// Removes what a killed push or creation left behind. To be called before any door opens.
pub fn sweep(repositories: &Path) {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().collect::<Vec<_>>();
    let named = |path: &Path, is: fn(&str) -> bool| {
        let found = entries(path).into_iter().filter(move |entry| is(&entry.file_name().to_string_lossy()));
        found.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut abandoned = named(repositories, |name| name.starts_with(".new-"));
    for repository in named(repositories, |name| name.ends_with(".git")) {
        abandoned
            .extend(named(&repository.join("objects"), |name| name.starts_with("tmp_objdir-") || name.starts_with("incoming-")));
        abandoned.extend(named(&repository.join("objects/pack"), |name| name.starts_with("tmp_") || name.ends_with(".lock")));
        abandoned.extend(named(&repository.join("objects/info"), |name| name.ends_with(".lock")));
        // Nobody holds a lock any more, and no branch has such a name.
        abandoned.extend(named(&repository, |name| name.ends_with(".lock") || name == "packed-refs.new"));
        let mut folders = vec![repository.join("refs")];
        while let Some(folder) = folders.pop() {
            abandoned.extend(named(&folder, |name| name.ends_with(".lock")));
            let below = entries(&folder).into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.extend(below.map(|entry| entry.path()));
        }
    }
    for path in abandoned {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Ok(()) => tracing::info!(path = %path.display(), "removed what an interrupted push had left"),
            Err(error) => tracing::warn!(%error, path = %path.display(), "could not remove what an interrupted push had left"),
        }
    }
}

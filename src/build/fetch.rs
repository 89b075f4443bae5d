//! Repositories from elsewhere: each is kept as a bare one of its own, which a unit of its own brings up to date
//! (`seed-fetch@<namespace>.service`, running [`super::mirror`]) as a user that exists only for that namespace. No other tenant's unit,
//! and no door, can see it. It is a cache: what is lost is fetched again.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{io::AsyncReadExt, process::Command, sync::Semaphore};

pub use super::mirror::{Args, Found, MirrorError, Shown, fetch};
use super::{complaint, reach};
use crate::spec::{
    name::{Commit, KeyId, Namespace, RefName},
    quantity::Bytes,
};

/// How many fetches may be under way at once; more wait.
static FETCHES: Semaphore = Semaphore::const_new(4);

/// How repositories are fetched.
#[derive(Debug, Clone)]
pub enum Fetcher {
    /// By this process, with its rights. For tests.
    Here { git: PathBuf, seed: PathBuf, mirrors: PathBuf, allow: Vec<IpNet> },
    /// By `seed fetch-repository` in a unit of its own.
    Unit { systemd_run: PathBuf, seed: PathBuf, git: PathBuf, allow: Vec<IpNet>, timeout_secs: u32, max_pack: Bytes },
}

/// What is to be fetched.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub namespace: Namespace,
    pub url: String,
    /// `None`: the default branch.
    pub branch: Option<RefName>,
    /// Nothing is fetched if the branch is still at this commit.
    pub known: Option<Commit>,
    pub credential: Option<Credential>,
    /// The fingerprint of the host key that the server is known by, over SSH.
    pub host_key: Option<KeyId>,
    /// How much room the repository may take here.
    pub most: Bytes,
}

/// A file with what a private repository is read with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    Token(PathBuf),
    /// The private half of a deploy key.
    Key(PathBuf),
}

impl Credential {
    /// As [`fetch`] wants it.
    pub fn shown(&self) -> io::Result<Shown> {
        match self {
            Self::Token(path) => std::fs::read_to_string(path).map(|text| Shown::Token(text.trim().to_owned())),
            Self::Key(path) => Ok(Shown::Key(path.clone())),
        }
    }

    /// What systemd has handed to this process, if anything.
    pub fn given() -> Option<Self> {
        let folder = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?);
        let file = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
        file("key").map(Self::Key).or_else(|| file("token").map(Self::Token))
    }
}

/// Why nothing was fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// In the words of the process that fetched: the tenant's or the server's fault.
    #[error("{0}")]
    Refused(String),
    #[error("this host could not fetch it: {0}; its operator finds more in the journal")]
    Host(String),
}

impl Fetcher {
    /// Where the repository of a namespace is, as units with [`sandbox`] see it.
    pub fn path(&self, namespace: &Namespace) -> PathBuf {
        match self {
            Self::Here { mirrors, .. } => mirrors.join(namespace.as_str()).join("mirror.git"),
            Self::Unit { .. } => PathBuf::from(format!("/var/cache/{}/mirror.git", cache(namespace))),
        }
    }

    /// Fetches, and says where the branch is.
    pub async fn fetch(&self, wanted: &Wanted) -> Result<Found, FetchError> {
        for _ in 0..10 {
            match self.fetch_once(wanted).await {
                // What was fetched for an earlier try is being removed: that does not take long.
                Err(FetchError::Host(said)) if said.contains("already loaded") => {
                    tokio::time::sleep(Duration::from_millis(500)).await
                }
                answered => return answered,
            }
        }
        self.fetch_once(wanted).await
    }

    async fn fetch_once(&self, wanted: &Wanted) -> Result<Found, FetchError> {
        let host = |what: String| FetchError::Host(what);
        // It is never closed.
        let _turn = FETCHES.acquire().await;
        let into = self.path(&wanted.namespace);
        let (systemd_run, seed, git, allow, timeout_secs, max_pack) = match self {
            Self::Here { git, seed, allow, .. } => {
                let (git, branch, known) = (git.clone(), wanted.branch.clone(), wanted.known.clone());
                let (seed, host_key, url) = (seed.clone(), wanted.host_key.iter().cloned().collect(), wanted.url.clone());
                let (allow, most) = (allow.clone(), wanted.most.0);
                let args = Args { git, into, branch, known, seed, host_key, allow, most, url };
                let shown =
                    wanted.credential.as_ref().map(Credential::shown).transpose().map_err(|error| host(error.to_string()))?;
                let fetched = tokio::task::spawn_blocking(move || {
                    let folder = args.into.parent().map(std::fs::create_dir_all).transpose();
                    folder.map_err(|error| FetchError::Host(error.to_string()))?;
                    fetch(&args, shown.as_ref()).map_err(|error| FetchError::Refused(error.to_string()))
                });
                return fetched.await.map_err(|error| host(error.to_string()))?;
            }
            Self::Unit { systemd_run, seed, git, allow, timeout_secs, max_pack } => {
                (systemd_run, seed, git, allow, *timeout_secs, max_pack)
            }
        };
        let mut command = Command::new(systemd_run);
        command.args(["--wait", "--pipe", "--collect", "--quiet", "--service-type=exec", "--expand-environment=no"]);
        command.arg(format!("--unit=seed-fetch@{}.service", wanted.namespace));
        command.arg(format!("--description=Seed: fetches the repository of {}", wanted.namespace));
        let limits = [format!("RuntimeMaxSec={timeout_secs}"), format!("LimitFSIZE={}", max_pack.0)];
        let credential = wanted.credential.iter().map(|credential| match credential {
            Credential::Token(path) => format!("LoadCredential=token:{}", path.display()),
            Credential::Key(path) => format!("LoadCredential=key:{}", path.display()),
        });
        let fixed = FETCH.iter().map(|property| (*property).to_owned());
        for property in fixed.chain(sandbox(&wanted.namespace)).chain(limits).chain(credential).chain(reach::properties(allow)) {
            command.arg("--property").arg(property);
        }
        command.arg("--").arg(seed).arg("fetch-repository").arg("--git").arg(git).arg("--into").arg(into);
        command.arg("--seed").arg(seed).arg(format!("--most={}", wanted.most.0));
        if let Some(key) = &wanted.host_key {
            command.arg("--host-key").arg(key.as_str());
        }
        for net in allow {
            command.arg("--allow").arg(net.to_string());
        }
        if let Some(branch) = &wanted.branch {
            command.arg("--branch").arg(branch.as_str());
        }
        if let Some(known) = &wanted.known {
            command.arg("--known").arg(known.as_str());
        }
        command.arg("--").arg(&wanted.url);
        command.env_clear().env("PATH", "/run/current-system/sw/bin:/usr/bin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| host(error.to_string()))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (answer, said) = tokio::join!(most(stdout, 64 << 10), most(stderr, 16 << 10));
        let patience = Duration::from_secs(u64::from(timeout_secs) + 30);
        let status = tokio::time::timeout(patience, child.wait()).await;
        let status =
            status.map_err(|_| host("systemd did not stop it in time".to_owned()))?.map_err(|error| host(error.to_string()))?;
        if status.success() {
            return serde_json::from_slice(&answer).map_err(|error| host(format!("its answer cannot be read ({error})")));
        }
        let said = String::from_utf8_lossy(&said);
        match said.lines().find_map(|line| line.strip_prefix("error: ")) {
            Some(error) => Err(FetchError::Refused(complaint::plain(error))),
            None if said.trim().is_empty() => Err(FetchError::Refused(format!("{} took longer than {timeout_secs} s", wanted.url))),
            None => Err(host(complaint::plain(said.trim()))),
        }
    }
}

impl Fetcher {
    /// Removes what is here of the repository of a namespace.
    pub async fn forget(&self, namespace: &Namespace) -> Result<(), FetchError> {
        let host = |error: io::Error| FetchError::Host(error.to_string());
        let path = self.path(namespace);
        let Self::Unit { systemd_run, seed, .. } = self else {
            return tokio::task::spawn_blocking(move || forget(&path)).await.map_err(|error| host(error.into()))?.map_err(host);
        };
        let mut command = Command::new(systemd_run);
        command.args(["--wait", "--pipe", "--collect", "--quiet", "--service-type=exec", "--expand-environment=no"]);
        // As a fetch is called, so that systemd never runs both.
        command.arg(format!("--unit=seed-fetch@{namespace}.service"));
        command.arg(format!("--description=Seed: removes what was fetched of {namespace}"));
        let properties = FETCH.iter().map(|property| (*property).to_owned()).chain(sandbox(namespace));
        for property in properties.chain(["IPAddressDeny=any".to_owned()]) {
            command.arg("--property").arg(property);
        }
        command.arg("--").arg(seed).arg("forget-repository").arg(path);
        command.env_clear().env("PATH", "/run/current-system/sw/bin:/usr/bin:/bin");
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(host)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(FetchError::Host(complaint::plain(String::from_utf8_lossy(&output.stderr).trim()))),
        }
    }
}

/// Removes a repository that was fetched, and what was noted beside it.
pub fn forget(repository: &Path) -> io::Result<()> {
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(std::fs::remove_dir_all(repository))?;
    ["unfinished", "host-key"].into_iter().try_for_each(|beside| gone(std::fs::remove_file(repository.with_extension(beside))))
}

fn cache(namespace: &Namespace) -> String {
    format!("seed-fetch/{namespace}")
}

/// The user that exists only for the repository of a namespace, and the one folder that is its own. Fetching and reading have the same.
pub(super) fn sandbox(namespace: &Namespace) -> [String; 4] {
    let short = namespace.as_str().trim_start_matches("s-");
    [
        "DynamicUser=yes".to_owned(),
        format!("User=seed-f-{short}"),
        format!("CacheDirectory={}", cache(namespace)),
        "CacheDirectoryMode=0700".to_owned(),
    ]
}

/// What a unit that fetches has no need of.
const FETCH: &[&str] = &[
    "MemoryMax=1G",
    "LimitDATA=1G",
    "LimitCORE=0",
    "TasksMax=64",
    "CPUWeight=50",
    "TimeoutStopSec=5",
    "CapabilityBoundingSet=",
    "NoNewPrivileges=yes",
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
    // Names are looked up over netlink.
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "InaccessiblePaths=-/run/dbus -/run/systemd/private -/run/userdb",
    "InaccessiblePaths=-/var/lib -/var/log -/var/spool -/var/backups -/var/mail -/srv -/opt -/mnt -/media -/boot -/sys/firmware",
    "TemporaryFileSystem=/etc:ro",
    "BindReadOnlyPaths=-/etc/resolv.conf -/etc/hosts -/etc/nsswitch.conf -/etc/passwd -/etc/group -/etc/services -/etc/protocols",
    "BindReadOnlyPaths=-/etc/ssl/certs -/etc/pki/tls/certs -/etc/static/ssl -/etc/ld.so.cache -/etc/localtime",
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

/// Up to `limit` bytes of a stream; the rest is not read.
pub(super) async fn most(stream: Option<impl tokio::io::AsyncRead + Unpin>, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What was read before an error is all there is.
        drop(stream.take(limit).read_to_end(&mut bytes).await);
    }
    bytes
}

//! `seed fetch-repository`: brings a branch of a repository from elsewhere into a bare one here, with git. It runs in a unit of its own as
//! a user that exists only for one namespace ([`super::fetch`] starts it), because both ends are strangers: the server that is
//! asked, and the tenant who named it.
//!
//! git gets an argument list, never a shell; one protocol; no redirects (a server could lead anywhere); and the address that was looked up and
//! found fit, so that a name cannot mean another one a moment later. Only the newest commit is fetched.

use std::{
    fs,
    io::{self, Read},
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{disk, git_ssh, reach};
use crate::spec::{
    name::{Commit, KeyId, NameError, RefName},
    quantity::Bytes,
};

/// Fetches one branch of a repository.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The git binary
    #[arg(long, value_name = "FILE")]
    pub git: PathBuf,
    /// The bare repository to fetch into; made if it is not there
    #[arg(long, value_name = "FOLDER")]
    pub into: PathBuf,
    /// The branch; what the server calls its default if it is left out
    #[arg(long, value_name = "refs/heads/…")]
    pub branch: Option<RefName>,
    /// The commit that is known: if the branch is still at it, nothing is fetched
    #[arg(long, value_name = "COMMIT")]
    pub known: Option<Commit>,
    /// The program that git starts in the place of ssh: this one
    #[arg(long, value_name = "FILE")]
    pub seed: PathBuf,
    /// The fingerprint of a host key that the server may have; left out, it is taken for what it says
    #[arg(long, value_name = "SHA256:…")]
    pub host_key: Vec<KeyId>,
    /// A network that may be reached although it is not public
    #[arg(long, value_name = "NETWORK")]
    pub allow: Vec<IpNet>,
    /// How many bytes the repository may take on this host's disk
    #[arg(long, value_name = "BYTES")]
    pub most: u64,
    /// Where the repository is
    pub url: String,
}

/// What a repository is read with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// `TOKEN` or `USER:TOKEN`, over HTTPS.
    Token(String),
    /// A file with a private key, over SSH.
    Key(PathBuf),
}

/// Where a branch is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub branch: RefName,
    pub commit: Commit,
    /// The fingerprint of the server's host key, if it was asked over SSH.
    #[serde(default)]
    pub host_key: Option<KeyId>,
}

/// Why nothing was fetched, in words for whoever planted it.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("{0} is no URL that can be fetched")]
    Url(String),
    #[error("could not look up {host}: {source}")]
    Lookup { host: String, source: io::Error },
    #[error("{host} is at {address}, which is not public: ask the operator of this host to allow it ([build] allow_addresses)")]
    Private { host: String, address: IpAddr },
    #[error(
        "{0} cannot be read by this host: it does not exist, or it is private and needs a (better) token or a deploy key: `remote REPO token`, \
         `remote REPO key`"
    )]
    Denied(String),
    #[error(
        "{0} cannot be read with the deploy key of this host: it does not exist, or the key is not added there: `remote REPO key` shows it"
    )]
    KeyDenied(String),
    #[error(
        "{host} shows another host key ({shown}) than the one it is known by ({known}): somebody may stand between. If its operator has \
         changed it: `remote REPO trust {shown}`"
    )]
    HostKey { host: String, shown: String, known: String },
    #[error("{0} has moved, and redirects are not followed: plant it under its new address")]
    Moved(String),
    #[error("{url} has no branch {branch}")]
    NoBranch { url: String, branch: String },
    #[error("{0} has no commits yet: push to it first")]
    Empty(String),
    #[error("{0} does not say which branch is its default: name one (github:USER/REPO/BRANCH, or git+https://…?ref=BRANCH)")]
    NoDefault(String),
    #[error("{0} is larger than this host takes ([ssh] max_pack)")]
    TooLarge(String),
    #[error(
        "the newest commit of {url} takes {used} on the disk of this host, and may take {most}: ask the operator for more (`quota` shows it)"
    )]
    OverQuota { url: String, used: Bytes, most: Bytes },
    #[error("git could not read {url}: {said}")]
    Git { url: String, said: String },
    #[error("could not {deed} {path}: {source}")]
    File { deed: &'static str, path: PathBuf, source: io::Error },
}

/// What a server may say about its branches.
const MAX_ANSWER: u64 = 1 << 20;
/// So many packs are kept, then the repository is fetched anew.
const MAX_PACKS: usize = 50;

/// Brings `args.into` to where the branch is.
pub fn fetch(args: &Args, shown: Option<&Shown>) -> Result<Found, MirrorError> {
    let git = Git::new(args, shown)?;
    let found = git.head()?;
    if args.known.as_ref() == Some(&found.commit) {
        return Ok(found);
    }
    // The server that has the commit is the one that said where the branch is, also if it was taken for what it says.
    let pinned;
    let git = match &found.host_key {
        Some(key) if args.host_key.is_empty() => {
            pinned = Args { host_key: vec![key.clone()], ..args.clone() };
            Git::new(&pinned, shown)?
        }
        _ => git,
    };
    // While it is there, the repository is in an unknown state: the next fetch begins anew.
    let unfinished = args.into.with_extension("unfinished");
    if unfinished.exists() && args.into.exists() {
        fs::remove_dir_all(&args.into).map_err(|source| file("remove", &args.into, source))?;
    }
    fs::write(&unfinished, "").map_err(|source| file("write", &unfinished, source))?;
    // What it had of older commits makes room for the newest.
    let mut commit = bring(&git, &found)?;
    if disk::bytes_of(&args.into) > args.most {
        fs::remove_dir_all(&args.into).map_err(|source| file("remove", &args.into, source))?;
        commit = bring(&git, &found)?;
        let used = disk::bytes_of(&args.into);
        if used > args.most {
            fs::remove_dir_all(&args.into).map_err(|source| file("remove", &args.into, source))?;
            return Err(MirrorError::OverQuota { url: args.url.clone(), used: Bytes(used).rough(), most: Bytes(args.most) });
        }
    }
    if packs(&args.into) < MAX_PACKS {
        fs::remove_file(&unfinished).map_err(|source| file("remove", &unfinished, source))?;
    }
    Ok(Found { commit, ..found })
}

/// Fetches the newest commit of the branch into the repository, which is made if it is not there.
fn bring(git: &Git<'_>, found: &Found) -> Result<Commit, MirrorError> {
    let (args, name) = (git.args, found.branch.as_str());
    if !args.into.exists() {
        git.run(git.command(None).args(["init", "--quiet", "--bare", "--template="]).arg("--").arg(&args.into))?;
    }
    let mut fetch = git.command(Some(&args.into));
    fetch.args(["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"]);
    fetch.args(["--no-auto-maintenance", "--force", "--refmap=", "--"]).arg(&args.url).arg(format!("+{name}:{name}"));
    git.run(&mut fetch)?;
    git.run(git.command(Some(&args.into)).args(["symbolic-ref", "HEAD", name]))?;
    let at = git.run(git.command(Some(&args.into)).args(["rev-parse", "--verify", "--quiet", "--end-of-options", name]))?;
    String::from_utf8_lossy(&at).trim().parse().map_err(|error: NameError| git.said(error.to_string()))
}

fn packs(repository: &Path) -> usize {
    let entries = fs::read_dir(repository.join("objects/pack")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack")).count()
}

fn file(deed: &'static str, path: &Path, source: io::Error) -> MirrorError {
    MirrorError::File { deed, path: path.to_owned(), source }
}

/// git, and what it is told in every call.
struct Git<'a> {
    args: &'a Args,
    scheme: &'a str,
    /// Settings for the command line: nothing secret.
    settings: Vec<String>,
    /// What is set in the environment.
    environment: Vec<(&'static str, String)>,
    /// Over SSH: who is asked, and as what.
    ssh: Option<(String, git_ssh::Settings)>,
}

impl<'a> Git<'a> {
    fn new(args: &'a Args, shown: Option<&Shown>) -> Result<Self, MirrorError> {
        let unusable = || MirrorError::Url(args.url.clone());
        let (scheme, rest) = args.url.split_once("://").ok_or_else(unusable)?;
        let authority = rest.split('/').next().unwrap_or_default();
        let (user, place) = match authority.split_once('@') {
            Some((user, place)) if scheme == "ssh" => (user, place),
            Some(_) => return Err(unusable()),
            None => ("", authority),
        };
        let usual = match scheme {
            "https" => 443,
            // http only ever comes from the operator, who may name a server of the house.
            "http" => 80,
            "ssh" if !user.is_empty() => 22,
            _ => return Err(unusable()),
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| unusable())?),
            None => (place, usual),
        };
        if host.is_empty() {
            return Err(unusable());
        }
        let addresses = look_up(host, port, &args.allow)?;
        let mut settings: Vec<String> = [
            "http.followRedirects=false",
            "http.lowSpeedLimit=1000",
            "http.lowSpeedTime=30",
            "credential.helper=",
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.logAllRefUpdates=false",
            "fetch.fsckObjects=true",
            "fetch.unpackLimit=1",
            "transfer.bundleURI=false",
            "gc.auto=0",
            "pack.threads=1",
            "protocol.version=2",
        ]
        .map(str::to_owned)
        .to_vec();
        if scheme != "ssh" && host.parse::<IpAddr>().is_err() {
            let list: Vec<String> = addresses
                .iter()
                .map(|address| match address {
                    IpAddr::V4(v4) => v4.to_string(),
                    IpAddr::V6(v6) => format!("[{v6}]"),
                })
                .collect();
            settings.push(format!("http.curloptResolve={host}:{port}:{}", list.join(",")));
        }
        let mut environment = Vec::new();
        let mut ssh = None;
        match (shown, scheme) {
            (Some(Shown::Token(token)), "https" | "http") => {
                // Tokens of GitHub's want some user; other forges want to be told which.
                let pair = if token.contains(':') { token.to_owned() } else { format!("x-access-token:{token}") };
                let word = data_encoding::BASE64.encode(pair.as_bytes());
                // Not `-c`: an argument list is for everybody to read. For this server only.
                let name = format!("http.{scheme}://{authority}/.extraHeader");
                environment.extend([("GIT_CONFIG_COUNT", "1".to_owned()), ("GIT_CONFIG_KEY_0", name)]);
                environment.push(("GIT_CONFIG_VALUE_0", format!("Authorization: Basic {word}")));
            }
            (Some(Shown::Key(key)), "ssh") => {
                let trusted = match args.host_key.is_empty() {
                    true => git_ssh::published(host),
                    false => args.host_key.iter().map(ToString::to_string).collect(),
                };
                let settings = git_ssh::Settings {
                    addresses: addresses.iter().map(|address| SocketAddr::new(*address, port)).collect(),
                    user: user.to_owned(),
                    key: key.clone(),
                    trusted,
                    seen: args.into.with_extension("host-key"),
                };
                let text = serde_json::to_string(&settings).expect("plain data is JSON");
                // GIT_SSH is started as it is; GIT_SSH_COMMAND would be given to a shell.
                environment.extend([("GIT_SSH", args.seed.display().to_string()), ("GIT_SSH_VARIANT", "ssh".to_owned())]);
                environment.push((git_ssh::VARIABLE, text));
                ssh = Some((host.to_owned(), settings));
            }
            (None, "https" | "http") => {}
            _ => return Err(MirrorError::Denied(args.url.clone())),
        }
        Ok(Self { args, scheme, settings, environment, ssh })
    }

    fn command(&self, repository: Option<&Path>) -> Command {
        let mut command = Command::new(&self.args.git);
        command
            .env_clear()
            .env("PATH", "/run/current-system/sw/bin:/usr/bin:/bin")
            .env("HOME", "/var/empty")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", self.scheme)
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Where NixOS and Debian have it; git of NixOS knows no place of its own.
        let authorities = "/etc/ssl/certs/ca-certificates.crt";
        if Path::new(authorities).exists() {
            command.env("GIT_SSL_CAINFO", authorities);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        for setting in &self.settings {
            command.arg("-c").arg(setting);
        }
        if let Some(repository) = repository {
            command.arg("--git-dir").arg(repository);
        }
        command
    }

    /// The branch that is wanted, and where it is.
    fn head(&self) -> Result<Found, MirrorError> {
        let url = || self.args.url.clone();
        let mut command = self.command(None);
        command.args(["ls-remote", "--quiet", "--symref", "--"]).arg(&self.args.url);
        command.arg(self.args.branch.as_ref().map_or("HEAD", RefName::as_str));
        let answer = String::from_utf8_lossy(&self.run(&mut command)?).into_owned();
        let pairs = || answer.lines().filter_map(|line| line.split_once('\t'));
        let at = |name: &str| pairs().find(|(left, right)| *right == name && !left.starts_with("ref:"))?.0.parse::<Commit>().ok();
        if let Some(branch) = &self.args.branch {
            let missing = || MirrorError::NoBranch { url: url(), branch: branch.short().to_owned() };
            return Ok(Found {
                branch: branch.clone(),
                commit: at(branch.as_str()).ok_or_else(missing)?,
                host_key: self.host_key()?,
            });
        }
        let commit = at("HEAD").ok_or_else(|| MirrorError::Empty(url()))?;
        let named =
            pairs().find(|(_, right)| *right == "HEAD").and_then(|(left, _)| left.strip_prefix("ref: ")?.parse::<RefName>().ok());
        let branch = named.filter(RefName::is_branch).ok_or_else(|| MirrorError::NoDefault(url()))?;
        Ok(Found { branch, commit, host_key: self.host_key()? })
    }

    /// What the server that was asked over SSH had shown.
    fn host_key(&self) -> Result<Option<KeyId>, MirrorError> {
        let Some((_, settings)) = &self.ssh else { return Ok(None) };
        let text = fs::read_to_string(&settings.seen).map_err(|source| file("read", &settings.seen, source))?;
        text.parse().map(Some).map_err(|error: NameError| self.said(error.to_string()))
    }

    fn said(&self, said: String) -> MirrorError {
        MirrorError::Git { url: self.args.url.clone(), said }
    }

    /// Runs git to its end and returns what it printed, or what its complaint means.
    fn run(&self, command: &mut Command) -> Result<Vec<u8>, MirrorError> {
        let mut child = command.spawn().map_err(|source| file("start", &self.args.git, source))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let complaint = std::thread::spawn(move || first_bytes(stderr, 64 << 10));
        let answer = first_bytes(stdout, MAX_ANSWER);
        let status = child.wait().map_err(|source| file("wait for", &self.args.git, source))?;
        let complaint = String::from_utf8_lossy(&complaint.join().unwrap_or_default()).into_owned();
        if status.success() { Ok(answer) } else { Err(self.meaning(&complaint)) }
    }

    fn meaning(&self, complaint: &str) -> MirrorError {
        let url = self.args.url.clone();
        let has = |texts: &[&str]| texts.iter().any(|text| complaint.contains(text));
        if let Some((host, settings)) = &self.ssh {
            let said = complaint.lines().find_map(|line| line.strip_prefix(git_ssh::COMPLAINT)).unwrap_or_default();
            if let Some(shown) = said.strip_prefix("host key ") {
                let known = settings.trusted.join(" or ");
                return MirrorError::HostKey { host: host.clone(), shown: shown.to_owned(), known };
            }
            if said == "key denied"
                || has(&["not found", "does not exist", "does not appear to be a git repository", "Permission denied"])
            {
                return MirrorError::KeyDenied(url);
            }
            if !said.is_empty() {
                return self.said(said.to_owned());
            }
        }
        if has(&[
            "could not read Username",
            "could not read Password",
            "Authentication failed",
            "not found",
            "error: 401",
            "error: 403",
        ]) {
            return MirrorError::Denied(url);
        }
        if has(&["error: 301", "error: 302", "error: 303", "error: 307", "error: 308", "from redirection"]) {
            return MirrorError::Moved(url);
        }
        if has(&["signal 25", "File too large", "File size limit"]) {
            return MirrorError::TooLarge(url);
        }
        let lines: Vec<&str> =
            complaint.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("hint:")).collect();
        let from = lines.len().saturating_sub(3);
        self.said(if lines.is_empty() { "it said nothing".to_owned() } else { lines[from..].join("; ") })
    }
}

/// The first bytes of a stream; the rest is read and dropped, so that its writer gets on.
fn first_bytes(stream: Option<impl Read>, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // What was read before an error is all there is.
        drop((&mut stream).take(limit).read_to_end(&mut bytes));
        drop(io::copy(&mut stream, &mut io::sink()));
    }
    bytes
}

/// The addresses of a host, all of which must be fit to be asked.
fn look_up(host: &str, port: u16, allowed: &[IpNet]) -> Result<Vec<IpAddr>, MirrorError> {
    let found = (host, port).to_socket_addrs().map_err(|source| MirrorError::Lookup { host: host.to_owned(), source })?;
    let addresses: Vec<IpAddr> = found.map(|address: SocketAddr| address.ip()).collect();
    match addresses.iter().find(|address| !reach::may(**address, allowed)) {
        Some(address) => Err(MirrorError::Private { host: host.to_owned(), address: *address }),
        None => Ok(addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(url: &str, allow: &[&str]) -> Args {
        Args {
            git: "/usr/bin/git".into(),
            into: "/nonexistent".into(),
            branch: None,
            known: None,
            seed: "/usr/bin/seed".into(),
            host_key: Vec::new(),
            allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
            most: 1 << 30,
            url: url.to_owned(),
        }
    }

    #[test]
    fn only_a_public_or_an_allowed_server_is_asked() {
        for (url, allowed, reason) in [
            ("https://127.0.0.1/a", &[][..], "which is not public"),
            ("https://169.254.169.254/latest", &["127.0.0.0/8"], "which is not public"),
            ("https://localhost:8443/a", &[], "which is not public"),
            ("file:///etc", &["127.0.0.0/8"], "no URL"),
            ("ssh://git@127.0.0.1/a", &[], "which is not public"),
            ("ssh://git@127.0.0.1/a", &["127.0.0.0/8"], "deploy key"),
            ("ssh://127.0.0.1/a", &["127.0.0.0/8"], "no URL"),
            ("https://ann@127.0.0.1/a", &["127.0.0.0/8"], "no URL"),
            ("/etc", &[], "no URL"),
            ("--upload-pack=id", &[], "no URL"),
        ] {
            let error = fetch(&args(url, allowed), None).expect_err(url).to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }

    #[test]
    fn a_token_is_in_no_argument_list_and_for_one_server_only() {
        let args = args("https://127.0.0.1:8443/a/b.git", &["127.0.0.0/8"]);
        let git = Git::new(&args, Some(&Shown::Token("s3cret".into()))).unwrap();
        let command = git.command(None);
        let word = data_encoding::BASE64.encode(b"x-access-token:s3cret");
        for argument in command.get_args() {
            let argument = argument.to_str().unwrap();
            assert!(!argument.contains("s3cret") && !argument.contains(&word), "{argument}");
        }
        let of = |name: &str| {
            let found = command.get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value);
            found.map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(of("GIT_CONFIG_KEY_0").as_deref(), Some("http.https://127.0.0.1:8443/.extraHeader"));
        assert_eq!(of("GIT_CONFIG_VALUE_0"), Some(format!("Authorization: Basic {word}")));
        assert_eq!(of("GIT_ALLOW_PROTOCOL").as_deref(), Some("https"));
    }

    #[test]
    fn what_git_complains_of_becomes_a_remedy() {
        let args = args("https://127.0.0.1/a", &["127.0.0.0/8"]);
        let git = Git::new(&args, None).unwrap();
        for (said, reason) in [
            ("fatal: could not read Username for 'https://github.com': terminal prompts disabled", "remote REPO token"),
            ("remote: Repository not found.\nfatal: repository 'x' not found", "does not exist"),
            ("fatal: unable to access 'x': The requested URL returned error: 301", "has moved"),
            ("error: index-pack died of signal 25\nfatal: index-pack failed", "larger than"),
            ("hint: x\nfatal: unable to access 'x': SSL certificate problem", "SSL certificate problem"),
            ("", "it said nothing"),
        ] {
            let error = git.meaning(said).to_string();
            assert!(error.contains(reason), "{said}: {error}");
        }
    }
}

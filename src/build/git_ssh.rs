//! What git starts in the place of `ssh` when a repository is read with a deploy key: a client that connects to an address which was looked
//! up and found fit, offers one key, and runs one command. It reads no configuration of ssh's, and takes the server for what it was when
//! it was seen first; github.com only for what GitHub publishes.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use russh::{
    ChannelMsg, Preferred, SshId,
    client::{self, AuthResult},
    keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// The variable that has [`Settings`] for whoever git starts. Nothing in it is secret.
pub const VARIABLE: &str = "SEED_GIT_SSH";

/// The host keys of github.com, as docs.github.com has them: Ed25519, ECDSA, RSA.
const GITHUB: [&str; 3] = [
    "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU",
    "SHA256:p2QAMXNIC1TJYWeIOttrVc98/R1BUFWu3/LiyKgUfQM",
    "SHA256:uNiVztksCsDhcc0u9e8BujQXVUpKZIDTMczCvj3tD2s",
];

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where to, as whom, and whom to expect there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub addresses: Vec<SocketAddr>,
    pub user: String,
    /// The file with the private key.
    pub key: PathBuf,
    /// Fingerprints of host keys; none: whichever it has.
    pub trusted: Vec<String>,
    /// Where the fingerprint of the server's is to be written.
    pub seen: PathBuf,
}

/// Why nothing came of it. Who started git reads these words: see [`super::mirror`].
#[derive(Debug, thiserror::Error)]
pub enum GitSshError {
    #[error("it cannot be started like this: it is for git")]
    Usage,
    #[error("could not connect to {address}: {source}")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("took too long")]
    Late,
    #[error("host key {0}")]
    HostKey(String),
    #[error("key denied")]
    Denied,
    #[error("the key of this host cannot be used: {0}")]
    Key(String),
    #[error("{0}")]
    Ssh(#[from] russh::Error),
    #[error("{0}")]
    File(#[from] std::io::Error),
}

/// What the host key of a server has to be one of, if that is known before it was ever seen.
pub(super) fn published(host: &str) -> Vec<String> {
    if host == "github.com" { GITHUB.map(str::to_owned).to_vec() } else { Vec::new() }
}

/// The line that the complaint of this program begins with.
pub(super) const COMPLAINT: &str = "seed-ssh: ";

/// Does what git asks with the last of `words`; returns the exit code.
pub fn main(settings: &str, words: &[String]) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match (runtime, serde_json::from_str(settings), words.last()) {
        (Ok(runtime), Ok(settings), Some(command)) => {
            let done = runtime.block_on(talk(settings, command));
            // Standard input may be waited for by a thread that nothing ends.
            runtime.shutdown_background();
            done
        }
        (Err(error), ..) => Err(error.into()),
        _ => Err(GitSshError::Usage),
    };
    done.unwrap_or_else(|error| {
        // There is nobody else to tell.
        drop(writeln!(std::io::stderr(), "{COMPLAINT}{error}"));
        255
    })
}

/// Takes a server for what it is known as.
struct Known {
    trusted: Vec<String>,
    seen: Arc<OnceLock<String>>,
}

impl client::Handler for Known {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else { return Ok(false) };
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let known = self.trusted.is_empty() || self.trusted.contains(&fingerprint);
        // A second exchange of keys shows the same one, or is refused.
        Ok(self.seen.get_or_init(|| fingerprint.clone()) == &fingerprint && known)
    }
}

fn config() -> client::Config {
    let mut preferred = Preferred::DEFAULT;
    let is_sha1 = |algorithm: &Algorithm| matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa);
    preferred.key = preferred.key.iter().filter(|algorithm| !is_sha1(algorithm)).cloned().collect();
    client::Config {
        client_id: SshId::Standard("SSH-2.0-seed".into()),
        preferred,
        inactivity_timeout: Some(Duration::from_secs(60)),
        ..client::Config::default()
    }
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, GitSshError> {
    let mut failed = GitSshError::Usage;
    for address in addresses {
        match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(source)) => failed = GitSshError::Connect { address: *address, source },
            Err(_) => failed = GitSshError::Late,
        }
    }
    Err(failed)
}

async fn talk(settings: Settings, command: &str) -> Result<u8, GitSshError> {
    let Settings { addresses, user, key, trusted, seen: told } = settings;
    let key = private_key(&key)?;
    let seen = Arc::new(OnceLock::new());
    let known = Known { trusted: trusted.clone(), seen: Arc::clone(&seen) };
    let stream = connect(&addresses).await?;
    let mut session = match tokio::time::timeout(PATIENCE, client::connect_stream(Arc::new(config()), stream, known)).await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => {
            let other = seen.get().filter(|key| !trusted.is_empty() && !trusted.contains(key));
            return Err(other.map_or(error.into(), |key| GitSshError::HostKey(key.clone())));
        }
        Err(_) => return Err(GitSshError::Late),
    };
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    let answer = tokio::time::timeout(PATIENCE, session.authenticate_publickey(user, key)).await;
    if !matches!(answer.map_err(|_| GitSshError::Late)??, AuthResult::Success) {
        return Err(GitSshError::Denied);
    }
    std::fs::write(told, seen.get().map_or("", String::as_str))?;
    let channel = session.channel_open_session().await?;
    if let Some(protocol) = std::env::var("GIT_PROTOCOL").ok().filter(|value| value.starts_with("version=")) {
        channel.set_env(false, "GIT_PROTOCOL", protocol).await?;
    }
    channel.exec(true, command).await?;
    let (mut read, write) = channel.split();
    tokio::spawn(async move {
        let mut to = write.make_writer();
        // Either side may go first; the other sees it.
        let _copied = tokio::io::copy(&mut tokio::io::stdin(), &mut to).await;
        let _told = write.eof().await;
    });
    let (mut out, mut code, mut complaints) = (tokio::io::stdout(), None, Complaints::default());
    while let Some(message) = read.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                out.write_all(&data).await?;
                out.flush().await?;
            }
            ChannelMsg::ExtendedData { data, .. } => std::io::stderr().write_all(&complaints.marked(&data))?,
            ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
            ChannelMsg::Failure => return Err(GitSshError::Denied),
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))
}

/// What a server says beside its answer. Each line is marked as its own, or it could speak as this program does.
#[derive(Default)]
struct Complaints {
    in_line: bool,
}

impl Complaints {
    fn marked(&mut self, data: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(data.len() + 16);
        for byte in data {
            if !std::mem::replace(&mut self.in_line, !matches!(byte, b'\n' | b'\r')) {
                text.extend_from_slice(b"remote: ");
            }
            text.push(*byte);
        }
        text
    }
}

fn private_key(path: &Path) -> Result<PrivateKey, GitSshError> {
    PrivateKey::from_openssh(std::fs::read_to_string(path)?).map_err(|error| GitSshError::Key(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_cannot_speak_as_this_program_does() {
        let mut complaints = Complaints::default();
        let said: Vec<u8> = [&b"seed-ssh: host key SHA256:evil\nse"[..], b"ed-ssh: x\r", b"seed-ssh: y\n"]
            .into_iter()
            .flat_map(|data| complaints.marked(data))
            .collect();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said, "remote: seed-ssh: host key SHA256:evil\nremote: seed-ssh: x\rremote: seed-ssh: y\n");
        assert!(said.lines().all(|line| !line.starts_with(COMPLAINT)));
    }

    #[test]
    fn github_is_known_by_what_it_publishes() {
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
        let key = russh::keys::PublicKey::from_openssh(line).unwrap();
        assert_eq!(published("github.com")[0], key.fingerprint(HashAlg::Sha256).to_string());
        assert!(published("github.com.example.org").is_empty() && published("git.example.org").is_empty());
        for fingerprint in GITHUB {
            assert!(fingerprint.parse::<crate::spec::name::KeyId>().is_ok(), "{fingerprint}");
        }
    }
}

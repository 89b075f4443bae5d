//! The SSH side of a forge: real git behind a server that takes the deploy keys it was told of.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
};

use russh::{
    Channel, ChannelId, ChannelMsg,
    keys::{Algorithm, HashAlg, PrivateKey, PublicKey, key::safe_rng},
    server::{self, Auth, ChannelOpenHandle, Msg, Session, VerifiedPublicKey},
};
use tokio::{io::AsyncWriteExt, net::TcpListener, process::Command};

#[derive(Clone)]
pub struct SshForge {
    pub url: String,
    keeper: Arc<Mutex<Keeper>>,
}

struct Keeper {
    allowed: Vec<String>,
    host_key: PrivateKey,
}

fn new_key() -> PrivateKey {
    PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap()
}

impl SshForge {
    /// Serves the repositories below `root` on loopback.
    pub fn new(root: &Path) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("ssh://git@{}", listener.local_addr().unwrap());
        let forge = Self { url, keeper: Arc::new(Mutex::new(Keeper { allowed: Vec::new(), host_key: new_key() })) };
        let (root, keeper) = (root.to_owned(), Arc::clone(&forge.keeper));
        tokio::spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let key = keeper.lock().unwrap().host_key.clone();
                let config = server::Config { keys: vec![key], ..server::Config::default() };
                let visitor = Visitor { root: root.clone(), keeper: Arc::clone(&keeper), channels: BTreeMap::new() };
                tokio::spawn(async move {
                    // A client may leave as it likes.
                    if let Ok(session) = server::run_stream(Arc::new(config), stream, visitor).await {
                        drop(session.await);
                    }
                });
            }
        });
        forge
    }

    /// Takes a deploy key from now on.
    pub fn allow(&self, line: &str) {
        let key = PublicKey::from_openssh(line).unwrap();
        self.keeper.lock().unwrap().allowed.push(key.fingerprint(HashAlg::Sha256).to_string());
    }

    /// Has another host key from now on; its fingerprint.
    pub fn another_key(&self) -> String {
        let key = new_key();
        let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
        self.keeper.lock().unwrap().host_key = key;
        fingerprint
    }

    /// The fingerprint of its host key.
    pub fn host_key(&self) -> String {
        self.keeper.lock().unwrap().host_key.public_key().fingerprint(HashAlg::Sha256).to_string()
    }
}

struct Visitor {
    root: PathBuf,
    keeper: Arc<Mutex<Keeper>>,
    channels: BTreeMap<u32, Channel<Msg>>,
}

impl server::Handler for Visitor {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let fingerprint = key.public_key.fingerprint(HashAlg::Sha256).to_string();
        let known = user == "git" && self.keeper.lock().unwrap().allowed.contains(&fingerprint);
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.insert(channel.id().into(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, line: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        let line = String::from_utf8(line.to_vec()).unwrap();
        let path = line.strip_prefix("git-upload-pack '/").and_then(|rest| rest.strip_suffix('\''));
        let (Some(path), Some(channel)) = (path, self.channels.remove(&id.into())) else { return session.channel_failure(id) };
        session.channel_success(id)?;
        tokio::spawn(serve(self.root.join(path), channel));
        Ok(())
    }
}

async fn serve(repository: PathBuf, channel: Channel<Msg>) {
    let mut command = Command::new("git");
    command.arg("upload-pack").arg(repository).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut read, write) = channel.split();
    tokio::spawn(async move {
        while let Some(message) = read.wait().await {
            match message {
                ChannelMsg::Data { data } if to.write_all(&data).await.is_ok() => {}
                ChannelMsg::Data { .. } | ChannelMsg::Eof | ChannelMsg::Close => break,
                _ => {}
            }
        }
    });
    let mut out = write.make_writer();
    // A client may leave as it likes.
    drop(tokio::io::copy(&mut from, &mut out).await);
    drop(out.flush().await);
    let code = child.wait().await.unwrap().code().unwrap_or(255);
    drop(write.exit_status(code as u32).await);
    drop(write.eof().await);
    drop(write.close().await);
}

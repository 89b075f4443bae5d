//! The SSH door. Any public key opens it: the key is who you are. There is no password, no forwarding, no terminal worth the name, and
//! what a client asks to run is parsed by us ([`super::command`]), never by a shell.
//!
//! Each channel has a task that always takes what the client sends: russh stops reading the whole connection while a channel's queue
//! is full, so a command that waits for its client to read must not be what empties the queue.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use russh::{
    Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, MethodKind, Preferred, Pty, SshId,
    keys::{Algorithm, HashAlg, PrivateKey},
    server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    Doors,
    command::{self, Command},
    crowd::{Crowd, Place},
    git::{self, Outlet},
    receive::Push,
    shell::{self, Look},
};
use crate::spec::{caller::Caller, name::KeyId};

/// Channels of one connection at a time.
const MAX_CHANNELS: u32 = 10;
/// A connection without a channel is closed after this.
const UNUSED: Duration = Duration::from_secs(60);

/// What russh is to do and to leave.
pub(super) fn config(key: PrivateKey) -> server::Config {
    let mut preferred = Preferred::DEFAULT;
    // SHA-1 is not taken, and nothing is compressed: git's packs are already.
    preferred.key = preferred.key.iter().filter(|algorithm| !is_sha1(algorithm)).cloned().collect();
    preferred.compression = vec![russh::compression::NONE].into();
    server::Config {
        server_id: SshId::Standard("SSH-2.0-seed".into()),
        methods: (&[MethodKind::PublicKey][..]).into(),
        auth_rejection_time: Duration::from_secs(1),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        preferred,
        max_auth_attempts: 10,
        // Answers to keep-alives count as activity: this is for a peer that takes nothing.
        inactivity_timeout: Some(Duration::from_secs(600)),
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 4,
        nodelay: true,
        ..server::Config::default()
    }
}

fn is_sha1(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa)
}

/// Takes connections until the doors close.
pub(super) async fn listen(doors: Arc<Doors>, config: Arc<server::Config>, crowd: Arc<Crowd>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = doors.stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(connection(Arc::clone(&doors), Arc::clone(&config), Arc::clone(&crowd), stream, peer));
            }
            Err(error) => {
                // Out of descriptors, most likely: give some time to come back.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(doors: Arc<Doors>, config: Arc<server::Config>, crowd: Arc<Crowd>, stream: TcpStream, peer: SocketAddr) {
    let close = CancellationToken::new();
    let proved = CancellationToken::new();
    let channels = Arc::new(AtomicU32::new(0));
    let port = doors.settings.ssh_port.unwrap_or_else(|| stream.local_addr().map_or(22, |address| address.port()));
    let domain = &doors.settings.domain;
    let connection = Connection {
        ssh: if port == 22 { format!("ssh {domain}") } else { format!("ssh -p {port} {domain}") },
        place: crowd.enter(peer.ip(), close.clone()),
        proved: proved.clone(),
        channels: Arc::clone(&channels),
        peer,
        who: None,
        waiting: BTreeMap::new(),
        doors: Arc::clone(&doors),
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    // The session runs in a task of its own, which ends when its stream fails: so the stream is what we close.
    let gate = Gate::new(stream, &close);
    let session = async {
        match server::run_stream(config, gate, connection).await {
            Ok(session) => session.await,
            Err(error) => Err(error),
        }
    };
    let limits = async {
        if tokio::time::timeout(doors.settings.auth_timeout, proved.cancelled()).await.is_err() {
            tracing::debug!(%peer, "took too long to prove a key");
        } else {
            let mut unused = 0;
            while unused < 2 {
                tokio::time::sleep(UNUSED / 2).await;
                unused = if channels.load(Ordering::Relaxed) == 0 { unused + 1 } else { 0 };
            }
        }
        close.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = session => if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection ended");
        },
        () = limits => {}
    }
}

/// One connection.
struct Connection {
    doors: Arc<Doors>,
    /// How this client reaches our shell.
    ssh: String,
    place: Place,
    /// Cancelled when a key is proved.
    proved: CancellationToken,
    channels: Arc<AtomicU32>,
    peer: SocketAddr,
    who: Option<Caller>,
    /// Channels that have not asked for anything yet.
    waiting: BTreeMap<u32, Waiting>,
}

struct Waiting {
    channel: Channel<Msg>,
    open: OpenChannel,
    /// The terminal's name, if one was asked for.
    terminal: Option<String>,
    /// A checked value of GIT_PROTOCOL.
    protocol: Option<String>,
}

/// Counts a channel while it lives.
struct OpenChannel(Arc<AtomicU32>);

impl Drop for OpenChannel {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn fingerprint(key: &russh::keys::PublicKey) -> Option<KeyId> {
    key.fingerprint(HashAlg::Sha256).to_string().parse().ok()
}

/// `version=2`, and what git may add to it.
fn git_protocol(value: &str) -> bool {
    value.len() <= 64
        && value.starts_with("version=")
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"=:-.".contains(&b))
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(if is_sha1(offer.algorithm) { Auth::reject() } else { Auth::Accept })
    }

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        if is_sha1(key.algorithm) {
            return Ok(Auth::reject());
        }
        self.who = fingerprint(key.public_key).map(|key| Caller::new(key, self.peer.ip()));
        Ok(if self.who.is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        if !self.place.welcome() {
            tracing::warn!("too many connections from one neighbourhood");
            return Err(russh::Error::Disconnect);
        }
        self.proved.cancel();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let open = OpenChannel(Arc::clone(&self.channels));
        if self.channels.fetch_add(1, Ordering::Relaxed) >= MAX_CHANNELS {
            // Dropping the handle refuses the channel.
            return Ok(());
        }
        self.waiting.insert(channel.id().into(), Waiting { channel, open, terminal: None, protocol: None });
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.waiting.remove(&channel.into());
        Ok(())
    }

    async fn env_request(&mut self, channel: ChannelId, name: &str, value: &str, session: &mut Session) -> Result<(), Self::Error> {
        match self.waiting.get_mut(&channel.into()) {
            Some(waiting) if name == "GIT_PROTOCOL" && git_protocol(value) => {
                waiting.protocol = Some(value.to_owned());
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's")]
    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(waiting) = self.waiting.get_mut(&channel.into()) {
            waiting.terminal = Some(term.chars().take(40).collect());
        }
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.start(channel, b"", session)
    }

    async fn exec_request(&mut self, channel: ChannelId, line: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        self.start(channel, line, session)
    }

    async fn subsystem_request(&mut self, channel: ChannelId, _name: &str, session: &mut Session) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn agent_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<bool, Self::Error> {
        session.channel_failure(channel)?;
        Ok(false)
    }
}

impl Connection {
    /// Starts what a channel asks for, in a task of its own.
    fn start(&mut self, channel: ChannelId, line: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        let (Some(waiting), Some(who)) = (self.waiting.remove(&channel.into()), self.who.clone()) else {
            return session.channel_failure(channel);
        };
        session.channel_success(channel)?;
        let (doors, ssh, line) = (Arc::clone(&self.doors), self.ssh.clone(), line.to_vec());
        tokio::spawn(async move {
            let Waiting { channel, open, terminal, protocol } = waiting;
            let (read, write) = channel.split();
            let gone = CancellationToken::new();
            let (to_command, from_client) = tokio::io::duplex(64 << 10);
            tokio::spawn(drain(read, to_command, gone.clone(), terminal.is_some()));
            let asked = Asked { doors, who, ssh, protocol, terminal };
            let code = asked.serve(&line, from_client, &write, gone).await;
            // If the client is gone, there is nobody to tell.
            drop(write.exit_status(code.into()).await);
            drop(write.eof().await);
            drop(write.close().await);
            drop(open);
        });
        Ok(())
    }
}

/// Takes all that a client sends on a channel, hands it to the command as long as that reads, and tells when the client is gone.
async fn drain(mut from: ChannelReadHalf, command: DuplexStream, gone: CancellationToken, terminal: bool) {
    let mut command = Some(command);
    while let Some(message) = from.wait().await {
        match message {
            // With a terminal, Ctrl-C and Ctrl-D are only bytes.
            ChannelMsg::Data { data } if terminal && data.iter().any(|byte| matches!(byte, 3 | 4)) => gone.cancel(),
            ChannelMsg::Data { data } => {
                if let Some(to) = &mut command
                    && to.write_all(&data).await.is_err()
                {
                    command = None;
                }
            }
            ChannelMsg::Eof => command = None,
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    gone.cancel();
}

/// One command that a client asks for.
struct Asked {
    doors: Arc<Doors>,
    who: Caller,
    ssh: String,
    protocol: Option<String>,
    terminal: Option<String>,
}

impl Asked {
    async fn serve(self, line: &[u8], input: DuplexStream, write: &ChannelWriteHalf<Msg>, gone: CancellationToken) -> u8 {
        let command = match command::parse(line) {
            Ok(command) => command,
            Err(error) => {
                let mut errors = Outlet::new(write.make_writer_ext(Some(1)), gone);
                errors.send(format!("error: {error}\n").as_bytes()).await;
                return 2;
            }
        };
        // Words of a verb may be secret (an invite code): only the first is written down.
        tracing::info!(who = %self.who, command = %command.summary(), "asked");
        let (doors, who) = (&self.doors, &self.who);
        match command {
            Command::ReceivePack(name) => {
                let push = Push { doors: Arc::clone(doors), who: who.clone(), name, ssh: self.ssh };
                push.serve(input, Outlet::new(write.make_writer(), gone)).await
            }
            Command::UploadPack(name) => {
                let out = Outlet::new(write.make_writer(), gone);
                git::serve_read(doors, who, &name, git::Read::UploadPack, self.protocol.as_deref(), input, out).await
            }
            Command::UploadArchive(name) => {
                let out = Outlet::new(write.make_writer(), gone);
                git::serve_read(doors, who, &name, git::Read::UploadArchive, None, input, out).await
            }
            Command::Verb(words) => {
                // No verb reads; what the client sends is dropped.
                drop(input);
                let terminal = self.terminal.is_some();
                let look = Look { terminal, colour: self.terminal.is_some_and(|term| !term.is_empty() && term != "dumb") };
                let out = Lines { to: write.make_writer(), terminal, owed: false };
                let err = Lines { to: write.make_writer_ext(Some(1)), terminal, owed: false };
                tokio::select! {
                    code = shell::run(&words, Some(who), &doors.agent, out, err, look) => code,
                    () = gone.cancelled() => 130,
                    () = doors.stopping.cancelled() => 5,
                }
            }
        }
    }
}

/// Text as a terminal in raw mode wants it: lines end in CR LF there, in LF elsewhere.
struct Lines<W> {
    to: W,
    terminal: bool,
    /// A CR was written, its LF was not.
    owed: bool,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Lines<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if !self.terminal || bytes.is_empty() {
            return Pin::new(&mut self.to).poll_write(cx, bytes);
        }
        if bytes[0] != b'\n' {
            let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
            return Pin::new(&mut self.to).poll_write(cx, &bytes[..end]);
        }
        if !self.owed {
            match ready!(Pin::new(&mut self.to).poll_write(cx, b"\r\n"))? {
                0 => return Poll::Ready(Ok(0)),
                1 => self.owed = true,
                _ => return Poll::Ready(Ok(1)),
            }
        }
        let written = ready!(Pin::new(&mut self.to).poll_write(cx, b"\n"))?;
        self.owed = false;
        Poll::Ready(Ok(written))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(cx)
    }
}

/// A stream that we can close from outside.
struct Gate {
    stream: TcpStream,
    reading: Pin<Box<WaitForCancellationFutureOwned>>,
    writing: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Gate {
    fn new(stream: TcpStream, close: &CancellationToken) -> Self {
        let wait = || Box::pin(close.clone().cancelled_owned());
        Self { stream, reading: wait(), writing: wait() }
    }
}

fn closed<T>() -> Poll<std::io::Result<T>> {
    Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()))
}

impl AsyncRead for Gate {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.reading.as_mut().poll(cx).is_ready() {
            return closed();
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.writing.as_mut().poll(cx).is_ready() {
            return closed();
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

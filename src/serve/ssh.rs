//! The SSH door. Any public key opens it: the key is who you are. There is no password, and what a client asks to run is parsed by us
//! ([`super::command`]), never by a shell of this host; what it wants of its own instances is passed on to them ([`super::guest`]).
//! No agent and no display is forwarded, no port of this host's or of the client's, and nothing of its environment is taken.
//!
//! Each channel has a task that always takes what the client sends: [`flow`] says why.

mod drain;
pub mod flow;
mod forwards;
mod inside;
mod lines;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use russh::{
    Channel, ChannelId, ChannelWriteHalf, MethodKind, Preferred, Pty, SshId,
    keys::{Algorithm, HashAlg, PrivateKey},
    server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use self::{
    flow::{Gate, Intake, Tide, WINDOW},
    forwards::{Forward, Forwards},
    inside::Visit,
    lines::Lines,
};
use super::{
    Doors,
    command::{self, Command},
    crowd::{Crowd, Place},
    git::{self, Outlet},
    guest::Terminal,
    receive::Push,
    relay::{Client, Ended},
    shell::{self, Asking, Look},
};
use crate::spec::{caller::Caller, name::KeyId};

/// Channels of one connection at a time.
const MAX_CHANNELS: u32 = 10;
/// Forwarded ports' connections of one connection at a time.
const MAX_FORWARDED: u32 = 64;
/// A connection without a channel is closed after this, unless it has forwarded a port: `ssh -N -L` waits for its first use.
const UNUSED: Duration = Duration::from_secs(600);

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
        window_size: WINDOW,
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
    let (channels, forwarded) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (tide, stays) = (Arc::new(Tide::default()), Arc::new(AtomicBool::new(false)));
    let port = doors.settings.ssh_port.unwrap_or_else(|| stream.local_addr().map_or(22, |address| address.port()));
    let domain = &doors.settings.domain;
    let connection = Connection {
        ssh: if port == 22 { format!("ssh {domain}") } else { format!("ssh -p {port} {domain}") },
        place: crowd.enter(peer.ip(), close.clone()),
        proved: proved.clone(),
        channels: Arc::clone(&channels),
        forwarded: Arc::clone(&forwarded),
        forwards: Arc::default(),
        stays: Arc::clone(&stays),
        tide: Arc::clone(&tide),
        peer,
        who: None,
        waiting: BTreeMap::new(),
        doors: Arc::clone(&doors),
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let gate = Gate::new(stream, tide, &close);
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
                let used = channels.load(Ordering::Relaxed) + forwarded.load(Ordering::Relaxed) > 0;
                unused = if used || stays.load(Ordering::Relaxed) { 0 } else { unused + 1 };
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
    forwarded: Arc<AtomicU32>,
    forwards: Arc<Forwards>,
    /// Set once a port was forwarded.
    stays: Arc<AtomicBool>,
    /// What the client sent and nobody has used yet.
    tide: Arc<Tide>,
    peer: SocketAddr,
    who: Option<Caller>,
    /// Channels that have not asked for anything yet.
    waiting: BTreeMap<u32, Waiting>,
}

struct Waiting {
    channel: Channel<Msg>,
    open: OpenChannel,
    terminal: Option<Terminal>,
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
pub(super) fn git_protocol(value: &str) -> bool {
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
        let line = key.public_key.to_openssh().unwrap_or_default();
        self.who = fingerprint(key.public_key).map(|key| Caller::new(key, self.peer.ip()).with_line(line));
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

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _from: &str,
        _from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let open = OpenChannel(Arc::clone(&self.forwarded));
        let crowded = self.forwarded.fetch_add(1, Ordering::Relaxed) >= MAX_FORWARDED;
        let Some(who) = self.who.clone().filter(|_| !crowded) else {
            // Dropping the handle refuses the channel.
            return Ok(());
        };
        let (doors, forwards, tide) = (Arc::clone(&self.doors), Arc::clone(&self.forwards), Arc::clone(&self.tide));
        let (forward, stays) = (Forward { doors, who, forwards, tide, host: host.to_owned(), port }, Arc::clone(&self.stays));
        tokio::spawn(async move {
            forward.run(channel, reply, &stays).await;
            drop(open);
        });
        Ok(())
    }

    fn adjust_window(&mut self, _channel: ChannelId, _current: u32) -> u32 {
        self.tide.window()
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
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(waiting) = self.waiting.get_mut(&channel.into()) {
            let name = term.chars().filter(|c| c.is_ascii_graphic()).take(40).collect();
            waiting.terminal = Some(Terminal { name, size: [columns, rows, width, height], modes: modes.to_vec() });
        }
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.start(channel, Wish::Line(Vec::new()), session)
    }

    async fn exec_request(&mut self, channel: ChannelId, line: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        self.start(channel, Wish::Line(line.to_vec()), session)
    }

    async fn subsystem_request(&mut self, channel: ChannelId, name: &str, session: &mut Session) -> Result<(), Self::Error> {
        if name == "sftp" { self.start(channel, Wish::Sftp, session) } else { session.channel_failure(channel) }
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
    fn start(&mut self, channel: ChannelId, wish: Wish, session: &mut Session) -> Result<(), russh::Error> {
        let (Some(waiting), Some(who)) = (self.waiting.remove(&channel.into()), self.who.clone()) else {
            return session.channel_failure(channel);
        };
        session.channel_success(channel)?;
        let (doors, ssh, handle) = (Arc::clone(&self.doors), self.ssh.clone(), session.handle());
        let (inlet, input) = self.tide.channel();
        tokio::spawn(async move {
            let Waiting { channel: opened, open, terminal, protocol } = waiting;
            let (read, write) = opened.split();
            let command = match wish {
                Wish::Line(line) => command::parse(&line).map(Some),
                Wish::Sftp => Ok(None),
            };
            let enters = matches!(command, Ok(None | Some(Command::Enter(..))));
            let gone = CancellationToken::new();
            let (controls, controlled) = mpsc::channel(64);
            tokio::spawn(drain::drain(read, inlet, controls, gone.clone(), terminal.is_some() && !enters));
            let stalled = doors.settings.stalled;
            let asked = Asked { doors, who, ssh, protocol, terminal };
            let client = Client { input, controls: controlled, write: &write, gone, stalled };
            let ended = match command {
                Ok(Some(Command::Enter(instance, inside))) => {
                    tracing::info!(who = %asked.who, instance, "asked to enter");
                    let Asked { doors, who, terminal, .. } = &asked;
                    Visit { doors, who, instance, inside, terminal: terminal.clone() }.run(client).await
                }
                Ok(None) => {
                    tracing::info!(who = %asked.who, "asked to copy");
                    inside::copy(&asked.doors, &asked.who, client).await
                }
                Ok(Some(command)) => Ended::Code(asked.serve(command, client.input, &write, client.gone).await.into()),
                Err(error) => {
                    inside::complain(&write, asked.terminal.is_some(), &error.to_string()).await;
                    Ended::Code(2)
                }
            };
            // If the client is gone, there is nobody to tell.
            match ended {
                Ended::Code(code) => drop(write.exit_status(code).await),
                Ended::Signal { name, core } => {
                    let _told = handle.exit_signal_request(channel, name, core, String::new(), String::new()).await;
                }
                Ended::Lost => {}
            }
            drop(write.eof().await);
            drop(write.close().await);
            drop(open);
        });
        Ok(())
    }
}

/// What a channel asks for.
enum Wish {
    /// To run this.
    Line(Vec<u8>),
    /// To copy files.
    Sftp,
}

/// One command that a client asks for.
struct Asked {
    doors: Arc<Doors>,
    who: Caller,
    ssh: String,
    protocol: Option<String>,
    terminal: Option<Terminal>,
}

impl Asked {
    async fn serve(self, command: Command, input: Intake, write: &ChannelWriteHalf<Msg>, gone: CancellationToken) -> u8 {
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
            // Served without this: it says more of its end than a code.
            Command::Enter(..) => 1,
            Command::Verb(words) => {
                // What the client sends is dropped, so that it is heard when it hangs up.
                let input: Box<dyn tokio::io::AsyncRead + Unpin + Send + Sync> = if shell::reads(&words, self.terminal.is_some()) {
                    Box::new(input)
                } else {
                    drop(input);
                    Box::new(tokio::io::empty())
                };
                let terminal = self.terminal.is_some();
                let columns = self.terminal.as_ref().map_or(0, |terminal| usize::try_from(terminal.size[0]).unwrap_or(0));
                let colour = self.terminal.is_some_and(|term| !term.name.is_empty() && term.name != "dumb");
                // The client's terminal is raw: what is typed is shown by whoever reads it.
                let asking = if terminal { Asking::Keys } else { Asking::Nobody };
                let look = Look { terminal, colour, columns, asking };
                let out = Lines::new(write.make_writer(), terminal);
                let err = Lines::new(write.make_writer_ext(Some(1)), terminal);
                tokio::select! {
                    code = shell::run(&words, Some(who), &doors.agent, input, out, err, look) => code,
                    () = gone.cancelled() => 130,
                    () = doors.stopping.cancelled() => 5,
                }
            }
        }
    }
}

//! Inside of a guest: the doors are a client of its sshd, over a stream and with a certificate that the agent gave them for this once.
//!
//! The guest is its tenant's, and not trusted: it can say what it likes to its own tenant, can open no channel to us, and what it sends
//! is bounded as what a client sends is.

use std::{sync::Arc, time::Duration};

use russh::{
    Channel, Preferred, Pty, SshId,
    client::{self, AuthResult, Handle, Msg},
    kex,
    keys::{Algorithm, Certificate, PrivateKey, PublicKeyOrCertificate, key::safe_rng},
};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    ask::{self, Asked},
    command::Inside,
    ssh::flow::{Gate, Tide},
};
use crate::bus::{
    Refusal, SeedProxy,
    guest::{Act, GuestProxy, Way},
};

/// How long a guest may take to let us in once its sshd is reached. An emulated one is slow.
const PATIENCE: Duration = Duration::from_secs(45);
/// What a guest may send before it has to be told to go on. Little, since the way is short; and less than the 32 KiB from which on Linux
/// sends vsock packets in pieces, which vhost-device-vsock 0.3 drops.
const WINDOW: u32 = 24 << 10;
/// More of what is going to be done is not put on record.
const MAX_RECORD: usize = 4 << 10;

/// A terminal that somebody has.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// `xterm-256color`
    pub name: String,
    /// Columns, rows, and the same in pixels.
    pub size: [u32; 4],
    pub modes: Vec<(Pty, u32)>,
}

/// A way into one guest. Whoever drops it leaves.
pub struct Guest {
    session: Handle<Trusting>,
    _close: DropGuard,
}

/// What we think of the guest's sshd.
struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        // Who is there was settled before: the agent opened the stream to this very virtual machine. Its host key is of its own making,
        // and a new one at each boot.
        Ok(true)
    }

    // A guest has no business with its visitor's other channels: dropping the handle refuses.
    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _address: &str,
        _port: u32,
        _from: &str,
        _from_port: u32,
        _reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }
    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _path: &str,
        _reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }
    async fn server_channel_open_agent_forward(
        &mut self,
        _channel: Channel<Msg>,
        _reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }
}

fn config() -> client::Config {
    client::Config {
        client_id: SshId::Standard("SSH-2.0-seed".into()),
        window_size: WINDOW,
        // Nobody listens between this process and the virtual machine: what is quickest will do.
        preferred: Preferred { kex: vec![kex::CURVE25519].into(), ..Preferred::DEFAULT },
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 4,
        ..client::Config::default()
    }
}

/// Gets `who` into the instance that they call `instance`, to do `act`; `what` says in words what that is.
pub async fn enter(agent: &SeedProxy<'_>, who: &str, instance: &str, act: Act, what: &str) -> Asked<Guest> {
    let instance = ask::text(instance)?;
    let failed = |error: &dyn std::fmt::Display| Refusal::Failed(format!("could not get into {instance}: {error}"));
    let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).map_err(|error| failed(&error))?;
    let public = key.public_key().to_openssh().map_err(|error| failed(&error))?;
    let bus = agent.inner().connection();
    let proxy = GuestProxy::builder(bus).cache_properties(zbus::proxy::CacheProperties::No).build().await?;
    let (stream, way) = ask::within(proxy.enter(who, instance, &public, act.name(), &record(what))).await?;
    let way: Way = serde_json::from_str(&way).map_err(|error| failed(&error))?;
    let certificate = Certificate::from_openssh(&way.certificate).map_err(|error| failed(&error))?;
    let stream = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(stream));
    let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)).map_err(|error| failed(&error))?;
    let close = CancellationToken::new();
    let gate = Gate::new(stream, Arc::new(Tide::default()), &close);
    let close = close.drop_guard();
    let shake = async {
        let mut session = client::connect_stream(Arc::new(config()), gate, Trusting).await?;
        let answer = session.authenticate_openssh_cert(way.user, Arc::new(key), certificate).await?;
        Ok::<_, russh::Error>((session, answer))
    };
    match tokio::time::timeout(PATIENCE, shake).await {
        Ok(Ok((session, AuthResult::Success))) => Ok(Guest { session, _close: close }),
        Ok(Ok((_, AuthResult::Failure { .. }))) => Err(failed(
            &"its sshd does not take this host's certificate: it may have been booted before this host could enter guests \
              (restart it), have its own clock wrong, or forbid root to log in",
        )),
        // In words of SSH's own this would be "Disconnected".
        Ok(Err(russh::Error::Disconnect | russh::Error::HUP)) => {
            Err(failed(&"its sshd hung up before anybody was let in: `logs` of it says why (it may be booting still: try again)"))
        }
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(failed(&format!("its sshd did not answer within {} s", PATIENCE.as_secs()))),
    }
}

/// Gets `who` into an instance, and begins there what they want.
pub async fn visit(
    agent: &SeedProxy<'_>,
    who: &str,
    instance: &str,
    inside: &Inside,
    terminal: Option<&Terminal>,
) -> Asked<(Guest, Channel<Msg>)> {
    let (act, what) = match inside {
        Inside::Exec(line) => (Act::Exec, String::from_utf8_lossy(line).into_owned()),
        Inside::Shell => (Act::Exec, "a shell".to_owned()),
        Inside::Scp(line) => (Act::Copy, format!("scp {line}")),
        Inside::Port(port) => (Act::Forward, format!("port {port}")),
    };
    let guest = enter(agent, who, instance, act, &what).await?;
    match guest.begin(inside, terminal).await {
        Ok(channel) => Ok((guest, channel)),
        Err(russh::Error::ChannelOpenFailure(_)) if act == Act::Forward => {
            Err(Refusal::Failed(format!("nothing in {instance} listens on {what}")))
        }
        Err(error) => Err(Refusal::Failed(format!("{instance} did not do it: {error}"))),
    }
}

/// The beginning of a text.
fn record(what: &str) -> String {
    let end = (0..=MAX_RECORD.min(what.len())).rev().find(|at| what.is_char_boundary(*at)).unwrap_or(0);
    // The bus takes no text with a NUL in it.
    what[..end].replace('\0', "\u{fffd}")
}

impl Guest {
    /// A channel for a command, a shell or a subsystem.
    pub async fn session(&self) -> Result<Channel<Msg>, russh::Error> {
        self.session.channel_open_session().await
    }

    async fn begin(&self, inside: &Inside, terminal: Option<&Terminal>) -> Result<Channel<Msg>, russh::Error> {
        if let Inside::Port(port) = inside {
            return self.port(*port).await;
        }
        let channel = self.session().await?;
        if let Some(Terminal { name, size: [columns, rows, width, height], modes }) = terminal {
            channel.request_pty(false, name, *columns, *rows, *width, *height, modes).await?;
        }
        match inside {
            Inside::Exec(line) => channel.exec(true, line.clone()).await?,
            Inside::Scp(line) => channel.exec(true, format!("scp {line}")).await?,
            Inside::Shell | Inside::Port(_) => channel.request_shell(true).await?,
        }
        Ok(channel)
    }

    /// A channel to a TCP port of the guest's own.
    pub async fn port(&self, port: u16) -> Result<Channel<Msg>, russh::Error> {
        let open = |address: &'static str| self.session.channel_open_direct_tcpip(address, port.into(), "127.0.0.1", 0);
        match open("127.0.0.1").await {
            Err(russh::Error::ChannelOpenFailure(_)) => open("::1").await,
            opened => opened,
        }
    }

    /// Whether the guest has hung up.
    pub fn is_closed(&self) -> bool {
        self.session.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_bounded_text() {
        assert_eq!(record("a\0b"), "a\u{fffd}b");
        let long = record(&"é".repeat(MAX_RECORD));
        assert_eq!(long.len(), MAX_RECORD);
        assert_eq!(record(&format!("x{}", "é".repeat(MAX_RECORD))).len(), MAX_RECORD - 1);
    }
}

//! The DNS door. To everybody: the zone, from the agent's last word, with authority, and nothing else. To an instance, known by its
//! source address, which the firewall pins to its tap: also bare names of its own namespace, and the rest of the world by way of the
//! host's resolvers.

mod answer;
mod forward;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use hickory_proto::rr::Name;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    time::timeout,
};

use self::answer::{Answer, Transport};
use super::ask;
use crate::bus::{SeedProxy, Zone};

/// TCP connections at a time.
const CONNECTIONS: usize = 256;
/// A connection without a question is closed after this.
const IDLE: Duration = Duration::from_secs(10);
/// Questions under way to the host's resolvers, in all and for one instance.
const FORWARDS: usize = 512;
const FORWARDS_OF_ONE: usize = 64;

/// A zone, and what follows from it.
#[derive(Debug, Clone, Default)]
pub struct View {
    zone: Zone,
    /// `None` until the agent has spoken.
    domain: Option<Name>,
    /// The namespace that an address belongs to.
    owners: BTreeMap<IpAddr, String>,
}

impl View {
    /// Looks at a zone.
    pub fn new(zone: Zone) -> Self {
        let mut owners = BTreeMap::new();
        for (namespace, instances) in &zone.namespaces {
            for entry in instances.values() {
                owners.insert(IpAddr::V4(entry.ipv4), namespace.clone());
                owners.insert(IpAddr::V6(entry.ipv6), namespace.clone());
            }
        }
        let domain = Name::from_ascii(&zone.domain).ok().filter(|_| !zone.domain.is_empty()).map(|mut name| {
            name.set_fqdn(true);
            name.to_lowercase()
        });
        Self { zone, domain, owners }
    }

    /// What a CA that looks at this name is answered with.
    pub(super) fn challenge(&self, name: &str) -> &[String] {
        self.zone.challenges.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Keeps the zone as the agent says. Returns when the bus is gone.
pub async fn keep_zone(agent: SeedProxy<'static>, view: watch::Sender<Arc<View>>) -> zbus::Result<()> {
    let mut changes = agent.receive_zone_changed().await?;
    let mut owners = agent.inner().receive_owner_changed().await?;
    loop {
        let again = match ask::document::<Zone>(agent.zone()).await {
            Ok(zone) => {
                if view.borrow().zone != zone {
                    tracing::info!(serial = zone.serial, "took a new zone");
                    view.send_replace(Arc::new(View::new(zone)));
                }
                Duration::from_secs(60)
            }
            Err(refusal) => {
                tracing::debug!(%refusal, "the agent has no zone for us; the last one goes on");
                Duration::from_secs(2)
            }
        };
        tokio::select! {
            change = changes.next() => if change.is_none() {
                return Ok(());
            },
            owner = owners.next() => if owner.is_none() {
                return Ok(());
            },
            () = tokio::time::sleep(again) => {}
        }
        // Many changes at once are one.
        while let Some(Some(_)) = changes.next().now_or_never() {}
    }
}

/// What all DNS sockets share.
#[derive(Debug)]
pub struct Names {
    view: watch::Receiver<Arc<View>>,
    upstream: Vec<SocketAddr>,
    forwards: Semaphore,
    forwards_of: Mutex<BTreeMap<IpAddr, usize>>,
    connections: Arc<Semaphore>,
}

impl Names {
    /// Answers from `view`; questions that are not ours go to `upstream`, tried in order.
    pub fn new(view: watch::Receiver<Arc<View>>, upstream: Vec<SocketAddr>) -> Self {
        Self {
            view,
            upstream,
            forwards: Semaphore::new(FORWARDS),
            forwards_of: Mutex::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }

    fn answer(&self, question: &[u8], from: IpAddr, transport: Transport) -> Answer {
        let view = Arc::clone(&self.view.borrow());
        answer::answer(&view, from.to_canonical(), question, transport)
    }

    /// Asks the host's resolvers.
    async fn forward(&self, question: &[u8], from: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        let busy = || answer::failed(question);
        let Ok(_slot) = self.forwards.try_acquire() else { return busy() };
        let Some(_one) = OneForward::start(self, from) else { return busy() };
        match forward::ask(&self.upstream, question, transport).await {
            Some(answer) => Some(answer),
            None => answer::failed(question),
        }
    }
}

/// Counts the forwards of one instance.
struct OneForward<'a>(&'a Names, IpAddr);

impl<'a> OneForward<'a> {
    fn start(names: &'a Names, from: IpAddr) -> Option<Self> {
        let mut counts = names.forwards_of.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(from).or_default();
        if *count >= FORWARDS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Self(names, from))
    }
}

impl Drop for OneForward<'_> {
    fn drop(&mut self) {
        let mut counts = self.0.forwards_of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Answers on a UDP socket.
pub async fn serve_udp(names: Arc<Names>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 4096];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "could not receive a question");
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        let question = &buffer[..length];
        match names.answer(question, peer.ip(), Transport::Udp) {
            Answer::Nothing => {}
            Answer::Message(bytes) => send(&socket, &bytes, peer).await,
            Answer::Forward => {
                let (names, socket, question) = (Arc::clone(&names), Arc::clone(&socket), question.to_vec());
                tokio::spawn(async move {
                    if let Some(bytes) = names.forward(&question, peer.ip(), Transport::Udp).await {
                        send(&socket, &bytes, peer).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, peer).await {
        tracing::debug!(%error, %peer, "could not send an answer");
    }
}

/// Answers on a TCP listener.
pub async fn serve_tcp(names: Arc<Names>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Ok(slot) = Arc::clone(&names.connections).try_acquire_owned() else { continue };
                let names = Arc::clone(&names);
                tokio::spawn(async move {
                    // Whatever went wrong, the client sees that the connection ended.
                    drop(converse(&names, stream, peer.ip()).await);
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(names: &Names, mut stream: TcpStream, peer: IpAddr) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut question = vec![0; length.into()];
        timeout(IDLE, stream.read_exact(&mut question)).await??;
        let bytes = match names.answer(&question, peer, Transport::Tcp) {
            Answer::Nothing => return Ok(()),
            Answer::Message(bytes) => bytes,
            Answer::Forward => match names.forward(&question, peer, Transport::Tcp).await {
                Some(bytes) => bytes,
                None => return Ok(()),
            },
        };
        let Ok(length) = u16::try_from(bytes.len()) else { return Ok(()) };
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

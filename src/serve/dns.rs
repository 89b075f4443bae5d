//! The DNS door. To everybody: the zone, with authority, and nothing else. To an instance, known by its source address, which the
//! firewall pins to its tap: also bare names of its own namespace, and the rest of the world by way of the host's resolvers.
//!
//! The zone is one table behind a lock that is held for one batch of packets, or for one change: the agent says what has changed, and
//! the next question is answered from it.

mod answer;
mod batch;
mod cache;
mod cookie;
mod delegation;
mod deny;
#[cfg(test)]
mod flood_tests;
mod forward;
#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz;
mod limit;
mod look;
mod question;
mod sign;
mod stream;
mod table;
mod transfer;
mod tsig;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt;
use tokio::{
    net::UdpSocket,
    sync::{Notify, watch},
};

pub(super) use self::stream::serve_tcp;
use self::{
    answer::{Context, Reply},
    batch::Batch,
    forward::Resolvers,
    limit::{Limiter, Verdict},
    question::{Question, Read, code},
    transfer::Secondaries,
};
pub use self::{
    delegation::delegation,
    sign::{KeyError, Signer},
    table::{Near, Table, wire},
    tsig::Key,
};
use super::ask;
use crate::bus::{SeedProxy, Zone, ZoneChange};

/// How long questions wait for the agent's first word: less than a resolver's patience, which is 5 s. When agent and doors are restarted
/// together, a question that waits is answered, and one that is refused is an error on somebody's screen.
const FIRST_WORD: Duration = Duration::from_secs(4);
/// How long changes are gathered before secondaries are told of them.
const GATHER: Duration = Duration::from_millis(500);

/// What the door needs to know of this host. From the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub near: Near,
    /// Where questions of instances about other people's names go. Empty: they are refused.
    pub upstream: Vec<SocketAddr>,
    /// Answers a second over UDP to one neighbourhood; 0 for no limit.
    pub rate: u32,
    /// The key of the zone, if it is signed. Made at the first start.
    pub zone_key: Option<PathBuf>,
    /// Servers that may take the whole zone, and the file of the key that they have to know.
    pub secondaries: Vec<SocketAddr>,
    pub transfer_key: Option<PathBuf>,
}

/// Why the door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error(transparent)]
    Zone(#[from] KeyError),
    #[error("could not read the key for secondaries {path}: make one that the user seed may read, or remove [dns] secondaries")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} {what}")]
    Transfer { path: PathBuf, what: &'static str },
}

/// What all DNS sockets share.
#[derive(Debug)]
pub struct Names {
    table: RwLock<Table>,
    near: Near,
    rate: u32,
    resolvers: Resolvers,
    cookies: cookie::Baker,
    signer: Option<Signer>,
    secondaries: Option<Secondaries>,
    /// Whether there is a zone.
    known: watch::Sender<bool>,
    /// The zone has changed, which secondaries want to know.
    changed: Notify,
    began: Instant,
}

/// What a caller over TCP gets.
pub(in crate::serve) enum Todo {
    Nothing,
    Send,
    Forward,
    Transfer(Vec<Vec<u8>>),
}

impl Names {
    /// Answers nothing until the agent has spoken.
    pub fn new(settings: Settings) -> Result<Self, DnsError> {
        let signer = settings.zone_key.as_deref().map(Signer::load_or_make).transpose()?;
        let secondaries = match &settings.transfer_key {
            Some(path) if !settings.secondaries.is_empty() => {
                Some(Secondaries { servers: settings.secondaries, key: read_key(path)? })
            }
            _ => None,
        };
        Ok(Self {
            table: RwLock::default(),
            near: settings.near,
            rate: settings.rate,
            resolvers: Resolvers::new(settings.upstream),
            cookies: cookie::Baker::default(),
            signer,
            secondaries,
            known: watch::Sender::new(false),
            changed: Notify::new(),
            began: Instant::now(),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a whole zone.
    pub fn take(&self, zone: &Zone) {
        let table = Table::new(zone);
        let old = std::mem::replace(&mut *self.table.write().unwrap_or_else(PoisonError::into_inner), table);
        // After the lock: it may be large.
        drop(old);
        self.known.send_replace(true);
        self.changed.notify_one();
    }

    /// Returns when there is a zone, or when that has taken too long.
    async fn first_zone(&self) {
        drop(tokio::time::timeout(FIRST_WORD, self.known.subscribe().wait_for(|known| *known)).await);
    }

    /// Makes a change. False if it is one of another zone than ours.
    pub fn change(&self, change: &ZoneChange) -> bool {
        let done = self.table.write().unwrap_or_else(PoisonError::into_inner).apply(change);
        if done {
            self.changed.notify_one();
        }
        done
    }

    /// Whether the TXT record of a full name says this; for what has to wait until it does.
    pub fn says(&self, name: &str, text: &str) -> bool {
        self.read().says(name, text)
    }

    /// Tells the secondaries whenever the zone has changed.
    pub async fn tell_secondaries(&self) {
        let Some(secondaries) = &self.secondaries else { return };
        loop {
            self.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            let (domain, soa) = {
                let table = self.read();
                (table.domain.clone(), table.soa.clone())
            };
            tokio::select! {
                () = secondaries.notify(&domain, &soa) => {}
                // What they were about to hear is old.
                () = self.changed.notified() => self.changed.notify_one(),
            }
        }
    }

    /// Answers a packet that came over UDP into `out`. True if it is to be forwarded.
    fn over_udp(&self, table: &Table, packet: &[u8], from: IpAddr, limiter: &mut Limiter, now: Now, out: &mut Vec<u8>) -> bool {
        let asked = match question::read(packet) {
            Read::Nothing => return false,
            Read::Broken(code) => {
                if limiter.count(from, now.millis) == Verdict::Send {
                    answer::broken(packet, code, out);
                }
                return false;
            }
            Read::Question(asked) => asked,
        };
        let asker = table.asker(&self.near, from);
        let given = asked.edns.and_then(|edns| edns.cookie);
        let limited = matches!(asker, table::Asker::World | table::Asker::Nobody);
        if limited && !given.is_some_and(|cookie| self.cookies.knows(cookie, from, now.cookie())) {
            match limiter.count(from, now.millis) {
                Verdict::Send => {}
                Verdict::Cut => {
                    answer::cut(&asked, out);
                    return false;
                }
                Verdict::Drop => return false,
            }
        }
        let baked = given.and_then(|given| given.first_chunk::<8>()).map(|client| self.cookies.bake(*client, from, now.cookie()));
        let cookie = baked.as_ref().map(<[u8; cookie::LENGTH]>::as_slice);
        let room = answer::room(&asked, true);
        if asked.tsig.is_some() {
            self.signed(table, &asker, &asked, from, room, out);
            return false;
        }
        let context = Context { table, asker: &asker, signer: self.signer.as_ref(), now: now.seconds };
        match answer::answer(context, &asked, room, cookie, out) {
            Reply::Written => false,
            Reply::Forward => true,
            // It would not fit, and the sender may be pretending.
            Reply::Transfer => {
                answer::only(&asked, false, code::REFUSED, room, cookie, out);
                false
            }
        }
    }

    /// Answers a packet that came over TCP.
    fn over_tcp(&self, packet: &[u8], from: IpAddr, out: &mut Vec<u8>) -> Todo {
        let asked = match question::read(packet) {
            Read::Nothing => return Todo::Nothing,
            Read::Broken(code) => {
                answer::broken(packet, code, out);
                return Todo::Send;
            }
            Read::Question(asked) => asked,
        };
        let table = self.read();
        let asker = table.asker(&self.near, from);
        let room = answer::room(&asked, false);
        if asked.tsig.is_some() {
            return match self.signed(&table, &asker, &asked, from, room, out) {
                Some(messages) => Todo::Transfer(messages),
                None => Todo::Send,
            };
        }
        let context = Context { table: &table, asker: &asker, signer: self.signer.as_ref(), now: seconds() };
        match answer::answer(context, &asked, room, None, out) {
            Reply::Written => Todo::Send,
            Reply::Forward => Todo::Forward,
            Reply::Transfer => {
                answer::only(&asked, false, code::REFUSED, room, None, out);
                Todo::Send
            }
        }
    }

    /// Answers a question that is signed with the key of the secondaries, and signs the answer: the zone, if that is what is asked for.
    fn signed(
        &self,
        table: &Table,
        asker: &table::Asker,
        asked: &Question<'_>,
        from: IpAddr,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Option<Vec<Vec<u8>>> {
        let Some(secondaries) = self.secondaries.as_ref().filter(|secondaries| secondaries.has(from)) else {
            answer::only(asked, false, tsig::CODE, room, None, out);
            return None;
        };
        let now = seconds();
        let mut proof = match secondaries.key.verify(asked, now) {
            Ok(proof) => proof,
            Err(mut unproven) => {
                tracing::warn!(%from, ?unproven, "a secondary does not know the key, or its clock is wrong");
                answer::only(asked, false, tsig::CODE, room, None, out);
                secondaries.key.refuse(&mut unproven, out, now);
                return None;
            }
        };
        let context = Context { table, asker, signer: self.signer.as_ref(), now };
        let room = room.saturating_sub(tsig::ROOM).max(512);
        match answer::answer(context, asked, room, None, out) {
            Reply::Transfer if room > answer::UDP_MAX => {
                tracing::info!(%from, serial = table.serial, "gave the zone to a secondary");
                let mut messages = transfer::messages(table, asked);
                messages.iter_mut().for_each(|message| secondaries.key.sign(&mut proof, message, now));
                return Some(messages);
            }
            Reply::Written => {}
            Reply::Transfer | Reply::Forward => answer::only(asked, false, code::REFUSED, room, None, out),
        }
        secondaries.key.sign(&mut proof, out, now);
        None
    }

    /// Asks the host's resolvers.
    async fn forward(&self, packet: &[u8], from: IpAddr, udp: bool) -> Vec<u8> {
        match question::read(packet) {
            Read::Question(asked) => self.resolvers.answer(&asked, from, &self.near, answer::room(&asked, udp)).await,
            Read::Nothing | Read::Broken(_) => Vec::new(),
        }
    }
}

fn read_key(path: &Path) -> Result<Key, DnsError> {
    let text = std::fs::read_to_string(path).map_err(|source| DnsError::Read { path: path.to_owned(), source })?;
    Key::parse(&text).map_err(|what| DnsError::Transfer { path: path.to_owned(), what })
}

/// The time of a batch, for all that needs it.
#[derive(Clone, Copy)]
struct Now {
    millis: u32,
    seconds: u64,
}

impl Now {
    fn cookie(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "times of cookies go round in a circle")]
        let seconds = self.seconds as u32;
        seconds
    }
}

/// Seconds since 1970.
pub(in crate::serve) fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Keeps the zone as the agent says: whole at first, then each change. Returns when the bus is gone.
pub async fn keep_zone(agent: SeedProxy<'static>, names: Arc<Names>) -> zbus::Result<()> {
    let mut changes = agent.receive_zone_changed().await?;
    let mut owners = agent.inner().receive_owner_changed().await?;
    loop {
        let again = match ask::document::<Zone>(agent.zone()).await {
            Ok(zone) => {
                tracing::info!(serial = zone.serial, "took a new zone");
                names.take(&zone);
                None
            }
            Err(refusal) => {
                tracing::debug!(%refusal, "the agent has no zone for us; the last one goes on");
                Some(Duration::from_secs(2))
            }
        };
        // Until something has to be asked for.
        loop {
            tokio::select! {
                change = changes.next() => {
                    let Some(change) = change else { return Ok(()) };
                    if !changed(&names, &change) {
                        break;
                    }
                }
                owner = owners.next() => match owner {
                    None => return Ok(()),
                    // It left; when it is back, it may have another zone.
                    Some(None) => {}
                    Some(Some(_)) => break,
                },
                () = async { tokio::time::sleep(again.unwrap_or_default()).await }, if again.is_some() => break,
            }
        }
    }
}

/// Makes a change that the agent told of. False if the whole zone is needed.
fn changed(names: &Names, signal: &crate::bus::ZoneChanged) -> bool {
    let Ok(told) = signal.args() else { return false };
    let ours = names.read().serial;
    #[expect(clippy::cast_possible_wrap, reason = "serials of zones go round in a circle, as RFC 1982 has it")]
    let ahead = told.serial.wrapping_sub(ours) as i32;
    // It was said before we asked for the whole, which has it.
    if ahead <= 0 && !names.read().domain.is_empty() {
        return true;
    }
    serde_json::from_str::<ZoneChange>(told.change).is_ok_and(|change| names.change(&change))
}

/// Answers on a UDP socket.
pub async fn serve_udp(names: Arc<Names>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    if let Err(error) = batch::prepare(&socket) {
        tracing::warn!(%error, "answers may leave from another address than they were asked at");
    }
    names.first_zone().await;
    let (mut batch, mut limiter) = (Batch::new(), Limiter::new(names.rate));
    loop {
        if let Err(error) = batch.receive(&socket).await {
            tracing::debug!(%error, "could not receive a question");
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let mut forwards = Vec::new();
        {
            #[expect(clippy::cast_possible_truncation, reason = "the limit lives with a clock that goes round")]
            let now = Now { millis: names.began.elapsed().as_millis() as u32, seconds: seconds() };
            let table = names.read();
            for n in 0..batch.came() {
                let Some((packet, peer, out)) = batch.packet(n) else { continue };
                let from = peer.ip().to_canonical();
                if names.over_udp(&table, packet, from, &mut limiter, now, out) {
                    forwards.push((n, packet.to_vec(), from));
                }
            }
        }
        for (n, packet, from) in forwards {
            let (names, socket, way) = (Arc::clone(&names), Arc::clone(&socket), batch.way_back(n));
            tokio::spawn(async move {
                let answer = names.forward(&packet, from, true).await;
                if !answer.is_empty() {
                    way.send(&socket, answer).await;
                }
            });
        }
        batch.send(&socket).await;
        tokio::task::consume_budget().await;
    }
}

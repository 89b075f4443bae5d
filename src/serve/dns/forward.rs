//! A question of an instance's, asked again of the host's resolvers, in words of our own. An answer counts only if it comes from the
//! resolver that was asked, to the port it was asked from, with our id and our question; and nobody out there tells an instance where
//! the inside of this host is.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::Message,
    rr::{RData, Record},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::{
    answer::{UDP_MAX, only},
    cache::{self, Answer, Cache},
    question::{Question, code},
    table::Near,
};

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions under way to the host's resolvers, in all and for one instance.
const FORWARDS: usize = 512;
const FORWARDS_OF_ONE: usize = 64;

/// The host's resolvers.
#[derive(Debug)]
pub struct Resolvers {
    /// Tried in order.
    servers: Vec<SocketAddr>,
    cache: Cache,
    slots: Semaphore,
    slots_of: Mutex<BTreeMap<IpAddr, usize>>,
    began: Instant,
}

impl Resolvers {
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        let slots = Semaphore::new(FORWARDS);
        Self { servers, cache: Cache::default(), slots, slots_of: Mutex::default(), began: Instant::now() }
    }

    /// Answers a question of an instance's in at most `room` bytes.
    pub async fn answer(&self, asked: &Question<'_>, from: IpAddr, near: &Near, room: usize) -> Vec<u8> {
        match self.find(asked, from, near).await {
            Some((answer, age)) => adapt(asked, answer.aged(age), room),
            None => {
                let mut out = Vec::new();
                only(asked, true, code::SERV_FAIL, room, None, &mut out);
                out
            }
        }
    }

    async fn find(&self, asked: &Question<'_>, from: IpAddr, near: &Near) -> Option<(Arc<Answer>, u32)> {
        let key = cache::key(asked);
        if let Some(found) = self.cache.get(&key, self.began.elapsed().as_secs()) {
            return Some(found);
        }
        let _slot = self.slots.try_acquire().ok()?;
        let _one = OneSlot::take(self, from)?;
        let answer = Arc::new(self.ask(asked, near).await?);
        self.cache.put(key, Arc::clone(&answer), self.began.elapsed().as_secs());
        Some((answer, 0))
    }

    /// Asks the resolvers in turn, twice; over TCP what is too long for UDP.
    async fn ask(&self, asked: &Question<'_>, near: &Near) -> Option<Answer> {
        for server in self.turns() {
            match Self::exchange(server, asked).await {
                Ok(message) => match outside(message, near).to_vec().ok().and_then(Answer::new) {
                    Some(answer) => return Some(answer),
                    None => tracing::debug!(%server, "a resolver's answer is broken"),
                },
                Err(error) => tracing::debug!(%server, %error, "a resolver did not answer"),
            }
        }
        None
    }

    /// Whom to ask, in order: each of them twice.
    pub(super) fn turns(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.servers.iter().chain(&self.servers).copied()
    }

    /// Asks one resolver.
    pub(super) async fn exchange(server: SocketAddr, asked: &Question<'_>) -> std::io::Result<Message> {
        let sent = words(asked);
        let mut answer = timeout(PATIENCE, by_udp(server, &sent, asked)).await;
        if matches!(&answer, Ok(Ok(message)) if message.metadata.truncation) {
            answer = timeout(PATIENCE, by_tcp(server, &sent, asked)).await;
        }
        answer.unwrap_or_else(|_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "a resolver did not answer in time")))
    }
}

/// The same question with a random id of our own: the instance's may be known to others. Of its options, only that which changes the
/// answer.
fn words(asked: &Question<'_>) -> Vec<u8> {
    let [high, low] = Message::query().metadata.id.to_be_bytes();
    let secure = asked.edns.is_some_and(|edns| edns.secure);
    let mut sent = vec![high, low, 1, asked.packet[3] & 0x30, 0, 1, 0, 0, 0, 0, 0, 1];
    sent.extend_from_slice(&asked.packet[12..asked.end]);
    #[expect(clippy::cast_possible_truncation, reason = "it is split into its bytes")]
    sent.extend_from_slice(&[0, 0, 41, (UDP_MAX >> 8) as u8, UDP_MAX as u8, 0, 0, u8::from(secure) << 7, 0, 0, 0]);
    sent
}

/// Takes inside addresses out of an answer: a name of somebody's own that says them would be a way to other tenants' instances, in the
/// guise of a page that a browser trusts. EDNS was between the resolver and us.
fn outside(mut message: Message, near: &Near) -> Message {
    let inside = |record: &Record| match &record.data {
        RData::A(address) => near.pool4.contains(&address.0),
        RData::AAAA(address) => {
            near.pool6.contains(&address.0) || address.0.to_ipv4_mapped().is_some_and(|v4| near.pool4.contains(&v4))
        }
        // Their hints are addresses, too.
        RData::HTTPS(_) | RData::SVCB(_) => record.data.to_string().split(['=', ',', ' ', '"']).any(|word| match word.parse() {
            Ok(IpAddr::V4(v4)) => near.pool4.contains(&v4),
            Ok(IpAddr::V6(v6)) => near.pool6.contains(&v6),
            Err(_) => false,
        }),
        _ => false,
    };
    let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
    for section in sections {
        section.retain(|record| !inside(record));
    }
    message.edns = None;
    message
}

/// Makes a resolver's answer one to the question as it was asked: its id, its letters, EDNS if it had that, and no longer than it may be.
fn adapt(asked: &Question<'_>, mut bytes: Vec<u8>, room: usize) -> Vec<u8> {
    bytes[..2].copy_from_slice(&asked.packet[..2]);
    bytes[2] = bytes[2] & !5 | asked.packet[2] & 1;
    bytes[3] |= 0x80;
    // The same name, in the letters that were asked; `find` has checked that it is.
    let end = asked.end.min(bytes.len());
    bytes[12..end].copy_from_slice(&asked.packet[12..end]);
    let edns = if asked.edns.is_some() { 11 } else { 0 };
    if bytes.len() + edns > room {
        bytes.truncate(end);
        bytes[2] |= 2;
        bytes[6..12].fill(0);
    }
    if let Some(edns) = asked.edns {
        #[expect(clippy::cast_possible_truncation, reason = "it is split into its bytes")]
        bytes.extend_from_slice(&[0, 0, 41, (UDP_MAX >> 8) as u8, UDP_MAX as u8, 0, 0, u8::from(edns.secure) << 7, 0, 0, 0]);
        let count = u16::from_be_bytes([bytes[10], bytes[11]]).saturating_add(1);
        bytes[10..12].copy_from_slice(&count.to_be_bytes());
    }
    bytes
}

/// Counts the questions of one instance that are under way.
struct OneSlot<'a>(&'a Resolvers, IpAddr);

impl<'a> OneSlot<'a> {
    fn take(resolvers: &'a Resolvers, from: IpAddr) -> Option<Self> {
        let mut counts = resolvers.slots_of.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(from).or_default();
        if *count >= FORWARDS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Self(resolvers, from))
    }
}

impl Drop for OneSlot<'_> {
    fn drop(&mut self) {
        let mut counts = self.0.slots_of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

async fn by_udp(server: SocketAddr, sent: &[u8], asked: &Question<'_>) -> std::io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // A connected socket takes packets of this server only.
    socket.connect(server).await?;
    socket.send(sent).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(message) = answer_to(&buffer[..length], sent, asked) {
            return Ok(message);
        }
    }
}

async fn by_tcp(server: SocketAddr, sent: &[u8], asked: &Question<'_>) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(sent.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], sent].concat()).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    answer_to(&bytes, sent, asked).ok_or_else(|| std::io::Error::other("it answered another question"))
}

/// Reads a packet, if it is the answer to what was sent.
fn answer_to(bytes: &[u8], sent: &[u8], asked: &Question<'_>) -> Option<Message> {
    let name = asked.name.wire();
    let theirs = bytes.get(12..12 + name.len())?;
    let ours = bytes[..2] == sent[..2]
        && bytes[2] & 0xf8 == 0x80
        && bytes[4..6] == [0, 1]
        && theirs.eq_ignore_ascii_case(name)
        && bytes.get(12 + name.len()..asked.end)? == &asked.packet[12 + name.len()..asked.end];
    if !ours { None } else { Message::from_vec(bytes).ok() }
}

/// What an instance is told of what a resolver said, `age` seconds later. `None` if that was no answer to `asked`.
#[cfg(any(test, feature = "fuzz"))]
pub fn told(came: &[u8], asked: &Question<'_>, near: &Near, age: u32, room: usize) -> Option<Vec<u8>> {
    let message = answer_to(came, asked.packet, asked)?;
    let answer = outside(message, near).to_vec().ok().and_then(Answer::new)?;
    Some(adapt(asked, answer.aged(age), room))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, rdata};

    use super::*;

    #[test]
    fn inside_addresses_do_not_come_from_outside() {
        let near =
            Near { pool4: "10.88.0.0/24".parse().unwrap(), pool6: "fd5e::/64".parse().unwrap(), gateways: vec![], inside: vec![] };
        let record = |data| Record::from_rdata(Name::from_ascii("x.example.").unwrap(), 60, data);
        let mut message = Message::query();
        message.answers = vec![
            record(RData::A(rdata::A([10, 88, 0, 7].into()))),
            record(RData::A(rdata::A([203, 0, 113, 1].into()))),
            record(RData::AAAA(rdata::AAAA("fd5e::7".parse().unwrap()))),
            record(RData::AAAA(rdata::AAAA("::ffff:10.88.0.7".parse().unwrap()))),
            record(RData::AAAA(rdata::AAAA("2001:db8::7".parse().unwrap()))),
        ];
        let hint = |address: [u8; 4]| {
            let hint = rdata::svcb::SvcParamValue::Ipv4Hint(rdata::svcb::IpHint(vec![rdata::A(address.into())]));
            rdata::SVCB::new(1, Name::root(), vec![(rdata::svcb::SvcParamKey::Ipv4Hint, hint)])
        };
        message.additionals =
            vec![record(RData::HTTPS(rdata::HTTPS(hint([10, 88, 0, 7])))), record(RData::SVCB(hint([203, 0, 113, 1])))];
        let left = outside(message, &near);
        let texts: Vec<String> = left.answers.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(texts, ["203.0.113.1", "2001:db8::7"]);
        assert!(matches!(left.additionals.as_slice(), [Record { data: RData::SVCB(_), .. }]));
    }
}

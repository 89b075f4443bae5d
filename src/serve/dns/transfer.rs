//! Other servers of the zone: they are told when it has changed (NOTIFY), and take it whole (AXFR) if they are configured and know the key.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};

use super::{
    answer::{Data, Set, header, record, set_counts},
    question::{Question, code, kind},
    table::{Asker, HOST_TTL, TTL, Table, child},
    tsig::Key,
};

/// A message of a transfer is closed when it is this long.
const MESSAGE: usize = 16 * 1024;
/// How long a secondary may take to say that it has heard, and how often it is told.
const PATIENCE: Duration = Duration::from_secs(3);
const TURNS: u32 = 5;

/// Servers that may take the zone.
#[derive(Debug)]
pub struct Secondaries {
    /// Where they are told.
    pub servers: Vec<SocketAddr>,
    pub key: Key,
}

impl Secondaries {
    /// Whether a server of this address is one of them.
    pub fn has(&self, address: IpAddr) -> bool {
        self.servers.iter().any(|server| server.ip() == address)
    }

    /// Tells them all that there is a zone of this serial.
    pub async fn notify(&self, domain: &[u8], soa: &[u8]) {
        let all = self.servers.iter().map(|server| self.notify_one(*server, domain, soa));
        futures_util::future::join_all(all).await;
    }

    async fn notify_one(&self, server: SocketAddr, domain: &[u8], soa: &[u8]) {
        for turn in 0..TURNS {
            match timeout(PATIENCE, self.tell(server, domain, soa)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "a secondary did not take the news");
                    tokio::time::sleep(PATIENCE * (turn + 1)).await;
                }
                Err(_) => tracing::debug!(%server, "a secondary did not answer"),
            }
        }
        tracing::warn!(%server, "a secondary does not hear that the zone has changed; it will see when it asks by itself");
    }

    async fn tell(&self, server: SocketAddr, domain: &[u8], soa: &[u8]) -> std::io::Result<()> {
        let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        let [high, low] = hickory_proto::op::Message::query().metadata.id.to_be_bytes();
        // NOTIFY, with authority, of one SOA, and what it is now.
        let mut message = vec![high, low, 0x24, 0, 0, 1, 0, 1, 0, 0, 0, 0];
        message.extend_from_slice(domain);
        message.extend([0, 6, 0, 1]);
        record(&mut message, None, domain, kind::SOA, HOST_TTL, soa);
        self.key.sign_first(&mut message, crate::serve::dns::seconds());
        socket.send(&message).await?;
        let mut answer = [0; 512];
        loop {
            let length = socket.recv(&mut answer).await?;
            if length >= 12 && answer[..2] == [high, low] && answer[2] & 0xf8 == 0xa0 {
                let code = answer[3] & 0xf;
                return if code == 0 { Ok(()) } else { Err(std::io::Error::other(format!("it answered with code {code}"))) };
            }
        }
    }
}

/// The zone as the world sees it, in messages that answer a question for all of it. Not signed yet.
pub fn messages(table: &Table, asked: &Question<'_>) -> Vec<Vec<u8>> {
    let mut pages = Pages { asked, done: Vec::new(), page: Vec::new(), count: 0 };
    let domain = &*table.domain;
    let soa = Set::new(domain, kind::SOA, HOST_TTL, Data::One(&table.soa));
    pages.add(soa);
    pages.add(Set::new(domain, kind::NS, HOST_TTL, Data::Many(&table.servers)));
    pages.add(Set::new(domain, kind::CAA, HOST_TTL, Data::Many(&table.authorities)));
    for owner in [domain, &child(b"ns1", domain), &child(b"silo", domain)] {
        pages.add(Set::new(owner, kind::A, HOST_TTL, Data::V4(&table.host4)));
        pages.add(Set::new(owner, kind::AAAA, HOST_TTL, Data::V6(&table.host6)));
    }
    for (namespace, name, entry) in table.instances() {
        let owner = child(name, &child(namespace, domain));
        let (v4, v6) = table.addresses(&Asker::World, namespace, entry);
        pages.add(Set::new(&owner, kind::A, TTL, Data::V4(v4)));
        pages.add(Set::new(&owner, kind::AAAA, TTL, Data::V6(v6)));
    }
    for (owner, texts) in table.all_texts() {
        pages.add(Set::new(owner, kind::TXT, 0, Data::Many(texts)));
    }
    pages.add(soa);
    pages.turn();
    pages.done
}

struct Pages<'a> {
    asked: &'a Question<'a>,
    done: Vec<Vec<u8>>,
    page: Vec<u8>,
    count: u16,
}

impl Pages<'_> {
    fn add(&mut self, set: Set<'_>) {
        set.data.each(|data| {
            if self.page.len() > MESSAGE {
                self.turn();
            }
            if self.page.is_empty() {
                header(self.asked.packet, true, false, code::NO_ERROR, &mut self.page);
                self.page.extend_from_slice(&self.asked.packet[12..self.asked.end]);
            }
            record(&mut self.page, Some(&self.asked.name), set.owner, set.kind, set.ttl, data);
            self.count += 1;
        });
    }

    fn turn(&mut self) {
        set_counts(&mut self.page, [self.count, 0, 0]);
        self.count = 0;
        self.done.push(std::mem::take(&mut self.page));
    }
}

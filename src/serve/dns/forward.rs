//! A question of an instance's, asked again of the host's resolvers. An answer counts only if it comes from the resolver that was asked,
//! to the port it was asked from, with our id and our question.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::op::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::answer::Transport;

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the resolvers in turn, twice. The answer has the id of `question`.
pub(super) async fn ask(upstream: &[SocketAddr], question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let asked = Message::from_vec(question).ok()?;
    for server in upstream.iter().chain(upstream) {
        // A random id of our own: the instance's may be known to others.
        let id = Message::query().metadata.id;
        let mut sent = question.to_vec();
        sent[..2].copy_from_slice(&id.to_be_bytes());
        let answer = match transport {
            Transport::Udp => timeout(PATIENCE, by_udp(*server, &sent, &asked)).await,
            Transport::Tcp => timeout(PATIENCE, by_tcp(*server, &sent, &asked)).await,
        };
        match answer {
            Ok(Ok(mut bytes)) => {
                bytes[..2].copy_from_slice(&question[..2]);
                return Some(bytes);
            }
            Ok(Err(error)) => tracing::debug!(%server, %error, "a resolver did not answer"),
            Err(_) => tracing::debug!(%server, "a resolver did not answer in time"),
        }
    }
    None
}

async fn by_udp(server: SocketAddr, sent: &[u8], asked: &Message) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // A connected socket takes packets of this server only.
    socket.connect(server).await?;
    socket.send(sent).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(&buffer[..length], sent, asked) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(server: SocketAddr, sent: &[u8], asked: &Message) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(sent.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], sent].concat()).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    if is_answer(&bytes, sent, asked) { Ok(bytes) } else { Err(std::io::Error::other("it answered another question")) }
}

fn is_answer(bytes: &[u8], sent: &[u8], asked: &Message) -> bool {
    if bytes.len() < 12 || bytes[..2] != sent[..2] || bytes[2] & 0x80 == 0 {
        return false;
    }
    let same = |answer: Message| match (answer.queries.as_slice(), asked.queries.as_slice()) {
        ([theirs], [ours]) => {
            theirs.name().to_lowercase() == ours.name().to_lowercase()
                && theirs.query_type() == ours.query_type()
                && theirs.query_class() == ours.query_class()
        }
        _ => false,
    };
    Message::from_vec(bytes).is_ok_and(same)
}

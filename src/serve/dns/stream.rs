//! Questions over TCP, many on one connection: each answer is sent as soon as there is one, in whatever order.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Names, Todo};
use crate::serve::crowd::Crowd;

/// A connection without a question is closed after this.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one connection that wait for the host's resolvers.
const WAITING: usize = 32;
/// What is read before it is answered.
const READ: usize = 16 * 1024;

/// Answers on a TCP listener.
pub(in crate::serve) async fn serve_tcp(names: Arc<Names>, crowd: Arc<Crowd>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (names, close) = (Arc::clone(&names), CancellationToken::new());
                let place = crowd.enter(peer.ip(), close.clone());
                tokio::spawn(async move {
                    // Whatever went wrong, the client sees that the connection ended.
                    tokio::select! {
                        () = close.cancelled() => {}
                        ended = converse(&names, stream, peer.ip().to_canonical()) => drop(ended),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(names: &Names, stream: TcpStream, peer: IpAddr) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let mut came: Vec<u8> = Vec::with_capacity(4096);
    let mut answers: Vec<u8> = Vec::new();
    let mut waiting: FuturesUnordered<BoxFuture<'_, Vec<u8>>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(answer) = waiting.next() => frame(&mut answers, &answer),
            read = timeout(IDLE, reader.read_buf(&mut came)), if waiting.len() < WAITING && came.len() < READ => {
                match read {
                    Ok(read) => if read? == 0 {
                        break;
                    },
                    // Nothing was asked; something may still be on its way.
                    Err(_) if !waiting.is_empty() => continue,
                    Err(_) => return Ok(()),
                }
            }
        }
        let mut rest = &came[..];
        while waiting.len() < WAITING
            && let Some((question, next)) = split(rest)
        {
            rest = next;
            let mut answer = Vec::new();
            match names.over_tcp(question, peer, &mut answer) {
                Todo::Nothing => return Ok(()),
                Todo::Send => frame(&mut answers, &answer),
                Todo::Forward => {
                    let question = question.to_vec();
                    waiting.push(Box::pin(async move { names.forward(&question, peer, false).await }));
                }
                Todo::Transfer(messages) => messages.iter().for_each(|message| frame(&mut answers, message)),
            }
        }
        let taken = came.len() - rest.len();
        came.drain(..taken);
        // No question is that long.
        if came.len() >= READ && waiting.len() < WAITING {
            return Ok(());
        }
        timeout(IDLE, writer.write_all(&answers)).await??;
        answers.clear();
    }
    // It has said that it will ask no more, and may still be listening.
    while let Some(answer) = waiting.next().await {
        frame(&mut answers, &answer);
    }
    timeout(IDLE, writer.write_all(&answers)).await?
}

/// Takes the first message off what came, if it is there whole.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(2)?;
    rest.split_at_checked(u16::from_be_bytes([length[0], length[1]]).into())
}

fn frame(out: &mut Vec<u8>, message: &[u8]) {
    // One that is longer cannot be said.
    if let Ok(length) = u16::try_from(message.len()) {
        out.extend(length.to_be_bytes());
        out.extend_from_slice(message);
    }
}

//! How a connection to the HTTPS door begins. Whom a client wants is looked at before anything is negotiated: a name that is none of this
//! host's gets the alert `unrecognized_name`. Names of instances that cannot be reached come here too, when something in front of the
//! doors passes on by name.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, rustls::server::Acceptor, server::TlsStream};

use super::acme::own::Tls;

/// Alerts (RFC 8446, section 6), as records of their own before anything is encrypted.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
const HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

/// What is needed to begin.
pub(super) struct Hello {
    /// The names that are answered.
    pub names: BTreeSet<String>,
    pub tls: watch::Receiver<Tls>,
}

impl Hello {
    /// Shakes hands; `None` if that came to nothing, and the client was told.
    pub async fn begin<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Option<TlsStream<S>> {
        // What is no ClientHello is answered with an alert there.
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.ok()?;
        let wanted = start.client_hello().server_name().map(str::to_ascii_lowercase);
        if !wanted.is_some_and(|name| self.names.contains(&name)) {
            refuse(start.io, UNRECOGNIZED_NAME).await;
            return None;
        }
        let tls = self.tls.borrow().clone();
        match tls {
            Some(tls) => start.into_stream(tls).await.ok(),
            None => {
                refuse(start.io, HANDSHAKE_FAILURE).await;
                None
            }
        }
    }
}

/// Sends an alert, and waits for the client to hang up: what it has sent and nobody read would have the alert thrown away.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, alert: [u8; 7]) {
    let said = async {
        stream.write_all(&alert).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(16 << 10), &mut tokio::io::sink()).await
    };
    // Who is gone needs no alert.
    drop(timeout(Duration::from_secs(2), said).await);
}

/// A stream that counts the bytes that go over it, so that a stalled one is noticed.
pub(super) struct Counted<S> {
    stream: S,
    bytes: Arc<AtomicU64>,
}

impl<S> Counted<S> {
    /// The stream, and the count.
    pub fn new(stream: S) -> (Self, Arc<AtomicU64>) {
        let bytes = Arc::new(AtomicU64::new(0));
        (Self { stream, bytes: Arc::clone(&bytes) }, bytes)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.bytes.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = &written {
            self.bytes.fetch_add(*n as u64, Ordering::Relaxed);
        }
        written
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

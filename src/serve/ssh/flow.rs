//! How much of what a peer sends is taken in. russh acknowledges what it has read before anybody has used it, and stops reading a whole
//! connection while the queue of one channel is full: then the peer's own acknowledgements are not read either, and a program that
//! answers as it reads (`cat`) comes to a standstill with its client.
//!
//! So nothing here waits for a slow reader: what came in is kept, and counted over all channels of the connection. While there is too
//! much of it the window of a channel, once used up, is opened by two bytes at a time (nothing else makes russh look at it again), and
//! the connection is read a hundred times a second: its peer can send next to no data, and all the rest of the protocol.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::Sleep,
};
use tokio_util::{
    bytes::{Buf, Bytes},
    sync::{CancellationToken, WaitForCancellationFutureOwned},
};

/// What a peer may send on a channel before it has to be told to go on.
pub const WINDOW: u32 = 2 << 20;
/// From here on too much is waiting. At most a window for each channel comes on top of it.
const FULL: usize = 256 << 10;
/// How often a connection is read of which too much is waiting.
const PAUSE: Duration = Duration::from_millis(10);

/// What came in on a connection and waits to be used.
#[derive(Debug, Default)]
pub struct Tide(AtomicUsize);

impl Tide {
    fn high(&self) -> bool {
        self.0.load(Ordering::Relaxed) > FULL
    }

    /// How far the window of a channel is to be opened from now on.
    pub fn window(&self) -> u32 {
        if self.high() { 2 } else { WINDOW }
    }

    /// The two ends of what comes in on one channel.
    pub fn channel(self: &Arc<Self>) -> (Inlet, Intake) {
        let (to, from) = mpsc::unbounded_channel();
        (Inlet { to, tide: Arc::clone(self) }, Intake { from, tide: Arc::clone(self), part: Bytes::new() })
    }
}

/// Where what came in is put. Never waits.
#[derive(Debug)]
pub struct Inlet {
    to: mpsc::UnboundedSender<Bytes>,
    tide: Arc<Tide>,
}

impl Inlet {
    pub fn put(&self, bytes: Bytes) {
        let length = bytes.len();
        self.tide.0.fetch_add(length, Ordering::Relaxed);
        if self.to.send(bytes).is_err() {
            // Nobody wants it.
            self.tide.0.fetch_sub(length, Ordering::Relaxed);
        }
    }
}

/// Where what came in is taken from.
#[derive(Debug)]
pub struct Intake {
    from: mpsc::UnboundedReceiver<Bytes>,
    tide: Arc<Tide>,
    part: Bytes,
}

impl Intake {
    /// What came next; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        if !self.part.is_empty() {
            return Some(std::mem::take(&mut self.part));
        }
        let bytes = self.from.recv().await?;
        self.tide.0.fetch_sub(bytes.len(), Ordering::Relaxed);
        Some(bytes)
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.from.close();
        while let Ok(bytes) = self.from.try_recv() {
            self.tide.0.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Intake {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        while self.part.is_empty() {
            match ready!(self.from.poll_recv(cx)) {
                Some(bytes) => {
                    self.tide.0.fetch_sub(bytes.len(), Ordering::Relaxed);
                    self.part = bytes;
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.part.len().min(buffer.remaining());
        buffer.put_slice(&self.part[..count]);
        self.part.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// A stream that is read slowly while too much of it is waiting, and that we can close from outside: the session runs in a task of its
/// own, which ends when its stream fails.
#[derive(Debug)]
pub struct Gate<S> {
    stream: S,
    tide: Arc<Tide>,
    pause: Option<Pin<Box<Sleep>>>,
    reading: Pin<Box<WaitForCancellationFutureOwned>>,
    writing: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Gate<S> {
    pub fn new(stream: S, tide: Arc<Tide>, close: &CancellationToken) -> Self {
        let wait = || Box::pin(close.clone().cancelled_owned());
        Self { stream, tide, pause: None, reading: wait(), writing: wait() }
    }
}

fn closed<T>() -> Poll<std::io::Result<T>> {
    Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()))
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.reading.as_mut().poll(cx).is_ready() {
            return closed();
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_pending() && self.tide.high() {
            let mut pause = Box::pin(tokio::time::sleep(PAUSE));
            // To be woken at its end; by the stream, too, which does no harm.
            if pause.as_mut().poll(cx).is_pending() {
                self.pause = Some(pause);
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_waits_is_counted_until_it_is_used_or_given_up() {
        let tide = Arc::new(Tide::default());
        let (inlet, mut intake) = tide.channel();
        let (other, unused) = tide.channel();
        inlet.put(Bytes::from(vec![1; FULL]));
        assert_eq!(tide.window(), WINDOW);
        other.put(Bytes::from_static(b"x"));
        assert_eq!(tide.window(), 2);
        drop(unused);
        other.put(Bytes::from(vec![2; FULL]));
        assert_eq!(tide.window(), WINDOW);
        let mut some = [0; 10];
        intake.read_exact(&mut some).await.unwrap();
        assert_eq!(tide.0.load(Ordering::Relaxed), 0);
        drop(inlet);
        assert_eq!(intake.next().await.map(|rest| rest.len()), Some(FULL - 10));
        assert_eq!(intake.next().await, None);
    }

    #[tokio::test]
    async fn a_stream_of_which_too_much_waits_is_read_now_and_then() {
        let tide = Arc::new(Tide::default());
        let (inlet, intake) = tide.channel();
        inlet.put(Bytes::from(vec![0; FULL + 1]));
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut gate = Gate::new(ours, Arc::clone(&tide), &CancellationToken::new());
        let began = tokio::time::Instant::now();
        let write = async {
            for _ in 0..20 {
                theirs.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(intake);
            theirs.write_all(b"end").await.unwrap();
            drop(theirs);
        };
        let read = async {
            let mut reads = 0;
            let mut buffer = [0; 64];
            while gate.read(&mut buffer).await.unwrap() > 0 {
                reads += 1;
            }
            reads
        };
        let ((), reads) = tokio::join!(write, read);
        let pauses = began.elapsed().as_millis() / PAUSE.as_millis();
        assert!((2..=pauses + 2).contains(&reads), "{reads} reads in {:?}", began.elapsed());
    }
}

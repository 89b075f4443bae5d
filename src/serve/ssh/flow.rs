//! How much of what a peer sends is taken in. russh acknowledges what it has read before anybody has used it, and stops reading a whole
//! connection while the queue of one channel is full: then the peer's own acknowledgements are not read either, and a program that
//! answers as it reads (`cat`) comes to a standstill with its client.
//!
//! So nothing here waits for a slow reader: what came in is kept, and counted over all channels of the connection. While there is too
//! much of it the window of a channel, once used up, is opened by two bytes at a time (nothing else makes russh look at it again), and
//! before the next of these the connection is not read for a while, a longer one each time: its peer can send next to no data, and all
//! the rest of the protocol. Waiting only while there is nothing to read would not do: a peer that answers quickly enough always has
//! something there.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, mpsc},
};
use tokio_util::{
    bytes::{Buf, Bytes},
    sync::{CancellationToken, WaitForCancellationFutureOwned},
};

/// What a peer may send on a channel before it has to be told to go on.
pub const WINDOW: u32 = 2 << 20;
/// From here on too much is waiting. At most a window for each channel comes on top of it.
const FULL: usize = 256 << 10;
/// No peer that keeps to its windows has so much waiting on one channel: one window is granted before the first byte is waiting, one at
/// the last moment before too much is, and half a window may be left of the one before.
const FLOOD: usize = 4 * WINDOW as usize;
/// How far a window is opened while too much is waiting.
const CRUMB: u32 = 2;
/// How long a connection is not read before the first crumb is answered; by how much longer before each that follows; and at most.
const PAUSE: Duration = Duration::from_millis(10);
const LONGER: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(1);

/// What came in on a connection and waits to be used.
#[derive(Debug, Default)]
pub struct Tide {
    waiting: AtomicUsize,
    /// Crumbs that were handed out since too much is waiting.
    crumbs: AtomicUsize,
    /// The last of them has not been waited for.
    owed: AtomicBool,
    /// Wakes whoever pauses when it is no longer too much.
    ebb: Notify,
    /// The peer does not keep to its windows.
    flooded: AtomicBool,
}

impl Tide {
    fn high(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > FULL
    }

    /// How far the window of a channel is to be opened from now on; asked each time that one is opened.
    pub fn window(&self) -> u32 {
        if !self.high() {
            self.crumbs.store(0, Ordering::Relaxed);
            return WINDOW;
        }
        self.crumbs.fetch_add(1, Ordering::Relaxed);
        self.owed.store(true, Ordering::Relaxed);
        CRUMB
    }

    /// How long not to read, if at all.
    fn pause(&self) -> Option<Duration> {
        let crumbs = u32::try_from(self.crumbs.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let pause = PAUSE.saturating_add(LONGER.saturating_mul(crumbs)).min(LONGEST);
        (self.owed.swap(false, Ordering::Relaxed) && self.high()).then_some(pause)
    }

    fn fall(&self, length: usize) {
        let before = self.waiting.fetch_sub(length, Ordering::Relaxed);
        if before > FULL && before - length <= FULL {
            self.ebb.notify_one();
        }
    }

    /// The two ends of what comes in on one channel.
    pub fn channel(self: &Arc<Self>) -> (Inlet, Intake) {
        let (to, from) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let inlet = Inlet { to, tide: Arc::clone(self), waiting: Arc::clone(&waiting) };
        (inlet, Intake { from, tide: Arc::clone(self), waiting, part: Bytes::new() })
    }
}

/// Where what came in is put. Never waits.
#[derive(Debug)]
pub struct Inlet {
    to: mpsc::UnboundedSender<Bytes>,
    tide: Arc<Tide>,
    /// Of this channel alone.
    waiting: Arc<AtomicUsize>,
}

impl Inlet {
    pub fn put(&self, bytes: Bytes) {
        let length = bytes.len();
        self.tide.waiting.fetch_add(length, Ordering::Relaxed);
        let before = self.waiting.fetch_add(length, Ordering::Relaxed);
        if self.to.send(bytes).is_err() {
            // Nobody wants it.
            self.waiting.fetch_sub(length, Ordering::Relaxed);
            self.tide.fall(length);
        } else if before + length > FLOOD {
            self.tide.flooded.store(true, Ordering::Relaxed);
        }
    }
}

/// Where what came in is taken from.
#[derive(Debug)]
pub struct Intake {
    from: mpsc::UnboundedReceiver<Bytes>,
    tide: Arc<Tide>,
    waiting: Arc<AtomicUsize>,
    part: Bytes,
}

impl Intake {
    fn took(&self, length: usize) {
        self.waiting.fetch_sub(length, Ordering::Relaxed);
        self.tide.fall(length);
    }

    /// What came next; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        if !self.part.is_empty() {
            return Some(std::mem::take(&mut self.part));
        }
        let bytes = self.from.recv().await?;
        self.took(bytes.len());
        Some(bytes)
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.from.close();
        while let Ok(bytes) = self.from.try_recv() {
            self.took(bytes.len());
        }
    }
}

impl AsyncRead for Intake {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        while self.part.is_empty() {
            match ready!(self.from.poll_recv(cx)) {
                Some(bytes) => {
                    self.took(bytes.len());
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
pub struct Gate<S> {
    stream: S,
    tide: Arc<Tide>,
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
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
        if self.tide.flooded.load(Ordering::Relaxed) {
            return closed();
        }
        if self.pause.is_none()
            && let Some(pause) = self.tide.pause()
        {
            let tide = Arc::clone(&self.tide);
            self.pause = Some(Box::pin(async move { drop(tokio::time::timeout(pause, tide.ebb.notified()).await) }));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
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
        assert_eq!(tide.window(), CRUMB);
        drop(unused);
        other.put(Bytes::from(vec![2; FULL]));
        assert_eq!(tide.window(), WINDOW);
        let mut some = [0; 10];
        intake.read_exact(&mut some).await.unwrap();
        assert_eq!(tide.waiting.load(Ordering::Relaxed), 0);
        drop(inlet);
        assert_eq!(intake.next().await.map(|rest| rest.len()), Some(FULL - 10));
        assert_eq!(intake.next().await, None);
    }

    #[tokio::test]
    async fn a_peer_that_always_has_something_more_is_read_less_and_less_until_somebody_takes_it() {
        let tide = Arc::new(Tide::default());
        let (inlet, intake) = tide.channel();
        inlet.put(Bytes::from(vec![0; FULL + 1]));
        // All is there at once.
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(&[0; 40 * 1000]).await.unwrap();
        let mut gate = Gate::new(ours, Arc::clone(&tide), &CancellationToken::new());
        let mut buffer = [0; 40];
        let began = tokio::time::Instant::now();
        let mut packets = 0;
        // As russh does: a packet, and then a window.
        while tokio::time::timeout_at(began + PAUSE * 30, gate.read_exact(&mut buffer)).await.is_ok() {
            packets += 1;
            tide.window();
        }
        assert!((2..=32).contains(&packets), "{packets}");
        for _ in 0..10_000 {
            tide.window();
        }
        assert_eq!(tide.pause(), Some(LONGEST));
        assert_eq!(tide.pause(), None, "one for each crumb");
        tide.window();
        // Who waits goes on at once when there is room again.
        let began = tokio::time::Instant::now();
        let read = async {
            let mut rest = Vec::new();
            gate.read_to_end(&mut rest).await.unwrap();
            rest.len()
        };
        let take = async {
            tokio::time::sleep(PAUSE).await;
            drop((intake, theirs));
        };
        let (rest, ()) = tokio::join!(read, take);
        assert!(rest >= 40 * (1000 - packets - 1) && began.elapsed() < LONGEST, "{rest} {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_peer_that_does_not_keep_to_its_windows_is_left() {
        let tide = Arc::new(Tide::default());
        let (inlet, _intake) = tide.channel();
        let (other, _unread) = tide.channel();
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut gate = Gate::new(ours, Arc::clone(&tide), &CancellationToken::new());
        inlet.put(Bytes::from(vec![0; FLOOD]));
        other.put(Bytes::from(vec![0; FLOOD]));
        theirs.write_all(b"x").await.unwrap();
        assert_eq!(gate.read_u8().await.unwrap(), b'x');
        inlet.put(Bytes::from_static(b"x"));
        assert_eq!(gate.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
    }
}

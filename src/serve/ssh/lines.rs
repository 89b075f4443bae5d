//! Text for a terminal.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

/// Text as a terminal in raw mode wants it: lines end in CR LF there, in LF elsewhere.
pub struct Lines<W> {
    to: W,
    terminal: bool,
    /// A CR was written, its LF was not.
    owed: bool,
}

impl<W> Lines<W> {
    pub fn new(to: W, terminal: bool) -> Self {
        Self { to, terminal, owed: false }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Lines<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if !self.terminal || bytes.is_empty() {
            return Pin::new(&mut self.to).poll_write(cx, bytes);
        }
        if bytes[0] != b'\n' {
            let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
            return Pin::new(&mut self.to).poll_write(cx, &bytes[..end]);
        }
        if !self.owed {
            match ready!(Pin::new(&mut self.to).poll_write(cx, b"\r\n"))? {
                0 => return Poll::Ready(Ok(0)),
                1 => self.owed = true,
                _ => return Poll::Ready(Ok(1)),
            }
        }
        let written = ready!(Pin::new(&mut self.to).poll_write(cx, b"\n"))?;
        self.owed = false;
        Poll::Ready(Ok(written))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(cx)
    }
}

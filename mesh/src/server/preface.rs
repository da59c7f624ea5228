//! A connection over HTTP/2 that must begin soon.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// How long the beginning of HTTP/2 is.
const LENGTH: usize = 24;

/// A stream whose reads fail unless its first bytes come in time: hyper waits
/// for them as long as it takes.
pub(super) struct Preface<I> {
    io: I,
    /// How many bytes are awaited, and until when.
    awaited: Option<(usize, Pin<Box<Sleep>>)>,
}

impl<I> Preface<I> {
    /// `io`, whose beginning must have come within `timeout`.
    pub(super) fn new(io: I, timeout: Duration) -> Self {
        Self { io, awaited: Some((LENGTH, Box::pin(tokio::time::sleep(timeout)))) }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Preface<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let Some((missing, timeout)) = &mut self.awaited else { return read };
        *missing = missing.saturating_sub(buf.filled().len() - before);
        if *missing == 0 {
            self.awaited = None;
        } else if read.is_pending() && timeout.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Preface<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Between two of the bytes that trickle.
    const TIMEOUT: Duration = Duration::from_millis(5500);

    #[tokio::test(start_paused = true)]
    async fn first_bytes_that_trickle_come_too_late() {
        let (mut peer, io) = tokio::io::duplex(64);
        let mut io = Preface::new(io, TIMEOUT);
        let trickle = async {
            while peer.write_all(b"P").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let mut read = Vec::new();
        let ended = tokio::select! {
            ended = io.read_to_end(&mut read) => ended,
            () = trickle => unreachable!("the stream is open"),
        };
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(read.len(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn what_follows_in_time_may_take_its_time() {
        let (mut peer, io) = tokio::io::duplex(64);
        let mut io = Preface::new(io, TIMEOUT);
        peer.write_all(&[0; LENGTH]).await.unwrap();
        io.read_exact(&mut [0; LENGTH]).await.unwrap();
        tokio::time::sleep(10 * TIMEOUT).await;
        peer.write_all(b"more").await.unwrap();
        io.read_exact(&mut [0; 4]).await.unwrap();
    }
}

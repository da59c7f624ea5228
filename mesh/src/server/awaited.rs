//! A connection over HTTP/1.1 whose peer is awaited, but not for ever.
//!
//! ```text
//!  accepted ──▶ silent ──▶ header ──▶ request ──▶ idle
//!                             ▲                     │
//!                             └─────────────────────┘
//! ```
//!
//! hyper has one time for all but the request: it would close a connection that a
//! pool has opened ahead of need, or kept for its next request, as soon as one whose
//! header trickles. Here each state has its own: `limits.first_byte_timeout`,
//! `limits.handshake_timeout` and `limits.keep_alive_timeout`. While the listener has
//! more than half of the connections it may have, nobody is awaited for longer than a
//! header may take. What is read of a next header while its predecessor is answered
//! counts as idle, not as a header: one such part can't be told from the body before it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{quota::Quota, silent::Seat, streams::Streams};
use crate::config::LimitsConfig;

/// How HTTP/2 begins, where it is spoken too; its connections are timed by
/// [`Streams::idle`].
const HTTP2: &[u8] = b"PRI * HTTP/2.0";
/// What a connection that has to make room is left for its first bytes, which may have
/// arrived without having been read.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// A stream whose reads fail when its peer was awaited for too long.
pub(super) struct Awaited<I> {
    io: I,
    streams: Arc<Streams>,
    times: Times,
    /// All connections of the listener.
    connections: Arc<Quota>,
    made: Instant,
    /// Until its first byte.
    silent: Option<(Seat, Pin<Box<WaitForCancellationFutureOwned>>)>,
    /// Since when a request's header is being read, and how many requests had begun
    /// before.
    header: Option<(Instant, u64)>,
    /// Whether it may turn out to be HTTP/2, and whether it has.
    speaks_http2: bool,
    is_http2: bool,
    /// Whether what was written last waits for the peer to read.
    writing: bool,
    timer: Pin<Box<Sleep>>,
}

/// How long the peer is awaited, by state.
struct Times {
    silent: Duration,
    header: Duration,
    idle: Duration,
}

impl<I> Awaited<I> {
    /// `io`, whose requests are `streams`; one of the listener's `connections`.
    pub(super) fn new(
        io: I,
        streams: Arc<Streams>,
        limits: &LimitsConfig,
        connections: Arc<Quota>,
        seat: Seat,
        speaks_http2: bool,
    ) -> Self {
        let times = Times {
            silent: limits.first_byte_timeout,
            header: limits.handshake_timeout,
            idle: limits.keep_alive_timeout,
        };
        let gone = Box::pin(seat.gone.clone().cancelled_owned());
        Self {
            io,
            streams,
            timer: Box::pin(tokio::time::sleep(times.header)),
            times,
            connections,
            silent: Some((seat, gone)),
            made: Instant::now(),
            header: None,
            speaks_http2,
            is_http2: false,
            writing: false,
        }
    }

    /// Something was read.
    fn heard(&mut self, bytes: &[u8]) {
        if self.silent.take().is_some() {
            self.is_http2 = self.speaks_http2 && bytes.starts_with(HTTP2);
        }
        let begun = self.streams.begun();
        let goes_on = self.header.is_some_and(|(_, before)| before == begun);
        if !goes_on && !self.streams.is_busy() {
            self.header = Some((Instant::now(), begun));
        }
    }

    /// Until when the peer is awaited; `None` while it is being answered.
    fn deadline(&mut self) -> Option<Instant> {
        if self.is_http2 || self.writing || self.streams.is_busy() {
            return None;
        }
        self.header = self.header.filter(|(_, before)| *before == self.streams.begun());
        if let Some((since, _)) = self.header {
            return Some(since + self.times.header);
        }
        let time = match (self.connections.is_crowded(), &self.silent) {
            (true, _) => self.times.header,
            (false, Some(_)) => self.times.silent,
            (false, None) => self.times.idle,
        };
        Some(self.streams.idle_since() + time)
    }

    /// Something was to be written, and perhaps the peer has yet to read.
    fn wrote(&mut self, waits: bool, cx: &Context<'_>) {
        if self.writing && !waits {
            // From now on it may be awaited.
            cx.waker().wake_by_ref();
        }
        self.writing = waits;
    }

    /// Whether the peer was awaited for too long, or has to make room.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // hyper doesn't read again of itself once a request has ended.
        self.streams.await_next(cx);
        let makes_room = self.silent.as_mut().is_some_and(|(seat, gone)| {
            seat.gone.is_cancelled() || gone.as_mut().poll(cx).is_ready()
        });
        loop {
            let Some(mut deadline) = self.deadline() else { return Poll::Pending };
            if makes_room {
                deadline = deadline.min(self.made + LAST_CHANCE);
            }
            let now = Instant::now();
            if deadline <= now {
                return Poll::Ready(());
            }
            // It looks again soon enough to see that it has become crowded.
            let set = self.timer.deadline();
            if set <= now || set > deadline {
                self.timer.as_mut().reset(deadline.min(now + self.times.header));
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Awaited<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard(&buf.filled()[before..]);
        }
        if read.is_pending() && self.poll_late(cx).is_ready() {
            self.streams.give_up();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Awaited<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(written.is_pending(), cx);
        written
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
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(written.is_pending(), cx);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

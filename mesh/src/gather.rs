//! Gathers what HTTP/2 writes while its connection is polled once, and writes it
//! at the end of that poll.
//!
//! h2 flushes after every data frame, so an answer's headers and data are one
//! write and its trailers another, and so are the frames of other streams that
//! are ready at the same time: a TLS record, a system call and a segment each,
//! for what fits into one. Nothing is delayed: what was gathered leaves before
//! the connection's task waits again.

use std::{
    future::{Future as _, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
};

/// How much is gathered before it is written all the same: what one TLS record
/// holds.
const MOST: usize = 16 * 1024;
/// How much memory a connection keeps for the next time: thousands may be idle.
const KEPT: usize = 4 * 1024;

/// A stream that gathers writes, to be given to HTTP/2.
pub(crate) struct Gather<T> {
    shared: Arc<Mutex<Gathering<T>>>,
}

/// The other end of a [`Gather`], for whoever polls the connection.
pub(crate) struct Release<T> {
    shared: Arc<Mutex<Gathering<T>>>,
}

struct Gathering<T> {
    io: T,
    gathered: Vec<u8>,
    /// How much of it is written already.
    written: usize,
    /// Whether what was written has still to be flushed.
    unflushed: bool,
    /// Whether a poll that ends with a release is under way: only then may
    /// anything be kept back.
    polling: bool,
    /// What went wrong at a release; the connection learns of it when it reads or
    /// writes next.
    failed: Option<io::Error>,
}

/// `io` as a stream that gathers writes, and what releases them.
pub(crate) fn gather<T>(io: T) -> (Gather<T>, Release<T>) {
    let gathering = Gathering {
        io,
        gathered: Vec::new(),
        written: 0,
        unflushed: false,
        polling: false,
        failed: None,
    };
    let shared = Arc::new(Mutex::new(gathering));
    (Gather { shared: shared.clone() }, Release { shared })
}

impl<T: AsyncWrite + Unpin> Release<T> {
    /// Polls the connection by `poll`, and then writes what it wrote. Always from
    /// the connection's own task: that is who is woken when the stream can take
    /// more.
    pub(crate) fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        lock(&self.shared).polling = true;
        let polled = poll(cx);
        let mut gathering = lock(&self.shared);
        gathering.polling = false;
        // What the poll has used up of its task's budget is no reason to hold back
        // what is done.
        let released = pin!(coop::unconstrained(poll_fn(|cx| gathering.poll_release(cx)))).poll(cx);
        if let Poll::Ready(Err(why)) = released {
            gathering.failed = Some(why);
            cx.waker().wake_by_ref();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> Gathering<T> {
    /// Writes and flushes what was gathered.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
            self.unflushed = true;
        }
        self.gathered.clear();
        self.gathered.shrink_to(KEPT);
        self.written = 0;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(why) = self.failed.take() {
            return Poll::Ready(Err(why));
        }
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if !self.polling || self.gathered.len() + length > MOST {
            ready!(self.poll_release(cx))?;
        }
        if !self.polling || length > MOST {
            self.unflushed = true;
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        bufs.iter().for_each(|buf| self.gathered.extend_from_slice(buf));
        Poll::Ready(Ok(length))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gather<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut gathering = lock(&self.shared);
        match gathering.failed.take() {
            Some(why) => Poll::Ready(Err(why)),
            None => Pin::new(&mut gathering.io).poll_read(cx, buf),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gather<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.shared).poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.shared).poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = lock(&self.shared);
        if gathering.polling && gathering.failed.is_none() {
            return Poll::Ready(Ok(()));
        }
        if let Some(why) = gathering.failed.take() {
            return Poll::Ready(Err(why));
        }
        gathering.poll_release(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = lock(&self.shared);
        ready!(gathering.poll_release(cx))?;
        Pin::new(&mut gathering.io).poll_shutdown(cx)
    }
}

fn lock<T>(shared: &Mutex<Gathering<T>>) -> MutexGuard<'_, Gathering<T>> {
    // Nothing in here panics half-way through a change.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{task::Waker, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Keeps each write apart, as long as there is room for them.
    #[derive(Default)]
    struct Wire {
        writes: Vec<Vec<u8>>,
        flushes: usize,
        room: usize,
        broken: bool,
    }

    impl AsyncRead for Wire {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let taken = buf.len().min(self.room);
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.writes.push(buf[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes each of `parts` and flushes it, as h2 does with frames, in one poll.
    fn write_in_one_poll(
        stream: &mut Gather<Wire>,
        release: &Release<Wire>,
        parts: &[&[u8]],
    ) -> Poll<io::Result<()>> {
        let mut cx = Context::from_waker(Waker::noop());
        release.poll(&mut cx, |cx| {
            for part in parts {
                let written = ready!(Pin::new(&mut *stream).poll_write(cx, part))?;
                assert_eq!(written, part.len());
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
            }
            Poll::Ready(Ok(()))
        })
    }

    #[test]
    fn what_one_poll_writes_leaves_at_its_end_as_one_write() {
        let (mut stream, release) = gather(Wire { room: usize::MAX, ..Wire::default() });
        let frames: [&[u8]; 3] = [b"headers ", b"data ", b"trailers"];
        assert!(write_in_one_poll(&mut stream, &release, &frames).is_ready());
        let wire = &lock(&stream.shared).io;
        assert_eq!(wire.writes, [b"headers data trailers"]);
        assert_eq!(wire.flushes, 1);
    }

    #[tokio::test]
    async fn outside_of_such_a_poll_nothing_is_kept_back() {
        let (mut stream, _release) = gather(Wire { room: usize::MAX, ..Wire::default() });
        stream.write_all(b"preface").await.unwrap();
        assert_eq!(lock(&stream.shared).io.writes, [b"preface"]);
    }

    #[test]
    fn more_than_a_record_is_not_gathered() {
        let (mut stream, release) = gather(Wire { room: usize::MAX, ..Wire::default() });
        let (half, large) = (vec![1; MOST / 2 + 1], vec![2; MOST + 1]);
        assert!(write_in_one_poll(&mut stream, &release, &[&half, &half, &large]).is_ready());
        let lengths: Vec<usize> = lock(&stream.shared).io.writes.iter().map(Vec::len).collect();
        assert_eq!(lengths, [half.len(), half.len(), large.len()]);
    }

    #[test]
    fn what_the_stream_does_not_take_is_written_later_and_holds_up_the_writer() {
        let (mut stream, release) = gather(Wire { room: 3, ..Wire::default() });
        assert!(write_in_one_poll(&mut stream, &release, &[&[7; MOST]]).is_ready());
        assert!(write_in_one_poll(&mut stream, &release, &[b"more"]).is_pending(), "it is full");
        lock(&stream.shared).io.room = usize::MAX;
        assert!(write_in_one_poll(&mut stream, &release, &[b"more"]).is_ready());
        let wire = &lock(&stream.shared).io;
        assert_eq!(wire.writes.concat().len(), MOST + 4);
        assert!(wire.writes.concat().ends_with(b"\x07more"));
    }

    #[tokio::test]
    async fn a_failed_write_is_told_to_the_connection() {
        let (mut stream, release) = gather(Wire { broken: true, ..Wire::default() });
        assert!(write_in_one_poll(&mut stream, &release, &[b"lost"]).is_ready());
        let why = stream.read_u8().await.unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_a_poll_that_has_used_up_its_budget_wrote_leaves_all_the_same() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let (mut stream, release) = gather(near);
        let once = |cx: &mut Context<'_>| {
            assert!(Pin::new(&mut stream).poll_write(cx, b"answer").is_ready());
            while coop::has_budget_remaining() {
                let _ = pin!(coop::consume_budget()).poll(cx);
            }
            Poll::Ready(())
        };
        let mut once = Some(once);
        poll_fn(|cx| release.poll(cx, once.take().unwrap())).await;
        let mut read = [0; 6];
        let arrived = tokio::time::timeout(Duration::from_secs(5), far.read_exact(&mut read));
        arrived.await.expect("it was written").unwrap();
    }

    #[tokio::test]
    async fn all_of_it_arrives_through_a_narrow_stream() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut stream, release) = gather(near);
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = sent.clone();
        let writer = async move {
            let writing = async {
                for frame in sent.chunks(777) {
                    stream.write_all(frame).await.unwrap();
                    stream.flush().await.unwrap();
                }
                stream.shutdown().await.unwrap();
            };
            tokio::pin!(writing);
            poll_fn(|cx| release.poll(cx, |cx| writing.as_mut().poll(cx))).await;
        };
        let mut received = Vec::new();
        let (_, read) = tokio::join!(writer, far.read_to_end(&mut received));
        read.unwrap();
        assert_eq!(received, expected);
    }
}

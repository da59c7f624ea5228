//! The body of a unary request: it must arrive in time, and what all of them
//! hold together is bounded.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::{Status, body::Body};

use super::limit::Places;
use crate::status::{Reason, status};

/// A request's body, whose bytes count from their arrival to the end of the call.
pub(super) struct Received {
    body: Body,
    timeout: Duration,
    deadline: Instant,
    /// Made when there is something to wait for: most bodies are there with
    /// their headers.
    late: Option<Pin<Box<Sleep>>>,
    places: Arc<Places>,
}

impl Received {
    pub(super) fn new(body: Body, timeout: Duration, places: Arc<Places>) -> Self {
        Self { body, timeout, deadline: Instant::now() + timeout, late: None, places }
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            let deadline = this.deadline;
            let late =
                this.late.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            std::task::ready!(late.as_mut().poll(cx));
            let why = format!("the request didn't arrive within {:?}", this.timeout);
            return Poll::Ready(Some(Err(status(Reason::DeadlineExceeded, why))));
        };
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if !this.places.hold(bytes) {
            let why = "requests take as much memory as they may: `limits.request_bytes`";
            return Poll::Ready(Some(Err(status(Reason::Overloaded, why))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::{config::Config, server::quota::Room};

    fn room(request_bytes: usize) -> Room {
        let mut config = Config::from_sources(None, Default::default(), &[]).unwrap();
        config.limits.request_bytes = request_bytes;
        Room::of_all(&config.limits)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_cut_off_in_time() {
        let (sender, frames) = mpsc::channel::<Result<_, Status>>(1);
        let body = Body::new(StreamBody::new(ReceiverStream::new(frames)));
        let timeout = Duration::from_secs(10);
        let room = room(1000);
        let received = Received::new(body, timeout, Places::in_room(&room));
        let trickle = async {
            while sender.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let begun = Instant::now();
        let why = tokio::select! {
            whole = received.collect() => whole.unwrap_err(),
            () = trickle => unreachable!("the body is read"),
        };
        assert_eq!(crate::status::reason(&why), Reason::DeadlineExceeded);
        assert_eq!(begun.elapsed(), timeout);
        assert_eq!(room.request_bytes.taken(), 0, "its room is given back");
    }

    #[tokio::test]
    async fn a_body_that_finds_no_room_is_refused() {
        let room = room(100);
        let body = |bytes| {
            let body = Body::new(Full::new(Bytes::from(vec![0; bytes])));
            Received::new(body, Duration::from_secs(10), Places::in_room(&room))
        };
        let mut first = body(60);
        first.frame().await.unwrap().unwrap();
        let why = body(60).collect().await.unwrap_err();
        assert_eq!(crate::status::reason(&why), Reason::Overloaded);
        drop(first);
        assert!(body(60).collect().await.is_ok());
    }
}

//! The two ends of a call, its request and its answer, each of which ends with the
//! other: why a request can't go on is told by the answer, and where the answer is
//! over, the request is.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, body::Body};

/// What the two ends of one call share.
#[derive(Clone)]
pub(crate) struct Ends {
    failure: watch::Sender<Option<Status>>,
    /// Cancelled when the answer is over, or nobody waits for it.
    over: CancellationToken,
}

impl Default for Ends {
    fn default() -> Self {
        Self { failure: watch::channel(None).0, over: CancellationToken::new() }
    }
}

impl Ends {
    /// The request can't go on.
    pub(crate) fn fail(&self, why: Status) {
        self.failure.send_replace(Some(why));
    }

    /// Why the request can't go on, once it can't.
    pub(crate) fn failed(&self) -> BoxFuture<'static, Status> {
        let mut failure = self.failure.subscribe();
        Box::pin(async move {
            let found = failure.wait_for(Option::is_some).await;
            let found = found.ok().and_then(|found| found.clone());
            match found {
                Some(status) => status,
                // Nobody is left who could say.
                None => std::future::pending().await,
            }
        })
    }

    /// When the answer is over.
    pub(crate) fn over(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.over.clone().cancelled_owned())
    }

    /// A request that ends when the answer is over.
    pub(crate) fn request(&self, body: Body) -> Request {
        Request { body, over: self.over() }
    }

    /// What ends the request when it is dropped: with the answer, or for want of one.
    pub(crate) fn guard(&self) -> DropGuard {
        self.over.clone().drop_guard()
    }
}

/// A request's body that ends when the answer is over.
pub(crate) struct Request {
    body: Body,
    over: BoxFuture<'static, ()>,
}

impl http_body::Body for Request {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Status::cancelled("the call is over"))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

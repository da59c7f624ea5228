//! Takes in as many requests as the service may handle at once, and refuses
//! more at once: a queue would only make all of them late.
//!
//! tower's concurrency limit and load shedding know one limit for everybody.
//! Here unary and streaming requests have limits of their own, one party takes
//! no more than half, and what comes by a connection that is being drained was
//! sent before its peer knew, so it is let in.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use opentelemetry::{KeyValue, metrics::Counter};
use tonic::{Status, body::Body};
use tower::Service;

use super::{
    Remote,
    quota::{Place, Room},
    received::Received,
    streams::Stream,
};
use crate::{
    config::LimitsConfig,
    descriptors,
    status::{Reason, status},
    telemetry::{Throttle, label},
};

/// The service of the layer.
#[derive(Clone)]
pub(super) struct Limit<S> {
    inner: S,
    gate: Arc<Gate>,
}

/// What all clones of the service share.
pub(super) struct Gate {
    me: Arc<str>,
    room: Room,
    body_timeout: Duration,
    shed: Counter<u64>,
    line: Throttle,
}

impl Gate {
    /// The gate of the service `me`.
    pub(super) fn new(me: Arc<str>, limits: &LimitsConfig) -> Arc<Self> {
        let meter = opentelemetry::global::meter("omnibridge");
        let room = Room::of_all(limits);
        for (name, description, quota) in [
            ("omni.server.in_flight", "Unary requests being handled", &room.in_flight),
            ("omni.server.watches", "Streaming requests being handled", &room.watches),
            ("omni.server.request_bytes", "Bytes of unary requests", &room.request_bytes),
        ] {
            let (service, quota) = (label("service", me.clone()), Arc::downgrade(quota));
            // Observed as long as the service is there.
            let _ = meter
                .u64_observable_gauge(name)
                .with_description(description)
                .with_callback(move |gauge| {
                    if let Some(quota) = quota.upgrade() {
                        gauge.observe(quota.taken() as u64, std::slice::from_ref(&service));
                    }
                })
                .build();
        }
        let shed = meter
            .u64_counter("omni.server.shed")
            .with_description("Requests refused because the service has enough of them")
            .build();
        Arc::new(Self { me, room, body_timeout: limits.body_timeout, shed, line: Throttle::new() })
    }

    /// A request's places in its peer's room and in the room of all; `Err`
    /// names the limit that is reached.
    fn places(&self, of_peer: Option<&Room>, unary: bool) -> Result<Arc<Places>, &'static str> {
        let of_peer = of_peer.map(|room| room.place(unary)).transpose()?;
        Ok(Arc::new(Places { of_all: self.room.place(unary)?, of_peer }))
    }

    fn refuse(&self, remote: Option<&Remote>, path: &str, limit: &'static str) -> Status {
        let labels: [KeyValue; 2] = [label("service", self.me.clone()), label("limit", limit)];
        self.shed.add(1, &labels);
        if let Some(more) = self.line.admit() {
            let peer = remote.and_then(|remote| remote.peer.as_ref()).map(|peer| &peer.id);
            let peer = peer.map(ToString::to_string).unwrap_or_default();
            tracing::warn!(me = %self.me, peer, path, limit, more, "call refused: overloaded");
        }
        status(Reason::Overloaded, format!("{} has enough to do: `limits.{limit}`", self.me))
    }
}

/// A request's places, from its headers to the end of its answer.
pub(super) struct Places {
    of_all: Place,
    of_peer: Option<Place>,
}

impl Places {
    /// Whether the request may hold so many bytes more.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        self.of_peer.as_ref().is_none_or(|place| place.bytes.grow(bytes))
            && self.of_all.bytes.grow(bytes)
    }

    #[cfg(test)]
    pub(super) fn in_room(room: &Room) -> Arc<Self> {
        Arc::new(Self { of_all: room.place(true).expect("there is room"), of_peer: None })
    }
}

impl<S> Limit<S> {
    pub(super) fn new(inner: S, gate: Arc<Gate>) -> Self {
        Self { inner, gate }
    }
}

impl<S> Service<Request<Body>> for Limit<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Status>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let stream = request.extensions().get::<Arc<Stream>>().cloned();
        if stream.as_ref().is_some_and(|stream| stream.of.is_draining()) {
            return Box::pin(self.inner.call(request));
        }
        let of_peer = stream.as_ref().and_then(|stream| stream.of.room.as_deref());
        // A method without a descriptor counts as a stream.
        let unary = descriptors::is_unary(request.uri().path());
        let places = match self.gate.places(of_peer, unary) {
            Ok(places) => places,
            Err(limit) => {
                let remote = request.extensions().get();
                let refused = self.gate.refuse(remote, request.uri().path(), limit);
                return Box::pin(ready(Err(refused)));
            }
        };
        let request = request.map(|body| match unary && !http_body::Body::is_end_stream(&body) {
            true => Body::new(Received::new(body, self.gate.body_timeout, places.clone())),
            false => body,
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| Body::new(Held { body, _places: places })))
        })
    }
}

/// An answer whose request is in flight until it is sent.
struct Held {
    body: Body,
    _places: Arc<Places>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! The deadline goes along hop by hop and is never extended.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use tokio::time::{Instant, Sleep};
use tonic::{Status, body::Body};
use tower::Service;

use super::retry::To;
use crate::{
    call::Call,
    descriptors,
    intercept::code_so_far,
    status::{Reason, status},
};

/// gRPC's header for the time that is left.
pub(crate) const TIMEOUT_HEADER: &str = "grpc-timeout";
/// How long a unary call may take where nobody says.
const DEFAULT: Duration = Duration::from_secs(10);
/// The longest time the header can be given here; it takes 8 digits.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Until when the answer is of use; with the request, for the tries.
#[derive(Clone, Copy, Debug)]
pub(super) struct By(pub(super) Instant);

/// The service of the layer: gives each call the earliest of its own timeout,
/// the deadline of the call being answered, and its route's timeout.
#[derive(Clone)]
pub(super) struct Deadline<S> {
    inner: S,
    to: Arc<To>,
}

impl<S> Deadline<S> {
    pub(super) fn new(inner: S, to: Arc<To>) -> Self {
        Self { inner, to }
    }

    fn timeout(&self, request: &Request<Body>) -> Option<Duration> {
        let path = request.uri().path();
        let route = self.to.policy.borrow().routes.of(path).timeout;
        let streams = descriptors::method(path).is_none_or(|method| method.streaming);
        let own = parse(request.headers()).or(route).or((!streams).then_some(DEFAULT));
        let inherited =
            Call::current().deadline.map(|d| d.saturating_duration_since(Instant::now()));
        match (own, inherited) {
            (Some(own), Some(inherited)) => Some(own.min(inherited)),
            (own, inherited) => own.or(inherited),
        }
    }
}

impl<S> Service<Request<Body>> for Deadline<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(timeout) = self.timeout(&request) else {
            return Box::pin(self.inner.call(request));
        };
        let deadline = Instant::now() + timeout;
        request.extensions_mut().insert(By(deadline));
        let response = self.inner.call(request);
        Box::pin(async move {
            match tokio::time::timeout_at(deadline, response).await {
                Ok(response) => {
                    let response = response?;
                    let whole = code_so_far(&response).is_some();
                    Ok(if whole { response } else { response.map(|body| until(body, deadline)) })
                }
                Err(_) => Err(over()),
            }
        })
    }
}

/// What is answered when the time is over.
pub(crate) fn over() -> Status {
    status(Reason::DeadlineExceeded, "the deadline is over")
}

/// `body`, ended by trailers that say so when the deadline comes first.
pub(crate) fn until(body: Body, deadline: Instant) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(Until { body, deadline: Box::pin(tokio::time::sleep_until(deadline)), over: false })
}

struct Until {
    body: Body,
    deadline: Pin<Box<Sleep>>,
    over: bool,
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        ready!(self.deadline.as_mut().poll(cx));
        self.over = true;
        let trailers = over().into_http::<()>().into_parts().0.headers;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }
}

/// Reads `grpc-timeout`; `None` where it is missing or wrong.
///
/// Source: gRPC over HTTP/2, "Timeout".
pub(crate) fn parse(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT_HEADER)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Writes `grpc-timeout`, in whole milliseconds that are over sooner.
pub(super) fn format(timeout: Duration) -> HeaderValue {
    let millis = timeout.min(LONGEST).as_millis().max(1);
    HeaderValue::try_from(format!("{millis}m")).expect("digits and a letter are a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(TIMEOUT_HEADER.parse().unwrap(), text.parse().unwrap())])
    }

    #[test]
    fn every_unit_is_read() {
        for (text, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("4S", Duration::from_secs(4)),
            ("5m", Duration::from_millis(5)),
            ("6u", Duration::from_micros(6)),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(parse(&headers(text)), Some(expected));
        }
    }

    #[test]
    fn what_is_no_timeout_is_none() {
        for text in ["", "5", "m", "-5m", "123456789m", "5x", "5 m", "é"] {
            assert_eq!(parse(&headers(text)), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for millis in [1, 999, 86_400_000] {
            let written = format(Duration::from_millis(millis));
            let read = parse(&headers(written.to_str().unwrap()));
            assert_eq!(read, Some(Duration::from_millis(millis)));
        }
        assert_eq!(format(Duration::MAX).len(), 9);
    }
}

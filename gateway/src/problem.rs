//! How the gateway says no: RFC 9457 problem documents, with the reason of the
//! mesh's closed set as `code` and the trace to ask for.
//!
//! Anything that handles a request answers a [`Problem`]; it becomes a document
//! in `observe`, where the trace is known.

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use mesh::status::{self, Reason};
use serde::Serialize;

/// The media type of a problem document.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
/// The shortest `Retry-After`: it has whole seconds, and 0 is no help.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);

/// Why a request isn't done.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    reason: Reason,
    /// What is wrong and what to do, for the sender.
    detail: Cow<'static, str>,
    /// What the mesh said, for the log only.
    cause: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem with the request itself.
    pub(crate) fn request(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        let reason = match status {
            StatusCode::NOT_FOUND => Reason::NotFound,
            StatusCode::UNAUTHORIZED => Reason::Denied,
            StatusCode::REQUEST_TIMEOUT => Reason::DeadlineExceeded,
            _ => Reason::InvalidRequest,
        };
        Self::new(status, reason, detail)
    }

    /// A problem inside, as the closed set says it.
    pub(crate) fn inside(reason: Reason) -> Self {
        let (status, detail) = translate(reason);
        let problem = Self::new(status, reason, detail);
        match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                problem.retry_after(SHORTEST_RETRY)
            }
            _ => problem,
        }
    }

    /// What a bare status stands for, such as the router's own 404.
    pub(crate) fn bare(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => {
                Self::request(status, "nothing is here; webhooks go to POST /hooks/{source}")
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::request(status, "this path doesn't take this method; see `Allow`")
            }
            status if status.is_server_error() => Self::inside(Reason::Internal),
            status => Self::request(status, "the request can't be used"),
        }
    }

    fn new(status: StatusCode, reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, reason, detail: detail.into(), cause: None, headers: Vec::new() }
    }

    /// Adds a header to the answer.
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Closes the connection behind the answer: the rest of the request is
    /// unread.
    pub(crate) fn closing(self) -> Self {
        self.with(header::CONNECTION, HeaderValue::from_static("close"))
    }

    fn retry_after(mut self, after: Duration) -> Self {
        self.headers.retain(|(name, _)| name != header::RETRY_AFTER);
        let seconds = after.max(SHORTEST_RETRY).as_millis().div_ceil(1000);
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        self.with(header::RETRY_AFTER, seconds.into())
    }

    /// Logs the problem under the trace id that its document carries.
    pub(crate) fn log(&self, trace_id: &str) {
        let (status, code, detail) = (self.status.as_u16(), self.reason.as_str(), &self.detail);
        let cause = self.cause.as_deref().unwrap_or_default();
        if self.status.is_server_error() {
            tracing::warn!(status, code, trace_id, %detail, cause, "a request failed");
        } else {
            tracing::info!(status, code, trace_id, %detail, cause, "a request was refused");
        }
    }

    /// The document, as the answer.
    pub(crate) fn document(self, trace_id: &str) -> Response {
        let document = Document {
            // The status says it all, and `code` the rest; RFC 9457, 4.2.1.
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.reason.as_str(),
            trace_id,
        };
        let mut response = (self.status, axum::Json(document)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, MEDIA_TYPE);
        response.headers_mut().extend(self.headers);
        response
    }
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    trace_id: &'a str,
}

impl From<tonic::Status> for Problem {
    /// What the mesh answers. Only what is wrong with the request is passed on
    /// in its own words; of the inside the sender learns the reason alone.
    fn from(status: tonic::Status) -> Self {
        let mut problem = Self::inside(status::reason(&status));
        if let Some(after) = status::retry_after(&status) {
            problem = problem.retry_after(after);
        }
        if problem.reason == Reason::InvalidRequest {
            problem.detail = status.message().to_owned().into();
        } else {
            problem.cause = Some(status.message().to_owned());
        }
        problem
    }
}

impl IntoResponse for Problem {
    /// Not the document yet: `observe` makes it.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

fn translate(reason: Reason) -> (StatusCode, &'static str) {
    match reason {
        Reason::InvalidRequest => (StatusCode::UNPROCESSABLE_ENTITY, "the webhook is refused"),
        Reason::NotFound => (StatusCode::NOT_FOUND, "what was asked for isn't there"),
        Reason::Denied => {
            (StatusCode::FORBIDDEN, "the mesh's intentions don't let the gateway hand this on")
        }
        Reason::OutboxFull => (
            StatusCode::SERVICE_UNAVAILABLE,
            "too much waits for the broker; nothing was stored, send it again",
        ),
        Reason::Overloaded => (
            StatusCode::SERVICE_UNAVAILABLE,
            "too much is in flight; nothing was stored, send it again",
        ),
        Reason::StorageUnavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, "nothing can be stored at the moment; send it again")
        }
        Reason::NoInstance => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no instance that could store it answers; send it again",
        ),
        Reason::CircuitOpen => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the service that stores it failed too often; send it again later",
        ),
        Reason::Draining => {
            (StatusCode::SERVICE_UNAVAILABLE, "this instance is stopping; send it again")
        }
        Reason::NotPossible => (
            StatusCode::SERVICE_UNAVAILABLE,
            "it can't be stored as things are; nothing was stored, send it again later",
        ),
        Reason::VersionUnavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no version that could store it is there; nothing was stored, send it again",
        ),
        Reason::DeadlineExceeded => (
            StatusCode::GATEWAY_TIMEOUT,
            "not known to be stored in time; send it again under the same delivery id",
        ),
        Reason::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "a defect; the log has more"),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn read(problem: Problem) -> (http::response::Parts, String) {
        let (head, body) = problem.document("4bf9").into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn a_document_has_the_form_of_rfc_9457() {
        let (head, body) = read(Problem::request(StatusCode::UNAUTHORIZED, "no key")).await;
        assert_eq!(head.status, StatusCode::UNAUTHORIZED);
        assert_eq!(head.headers["content-type"], "application/problem+json");
        assert_eq!(
            body,
            r#"{"type":"about:blank","title":"Unauthorized","status":401,"detail":"no key","code":"DENIED","trace_id":"4bf9"}"#
        );
    }

    #[tokio::test]
    async fn a_full_outbox_is_503_and_says_when_to_try_again() {
        let status = status::status(Reason::OutboxFull, "10 wait");
        let (head, body) = read(status.into()).await;
        assert_eq!(head.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(head.headers["retry-after"], "5");
        assert!(body.contains(r#""code":"OUTBOX_FULL""#), "{body}");
    }

    #[tokio::test]
    async fn every_503_waits_a_second_at_least() {
        for reason in [Reason::Draining, Reason::NoInstance, Reason::Overloaded] {
            let (head, _) = read(status::status(reason, "").into()).await;
            assert_eq!(head.headers.get_all("retry-after").iter().count(), 1);
            assert_eq!(head.headers["retry-after"], "1");
        }
        let (head, _) = read(tonic::Status::unavailable("").into()).await;
        assert_eq!(head.headers["retry-after"], "1");
    }

    #[tokio::test]
    async fn the_insides_words_stay_inside_but_for_what_is_wrong_with_the_request() {
        let (_, body) = read(status::status(Reason::NoInstance, "10.0.0.7:8001").into()).await;
        assert!(!body.contains("10.0.0.7"), "{body}");
        let invalid = tonic::Status::from(status::InvalidField::new("hook.type", "is empty"));
        let (head, body) = read(invalid.into()).await;
        assert_eq!(head.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(body.contains("`hook.type`: is empty"), "{body}");
    }
}

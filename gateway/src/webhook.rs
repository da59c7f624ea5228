//! `POST /hooks/{source}`: the cheap checks, the body, its signature, and then
//! one call to hook-receiver. 202 is answered when the webhook is durable, and
//! not before.

use std::sync::Arc;

use api::hooks::v1::{HookKind, NewHook, Receipt, ReceiveBatchItem};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State, rejection::PathRejection},
    routing::{get, post},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use mesh::{
    messages::common::v1::{Header, TraceContext},
    telemetry::trace,
};
use serde::Serialize;

use crate::{
    batch::Queue,
    body::Bodies,
    problem::Problem,
    redact,
    source::{Proof, Source, Sources},
};

/// Where webhooks are taken.
pub(crate) const PATH: &str = "/hooks/{source}";
/// What `GET /` says.
const ABOUT: &str = concat!(
    "OmniBridge gateway ",
    env!("CARGO_PKG_VERSION"),
    ": send webhooks to POST /hooks/{source}; the documentation is at ",
    env!("CARGO_PKG_REPOSITORY"),
    "\n"
);
pub(crate) const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
pub(crate) const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
pub(crate) const CAUSATION_ID: HeaderName = HeaderName::from_static("x-causation-id");
/// How many characters such an id may have.
const MAX_ID: usize = 128;
/// What a body without a `Content-Type` may be taken for; RFC 9110, 8.3.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// What taking webhooks needs.
pub(crate) struct Webhooks {
    pub(crate) sources: Sources,
    pub(crate) bodies: Bodies,
    pub(crate) queue: Queue,
}

/// The gateway's routes.
pub(crate) fn router(webhooks: Arc<Webhooks>) -> Router {
    Router::new().route("/", get(ABOUT)).route(PATH, post(receive)).with_state(webhooks)
}

/// The answer to a webhook.
#[derive(Serialize)]
struct Accepted {
    /// The hook's id; of a duplicate, the first one's.
    id: String,
    /// The id of what belongs together.
    correlation_id: String,
    /// Whether this delivery had been received before.
    duplicate: bool,
}

async fn receive(
    State(webhooks): State<Arc<Webhooks>>,
    source: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let (head, body) = request.into_parts();
    let name = source.map(|Path(name)| name).unwrap_or_default();
    let Admitted { source, proof, content_type, headers } =
        webhooks.admit(&name, &head.headers, &body).map_err(Problem::closing)?;

    let body = webhooks.bodies.read(body).await?;
    proof.verify(&body.bytes)?;

    let concealed = source.sensitive.conceal(&content_type, &body.bytes)?;
    let bytes = concealed.map_or_else(|| body.bytes.clone(), Into::into);
    let hook = NewHook { content_type, headers, body: bytes, ..hook(source, &head.headers)? };
    let item = ReceiveBatchItem { hook: Some(hook), trace: current_trace() };
    let Receipt { id, correlation_id, duplicate, .. } = webhooks.queue.receive(item).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { id, correlation_id, duplicate })))
}

/// A request whose body is worth reading.
struct Admitted<'w> {
    source: &'w Source,
    proof: Proof<'w>,
    content_type: String,
    headers: Vec<Header>,
}

impl Webhooks {
    /// All that can be said of a request before its body is read.
    fn admit(&self, name: &str, headers: &HeaderMap, body: &Body) -> Result<Admitted<'_>, Problem> {
        let source = self.sources.get(name).ok_or_else(unknown_source)?;
        let content_type = content_type(headers)?;
        self.bodies.check_announced(body)?;
        let proof = source.authenticate(headers)?;
        let headers = redact::headers(headers, &source.sensitive.headers)?;
        Ok(Admitted { source, proof, content_type, headers })
    }
}

/// The hook, as far as the headers tell.
fn hook(source: &Source, headers: &HeaderMap) -> Result<NewHook, Problem> {
    let delivery = source.delivery(headers)?;
    Ok(NewHook {
        kind: HookKind::Webhook.into(),
        source: source.name.to_string(),
        r#type: delivery.kind,
        delivery_id: delivery.id,
        session_id: id(headers, &SESSION_ID),
        correlation_id: id(headers, &CORRELATION_ID),
        causation_id: id(headers, &CAUSATION_ID),
        ..NewHook::default()
    })
}

/// An id that a sender may give; empty where it gives none that can be used.
fn id(headers: &HeaderMap, name: &HeaderName) -> String {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    let valid = |id: &&str| (1..=MAX_ID).contains(&id.len()) && id.bytes().all(allowed);
    value.filter(valid).unwrap_or_default().to_owned()
}

/// The media type, if it is one that webhooks have and the body is as it says.
fn content_type(headers: &HeaderMap) -> Result<String, Problem> {
    // A packed body would be signed and stored packed: nobody could read it.
    let packed = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity");
    if packed.is_some() {
        let identity = HeaderValue::from_static("identity");
        let detail = "packed bodies aren't taken; send it without `content-encoding`";
        return Err(Problem::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
            .with(header::ACCEPT_ENCODING, identity));
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(UNKNOWN_TYPE.to_owned());
    };
    match value.to_str() {
        Ok(text) if is_taken(text) => Ok(text.to_owned()),
        _ => {
            let detail = "this media type isn't taken; send JSON, XML, a form, text or bytes";
            Err(Problem::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
        }
    }
}

/// A media type without its parameters, in lower case.
pub(crate) fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_taken(content_type: &str) -> bool {
    match essence(content_type).split_once('/') {
        Some(("application", "json" | "xml" | "x-www-form-urlencoded" | "octet-stream")) => true,
        Some(("text", "plain" | "xml")) => true,
        Some(("application", subtype)) => subtype.ends_with("+json") || subtype.ends_with("+xml"),
        _ => false,
    }
}

fn current_trace() -> Option<TraceContext> {
    let traceparent = trace::format(&trace::current()?);
    Some(TraceContext { traceparent, tracestate: String::new() })
}

fn unknown_source() -> Problem {
    let detail = "no such source; see `hooks.sources` in the configuration";
    Problem::request(StatusCode::NOT_FOUND, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_webhooks_send_is_taken() {
        for taken in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/cloudevents+json",
            "application/x-www-form-urlencoded",
            "application/octet-stream",
            "application/soap+xml",
            "text/plain;charset=utf-8",
            "text/xml",
        ] {
            assert!(is_taken(taken), "{taken}");
        }
        for refused in ["", "json", "text/html", "image/png", "multipart/form-data", "+json"] {
            assert!(!is_taken(refused), "{refused}");
        }
    }

    #[test]
    fn an_id_of_the_senders_is_taken_if_it_can_be_used() {
        let given = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            id(&HeaderMap::from_iter([(CORRELATION_ID, value)]), &CORRELATION_ID)
        };
        assert_eq!(given("order:7.a_b-C"), "order:7.a_b-C");
        assert_eq!(given("a b"), "");
        assert_eq!(given(""), "");
        assert_eq!(id(&HeaderMap::new(), &CORRELATION_ID), "");
        let long = HeaderValue::try_from("x".repeat(MAX_ID + 1)).unwrap();
        assert_eq!(id(&HeaderMap::from_iter([(SESSION_ID, long)]), &SESSION_ID), "");
    }
}

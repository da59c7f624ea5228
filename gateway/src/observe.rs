//! What every request leaves behind: a span, a count, and, where it failed, a
//! problem document and a line in the log under the same trace id.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http::{Method, StatusCode, header};
use mesh::{
    status::Reason,
    telemetry::trace::{self, Kind},
};
use opentelemetry::{KeyValue, metrics::Counter};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::{
    problem::Problem,
    webhook::{self, Webhooks},
};

/// The span of a webhook.
const SPAN: &str = "POST /hooks/{source}";
/// How a webhook is counted whose source isn't configured: senders can't make
/// the labels grow.
const UNKNOWN: &str = "unknown";

/// `routes`, observed.
pub(crate) fn observed(routes: Router, webhooks: Arc<Webhooks>) -> Router {
    routes
        // Inside, so that a panic is observed as any other failure.
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(Arc::new(Observer::new(webhooks)), observe))
}

struct Observer {
    webhooks: Arc<Webhooks>,
    requests: Counter<u64>,
}

impl Observer {
    fn new(webhooks: Arc<Webhooks>) -> Self {
        let requests = opentelemetry::global::meter("omnibridge")
            .u64_counter("omni.webhooks")
            .with_description("Webhooks, by source and by class of the answer's status")
            .build();
        Self { webhooks, requests }
    }

    fn count(&self, path: &str, status: StatusCode) {
        let name = path.rsplit('/').next().and_then(|name| self.webhooks.sources.get(name));
        let source = match name {
            Some(source) => KeyValue::new("source", source.name.clone()),
            None => KeyValue::new("source", UNKNOWN),
        };
        let class = match status.as_u16() / 100 {
            2 => "2xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.requests.add(1, &[source, KeyValue::new("status", class)]);
    }
}

async fn observe(State(observer): State<Arc<Observer>>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>();
    let is_webhook = request.method() == Method::POST
        && matched.is_some_and(|matched| matched.as_str() == webhook::PATH);
    let span = if is_webhook { span(&request) } else { Span::none() };
    let path = request.uri().path().to_owned();
    let response = next.run(request).instrument(span.clone()).await;

    let status = response.status();
    if is_webhook {
        observer.count(&path, status);
    }
    if !span.is_none() {
        span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.record("otel.status_code", "ERROR");
        }
    }
    if status.is_client_error() || status.is_server_error() {
        explain(response, &span)
    } else {
        response
    }
}

/// A webhook's span: the first of a new trace. The sender's own trace is only
/// linked to, for the outside decides neither what is sampled nor whose part
/// our work is.
fn span(request: &Request) -> Span {
    let span = trace::root("gateway", Kind::Server, SPAN);
    if span.is_none() {
        return span;
    }
    span.set_attribute("http.request.method", "POST");
    span.set_attribute("http.route", webhook::PATH);
    let theirs = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    if let Some(theirs) = theirs.and_then(trace::parse) {
        span.add_link(theirs);
    }
    span
}

/// Turns a failure, our own or the router's, into its document.
fn explain(response: Response, span: &Span) -> Response {
    let trace_id = match trace::context(span) {
        Some(context) => context.trace_id().to_string(),
        // Not traced; still an id to find the line in the log by.
        None => format!("{:032x}", rand::random::<u128>()),
    };
    let (mut head, _) = response.into_parts();
    let problem = head.extensions.remove::<Problem>();
    let problem = problem.unwrap_or_else(|| Problem::bare(head.status));
    problem.log(&trace_id);
    let mut document = problem.document(&trace_id);
    if let Some(allow) = head.headers.remove(header::ALLOW) {
        document.headers_mut().insert(header::ALLOW, allow);
    }
    document
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    // The panic's own words are on standard error; they aren't for senders.
    Problem::inside(Reason::Internal).into_response()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use axum::{body::Body, routing::get};
    use http_body_util::BodyExt as _;
    use tokio_util::sync::CancellationToken;
    use tower::ServiceExt as _;

    use super::*;
    use crate::{batch, body::Bodies, source::Sources};

    async fn answer(path: &str) -> (StatusCode, String) {
        let call = |_, _| async { Ok(Vec::new()) };
        let webhooks = Webhooks {
            sources: Sources::try_new(&BTreeMap::new(), None).unwrap(),
            bodies: Bodies::new(1, Duration::from_secs(1)),
            queue: batch::queue(call, CancellationToken::new()).0,
        };
        async fn panics() {
            panic!("hunter2");
        }
        let routes = Router::new().route("/panics", get(panics));
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = observed(routes, Arc::new(webhooks)).oneshot(request).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_that_keeps_its_words() {
        let (status, document) = answer("/panics").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(document.contains(r#""code":"INTERNAL""#), "{document}");
        assert!(!document.contains("hunter2"), "{document}");
    }

    #[tokio::test]
    async fn what_the_router_refuses_itself_is_a_problem_too() {
        let (status, document) = answer("/nothing").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(document.contains(r#""code":"NOT_FOUND""#), "{document}");
    }
}

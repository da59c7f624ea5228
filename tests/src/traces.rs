//! What was traced: by a collector of this process that speaks OTLP, or by
//! Jaeger's query API.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
};
use tonic::{Request, Response, Status, transport::Server};

/// A span, as far as the tests look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The service it belongs to.
    pub service: String,
    /// What it stands for.
    pub name: String,
    /// Its id in hexadecimal.
    pub id: String,
    /// Its parent's id; empty for a trace's first span.
    pub parent: String,
    /// All that was said of it.
    pub whole: String,
}

/// Where traces can be read.
pub enum Traces {
    /// Spans collected here, each with its trace's id.
    Collected(Arc<Mutex<Vec<(String, Span)>>>),
    /// Jaeger, by the address of its query API, and a client to ask it.
    Jaeger(String, reqwest::Client),
}

impl Traces {
    /// Starts a collector; answers its address as well.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn collect() -> (Self, String) {
        let spans = Arc::new(Mutex::new(Vec::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let collector = TraceServiceServer::new(Collector { spans: spans.clone() });
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        // Ends with the test's runtime.
        tokio::spawn(Server::builder().add_service(collector).serve_with_incoming(incoming));
        (Self::Collected(spans), format!("http://{address}"))
    }

    /// The spans of one trace known by now.
    ///
    /// # Panics
    /// When Jaeger answers nonsense.
    pub async fn of(&self, trace_id: &str) -> Vec<Span> {
        match self {
            Self::Collected(spans) => {
                let spans = spans.lock().expect("the collector doesn't panic");
                let of_trace = spans.iter().filter(|(trace, _)| trace == trace_id);
                of_trace.map(|(_, span)| span.clone()).collect()
            }
            Self::Jaeger(address, client) => {
                let trace = format!("{address}/api/traces/{trace_id}");
                let answer = client.get(trace).send().await;
                let answer = answer.expect("Jaeger answers").bytes().await;
                let answer = answer.expect("the answer is whole");
                read_jaeger(&serde_json::from_slice(&answer).expect("Jaeger answers JSON"))
            }
        }
    }
}

fn read_jaeger(answer: &serde_json::Value) -> Vec<Span> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let none = Vec::new();
    let trace = &answer["data"][0];
    let spans = trace["spans"].as_array().unwrap_or(&none);
    let span = |span: &serde_json::Value| Span {
        service: text(&trace["processes"][&text(&span["processID"])]["serviceName"]),
        name: text(&span["operationName"]),
        id: text(&span["spanID"]),
        parent: span["references"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["refType"] == "CHILD_OF"))
            .map(|parent| text(&parent["spanID"]))
            .unwrap_or_default(),
        whole: span.to_string(),
    };
    spans.iter().map(span).collect()
}

struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_service in request.into_inner().resource_spans {
            let attributes = of_service.resource.map(|r| r.attributes).unwrap_or_default();
            let name = attributes.into_iter().find(|a| a.key == "service.name");
            let service = match name.and_then(|a| a.value).and_then(|v| v.value) {
                Some(Value::StringValue(name)) => name,
                _ => String::new(),
            };
            let spans = of_service.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let mut known = self.spans.lock().expect("nobody panics here");
            known.extend(spans.map(|span| {
                let parent = hex::encode(&span.parent_span_id);
                let (id, whole) = (hex::encode(&span.span_id), format!("{span:?}"));
                let service = service.clone();
                (hex::encode(span.trace_id), Span { service, name: span.name, id, parent, whole })
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

//! An OTLP collector that keeps the spans it is sent.

use std::sync::Mutex;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::mesh_of_two::until;

/// How many spans are kept; no test makes as many.
const KEPT: usize = 10_000;

static SPANS: Mutex<Vec<Span>> = Mutex::new(Vec::new());

/// The spans of this process.
pub struct Spans;

impl Spans {
    /// Collects spans on a free port from now on; answers where.
    pub async fn collect() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().add_service(TraceServiceServer::new(Self));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        endpoint
    }

    /// The first span of the trace with this id, once it has left the gateway.
    pub async fn of_trace(trace_id: &str) -> Span {
        let find = || {
            let spans = SPANS.lock().unwrap();
            spans.iter().find(|span| hex::encode(&span.trace_id) == trace_id).cloned()
        };
        until(|| find().is_some()).await;
        find().unwrap()
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans);
        let mut kept = SPANS.lock().unwrap();
        let room = KEPT - kept.len();
        kept.extend(scopes.flat_map(|scope| scope.spans).take(room));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

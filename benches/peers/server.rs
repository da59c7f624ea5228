//! The server's process: answers every call with what it was sent.

use std::{net::Ipv4Addr, path::Path, pin::Pin, time::Duration};

use anyhow::ensure;
use api::hooks::v1::{
    GetHookRequest, GetHookResponse, GetSessionRequest, GetSessionResponse, ListHooksRequest,
    ListHooksResponse, ListSessionsRequest, ListSessionsResponse, Receipt, ReceiveBatchRequest,
    ReceiveBatchResponse, ReceiveRequest, ReceiveResponse, WatchHooksRequest, WatchHooksResponse,
    hook_receiver_server::{HookReceiver, HookReceiverServer},
};
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status,
    transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use crate::{
    Stack,
    meshed::{self, SERVER},
    party,
};

/// The flow control windows and pings of the mesh, for tonic too.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const STREAMS: u32 = 1024;

/// Serves by `stack` on a free port, says which, and ends when standard input
/// does.
///
/// # Errors
/// When it can't serve.
pub(crate) async fn run(stack: Stack, data: &Path, traces: &str) -> anyhow::Result<()> {
    ensure!(stack != Stack::Older, "nobody answers in the older package");
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let service = HookReceiverServer::new(Answering);
    if stack == Stack::Mesh {
        return meshed::serve(listener, service, data, traces).await;
    }
    party::no_logs()?;
    let mut server = Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    if stack == Stack::TonicMtls {
        let issued = meshed::issue(data, SERVER)?;
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(issued.chain, issued.key))
            .client_ca_root(Certificate::from_pem(issued.roots));
        server = server.tls_config(tls)?;
    }
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    party::tell(&address)?;
    server
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, party::Asked::new().end())
        .await?;
    Ok(())
}

/// Answers with the body as the receipt's id: of what the API's methods answer,
/// that is the shortest way for a message of any size.
pub(crate) struct Answering;

#[tonic::async_trait]
impl HookReceiver for Answering {
    type WatchHooksStream = Pin<Box<dyn Stream<Item = Result<WatchHooksResponse, Status>> + Send>>;

    async fn receive(
        &self,
        request: Request<ReceiveRequest>,
    ) -> Result<Response<ReceiveResponse>, Status> {
        let body = request.into_inner().hook.unwrap_or_default().body;
        let id = String::from_utf8(body.into())
            .map_err(|_| Status::invalid_argument("the body is no text"))?;
        let receipt = Receipt { id, ..Receipt::default() };
        Ok(Response::new(ReceiveResponse { receipt: Some(receipt) }))
    }

    async fn receive_batch(
        &self,
        _: Request<ReceiveBatchRequest>,
    ) -> Result<Response<ReceiveBatchResponse>, Status> {
        Err(unused())
    }

    async fn get_hook(
        &self,
        _: Request<GetHookRequest>,
    ) -> Result<Response<GetHookResponse>, Status> {
        Err(unused())
    }

    async fn list_hooks(
        &self,
        _: Request<ListHooksRequest>,
    ) -> Result<Response<ListHooksResponse>, Status> {
        Err(unused())
    }

    async fn watch_hooks(
        &self,
        _: Request<WatchHooksRequest>,
    ) -> Result<Response<Self::WatchHooksStream>, Status> {
        Err(unused())
    }

    async fn get_session(
        &self,
        _: Request<GetSessionRequest>,
    ) -> Result<Response<GetSessionResponse>, Status> {
        Err(unused())
    }

    async fn list_sessions(
        &self,
        _: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        Err(unused())
    }
}

fn unused() -> Status {
    Status::unimplemented("only `Receive` is measured")
}

//! The client's process: connects, and makes the loads that it is asked for.

use std::{net::SocketAddr, path::Path, time::Duration};

use api::hooks::v1::{ReceiveRequest, ReceiveResponse, hook_receiver_client::HookReceiverClient};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    CONNECTIONS, Stack,
    load::{Echo, Load},
    meshed::{self, CLIENT},
    party,
    server::{CONNECTION_WINDOW, STREAM_WINDOW},
};

/// As long as the mesh waits for one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// As the mesh does.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Connects to `to` by `stack`, and works off what standard input asks for, until
/// it ends.
///
/// # Errors
/// When it can't connect, or a call fails.
pub(crate) async fn run(
    stack: Stack,
    to: SocketAddr,
    data: &Path,
    traces: &str,
) -> anyhow::Result<()> {
    match stack {
        Stack::Tonic => {
            party::no_logs()?;
            let endpoint = Endpoint::from_shared(format!("http://{to}"))?;
            obey(&connect(endpoint).await?).await
        }
        Stack::TonicMtls => {
            party::no_logs()?;
            let issued = meshed::issue(data, CLIENT)?;
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(issued.roots))
                .identity(Identity::from_pem(issued.chain, issued.key))
                .domain_name("localhost");
            let endpoint = Endpoint::from_shared(format!("https://{to}"))?.tls_config(tls)?;
            obey(&connect(endpoint).await?).await
        }
        Stack::Mesh => {
            let client = meshed::Client::start(data, traces).await?;
            obey(&client.connections().await?).await
        }
    }
}

/// As a user would who wants it fast, and as the mesh is set.
async fn connect(endpoint: Endpoint) -> anyhow::Result<Vec<Plain>> {
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        connections.push(Plain(HookReceiverClient::new(endpoint.connect().await?)));
    }
    Ok(connections)
}

async fn obey<E: Echo>(connections: &[E]) -> anyhow::Result<()> {
    party::tell(&"connected")?;
    let mut asked = party::Asked::new();
    while let Some(load) = asked.next::<Load>().await? {
        party::tell(&load.make(connections).await?)?;
    }
    Ok(())
}

/// A connection of tonic's.
#[derive(Clone)]
struct Plain(HookReceiverClient<Channel>);

impl Echo for Plain {
    async fn call(&mut self, request: ReceiveRequest) -> Result<ReceiveResponse, Status> {
        Ok(self.0.receive(request).await?.into_inner())
    }
}

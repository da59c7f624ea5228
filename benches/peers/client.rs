//! The client's process: connects, and makes the loads that it is asked for.

use std::{net::SocketAddr, path::Path, time::Duration};

use api::hooks::v1::hook_receiver_client::HookReceiverClient;
use bytes::Bytes;
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    CONNECTIONS, Stack,
    load::{self, Echo, Load},
    meshed::{self, CLIENT},
    older::InboxClient,
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
            let endpoint = Endpoint::from_shared(format!("http://{to}"))?;
            obey(&connect(endpoint, HookReceiverClient::new).await?).await
        }
        Stack::TonicMtls => {
            obey(&connect(encrypted(to, data)?, HookReceiverClient::new).await?).await
        }
        Stack::Older => obey(&connect(encrypted(to, data)?, InboxClient::new).await?).await,
        Stack::Mesh => {
            let client = meshed::Client::start(data, traces).await?;
            obey(&client.connections().await?).await
        }
    }
}

/// With a certificate of the client's own, and the roots to judge the other's by.
fn encrypted(to: SocketAddr, data: &Path) -> anyhow::Result<Endpoint> {
    let issued = meshed::issue(data, CLIENT)?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(issued.roots))
        .identity(Identity::from_pem(issued.chain, issued.key))
        .domain_name("localhost");
    Ok(Endpoint::from_shared(format!("https://{to}"))?.tls_config(tls)?)
}

/// As a user would who wants it fast, without logs, and as the mesh is set.
async fn connect<C>(endpoint: Endpoint, client: impl Fn(Channel) -> C) -> anyhow::Result<Vec<C>> {
    party::no_logs()?;
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
        connections.push(client(endpoint.connect().await?));
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

impl Echo for HookReceiverClient<Channel> {
    async fn call(&mut self, text: Bytes) -> Result<String, Status> {
        Ok(load::text_of(self.receive(load::request(text)).await?))
    }
}

//! Other callers, who mustn't feel an attack, and the memory of this process.

use std::{io, net::SocketAddr, time::Duration};

use api::audit::v1::{ListEntriesRequest, audit_client::AuditClient};
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh::identity::Identity;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, task::JoinSet, time::Instant};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use tower::util::BoxCloneSyncService;

use crate::site::SERVICE;

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How many connections the callers have.
const CONNECTIONS: u32 = 4;

/// A client on one plain connection: no discovery, no retries.
pub type Client = AuditClient<BoxCloneSyncService<Request<Body>, Response<Incoming>, hyper::Error>>;

/// Connects to `address`.
///
/// # Errors
/// When the handshake fails.
pub async fn connect(identity: &Identity, address: SocketAddr) -> io::Result<Client> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::IpAddress(address.ip().into());
    let tls = TlsConnector::from(identity.client_config(SERVICE));
    let stream = tls.connect(name, stream).await?;
    let (send, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // It ends with its last sender.
    tokio::spawn(connection);
    let service = tower::service_fn(move |request: Request<Body>| {
        let mut send = send.clone();
        async move {
            send.ready().await?;
            send.send_request(request).await
        }
    });
    let origin = http::Uri::from_static("https://mesh");
    Ok(AuditClient::with_origin(BoxCloneSyncService::new(service), origin))
}

/// Calls once.
///
/// # Errors
/// When the answer is an error or a wrong one.
pub async fn call(client: &mut Client, topic: &str, id: &str) -> Result<(), Status> {
    let (topic, correlation_id) = (topic.to_owned(), id.to_owned());
    let mut request =
        tonic::Request::new(ListEntriesRequest { topic, correlation_id, ..Default::default() });
    request.set_timeout(DEADLINE);
    let answer = client.list_entries(request).await?.into_inner();
    match answer.next_page_token == id {
        true => Ok(()),
        false => Err(Status::data_loss(format!("{} for {id}", answer.next_page_token))),
    }
}

/// How callers fared.
#[derive(Clone, Debug, Default)]
pub struct Fared {
    /// How long each call took, from when it was due; ascending.
    pub latencies: Vec<Duration>,
    /// The calls that failed.
    pub failed: Vec<Status>,
}

impl Fared {
    /// The latency that 99 % of the calls kept.
    pub fn p99(&self) -> Duration {
        let place = (self.latencies.len() * 99 / 100).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(place).copied().unwrap_or_default()
    }
}

/// Calls the service at `address` so many times a second until `stop`, whether
/// answers come or not.
///
/// # Panics
/// When a caller can't connect.
pub async fn callers(
    identity: &Identity,
    address: SocketAddr,
    rate: u32,
    stop: CancellationToken,
) -> Fared {
    let mut callers = JoinSet::new();
    let period = Duration::from_secs(1) * CONNECTIONS / rate;
    for caller in 0..CONNECTIONS {
        let client = connect(identity, address).await.expect("the service takes callers in");
        let stop = stop.clone();
        callers.spawn(async move {
            let mut calls = JoinSet::new();
            let mut due = Instant::now() + period * caller / CONNECTIONS;
            while stop.run_until_cancelled(tokio::time::sleep_until(due)).await.is_some() {
                let (mut client, begun) = (client.clone(), due);
                calls.spawn(async move {
                    let answer = call(&mut client, "", "id").await;
                    (begun.elapsed(), answer)
                });
                due += period;
            }
            calls.join_all().await
        });
    }
    let mut fared = Fared::default();
    for (latency, answer) in callers.join_all().await.into_iter().flatten() {
        match answer {
            Ok(()) => fared.latencies.push(latency),
            Err(status) => fared.failed.push(status),
        }
    }
    fared.latencies.sort_unstable();
    fared
}

/// How many bytes of this process are resident.
///
/// # Panics
/// Where there is no `/proc`.
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.expect("the kernel writes it") * 1024
}

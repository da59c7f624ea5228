//! One HTTP/2 connection to one instance, over mutual TLS.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{io::AsyncWrite, net::TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use crate::{
    bundle::{self, Adder},
    gather::{Release, gather},
    identity::{Identity, SpiffeId, peer_id},
};

/// How long connecting and the handshake may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a silent connection is asked for a sign of life, so that a peer
/// that vanished without a word is noticed while calls wait for it.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long the sign of life may take.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of an answer may be on its way unread, a stream and in all.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// An open connection, as the peer it was made to.
pub(super) struct Connection {
    pub(super) send: http2::SendRequest<Body>,
    /// Who answered, from its certificate.
    pub(super) peer: Arc<Peer>,
    /// Cancelled when it takes no more requests.
    pub(super) closed: CancellationToken,
}

impl Connection {
    /// Whether it takes requests.
    pub(super) fn is_open(&self) -> bool {
        !self.send.is_closed()
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its identity.
    pub id: SpiffeId,
    /// Its leaf's serial number in hexadecimal.
    pub serial: String,
}

impl Peer {
    /// Reads it off a connection's certificates, leaf first.
    pub(crate) fn from_certificates(certificates: &[CertificateDer<'_>]) -> Option<Self> {
        let leaf = certificates.first()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
        Some(Self { id: peer_id(leaf).ok()?, serial: hex::encode(parsed.raw_serial()) })
    }
}

/// Who connects.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) identity: Identity,
    /// Whether what a connection needs runs in one task; see [`crate::bundle`].
    pub(super) in_place: bool,
}

/// Connects to an instance of `service` at `address`. The second of the answer
/// ends when its peer is to be trusted no longer.
///
/// # Errors
/// When nothing answers in time, or something else than `service`.
pub(super) async fn connect(
    Caller { identity, in_place }: &Caller,
    service: &str,
    address: SocketAddr,
) -> Result<(Connection, impl Future<Output = ()> + use<>), std::io::Error> {
    let trust = identity.trust();
    let tls = TlsConnector::from(identity.client_config(service));
    let handshakes = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // The name is never sent nor compared: the verifier knows whom it wants.
        let stream = tls.connect(ServerName::IpAddress(address.ip().into()), stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let peer = Peer::from_certificates(&chain)
            .ok_or_else(|| std::io::Error::other("the peer has no certificate"))?;
        let (stream, release) = gather(stream);
        let (bundle, adder) = in_place.then(bundle::bundle).unzip();
        let executor = Executor { adder, release: Arc::new(Mutex::new(Some(release))) };
        let (send, connection) = http2::Builder::new(executor.clone())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        // It ends with its last sender, or when the peer closes or says that it
        // is going to; what is in flight then has a future of its own.
        executor.run(async move {
            let _guard = guard;
            if let Err(why) = connection.await {
                tracing::debug!(%address, %why, "a connection ended");
            }
        });
        if let Some(bundle) = bundle {
            tokio::spawn(bundle);
        }
        Ok::<_, std::io::Error>((send, Arc::new(peer), closed, chain))
    };
    let (send, peer, closed, chain) = tokio::time::timeout(CONNECT_TIMEOUT, handshakes)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    Ok((Connection { send, peer, closed }, trust.lost(chain)))
}

/// Runs what hyper needs for a connection: first the future that reads and writes
/// it, at each of whose polls' end what was gathered has to leave, then one for each
/// call.
struct Executor<T> {
    /// Where they run; as tasks of their own, if it is `None`.
    adder: Option<Adder>,
    release: Arc<Mutex<Option<Release<T>>>>,
}

impl<T> Executor<T> {
    fn run(&self, future: impl Future<Output = ()> + Send + 'static) {
        match &self.adder {
            Some(adder) => adder.add(future),
            None => drop(tokio::spawn(future)),
        }
    }
}

impl<T> Clone for Executor<T> {
    fn clone(&self) -> Self {
        Self { adder: self.adder.clone(), release: self.release.clone() }
    }
}

impl<T, F> hyper::rt::Executor<F> for Executor<T>
where
    T: AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        match self.release.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => self.run(future),
            Some(release) => self.run(async move {
                tokio::pin!(future);
                poll_fn(|cx| release.poll(cx, |cx| future.as_mut().poll(cx))).await;
            }),
        }
    }
}

//! Accepts connections, secures them, serves them, and lets them go: one loop
//! for the mesh port, the gateway's port and the admin port.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower::Service;

use crate::{client::Peer, config::LimitsConfig, identity::Identity};

/// How often a silent connection is asked for a sign of life, and how long that
/// may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How many streams a peer may reset before they were looked at, and how many
/// of its errors are answered, before the connection is closed.
const PENDING_RESETS: usize = 20;
const LOCAL_ERROR_RESETS: usize = 1024;
/// How many headers a request of HTTP/1.1 may have.
const HEADERS: usize = 256;
/// How much of a request may be on its way unread, a stream and in all.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// How long to wait before accepting again where the system refuses, such as
/// when it has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What speaks on a port.
#[derive(Clone)]
pub enum Security {
    /// gRPC over mutual TLS: the mesh port.
    Mesh(Identity),
    /// HTTP/1.1 in the clear: the gateway's port.
    Edge,
    /// HTTP/1.1 and HTTP/2 in the clear: the admin port.
    Admin,
}

/// Who is at the other end of the connection a request came by.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Its address.
    pub address: SocketAddr,
    /// Its identity; only on the mesh port, and there always.
    pub peer: Option<Peer>,
}

/// Serves `app` on `listener` until `stop`; then closes the listener, tells the
/// peers, and waits up to `grace` for what is in flight.
pub async fn serve<A>(
    listener: TcpListener,
    security: Security,
    limits: &LimitsConfig,
    app: A,
    stop: CancellationToken,
    grace: Duration,
) where
    A: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    A::Future: Send,
{
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let room = Arc::new(Semaphore::new(limits.connections));
    let acceptor = Arc::new(Acceptor {
        builder: builder(&security, limits),
        tls: match &security {
            Security::Mesh(identity) => {
                Some((TlsAcceptor::from(identity.server_config()), identity.clone()))
            }
            Security::Edge | Security::Admin => None,
        },
        handshake_timeout: limits.handshake_timeout,
        grace,
        stop: stop.clone(),
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(why) => {
                tracing::warn!(%why, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            tracing::warn!(%address, "connection refused: `limits.connections` is reached");
            continue;
        };
        let (acceptor, app, cut) = (acceptor.clone(), app.clone(), cut.clone());
        connections.spawn(async move {
            let _place = place;
            tokio::select! {
                () = acceptor.connection(stream, address, app) => {}
                () = cut.cancelled() => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(left = connections.len(), "connections are cut off at the end of the drain");
        cut.cancel();
        connections.wait().await;
    }
}

fn builder(security: &Security, limits: &LimitsConfig) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.handshake_timeout)
        // Twice the limits: what is a little over them gets an answer in the
        // app's own form, what is more the bare 431 of the protocol.
        .max_headers(HEADERS)
        .max_buf_size((2 * limits.header_bytes as usize).max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_ERROR_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    match security {
        Security::Mesh(_) => builder.http2_only(),
        Security::Edge => builder.http1_only(),
        Security::Admin => builder,
    }
}

/// What every connection of a listener needs.
struct Acceptor {
    builder: auto::Builder<TokioExecutor>,
    tls: Option<(TlsAcceptor, Identity)>,
    handshake_timeout: Duration,
    /// How long what is in flight on a connection may take to its end.
    grace: Duration,
    stop: CancellationToken,
}

impl Acceptor {
    async fn connection<A>(&self, stream: TcpStream, address: SocketAddr, app: A)
    where
        A: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        A::Future: Send,
    {
        // Only a hint for latency: a socket without it works.
        let _ = stream.set_nodelay(true);
        let Some((tls, identity)) = &self.tls else {
            let first_byte = tokio::time::timeout(self.handshake_timeout, stream.readable());
            if first_byte.await.is_ok() {
                let until = self.stop.cancelled();
                self.serve(stream, Remote { address, peer: None }, app, until).await;
            }
            return;
        };
        let trust = identity.trust();
        let handshake = tokio::time::timeout(self.handshake_timeout, tls.accept(stream));
        let refused = match handshake.await {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let chain: Vec<_> =
                    certificates.into_iter().flatten().map(|c| c.clone().into_owned()).collect();
                match Peer::from_certificates(certificates) {
                    Some(peer) => {
                        let until = async {
                            tokio::select! {
                                () = self.stop.cancelled() => {}
                                () = trust.lost(chain) => {}
                            }
                        };
                        self.serve(stream, Remote { address, peer: Some(peer) }, app, until).await;
                        return;
                    }
                    None => "the peer has no certificate".to_owned(),
                }
            }
            Ok(Err(why)) => why.to_string(),
            Err(_) => format!("the handshake took longer than {:?}", self.handshake_timeout),
        };
        tracing::warn!(me = %identity.id(), %address, why = refused, "handshake refused");
    }

    async fn serve<A, I>(&self, io: I, remote: Remote, app: A, until: impl Future<Output = ()>)
    where
        A: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        A::Future: Send,
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let address = remote.address;
        let app = tower::util::MapRequest::new(app, move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(remote.clone());
            request
        });
        let connection =
            self.builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(app));
        tokio::pin!(connection, until);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = &mut until => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(self.grace, connection).await {
                    Ok(ended) => ended,
                    // A stream that goes on for ever must not outlive what
                    // its connection was trusted by.
                    Err(_) => return,
                }
            }
        };
        if let Err(why) = ended {
            tracing::debug!(%address, %why, "connection ended");
        }
    }
}

//! One connection: who is there, what is served, and when and how it ends.
//!
//! ```text
//!  accepted ──▶ handshake ──▶ serving ──▶ told to go ──▶ closed
//!                   │            │                         ▲
//!                   ▼            └── too many cancelled ───┤
//!                refused                  or cut off ──────┘
//! ```

use std::{
    convert::Infallible, future::poll_fn, net::SocketAddr, pin::Pin, sync::Arc, task::Context,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use http::{Request, Response};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::body::Body;
use tower::Service;

use super::{
    ledger::{Ending, Refusal},
    listener::{Door, Guest, Port},
    preface::Preface,
    quota::Room,
    streams::Streams,
    tracked::{Tasks, Tracked},
};
use crate::{
    bundle::{Adder, Bundle, bundle},
    client::Peer,
    gather::{Release, gather},
};

/// How many of a peer's errors are answered before the connection is closed.
const LOCAL_ERROR_RESETS: usize = 1024;
/// How many headers a request of HTTP/1.1 may have.
const HEADERS: usize = 256;
/// How much of a request may be on its way unread, a stream and in all.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// How long a connection that was accepted before the stop may take to make its
/// first request: over HTTP/1.1 nothing can tell the peer to make it elsewhere.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How long an idle connection of the gateway stays open after the stop: whoever
/// makes a request by it meanwhile is answered, and told that it closes behind that.
/// Else it would close under requests that are on their way.
const LAST_REQUEST: Duration = Duration::from_millis(500);

/// Who is at the other end of the connection a request came by.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Its address.
    pub address: SocketAddr,
    /// Its identity; only on the mesh port, and there always.
    pub peer: Option<Arc<Peer>>,
}

/// Secures and serves what was accepted, to its end.
pub(super) async fn run<A>(door: Arc<Door>, stream: TcpStream, guest: Guest, app: A)
where
    A: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    A::Future: Send,
{
    // Only a hint for latency: a socket without it works.
    let _ = stream.set_nodelay(true);
    let Guest { address, place: _place, from } = guest;
    let Port::Mesh(identity, tls) = &door.port else {
        let remote = Remote { address, peer: None };
        let streams = door.streams(None);
        let io = door.awaited(stream, &streams, address.ip());
        serve(&door, io, remote, streams, app, std::future::pending()).await;
        return;
    };
    let trust = identity.trust();
    let (stream, peer, chain) = match secure(tls, stream, door.limits.handshake_timeout).await {
        Ok(secured) => secured,
        Err((refusal, why)) => return door.ledger.refused(address, refusal, &why),
    };
    // From now on it counts as its identity's, no longer as its address's.
    drop(from);
    let Some(present) = door.peers.enter(peer.id.clone(), || Room::of_one(&door.limits).into())
    else {
        let refusal = Refusal::ConnectionsOfPeer;
        let why = format!("{}: {}", peer.id, refusal.setting());
        return door.ledger.refused(address, refusal, &why);
    };
    let streams = door.streams(Some(present.own.clone()));
    let remote = Remote { address, peer: Some(Arc::new(peer)) };
    let io = Preface::new(stream, door.limits.handshake_timeout);
    serve(&door, io, remote, streams, app, trust.lost(chain)).await;
}

/// The TLS handshake: the stream, who is there, and its certificates.
async fn secure(
    tls: &TlsAcceptor,
    stream: TcpStream,
    timeout: Duration,
) -> Result<(TlsStream<TcpStream>, Peer, Vec<CertificateDer<'static>>), (Refusal, String)> {
    let stream = match tokio::time::timeout(timeout, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Err((refusal(&why), why.to_string())),
        Err(_) => return Err((Refusal::Late, format!("it took longer than {timeout:?}"))),
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    match Peer::from_certificates(&certificates) {
        Some(peer) => Ok((stream, peer, certificates)),
        None => Err((Refusal::Certificate, "the peer has no certificate".to_owned())),
    }
}

/// Told apart, so that noise doesn't drown strangers in the log.
fn refusal(why: &std::io::Error) -> Refusal {
    use rustls::Error;
    match why.get_ref().and_then(|why| why.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => Refusal::Certificate,
        _ => Refusal::Handshake,
    }
}

async fn serve<A, I>(
    door: &Door,
    io: I,
    remote: Remote,
    streams: Arc<Streams>,
    app: A,
    expired: impl Future<Output = ()>,
) where
    A: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    A::Future: Send,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let opened = door.ledger.opened(remote.address);
    let (io, release) = gather(io);
    let inner = TowerToHyperService::new(app);
    let is_edge = matches!(door.port, Port::Edge);
    let service = Tracked { inner, remote, streams: streams.clone(), is_edge };
    let (mut bundle, adder) = bundle();
    let builder = builder(door, streams.clone(), adder);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);

    let told = async {
        tokio::select! {
            () = expired => Ending::Expired,
            () = streams.idle(door.limits.idle_timeout) => Ending::Idle,
            () = stopped(door, &streams) => Ending::Drain,
            () = streams.abused() => Ending::Resets,
        }
    };
    // Looked at when it is woken itself, not whenever the connection is.
    let mut told = FuturesUnordered::from_iter([told]);
    let ending = tokio::select! {
        // An error is the peer's, and of no more use than that it ended.
        _ = drive(connection.as_mut(), &mut bundle, &release) => match streams.gave_up() {
            true => Ending::Silent,
            false => Ending::Peer,
        },
        Some(ending) = told.next() => match ending {
            Ending::Resets => ending,
            ending => {
                streams.drain();
                connection.as_mut().graceful_shutdown();
                let rest = drive(connection.as_mut(), &mut bundle, &release);
                tokio::select! {
                    // A stream that goes on for ever must not outlive what its
                    // connection was trusted by.
                    _ = tokio::time::timeout(door.grace, rest) => ending,
                    () = streams.abused() => Ending::Resets,
                }
            }
        },
    };
    opened.ended(ending);
}

/// Reads and writes, and runs what is handled on the way.
async fn drive<C: Future, I: AsyncWrite + Unpin>(
    mut connection: Pin<&mut C>,
    bundle: &mut Bundle,
    release: &Release<I>,
) -> C::Output {
    let mut poll = |cx: &mut Context<'_>| bundle.poll_with(cx, |cx| connection.as_mut().poll(cx));
    poll_fn(|cx| release.poll(cx, &mut poll)).await
}

/// Waits until the listener stops and nobody is surprised by it.
async fn stopped(door: &Door, streams: &Streams) {
    door.stop.cancelled().await;
    if matches!(door.port, Port::Mesh(..)) {
        return;
    }
    let is_edge = matches!(door.port, Port::Edge);
    if is_edge {
        streams.drain();
    }
    // Else hyper would close a connection whose request is under way.
    let _ = tokio::time::timeout(FIRST_REQUEST, streams.first()).await;
    if is_edge {
        tokio::time::sleep(LAST_REQUEST).await;
    }
}

fn builder(door: &Door, streams: Arc<Streams>, connection: Adder) -> auto::Builder<Tasks> {
    let (limits, tasks, in_place) = (&door.limits, door.tasks.clone(), door.in_place);
    let mut builder = auto::Builder::new(Tasks { streams, tasks, connection, in_place });
    builder
        .http1()
        .timer(TokioTimer::new())
        // By `Awaited`, which tells a header from an idle connection.
        .header_read_timeout(None)
        // Twice the limits: what is a little over them gets an answer in the
        // app's own form, what is more the bare 431 of the protocol.
        .max_headers(HEADERS)
        .max_buf_size((2 * limits.header_bytes as usize).max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes)
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_local_error_reset_streams(LOCAL_ERROR_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout);
    match door.port {
        Port::Mesh(..) => builder.http2_only(),
        Port::Edge => builder.http1_only(),
        Port::Admin => builder,
    }
}

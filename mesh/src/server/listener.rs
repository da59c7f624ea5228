//! Accepts connections and lets them go: one loop for the mesh port, the
//! gateway's port and the admin port.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower::Service;

use super::{
    awaited::Awaited,
    connection,
    ledger::{Ledger, Refusal},
    quota::{self, Crowd, Present, Quota, Room, Taken},
    silent::Silent,
    streams::Streams,
};
use crate::{
    config::LimitsConfig,
    identity::{Identity, SpiffeId},
};

/// How long to wait before accepting again where the system refuses, such as
/// when it has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What speaks on a port.
#[derive(Clone)]
pub enum Security {
    /// gRPC over mutual TLS: the mesh port.
    Mesh {
        /// Who serves.
        identity: Identity,
        /// Whether what a connection needs runs in one task: for who only passes calls
        /// on, whose own part of a call is less work than a wake. Others' calls are
        /// spread over all cores.
        in_place: bool,
    },
    /// HTTP/1.1 in the clear: the gateway's port.
    Edge,
    /// HTTP/1.1 and HTTP/2 in the clear: the admin port.
    Admin,
}

/// Serves `app` on `listener` until `stop`; then takes in what waits to be
/// accepted, closes the listener, tells the peers to go, and waits up to
/// `grace` for what is in flight.
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
    let cut = CancellationToken::new();
    let door = Door::new(security, limits, stop.clone(), grace);
    let take_in = |stream: TcpStream, address: SocketAddr| {
        let guest = match door.let_in(address) {
            Ok(guest) => guest,
            Err(refusal) => return door.ledger.refused(address, refusal, refusal.setting()),
        };
        let (connection, cut) =
            (connection::run(door.clone(), stream, guest, app.clone()), cut.clone());
        door.tasks.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = cut.cancelled() => {}
            }
        });
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, address)) => take_in(stream, address),
            Err(why) => {
                door.ledger.cannot_accept(&why);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // To their peers these are connected: closing the listener would reset them.
    while let Some(Ok((stream, address))) = listener.accept().now_or_never() {
        take_in(stream, address);
    }
    drop(listener);
    door.tasks.close();
    if tokio::time::timeout(grace, door.tasks.wait()).await.is_err() {
        let left = door.connections.taken();
        tracing::warn!(left, "connections are cut off at the end of the drain");
        cut.cancel();
        door.tasks.wait().await;
    }
}

/// What speaks on a port, ready for handshakes.
pub(super) enum Port {
    Mesh(Identity, TlsAcceptor),
    Edge,
    Admin,
}

/// What all connections of a listener share: who may come in, and what becomes
/// of them.
pub(super) struct Door {
    pub(super) port: Port,
    pub(super) limits: LimitsConfig,
    pub(super) ledger: Arc<Ledger>,
    /// Connections, and requests that left their tasks.
    pub(super) tasks: TaskTracker,
    /// Whether requests that wait stay in the tasks of their connections.
    pub(super) in_place: bool,
    pub(super) stop: CancellationToken,
    /// How long what is in flight on a connection may take to its end.
    pub(super) grace: Duration,
    /// Who has how many connections; on the mesh port only.
    pub(super) peers: Arc<Crowd<SpiffeId, Arc<Room>>>,
    connections: Arc<Quota>,
    /// Those that have said nothing yet; elsewhere than on the mesh port.
    silent: Arc<Silent>,
    handshakes: Arc<Quota>,
    /// Handshakes by address on the mesh port, elsewhere connections.
    networks: Arc<Crowd<IpAddr, ()>>,
}

/// A connection that was let in.
pub(super) struct Guest {
    pub(super) address: SocketAddr,
    /// Its place among all connections.
    pub(super) place: Taken,
    /// What it takes as somebody unknown at an address.
    pub(super) from: (Option<Taken>, Present<IpAddr, ()>),
}

impl Door {
    fn new(
        security: Security,
        limits: &LimitsConfig,
        stop: CancellationToken,
        grace: Duration,
    ) -> Arc<Self> {
        let in_place = matches!(security, Security::Mesh { in_place: true, .. });
        let (service, me, port) = match security {
            Security::Mesh { identity, .. } => {
                let tls = TlsAcceptor::from(identity.server_config());
                let id = identity.id();
                (id.name().to_owned(), id.to_string(), Port::Mesh(identity, tls))
            }
            Security::Edge => ("edge".to_owned(), "edge".to_owned(), Port::Edge),
            Security::Admin => ("admin".to_owned(), "admin".to_owned(), Port::Admin),
        };
        let of_one_network = match port {
            Port::Mesh(..) => quota::share(limits.handshakes),
            Port::Edge | Port::Admin => limits.connections_per_peer,
        };
        let ledger = Arc::new(Ledger::new(service, me));
        Arc::new(Self {
            port,
            limits: limits.clone(),
            // So that one address always has room for connections that speak.
            silent: Silent::new(quota::share(limits.connections_per_peer), ledger.clone()),
            ledger,
            tasks: TaskTracker::new(),
            in_place,
            stop,
            grace,
            peers: Crowd::new(limits.connections_per_peer),
            connections: Quota::new(limits.connections),
            handshakes: Quota::new(limits.handshakes),
            networks: Crowd::new(of_one_network),
        })
    }

    fn let_in(&self, address: SocketAddr) -> Result<Guest, Refusal> {
        let place = self.connections.take().ok_or(Refusal::Connections)?;
        let network = self.networks.enter(quota::network(address.ip()), || ());
        let from = match self.port {
            Port::Mesh(..) => {
                let handshake = self.handshakes.take().ok_or(Refusal::Handshakes)?;
                (Some(handshake), network.ok_or(Refusal::Handshakes)?)
            }
            Port::Edge | Port::Admin => (None, network.ok_or(Refusal::ConnectionsOfPeer)?),
        };
        Ok(Guest { address, place, from })
    }

    /// The connection `stream` from `address` over HTTP/1.1, whose requests are `streams`.
    pub(super) fn awaited(
        &self,
        stream: TcpStream,
        streams: &Arc<Streams>,
        address: IpAddr,
    ) -> Awaited<TcpStream> {
        let seat = self.silent.enter(quota::network(address));
        let (connections, is_admin) = (self.connections.clone(), matches!(self.port, Port::Admin));
        Awaited::new(stream, streams.clone(), &self.limits, connections, seat, is_admin)
    }

    /// The requests of a new connection, whose peer has `room` in the service.
    pub(super) fn streams(&self, room: Option<Arc<Room>>) -> Arc<Streams> {
        // Only there are callers who cancel; HTTP/1.1 just closes.
        let resets = matches!(self.port, Port::Mesh(..)).then_some(self.limits.resets);
        Streams::new(self.ledger.clone(), room, self.limits.unary_timeout, resets)
    }
}

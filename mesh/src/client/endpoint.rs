//! One instance as the client sees it: its connection, what is in flight, and
//! whether it answers.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use arc_swap::ArcSwapOption;
use http::{Request, Response};
use tokio::sync::Mutex;
use tonic::{Code, body::Body};

use super::{
    breaker::Breaker,
    connection::{self, Connection, Peer},
};
use crate::{
    identity::Identity,
    intercept::Ended,
    registry::Instance,
    status::{Reason, status},
};

/// An instance, connected when first needed.
pub(super) struct Endpoint {
    pub(super) instance: Instance,
    identity: Identity,
    connection: ArcSwapOption<Connection>,
    connecting: Mutex<()>,
    in_flight: AtomicU32,
    breaker: Breaker,
}

/// A call that failed before an answer came.
pub(super) struct Failed {
    pub(super) status: tonic::Status,
    /// The request, where not a byte of it was sent.
    pub(super) unsent: Option<Request<Body>>,
}

impl Endpoint {
    pub(super) fn new(instance: Instance, identity: Identity) -> Self {
        Self {
            instance,
            identity,
            connection: ArcSwapOption::empty(),
            connecting: Mutex::new(()),
            in_flight: AtomicU32::new(0),
            breaker: Breaker::new(),
        }
    }

    /// How many calls it has in flight.
    pub(super) fn load(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether calls are kept away from it.
    pub(super) fn is_closed_off(&self) -> bool {
        !self.instance.healthy || !self.breaker.is_closed()
    }

    /// Whether the picker may choose it; see [`Breaker::admits`].
    pub(super) fn admits(&self) -> bool {
        self.instance.healthy && self.breaker.admits()
    }

    /// Sends `request` here.
    pub(super) async fn send(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<(Response<Body>, Peer), Failed> {
        let connection = match self.connected().await {
            Ok(connection) => connection,
            Err(why) => {
                self.breaker.unreachable();
                let Instance { service, address, .. } = &self.instance;
                let status = status(Reason::NoInstance, format!("{service} at {address}: {why}"));
                return Err(Failed { status, unsent: Some(request) });
            }
        };
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let endpoint = self.clone();
        let mut ended = Ended::new(move |code| endpoint.ended(code));
        match connection.send.clone().try_send_request(request).await {
            Ok(response) => Ok((ended.watch(response), connection.peer.clone())),
            Err(mut why) => {
                ended.tell(Code::Unavailable);
                let Instance { service, address, .. } = &self.instance;
                let message = format!("{service} at {address}: {}", why.error());
                Err(Failed {
                    status: status(Reason::NoInstance, message),
                    unsent: why.take_message(),
                })
            }
        }
    }

    fn ended(&self, code: Code) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        match code {
            Code::Unavailable | Code::DeadlineExceeded => self.breaker.failed(),
            // The caller went away: that says nothing of the instance.
            Code::Cancelled => {}
            _ => self.breaker.succeeded(),
        }
    }

    /// The open connection, or a new one; who comes while one is being made
    /// waits for that one.
    async fn connected(&self) -> Result<Arc<Connection>, std::io::Error> {
        if let Some(connection) = self.open() {
            return Ok(connection);
        }
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(connection) = self.open() {
            return Ok(connection);
        }
        self.connect().await
    }

    fn open(&self) -> Option<Arc<Connection>> {
        self.connection.load_full().filter(|connection| !connection.send.is_closed())
    }

    async fn connect(&self) -> Result<Arc<Connection>, std::io::Error> {
        let Instance { service, address, .. } = &self.instance;
        let connection =
            connection::connect(&self.identity, service, *address).await.inspect_err(|why| {
                tracing::warn!(service, %address, %why, me = %self.identity.id(), "can't connect");
            })?;
        let connection = Arc::new(connection);
        self.connection.store(Some(connection.clone()));
        Ok(connection)
    }

    /// Replaces a connection that was made with another leaf or other roots.
    /// What is in flight on the old one ends there.
    pub(super) async fn renew(&self) {
        let _one_at_a_time = self.connecting.lock().await;
        let current = self.identity.current();
        if self.open().is_some_and(|open| !Arc::ptr_eq(&open.material, &current)) {
            // Its reason is logged; the next call tries again.
            let _ = self.connect().await;
        }
    }
}

//! A server and a client of the mesh in one process, with the whole stacks,
//! and load on them.

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use http::{HeaderValue, Request, Response};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Status, body::Body, service::Routes};
use tower::{Service as _, ServiceExt as _};

use super::*;
use crate::{
    client::{Client, Peer},
    config::Config,
    identity::dev::DevAuthority,
    intercept::Interceptors,
    policy::{Intentions, Policy},
    registry::fixed::StaticRegistry,
    server::{self, Denials, Security},
};

/// How long anything here may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// How long a server's stop may take.
const GRACE: Duration = Duration::from_secs(5);
/// How many calls are in flight.
const CALLERS: usize = 8;

/// The `dev` authority of the data directory `folder`, as one process has it.
pub(super) fn authority(folder: &Path, leaf_ttl: Duration) -> DevAuthority {
    let mut authority = DevAuthority::open(&config(folder, "")).unwrap();
    authority.leaf_ttl = leaf_ttl;
    authority
}

fn config(folder: &Path, toml: &str) -> Config {
    let file = folder.join("omni.toml");
    std::fs::write(&file, toml).unwrap();
    let flags = [("data", folder.display().to_string())];
    Config::from_sources(Some(&file), std::collections::HashMap::new(), &flags).unwrap()
}

/// The service `audit`, on a port of its own.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(identity: Identity) -> Self {
        let _ = aws_lc_rs::default_provider().install_default();
        crate::descriptors::add_test_service();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let mut routes = Routes::default();
        *routes.axum_router_mut() = axum::Router::new().fallback(nothing);
        let (limits, until) = (config(&std::env::temp_dir(), "").limits, stop.clone());
        let (policy, interceptors) = (policy(), Interceptors::default());
        let app = server::stack("audit", routes, &limits, policy, interceptors, Denials::new());
        let serving = tokio::spawn(async move {
            server::serve(
                listener,
                Security::Mesh { identity, in_place: false },
                &limits,
                app,
                until,
                GRACE,
            )
            .await;
        });
        Self { address, stop, serving }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.serving).await.expect("it stops").unwrap();
    }
}

/// A method that may be asked twice.
const METHOD: &str = "/test.v1.Test/Get";

/// Answers every call with an empty message.
async fn nothing() -> Response<axum::body::Body> {
    let frame = [0; 5].as_slice();
    let mut answer = Response::new(axum::body::Body::from(frame));
    let headers = answer.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static("0"));
    answer
}

fn policy() -> watch::Receiver<Arc<Policy>> {
    let declared = [("gateway".to_owned(), "audit".to_owned())];
    let intentions = Intentions::compile([], &declared);
    watch::channel(Arc::new(Policy { intentions, ..Policy::default() })).1
}

/// Calls of `gateway` to `audit` without end, from several tasks.
pub(super) struct Load {
    answered: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    callers: Vec<AbortOnDropHandle<Result<Called, Status>>>,
}

/// What became of the calls: how many there were, and the serial numbers of
/// the leafs that answered.
#[derive(Default)]
pub(super) struct Called {
    pub(super) calls: usize,
    pub(super) serials: std::collections::BTreeSet<String>,
}

impl Load {
    pub(super) async fn start(identity: Identity, folder: &Path, servers: &[SocketAddr]) -> Self {
        let addresses: Vec<String> = servers.iter().map(|a| format!("\"{a}\"")).collect();
        let toml = format!("[instances]\naudit = [{}]", addresses.join(", "));
        let registry = Arc::new(StaticRegistry::new(&config(folder, &toml)).unwrap());
        let client = Client::new(identity, registry, policy(), Interceptors::default());
        let channel = client.channel("audit").await.unwrap();
        let (answered, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let caller = |_| {
            let (mut channel, stop) = (channel.clone(), stop.clone());
            let answered = answered.clone();
            let calls = async move {
                let mut called = Called::default();
                while !stop.load(Ordering::Relaxed) {
                    let mut request = Request::post(METHOD).body(Body::empty()).unwrap();
                    let grpc = HeaderValue::from_static("application/grpc");
                    request.headers_mut().insert("content-type", grpc);
                    let answer = channel.ready().await?.call(request).await?;
                    let peer = answer.extensions().get::<Arc<Peer>>().expect("the stack says who");
                    called.serials.insert(peer.serial.clone());
                    called.calls += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                    // Leaves the processor to what rotates.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(called)
            };
            AbortOnDropHandle::new(tokio::spawn(calls))
        };
        let callers = (0..CALLERS).map(caller).collect();
        Self { answered, stop, callers }
    }

    /// Waits for a hundred further calls, or until one failed.
    pub(super) async fn goes_on(&self) {
        let enough = self.answered.load(Ordering::Relaxed) + 100;
        let gone_on = async {
            while self.answered.load(Ordering::Relaxed) < enough
                && self.callers.iter().all(|caller| !caller.is_finished())
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, gone_on).await.expect("calls are answered");
    }

    /// Ends the calls.
    ///
    /// # Panics
    /// When one of them failed.
    pub(super) async fn stop(self) -> Called {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Called::default();
        for caller in self.callers {
            let called = tokio::time::timeout(DEADLINE, caller).await.expect("it ends").unwrap();
            let called = called.expect("no call fails");
            all.calls += called.calls;
            all.serials.extend(called.serials);
        }
        all
    }
}

/// Waits until `identity` shows `times` further leafs.
pub(super) async fn renewals(identity: &mut Identity, times: usize) {
    for n in 0..times {
        let serial = identity.current().serial.clone();
        let renewed = async {
            while identity.current().serial == serial {
                identity.changed().await;
            }
        };
        tokio::time::timeout(DEADLINE, renewed).await.unwrap_or_else(|_| panic!("renewal {n}"));
    }
}

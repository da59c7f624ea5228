//! What is attacked: a service behind the mesh's inbound stack, and the same
//! service behind a bare listener beside it, with hyper's own defaults.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use api::audit::v1::{
    ListEntriesRequest, ListEntriesResponse,
    audit_server::{Audit, AuditServer},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use mesh::{
    config::{Config, LimitsConfig},
    identity::{Authority, Identity, dev::DevAuthority},
    intercept::Interceptors,
    policy::Policy,
    server::{self, Denials, Security},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, codec::CompressionEncoding, service::Routes};
use watchdog::Watchdog;

/// The service.
pub const SERVICE: &str = "audit";
/// Its one method, a unary one.
pub const METHOD: &str = "/omnibridge.audit.v1.Audit/ListEntries";
/// A topic for which the service answers when it is let.
pub const HELD: &str = "held";

/// How long a stop may take.
const GRACE: Duration = Duration::from_secs(5);

/// Where a listener is before it is bound.
const UNBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// One more instance of the service.
pub struct Instance {
    /// Where it is.
    pub address: SocketAddr,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Instance {
    /// Drains it, and waits for its end.
    pub async fn stop(self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}

/// A service, and a bare listener beside it.
pub struct Site {
    /// Where the service is.
    pub service: SocketAddr,
    /// Where the bare listener is.
    pub bare: SocketAddr,
    /// Who calls.
    pub caller: Identity,
    /// Who attacks.
    pub attacker: Identity,
    /// A permit lets one call about [`HELD`] be answered.
    pub answers: Arc<Semaphore>,
    own: Identity,
    authority: DevAuthority,
    config: Config,
    stop: CancellationToken,
    tasks: TaskTracker,
    policy: watch::Receiver<Arc<Policy>>,
    _policy: watch::Sender<Arc<Policy>>,
    _folder: tempfile::TempDir,
    _watchdog: Watchdog,
}

impl Site {
    /// Starts both, with `change`d limits.
    ///
    /// # Panics
    /// When it can't be started.
    pub async fn start(change: impl FnOnce(&mut LimitsConfig)) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        mesh::descriptors::add(api::DESCRIPTORS).expect("they are ours");
        let folder = tempfile::tempdir().expect("there is room");
        let flags = [("data", folder.path().display().to_string())];
        let mut config =
            Config::from_sources(None, HashMap::new(), &flags).expect("the defaults are valid");
        change(&mut config.limits);
        let authority = DevAuthority::open(&config).expect("the CA is made");
        let identity = |name| authority.identity(name);
        let (policy, policies) = watch::channel(Arc::default());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let mut site = Self {
            service: UNBOUND,
            bare: UNBOUND,
            caller: identity("operator").await.expect("a leaf"),
            attacker: identity("operator-m").await.expect("a leaf"),
            answers: Arc::new(Semaphore::new(0)),
            own: identity(SERVICE).await.expect("a leaf"),
            authority,
            config,
            stop,
            tasks,
            policy: policies,
            _policy: policy,
            _folder: folder,
            _watchdog: Watchdog::start(),
        };
        site.service = site.spawn("127.0.0.1:0", site.stop.clone(), CancellationToken::new()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        site.bare = listener.local_addr().expect("it is bound");
        site.tasks.spawn(serve_bare(listener, site.own.clone(), site.routes(), site.stop.clone()));
        site
    }

    /// One more instance of the service, at `address`.
    ///
    /// # Panics
    /// When it can't be started.
    pub async fn instance(&self, address: &str) -> Instance {
        let stop = self.stop.child_token();
        let ended = CancellationToken::new();
        let address = self.spawn(address, stop.clone(), ended.clone()).await;
        Instance { address, stop, ended }
    }

    /// Serves until `stop`, and then says so by `ended`.
    async fn spawn(
        &self,
        address: &str,
        stop: CancellationToken,
        ended: CancellationToken,
    ) -> SocketAddr {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let limits = self.config.limits.clone();
        let (policy, none) = (self.policy.clone(), Interceptors::default());
        let app = server::stack(SERVICE, self.routes(), &limits, policy, none, Denials::new());
        let security = Security::Mesh { identity: self.own.clone(), in_place: false };
        self.tasks.spawn(async move {
            server::serve(listener, security, &limits, app, stop, GRACE).await;
            ended.cancel();
        });
        address
    }

    fn routes(&self) -> Routes {
        let echo = Echo { answers: self.answers.clone() };
        let server = AuditServer::new(echo)
            .max_decoding_message_size(self.config.limits.message_bytes)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        Routes::new(server)
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The identity of somebody else.
    ///
    /// # Panics
    /// When it can't be had.
    pub async fn identity(&self, name: &str) -> Identity {
        self.authority.identity(name).await.expect("a leaf")
    }

    /// Begins to stop the service.
    pub fn drain(&self) {
        self.stop.cancel();
    }

    /// Stops, and waits for the end.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Answers with the correlation id it is asked for.
struct Echo {
    answers: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Audit for Echo {
    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        let request = request.into_inner();
        if request.topic == HELD {
            let answer = self.answers.acquire().await;
            answer.map_err(|why| Status::internal(why.to_string()))?.forget();
        }
        let answer =
            ListEntriesResponse { entries: vec![], next_page_token: request.correlation_id };
        Ok(Response::new(answer))
    }
}

/// The same TLS and nothing else of ours.
async fn serve_bare(
    listener: TcpListener,
    identity: Identity,
    routes: Routes,
    stop: CancellationToken,
) {
    let tls = TlsAcceptor::from(identity.server_config());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let (tls, routes, stop) = (tls.clone(), routes.clone(), stop.clone());
        tokio::spawn(async move {
            let serve = async {
                let _ = stream.set_nodelay(true);
                let Ok(stream) = tls.accept(stream).await else { return };
                let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
                let service = TowerToHyperService::new(routes);
                // How an attacked connection ends is of no interest.
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            };
            tokio::select! {
                () = serve => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

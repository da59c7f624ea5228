//! What the services of one process share, and running them.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use convert::Mappings;
use futures::future::BoxFuture;
use listenfd::ListenFd;

use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Descriptor, Service, run};
use crate::{
    Error,
    client::Clients,
    config::Config,
    descriptors,
    events::broker::{self, Broker},
    identity::{self, Authority, Identity, is_name, is_operator_name},
    intercept::{Attached, Interceptors, Metrics},
    policy::{self, Declared, Policy},
    registry::{self, Registry},
    server::{self, Admin, Readiness, Security},
    telemetry::Telemetry,
};

/// What the services of one process share: backends, policy, admin port.
pub struct Process {
    pub(super) config: Arc<Config>,
    pub(super) authority: Arc<dyn Authority>,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) policy: watch::Receiver<Arc<Policy>>,
    pub(super) mappings: Arc<Mappings>,
    pub(super) interceptors: Interceptors,
    pub(super) clients: Clients,
    pub(super) readiness: Readiness,
    pub(super) admin_address: SocketAddr,
    /// What listens for a service with HTTP already, by who started this process.
    pub(super) door: Option<std::net::TcpListener>,
    _metrics: Attached,
    telemetry: Arc<Telemetry>,
    tasks: TaskTracker,
    stop_admin: CancellationToken,
}

impl Process {
    /// Opens the backends that the configuration names and the admin port at
    /// `admin_port`. Several may share one telemetry, as tests do; the last one to
    /// stop stops it.
    ///
    /// # Errors
    /// When a backend can't be used or the port can't be bound.
    pub fn start(
        config: Arc<Config>,
        telemetry: Arc<Telemetry>,
        declared: &Declared,
        admin_port: u16,
    ) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(async move {
            declared.descriptors.iter().try_for_each(|encoded| descriptors::add(encoded))?;
            let interceptors = Interceptors::default();
            let metrics = interceptors.attach(Arc::new(Metrics::new()));
            let clients = Clients::default();
            let admin = Admin::new(telemetry.clone(), clients.clone()).await;
            let listener = bind(
                "the admin port",
                (config.admin_bind, admin_port).into(),
                "services.NAME.admin_port",
            )
            .await?;
            let admin_address = listener.local_addr().map_err(Error::file("the admin port"))?;
            let authority = identity::authority(&config)?;
            let registry = registry::registry(&config)?;
            let broker = broker::broker(&config).await?;
            let policy = policy::policy(&config, declared).await?;
            let mappings = Arc::new(mappings(&config)?);
            // Behind all that can fail, so that it can be tried again.
            let tasks = TaskTracker::new();
            let stop_admin = CancellationToken::new();
            let (limits, stop) = (config.limits.clone(), stop_admin.clone());
            tasks.spawn(async move {
                let grace = std::time::Duration::from_secs(1);
                server::serve(listener, Security::Admin, &limits, admin.app, stop, grace).await;
            });
            Ok(Self {
                authority,
                registry,
                broker,
                policy,
                mappings,
                interceptors,
                clients,
                readiness: admin.readiness,
                admin_address,
                door: door()?,
                _metrics: metrics,
                telemetry,
                tasks,
                stop_admin,
                config,
            })
        })
    }

    /// Where the admin port is.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// An identity of this process' authority, for what isn't a service.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn identity(&self, name: &str) -> Result<Identity, Error> {
        self.authority.identity(name).await
    }

    /// Runs `service` until `stop`, and then drains it; `ready` is told where it
    /// serves.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn run(
        &self,
        service: Arc<dyn Service>,
        ready: oneshot::Sender<SocketAddr>,
        stop: CancellationToken,
    ) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let Descriptor { name, descriptors, grpc_services, .. } = service.descriptor();
            descriptors::add(descriptors)?;
            let pool = descriptors::pool();
            if let Some(lacks) =
                grpc_services.iter().find(|s| pool.get_service_by_name(s).is_none())
            {
                let why = format!("`{lacks}` isn't in those that {name} hands in");
                return Err(Error::Descriptors(why));
            }
            if !is_name(name) || is_operator_name(name) {
                return Err(Error::Registry(format!("`{name}` can't name a service")));
            }
            self.readiness.set(name, false).await;
            run::run(self, service.as_ref(), ready, stop).await
        })
    }

    /// Closes the admin port and sends the last telemetry.
    pub fn stop(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.stop_admin.cancel();
            self.tasks.close();
            self.tasks.wait().await;
            let telemetry = self.telemetry.clone();
            drop(self);
            if let Some(telemetry) = Arc::into_inner(telemetry) {
                telemetry.stop().await;
            }
        })
    }
}

/// What the setting `mappings` names; nothing unless it is set.
fn mappings(config: &Config) -> Result<Mappings, Error> {
    let Some(folder) = &config.mappings else { return Ok(Mappings::default()) };
    Mappings::load(folder, descriptors::pool())
        .map_err(|why| Error::setting("mappings", folder.display().to_string(), why))
}

/// The socket that this process was handed when it was started, as systemd hands on
/// its own: `sd_listen_fds(3)`.
fn door() -> Result<Option<std::net::TcpListener>, Error> {
    static GIVEN: LazyLock<Mutex<ListenFd>> = LazyLock::new(|| Mutex::new(ListenFd::from_env()));
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    given.take_tcp_listener(0).map_err(Error::file("the socket that was handed on"))
}

/// Listens at `address`, which `setting` says, for `what`.
pub(super) async fn bind(
    what: &str,
    address: SocketAddr,
    setting: &str,
) -> Result<TcpListener, Error> {
    let (what, setting) = (what.to_owned(), setting.to_owned());
    let failed = |source| Error::Bind { what, address, setting, source };
    TcpListener::bind(address).await.map_err(failed)
}

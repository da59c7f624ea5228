//! What the services of one process share, and running them.

use std::{net::SocketAddr, sync::Arc};

use convert::Mappings;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Service, run};
use crate::{
    Error,
    client::Clients,
    config::Config,
    descriptors::POOL,
    events::broker::{self, Broker},
    identity::{self, Authority, Identity, is_name, is_operator_name},
    intercept::{Attached, Interceptors, Metrics},
    policy::{self, Policy},
    registry::{self, Registry},
    server::{self, Admin, Readiness, Security},
    telemetry::Telemetry,
};

/// Where a service of the process is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is being started.
    Starting,
    /// It serves at this address and is registered.
    Ready(SocketAddr),
    /// It finishes what is in flight.
    Draining,
    /// It is gone.
    Stopped,
}

/// Is told of each service's stages, for people to see.
pub type Progress = Arc<dyn Fn(&str, Stage) + Send + Sync>;

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
    _metrics: Attached,
    telemetry: Arc<Telemetry>,
    tasks: TaskTracker,
    stop_admin: CancellationToken,
}

impl Process {
    /// Opens the backends that the configuration names and the admin port at
    /// `admin_port`. `declared` are the dependencies of all services known, as
    /// (caller, called). Several may share one telemetry, as tests do; the last
    /// one to stop stops it.
    ///
    /// # Errors
    /// When a backend can't be used or the port can't be bound.
    pub async fn start(
        config: Arc<Config>,
        telemetry: impl Into<Arc<Telemetry>>,
        declared: &[(String, String)],
        admin_port: u16,
    ) -> Result<Self, Error> {
        let telemetry = telemetry.into();
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
        let tasks = TaskTracker::new();
        let stop_admin = CancellationToken::new();
        let (limits, stop) = (config.limits.clone(), stop_admin.clone());
        tasks.spawn(async move {
            let grace = std::time::Duration::from_secs(1);
            server::serve(listener, Security::Admin, &limits, admin.app, stop, grace).await;
        });
        Ok(Self {
            authority: identity::authority(&config)?,
            registry: registry::registry(&config)?,
            broker: broker::broker(&config).await?,
            policy: policy::policy(&config, declared).await?,
            mappings: Arc::new(mappings(&config)?),
            interceptors,
            clients,
            readiness: admin.readiness,
            admin_address,
            _metrics: metrics,
            telemetry,
            tasks,
            stop_admin,
            config,
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

    /// Runs `services` until `stop`, and then drains them.
    ///
    /// # Errors
    /// The first service's that can't be started; the others are drained.
    pub async fn run(
        self: &Arc<Self>,
        services: Vec<Arc<dyn Service>>,
        progress: Progress,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        for service in &services {
            let name = service.descriptor().name;
            if !is_name(name) || is_operator_name(name) {
                return Err(Error::Registry(format!("`{name}` can't name a service")));
            }
            self.readiness.set(name, false).await;
        }
        // Who only calls drains first: those it calls are there to the end.
        let (called, callers): (Vec<_>, Vec<_>) =
            services.into_iter().partition(|s| !s.descriptor().grpc_services.is_empty());
        let stop_called = CancellationToken::new();
        let mut running_callers = self.spawn(callers, &progress, &stop);
        let mut running_called = self.spawn(called, &progress, &stop_called);
        let callers = async {
            let outcome = ended(&mut running_callers, &stop).await;
            stop.cancelled().await;
            stop_called.cancel();
            outcome
        };
        let (callers, called) = tokio::join!(callers, ended(&mut running_called, &stop));
        callers.and(called)
    }

    fn spawn(
        self: &Arc<Self>,
        services: Vec<Arc<dyn Service>>,
        progress: &Progress,
        stop: &CancellationToken,
    ) -> JoinSet<Result<(), Error>> {
        let mut running = JoinSet::new();
        for service in services {
            let (process, progress, stop) = (self.clone(), progress.clone(), stop.clone());
            running
                .spawn(async move { run::run(&process, service.as_ref(), &progress, stop).await });
        }
        running
    }

    /// Closes the admin port and sends the last telemetry.
    pub async fn stop(self: Arc<Self>) {
        self.stop_admin.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let telemetry = self.telemetry.clone();
        drop(self);
        if let Some(telemetry) = Arc::into_inner(telemetry) {
            telemetry.stop().await;
        }
    }
}

/// What the setting `mappings` names; nothing unless it is set.
fn mappings(config: &Config) -> Result<Mappings, Error> {
    let Some(folder) = &config.mappings else { return Ok(Mappings::default()) };
    Mappings::load(folder, POOL.clone())
        .map_err(|why| Error::setting("mappings", folder.display().to_string(), why))
}

/// Waits for all of `running`; the first error stops the process.
async fn ended(
    running: &mut JoinSet<Result<(), Error>>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let mut outcome = Ok(());
    while let Some(ended) = running.join_next().await {
        let ended = ended.unwrap_or_else(|why| Err(Error::Registry(why.to_string())));
        if let Err(why) = ended {
            stop.cancel();
            outcome = outcome.and(Err(why));
        }
    }
    outcome
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

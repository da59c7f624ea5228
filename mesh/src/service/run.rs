//! One service's life in a process.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::service::Routes;
use tonic_reflection::server::Builder as Reflection;

use super::{
    Context, Descriptor, Process, Service, Surface, denials,
    lifecycle::{self, Lifecycle, Way},
    process::bind,
};
use crate::{
    Error,
    client::Client,
    config::Config,
    events::{Outbox, Relay},
    identity::Identity,
    messages::lifecycle::v1::ServiceState,
    registry::Instance,
    server::{self, App, Security},
    store::Store,
};

/// The part of the drain's time that is kept for flushing the outbox.
const FLUSH_SHARE: u32 = 4;
/// How long what must be let go before the deregistration may take.
const LEAVING: Duration = Duration::from_secs(3);

/// Runs `service` until `stop`, and drains it; tells `ready` where it serves.
pub(super) async fn run(
    process: &Process,
    service: &dyn Service,
    ready: oneshot::Sender<SocketAddr>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let running = Running::start(process, service, service.descriptor()).await?;
    // Who doesn't listen doesn't want to know.
    let _ = ready.send(running.address);
    stop.cancelled().await;
    running.drain(process).await;
    Ok(())
}

struct Running {
    name: &'static str,
    context: Context,
    lifecycle: Lifecycle,
    registration: crate::registry::Registration,
    address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
    stop_server: CancellationToken,
    relay: TaskTracker,
    stop_relay: CancellationToken,
    /// Keeps the certificate's metrics.
    _reported: Arc<Identity>,
    /// Cancel what may still run when this goes.
    _guards: [DropGuard; 5],
}

impl Running {
    async fn start(
        process: &Process,
        service: &dyn Service,
        descriptor: Descriptor,
    ) -> Result<Self, Error> {
        let config = &process.config;
        let name = descriptor.name;
        let identity = process.authority.identity(name).await?;
        let reported = identity.report(name);
        let outbox = if descriptor.has_database() {
            let store = Arc::new(Store::open(config, name, descriptor.migrations).await?);
            Some(Outbox::open(name, store, descriptor.bodies, config.outbox.clone()).await?)
        } else {
            None
        };
        let (stop_relay, relay) = (CancellationToken::new(), TaskTracker::new());
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        let leaving = CancellationToken::new();
        let stop_server = CancellationToken::new();
        // Should the start fail half-way, what runs already ends.
        let all = [&stop_relay, &leaving, &draining, &stopping, &stop_server];
        let guards = all.map(|token| token.clone().drop_guard());
        let (broker, flush) = (process.broker.clone(), flush_time(config));
        let way = match &outbox {
            Some(outbox) => {
                let relaying = Relay::new(name, outbox.clone(), broker);
                relay.spawn(relaying.run(stop_relay.clone(), flush));
                Way::Outbox(outbox.clone())
            }
            None => {
                let (way, telling) = lifecycle::queue(name, broker, stop_relay.clone(), flush);
                relay.spawn(telling);
                way
            }
        };
        relay.close();
        let instance = format!("{name}-{}", uuid::Uuid::now_v7().simple());
        let version = descriptor.version;
        let lifecycle = Lifecycle { service: name, instance: instance.clone(), version, way };
        lifecycle.tell(ServiceState::Started, "").await;
        let client = Client::new(
            identity.clone(),
            process.registry.clone(),
            process.policy.clone(),
            process.interceptors.clone(),
        );
        process.clients.add(client.clone());
        let (registered, is_registered) = watch::channel(None);
        let context = Context {
            name,
            instance: instance.clone(),
            registered: is_registered,
            config: config.clone(),
            client,
            outbox,
            broker: process.broker.clone(),
            registry: process.registry.clone(),
            mappings: process.mappings.clone(),
            tasks: TaskTracker::new(),
            leaving,
            leavers: TaskTracker::new(),
            draining,
            stopping,
        };
        let surface = service.start(&context).await?;
        let setting = format!("services.{name}.port");
        let listener = match (&surface, &process.door) {
            (Surface::Http(_), Some(door)) => handed_on(door).map_err(Error::file("the port"))?,
            _ => {
                let port = config.port(name).or(descriptor.port).unwrap_or(0);
                bind(name, (config.bind, port).into(), &setting).await?
            }
        };
        let bound = listener.local_addr().map_err(Error::file("the mesh port"))?;
        let address = (advertised(config)?, bound.port()).into();
        let server = serve(
            process,
            &context,
            &descriptor,
            identity,
            surface,
            listener,
            stop_server.clone(),
        )?;

        process.readiness.set(name, true).await;
        let instance = Instance {
            id: instance,
            service: name.to_owned(),
            address,
            admin: Some((advertised_admin(config)?, process.admin_address.port()).into()),
            version: descriptor
                .version
                .parse()
                .map_err(|why| Error::Registry(format!("{name}'s version: {why}")))?,
            packages: descriptor.packages(),
            capabilities: descriptor.capabilities.iter().map(|c| (*c).to_owned()).collect(),
            weight: config.weight(name),
            healthy: true,
        };
        let registration = process.registry.register(instance.clone()).await?;
        registered.send_replace(Some(Arc::new(instance)));
        lifecycle.tell(ServiceState::Ready, &address.to_string()).await;
        tracing::info!(service = name, %address, "ready");
        Ok(Self {
            name,
            context,
            lifecycle,
            registration,
            address,
            server,
            stop_server,
            relay,
            stop_relay,
            _reported: reported,
            _guards: guards,
        })
    }

    async fn drain(self, process: &Process) {
        let address = self.address.to_string();
        tracing::info!(service = self.name, "draining");
        process.readiness.set(self.name, false).await;
        self.lifecycle.tell(ServiceState::Draining, &address).await;
        self.context.leaving.cancel();
        self.context.leavers.close();
        if tokio::time::timeout(LEAVING, self.context.leavers.wait()).await.is_err() {
            tracing::warn!(service = self.name, "it goes before what it holds is let go");
        }
        self.registration.deregister().await;

        self.context.draining.cancel();
        self.stop_server.cancel();
        if let Err(why) = self.server.await {
            tracing::error!(service = self.name, %why, "the server ended badly");
        }

        self.context.stopping.cancel();
        self.context.tasks.close();
        let tasks = self.context.tasks.wait();
        if tokio::time::timeout(flush_time(&process.config), tasks).await.is_err() {
            tracing::warn!(service = self.name, "tasks are left behind");
        }
        self.lifecycle.tell(ServiceState::Stopped, &address).await;
        self.stop_relay.cancel();
        let flushed = async {
            self.relay.wait().await;
            if let Some(outbox) = &self.context.outbox {
                outbox.store().close().await;
            }
        };
        // The relay ends by itself, but for a broker or a database that hangs.
        if tokio::time::timeout(2 * flush_time(&process.config), flushed).await.is_err() {
            tracing::warn!(service = self.name, "stopped before the outbox was flushed");
        }
        tracing::info!(service = self.name, "stopped");
    }
}

/// A listener of our own beside `door`, which stays.
fn handed_on(door: &std::net::TcpListener) -> std::io::Result<TcpListener> {
    let door = door.try_clone()?;
    door.set_nonblocking(true)?;
    TcpListener::from_std(door)
}

/// Puts the surface on its port.
fn serve(
    process: &Process,
    context: &Context,
    descriptor: &Descriptor,
    identity: Identity,
    surface: Surface,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<tokio::task::JoinHandle<()>, Error> {
    let reflection = Reflection::configure();
    let in_place = process.policy.borrow().trust.converts(context.name);
    let mesh = Security::Mesh { identity, in_place };
    let (security, app) = match surface {
        Surface::Grpc(routes) => {
            let reflection =
                reflection.register_encoded_file_descriptor_set(descriptor.descriptors);
            let named = descriptor.grpc_services.iter().copied();
            let reflection = named.fold(reflection, Reflection::with_service_name);
            (mesh, grpc(process, context, routes, reflection)?)
        }
        Surface::Dynamic { routes, descriptors, services } => {
            let reflection = reflection.register_file_descriptor_set(descriptors);
            let reflection = services.into_iter().fold(reflection, Reflection::with_service_name);
            (mesh, grpc(process, context, routes, reflection)?)
        }
        Surface::Http(router) => (Security::Edge, server::app(router)),
    };
    let limits = context.config.limits.clone();
    // The rest is for tasks and for the outbox.
    let grace = context.config.drain_timeout - 2 * flush_time(&context.config);
    Ok(tokio::spawn(serve_app(listener, security, limits, app, stop, grace)))
}

/// The whole inbound stack around `routes` and what reflection tells of them.
fn grpc(
    process: &Process,
    context: &Context,
    routes: Routes,
    reflection: Reflection<'_>,
) -> Result<App, Error> {
    let denials = server::Denials::new();
    context.spawn(denials::publish(
        context.name.into(),
        denials.clone(),
        context.outbox()?.clone(),
        context.stopping(),
    ));
    let reflection =
        reflection.build_v1().map_err(|why| Error::Registry(format!("reflection: {why}")))?;
    Ok(server::stack(
        context.name,
        routes.add_service(reflection),
        &context.config.limits,
        process.policy.clone(),
        process.interceptors.clone(),
        denials,
    ))
}

async fn serve_app(
    listener: TcpListener,
    security: Security,
    limits: crate::config::LimitsConfig,
    app: App,
    stop: CancellationToken,
    grace: Duration,
) {
    server::serve(listener, security, &limits, app, stop, grace).await;
}

fn flush_time(config: &Config) -> Duration {
    config.drain_timeout / FLUSH_SHARE
}

fn advertised(config: &Config) -> Result<IpAddr, Error> {
    told(config, config.bind, "bind")
}

fn advertised_admin(config: &Config) -> Result<IpAddr, Error> {
    told(config, config.admin_bind, "admin_bind")
}

/// The address that others are told for one that is bound.
fn told(config: &Config, bound: IpAddr, key: &str) -> Result<IpAddr, Error> {
    match config.advertise {
        Some(address) if !bound.is_loopback() => Ok(address),
        _ if bound.is_unspecified() => Err(Error::setting(
            key,
            bound.to_string(),
            "others can't connect to it; set `advertise` to the address they can",
        )),
        _ => Ok(bound),
    }
}

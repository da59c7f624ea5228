//! The mesh with everything on: identity, intentions, picker, retries, breaker,
//! metrics, and traces of which one in a hundred is sampled and exported.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use api::hooks::v1::{
    hook_receiver_client::HookReceiverClient, hook_receiver_server::HookReceiverServer,
};
use bytes::Bytes;
use mesh::{
    client::{self, Channel},
    config::Config,
    identity::{
        self, Identity,
        dev::{DevAuthority, Issued},
    },
    intercept::{Attached, Interceptors, Metrics},
    policy::{self, Action, Declared, Intention, Policy, Trust},
    registry::{self, Instance, Registry},
    server::{self, Denials, Security},
    telemetry::{
        Telemetry,
        trace::{self, Kind},
    },
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, service::Routes};
use tracing::Instrument as _;

use crate::{
    CONNECTIONS,
    load::{self, Echo},
    party,
    server::Answering,
};

/// What converts between versions.
pub(crate) const VERSION_BRIDGE: &str = "version-bridge";
/// Who calls.
pub(crate) const CLIENT: &str = "load";
/// Who is called.
pub(crate) const SERVER: &str = "echo";
/// The share of calls whose traces are sampled.
const SAMPLE: f64 = 0.01;
/// How many other services there are, each of which may call the next.
const OTHERS: usize = 100;

/// A leaf of the same CA as the mesh has, for those that read files.
///
/// # Errors
/// When the CA can't be opened.
pub(crate) fn issue(data: &Path, name: &str) -> anyhow::Result<Issued> {
    let config = Config::from_sources(None, HashMap::new(), &[("data", text(data))])?;
    Ok(DevAuthority::open(&config)?.issue(name)?)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The settings of every process of the mesh.
///
/// # Errors
/// When one doesn't fit.
pub(crate) fn config(data: &Path, traces: &str) -> anyhow::Result<Config> {
    let settings = [
        ("data", text(data)),
        ("telemetry.endpoint", traces.to_owned()),
        ("telemetry.sample", SAMPLE.to_string()),
        ("log.filter", "warn".to_owned()),
    ];
    let mut config = Config::from_sources(None, HashMap::new(), &settings)?;
    config.intentions.push(Intention {
        source: CLIENT.to_owned(),
        destination: SERVER.to_owned(),
        action: Some(Action::Allow),
        permissions: vec![],
    });
    Ok(config)
}

/// What the other services declare: whom they call.
pub(crate) fn declared() -> Declared {
    let calls = (0..OTHERS).map(|n| (format!("service-{n}"), format!("service-{}", n + 1)));
    let converters = [VERSION_BRIDGE.to_owned()].into();
    Declared {
        calls: calls.collect(),
        trust: Trust { converters, ..Trust::default() },
        descriptors: vec![api::DESCRIPTORS],
    }
}

/// What a process of the mesh has, whichever side it is.
struct Side {
    config: Config,
    identity: Identity,
    registry: Arc<dyn Registry>,
    policy: watch::Receiver<Arc<Policy>>,
    interceptors: Interceptors,
    _metrics: Attached,
    _telemetry: Telemetry,
}

impl Side {
    async fn start(name: &str, data: &Path, traces: &str) -> anyhow::Result<Self> {
        let config = config(data, traces)?;
        let telemetry = Telemetry::start(&config)?;
        let interceptors = Interceptors::default();
        Ok(Self {
            identity: identity::authority(&config)?.identity(name).await?,
            registry: registry::registry(&config)?,
            policy: policy::policy(&config, &declared()).await?,
            // After the telemetry: it is what they are recorded by.
            _metrics: interceptors.attach(Arc::new(Metrics::new())),
            interceptors,
            _telemetry: telemetry,
            config,
        })
    }
}

/// Serves `service` on `listener`, registered, until standard input ends.
///
/// # Errors
/// When the mesh can't be entered.
pub(crate) async fn serve(
    listener: TcpListener,
    service: HookReceiverServer<Answering>,
    data: &Path,
    traces: &str,
) -> anyhow::Result<()> {
    let side = Side::start(SERVER, data, traces).await?;
    let address = listener.local_addr()?;
    let app = server::stack(
        SERVER,
        Routes::new(service),
        &side.config.limits,
        side.policy.clone(),
        side.interceptors.clone(),
        Denials::new(),
    );
    let _registered = side
        .registry
        .register(Instance {
            id: format!("{SERVER}-1"),
            service: SERVER.to_owned(),
            address,
            admin: None,
            version: semver::Version::new(1, 0, 0),
            packages: vec!["omnibridge.hooks.v1".to_owned()],
            capabilities: vec![],
            healthy: true,
            weight: std::num::NonZeroU16::MIN,
        })
        .await?;
    let stop = CancellationToken::new();
    let security = Security::Mesh { identity: side.identity.clone(), in_place: false };
    let serving = server::serve(
        listener,
        security,
        &side.config.limits,
        app,
        stop.clone(),
        Duration::from_secs(1),
    );
    party::tell(&address)?;
    let ending = async {
        party::Asked::new().end().await;
        stop.cancel();
    };
    tokio::join!(serving, ending);
    Ok(())
}

/// The client's side.
pub(crate) struct Client(Side);

impl Client {
    /// Enters the mesh.
    ///
    /// # Errors
    /// When it can't be entered.
    pub(crate) async fn start(data: &Path, traces: &str) -> anyhow::Result<Self> {
        Ok(Self(Side::start(CLIENT, data, traces).await?))
    }

    /// As many connections as the others have: a client opens one to each
    /// instance, so there is a client a connection.
    ///
    /// # Errors
    /// When the registry can't be watched.
    pub(crate) async fn connections(&self) -> anyhow::Result<Vec<Meshed>> {
        let mut connections = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let client = client::Client::new(
                self.0.identity.clone(),
                self.0.registry.clone(),
                self.0.policy.clone(),
                self.0.interceptors.clone(),
            );
            connections.push(Meshed(HookReceiverClient::new(client.channel(SERVER).await?)));
        }
        Ok(connections)
    }
}

/// A connection of the mesh's.
#[derive(Clone)]
pub(crate) struct Meshed(HookReceiverClient<Channel>);

impl Echo for Meshed {
    async fn call(&mut self, text: Bytes) -> Result<String, Status> {
        // Each call begins a trace, as each webhook does in the gateway.
        let span = trace::root(CLIENT, Kind::Server, "load");
        Ok(load::text_of(self.0.receive(load::request(text)).instrument(span).await?))
    }
}

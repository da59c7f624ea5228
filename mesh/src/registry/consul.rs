//! The registry that is Consul: instances register on this machine's agent,
//! which checks them by gRPC, and are watched by blocking queries.

mod meta;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU16, sync::Arc, time::Duration};

use async_trait::async_trait;
use consulrs::api::{
    check::common::AgentServiceCheck,
    service::{
        common::{AgentServiceConnect, AgentWeights},
        requests::{DeregisterServiceRequest, RegisterServiceRequest},
    },
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Deregister, Instance, Registration, Registry, Snapshot};
use crate::{
    Error,
    config::{Config, ConsulConfig},
    consul::{
        Answer, Consul, Since,
        endpoints::{AgentService, CatalogServices, Entry, HealthConnect, Known},
        follow::{self, Follow},
        go_duration,
    },
    identity::is_name,
};

/// What tells the mesh's services from others in the catalog.
const TAG: &str = "omnibridge";
/// How long a new watch waits for its first snapshot.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(5);
/// How long an instance waits between its looks at whether the agent still knows
/// it: the agent holds each one until something changed.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How long it waits after a look that the agent should have held but didn't.
const UNHELD_LOOK_PAUSE: Duration = Duration::from_secs(3);
/// How long deregistering may take, a registration under way included.
const DEREGISTER: Duration = Duration::from_secs(6);
/// How many services are asked for at once.
const CONCURRENT_QUERIES: usize = 8;

/// The registry of a Consul agent.
pub struct ConsulRegistry {
    consul: Arc<Consul>,
    settings: ConsulConfig,
}

impl ConsulRegistry {
    /// The registry of the agent that the setting `registry` names.
    ///
    /// # Errors
    /// When the setting names none.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let consul = Consul::from_config(config)?;
        Ok(Self { consul, settings: config.consul.clone() })
    }
}

#[async_trait]
impl Registry for ConsulRegistry {
    async fn register(&self, instance: Instance) -> Result<Registration, Error> {
        let request = registration(&instance, &self.settings)?;
        self.consul.get(request.clone()).await?;
        let stop = CancellationToken::new();
        let keeper = Keeper { consul: self.consul.clone(), id: instance.id, request };
        let kept = tokio::spawn(keeper.run(stop.clone()));
        Ok(Registration::new(Kept { stop, kept }))
    }

    async fn watch(&self, service: &str) -> Result<watch::Receiver<Snapshot>, Error> {
        let name = service.to_owned();
        let consul = self.consul.clone();
        let query = move |since| snapshot(consul.clone(), name.clone(), Some(since));
        let subject = format!("instances of {service}");
        let mut follow = Follow::new(subject, query, |snapshot: &Snapshot| snapshot.is_empty());
        let first = tokio::time::timeout(FIRST_SNAPSHOT, follow.next()).await;
        let (snapshots, watched) = watch::channel(first.unwrap_or_default());
        tokio::spawn(follow.publish(snapshots));
        Ok(watched)
    }

    async fn services(&self) -> Result<BTreeMap<String, Snapshot>, Error> {
        let all = self.consul.get(CatalogServices { features: None }).await?;
        let ours = all
            .value
            .into_iter()
            .filter(|(name, tags)| is_name(name) && tags.iter().any(|tag| tag == TAG));
        let snapshots = ours.map(|(name, _)| async {
            let answer = snapshot(self.consul.clone(), name.clone(), None).await?;
            Ok::<_, Error>((name, answer.value))
        });
        stream::iter(snapshots)
            .buffer_unordered(CONCURRENT_QUERIES)
            // Gone since the catalog was read.
            .try_filter(|(_, snapshot)| std::future::ready(!snapshot.is_empty()))
            .try_collect()
            .await
    }
}

/// A registration that is kept until it is stopped.
struct Kept {
    stop: CancellationToken,
    kept: JoinHandle<()>,
}

#[async_trait]
impl Deregister for Kept {
    async fn deregister(mut self: Box<Self>) {
        self.stop.cancel();
        if tokio::time::timeout(DEREGISTER, &mut self.kept).await.is_err() {
            tracing::warn!("consul doesn't answer; its own check will deregister the instance");
        }
    }

    fn abandon(self: Box<Self>) {
        self.stop.cancel();
    }
}

/// Registers an instance again when the agent forgot it, and deregisters it in
/// the end. One task does both, so that neither overtakes the other.
struct Keeper {
    consul: Arc<Consul>,
    id: String,
    request: RegisterServiceRequest,
}

impl Keeper {
    async fn run(self, stop: CancellationToken) {
        let (mut hash, mut failures) = (String::new(), 0);
        loop {
            let asked = Instant::now();
            let looked = tokio::select! {
                looked = self.look(&hash) => looked,
                () = stop.cancelled() => break,
            };
            // What follows isn't cut off by the stop: a registration that is on
            // its way would overtake the end of it.
            let kept = match looked {
                Ok(Some(known)) => {
                    let held = known.hash != hash || asked.elapsed() >= UNHELD_LOOK_PAUSE;
                    hash = known.hash;
                    Ok(if held { LOOK_PAUSE } else { UNHELD_LOOK_PAUSE })
                }
                Ok(None) => self.register_again().await,
                Err(why) => Err(why),
            };
            let pause = match kept {
                Ok(pause) => {
                    failures = 0;
                    pause
                }
                Err(why) => {
                    if failures == 0 {
                        tracing::warn!(id = self.id, %why, "can't tell whether it is registered");
                    }
                    // Without a hash the next look is answered at once.
                    hash.clear();
                    failures += 1;
                    follow::pause(failures - 1)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        let request =
            DeregisterServiceRequest { id: self.id.clone(), ..DeregisterServiceRequest::default() };
        // Not found is as good.
        if let Err(why) = self.consul.find(request).await {
            tracing::warn!(id = self.id, %why, "not deregistered; consul's own check will do it");
        }
    }

    /// What the agent knows of the instance, once that has another hash; `None`
    /// where it knows nothing.
    async fn look(&self, hash: &str) -> Result<Option<Known>, Error> {
        let (id, hash) = (self.id.clone(), hash.to_owned());
        let wait = self.consul.held_for();
        self.consul.find_held(AgentService { id, hash, wait, features: None }).await
    }

    async fn register_again(&self) -> Result<Duration, Error> {
        self.consul.get(self.request.clone()).await?;
        tracing::info!(id = self.id, "registered again: the agent had forgotten it");
        Ok(LOOK_PAUSE)
    }
}

fn registration(
    instance: &Instance,
    settings: &ConsulConfig,
) -> Result<RegisterServiceRequest, Error> {
    let check = instance.admin.map(|admin| AgentServiceCheck {
        name: Some("gRPC health on the admin port".to_owned()),
        // The service by name: its neighbours in the process may be unready.
        grpc: Some(format!("{admin}/{}", instance.service)),
        interval: Some(go_duration(settings.check_interval)),
        status: Some("passing".to_owned()),
        deregister_critical_service_after: Some(go_duration(settings.deregister_after)),
        ..AgentServiceCheck::default()
    });
    Ok(RegisterServiceRequest {
        id: Some(instance.id.clone()),
        name: Some(instance.service.clone()),
        address: Some(instance.address.ip().to_string()),
        port: Some(instance.address.port().into()),
        tags: Some(vec![TAG.to_owned()]),
        meta: Some(meta::write(instance)?),
        weights: Some(AgentWeights {
            passing: Some(instance.weight.get().into()),
            warning: Some(instance.weight.get().into()),
        }),
        connect: Some(Box::new(AgentServiceConnect {
            native: Some(true),
            ..AgentServiceConnect::default()
        })),
        check,
        ..RegisterServiceRequest::default()
    })
}

/// The instances of `service`: those at this moment, or those after `since`.
async fn snapshot(
    consul: Arc<Consul>,
    service: String,
    since: Option<Since>,
) -> Result<Answer<Snapshot>, Error> {
    let features = since.and_then(|since| consul.blocking(since));
    let request = HealthConnect { service: service.clone(), features };
    let Answer { value, index } = consul.whole(request).await?;
    let mut instances: Vec<Instance> =
        value.into_iter().filter_map(|entry| instance(&service, entry)).collect();
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(Answer { value: instances.into(), index })
}

fn instance(service: &str, entry: Entry) -> Option<Instance> {
    let host = match entry.service.address.as_str() {
        "" => &entry.node.address,
        address => address,
    };
    let Ok(ip) = host.parse() else {
        tracing::warn!(service, id = entry.service.id, host, "passed over: no IP address");
        return None;
    };
    let meta = entry.service.meta.unwrap_or_default();
    Some(Instance {
        id: entry.service.id,
        service: service.to_owned(),
        address: SocketAddr::new(ip, entry.service.port),
        admin: meta::admin(&meta),
        version: meta::version(&meta),
        packages: meta::list(&meta, meta::PACKAGES),
        capabilities: meta::list(&meta, meta::CAPABILITIES),
        // Consul takes 0, which is Envoy's word for the least.
        weight: NonZeroU16::new(entry.service.weights.passing).unwrap_or(NonZeroU16::MIN),
        // A warning is a note to people, as in Consul's own DNS.
        healthy: entry.checks.iter().all(|check| check.status != "critical"),
    })
}

//! Which services there are, and the ways to call them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh::{
    Error,
    client::{Channel, Client},
    registry::{Registry, Snapshot},
    service::Context,
    status::{Reason, status},
};
use tokio::time::Instant;
use tonic::Status;

/// How often the services are listed at most: it costs a registry many questions.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// The services: those that were called are known, others are listed.
pub(crate) struct Directory {
    registry: Arc<dyn Registry>,
    client: Client,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    channels: HashMap<String, Channel>,
    services: Arc<BTreeMap<String, Snapshot>>,
    listed_at: Option<Instant>,
}

impl Directory {
    /// # Errors
    /// When the registry can't be opened.
    pub(crate) fn new(context: &Context) -> Result<Self, Error> {
        let registry = context.registry().clone();
        Ok(Self { registry, client: context.client().clone(), known: Mutex::default() })
    }

    /// The way to call `service`; once it was called, the registry isn't asked.
    ///
    /// # Errors
    /// When there is none of this name: a caller's words mustn't make us watch what
    /// never was.
    pub(crate) async fn channel(&self, service: &str) -> Result<Channel, Status> {
        let known = self.known().channels.get(service).cloned();
        if let Some(channel) = known {
            return Ok(channel);
        }
        if !self.services().await.contains_key(service) {
            let message = format!("no instance of {service} is registered");
            return Err(status(Reason::NoInstance, message));
        }
        let channel = self.client.channel(service).await?;
        self.known().channels.insert(service.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A service with an instance that speaks one of `packages`, the first of which is
    /// the best.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn speaking(&self, packages: &[&str]) -> Result<String, Status> {
        let services = self.services().await;
        let speaks = |instances: &Snapshot, package: &str| {
            let mut spoken = instances.iter().flat_map(|instance| &instance.packages);
            spoken.any(|spoken| spoken == package)
        };
        let of = |package: &&str| services.iter().find(|(_, all)| speaks(all, package));
        let (name, _) = packages.iter().find_map(of).ok_or_else(|| {
            let message = format!("no registered service speaks {}", packages.join(", or "));
            status(Reason::VersionUnavailable, message)
        })?;
        Ok(name.clone())
    }

    /// The services, as they were listed of late; the last list stays where the
    /// registry can't be asked.
    async fn services(&self) -> Arc<BTreeMap<String, Snapshot>> {
        {
            let mut known = self.known();
            if known.listed_at.is_some_and(|at| at.elapsed() < LIST_EVERY) {
                return known.services.clone();
            }
            // Others go on with the last one meanwhile, if there is one.
            if !known.services.is_empty() {
                known.listed_at = Some(Instant::now());
            }
        }
        let listed = self.registry.services().await;
        let mut known = self.known();
        match listed {
            Ok(services) => known.services = Arc::new(services),
            Err(why) => tracing::warn!(%why, "the services can't be listed; the last list stays"),
        }
        known.listed_at = Some(Instant::now());
        known.services.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Whole at any moment, whoever panicked.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

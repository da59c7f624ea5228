//! What the kernel gives a service to work with.

use std::{future::Future, sync::Arc};

use convert::Mappings;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    client::{Channel, Client},
    config::Config,
    events::{Handler, Outbox, Subscriber, Versioned, broker::Broker},
    registry::{Instance, Registry},
    store::Store,
};

/// One service's part of its process.
pub struct Context {
    pub(super) name: &'static str,
    pub(super) instance: String,
    pub(super) registered: watch::Receiver<Option<Arc<Instance>>>,
    pub(super) config: Arc<Config>,
    pub(super) client: Client,
    pub(super) outbox: Option<Outbox>,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) mappings: Arc<Mappings>,
    pub(super) tasks: TaskTracker,
    pub(super) leaving: CancellationToken,
    pub(super) leavers: TaskTracker,
    pub(super) draining: CancellationToken,
    pub(super) stopping: CancellationToken,
}

impl Context {
    /// The id of this instance, unique in the mesh.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// This instance, once it is registered; `None` where that will never be.
    pub fn registered(&self) -> impl Future<Output = Option<Arc<Instance>>> + Send + use<> {
        let mut registered = self.registered.clone();
        async move { registered.wait_for(Option::is_some).await.ok()?.clone() }
    }

    /// The configuration of the process.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The way to call `service`; its instances needn't be there yet.
    ///
    /// # Errors
    /// When the registry can't be watched.
    pub async fn channel(&self, service: &str) -> Result<Channel, Error> {
        self.client.channel(service).await
    }

    /// Who is there.
    pub fn registry(&self) -> &Arc<dyn Registry> {
        &self.registry
    }

    /// What calls other services, for who learns their names only as it goes.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What can be converted between versions, by the setting `mappings`.
    pub fn mappings(&self) -> &Arc<Mappings> {
        &self.mappings
    }

    /// The service's outbox.
    ///
    /// # Errors
    /// When the service has no database; see [`super::Descriptor::has_database`].
    pub fn outbox(&self) -> Result<&Outbox, Error> {
        self.outbox.as_ref().ok_or_else(|| {
            Error::Store(format!(
                "{} has no database: it serves HTTP, and declares no migrations",
                self.name
            ))
        })
    }

    /// The service's database.
    ///
    /// # Errors
    /// As [`Context::outbox`].
    pub fn store(&self) -> Result<&Arc<Store>, Error> {
        Ok(self.outbox()?.store())
    }

    /// Consumes the topics that match `pattern` until the service stops.
    ///
    /// # Errors
    /// As [`Context::outbox`]: the inbox is in the service's database.
    pub fn subscribe(&self, pattern: &str, handler: Arc<dyn Handler>) -> Result<(), Error> {
        let outbox = self.outbox()?.clone();
        let handler = Versioned::wrap(handler, &self.mappings);
        let subscriber = Subscriber::new(self.name, pattern, handler, outbox, self.broker.clone());
        self.spawn(subscriber.run(self.stopping.clone()));
        Ok(())
    }

    /// Spawns a task that the service's end waits for. It must watch
    /// [`Context::stopping`].
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Spawns a task that has to end before others are told that the service goes, such
    /// as one that holds a lock by its registration. It must watch [`Context::leaving`],
    /// and has 3 s from then.
    pub fn spawn_leaver(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.leavers.spawn(task);
    }

    /// Cancelled when the service is about to be deregistered.
    pub fn leaving(&self) -> CancellationToken {
        self.leaving.clone()
    }

    /// Cancelled when the service begins to drain: open streams end now.
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Cancelled when nothing is in flight any more: tasks end now.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }
}

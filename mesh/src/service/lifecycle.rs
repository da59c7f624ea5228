//! Tells `services.lifecycle` where a service is in its life.

use std::{sync::Arc, time::Duration};

use api::lifecycle::v1::{ServiceChanged, ServiceState};

use crate::{
    Error,
    events::{
        Event, Outbox, Outgoing,
        broker::{Broker, Record},
    },
};

/// The topic of every service's life.
pub const TOPIC: &str = "services.lifecycle";
/// How long telling may take where there is no outbox to leave it in.
const TIMEOUT: Duration = Duration::from_secs(2);

/// One instance's teller.
pub(super) struct Lifecycle {
    pub(super) service: &'static str,
    pub(super) instance: String,
    pub(super) version: &'static str,
    pub(super) outbox: Option<Outbox>,
    pub(super) broker: Arc<dyn Broker>,
}

impl Lifecycle {
    /// Tells the new state. By the outbox, where the service has one; one that
    /// owns no data tells the broker itself, and goes on if that fails.
    pub(super) async fn tell(&self, state: ServiceState, address: &str) {
        if let Err(why) = self.try_tell(state, address).await {
            tracing::warn!(service = self.service, ?state, %why, "its life isn't told");
        }
    }

    async fn try_tell(&self, state: ServiceState, address: &str) -> Result<(), Error> {
        let message = ServiceChanged {
            service: self.service.to_owned(),
            instance: self.instance.clone(),
            version: self.version.to_owned(),
            state: state.into(),
            address: address.to_owned(),
        };
        let source = format!("/services/{}", self.service);
        let event = Event::typed(source, &self.instance, &message)?;
        if let Some(outbox) = self.outbox.clone() {
            let store = outbox.store().clone();
            return store
                .transaction(move |tx| {
                    Box::pin(async move { outbox.add(tx, vec![Outgoing::new(TOPIC, event)]).await })
                })
                .await;
        }
        let publish = async {
            self.broker.ensure(&[TOPIC.to_owned()]).await?;
            let record = Record { topic: TOPIC.to_owned(), event };
            self.broker.publish(vec![record], TIMEOUT).await.into_iter().collect()
        };
        tokio::time::timeout(TIMEOUT, publish)
            .await
            .unwrap_or_else(|_| Err(Error::Broker(format!("no answer within {TIMEOUT:?}"))))
    }
}

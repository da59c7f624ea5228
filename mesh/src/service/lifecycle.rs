//! Tells `services.lifecycle` where a service is in its life.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    events::{
        Event, KERNEL_TOPICS, LIFECYCLE, Outbox, Outgoing,
        broker::{Broker, Record},
    },
    messages::lifecycle::v1::{ServiceChanged, ServiceState},
};

/// How many states wait for the broker; a life has four.
const QUEUE: usize = 8;
/// How long one try to reach the broker may take, and how long to wait before
/// the next.
const TIMEOUT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_secs(1);
/// How long leaving it in the outbox may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// One instance's teller.
pub(super) struct Lifecycle {
    pub(super) service: &'static str,
    pub(super) instance: String,
    pub(super) version: &'static str,
    pub(super) way: Way,
}

/// By which way events leave.
pub(super) enum Way {
    /// By the service's outbox.
    Outbox(Outbox),
    /// By a queue in memory, of a service that owns no data.
    Queue(mpsc::Sender<Event>),
}

impl Lifecycle {
    /// Tells the new state, without waiting for the broker.
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
        match &self.way {
            Way::Queue(queue) => {
                queue.try_send(event).map_err(|why| Error::Broker(why.to_string()))
            }
            Way::Outbox(outbox) => {
                let outgoing = vec![Outgoing::new(LIFECYCLE, event)];
                let inside = outbox.clone();
                let work = outbox
                    .store()
                    .transaction(move |tx| Box::pin(async move { inside.add(tx, outgoing).await }));
                // A database that hangs must not hold up a drain.
                tokio::time::timeout(STORE_TIMEOUT, work).await.unwrap_or_else(|_| {
                    Err(Error::Store(format!("no answer within {STORE_TIMEOUT:?}")))
                })
            }
        }
    }
}

/// A queue for a service that owns no data, and the task that publishes it.
/// After `stop` what waits gets one more try, of `grace` at most.
pub(super) fn queue(
    service: &'static str,
    broker: Arc<dyn Broker>,
    stop: CancellationToken,
    grace: Duration,
) -> (Way, impl Future<Output = ()>) {
    let (sender, mut waiting) = mpsc::channel::<Event>(QUEUE);
    let stopping = stop.clone();
    let publish = async move {
        loop {
            let event = tokio::select! {
                biased;
                event = waiting.recv() => event,
                () = stopping.cancelled() => None,
            };
            let Some(event) = event else { return };
            while let Err(why) = publish(broker.as_ref(), &event).await {
                tracing::warn!(service, %why, "its life isn't told yet");
                if stopping.is_cancelled() {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let bounded = async move {
        tokio::pin!(publish);
        tokio::select! {
            () = &mut publish => return,
            () = stop.cancelled() => {}
        }
        if tokio::time::timeout(grace, publish).await.is_err() {
            tracing::warn!(service, "the end of its life isn't told");
        }
    };
    (Way::Queue(sender), bounded)
}

async fn publish(broker: &dyn Broker, event: &Event) -> Result<(), Error> {
    let publish = async {
        broker.ensure(&KERNEL_TOPICS.map(str::to_owned)).await?;
        let record = Record { topic: LIFECYCLE.to_owned(), event: event.clone() };
        broker.publish(vec![record], TIMEOUT).await.into_iter().collect()
    };
    tokio::time::timeout(TIMEOUT, publish)
        .await
        .unwrap_or_else(|_| Err(Error::Broker(format!("no answer within {TIMEOUT:?}"))))
}

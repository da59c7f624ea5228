//! Publishes denied calls to `audit.events`: the first of a kind at once, more
//! of it counted, so that a flood of denials is no flood of events.

use std::{collections::HashMap, sync::Arc, time::Duration};

use api::audit::v1::{AuditEvent, Outcome};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    events::{AUDIT, Event, Outbox, Outgoing},
    server::Denial,
};

/// How many denials may wait; more are only logged and counted by the metrics.
pub(super) const QUEUE: usize = 1024;
/// How long equal denials are counted before they are published.
const PERIOD: Duration = Duration::from_secs(1);

/// Publishes what comes by `denials` until `stop`.
pub(super) async fn publish(
    service: Arc<str>,
    mut denials: mpsc::Receiver<Denial>,
    outbox: Outbox,
    stop: CancellationToken,
) {
    loop {
        let first = tokio::select! {
            denial = denials.recv() => denial,
            () = stop.cancelled() => denials.try_recv().ok(),
        };
        let Some(first) = first else { return };
        if let Err(why) = add(&service, &outbox, HashMap::from([(first.clone(), 1)])).await {
            tracing::warn!(%service, %why, "a denial isn't published");
        }
        let mut more: HashMap<Denial, i64> = HashMap::new();
        let count = async {
            while let Some(denial) = denials.recv().await {
                *more.entry(denial).or_default() += 1;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(PERIOD, count) => {}
            () = stop.cancelled() => {}
        }
        if !more.is_empty()
            && let Err(why) = add(&service, &outbox, more).await
        {
            tracing::warn!(%service, %why, "denials aren't published");
        }
    }
}

async fn add(service: &str, outbox: &Outbox, denials: HashMap<Denial, i64>) -> Result<(), Error> {
    let events = denials
        .into_iter()
        .map(|(denial, count)| {
            let message = AuditEvent {
                actor: denial.peer,
                on_behalf_of: denial.caller,
                action: denial.path.to_owned(),
                resource: service.to_owned(),
                outcome: Outcome::Denied.into(),
                reason: denial.reason.to_owned(),
                count,
            };
            let event = Event::typed(format!("/services/{service}"), &message.actor, &message)?;
            Ok(Outgoing::new(AUDIT, event))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let inside = outbox.clone();
    outbox
        .store()
        .transaction(move |tx| Box::pin(async move { inside.add(tx, events).await }))
        .await
}

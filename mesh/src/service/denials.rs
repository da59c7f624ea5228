//! Publishes denied calls to `audit.events`: the first of a kind at once, more
//! of it counted by the second, so that a flood of denials is no flood of
//! events.

use std::{collections::HashMap, sync::Arc, time::Duration};

use api::audit::v1::{AuditEvent, Outcome};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    events::{AUDIT, Event, Outbox, Outgoing},
    identity::SpiffeId,
    server::{Denial, Denials},
};

/// How long equal denials are counted before they are published.
const PERIOD: Duration = Duration::from_secs(1);

/// The actor of denials of too many kinds to be told apart.
const SEVERAL: &str = "several";

/// Publishes what `denials` counts until `stop`. What can't be published stays
/// counted, and is tried again.
pub(super) async fn publish(
    service: Arc<str>,
    denials: Denials,
    outbox: Outbox,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = denials.arrived() => {}
            () = stop.cancelled() => {}
        }
        let taken = denials.take();
        log(&service, &taken);
        if let Err(why) = add(&service, &outbox, &taken).await {
            let waiting: u64 = taken.values().sum();
            tracing::warn!(%service, %why, waiting, "denials aren't published");
            denials.put_back(taken);
        }
        if stop.is_cancelled() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Logs the kinds of which there were more than the one that was logged at
/// once.
fn log(service: &str, taken: &HashMap<Denial, u64>) {
    for (denial, &count) in taken.iter().filter(|(_, count)| **count > 1) {
        let (peer, caller) = (actor(denial), caller(denial));
        let Denial { path, reason, .. } = denial;
        tracing::warn!(me = service, peer, caller, path, reason, count, "calls denied");
    }
}

fn actor(denial: &Denial) -> &str {
    denial.peer.as_ref().map_or(SEVERAL, SpiffeId::as_str)
}

fn caller(denial: &Denial) -> &str {
    denial.caller.as_ref().map_or("", SpiffeId::as_str)
}

async fn add(service: &str, outbox: &Outbox, taken: &HashMap<Denial, u64>) -> Result<(), Error> {
    if taken.is_empty() {
        return Ok(());
    }
    let events = taken
        .iter()
        .map(|(denial, &count)| {
            let message = AuditEvent {
                actor: actor(denial).to_owned(),
                on_behalf_of: caller(denial).to_owned(),
                action: denial.path.to_owned(),
                resource: service.to_owned(),
                outcome: Outcome::Denied.into(),
                reason: denial.reason.to_owned(),
                count: count.try_into().unwrap_or(i64::MAX),
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

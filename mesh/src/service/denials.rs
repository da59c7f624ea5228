//! Publishes denied calls to `audit.events`: the first of a kind at once, more
//! of it counted by the second, so that a flood of denials is no flood of
//! events.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    events::{AUDIT, Event, Outbox, Outgoing},
    identity::SpiffeId,
    messages::audit::v1::{AuditEvent, Outcome},
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
        tell(&service, &denials, &outbox).await;
        if stop.is_cancelled() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Logs and publishes what was counted.
async fn tell(service: &str, denials: &Denials, outbox: &Outbox) {
    let taken = denials.take();
    log(service, &taken);
    if let Err(why) = add(service, outbox, &taken).await {
        let waiting: u64 = taken.values().sum();
        tracing::warn!(%service, %why, waiting, "denials aren't published");
        denials.put_back(taken);
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

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

    use super::*;
    use crate::{config::Config, store::Store};

    const DEADLINE: Duration = Duration::from_secs(20);

    fn deny(denials: &Denials, times: usize) {
        let peer = Some(SpiffeId::of_service("d", "a").unwrap());
        let denial = Denial { peer, caller: None, path: "other", reason: "denied" };
        for _ in 0..times {
            denials.count(&"b".into(), denial.clone());
        }
    }

    /// How many events there are, and of how many calls they tell.
    async fn told(store: &Store) -> (usize, u64) {
        let all = Statement::from_string(DbBackend::Sqlite, "SELECT data FROM outbox");
        let rows = store.read().query_all_raw(all).await.unwrap();
        let count = |row: &sea_orm::QueryResult| {
            let data: Vec<u8> = row.try_get_by_index(0).unwrap();
            let event: AuditEvent = crate::json::decode(&data).unwrap();
            assert!(event.actor.ends_with("/svc/a") && event.resource == "b", "{event:?}");
            u64::try_from(event.count).unwrap()
        };
        (rows.len(), rows.iter().map(count).sum())
    }

    async fn rename(store: &Store, from: &'static str, to: &'static str) {
        let alter = format!("ALTER TABLE {from} RENAME TO {to}");
        let work = store.transaction(move |tx| {
            Box::pin(async move { Ok::<_, Error>(tx.execute_unprepared(&alter).await.map(drop)?) })
        });
        work.await.unwrap();
    }

    #[tokio::test]
    async fn a_flood_is_few_events_that_tell_of_every_call_also_after_an_outage() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("b.db");
        let store =
            Arc::new(Store::open_file(file, &[crate::store::tables::migrations]).await.unwrap());
        let outbox = {
            let limits = Config::from_sources(None, HashMap::new(), &[]).unwrap().outbox;
            Outbox::open("test", store.clone(), None, limits).await.unwrap()
        };
        let (denials, stop) = (Denials::new(), CancellationToken::new());

        rename(&store, "outbox", "away").await;
        deny(&denials, 5000);
        tell("b", &denials, &outbox).await;
        assert!(!denials.is_empty(), "what can't be published stays counted");
        rename(&store, "away", "outbox").await;
        let publishing = tokio::spawn(publish("b".into(), denials.clone(), outbox, stop.clone()));
        deny(&denials, 5000);
        tokio::time::timeout(DEADLINE, async {
            while told(&store).await.1 < 10_000 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("all are told");
        deny(&denials, 3);
        stop.cancel();
        tokio::time::timeout(DEADLINE, publishing).await.expect("it ends").unwrap();
        let (events, calls) = told(&store).await;
        assert_eq!(calls, 10_003);
        assert!(events < 10, "{events} events");
    }
}

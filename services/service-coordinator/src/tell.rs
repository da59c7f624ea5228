//! How units change, as events.

use std::time::Duration;

use api::coordinator::v1::{UnitChanged, UnitState};
use chrono::{DateTime, Utc};
use mesh::{
    Error,
    backoff::pause,
    events::{Event, LIFECYCLE, Outbox, Outgoing},
};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{NAME, supervisor::Transition};

/// The pause after the first failure to tell a change, and the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A change, and when it was.
pub(crate) type Dated = (UnitChanged, DateTime<Utc>);

/// Tells of changes.
pub(crate) struct Teller {
    /// The id of this instance.
    pub(crate) coordinator: String,
    pub(crate) outbox: Outbox,
    /// Of what is run here.
    pub(crate) supervised: broadcast::Receiver<Transition>,
    /// Of what is seen elsewhere.
    pub(crate) seen: mpsc::Receiver<Dated>,
}

impl Teller {
    /// Tells all changes until `stop`, and then those that wait. While the database is
    /// away, which may be what is to be told, they wait.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let change = tokio::select! {
                // What waits is told before the end.
                biased;
                transition = self.supervised.recv() => match transition {
                    Ok(transition) => dated(transition),
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "changes aren't told");
                        continue;
                    }
                    Err(RecvError::Closed) => return,
                },
                Some(change) = self.seen.recv() => change,
                () = stop.cancelled() => return,
            };
            for failures in 0.. {
                let Err(why) = self.tell(&change).await else { break };
                if failures == 0 {
                    tracing::warn!(unit = change.0.unit, %why, "a change isn't told yet");
                }
                tokio::select! {
                    () = tokio::time::sleep(pause(failures, FIRST_PAUSE, LONGEST_PAUSE)) => {}
                    () = stop.cancelled() => break,
                }
            }
        }
    }

    async fn tell(&self, (change, at): &Dated) -> Result<(), Error> {
        let change = UnitChanged { coordinator: self.coordinator.clone(), ..change.clone() };
        let mut event = Event::typed(format!("/services/{NAME}"), &change.unit, &change)?;
        event.attributes.time = *at;
        let outgoing = vec![Outgoing::new(LIFECYCLE, event)];
        let outbox = self.outbox.clone();
        self.outbox
            .store()
            .transaction(move |tx| Box::pin(async move { outbox.add(tx, outgoing).await }))
            .await
    }
}

fn dated(transition: Transition) -> Dated {
    let change = UnitChanged {
        unit: transition.unit,
        from: UnitState::from(transition.from).into(),
        to: UnitState::from(transition.to).into(),
        reason: transition.reason,
        coordinator: String::new(),
    };
    (change, transition.at)
}

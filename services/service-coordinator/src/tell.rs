//! How units change, as events.

use api::coordinator::v1::{UnitChanged, UnitState};
use mesh::{
    Error,
    events::{Event, LIFECYCLE, Outbox, Outgoing},
};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use crate::{NAME, supervisor::Transition};

/// Tells all `transitions` until `stop`.
pub(crate) async fn tell(
    mut transitions: broadcast::Receiver<Transition>,
    outbox: Outbox,
    stop: CancellationToken,
) {
    loop {
        let transition = tokio::select! {
            transition = transitions.recv() => transition,
            () = stop.cancelled() => return,
        };
        match transition {
            Ok(transition) => {
                if let Err(why) = store(&outbox, &transition).await {
                    tracing::warn!(unit = transition.unit, %why, "a change isn't told");
                }
            }
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "changes aren't told"),
            Err(RecvError::Closed) => return,
        }
    }
}

async fn store(outbox: &Outbox, transition: &Transition) -> Result<(), Error> {
    let message = UnitChanged {
        unit: transition.unit.clone(),
        from: UnitState::from(transition.from).into(),
        to: UnitState::from(transition.to).into(),
        reason: transition.reason.clone(),
    };
    let event = Event::typed(format!("/services/{NAME}"), &transition.unit, &message)?;
    let outgoing = vec![Outgoing::new(LIFECYCLE, event)];
    let inside = outbox.clone();
    outbox
        .store()
        .transaction(move |tx| Box::pin(async move { inside.add(tx, outgoing).await }))
        .await
}

//! Which of all coordinators of the mesh leads.

use std::{future::Future, sync::Arc};

use mesh::{
    leadership::{Leadership, Standing},
    registry::Instance,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::NAME;

/// What is known of it; nothing before this instance stands.
pub(crate) type Known = watch::Sender<Option<Standing>>;

/// Stands until `stop`, before this instance is deregistered, as the instance that `registered` will be; tells `known` whenever
/// another one leads.
pub(crate) async fn stand(
    registered: impl Future<Output = Option<Arc<Instance>>>,
    leadership: Arc<dyn Leadership>,
    known: Known,
    stop: CancellationToken,
) {
    let instance = tokio::select! {
        Some(instance) = registered => instance,
        () = stop.cancelled() => return,
    };
    let candidacy = match leadership.stand(NAME, &instance).await {
        Ok(candidacy) => candidacy,
        Err(why) => return tracing::error!(%why, "this coordinator can't lead"),
    };
    let mut standing = candidacy.standing();
    loop {
        known.send_replace(Some(standing.clone()));
        tokio::select! {
            changed = standing.changed() => if changed.is_err() {
                break;
            },
            () = stop.cancelled() => break,
        }
    }
    candidacy.resign().await;
}

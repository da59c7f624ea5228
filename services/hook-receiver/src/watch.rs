//! The live stream of hooks: what is stored, in the order of its storing.

use std::{sync::Arc, time::Duration};

use api::hooks::v1::{HookFilter, WatchHooksResponse};
use mesh::page;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{Error, store::Hooks};

/// How many hooks wait for a slow reader; the rest stays in the database.
const AHEAD: usize = 16;
/// How many hooks one query takes.
const BATCH: u64 = 64;
/// How often to look without a sign: for what another process stored.
const LOOK: Duration = Duration::from_millis(500);

/// A place in the stream of hooks that match a filter.
pub(crate) struct Watch {
    hooks: Arc<Hooks>,
    filter: HookFilter,
    place: i64,
}

impl Watch {
    /// From behind `resume_token`, or from now on where it is empty.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the token is none of ours.
    pub(crate) async fn begin(
        hooks: Arc<Hooks>,
        filter: HookFilter,
        resume_token: &str,
    ) -> Result<Self, Error> {
        let place = match page::number("resume_token", resume_token)? {
            Some(place) => place,
            None => hooks.last().await?,
        };
        Ok(Self { hooks, filter, place })
    }

    /// Sends hooks until the reader goes or the service drains. It runs as the
    /// stream's own task, and ends with it.
    pub(crate) async fn run(
        mut self,
        sender: mpsc::Sender<Result<WatchHooksResponse, Status>>,
        draining: CancellationToken,
    ) {
        let ended = tokio::select! {
            ended = self.send(&sender) => ended,
            () = draining.cancelled() => Err(Error::Draining),
            () = sender.closed() => return,
        };
        if let Err(why) = ended {
            // A reader that doesn't read learns it from the closed stream.
            let _ = sender.try_send(Err(why.into()));
        }
    }

    async fn send(
        &mut self,
        sender: &mpsc::Sender<Result<WatchHooksResponse, Status>>,
    ) -> Result<(), Error> {
        let mut commits = self.hooks.commits();
        loop {
            // Marked as seen before the query: what commits in between is new.
            commits.mark_unchanged();
            let found = self.hooks.after(&self.filter, self.place, BATCH).await?;
            if found.is_empty() {
                // A deadline that passes is a look.
                let _ = tokio::time::timeout(LOOK, commits.changed()).await;
            }
            for (seq, hook) in found {
                let resume_token = page::token([&seq.to_string()]);
                let answer = WatchHooksResponse { hook: Some(hook), resume_token };
                if sender.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
                self.place = seq;
            }
        }
    }
}

/// The channel between a watch and its stream.
pub(crate) fn channel() -> (
    mpsc::Sender<Result<WatchHooksResponse, Status>>,
    mpsc::Receiver<Result<WatchHooksResponse, Status>>,
) {
    mpsc::channel(AHEAD)
}

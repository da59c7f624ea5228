//! Services in this process.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use mesh::{
    Error,
    service::{Process, Service},
};
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::supervisor::Running;

/// A service that runs in this process.
struct InProcess {
    address: SocketAddr,
    task: AbortOnDropHandle<Result<(), Error>>,
    stop: CancellationToken,
}

/// Starts `service`, and returns when it is ready.
pub(super) async fn start(
    process: Arc<Process>,
    service: Arc<dyn Service>,
) -> Result<Box<dyn Running>, Error> {
    let (ready, is_ready) = oneshot::channel();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let run = tokio::spawn(async move { process.run(service, ready, stopped).await });
    let mut task = AbortOnDropHandle::new(run);
    match is_ready.await {
        Ok(address) => Ok(Box::new(InProcess { address, task, stop })),
        Err(_) => Err(why(&mut task).await),
    }
}

#[async_trait]
impl Running for InProcess {
    fn note(&self) -> String {
        self.address.to_string()
    }

    async fn ended(&mut self) -> String {
        why(&mut self.task).await.to_string()
    }

    async fn drain(self: Box<Self>) {
        self.stop.cancel();
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::error!(%why, "a service ended badly"),
            Err(why) => tracing::error!(%why, "a service's task ended badly"),
        }
    }
}

/// Why a task has ended that wasn't told to.
async fn why(task: &mut AbortOnDropHandle<Result<(), Error>>) -> Error {
    match task.await {
        Ok(Ok(())) => Error::Registry("it ended by itself".to_owned()),
        Ok(Err(why)) => why,
        Err(why) => Error::Registry(format!("its task ended badly: {why}")),
    }
}

//! Backends, which others run: they are looked at.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mesh::{Error, config::Config};

use crate::{supervisor::Running, units::Backend};

/// How often a backend is looked at, and how long it may take to answer.
const INTERVAL: Duration = Duration::from_secs(5);

/// A backend that answers.
struct Answering {
    backend: Backend,
    config: Arc<Config>,
}

/// Returns when `backend` answers.
pub(super) async fn start(
    backend: Backend,
    config: Arc<Config>,
) -> Result<Box<dyn Running>, Error> {
    backend.probe(&config).await?;
    Ok(Box::new(Answering { backend, config }))
}

#[async_trait]
impl Running for Answering {
    fn note(&self) -> String {
        String::new()
    }

    async fn ended(&mut self) -> String {
        loop {
            tokio::time::sleep(INTERVAL).await;
            match tokio::time::timeout(INTERVAL, self.backend.probe(&self.config)).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => return why.to_string(),
                Err(_) => return format!("no answer within {INTERVAL:?}"),
            }
        }
    }

    async fn drain(self: Box<Self>) {}
}

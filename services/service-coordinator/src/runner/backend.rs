//! Backends, which others run: they are looked at.

use std::sync::Arc;

use async_trait::async_trait;
use mesh::config::Config;

use crate::{
    supervisor::Running,
    units::{Backend, INTERVAL},
};

/// A backend that answers.
struct Answering {
    backend: Backend,
    config: Arc<Config>,
}

/// Returns when `backend` answers.
pub(super) async fn start(
    backend: Backend,
    config: Arc<Config>,
) -> Result<Box<dyn Running>, String> {
    backend.answer(&config).await?;
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
            if let Err(why) = self.backend.answer(&self.config).await {
                return why;
            }
        }
    }

    async fn drain(self: Box<Self>) {}
}

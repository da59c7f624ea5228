//! Writes the trail: an entry for each event.

use async_trait::async_trait;
use mesh::events::{Event, Handler};
use sea_orm::DatabaseTransaction;

use crate::store;

pub(crate) struct Trail;

#[async_trait]
impl Handler for Trail {
    async fn handle(
        &self,
        tx: &DatabaseTransaction,
        topic: &str,
        event: &Event,
    ) -> Result<(), mesh::Error> {
        store::insert(tx, &[(topic, event)]).await
    }

    fn handles_many(&self) -> bool {
        true
    }

    async fn handle_all(
        &self,
        tx: &DatabaseTransaction,
        events: &[(&str, &Event)],
    ) -> Result<(), mesh::Error> {
        store::insert(tx, events).await
    }
}

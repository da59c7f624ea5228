//! What audit owns: the trail.

use sea_orm_migration::{prelude::*, schema::*};

/// All there are, in their order.
pub fn migrations() -> Vec<Box<dyn MigrationTrait>> {
    vec![Box::new(CreateEntries)]
}

/// Creates `entries`.
struct CreateEntries;

impl MigrationName for CreateEntries {
    fn name(&self) -> &'static str {
        "m0002_audit_create_entries"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for CreateEntries {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table("entries")
                    .col(big_integer("seq").primary_key().auto_increment())
                    .col(string("topic"))
                    .col(string("event_id"))
                    .col(string("event_source"))
                    .col(string("actor"))
                    .col(string("action"))
                    .col(string("resource"))
                    .col(small_integer("outcome"))
                    .col(text("reason"))
                    .col(string("correlation_id"))
                    .col(timestamp_with_time_zone("event_at"))
                    .col(timestamp_with_time_zone("recorded_at"))
                    .col(string("traceparent"))
                    .to_owned(),
            )
            .await?;
        for (name, column) in
            [("entries_topic", "topic"), ("entries_correlation", "correlation_id")]
        {
            manager
                .create_index(
                    Index::create().name(name).table("entries").col(column).col("seq").to_owned(),
                )
                .await?;
        }
        Ok(())
    }
}

//! What the embedded broker keeps: topics, their events, and how far each
//! group has read.

use sea_orm_migration::{prelude::*, schema::*};

/// The log's migrations.
pub(super) fn migrations() -> Vec<Box<dyn MigrationTrait>> {
    vec![Box::new(CreateLog)]
}

/// Creates `topics`, `log` and `offsets`.
struct CreateLog;

impl MigrationName for CreateLog {
    fn name(&self) -> &'static str {
        "m0001_broker_create_log"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for CreateLog {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create().table("topics").col(string("name").primary_key()).to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table("log")
                    // Never reused: offsets of all topics come from here.
                    .col(big_integer("seq").primary_key().auto_increment())
                    .col(string("topic"))
                    .col(timestamp_with_time_zone("published_at"))
                    .col(text("attributes"))
                    .col(binary("data"))
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(
                Index::create().name("log_topic").table("log").col("topic").col("seq").to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table("offsets")
                    .col(string("group_name").primary_key())
                    // The topics it reads: a name, or a prefix and `*`.
                    .col(string("pattern"))
                    // The last event of the log that the group is done with.
                    .col(big_integer("seq"))
                    .to_owned(),
            )
            .await
    }
}

//! The tables that every service's schema gets: events on their way out, and marks of
//! those that came in.

use sea_orm_migration::{prelude::*, schema::*};

use super::by_key;

/// Their migrations, which come before the service's own.
pub(crate) fn migrations() -> Vec<Box<dyn MigrationTrait>> {
    vec![Box::new(CreateOutboxAndInbox)]
}

/// Creates `outbox` and `inbox`.
struct CreateOutboxAndInbox;

impl MigrationName for CreateOutboxAndInbox {
    fn name(&self) -> &'static str {
        "m0001_kernel_create_outbox_and_inbox"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for CreateOutboxAndInbox {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table("outbox")
                    // Never reused: a row's number says when it came.
                    .col(big_integer("seq").primary_key().auto_increment())
                    .col(string("topic"))
                    .col(text("attributes"))
                    // One of the two: the body itself, or the id of the row of the
                    // service's own table that holds it.
                    .col(binary_null("data"))
                    .col(string_null("body_of"))
                    // Of its body, wherever that is.
                    .col(big_integer("bytes"))
                    // Why it doesn't go out, where the broker will never take it.
                    .col(text_null("set_aside"))
                    .to_owned(),
            )
            .await?;
        let inbox = Table::create()
            .table("inbox")
            .col(string("consumer"))
            .col(string("source"))
            .col(string("event_id"))
            .col(timestamp_with_time_zone("handled_at"))
            // Of what went to the dead letters: the place of its record, for a
            // record elsewhere is a replay, to be tried again.
            .col(text_null("buried_at"))
            .primary_key(Index::create().col("consumer").col("source").col("event_id"))
            .to_owned();
        manager.create_table(by_key(manager, inbox)).await?;
        manager
            .create_index(
                Index::create()
                    .name("inbox_handled_at")
                    .table("inbox")
                    .col("handled_at")
                    .to_owned(),
            )
            .await
    }
}

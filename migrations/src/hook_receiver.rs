//! What hook-receiver owns: hooks and their sessions.

use mesh::store::by_key;
use sea_orm_migration::{prelude::*, schema::*};

/// All there are, in their order.
pub fn migrations() -> Vec<Box<dyn MigrationTrait>> {
    vec![Box::new(CreateHooks)]
}

/// Creates `hooks` and `sessions`.
struct CreateHooks;

impl MigrationName for CreateHooks {
    fn name(&self) -> &'static str {
        "m0002_hook_receiver_create_hooks"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for CreateHooks {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table("hooks")
                    // The order of storing: what pages and streams follow.
                    .col(big_integer("seq").primary_key().auto_increment())
                    .col(string("id").unique_key())
                    .col(small_integer("kind"))
                    .col(string("source"))
                    .col(string("type"))
                    .col(string("delivery_id"))
                    .col(string("session_id"))
                    .col(string("correlation_id"))
                    .col(string("causation_id"))
                    .col(text("headers"))
                    .col(binary("body"))
                    .col(string("content_type"))
                    .col(timestamp_with_time_zone("received_at"))
                    .to_owned(),
            )
            .await?;
        for (name, columns, unique) in [
            ("hooks_delivery", &["source", "delivery_id"][..], true),
            ("hooks_session", &["session_id", "seq"], false),
        ] {
            let mut index = Index::create().name(name).table("hooks").to_owned();
            columns.iter().for_each(|column| {
                index.col(*column);
            });
            if unique {
                index.unique();
            }
            manager.create_index(index).await?;
        }
        let sessions = Table::create()
            .table("sessions")
            .col(string("id").primary_key())
            .col(timestamp_with_time_zone("first_hook_at"))
            .col(timestamp_with_time_zone("last_hook_at"))
            .col(big_integer("hook_count"))
            .to_owned();
        manager.create_table(by_key(manager, sessions)).await?;
        manager
            .create_index(
                Index::create()
                    .name("sessions_last_hook")
                    .table("sessions")
                    .col("last_hook_at")
                    .col("id")
                    .to_owned(),
            )
            .await
    }
}

//! The database migrations: one module per service schema, the kernel's tables
//! in each of them.
//!
//! A migration that was ever released isn't changed any more; what comes later
//! is a new one behind it.

mod audit;
mod broker;
mod hook_receiver;
mod kernel;

use sea_orm_migration::{
    MigrationTrait, SchemaManager, sea_orm::DbBackend, sea_query::TableCreateStatement,
};

/// The schema of a service that keeps nothing but events: outbox and inbox.
pub fn kernel() -> Vec<Box<dyn MigrationTrait>> {
    vec![Box::new(kernel::CreateOutboxAndInbox)]
}

/// The schema of hook-receiver.
pub fn hook_receiver() -> Vec<Box<dyn MigrationTrait>> {
    let mut all = kernel();
    all.push(Box::new(hook_receiver::CreateHooks));
    all
}

/// The schema of audit.
pub fn audit() -> Vec<Box<dyn MigrationTrait>> {
    let mut all = kernel();
    all.push(Box::new(audit::CreateEntries));
    all
}

/// The schema of the embedded broker.
pub fn broker() -> Vec<Box<dyn MigrationTrait>> {
    vec![Box::new(broker::CreateLog)]
}

/// Has SQLite keep `table` as one tree, by its key. Else it keeps one by a number of
/// its own, and each insertion goes into both.
fn by_key(manager: &SchemaManager, mut table: TableCreateStatement) -> TableCreateStatement {
    if manager.get_database_backend() == DbBackend::Sqlite {
        table.extra("WITHOUT ROWID");
    }
    table
}

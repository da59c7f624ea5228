//! Opening and migrating databases.

use std::{path::Path, time::Duration};

use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, Statement,
    sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous},
};
use sea_orm_migration::{
    MigrationTrait, MigratorTraitSelf, SchemaManager, sea_query::TableCreateStatement,
};

use crate::{Error, files};

/// The migrations of a schema, in their order.
pub type Migrations = fn() -> Vec<Box<dyn MigrationTrait>>;

/// How long a statement waits for another process' write on SQLite.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting, or waiting for a free connection, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many queries run at once.
const READERS: u32 = 4;

/// How much of a SQLite database a connection keeps in memory, in KiB by the
/// minus. A reader drops it whenever something was written.
const WRITERS_CACHE: &str = "-16384";
const READERS_CACHE: &str = "-2048";
/// After how many pages of 4 KiB a commit moves what was written from the log into
/// the database, where [`checkpoint`](super::checkpoint) couldn't.
const CHECKPOINT: &str = "65536";

struct Migrator<'m>(&'m [Migrations]);

impl MigratorTraitSelf for Migrator<'_> {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        self.0.iter().flat_map(|migrations| migrations()).collect()
    }
}

/// Has SQLite keep `table` as one tree, by its key. Else it keeps one by a number of
/// its own, and each insertion goes into both.
pub fn by_key(
    manager: &SchemaManager<'_>,
    mut table: TableCreateStatement,
) -> TableCreateStatement {
    if manager.get_database_backend() == DbBackend::Sqlite {
        table.extra("WITHOUT ROWID");
    }
    table
}

/// The connections to a SQLite database.
pub(crate) struct Sqlite {
    pub(crate) read: DatabaseConnection,
    pub(crate) write: DatabaseConnection,
    /// What the writer was opened with.
    pub(crate) options: ConnectOptions,
    pub(crate) checkpoint: DatabaseConnection,
}

/// Opens the SQLite database at `file`.
///
/// WAL lets reads go on beside the one writer; `synchronous = FULL` makes each
/// commit durable before it is answered.
pub(crate) async fn sqlite(file: &Path, migrations: &[Migrations]) -> Result<Sqlite, Error> {
    let lock = file.with_extension("migrate.lock");
    let _lock = tokio::task::spawn_blocking(move || files::lock(&lock))
        .await
        .map_err(|why| Error::Store(why.to_string()))??;
    let options = |connections: u32, cache: &'static str| {
        let mut options = options(&format!("sqlite://{}?mode=rwc", file.display()), connections);
        options.map_sqlx_sqlite_opts(move |sqlite| {
            sqlite
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(BUSY_TIMEOUT)
                .foreign_keys(true)
                .pragma("cache_size", cache)
                .pragma("wal_autocheckpoint", CHECKPOINT)
                // Else each savepoint writes its journal to a file.
                .pragma("temp_store", "MEMORY")
        });
        options
    };
    let writers = options(1, WRITERS_CACHE);
    let write = Database::connect(writers.clone()).await?;
    Migrator(migrations).up(&write, None).await?;
    let read = Database::connect(options(READERS, READERS_CACHE)).await?;
    let checkpoint = Database::connect(options(1, READERS_CACHE)).await?;
    Ok(Sqlite { read, write, options: writers, checkpoint })
}

/// Opens `schema` of the PostgreSQL database at `url` for reading and for writing;
/// the options are what the writer was opened with.
pub(super) async fn postgres(
    url: &str,
    schema: &str,
    migrations: &[Migrations],
) -> Result<(DatabaseConnection, DatabaseConnection, ConnectOptions), Error> {
    let migrate = postgres_single(url, schema).await?;
    let statement =
        |sql: &str| Statement::from_sql_and_values(DbBackend::Postgres, sql, [schema.into()]);
    migrate
        .execute_raw(statement("SELECT pg_advisory_lock(hashtext($1), hashtext('migrate'))"))
        .await?;
    // The schema's name is a service's: letters, digits and `_`.
    migrate.execute_unprepared(&format!("CREATE SCHEMA IF NOT EXISTS {schema}")).await?;
    Migrator(migrations).up(&migrate, None).await?;
    // Closing the session gives the lock back.
    migrate.close().await?;

    let options = |connections: u32| {
        let mut options = options(url, connections);
        options.set_schema_search_path(schema);
        options
    };
    let read = Database::connect(options(READERS)).await?;
    Ok((read, Database::connect(options(1)).await?, options(1)))
}

/// One connection to `schema` that is never replaced by another: what its
/// session holds is held as long as it answers.
pub(super) async fn postgres_single(url: &str, schema: &str) -> Result<DatabaseConnection, Error> {
    let mut options = options(url, 1);
    options
        .min_connections(1)
        .idle_timeout(None::<Duration>)
        .max_lifetime(None::<Duration>)
        .set_schema_search_path(schema);
    Ok(Database::connect(options).await?)
}

fn options(url: &str, connections: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(connections)
        .connect_timeout(CONNECT_TIMEOUT)
        .acquire_timeout(CONNECT_TIMEOUT)
        .sqlx_logging(false);
    options
}

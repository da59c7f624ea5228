//! A service's own database: a write handle that commits in groups, and a read
//! handle. SQLite keeps a file per service, PostgreSQL a schema.

mod batch;
mod checkpoint;
mod open;
mod passing;
pub(crate) mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::{path::PathBuf, time::Duration};

use futures::future::BoxFuture;
use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, Statement,
};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

pub use self::{
    batch::{Batch, Batcher},
    open::{Migrations, by_key},
};
use self::{open::Sqlite, writer::Writer};
pub(crate) use self::{passing::is_passing, writer::end_savepoint};
use crate::{Error, config::Config, files};

/// How long PostgreSQL may take to say that a session is still there.
const ANSWER: Duration = Duration::from_secs(5);

/// A service's database, open and migrated.
pub struct Store {
    read: DatabaseConnection,
    writer: Writer,
    checkpoints: TaskTracker,
    lead: Lead,
}

/// How one process of several on one database is made the leader.
enum Lead {
    /// By a lock on a file beside the database.
    File(PathBuf),
    /// By an advisory lock of a connection of its own.
    Postgres { url: String, schema: String },
}

/// Proof of leading; gives it up when dropped. It ends with the process, or
/// with the connection.
pub(crate) enum Leadership {
    File(#[allow(dead_code, reason = "its lock is what is held")] std::fs::File),
    /// The session that holds the lock, by its process on the server: a pool puts
    /// another in the place of one that died, and that one holds nothing.
    Postgres(DatabaseConnection, i32),
}

impl Store {
    /// Opens the database of `service`, makes it where there is none, and
    /// brings it up to date, under a lock: several processes may start at once. It has
    /// an outbox and an inbox, and what the service's own migrations make.
    ///
    /// # Errors
    /// When the database can't be reached, opened or migrated.
    pub fn open<'a>(
        config: &'a Config,
        service: &'a str,
        own: Option<Migrations>,
    ) -> BoxFuture<'a, Result<Self, Error>> {
        Box::pin(async move {
            let url = config.database_url();
            let all: Vec<Migrations> =
                [Some(tables::migrations as Migrations), own].into_iter().flatten().collect();
            let (read, write, options, lead) = match url.split_once(':') {
                Some(("sqlite", folder)) => {
                    let folder = match folder {
                        "" => config.data.join("db"),
                        folder => PathBuf::from(folder),
                    };
                    files::make_folder(&folder)?;
                    return Self::open_file(folder.join(format!("{service}.db")), &all).await;
                }
                Some(("postgres" | "postgresql", _)) => {
                    let schema = service.replace('-', "_");
                    let (read, write, options) = open::postgres(url, &schema, &all).await?;
                    (read, write, options, Lead::Postgres { url: url.to_owned(), schema })
                }
                _ => {
                    return Err(Error::setting(
                        "database",
                        "********",
                        "expected `sqlite:`, `sqlite:FOLDER` or `postgres://user@host:port/database`",
                    ));
                }
            };
            let (writer, checkpoints) = (Writer::start(write, options), TaskTracker::new());
            Ok(Self { read, writer, checkpoints, lead })
        })
    }

    /// Opens the SQLite database at `file`, whose folder is there.
    ///
    /// # Errors
    /// When it can't be opened or migrated.
    pub(crate) async fn open_file(file: PathBuf, migrations: &[Migrations]) -> Result<Self, Error> {
        let Sqlite { read, write, options, checkpoint } = open::sqlite(&file, migrations).await?;
        let lead = Lead::File(file.with_extension("relay.lock"));
        let (writer, checkpoints) = (Writer::start(write, options), TaskTracker::new());
        checkpoints.spawn(checkpoint::run(checkpoint, writer.commits(), writer.log_is_long()));
        Ok(Self { read, writer, checkpoints, lead })
    }

    /// For queries. They see what was committed, and don't wait for writes.
    pub fn read(&self) -> &DatabaseConnection {
        &self.read
    }

    /// Runs `work` in a savepoint of a transaction that it shares with whatever
    /// waits at the moment. When this answers `Ok`, the work is durable; when it
    /// answers an error, nothing of it was kept.
    ///
    /// # Errors
    /// The work's own, or the database's.
    pub async fn transaction<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'t> FnOnce(&'t DatabaseTransaction) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
    {
        self.writer.transaction(work).await
    }

    /// A hot path of its own: items of one kind, written together.
    pub fn batcher<B: Batch>(&self, batch: B) -> Batcher<B> {
        Batcher::new(batch, self.writer.clone())
    }

    /// Counts the commits of this process: it changes with each.
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.writer.commits()
    }

    /// Finishes what waits, and closes the database.
    pub fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.writer.stop().await;
            self.checkpoints.close();
            self.checkpoints.wait().await;
            // Nothing is unwritten; a pool that won't close says nothing of use.
            let _ = self.read.clone().close().await;
        })
    }

    /// Tries to become the one process that leads on this database.
    ///
    /// # Errors
    /// When the database or its folder can't be used.
    pub(crate) async fn try_lead(&self) -> Result<Option<Leadership>, Error> {
        match &self.lead {
            Lead::File(path) => Ok(files::try_lock(path)?.map(Leadership::File)),
            Lead::Postgres { url, schema } => {
                let connection = open::postgres_single(url, schema).await?;
                let lock = Statement::from_sql_and_values(
                    DbBackend::Postgres,
                    "SELECT pg_try_advisory_lock(hashtext($1), hashtext('relay'))",
                    [schema.into()],
                );
                let got = connection.query_one_raw(lock).await?;
                let got = got.map(|row| row.try_get_by_index::<bool>(0)).transpose()?;
                if got != Some(true) {
                    return Ok(None);
                }
                let process = backend_process(&connection).await?;
                Ok(process.map(|process| Leadership::Postgres(connection, process)))
            }
        }
    }
}

impl Leadership {
    /// Whether it still leads.
    pub(crate) async fn holds(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Postgres(connection, process) => {
                let now = tokio::time::timeout(ANSWER, backend_process(connection)).await;
                matches!(now, Ok(Ok(Some(now))) if now == *process)
            }
        }
    }
}

/// Returns when the database that the setting `database` names has answered; what is
/// in files is always there.
///
/// # Errors
/// When it can't be reached.
pub fn ping(config: &Config) -> BoxFuture<'_, Result<(), Error>> {
    Box::pin(async move {
        let url = config.database_url();
        if url.starts_with("sqlite:") {
            return Ok(());
        }
        let connection = open::postgres_single(url, "public").await?;
        connection.ping().await?;
        Ok(connection.close().await?)
    })
}

/// The server's process behind a session.
async fn backend_process(connection: &DatabaseConnection) -> Result<Option<i32>, DbErr> {
    let ask = Statement::from_string(DbBackend::Postgres, "SELECT pg_backend_pid()");
    let row = connection.query_one_raw(ask).await?;
    row.map(|row| row.try_get_by_index(0)).transpose()
}

//! Moves what was written from SQLite's log into the database, beside the writer.
//! Within a commit, as SQLite does by itself, it would hold up all who wait for
//! that one, and the longer the more rarely it is done.

use std::time::Duration;

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, Statement};
use tokio::sync::watch;

/// How often at most. What is moved goes to the disk at once, and commits wait for
/// the disk: little at a time.
const TURN: Duration = Duration::from_millis(250);
/// From how many pages of 4 KiB on the log is to begin anew. It does so by itself
/// in a moment without writes or readers; under load there is none.
const LONG: i64 = 8192;

/// Looks after the log of the writer that tells its `commits`, until that ends.
pub(super) async fn run(connection: DatabaseConnection, mut commits: watch::Receiver<u64>) {
    while commits.changed().await.is_ok() {
        tokio::time::sleep(TURN).await;
        let pages = match checkpoint(&connection, "PASSIVE").await {
            Ok(pages) => pages,
            Err(why) => {
                tracing::debug!(%why, "the log stays as it is");
                continue;
            }
        };
        // Holds up the writer, for what little is left, and at most for as long as
        // the connection waits for readers.
        if pages > LONG
            && let Err(why) = checkpoint(&connection, "RESTART").await
        {
            tracing::debug!(%why, pages, "the log doesn't begin anew yet");
        }
    }
    // All is in the log; a pool that won't close says nothing of use.
    let _ = connection.close().await;
}

/// How many pages the log has.
async fn checkpoint(connection: &DatabaseConnection, mode: &str) -> Result<i64, DbErr> {
    let pragma = format!("PRAGMA wal_checkpoint({mode})");
    let row = connection.query_one_raw(Statement::from_string(DbBackend::Sqlite, pragma)).await?;
    row.map_or(Ok(0), |row| row.try_get_by_index(1))
}

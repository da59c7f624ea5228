//! Moves what was written from SQLite's log into the database, beside the writer.
//! Within a commit, as SQLite does by itself, it would hold up all who wait for
//! that one, and the longer the more rarely it is done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, Statement};
use tokio::sync::watch;

/// How often at most. What is moved goes to the disk at once, and commits wait for
/// the disk: little at a time.
const TURN: Duration = Duration::from_millis(250);
/// From how many pages of 4 KiB on the log is to begin anew. It does so by itself
/// when all of it is moved and nobody writes; under load the writer has to pause.
const LONG: i64 = 8192;

/// Looks after the log of the writer that tells its `commits`, until that ends, and
/// tells it when the log is long.
pub(super) async fn run(
    connection: DatabaseConnection,
    mut commits: watch::Receiver<u64>,
    log_is_long: Arc<AtomicBool>,
) {
    let mut fails = false;
    while turn(&mut commits).await {
        let done = checkpoint(&connection).await;
        match &done {
            Ok(pages) => log_is_long.store(*pages > LONG, Ordering::Relaxed),
            Err(why) if !fails => {
                tracing::warn!(%why, "what is written stays in the database's log, which grows");
            }
            Err(_) => {}
        }
        fails = done.is_err();
    }
    // All is in the log; a pool that won't close says nothing of use.
    let _ = connection.close().await;
}

/// Waits for a commit and then for a while; `false` where no more come.
async fn turn(commits: &mut watch::Receiver<u64>) -> bool {
    let ends = async |commits: &mut watch::Receiver<u64>| while commits.changed().await.is_ok() {};
    commits.changed().await.is_ok() && tokio::time::timeout(TURN, ends(commits)).await.is_err()
}

/// Moves what it can without holding anybody up; how many pages the log has.
pub(super) async fn checkpoint(connection: &DatabaseConnection) -> Result<i64, DbErr> {
    let pragma = Statement::from_string(DbBackend::Sqlite, "PRAGMA wal_checkpoint(PASSIVE)");
    let row = connection.query_one_raw(pragma).await?;
    row.map_or(Ok(0), |row| row.try_get_by_index(1))
}

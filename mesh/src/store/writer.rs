//! The one writer of a database: what waits while a commit is in flight goes
//! into the next transaction together.

use std::sync::Arc;

use futures::future::BoxFuture;
use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbErr, SqliteTransactionMode, TransactionOptions,
    TransactionTrait as _,
};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::Error;

/// How many jobs may wait; more are refused.
const QUEUE: usize = 4096;
/// How many jobs one transaction takes.
const GROUP: usize = 512;

/// Work inside the shared transaction; what it returns is called with the
/// outcome of the commit.
pub(super) type Job =
    Box<dyn for<'t> FnOnce(&'t DatabaseTransaction) -> BoxFuture<'t, Settle> + Send>;
pub(super) type Settle = Box<dyn FnOnce(Result<(), &DbErr>) + Send>;

/// A handle to the writer. It works until [`Writer::stop`].
#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    commits: watch::Receiver<u64>,
    task: Arc<Mutex<Option<TaskTracker>>>,
    stop: tokio_util::sync::CancellationToken,
}

impl Writer {
    pub(super) fn start(connection: DatabaseConnection) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (committed, commits) = watch::channel(0);
        let stop = tokio_util::sync::CancellationToken::new();
        let task = TaskTracker::new();
        task.spawn(run(connection, queue, committed, stop.clone()));
        task.close();
        Self { jobs, commits, task: Arc::new(Mutex::new(Some(task))), stop }
    }

    pub(super) fn commits(&self) -> watch::Receiver<u64> {
        self.commits.clone()
    }

    pub(super) fn submit(&self, job: Job) -> Result<(), Error> {
        self.jobs.try_send(job).map_err(|why| match why {
            mpsc::error::TrySendError::Full(_) => Error::WriterFull,
            mpsc::error::TrySendError::Closed(_) => Error::WriterStopped,
        })
    }

    pub(super) async fn transaction<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'t> FnOnce(&'t DatabaseTransaction) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.submit(Box::new(move |tx| {
            Box::pin(async move {
                let outcome = match tx.begin().await {
                    Ok(savepoint) => {
                        let outcome = work(&savepoint).await;
                        end_savepoint(savepoint, outcome).await
                    }
                    Err(why) => Err(Error::from(why).into()),
                };
                let settle: Settle = Box::new(move |committed| {
                    let outcome = match committed {
                        Ok(()) => outcome,
                        Err(why) => outcome.and(Err(failed(why).into())),
                    };
                    // Who asked may have gone; the work is done all the same.
                    let _ = answer.send(outcome);
                });
                settle
            })
        }))?;
        answered.await.unwrap_or_else(|_| Err(Error::WriterStopped.into()))
    }

    /// Refuses new work, finishes what waits, and ends.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        if let Some(task) = self.task.lock().await.take() {
            task.wait().await;
        }
    }
}

/// Ends a savepoint by the outcome of the work in it: an error takes back that
/// work's writes only.
pub(crate) async fn end_savepoint<T, E: From<Error>>(
    savepoint: DatabaseTransaction,
    outcome: Result<T, E>,
) -> Result<T, E> {
    let ended = match &outcome {
        Ok(_) => savepoint.commit().await,
        Err(_) => savepoint.rollback().await,
    };
    ended.map_err(Error::from)?;
    outcome
}

async fn run(
    connection: DatabaseConnection,
    mut queue: mpsc::Receiver<Job>,
    committed: watch::Sender<u64>,
    stop: tokio_util::sync::CancellationToken,
) {
    let mut group = Vec::with_capacity(GROUP);
    loop {
        tokio::select! {
            received = queue.recv_many(&mut group, GROUP) => if received == 0 { break },
            () = stop.cancelled(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
        }
        let mut settles = Vec::with_capacity(group.len());
        match commit(&connection, group.drain(..), &mut settles).await {
            Ok(()) => {
                committed.send_modify(|count| *count += 1);
                settles.into_iter().for_each(|settle| settle(Ok(())));
            }
            Err(why) => {
                tracing::error!(%why, jobs = settles.len(), "a group wasn't committed");
                settles.into_iter().for_each(|settle| settle(Err(&why)));
            }
        }
    }
    // Everything is committed; a pool that won't close says nothing of use.
    let _ = connection.close().await;
}

async fn commit(
    connection: &DatabaseConnection,
    group: impl Iterator<Item = Job>,
    settles: &mut Vec<Settle>,
) -> Result<(), DbErr> {
    // IMMEDIATE takes SQLite's write lock at once: a transaction that began by
    // reading couldn't wait for it. PostgreSQL passes it over.
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..Default::default()
    };
    let tx = connection.begin_with_options(options).await?;
    for job in group {
        settles.push(job(&tx).await);
    }
    tx.commit().await
}

/// A commit that failed, for each of those who wait for it.
pub(super) fn failed(why: &DbErr) -> Error {
    Error::Database(DbErr::Custom(why.to_string()))
}

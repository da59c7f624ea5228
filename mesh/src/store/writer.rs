//! The one writer of a database: what waits while a commit is in flight goes
//! into the next transaction together.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DatabaseTransaction, DbErr,
    SqliteTransactionMode, TransactionOptions, TransactionTrait as _,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::checkpoint::checkpoint;
use crate::Error;

/// How many jobs may wait; more are refused.
const QUEUE: usize = 4096;
/// How many jobs one transaction takes.
const GROUP: usize = 512;
/// How long the jobs of one group may take, and its commit. A database behind a
/// network can fall silent without an error.
const GROUP_TIMEOUT: Duration = Duration::from_secs(15);

/// Work inside the shared transaction. Whatever becomes of it, those who wait
/// for it are answered.
pub(super) trait Job: Send {
    /// Does the work, and returns what is called with the commit's outcome.
    fn run<'t>(self: Box<Self>, group: &'t Group) -> BoxFuture<'t, Settle>;
    /// There is no transaction to work in.
    fn fail(self: Box<Self>, why: &DbErr);
}

/// Answers those who wait, by the outcome of the commit.
pub(super) type Settle = Box<dyn FnOnce(Result<(), &DbErr>) + Send>;

/// A handle to the writer. It works until [`Writer::stop`].
#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    commits: watch::Receiver<u64>,
    log_is_long: Arc<AtomicBool>,
    task: TaskTracker,
    stop: tokio_util::sync::CancellationToken,
}

impl Writer {
    /// Writes by `connection`, which `options` open again after a failed commit.
    pub(super) fn start(connection: DatabaseConnection, options: ConnectOptions) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (committed, commits) = watch::channel(0);
        let stop = tokio_util::sync::CancellationToken::new();
        let (log_is_long, task) = (Arc::<AtomicBool>::default(), TaskTracker::new());
        let long = log_is_long.clone();
        task.spawn(run(connection, options, queue, committed, long, stop.clone()));
        task.close();
        Self { jobs, commits, log_is_long, task, stop }
    }

    pub(super) fn commits(&self) -> watch::Receiver<u64> {
        self.commits.clone()
    }

    /// Where it is told that SQLite's log is long: set, the writer checkpoints
    /// before its next group, when nobody writes, so that the log begins anew.
    pub(super) fn log_is_long(&self) -> Arc<AtomicBool> {
        self.log_is_long.clone()
    }

    pub(super) fn submit(&self, job: Box<dyn Job>) -> Result<(), Error> {
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
        self.submit(Box::new(Transaction { work, answer }))?;
        answered.await.unwrap_or_else(|_| Err(Error::WriterStopped.into()))
    }

    /// Refuses new work, finishes what waits, and ends.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.task.wait().await;
    }
}

/// Work in a savepoint of its own, for one who waits.
struct Transaction<F, T, E> {
    work: F,
    answer: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for Transaction<F, T, E>
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
    F: for<'t> FnOnce(&'t DatabaseTransaction) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
{
    fn run<'t>(self: Box<Self>, group: &'t Group) -> BoxFuture<'t, Settle> {
        Box::pin(async move {
            let Self { work, answer } = *self;
            let outcome = match group.savepoint().await {
                Ok(savepoint) => {
                    let outcome = work(&savepoint).await;
                    group.end(savepoint, outcome).await
                }
                Err(why) => Err(why.into()),
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
    }

    fn fail(self: Box<Self>, why: &DbErr) {
        // Who asked may have gone.
        let _ = self.answer.send(Err(failed(why).into()));
    }
}

/// Ends a savepoint by the outcome of the work in it: an error takes back that
/// work's writes only.
pub(crate) async fn end_savepoint<T, E: From<Error>>(
    savepoint: DatabaseTransaction,
    outcome: Result<T, E>,
) -> Result<T, E> {
    close(savepoint, outcome.is_ok()).await.map_err(Error::from)?;
    outcome
}

async fn close(savepoint: DatabaseTransaction, keep: bool) -> Result<(), DbErr> {
    if keep { savepoint.commit().await } else { savepoint.rollback().await }
}

/// The transaction that the jobs of one group share.
pub(super) struct Group {
    tx: DatabaseTransaction,
    /// Set when a savepoint couldn't be begun or ended: the transaction may be
    /// gone then, and a commit that answers `Ok` would have committed nothing.
    broken: AtomicBool,
}

impl Group {
    /// A savepoint for one job.
    pub(super) async fn savepoint(&self) -> Result<DatabaseTransaction, Error> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(failed(&DbErr::Custom("the transaction is broken".into())));
        }
        self.tx.begin().await.map_err(|why| self.break_by(why))
    }

    /// As [`end_savepoint`].
    pub(super) async fn end<T, E: From<Error>>(
        &self,
        savepoint: DatabaseTransaction,
        outcome: Result<T, E>,
    ) -> Result<T, E> {
        close(savepoint, outcome.is_ok()).await.map_err(|why| self.break_by(why))?;
        outcome
    }

    fn break_by(&self, why: DbErr) -> Error {
        self.broken.store(true, Ordering::Relaxed);
        why.into()
    }

    async fn commit(self) -> Result<(), DbErr> {
        if self.broken.into_inner() {
            // It may be gone already.
            let _ = self.tx.rollback().await;
            return Err(DbErr::Custom("a savepoint was lost, so nothing is committed".into()));
        }
        self.tx.commit().await
    }
}

async fn run(
    mut connection: DatabaseConnection,
    options: ConnectOptions,
    mut queue: mpsc::Receiver<Box<dyn Job>>,
    committed: watch::Sender<u64>,
    log_is_long: Arc<AtomicBool>,
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
        if log_is_long.swap(false, Ordering::Relaxed)
            && let Err(why) = checkpoint(&connection).await
        {
            tracing::debug!(%why, "the log doesn't begin anew yet");
        }
        match commit(&connection, &mut group).await {
            Ok(settles) => {
                committed.send_modify(|count| *count += 1);
                settles.into_iter().for_each(|settle| settle(Ok(())));
            }
            Err(Failed { why, settles }) => {
                let jobs = group.len() + settles.len();
                tracing::error!(%why, jobs, "a group wasn't committed");
                group.drain(..).for_each(|job| job.fail(&why));
                settles.into_iter().for_each(|settle| settle(Err(&why)));
                connection = reopen(connection, &options).await;
            }
        }
    }
    // Everything is committed; a pool that won't close says nothing of use.
    let _ = connection.close().await;
}

/// Why a group wasn't committed, and who waits for its outcome.
struct Failed {
    why: DbErr,
    settles: Vec<Settle>,
}

/// Commits `jobs` as one transaction. Without a transaction they stay.
async fn commit(
    connection: &DatabaseConnection,
    jobs: &mut Vec<Box<dyn Job>>,
) -> Result<Vec<Settle>, Failed> {
    // IMMEDIATE takes SQLite's write lock at once: a transaction that began by
    // reading couldn't wait for it. PostgreSQL passes it over.
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..Default::default()
    };
    let mut settles = Vec::with_capacity(jobs.len());
    let begun = timeout(GROUP_TIMEOUT, connection.begin_with_options(options));
    let tx = match begun.await.unwrap_or_else(|_| Err(too_late())) {
        Ok(tx) => tx,
        Err(why) => return Err(Failed { why, settles }),
    };
    let group = Group { tx, broken: AtomicBool::new(false) };
    let ends = Instant::now() + GROUP_TIMEOUT;
    for job in jobs.drain(..) {
        // A job that is cut off drops its answer, and so does one that panics:
        // who waits for it learns that it wasn't done.
        match timeout_at(ends, AssertUnwindSafe(job.run(&group)).catch_unwind()).await {
            Ok(Ok(settle)) => settles.push(settle),
            Ok(Err(_)) => drop(group.break_by(DbErr::Custom("a job panicked".into()))),
            Err(_) => drop(group.break_by(too_late())),
        }
    }
    let committed = timeout(GROUP_TIMEOUT, group.commit());
    match committed.await.unwrap_or_else(|_| Err(too_late())) {
        Ok(()) => Ok(settles),
        Err(why) => Err(Failed { why, settles }),
    }
}

fn too_late() -> DbErr {
    DbErr::Custom(format!("the database doesn't answer within {GROUP_TIMEOUT:?}"))
}

/// A connection in place of one whose commit failed: what it believes to be on
/// disk may not be, and opening it anew reads what is. Where that fails too, the
/// old one stays, and the next group tries again.
async fn reopen(old: DatabaseConnection, options: &ConnectOptions) -> DatabaseConnection {
    match timeout(GROUP_TIMEOUT, Database::connect(options.clone()))
        .await
        .unwrap_or_else(|_| Err(too_late()))
    {
        Ok(new) => {
            // It has failed already; there is nothing more to learn from it, and
            // one that hangs isn't waited for.
            tokio::spawn(old.close());
            new
        }
        Err(why) => {
            tracing::error!(%why, "the database can't be opened again yet");
            old
        }
    }
}

/// A commit that failed, for each of those who wait for it.
pub(super) fn failed(why: &DbErr) -> Error {
    Error::NotCommitted(why.to_string())
}

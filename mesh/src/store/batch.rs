//! Hot paths: items of one kind that are written together by one statement
//! rather than one after the other.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::future::BoxFuture;
use sea_orm::{DatabaseTransaction, DbErr};
use tokio::sync::oneshot;

use super::writer::{Group, Job, Settle, Writer, failed};
use crate::Error;

/// How many items may wait; more are refused.
const WAITING: usize = 8192;
/// How many items one `apply` gets: what fits into one statement's variables
/// with room to spare.
const CHUNK: usize = 512;

/// How items of one kind are written.
#[async_trait]
pub trait Batch: Send + Sync + 'static {
    /// What is written.
    type Item: Send + Sync + 'static;
    /// What became of it.
    type Output: Send + 'static;

    /// Writes `items`, and answers one output an item, in their order. It runs
    /// in a savepoint; when it fails, each item is tried alone, so that a bad
    /// one fails alone.
    ///
    /// # Errors
    /// The database's, or the outbox's when it is full.
    async fn apply(
        &self,
        tx: &DatabaseTransaction,
        items: &[Self::Item],
    ) -> Result<Vec<Self::Output>, Error>;
}

/// Takes items and writes them in batches.
pub struct Batcher<B: Batch> {
    shared: Arc<Shared<B>>,
    writer: Writer,
}

type Answer<O> = oneshot::Sender<Result<O, Error>>;
type Waiting<B> = Vec<(<B as Batch>::Item, Answer<<B as Batch>::Output>)>;

struct Shared<B: Batch> {
    batch: B,
    waiting: Mutex<Waiting<B>>,
}

impl<B: Batch> Batcher<B> {
    pub(super) fn new(batch: B, writer: Writer) -> Self {
        Self { shared: Arc::new(Shared { batch, waiting: Mutex::default() }), writer }
    }

    /// Writes `items`; each has an answer of its own, in their order. `Ok` is
    /// durable.
    pub async fn submit(&self, items: Vec<B::Item>) -> Vec<Result<B::Output, Error>> {
        let count = items.len();
        let mut answers = Vec::with_capacity(count);
        let first = {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() + count > WAITING {
                return (0..count).map(|_| Err(Error::WriterFull)).collect();
            }
            let first = waiting.is_empty();
            for item in items {
                let (answer, answered) = oneshot::channel();
                waiting.push((item, answer));
                answers.push(answered);
            }
            first
        };
        if first {
            let job =
                self.writer.submit(Box::new(Drain { shared: self.shared.clone(), done: false }));
            if job.is_err() {
                self.shared.fail(|| Error::WriterFull);
            }
        }
        let mut outcomes = Vec::with_capacity(count);
        for answered in answers {
            outcomes.push(answered.await.unwrap_or(Err(Error::WriterStopped)));
        }
        outcomes
    }
}

/// Writes what waits by the time it runs. Dropped before, it leaves nobody
/// waiting.
struct Drain<B: Batch> {
    shared: Arc<Shared<B>>,
    done: bool,
}

impl<B: Batch> Drop for Drain<B> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.fail(|| Error::WriterStopped);
        }
    }
}

impl<B: Batch> Job for Drain<B> {
    fn run<'t>(mut self: Box<Self>, group: &'t Group) -> BoxFuture<'t, Settle> {
        Box::pin(async move {
            // From here on, what waits is another one's.
            let waiting = self.shared.take();
            self.done = true;
            self.shared.drain(group, waiting).await
        })
    }

    fn fail(mut self: Box<Self>, why: &DbErr) {
        self.done = true;
        self.shared.fail(|| failed(why));
    }
}

impl<B: Batch> Shared<B> {
    fn take(&self) -> Waiting<B> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers all that waits by now with an error.
    fn fail(&self, why: impl Fn() -> Error) {
        for (_, answer) in self.take() {
            // Who asked may have gone.
            let _ = answer.send(Err(why()));
        }
    }

    /// Writes `waiting`.
    async fn drain(&self, group: &Group, waiting: Waiting<B>) -> Settle {
        let mut outcomes = Vec::new();
        let (mut items, mut answers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(CHUNK));
            let results = self.apply(group, &items).await;
            outcomes.extend(answers.drain(..items.len()).zip(results));
            items = rest;
        }
        Box::new(move |committed: Result<(), &DbErr>| {
            for (answer, outcome) in outcomes {
                let outcome = match committed {
                    Ok(()) => outcome,
                    Err(why) => outcome.and(Err(failed(why))),
                };
                // Who asked may have gone; the work is done all the same.
                let _ = answer.send(outcome);
            }
        })
    }

    async fn apply(&self, group: &Group, items: &[B::Item]) -> Vec<Result<B::Output, Error>> {
        match self.in_savepoint(group, items).await {
            Ok(outputs) => outputs.into_iter().map(Ok).collect(),
            Err(why) if items.len() == 1 => vec![Err(why)],
            Err(_) => {
                let mut results = Vec::with_capacity(items.len());
                for item in items.chunks(1) {
                    let result = self.in_savepoint(group, item).await;
                    results.push(result.and_then(|mut one| one.pop().ok_or(Error::WriterStopped)));
                }
                results
            }
        }
    }

    async fn in_savepoint(
        &self,
        group: &Group,
        items: &[B::Item],
    ) -> Result<Vec<B::Output>, Error> {
        let savepoint = group.savepoint().await?;
        let outcome = self.batch.apply(&savepoint, items).await;
        let outputs = group.end(savepoint, outcome).await?;
        debug_assert_eq!(outputs.len(), items.len(), "one output an item");
        Ok(outputs)
    }
}

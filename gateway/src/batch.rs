//! Hands webhooks on: what came while calls were in flight goes together, in
//! one `ReceiveBatch`.
//!
//! ```text
//!  receive ──▶ queue ──▶ batch ──▶ call (up to 4 at once) ──▶ each one's answer
//! ```

use std::{future::Future, time::Duration};

use api::hooks::v1::{
    Receipt, ReceiveBatchItem, ReceiveBatchRequest, ReceiveBatchResult, Refusal,
    hook_receiver_client::HookReceiverClient, receive_batch_result::Outcome,
};
use mesh::{
    client::Channel,
    status::{self, Reason, status},
};
use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How many webhooks wait at most.
const WAITING: usize = 4096;
/// How many calls are in flight at most. With one the batches would be larger,
/// but one slow call would hold up everybody; measured, it makes no difference to
/// how many webhooks are taken.
const CALLS: usize = 4;
/// How many webhooks, and how many bytes of them, one call has at most; a
/// single webhook is always smaller.
const ITEMS: usize = 256;
const BYTES: usize = 2 * 1024 * 1024;
/// How long a webhook waits for its answer, in the queue and in its call.
const DEADLINE: Duration = Duration::from_secs(10);

/// The results of one call, in its items' order.
type Results = Result<Vec<ReceiveBatchResult>, Status>;

/// The way into the queue.
pub(crate) struct Queue {
    sender: mpsc::Sender<Waiting>,
}

struct Waiting {
    item: ReceiveBatchItem,
    bytes: usize,
    deadline: Instant,
    answer: oneshot::Sender<Result<Receipt, Status>>,
}

/// A queue, and the task that empties it by `call`, which is given items and
/// the time it has. The task ends after `stopping`, when the queue is empty.
pub(crate) fn queue<C, F>(call: C, stopping: CancellationToken) -> (Queue, impl Future<Output = ()>)
where
    C: Fn(Vec<ReceiveBatchItem>, Duration) -> F,
    F: Future<Output = Results> + Send + 'static,
{
    let (sender, waiting) = mpsc::channel(WAITING);
    (Queue { sender }, empty(waiting, call, stopping))
}

/// The call to hook-receiver.
pub(crate) fn receive_with(
    client: HookReceiverClient<Channel>,
) -> impl Fn(Vec<ReceiveBatchItem>, Duration) -> futures::future::BoxFuture<'static, Results> {
    move |items, timeout| {
        let mut client = client.clone();
        Box::pin(async move {
            let mut request = tonic::Request::new(ReceiveBatchRequest { items });
            request.set_timeout(timeout);
            Ok(client.receive_batch(request).await?.into_inner().results)
        })
    }
}

impl Queue {
    /// Hands `item` on and waits until it is durable.
    ///
    /// # Errors
    /// hook-receiver's refusal; or that it can't be reached, or not in time, or
    /// that too many wait already.
    pub(crate) async fn receive(&self, item: ReceiveBatchItem) -> Result<Receipt, Status> {
        let deadline = Instant::now() + DEADLINE;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { bytes: item.encoded_len(), item, deadline, answer };
        self.sender.try_send(waiting).map_err(|why| match why {
            mpsc::error::TrySendError::Full(_) => {
                status(Reason::Overloaded, format!("{WAITING} webhooks wait already"))
            }
            mpsc::error::TrySendError::Closed(_) => {
                status(Reason::Draining, "the gateway is stopping")
            }
        })?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(status(Reason::Internal, "a call ended without an answer")),
            Err(_) => {
                Err(status(Reason::DeadlineExceeded, format!("no answer within {DEADLINE:?}")))
            }
        }
    }
}

async fn empty<C, F>(mut waiting: mpsc::Receiver<Waiting>, call: C, stopping: CancellationToken)
where
    C: Fn(Vec<ReceiveBatchItem>, Duration) -> F,
    F: Future<Output = Results> + Send + 'static,
{
    let mut calls = JoinSet::new();
    let mut left_over = None;
    loop {
        // First a place for a call: what comes meanwhile goes along.
        while calls.try_join_next().is_some() {}
        if calls.len() >= CALLS {
            calls.join_next().await;
        }
        let first = match left_over.take() {
            Some(first) => Some(first),
            None => tokio::select! {
                first = waiting.recv() => first,
                () = stopping.cancelled() => waiting.try_recv().ok(),
            },
        };
        let Some(first) = first else { break };
        let (items, answers, deadline) = batch(first, &mut waiting, &mut left_over);
        if items.is_empty() {
            continue;
        }
        let results = call(items, deadline.saturating_duration_since(Instant::now()));
        calls.spawn(async move { answer(answers, results.await) });
    }
    while calls.join_next().await.is_some() {}
}

type Answers = Vec<oneshot::Sender<Result<Receipt, Status>>>;

/// `first` and what else waits, as far as it fits in one call; what doesn't is
/// `left_over`. The deadline is the latest one: each waits no longer than its
/// own all the same.
fn batch(
    first: Waiting,
    waiting: &mut mpsc::Receiver<Waiting>,
    left_over: &mut Option<Waiting>,
) -> (Vec<ReceiveBatchItem>, Answers, Instant) {
    let (mut items, mut answers) = (Vec::new(), Vec::new());
    let mut deadline = first.deadline;
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(one) = next.take() {
        // Who has gone away was never answered: it may be dropped.
        if !one.answer.is_closed() {
            if !items.is_empty() && bytes + one.bytes > BYTES {
                *left_over = Some(one);
                break;
            }
            bytes += one.bytes;
            deadline = one.deadline;
            items.push(one.item);
            answers.push(one.answer);
        }
        if items.len() < ITEMS {
            next = waiting.try_recv().ok();
        }
    }
    (items, answers, deadline)
}

/// Answers each webhook of a call; the call's own failure to all of them.
fn answer(answers: Answers, results: Results) {
    let results = results.and_then(|results| match results.len() == answers.len() {
        true => Ok(results),
        false => {
            let (got, sent) = (results.len(), answers.len());
            Err(status(Reason::Internal, format!("{got} results for {sent} webhooks")))
        }
    });
    let outcomes: Vec<_> = match results {
        Ok(results) => results.into_iter().map(outcome).collect(),
        Err(why) => answers.iter().map(|_| Err(why.clone())).collect(),
    };
    for (answer, outcome) in answers.into_iter().zip(outcomes) {
        // Who has gone away needs no answer.
        let _ = answer.send(outcome);
    }
}

fn outcome(result: ReceiveBatchResult) -> Result<Receipt, Status> {
    match result.outcome {
        Some(Outcome::Receipt(receipt)) => Ok(receipt),
        Some(Outcome::Refusal(Refusal { code, message, reason })) => {
            let by_code = || status::reason(&Status::new(code.into(), ""));
            Err(status(Reason::named(&reason).unwrap_or_else(by_code), message))
        }
        None => Err(status(Reason::Internal, "a result without an outcome")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use api::hooks::v1::NewHook;
    use tokio::sync::Semaphore;

    use super::*;

    /// Answers calls when it is let, and keeps the sizes of their batches.
    #[derive(Clone)]
    struct Script {
        may_answer: Arc<Semaphore>,
        sizes: Arc<Mutex<Vec<usize>>>,
    }

    fn start(answer: fn(NewHook) -> Results) -> (Arc<Queue>, Script, CancellationToken) {
        let script = Script { may_answer: Arc::new(Semaphore::new(0)), sizes: Arc::default() };
        let stopping = CancellationToken::new();
        let inside = script.clone();
        let call = move |items: Vec<ReceiveBatchItem>, _| {
            inside.sizes.lock().unwrap().push(items.len());
            let may_answer = inside.may_answer.clone();
            async move {
                may_answer.acquire().await.unwrap().forget();
                let mut results = Vec::new();
                for item in items {
                    results.extend(answer(item.hook.unwrap())?);
                }
                Ok(results)
            }
        };
        let (queue, task) = queue(call, stopping.clone());
        tokio::spawn(task);
        (Arc::new(queue), script, stopping)
    }

    fn stored(hook: NewHook) -> Results {
        let receipt = Receipt { id: hook.delivery_id, ..Receipt::default() };
        Ok(vec![ReceiveBatchResult { outcome: Some(Outcome::Receipt(receipt)), trace: None }])
    }

    fn item(id: usize, bytes: usize) -> ReceiveBatchItem {
        let hook = NewHook {
            delivery_id: id.to_string(),
            body: vec![0; bytes].into(),
            ..NewHook::default()
        };
        ReceiveBatchItem { hook: Some(hook), trace: None }
    }

    type Answered = tokio::task::JoinHandle<Result<Receipt, Status>>;

    async fn send(queue: &Arc<Queue>, count: usize, bytes: usize) -> Vec<Answered> {
        let mut sent = Vec::new();
        for id in 0..count {
            let queue = queue.clone();
            sent.push(tokio::spawn(async move { queue.receive(item(id, bytes)).await }));
            tokio::task::yield_now().await;
        }
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_while_calls_are_in_flight_goes_together() {
        let (queue, script, _) = start(stored);
        let sent = send(&queue, CALLS + 300, 0).await;
        script.may_answer.add_permits(100);
        for (id, answered) in sent.into_iter().enumerate() {
            assert_eq!(answered.await.unwrap().unwrap().id, id.to_string());
        }
        assert_eq!(*script.sizes.lock().unwrap(), [1, 1, 1, 1, 256, 44]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_stays_under_its_size() {
        let (queue, script, _) = start(stored);
        let sent = send(&queue, CALLS + 5, 900 * 1024).await;
        script.may_answer.add_permits(100);
        for answered in sent {
            answered.await.unwrap().unwrap();
        }
        assert_eq!(*script.sizes.lock().unwrap(), [1, 1, 1, 1, 2, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_more_than_may_wait_is_refused_at_once() {
        let (queue, _script, _) = start(stored);
        let sent = send(&queue, CALLS + WAITING, 0).await;
        let refused = queue.receive(item(0, 0)).await.unwrap_err();
        assert_eq!(status::reason(&refused), Reason::Overloaded);
        assert!(sent.iter().all(|answered| !answered.is_finished()));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_deadline() {
        let (queue, _script, _) = start(stored);
        let begun = Instant::now();
        let refused = queue.receive(item(0, 0)).await.unwrap_err();
        assert_eq!(status::reason(&refused), Reason::DeadlineExceeded);
        assert_eq!(begun.elapsed(), DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_went_away_takes_no_place_and_loses_nobody_else() {
        let (queue, script, _) = start(stored);
        let busy = send(&queue, CALLS, 0).await;
        let waiting = send(&queue, 3, 0).await;
        waiting[1].abort();
        tokio::task::yield_now().await;
        script.may_answer.add_permits(100);
        for answered in busy.into_iter().chain(waiting) {
            assert!(answered.await.map_or_else(|why| why.is_cancelled(), |a| a.is_ok()));
        }
        assert_eq!(*script.sizes.lock().unwrap(), [1, 1, 1, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_call_is_answered_to_each_and_a_refusal_to_its_own() {
        let (queue, script, _) = start(|hook| match hook.delivery_id.as_str() {
            "0" => Err(status(Reason::StorageUnavailable, "disk")),
            _ => {
                let refusal = Refusal {
                    code: 8,
                    message: "full".into(),
                    reason: Reason::OutboxFull.as_str().into(),
                };
                Ok(vec![ReceiveBatchResult {
                    outcome: Some(Outcome::Refusal(refusal)),
                    trace: None,
                }])
            }
        });
        script.may_answer.add_permits(100);
        let failed = queue.receive(item(0, 0)).await.unwrap_err();
        assert_eq!(status::reason(&failed), Reason::StorageUnavailable);
        let refused = queue.receive(item(1, 0)).await.unwrap_err();
        assert_eq!(status::reason(&refused), Reason::OutboxFull);
        assert!(status::retry_after(&refused).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_at_the_end_is_still_handed_on() {
        let (queue, script, stopping) = start(stored);
        let sent = send(&queue, CALLS + 10, 0).await;
        stopping.cancel();
        tokio::task::yield_now().await;
        script.may_answer.add_permits(100);
        for answered in sent {
            answered.await.unwrap().unwrap();
        }
        let refused = queue.receive(item(0, 0)).await.unwrap_err();
        assert_eq!(status::reason(&refused), Reason::Draining);
    }
}

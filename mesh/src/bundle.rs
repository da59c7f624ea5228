//! Runs the futures of one connection in one task.
//!
//! hyper has a future for a connection's bytes, one for what is sent on it and one
//! for each call, and they wake each other several times a call. As tasks of their
//! own, each of these wakes may rouse another thread, which costs far more than the
//! work that waits for it, and most bytes would leave one by one.
//!
//! That is done for who only passes calls on, whose own part of a call is less work than
//! a wake. Others' calls are spread over all cores.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::{
    FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered, task::AtomicWaker,
};
use tokio::task::coop;

/// How often what wakes each other is polled before other tasks have their turn.
const PASSES: usize = 8;

/// Futures that are polled together, as one future, which ends with the last of them.
pub(crate) struct Bundle {
    futures: FuturesUnordered<BoxFuture<'static, ()>>,
    shared: Arc<Shared>,
    /// What the futures are woken by.
    waker: Waker,
}

/// Adds futures to a [`Bundle`].
pub(crate) struct Adder {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// What isn't polled yet.
    added: Mutex<Vec<BoxFuture<'static, ()>>>,
    /// Whether the futures are being polled: then they needn't wake their task.
    polling: AtomicBool,
    /// Whether one of them was woken since they were polled.
    woken: AtomicBool,
    task: AtomicWaker,
}

/// An empty bundle, and what adds to it. It has to get a future before it is polled.
pub(crate) fn bundle() -> (Bundle, Adder) {
    let shared = Arc::new(Shared::default());
    let waker = Waker::from(shared.clone());
    (Bundle { futures: FuturesUnordered::new(), shared: shared.clone(), waker }, Adder { shared })
}

impl Adder {
    /// Adds `future`. A panic ends it, and none of the others.
    pub(crate) fn add(&self, future: impl Future<Output = ()> + Send + 'static) {
        // What it leaves behind is only its own.
        let future = AssertUnwindSafe(future).catch_unwind().map(drop);
        self.shared.added().push(Box::pin(future));
        self.shared.rouse();
    }
}

impl Clone for Adder {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl Shared {
    fn added(&self) -> MutexGuard<'_, Vec<BoxFuture<'static, ()>>> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the task, unless it is polling and will look by itself.
    fn rouse(&self) {
        if !self.polling.load(SeqCst) {
            self.task.wake();
        }
    }

    /// Whether there is something to be polled.
    fn has_more(&self) -> bool {
        self.woken.load(SeqCst) || !self.added().is_empty()
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, SeqCst);
        self.rouse();
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // What is in there may hold what adds to it, and would never be dropped.
        let added = std::mem::take(&mut *self.shared.added());
        drop(added);
    }
}

impl Bundle {
    /// Polls `main`, and the others with it.
    pub(crate) fn poll_with<R>(
        &mut self,
        cx: &mut Context<'_>,
        mut main: impl FnMut(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        let Self { futures, shared, waker } = self;
        let mut inner = Context::from_waker(waker);
        shared.task.register(cx.waker());
        shared.polling.store(true, SeqCst);
        let mut polled = Poll::Pending;
        for _ in 0..PASSES {
            shared.woken.store(false, SeqCst);
            polled = main(&mut inner);
            if polled.is_ready() {
                break;
            }
            futures.extend(shared.added().drain(..));
            while let Poll::Ready(Some(())) = futures.poll_next_unpin(&mut inner) {}
            if !shared.has_more() || !coop::has_budget_remaining() {
                break;
            }
        }
        shared.polling.store(false, SeqCst);
        if shared.has_more() {
            cx.waker().wake_by_ref();
        }
        polled
    }
}

impl Future for Bundle {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let _: Poll<()> = self.poll_with(cx, |_| Poll::Pending);
        let over = self.futures.is_empty() && self.shared.added().is_empty();
        if over { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// How often the task of a bundle was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn futures_that_wake_each_other_end_in_one_poll_of_their_task() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let (mut bundle, adder) = bundle();
        let (ask, asked) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        let adds = adder.clone();
        adder.add(async move {
            adds.add(async move { answer.send(asked.await.unwrap()).unwrap() });
            ask.send(1).unwrap();
            assert_eq!(answered.await, Ok(1));
        });
        assert!(bundle.poll_unpin(&mut Context::from_waker(&waker)).is_ready());
        assert_eq!(woken.0.load(SeqCst), 0, "nobody else had to wake it");
    }

    #[test]
    fn what_wakes_itself_again_and_again_lets_others_have_their_turn() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let (mut bundle, adder) = bundle();
        adder.add(std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        for polls in 1..=3 {
            assert!(bundle.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
            assert_eq!(woken.0.load(SeqCst), polls, "it goes on when it is its turn");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_wake_from_another_thread_is_lost() {
        const MESSAGES: usize = 20_000;
        let (bundle, adder) = bundle();
        let (to_echo, mut asked) = mpsc::channel(1);
        let (answer, mut answers) = mpsc::channel(1);
        adder.add(async move {
            while let Some(n) = asked.recv().await {
                answer.send(n).await.unwrap();
            }
        });
        let running = tokio::spawn(bundle);
        let asking = tokio::spawn(async move {
            for n in 0..MESSAGES {
                to_echo.send(n).await.unwrap();
            }
        });
        let answered = async {
            for n in 0..MESSAGES {
                assert_eq!(answers.recv().await, Some(n));
            }
        };
        tokio::time::timeout(Duration::from_secs(60), answered).await.expect("none is missing");
        asking.await.unwrap();
        running.await.expect("it ends with the last of its futures");
    }

    #[tokio::test]
    async fn what_is_added_later_runs_and_a_panic_ends_only_itself() {
        let (bundle, adder) = bundle();
        let (stop, stopped) = oneshot::channel::<()>();
        adder.add(stopped.map(drop));
        let running = tokio::spawn(bundle);
        tokio::task::yield_now().await;

        adder.add(async { panic!("for the test") });
        let (done, is_done) = oneshot::channel();
        adder.add(async move { done.send(()).unwrap() });
        is_done.await.unwrap();
        assert!(!running.is_finished());
        drop(stop);
        running.await.unwrap();
    }

    #[test]
    fn what_was_never_polled_is_dropped_with_the_bundle() {
        let (bundle, adder) = bundle();
        let (held, mut gone) = oneshot::channel::<()>();
        let adds = adder.clone();
        adder.add(async move {
            let _held = (held, adds);
            std::future::pending().await
        });
        drop(bundle);
        assert_eq!(gone.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}

//! Stops calling a method whose calls fail, so that callers get their answer at
//! once and the called one its rest.
//!
//! It counts what the service answered, and what it didn't answer in time. An
//! instance that can't be reached is no failure of its service: others may
//! answer, and a refused connection costs nobody anything.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use foldhash::fast::RandomState;
use futures::future::{BoxFuture, ready};
use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::Service;

use super::{
    gate::{Admission, Gate},
    retry::To,
};
use crate::{
    descriptors,
    intercept::code_so_far,
    policy::Route,
    status::{Reason, status_after},
};

/// A timeout sooner than this tells of its caller's hurry.
pub(super) const TELLING_TIMEOUT: Duration = Duration::from_millis(100);

/// One method's breaker.
///
/// ```text
///           5 failed calls in a row          30 s
///   closed ────────────────────────▶ open ─────────▶ half-open
///     ▲                               ▲                │  │
///     │                               └─ one call fails┘  │
///     └───────────────────────── one call is answered ────┘
/// ```
struct Breaker {
    gate: Gate,
    failures: AtomicU32,
    origin: Instant,
    /// When a call was last answered, in microseconds after `origin`.
    answered: AtomicU64,
}

/// What a breaker does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// It lets calls through.
    Closed,
    /// It refuses them.
    Open,
    /// It lets one through to see.
    HalfOpen,
}

impl Breaker {
    fn new() -> Self {
        let origin = Instant::now();
        let (failures, answered) = (AtomicU32::new(0), AtomicU64::new(0));
        Self { gate: Gate::new(origin), failures, origin, answered }
    }

    /// Whether that closed it.
    fn answered(&self, now: Instant) -> bool {
        self.answered.store(self.micros(now), Ordering::Relaxed);
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        self.gate.answered()
    }

    /// Whether the failure of a call that began at `started` opened it. Where a
    /// later one was answered meanwhile, it says nothing of the method: of three
    /// instances one may hang, and its calls end together.
    fn failed(&self, started: Instant, now: Instant, route: Route) -> bool {
        if self.answered.load(Ordering::Relaxed) > self.micros(started) {
            return false;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.gate.failed(now, route.breaker_open)
            || (failures >= route.breaker_failures && self.gate.shut(now, route.breaker_open))
    }

    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.origin).as_micros();
        u64::try_from(since).unwrap_or(u64::MAX)
    }
}

/// The breakers of one service, one for each method.
pub(super) struct Breakers {
    by_method: HashMap<&'static str, Breaker, RandomState>,
    /// For methods that had no descriptor when the channel was made.
    other: Breaker,
}

impl Breakers {
    pub(super) fn new() -> Self {
        let by_method =
            descriptors::paths().into_iter().map(|path| (path, Breaker::new())).collect();
        Self { by_method, other: Breaker::new() }
    }

    fn of(&self, path: &str) -> &Breaker {
        self.by_method.get(path).unwrap_or(&self.other)
    }

    /// Those that aren't closed, by method.
    pub(super) fn not_closed(&self) -> Vec<(&'static str, BreakerState)> {
        let now = Instant::now();
        let all = self.by_method.iter().map(|(path, breaker)| (*path, breaker));
        let state = |(path, breaker): (_, &Breaker)| match breaker.gate.is_open() {
            true => None,
            false if breaker.gate.is_due(now) || breaker.gate.is_probed() => {
                Some((path, BreakerState::HalfOpen))
            }
            false => Some((path, BreakerState::Open)),
        };
        let mut shown: Vec<_> = all.chain([("other", &self.other)]).filter_map(state).collect();
        shown.sort_by_key(|(path, _)| *path);
        shown
    }
}

/// The service of the layer.
#[derive(Clone)]
pub(super) struct Break<S> {
    inner: S,
    to: Arc<To>,
}

impl<S> Break<S> {
    pub(super) fn new(inner: S, to: Arc<To>) -> Self {
        Self { inner, to }
    }
}

impl<S> Service<Request<Body>> for Break<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Status>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let (route, is_passed_on) = {
            let policy = self.to.policy.borrow();
            let parties = [&self.to.caller, self.to.balance.service()];
            let converts = parties.iter().any(|party| policy.trust.converts(party));
            (policy.routes.of(path), converts)
        };
        // The breakers of the first caller know which method it is.
        if route.breaker_failures == 0 || is_passed_on {
            return Box::pin(self.inner.call(request));
        }
        let method = descriptors::label(path);
        let started = Instant::now();
        let gate = &self.to.breakers.of(method).gate;
        if gate.admits(started) == Admission::No {
            let left = gate.left(started).unwrap_or_default();
            let message = format!(
                "the last calls of {method} of {} failed; no more are made for {left:?}",
                self.to.balance.service()
            );
            return Box::pin(ready(Err(status_after(Reason::CircuitOpen, message, left))));
        }
        let to = self.to.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await;
            let breaker = to.breakers.of(method);
            let service = to.balance.service();
            let now = Instant::now();
            let failed = match &response {
                Ok(response) => matches!(
                    code_so_far(response),
                    Some(Code::Unavailable | Code::DeadlineExceeded)
                ),
                Err(status) => {
                    let late = status.code() == Code::DeadlineExceeded;
                    if !late || now - started < TELLING_TIMEOUT {
                        // It tells nothing of the method.
                        return response;
                    }
                    true
                }
            };
            if failed && breaker.failed(started, now, route) {
                tracing::warn!(%service, method, "its breaker opens");
                to.metrics.breaker(service, method, "open");
            } else if !failed && breaker.answered(now) {
                tracing::info!(%service, method, "its breaker closes");
                to.metrics.breaker(service, method, "closed");
            }
            response
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn five_failures_in_a_row_open_it_and_one_answer_closes_it() {
        let (breaker, route) = (Breaker::new(), Route::default());
        let mut now = Instant::now();
        let fail = |now: &mut Instant| {
            let started = *now + MS;
            *now = started + MS;
            breaker.failed(started, *now, route)
        };
        assert!((0..4).all(|_| !fail(&mut now)));
        breaker.answered(now);
        assert!((0..4).all(|_| !fail(&mut now)));
        assert!(fail(&mut now), "the fifth in a row");
        assert_eq!(breaker.gate.admits(now), Admission::No);
        let then = now + 2 * route.breaker_open;
        assert_eq!(breaker.gate.admits(then), Admission::Probe);
        assert!(breaker.answered(then));
        assert_eq!(breaker.gate.admits(then), Admission::Yes);
    }

    #[test]
    fn calls_that_fail_together_while_later_ones_are_answered_do_not_open_it() {
        let (breaker, route, started) = (Breaker::new(), Route::default(), Instant::now());
        breaker.answered(started + MS);
        assert!((0..20).all(|_| !breaker.failed(started, started + 1000 * MS, route)));
    }
}

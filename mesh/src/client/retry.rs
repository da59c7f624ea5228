//! Picks an instance, sends, and tries again where that is safe: what was never
//! sent, and what may be asked twice.

use std::{
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{
    Request, Response, Uri,
    request::Parts,
    uri::{self, Authority, PathAndQuery, Scheme},
};
use semver::VersionReq;
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status, body::Body};
use tower::Service;

use super::{
    balance::{Balance, Chosen, Found},
    breaker::Breakers,
    bridge::{self, Bridge, Converted},
    budget::Budget,
    connection::Connection,
    deadline::{By, TIMEOUT_HEADER},
    endpoint::{Endpoint, Failed, Flight, Outcome},
    metrics::{Cause, Metrics},
    wanted::Wanted,
    whole::Whole,
};
use crate::{
    backoff,
    descriptors::{self, Method},
    intercept::{Ended, Finished, code_of, code_so_far},
    policy::{Policy, Route},
    status::{Reason, reason, retry_after, status},
};

/// The longest pause between two tries.
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// The innermost service of the stack.
#[derive(Clone)]
pub(super) struct Retry {
    to: Arc<To>,
}

/// What all calls to one service share.
pub(super) struct To {
    /// Who calls.
    pub(super) caller: Arc<str>,
    pub(super) balance: Balance,
    pub(super) bridge: Arc<Bridge>,
    pub(super) budget: Budget,
    pub(super) metrics: Arc<Metrics>,
    pub(super) breakers: Breakers,
    pub(super) policy: watch::Receiver<Arc<Policy>>,
}

impl Retry {
    pub(super) fn new(to: Arc<To>) -> Self {
        Self { to }
    }
}

impl Service<Request<Body>> for Retry {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let method = descriptors::method(path);
        let (wanted, route) = {
            let policy = self.to.policy.borrow();
            (self.to.wanted(&request, &policy), policy.routes.of(path))
        };
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(status) => return Box::pin(std::future::ready(Err(status))),
        };
        let call = Call {
            to: self.to.clone(),
            method,
            wanted,
            route,
            deadline: request.extensions().get().map(|By(deadline)| *deadline),
            tried: Vec::new(),
        };
        *request.uri_mut() = absolute(request.uri());
        call.to.budget.deposit();
        match method {
            Some(method) if !method.streaming => Box::pin(call.unary(request)),
            // The stream is its caller's: nobody can send it again.
            _ => Box::pin(call.stream(request)),
        }
    }
}

impl To {
    fn wanted(&self, request: &Request<Body>, policy: &Policy) -> Result<Wanted, Status> {
        if policy.trust.converts(self.balance.service()) {
            // Its own version is nobody's concern: the range is for where it goes on.
            return Ok(Wanted::any());
        }
        if policy.trust.converts(&self.caller) {
            // The rules chose before the call came here to be converted.
            return Wanted::in_range(request);
        }
        Wanted::of(request, self.balance.service(), &self.caller, policy)
    }

    /// The endpoint for a call that those at `tried` didn't answer: of the service,
    /// or of the one that converts the call for it.
    async fn pick(&self, wanted: &Wanted, tried: &[Arc<Endpoint>]) -> Result<Picked, Status> {
        match self.balance.find(wanted, tried, wanted.may_convert()).await? {
            Found::Here(chosen) => Ok(Picked::of(chosen, None)),
            // Boxed, to be no part of what every call carries.
            Found::Converted(ranges) => Box::pin(self.pick_converted(wanted, tried, ranges)).await,
        }
    }

    async fn pick_converted(
        &self,
        wanted: &Wanted,
        tried: &[Arc<Endpoint>],
        ranges: Vec<VersionReq>,
    ) -> Result<Picked, Status> {
        let (service, asked) = (self.balance.service().clone(), wanted.range().cloned());
        let converted = Converted { service, asked, ranges };
        if let Some(chosen) = self.bridge.try_pick(tried).await {
            return Ok(Picked::of(chosen, Some(converted)));
        }
        // What the rules like less may do without.
        if let Some(chosen) = self.balance.try_pick(wanted, tried) {
            return Ok(Picked::of(chosen, None));
        }
        match self.bridge.pick(tried).await? {
            Some(chosen) => Ok(Picked::of(chosen, Some(converted))),
            None => Ok(Picked::of(self.balance.pick(wanted, tried).await?, None)),
        }
    }
}

/// Where one try goes.
struct Picked {
    endpoint: Arc<Endpoint>,
    connection: Arc<Connection>,
    converted: Option<Converted>,
}

impl Picked {
    fn of((endpoint, connection): Chosen, converted: Option<Converted>) -> Self {
        Self { endpoint, connection, converted }
    }
}

/// One call with its tries.
struct Call {
    to: Arc<To>,
    method: Option<&'static Method>,
    wanted: Wanted,
    route: Route,
    deadline: Option<Instant>,
    tried: Vec<Arc<Endpoint>>,
}

/// A try that didn't do.
struct Missed {
    status: Status,
    cause: Cause,
}

impl Call {
    fn idempotent(&self) -> bool {
        self.method.is_some_and(|method| method.idempotent)
    }

    /// A call whose request and answer are one message each: both are held
    /// whole, so that the request can be sent again, and an answer that breaks
    /// off counts as none.
    async fn unary(mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let body = Whole::read(body)
            .await
            .map_err(|why| status(Reason::InvalidRequest, format!("the request: {why}")))?;
        loop {
            let picked = self.to.pick(&self.wanted, &self.tried).await?;
            match self.one_try(&picked, &head, &body).await {
                Ok(response) => match self.turned_away(&response) {
                    Some(missed) if self.again(picked.endpoint, &missed).await => {}
                    _ => return Ok(response),
                },
                Err(missed) if self.again(picked.endpoint, &missed).await => {}
                Err(missed) => return Err(missed.status),
            }
        }
    }

    async fn one_try(
        &self,
        picked: &Picked,
        head: &Parts,
        body: &Whole,
    ) -> Result<Response<Body>, Missed> {
        let Picked { endpoint, connection, converted } = picked;
        let limit = self.route.try_timeout.map(|limit| Instant::now() + limit);
        let deadline = [self.deadline, limit].into_iter().flatten().min();
        let mut request = Request::new(Body::new(body.clone()));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.version_mut() = head.version;
        *request.headers_mut() = head.headers.clone();
        bridge::mark(request.headers_mut(), converted.as_ref());
        self.tell_timeout(&mut request, deadline);
        let mut flight = Flight::begin(endpoint.clone(), deadline);
        let exchange = async {
            let sent = Endpoint::send(request, connection, &mut flight).await;
            let response = sent.map_err(|failed| missed(endpoint, &failed))?;
            let code = code_so_far(&response);
            let (mut head, body) = response.into_parts();
            let broken = |flight: &mut Flight, why: &str| {
                flight.end(Outcome::Lost);
                let message = format!("{}: the answer broke off: {why}", name(endpoint));
                let status = status(Reason::NoInstance, message);
                Missed { status, cause: Cause::Lost }
            };
            let whole = Whole::read(body).await;
            let whole = whole.map_err(|why| broken(&mut flight, &why.to_string()))?;
            let code = code.or_else(|| whole.trailers().map(code_of));
            let code = code.ok_or_else(|| broken(&mut flight, "it has no status"))?;
            flight.end(Outcome::Code(code));
            head.extensions.insert(Finished(code));
            head.extensions.insert(connection.peer.clone());
            Ok(Response::from_parts(head, Body::new(whole)))
        };
        let Some(limit) = limit else { return exchange.await };
        match tokio::time::timeout_at(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => {
                let message = format!("{}: no answer within the try's time", name(endpoint));
                let status = status(Reason::DeadlineExceeded, message);
                Err(Missed { status, cause: Cause::TryTimeout })
            }
        }
    }

    /// A call with a stream. Until its request is on the way it can go elsewhere.
    async fn stream(mut self, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        self.tell_timeout(&mut request, self.deadline);
        loop {
            let Picked { endpoint, connection, converted } =
                self.to.pick(&self.wanted, &self.tried).await?;
            bridge::mark(request.headers_mut(), converted.as_ref());
            let mut flight = Flight::begin(endpoint.clone(), self.deadline);
            match Endpoint::send(request, &connection, &mut flight).await {
                Ok(response) => {
                    flight.answered();
                    let ended = Ended::new(move |code| match code {
                        Code::Cancelled => drop(flight),
                        code => flight.end(Outcome::Code(code)),
                    });
                    let mut response = ended.watch(response);
                    response.extensions_mut().insert(connection.peer.clone());
                    return Ok(response);
                }
                Err(mut failed) => {
                    let missed = missed(&endpoint, &failed);
                    let Some(unsent) = failed.unsent.take() else { return Err(missed.status) };
                    if !self.again(endpoint, &missed).await {
                        return Err(missed.status);
                    }
                    request = unsent;
                    self.tell_timeout(&mut request, self.deadline);
                }
            }
        }
    }

    /// What an answer says that asks to try again; `None` of one that is to be
    /// handed on.
    fn turned_away(&self, response: &Response<Body>) -> Option<Missed> {
        if !self.idempotent() {
            return None;
        }
        let code = code_so_far(response);
        if !matches!(code, Some(Code::Unavailable | Code::ResourceExhausted)) {
            return None;
        }
        let status = Status::from_header_map(response.headers())?;
        // A full outbox is not emptied by asking again; another instance may
        // have room where one is overloaded.
        let again = status.code() == Code::Unavailable || reason(&status) == Reason::Overloaded;
        again.then_some(Missed { status, cause: Cause::Answered })
    }

    /// Waits until it is time for another try, after `endpoint` missed; whether
    /// there is to be one.
    async fn again(&mut self, endpoint: Arc<Endpoint>, missed: &Missed) -> bool {
        self.tried.push(endpoint);
        let safe = missed.cause == Cause::Unsent || self.idempotent();
        if !safe || self.tried.len() >= self.route.tries.into() {
            return false;
        }
        let wait = self.backoff(missed);
        if self.deadline.is_some_and(|deadline| Instant::now() + wait >= deadline) {
            return false;
        }
        let paid = self.to.budget.withdraw();
        let method = descriptors::name(self.method);
        self.to.metrics.retry(self.to.balance.service(), method, missed.cause, paid);
        if paid && !wait.is_zero() {
            // Boxed, to be no part of what every call carries.
            Box::pin(tokio::time::sleep(wait)).await;
        }
        paid
    }

    fn backoff(&self, missed: &Missed) -> Duration {
        // Nothing was asked of that instance, so another one can be at once.
        if missed.cause == Cause::Unsent && self.tried.len() == 1 {
            return Duration::ZERO;
        }
        let doublings = u32::try_from(self.tried.len()).unwrap_or(u32::MAX).saturating_sub(1);
        let backoff = backoff::pause(doublings, self.route.backoff, LONGEST_BACKOFF);
        match (missed.cause, retry_after(&missed.status)) {
            (Cause::Answered, Some(asked)) => asked.max(backoff),
            _ => backoff,
        }
    }

    /// Tells the instance how long its answer will be of use.
    fn tell_timeout(&self, request: &mut Request<Body>, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            request.headers_mut().insert(TIMEOUT_HEADER, super::deadline::format(left));
        }
    }
}

fn missed(endpoint: &Endpoint, failed: &Failed) -> Missed {
    // hyper says that it failed, and its sources why.
    let mut message = format!("{}: {}", name(endpoint), failed.why);
    let mut source = std::error::Error::source(&failed.why);
    while let Some(why) = source {
        message.push_str(&format!(": {why}"));
        source = why.source();
    }
    let status = status(Reason::NoInstance, message);
    let cause = if failed.unprocessed { Cause::Unsent } else { Cause::Lost };
    Missed { status, cause }
}

fn name(endpoint: &Endpoint) -> String {
    format!("{} at {}", endpoint.instance.service, endpoint.instance.address)
}

/// HTTP/2 wants scheme and authority; neither says anything here, for who is
/// meant stands in the peer's certificate.
fn absolute(uri: &Uri) -> Uri {
    static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::from_static("mesh"));
    let mut parts = uri::Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(AUTHORITY.clone());
    let path = uri.path_and_query().cloned();
    parts.path_and_query = Some(path.unwrap_or(PathAndQuery::from_static("/")));
    Uri::from_parts(parts).expect("all three parts are there")
}

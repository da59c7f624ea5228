//! One instance as the client sees it: its connection, its load, and whether it
//! is to be called.

use std::{error::Error as _, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{sync::Notify, time::Instant};
use tonic::{Code, body::Body};

use super::{
    breaker::TELLING_TIMEOUT,
    connection::{Caller, Connection},
    ejection::{Crowd, Ejection},
    gate::Admission,
    link::Link,
    load::{Load, PENALTY},
    metrics::Metrics,
    picker::Candidate,
};
use crate::registry::Instance;

/// How long a newcomer takes to get its full share, so that caches and pools
/// fill before the calls come; and the share it begins with.
///
/// Source: Envoy's slow start, linear, with its least weight of 10 %.
const SLOW_START: Duration = Duration::from_secs(10);
const FIRST_SHARE: f64 = 0.1;

/// An instance of a service.
pub(super) struct Endpoint {
    pub(super) instance: Instance,
    pub(super) link: Arc<Link>,
    pub(super) load: Arc<Load>,
    pub(super) ejection: Arc<Ejection>,
    metrics: Arc<Metrics>,
    weight: f64,
    /// When it came, if others were there before it.
    newcomer_since: Option<Instant>,
}

/// What the endpoints of one service share.
#[derive(Clone)]
pub(super) struct Neighbourhood {
    pub(super) caller: Caller,
    pub(super) crowd: Arc<Crowd>,
    /// Told when a connection opens, or can't be.
    pub(super) changed: Arc<Notify>,
    pub(super) metrics: Arc<Metrics>,
}

/// A call that wasn't answered.
pub(super) struct Failed {
    pub(super) why: hyper::Error,
    /// Whether the instance can't have begun to answer.
    pub(super) unprocessed: bool,
    /// The request, where not a byte of it was sent.
    pub(super) unsent: Option<Request<Body>>,
}

impl Endpoint {
    /// The endpoint for `instance`, with `latency` assumed for it at first.
    pub(super) fn new(
        instance: Instance,
        neighbourhood: &Neighbourhood,
        latency: Duration,
        newcomer: bool,
    ) -> Self {
        let Neighbourhood { caller, crowd, changed, metrics } = neighbourhood.clone();
        let now = Instant::now();
        Self {
            link: Arc::new(Link::keep(instance.clone(), caller, changed)),
            load: Arc::new(Load::new(now, latency)),
            ejection: Arc::new(Ejection::new(crowd, now)),
            metrics,
            weight: f64::from(instance.weight.get()),
            newcomer_since: newcomer.then_some(now),
            instance,
        }
    }

    /// The same endpoint, where the registry says something else of it.
    pub(super) fn told_anew(&self, instance: Instance) -> Self {
        Self {
            link: self.link.clone(),
            load: self.load.clone(),
            ejection: self.ejection.clone(),
            metrics: self.metrics.clone(),
            weight: f64::from(instance.weight.get()),
            newcomer_since: self.newcomer_since,
            instance,
        }
    }

    /// Its share of the calls at `now`.
    fn weight(&self, now: Instant) -> f64 {
        let Some(since) = self.newcomer_since else { return self.weight };
        let age = now.saturating_duration_since(since).as_secs_f64() / SLOW_START.as_secs_f64();
        self.weight * age.clamp(FIRST_SHARE, 1.0)
    }

    /// Sends `request` over `connection`, one of this endpoint's. The answer's
    /// body is still to come; `flight` ends with it.
    ///
    /// # Errors
    /// When no answer comes.
    pub(super) async fn send(
        request: Request<Body>,
        connection: &Connection,
        flight: &mut Flight,
    ) -> Result<Response<Incoming>, Failed> {
        connection.send.clone().try_send_request(request).await.map_err(|mut why| {
            let unsent = why.take_message();
            let why = why.into_error();
            let unprocessed = unsent.is_some() || is_unprocessed(&why);
            if unprocessed {
                flight.end(Outcome::Nothing);
            } else {
                flight.end(Outcome::Lost);
            }
            Failed { why, unprocessed, unsent }
        })
    }

    fn observe(&self, outcome: Outcome, now: Instant, took: Duration) {
        let failed = match outcome {
            Outcome::Code(Code::Unavailable | Code::Internal | Code::Unknown | Code::DataLoss)
            | Outcome::Lost => true,
            // Its caller's deadline: whether the instance is to blame depends on
            // how long that was.
            Outcome::Code(Code::DeadlineExceeded) | Outcome::TimedOut => took >= TELLING_TIMEOUT,
            _ => false,
        };
        if failed {
            self.load.observe(now, took.max(PENALTY));
            if self.ejection.failed(now) {
                self.ejected("failures");
            }
            return;
        }
        match outcome {
            Outcome::Code(code) => {
                let slow = code == Code::ResourceExhausted;
                self.load.observe(now, if slow { took.max(PENALTY) } else { took });
                self.ejection.answered();
            }
            // That long it took at least.
            Outcome::Abandoned if took > self.load.latency(now) => self.load.observe(now, took),
            _ => {}
        }
    }

    /// Says that it is ejected.
    pub(super) fn ejected(&self, cause: &'static str) {
        let Instance { service, id, address, .. } = &self.instance;
        tracing::warn!(service, id, %address, cause, "instance ejected");
        self.metrics.ejection(service, cause);
    }
}

/// Whether the instance said that it never began to answer.
///
/// Source: RFC 9113, 8.7: `REFUSED_STREAM`, and streams above the last one that
/// a GOAWAY names. h2 gives the latter's error to those streams only.
fn is_unprocessed(why: &hyper::Error) -> bool {
    let mut source = why.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            let going = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            return error.is_remote() && (refused || going);
        }
        source = error.source();
    }
    false
}

/// How a call at one instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was answered with this code.
    Code(Code),
    /// The connection ended before the answer.
    Lost,
    /// Nobody waits for it any more.
    Abandoned,
    /// It took longer than it was given.
    TimedOut,
    /// It never reached the instance.
    Nothing,
}

/// A call in flight at an endpoint; it ends when told, or abandoned when
/// dropped.
pub(super) struct Flight {
    endpoint: Arc<Endpoint>,
    started: Instant,
    deadline: Option<Instant>,
    /// How long the answer's beginning took, where its end says nothing of the
    /// instance's speed.
    began_after: Option<Duration>,
    ended: bool,
}

impl Flight {
    /// A call to `endpoint` begins; who drops it after `deadline` does so
    /// because of the deadline.
    pub(super) fn begin(endpoint: Arc<Endpoint>, deadline: Option<Instant>) -> Self {
        let started = Instant::now();
        endpoint.load.begin(started);
        Self { endpoint, started, deadline, began_after: None, ended: false }
    }

    /// A stream's answer begins: that is what counts as its latency.
    pub(super) fn answered(&mut self) {
        let now = Instant::now();
        self.endpoint.load.heard(now);
        self.began_after = Some(now - self.started);
    }

    /// It ended so.
    pub(super) fn end(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.ended, true) {
            let (now, load) = (Instant::now(), &self.endpoint.load);
            match outcome {
                _ if self.began_after.is_some() => {}
                Outcome::Code(_) => load.heard(now),
                _ => load.given_up(),
            }
            load.end();
            let took = self.began_after.unwrap_or(now - self.started);
            self.endpoint.observe(outcome, now, took);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        self.end(if late { Outcome::TimedOut } else { Outcome::Abandoned });
    }
}

/// An endpoint at one moment, for the picker.
pub(super) struct At<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) now: Instant,
    /// So many are out that the reasons are doubted.
    pub(super) panic: bool,
}

impl Candidate for At<'_> {
    fn admission(&self) -> Admission {
        let Endpoint { instance, link, ejection, .. } = self.endpoint;
        if !link.is_open() {
            return Admission::No;
        }
        if !instance.healthy && !self.panic {
            return Admission::No;
        }
        match ejection.admits(self.now) {
            Admission::No if self.panic => Admission::Yes,
            admission => admission,
        }
    }

    fn cost(&self) -> f64 {
        self.endpoint.load.cost(self.now, self.endpoint.weight(self.now))
    }
}

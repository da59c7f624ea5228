//! How a service looks from one that calls it, for people to see.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{breaker::BreakerState, endpoint::Endpoint, retry::To};

/// A called service, as its caller sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Upstream {
    /// The service that calls.
    pub caller: String,
    /// The service that is called.
    pub service: String,
    /// How many retries its calls have earned and not used.
    pub retries_left: u32,
    /// The methods whose breakers aren't closed.
    pub breakers: Vec<(String, BreakerState)>,
    /// Its instances.
    pub instances: Vec<UpstreamInstance>,
}

/// One instance of a called service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpstreamInstance {
    /// Its id in the registry.
    pub id: String,
    /// Where it is called.
    pub address: SocketAddr,
    /// Whether it is called.
    pub state: InstanceState,
    /// How long its calls take of late, in milliseconds.
    pub latency_ms: f64,
    /// How many calls it has in flight.
    pub in_flight: u32,
    /// Why it can't be connected to, or for how long it is ejected.
    pub note: Option<String>,
}

/// Whether an instance is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// It is.
    Ready,
    /// It fails too often and is left alone for a while.
    Ejected,
    /// The registry's check fails.
    Unhealthy,
    /// There is no connection.
    Unconnected,
}

impl Upstream {
    pub(super) fn of(caller: &str, to: &To) -> Self {
        let now = Instant::now();
        let endpoints = to.balance.endpoints();
        Self {
            caller: caller.to_owned(),
            service: to.balance.service().to_string(),
            retries_left: to.budget.left(),
            breakers: to
                .breakers
                .not_closed()
                .into_iter()
                .map(|(method, state)| (method.to_owned(), state))
                .collect(),
            instances: endpoints.all.iter().map(|e| UpstreamInstance::of(e, now)).collect(),
        }
    }
}

impl UpstreamInstance {
    fn of(endpoint: &Endpoint, now: Instant) -> Self {
        let ejected = endpoint.ejection.left(now);
        let (state, note) = match ejected {
            _ if !endpoint.link.is_open() => (InstanceState::Unconnected, endpoint.link.failure()),
            Some(left) => {
                let left = Duration::from_secs(left.as_secs());
                (InstanceState::Ejected, Some(format!("tried again in {left:?}")))
            }
            None if !endpoint.instance.healthy => (InstanceState::Unhealthy, None),
            None => (InstanceState::Ready, None),
        };
        Self {
            id: endpoint.instance.id.clone(),
            address: endpoint.instance.address,
            state,
            latency_ms: endpoint.load.latency(now).as_secs_f64() * 1e3,
            in_flight: endpoint.load.in_flight(),
            note,
        }
    }
}

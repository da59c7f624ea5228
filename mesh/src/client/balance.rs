//! Chooses an instance for each call: of two at random, the one with less in
//! flight.
//!
//! Source: Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing" (2001).

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{Request, Response};
use rand::Rng as _;
use tokio::sync::{Notify, watch};
use tonic::body::Body;

use super::{
    connection::Peer,
    endpoint::{Endpoint, Failed},
};
use crate::{
    identity::Identity,
    registry::Snapshot,
    status::{Reason, status},
};

/// How long a call waits for a first instance to appear.
const WAIT_FOR_INSTANCE: Duration = Duration::from_secs(1);

/// The instances of one service, as the registry says at the moment.
pub(super) struct Balance {
    service: Arc<str>,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    arrived: Notify,
}

impl Balance {
    /// Follows `snapshots` until the balance is dropped.
    pub(super) fn follow(
        service: Arc<str>,
        identity: Identity,
        mut snapshots: watch::Receiver<Snapshot>,
    ) -> Arc<Self> {
        let balance =
            Arc::new(Self { service, endpoints: ArcSwap::default(), arrived: Notify::new() });
        balance.update(&snapshots.borrow_and_update().clone(), &identity);
        let (weak, mut renewed) = (Arc::downgrade(&balance), identity.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = snapshots.changed() => {
                        let (Ok(()), Some(balance)) = (changed, weak.upgrade()) else { return };
                        balance.update(&snapshots.borrow_and_update().clone(), &identity);
                    }
                    () = renewed.changed() => {
                        let Some(balance) = weak.upgrade() else { return };
                        for endpoint in balance.endpoints.load_full().iter() {
                            endpoint.renew().await;
                        }
                    }
                }
            }
        });
        balance
    }

    /// Takes in a snapshot. Endpoints that are in both keep their connections.
    fn update(&self, snapshot: &Snapshot, identity: &Identity) {
        let old = self.endpoints.load_full();
        let old: HashMap<&str, &Arc<Endpoint>> =
            old.iter().map(|e| (e.instance.id.as_str(), e)).collect();
        let endpoints = snapshot
            .iter()
            .map(|instance| match old.get(instance.id.as_str()) {
                Some(endpoint) if endpoint.instance == *instance => Arc::clone(endpoint),
                _ => Arc::new(Endpoint::new(instance.clone(), identity.clone())),
            })
            .collect();
        self.endpoints.store(Arc::new(endpoints));
        self.arrived.notify_waiters();
    }

    /// Sends `request` to a chosen instance.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<(Response<Body>, Peer), Failed> {
        match self.pick().await {
            Some(endpoint) => endpoint.send(request).await,
            None => {
                let message = format!("no instance of {} is registered", self.service);
                Err(Failed { status: status(Reason::NoInstance, message), unsent: None })
            }
        }
    }

    async fn pick(&self) -> Option<Arc<Endpoint>> {
        let arrived = self.arrived.notified();
        let chosen = choose(&self.endpoints.load());
        if chosen.is_some() {
            return chosen;
        }
        // Late is told apart from never by the deadline alone.
        let _ = tokio::time::timeout(WAIT_FOR_INSTANCE, arrived).await;
        choose(&self.endpoints.load())
    }
}

/// Of two admitted endpoints at random the one with less in flight; where none
/// is admitted any one, for a wrong guess of health must not stop all calls.
fn choose(endpoints: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
    let mut rng = rand::rng();
    let open = endpoints.iter().filter(|e| !e.is_closed_off()).count();
    if let Some(probe) = endpoints.iter().find(|e| e.is_closed_off() && e.admits()) {
        return Some(probe.clone());
    }
    let nth = |n: usize| {
        let usable = endpoints.iter().filter(|e| open == 0 || !e.is_closed_off());
        usable.clone().nth(n).or_else(|| usable.clone().next())
    };
    let usable = if open == 0 { endpoints.len() } else { open };
    match usable {
        0 => None,
        1 => nth(0).cloned(),
        n => {
            let first = rng.random_range(0..n);
            let second = (first + rng.random_range(1..n)) % n;
            let (first, second) = (nth(first)?, nth(second)?);
            Some(if first.load() <= second.load() { first } else { second }.clone())
        }
    }
}

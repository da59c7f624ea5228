//! A Consul agent for tests: a real HTTP server, in process, on a free port.
//!
//! It answers as Consul 1.22 does what OmniBridge asks of an agent: services
//! and their health, the Connect CA's leafs and roots, intentions, and keys,
//! all with blocking queries; and sessions that lock keys. It runs no checks: a
//! test says what is healthy.
//! [`FakeConsul`]'s methods are the ways in which a real one changes or fails.

mod ca;
mod http;
mod state;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

pub use self::ca::ConnectCa;
use self::state::{State, Topic};

/// A running agent; it ends when this is dropped.
pub struct FakeConsul {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

/// How the agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// It takes requests and answers none.
    Hanging,
    /// It answers every request with this status.
    Failing(u16),
}

/// What requests and the handle share.
struct Shared {
    state: Mutex<State>,
    mood: watch::Sender<Mood>,
    /// Tells waiting queries that the state changed.
    changes: watch::Sender<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes the queries that wait for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state());
        self.changes.send_replace(());
        done
    }
}

impl FakeConsul {
    /// Starts an agent with a new CA on a free port of loopback.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start() -> Self {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new()),
            mood: watch::Sender::new(Mood::Well),
            changes: watch::Sender::new(()),
        });
        let server = Some(tokio::spawn(http::serve(listener, shared.clone())));
        Self { address, shared, server }
    }

    /// The setting `registry` that leads here.
    pub fn url(&self) -> String {
        format!("consul://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the agent and cuts its connections; what it knows stays for
    /// [`FakeConsul::restart`].
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            // Aborted is what it is to be.
            let _ = server.await;
        }
    }

    /// Starts a stopped agent again, at the same address.
    ///
    /// # Panics
    /// When somebody else took the port.
    pub async fn restart(&mut self) {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await.expect("the port is still free");
        self.server = Some(tokio::spawn(http::serve(listener, self.shared.clone())));
    }

    /// Takes requests from now on and answers none, those under way included.
    pub fn hang(&self) {
        self.shared.mood.send_replace(Mood::Hanging);
    }

    /// Answers every request with `status`, those under way included.
    pub fn fail_with(&self, status: u16) {
        self.shared.mood.send_replace(Mood::Failing(status));
    }

    /// Is well again after [`FakeConsul::hang`] or [`FakeConsul::fail_with`].
    pub fn recover(&self) {
        self.shared.mood.send_replace(Mood::Well);
    }

    /// Begins to count its indexes anew, as a server does that was restored;
    /// waiting queries are answered.
    pub fn reset_index(&self) {
        self.shared.change(State::reset_index);
    }

    /// Loses its services, and begins to count its indexes anew, as a server
    /// does whose data is gone.
    pub fn lose_services(&self) {
        self.shared.change(|state| {
            state.services.clear();
            state.check_sessions();
            state.reset_index();
        });
    }

    /// Makes a new root, signs with it from now on, and makes every leaf anew.
    /// The old root stays trusted.
    pub fn rotate_root(&self) {
        self.shared.change(|state| {
            state.ca.rotate();
            state.leafs.clear();
            state.touch(Topic::Roots);
            state.touch(Topic::Leafs);
        });
    }

    /// The certificates of all trusted roots in PEM, the active one first.
    pub fn roots(&self) -> Vec<String> {
        self.shared.state().ca.roots()
    }

    /// Sets the intention `source` → `destination`: `allow` or `deny`.
    pub fn set_intention(&self, source: &str, destination: &str, action: &str) {
        self.put_intention(source, destination, json!({ "Action": action }));
    }

    /// Sets the intention `source` → `destination` to `permissions`, in the
    /// form of Consul's API.
    pub fn set_permissions(&self, source: &str, destination: &str, permissions: Value) {
        self.put_intention(source, destination, json!({ "Permissions": permissions }));
    }

    fn put_intention(&self, source: &str, destination: &str, mut intention: Value) {
        intention["SourceName"] = source.into();
        intention["DestinationName"] = destination.into();
        self.shared.change(|state| {
            let pair = (source.to_owned(), destination.to_owned());
            state.intentions.insert(pair, intention);
            state.touch(Topic::Intentions);
        });
    }

    /// Deletes the intention `source` → `destination`.
    pub fn delete_intention(&self, source: &str, destination: &str) {
        self.shared.change(|state| {
            let pair = (source.to_owned(), destination.to_owned());
            state.intentions.remove(&pair);
            state.touch(Topic::Intentions);
        });
    }

    /// Sets `key` to `value`.
    pub fn set_key(&self, key: &str, value: &str) {
        self.shared.change(|state| state.set_key(key, value.as_bytes()));
    }

    /// Deletes `key`.
    pub fn delete_key(&self, key: &str) {
        self.shared.change(|state| state.delete_key(key));
    }

    /// Registers `service`, in the form of Consul's API, or changes the one with
    /// its id.
    pub fn register(&self, service: Value) {
        self.shared.change(|state| state.register(service));
    }

    /// Forgets the instance `id`, as an agent does that lost its data.
    pub fn forget_service(&self, id: &str) {
        self.shared.change(|state| state.deregister(id));
    }

    /// Sets the check of the instance `id`: `passing`, `warning` or `critical`.
    pub fn set_health(&self, id: &str, status: &str) {
        self.shared.change(|state| state.set_health(id, status));
    }

    /// What the instance `id` registered; `None` when it isn't registered.
    pub fn service(&self, id: &str) -> Option<Value> {
        self.shared.state().services.get(id).cloned()
    }

    /// The ids of all instances that are registered.
    pub fn services(&self) -> Vec<String> {
        self.shared.state().services.keys().cloned().collect()
    }

    /// All sessions, in the form of Consul's API.
    pub fn sessions(&self) -> Vec<Value> {
        self.shared.state().sessions()
    }

    /// Ends all sessions, as an operator may.
    pub fn destroy_sessions(&self) {
        self.shared.change(State::destroy_sessions);
    }

    /// Takes away the right to see the instances of `service`: Consul then says
    /// that there are none, and in a header that it isn't the whole truth.
    pub fn hide_service(&self, service: &str) {
        self.shared.change(|state| {
            state.hidden.insert(service.to_owned());
            state.touch(Topic::Services);
        });
    }

    /// Answers only requests with this token from now on.
    pub fn require_token(&self, token: &str) {
        self.shared.state().token = Some(token.to_owned());
    }
}

impl Drop for FakeConsul {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

#[cfg(test)]
mod tests;

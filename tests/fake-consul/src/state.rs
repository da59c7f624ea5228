//! What the agent knows, and the index at which each part last changed.

mod sessions;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use base64::Engine as _;
use serde_json::{Value, json};

use self::sessions::Sessions;
use crate::ca::ConnectCa;

/// A part of the state that is watched as a whole. A real Consul's indexes are
/// as coarse, or finer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    Services,
    Intentions,
    Keys,
    Leafs,
    Roots,
}

/// Everything the agent knows.
pub(crate) struct State {
    /// Counts all changes.
    index: u64,
    changed: BTreeMap<Topic, u64>,
    /// How often the indexes began anew.
    pub(crate) epoch: u64,
    pub(crate) ca: ConnectCa,
    /// Leafs by service, in the form of the API.
    pub(crate) leafs: BTreeMap<String, Value>,
    /// What instances registered, by id, with the status of their check.
    pub(crate) services: BTreeMap<String, Value>,
    pub(crate) intentions: BTreeMap<(String, String), Value>,
    /// Keys, in the form of the API.
    keys: BTreeMap<String, Value>,
    sessions: Sessions,
    pub(crate) token: Option<String>,
    /// The services that the token may not see.
    pub(crate) hidden: BTreeSet<String>,
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            index: 10,
            changed: BTreeMap::new(),
            epoch: 0,
            ca: ConnectCa::new(),
            leafs: BTreeMap::new(),
            services: BTreeMap::new(),
            intentions: BTreeMap::new(),
            keys: BTreeMap::new(),
            sessions: Sessions::default(),
            token: None,
            hidden: BTreeSet::new(),
        }
    }

    /// The index at which `topic` last changed; never 0.
    pub(crate) fn index(&self, topic: Topic) -> u64 {
        self.changed.get(&topic).copied().unwrap_or(1)
    }

    pub(crate) fn touch(&mut self, topic: Topic) {
        self.index += 1;
        self.changed.insert(topic, self.index);
    }

    pub(crate) fn reset_index(&mut self) {
        self.index = 1;
        self.changed.clear();
        self.epoch += 1;
    }

    pub(crate) fn register(&mut self, mut service: Value) {
        let name = service["Name"].clone();
        if service["ID"].as_str().is_none_or(str::is_empty) {
            service["ID"] = name;
        }
        let id = service["ID"].as_str().unwrap_or_default().to_owned();
        self.services.insert(id, service);
        self.touch(Topic::Services);
        self.check_sessions();
    }

    pub(crate) fn deregister(&mut self, id: &str) {
        self.services.remove(id);
        self.touch(Topic::Services);
        self.check_sessions();
    }

    pub(crate) fn set_health(&mut self, id: &str, status: &str) {
        if let Some(service) = self.services.get_mut(id) {
            service["Check"]["Status"] = status.into();
        }
        self.touch(Topic::Services);
        self.check_sessions();
    }

    /// The instance `id` in the form of `agent/service`, with its hash.
    pub(crate) fn known(&self, id: &str) -> Option<Value> {
        let mut known = self.services.get(id)?.clone();
        let mut hasher = DefaultHasher::new();
        known.to_string().hash(&mut hasher);
        known["ContentHash"] = format!("{:016x}", hasher.finish()).into();
        Some(known)
    }

    /// The instances of `name` in the form of `health/service`.
    pub(crate) fn health(&self, name: &str, connect_only: bool) -> Value {
        let entries = self
            .services
            .values()
            .filter(|s| s["Name"] == name && !self.hidden.contains(name))
            .filter(|s| !connect_only || s["Connect"]["Native"] == true);
        entries.map(entry).collect()
    }

    /// The names of all services with their tags.
    pub(crate) fn catalog(&self) -> Value {
        let mut names = json!({ "consul": [] });
        for service in self.services.values() {
            let tags = service["Tags"].as_array().cloned().unwrap_or_default();
            names[service["Name"].as_str().unwrap_or_default()] = tags.into();
        }
        names
    }

    /// The leaf of `name`, made where there is none.
    pub(crate) fn leaf(&mut self, name: &str) -> Value {
        if let Some(leaf) = self.leafs.get(name) {
            return leaf.clone();
        }
        let leaf = self.ca.leaf(name);
        self.leafs.insert(name.to_owned(), leaf.clone());
        leaf
    }

    pub(crate) fn key(&self, key: &str) -> Option<Value> {
        self.keys.get(key).map(|pair| json!([pair]))
    }

    /// The pairs whose keys begin with `prefix`.
    pub(crate) fn keys(&self, prefix: &str) -> Option<Value> {
        let found: Vec<_> = self.keys.range(prefix.to_owned()..).collect();
        let found = found.into_iter().take_while(|(key, _)| key.starts_with(prefix));
        let pairs: Vec<&Value> = found.map(|(_, pair)| pair).collect();
        (!pairs.is_empty()).then(|| json!(pairs))
    }

    /// As [`State::set_key`], if the key was last set at `index`, or isn't there
    /// where that is 0; whether it was set.
    pub(crate) fn check_and_set(&mut self, key: &str, value: &[u8], index: u64) -> bool {
        let now = self.keys.get(key).and_then(|pair| pair["ModifyIndex"].as_u64()).unwrap_or(0);
        if now == index {
            self.set_key(key, value);
        }
        now == index
    }

    /// Sets `key`, whoever holds it: it stays locked, and its locks are counted anew.
    pub(crate) fn set_key(&mut self, key: &str, value: &[u8]) {
        let session = self.keys.get(key).and_then(|pair| pair.get("Session").cloned());
        self.put_key(key, value, 0, session);
    }

    fn put_key(&mut self, key: &str, value: &[u8], locks: u64, session: Option<Value>) {
        self.touch(Topic::Keys);
        let created = self.keys.get(key).map(|pair| pair["CreateIndex"].clone());
        let mut pair = json!({
            "LockIndex": locks,
            "Key": key,
            "Flags": 0,
            "Value": base64::engine::general_purpose::STANDARD.encode(value),
            "CreateIndex": created.unwrap_or_else(|| self.index.into()),
            "ModifyIndex": self.index,
        });
        if let Some(session) = session {
            pair["Session"] = session;
        }
        self.keys.insert(key.to_owned(), pair);
    }

    pub(crate) fn delete_key(&mut self, key: &str) {
        self.keys.remove(key);
        self.touch(Topic::Keys);
    }
}

fn entry(service: &Value) -> Value {
    let check = &service["Check"];
    let status = check["Status"].as_str().unwrap_or("critical");
    let mut checks = vec![json!({ "CheckID": "serfHealth", "Status": "passing" })];
    if check.is_object() {
        let id = service["ID"].as_str().unwrap_or_default();
        checks.push(json!({ "CheckID": format!("service:{id}"), "Status": status }));
    }
    json!({
        "Node": { "Node": "fake", "Address": "127.0.0.1", "Datacenter": "dc1" },
        "Service": {
            "ID": service["ID"],
            "Service": service["Name"],
            "Tags": service["Tags"],
            "Address": service["Address"].as_str().unwrap_or_default(),
            "TaggedAddresses": { "lan_ipv4": { "Address": "127.0.0.1", "Port": service["Port"] } },
            "Port": service["Port"],
            "Meta": service["Meta"],
            "Connect": service["Connect"],
            "Weights": service.get("Weights").cloned().unwrap_or(json!({ "Passing": 1, "Warning": 1 })),
        },
        "Checks": checks,
    })
}

//! The agent's endpoints that `consulrs` lacks or reads wrongly, with what is
//! used of their answers.
//!
//! Source: Consul, "HTTP API", version 1.22.

use std::collections::{BTreeMap, HashMap};

use consulrs::api::features::{FeaturedEndpoint, Features};
use rustify_derive::Endpoint;
use serde::Deserialize;

/// The instances of a service that speak Connect, healthy or not.
#[derive(Debug, Endpoint)]
#[endpoint(path = "health/connect/{self.service}", response = "Vec<Entry>")]
pub(crate) struct HealthConnect {
    #[endpoint(skip)]
    pub(crate) service: String,
    #[endpoint(skip)]
    pub(crate) features: Option<Features>,
}

/// One instance, its node and its checks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Entry {
    pub(crate) node: Node,
    pub(crate) service: Service,
    #[serde(default)]
    pub(crate) checks: Vec<Check>,
}

/// The machine an instance is on.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Node {
    pub(crate) address: String,
}

/// What an instance registered.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Service {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) meta: Option<HashMap<String, String>>,
    #[serde(default)]
    pub(crate) weights: Weights,
}

/// The share of the calls it wants.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Weights {
    pub(crate) passing: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1 }
    }
}

/// What became of a check: `passing`, `warning` or `critical`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Check {
    pub(crate) status: String,
}

/// The names of all services, each with its tags.
#[derive(Debug, Endpoint)]
#[endpoint(path = "catalog/services", response = "BTreeMap<String, Vec<String>>")]
pub(crate) struct CatalogServices {
    #[endpoint(skip)]
    pub(crate) features: Option<Features>,
}

/// One instance, as this agent knows it. With a `hash` it blocks until the
/// instance is another than that, or gone, for `wait` at most: what an agent
/// knows by itself has a hash instead of an index.
#[derive(Debug, Endpoint)]
#[endpoint(path = "agent/service/{self.id}", response = "Known")]
pub(crate) struct AgentService {
    #[endpoint(skip)]
    pub(crate) id: String,
    #[endpoint(query)]
    pub(crate) hash: String,
    #[endpoint(query)]
    pub(crate) wait: String,
    #[endpoint(skip)]
    pub(crate) features: Option<Features>,
}

/// That the agent knows an instance, and the hash of what it knows.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Known {
    #[serde(default, rename = "ContentHash")]
    pub(crate) hash: String,
}

/// The leaf of a service, made when it isn't there yet.
#[derive(Debug, Endpoint)]
#[endpoint(path = "agent/connect/ca/leaf/{self.service}", response = "Leaf")]
pub(crate) struct CaLeaf {
    #[endpoint(skip)]
    pub(crate) service: String,
    #[endpoint(skip)]
    pub(crate) features: Option<Features>,
}

/// A leaf with its chain and key. It has no `Debug`, so that no log gets the
/// key.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Leaf {
    #[serde(rename = "CertPEM")]
    pub(crate) chain: String,
    #[serde(rename = "PrivateKeyPEM")]
    pub(crate) key: String,
}

/// The roots that count now.
#[derive(Debug, Endpoint)]
#[endpoint(path = "agent/connect/ca/roots", response = "Roots")]
pub(crate) struct CaRoots {
    #[endpoint(skip)]
    pub(crate) features: Option<Features>,
}

/// The roots to trust: the one that signs, and those it replaced whose leafs
/// may still be in use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Roots {
    pub(crate) roots: Vec<Root>,
}

/// One root, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Root {
    pub(crate) root_cert: String,
    #[serde(default)]
    pub(crate) active: bool,
}

/// Ends a session, if it hasn't ended.
#[derive(Debug, Endpoint)]
#[endpoint(path = "session/destroy/{self.id}", method = "PUT", response = "bool")]
pub(crate) struct SessionDestroy {
    #[endpoint(skip)]
    pub(crate) id: String,
    #[endpoint(skip)]
    pub(crate) features: Option<Features>,
}

/// All intentions.
#[derive(Debug, Endpoint)]
#[endpoint(path = "connect/intentions", response = "Option<Vec<Intention>>")]
pub(crate) struct Intentions {
    #[endpoint(skip)]
    pub(crate) features: Option<Features>,
}

/// Who may or may not call whom. What isn't known by name is kept, so that a
/// condition of a newer Consul isn't passed over.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Intention {
    pub(crate) source_name: String,
    pub(crate) destination_name: String,
    #[serde(default, rename = "SourceNS")]
    pub(crate) source_namespace: String,
    #[serde(default, rename = "DestinationNS")]
    pub(crate) destination_namespace: String,
    #[serde(default)]
    pub(crate) source_partition: String,
    #[serde(default)]
    pub(crate) destination_partition: String,
    #[serde(default)]
    pub(crate) source_type: String,
    #[serde(default)]
    pub(crate) action: String,
    #[serde(default)]
    pub(crate) permissions: Option<Vec<Permission>>,
    #[serde(default)]
    pub(crate) source_peer: String,
    #[serde(default)]
    pub(crate) source_sameness_group: String,
    #[serde(flatten)]
    pub(crate) more: BTreeMap<String, serde_json::Value>,
}

/// What is decided for requests of some form; the rest is kept, as above.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Permission {
    #[serde(default)]
    pub(crate) action: String,
    #[serde(rename = "HTTP")]
    pub(crate) http: Option<HttpPermission>,
    #[serde(flatten)]
    pub(crate) more: BTreeMap<String, serde_json::Value>,
}

/// The form of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct HttpPermission {
    pub(crate) path_exact: String,
    pub(crate) path_prefix: String,
    pub(crate) path_regex: String,
    pub(crate) methods: Option<Vec<String>>,
    pub(crate) header: Option<Vec<HttpHeader>>,
    #[serde(flatten)]
    pub(crate) more: BTreeMap<String, serde_json::Value>,
}

/// A condition on a header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct HttpHeader {
    pub(crate) name: String,
    pub(crate) present: bool,
    pub(crate) exact: String,
    pub(crate) prefix: String,
    pub(crate) suffix: String,
    pub(crate) contains: String,
    pub(crate) regex: String,
    pub(crate) invert: bool,
    pub(crate) ignore_case: bool,
    #[serde(flatten)]
    pub(crate) more: BTreeMap<String, serde_json::Value>,
}

macro_rules! featured {
    ($($endpoint:ident),*) => {$(
        impl FeaturedEndpoint for $endpoint {
            fn features(&self) -> Option<Features> {
                self.features.clone()
            }
        }
    )*};
}
featured!(
    HealthConnect,
    CatalogServices,
    AgentService,
    CaLeaf,
    CaRoots,
    SessionDestroy,
    Intentions
);

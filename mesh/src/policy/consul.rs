//! Policy from Consul: its intentions, the routes under the key
//! `omnibridge/routes`, who is trusted under `omnibridge/trust`, and the rules of
//! versions, all as they change.
//!
//! The configuration file's intentions and routes, as they were at the start,
//! count under Consul's: for the same pair of services, or the same method,
//! Consul's is taken. Trusted is who is so by either. The keys hold what `omni.toml`
//! would:
//!
//! ```toml
//! [routes."/omnibridge.hooks.v1.HookReceiver/Receive"]
//! timeout = "2s"
//! ```
//!
//! Until Consul has told its intentions, every call is denied.

mod compile;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use consulrs::api::kv::requests::ReadKeyRequest;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{Action, Declared, Intention, Intentions, Policy, Routes, Trust, Versions, versions};
use crate::{
    Error,
    config::Config,
    consul::{Answer, Consul, Since, endpoints, follow::Follow},
};

/// The key that holds the routes.
const ROUTES: &str = "omnibridge/routes";
/// The key that holds who is trusted.
const TRUST: &str = "omnibridge/trust";
/// How long the first policy waits for Consul.
const FIRST_POLICY: Duration = Duration::from_secs(5);

/// Watches the policy in Consul. The first one is there when this returns;
/// where Consul doesn't answer yet, it denies every call.
///
/// # Errors
/// When the setting `registry` names no Consul.
pub async fn watch_consul(
    config: &Config,
    declared: &Declared,
) -> Result<watch::Receiver<Arc<Policy>>, Error> {
    let consul = Consul::from_config(config)?;
    let asked = consul.clone();
    let query = move |since| intentions(asked.clone(), since);
    let mut intentions = Follow::new("intentions", query, |all: &Vec<Intention>| all.is_empty());
    let document = |key: &'static str| {
        let consul = consul.clone();
        let query = move |since| document(consul.clone(), key, since);
        Follow::new(key, query, |text: &Option<String>| text.is_none())
    };
    let (mut routes, mut trust) = (document(ROUTES), document(TRUST));

    let mut layered = Layered {
        file: (config.intentions.clone(), config.routes.clone()),
        declared: Declared { trust: declared.trust.union(&config.trust), ..declared.clone() },
        intentions: None,
        routes: Routes::default(),
        trust: Trust::default(),
        versions: Arc::default(),
    };
    let (all, routes_text, trust_text, versions) = tokio::join!(
        tokio::time::timeout(FIRST_POLICY, intentions.next()),
        tokio::time::timeout(FIRST_POLICY, routes.next()),
        tokio::time::timeout(FIRST_POLICY, trust.next()),
        versions::follow(config),
    );
    let mut versions = versions?;
    layered.versions = versions.borrow_and_update().clone();
    match all {
        Ok(all) => layered.intentions = Some(all),
        Err(_) => tracing::error!("consul told no intentions yet; until it does, all is denied"),
    }
    if let Ok(text) = routes_text {
        layered.take_routes(text);
    }
    match trust_text {
        Ok(text) => layered.take_trust(text),
        Err(_) => tracing::warn!(
            key = TRUST,
            "consul didn't tell whom to trust; until it does, nobody else is trusted"
        ),
    }
    let (policy, watched) = watch::channel(Arc::new(layered.compile()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                all = intentions.next() => layered.intentions = Some(all),
                text = routes.next() => layered.take_routes(text),
                text = trust.next() => layered.take_trust(text),
                Ok(()) = versions.changed() => {
                    layered.versions = versions.borrow_and_update().clone();
                }
                () = policy.closed() => return,
            }
            policy.send_replace(Arc::new(layered.compile()));
        }
    });
    Ok(watched)
}

/// What counts, from the lowest to the highest.
struct Layered {
    /// What services declare, with whom the file trusted at the start.
    declared: Declared,
    file: (Vec<Intention>, Routes),
    /// `None` until Consul has told them.
    intentions: Option<Vec<Intention>>,
    routes: Routes,
    trust: Trust,
    versions: Arc<Versions>,
}

impl Layered {
    fn compile(&self) -> Policy {
        let routes = self.file.1.overlaid(&self.routes);
        let intentions = match &self.intentions {
            Some(consul) => {
                // Of two for one pair the later one counts.
                let all = self.file.0.iter().chain(consul).cloned();
                Intentions::compile(all, &self.declared.calls)
            }
            None => Intentions::compile([deny_all()], &[]),
        };
        let trust = self.declared.trust.union(&self.trust);
        Policy { intentions, routes, versions: self.versions.clone(), trust }
    }

    /// Takes the routes in `text`; what is wrong changes nothing.
    fn take_routes(&mut self, text: Option<String>) {
        if let Some(RoutesDocument { routes }) = read(ROUTES, text) {
            self.routes = routes;
        }
    }

    /// Takes who is trusted by `text`; what is wrong changes nothing.
    fn take_trust(&mut self, text: Option<String>) {
        if let Some(TrustDocument { trust }) = read(TRUST, text) {
            self.trust = trust;
        }
    }
}

/// What the key of the routes holds.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RoutesDocument {
    #[serde(default)]
    routes: Routes,
}

/// What the key of those who are trusted holds.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustDocument {
    #[serde(default)]
    trust: Trust,
}

/// What `text` under `key` says, nothing where there is none; `None` where it is wrong.
fn read<T: Default + DeserializeOwned>(key: &str, text: Option<String>) -> Option<T> {
    let Some(text) = text else { return Some(T::default()) };
    // Nobody means nothing by an empty text: who does, deletes the key.
    let document = match text.trim().is_empty() {
        true => Err("it is empty".to_owned()),
        false => toml::from_str(&text).map_err(|why| why.to_string()),
    };
    match document {
        Ok(document) => Some(document),
        Err(why) => {
            tracing::warn!(key, %why, "the policy stays as it was");
            None
        }
    }
}

fn deny_all() -> Intention {
    Intention {
        source: "*".to_owned(),
        destination: "*".to_owned(),
        action: Some(Action::Deny),
        permissions: vec![],
    }
}

async fn intentions(consul: Arc<Consul>, since: Since) -> Result<Answer<Vec<Intention>>, Error> {
    let features = consul.blocking(since);
    let Answer { value, index } = consul.get(endpoints::Intentions { features }).await?;
    let value = value.unwrap_or_default();
    Ok(Answer { value: value.into_iter().filter_map(compile::intention).collect(), index })
}

/// The text under `key`; `None` where there is no such key.
async fn document(
    consul: Arc<Consul>,
    key: &str,
    since: Since,
) -> Result<Answer<Option<String>>, Error> {
    let request = ReadKeyRequest {
        key: key.to_owned(),
        features: consul.blocking(since),
        ..ReadKeyRequest::default()
    };
    let Answer { value, index } = consul.find(request).await?;
    let pair = value.and_then(|pairs| pairs.into_iter().next());
    let text = pair.map(|pair| match pair.value {
        Some(base64) => {
            let bytes: Result<Vec<u8>, _> = base64.try_into();
            // What isn't text isn't TOML either, and is refused as such.
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        }
        None => String::new(),
    });
    Ok(Answer { value: text, index })
}

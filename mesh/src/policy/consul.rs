//! Policy from Consul: its intentions, the routes under the key
//! `omnibridge/routes`, and the rules of versions, all as they change.
//!
//! The configuration file's intentions and routes, as they were at the start,
//! count under Consul's: for the same pair of services, or the same method,
//! Consul's is taken. The key holds what `omni.toml` would:
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
use tokio::sync::watch;

use super::{Action, Intention, Intentions, Policy, Routes, Versions, versions};
use crate::{
    Error,
    config::Config,
    consul::{Answer, Consul, Since, endpoints, follow::Follow},
};

/// The key that holds the routes.
const ROUTES: &str = "omnibridge/routes";
/// How long the first policy waits for Consul.
const FIRST_POLICY: Duration = Duration::from_secs(5);

/// Watches the policy in Consul. The first one is there when this returns;
/// where Consul doesn't answer yet, it denies every call.
///
/// # Errors
/// When the setting `registry` names no Consul.
pub async fn watch_consul(
    config: &Config,
    declared: &[(String, String)],
) -> Result<watch::Receiver<Arc<Policy>>, Error> {
    let consul = Consul::from_config(config)?;
    let asked = consul.clone();
    let query = move |since| intentions(asked.clone(), since);
    let mut intentions = Follow::new("intentions", query, |all: &Vec<Intention>| all.is_empty());
    let query = move |since| routes_document(consul.clone(), since);
    let mut routes = Follow::new(ROUTES, query, |text: &Option<String>| text.is_none());

    let mut layered = Layered {
        file: (config.intentions.clone(), config.routes.clone()),
        declared: declared.to_vec(),
        intentions: None,
        routes: Routes::default(),
        versions: Arc::default(),
    };
    let (all, text, versions) = tokio::join!(
        tokio::time::timeout(FIRST_POLICY, intentions.next()),
        tokio::time::timeout(FIRST_POLICY, routes.next()),
        versions::follow(config),
    );
    let mut versions = versions?;
    layered.versions = versions.borrow_and_update().clone();
    match all {
        Ok(all) => layered.intentions = Some(all),
        Err(_) => tracing::error!("consul told no intentions yet; until it does, all is denied"),
    }
    if let Ok(text) = text {
        layered.take_routes(text);
    }
    let (policy, watched) = watch::channel(Arc::new(layered.compile()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                all = intentions.next() => layered.intentions = Some(all),
                text = routes.next() => layered.take_routes(text),
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
    declared: Vec<(String, String)>,
    file: (Vec<Intention>, Routes),
    /// `None` until Consul has told them.
    intentions: Option<Vec<Intention>>,
    routes: Routes,
    versions: Arc<Versions>,
}

impl Layered {
    fn compile(&self) -> Policy {
        let routes = self.file.1.overlaid(&self.routes);
        let intentions = match &self.intentions {
            Some(consul) => {
                // Of two for one pair the later one counts.
                let all = self.file.0.iter().chain(consul).cloned();
                Intentions::compile(all, &self.declared)
            }
            None => Intentions::compile([deny_all()], &[]),
        };
        Policy { intentions, routes, versions: self.versions.clone() }
    }

    /// Takes the routes in `text`; what is wrong changes nothing.
    fn take_routes(&mut self, text: Option<String>) {
        match text.as_deref().map(toml::from_str::<Document>).transpose() {
            Ok(document) => self.routes = document.unwrap_or_default().routes,
            Err(why) => tracing::warn!(key = ROUTES, %why, "the routes stay as they were"),
        }
    }
}

/// What the key holds.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    routes: Routes,
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

/// The text under the key; `None` where there is no such key.
async fn routes_document(
    consul: Arc<Consul>,
    since: Since,
) -> Result<Answer<Option<String>>, Error> {
    let request = ReadKeyRequest {
        key: ROUTES.to_owned(),
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

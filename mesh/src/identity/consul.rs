//! The authority that is Consul's Connect CA: leaf and roots come from the
//! agent, which renews the leaf in time and sends both as they change.
//!
//! Consul calls these endpoints deprecated in favour of an interface for
//! proxyless services that doesn't exist yet; nothing else depends on them.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Authority, Identity, Material};
use crate::{
    Error,
    config::Config,
    consul::{
        Answer, Consul, Since,
        endpoints::{CaLeaf, CaRoots, Leaf, Roots},
        follow::Follow,
    },
};

/// How long the first leaf and roots may take; a new Consul first makes its CA.
const FIRST_LEAF: Duration = Duration::from_secs(10);

/// The Connect CA, by way of this machine's agent.
pub struct ConnectAuthority {
    consul: Arc<Consul>,
}

impl ConnectAuthority {
    /// The CA of the agent that the setting `registry` names.
    ///
    /// # Errors
    /// When the setting names no Consul.
    pub fn new(config: &Config) -> Result<Self, Error> {
        if !config.registry.starts_with("consul:") {
            return Err(Error::setting(
                "identity",
                &config.identity,
                "it needs `registry = \"consul://host:port\"`, the same agent",
            ));
        }
        Ok(Self { consul: Consul::from_config(config)? })
    }
}

#[async_trait]
impl Authority for ConnectAuthority {
    async fn identity(&self, name: &str) -> Result<Identity, Error> {
        let (consul, service) = (self.consul.clone(), name.to_owned());
        let query = move |since| leaf(consul.clone(), service.clone(), since);
        let mut leafs = Follow::new(format!("the leaf of {name}"), query, |_: &Leaf| false);
        let consul = self.consul.clone();
        let query = move |since| roots(consul.clone(), since);
        let mut trusted = Follow::new("the roots", query, Roots::is_empty);

        let first = async {
            let (mut leaf, mut roots) = tokio::join!(leafs.next(), trusted.next());
            loop {
                let material = make(&leaf, &roots)?;
                if material.is_vouched_for() {
                    return Ok::<_, Error>((leaf, roots, material));
                }
                // They were asked for at two moments, with a rotation between.
                tokio::select! {
                    next = leafs.next() => leaf = next,
                    next = trusted.next() => roots = next,
                }
            }
        };
        let Ok(first) = tokio::time::timeout(FIRST_LEAF, first).await else {
            let why = leafs.trouble().or(trusted.trouble());
            let why = why.map_or_else(|| "it doesn't answer".to_owned(), ToString::to_string);
            return Err(Error::Identity(format!(
                "no leaf for `{name}` within {FIRST_LEAF:?}: {why}. Start the agent with \
                 `connect {{ enabled = true }}` on its servers, or use `identity = \"dev:\"`"
            )));
        };
        let (mut leaf, mut roots, first) = first?;
        let (material, watched) = watch::channel(Arc::new(first));

        let name = name.to_owned();
        tokio::spawn(async move {
            let mut shown = leaf.clone();
            loop {
                let before = (leaf.clone(), roots.clone());
                tokio::select! {
                    next = leafs.next() => leaf = next,
                    next = trusted.next() => roots = next,
                    () = material.closed() => return,
                }
                if before.0 == leaf && before.1 == roots {
                    continue;
                }
                match next(&mut shown, &leaf, &roots) {
                    Ok(next) => {
                        let trusted = roots.roots.len();
                        tracing::info!(id = %next.id, serial = %next.serial, trusted, "leaf or roots changed");
                        material.send_replace(Arc::new(next));
                    }
                    Err(why) => tracing::error!(%name, %why, "the leaf in use stays"),
                }
            }
        });
        Ok(Identity::new(watched))
    }
}

/// New roots count at once; a new leaf counts once its own root is among them:
/// who doesn't trust a leaf itself can't expect its peers to.
fn next(shown: &mut Leaf, newest: &Leaf, roots: &Roots) -> Result<Material, Error> {
    let next = make(newest, roots)?;
    if next.is_vouched_for() {
        shown.clone_from(newest);
        return Ok(next);
    }
    tracing::warn!(id = %next.id, serial = %next.serial, "this leaf's root isn't among the roots");
    make(shown, roots)
}

async fn leaf(consul: Arc<Consul>, service: String, since: Since) -> Result<Answer<Leaf>, Error> {
    let features = consul.blocking(since);
    consul.get(CaLeaf { service, features }).await
}

async fn roots(consul: Arc<Consul>, since: Since) -> Result<Answer<Roots>, Error> {
    let features = consul.blocking(since);
    consul.get(CaRoots { features }).await
}

/// Every root counts: those that are replaced are listed for as long as their
/// leafs may be in use.
fn make(leaf: &Leaf, roots: &Roots) -> Result<Material, Error> {
    let (active, replaced): (Vec<_>, Vec<_>) = roots.roots.iter().partition(|root| root.active);
    let pem: String = active
        .into_iter()
        .chain(replaced)
        .flat_map(|root| [root.root_cert.trim_end(), "\n"])
        .collect();
    Material::from_pem(&leaf.chain, &leaf.key, &pem)
}

impl Roots {
    fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}

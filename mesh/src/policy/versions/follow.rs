//! The rules of versions as they change.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tokio::sync::watch;

use super::{Histories, RuleBook, Versions};
use crate::{Error, config::Config};

/// How long the first rules are waited for.
const FIRST_RULES: Duration = Duration::from_secs(5);

/// Watches the rules of all services. The first ones are there when this
/// returns; where Consul doesn't answer yet, there are none. What is wrong
/// changes nothing and is logged.
///
/// # Errors
/// When the place where they are kept can't be opened or watched.
pub(in crate::policy) async fn follow(
    config: &Config,
) -> Result<watch::Receiver<Arc<Versions>>, Error> {
    let mut histories = RuleBook::open(config)?.follow()?;
    let mut current = Current::default();
    match tokio::time::timeout(FIRST_RULES, histories.next()).await {
        Ok(first) => current.take(first.unwrap_or_default()),
        Err(_) => tracing::warn!("no rules of versions are told yet"),
    }
    let (sender, watched) = watch::channel(Arc::new(current.versions.clone()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(all) = histories.next() => current.take(all),
                () = sender.closed() => return,
            }
            sender.send_if_modified(|now| {
                let changed = **now != current.versions;
                if changed {
                    *now = Arc::new(current.versions.clone());
                }
                changed
            });
        }
    });
    Ok(watched)
}

/// What counts at the moment, and by which documents.
#[derive(Default)]
struct Current {
    histories: Histories,
    versions: Versions,
}

impl Current {
    /// Takes what is kept now. A service that isn't among it keeps what it has:
    /// rules are taken back by setting none.
    fn take(&mut self, all: Histories) {
        for (service, history) in all {
            if self.histories.get(&service) == Some(&history) {
                continue;
            }
            let rules = history.as_ref().map_err(Clone::clone);
            match rules.and_then(|history| history.rules()) {
                Ok(rules) => {
                    if let Some(now) = history.as_ref().ok().and_then(|history| history.current()) {
                        tracing::info!(service, revision = now.number, by = now.by, "rules set");
                    }
                    self.versions.set(&service, rules);
                }
                Err(why) => {
                    tracing::warn!(service, %why, "its rules of versions stay as they were");
                }
            }
            self.histories.insert(service, history);
        }
    }
}

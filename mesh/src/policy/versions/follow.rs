//! The rules of versions as they change.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    History, RuleBook, Versions,
    book::{KEYS, all_keys, histories},
};
use crate::{Error, config::Config, consul::follow::Follow};

/// How long the first rules wait for Consul.
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
    let book = RuleBook::open(config)?;
    let mut current = Current::default();
    match (book.consul().cloned(), book.changes()?) {
        (Some(consul), _) => {
            let query = move |since| all_keys(consul.clone(), Some(since));
            let mut keys = Follow::new(KEYS, query, |pairs: &Option<Vec<_>>| pairs.is_none());
            match tokio::time::timeout(FIRST_RULES, keys.next()).await {
                Ok(pairs) => current.take(histories(pairs.unwrap_or_default())),
                Err(_) => tracing::warn!("consul told no rules of versions yet"),
            }
            let (sender, watched) = watch::channel(Arc::new(current.versions.clone()));
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        pairs = keys.next() => current.take(histories(pairs.unwrap_or_default())),
                        () = sender.closed() => return,
                    }
                    current.tell(&sender);
                }
            });
            Ok(watched)
        }
        (None, changes) => {
            current.take(book.all().await?);
            let (sender, watched) = watch::channel(Arc::new(current.versions.clone()));
            tokio::spawn(async move {
                let Some(mut changes) = changes else { return };
                loop {
                    tokio::select! {
                        () = changes.changed() => {}
                        () = sender.closed() => return,
                    }
                    match book.all().await {
                        Ok(all) => current.take(all),
                        Err(why) => tracing::warn!(%why, "the rules of versions stay as they were"),
                    }
                    current.tell(&sender);
                }
            });
            Ok(watched)
        }
    }
}

/// What counts at the moment, and by which documents.
#[derive(Default)]
struct Current {
    histories: BTreeMap<String, History>,
    versions: Versions,
}

impl Current {
    /// Takes what is kept now. A service that isn't among it keeps what it has, for
    /// what is kept may have become unreadable: rules are taken back by setting none.
    fn take(&mut self, all: BTreeMap<String, History>) {
        for (service, history) in all {
            if self.histories.get(&service) == Some(&history) {
                continue;
            }
            match history.rules() {
                Ok(rules) => {
                    if let Some(now) = history.current() {
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

    fn tell(&self, sender: &watch::Sender<Arc<Versions>>) {
        sender.send_if_modified(|now| {
            let changed = **now != self.versions;
            if changed {
                *now = Arc::new(self.versions.clone());
            }
            changed
        });
    }
}

//! Where the rules of versions are kept, each service's with its history: under
//! a key in Consul, or in a file under the data directory. Both hold the same
//! document, which is replaced as a whole, and by one writer at a time.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use consulrs::api::kv::{
    common::KVPair,
    requests::{ReadKeyRequest, SetKeyRequest},
};
use futures::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};

use super::VersionRules;
use crate::{
    Error,
    config::Config,
    consul::{Answer, Consul, Since, follow::Follow},
    files,
    identity::is_name,
};

/// The keys that hold the rules, one for each service.
const KEYS: &str = "omnibridge/versions/";
/// The folder that holds them, under the data directory.
const FOLDER: &str = "versions";
/// How many revisions of a service's rules are kept, and how many bytes of them:
/// Consul takes 512 KiB under a key.
pub(super) const MAX_REVISIONS: usize = 20;
const MAX_BYTES: usize = 256 * 1024;

/// The rules of one service, as they were set one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The revisions that are kept, the newest last: that one counts.
    pub revisions: Vec<Revision>,
}

/// Rules, as they were set once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The first one is 1.
    pub number: u64,
    /// When they were set.
    pub at: DateTime<Utc>,
    /// Who set them.
    pub by: String,
    /// The rules, as they were written.
    pub rules: String,
}

impl History {
    /// The revision that counts.
    pub fn current(&self) -> Option<&Revision> {
        self.revisions.last()
    }

    /// The rules that count.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn rules(&self) -> Result<VersionRules, String> {
        match self.current() {
            Some(now) => VersionRules::parse(&now.rules),
            None => Ok(VersionRules::default()),
        }
    }

    fn add(&mut self, by: &str, rules: &str) -> &Revision {
        let number = self.current().map_or(0, |now| now.number) + 1;
        let revision =
            Revision { number, at: Utc::now(), by: by.to_owned(), rules: rules.to_owned() };
        self.revisions.push(revision);
        let mut bytes = 0;
        let kept = self.revisions.iter().rev().take(MAX_REVISIONS).take_while(|revision| {
            bytes += revision.rules.len() + revision.by.len();
            bytes <= MAX_BYTES
        });
        let old = self.revisions.len() - kept.count().max(1);
        self.revisions.drain(..old);
        &self.revisions[self.revisions.len() - 1]
    }
}

/// What is kept, by service, or why that can't be read.
pub type Histories = BTreeMap<String, Result<History, String>>;

/// The place where rules are kept.
#[derive(Clone)]
pub struct RuleBook {
    place: Place,
}

#[derive(Clone)]
enum Place {
    Consul(Arc<Consul>),
    Folder(PathBuf),
}

impl RuleBook {
    /// The place for the registry that the configuration names: Consul's keys
    /// for Consul, else files.
    ///
    /// # Errors
    /// When the folder can't be made, or Consul's address isn't one.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let place = if config.registry.starts_with("consul:") {
            Place::Consul(Consul::from_config(config)?)
        } else {
            let folder = config.data.join(FOLDER);
            files::make_folder(&folder)?;
            Place::Folder(folder)
        };
        Ok(Self { place })
    }

    /// What is kept, by service, or why that can't be read.
    ///
    /// # Errors
    /// When the place can't be read.
    pub async fn all(&self) -> Result<Histories, Error> {
        match &self.place {
            Place::Consul(consul) => {
                Ok(histories(all_keys(consul.clone(), None).await?.value.unwrap_or_default()))
            }
            Place::Folder(folder) => read_folder(folder),
        }
    }

    /// What is kept of `service`.
    ///
    /// # Errors
    /// When the place or what it holds can't be read.
    pub async fn history(&self, service: &str) -> Result<History, Error> {
        self.read(service).await?.0
    }

    /// Sets the rules of `service`, once they were checked.
    ///
    /// # Errors
    /// What is wrong with them, that somebody else set some at the same time, or
    /// that the place can't be written.
    pub async fn set(&self, service: &str, by: &str, rules: &str) -> Result<Revision, Error> {
        VersionRules::parse(rules).map_err(|why| Error::Policy(format!("the rules: {why}")))?;
        if !is_name(service) {
            return Err(Error::Policy(format!("`{service}` can't name a service")));
        }
        match &self.place {
            Place::Consul(consul) => {
                let (history, index) = self.read(service).await?;
                let mut history = readable(service, history);
                let revision = history.add(by, rules).clone();
                let request = SetKeyRequest {
                    key: format!("{KEYS}{service}"),
                    value: encode(&history)?,
                    cas: Some(index),
                    ..SetKeyRequest::default()
                };
                match consul.get(request).await?.value {
                    true => Ok(revision),
                    false => Err(Error::Policy(format!(
                        "somebody else has set the rules of `{service}` at the same time; look at \
                         them, and try again"
                    ))),
                }
            }
            Place::Folder(folder) => {
                let lock = folder.join(".lock");
                let held = tokio::task::spawn_blocking(move || files::lock(&lock)).await;
                let _held = held.map_err(|why| Error::Policy(why.to_string()))??;
                let history = read_file(&file(folder, service)).map(Option::unwrap_or_default);
                let mut history = readable(service, history);
                let revision = history.add(by, rules).clone();
                files::replace(&file(folder, service), &encode(&history)?)?;
                Ok(revision)
            }
        }
    }

    /// What is kept of `service`, and the index in Consul that it was set at.
    async fn read(&self, service: &str) -> Result<(Result<History, Error>, u64), Error> {
        match &self.place {
            Place::Consul(consul) => {
                let key = format!("{KEYS}{service}");
                let request = ReadKeyRequest { key, ..ReadKeyRequest::default() };
                let pairs = consul.find(request).await?.value;
                match pairs.and_then(|pairs| pairs.into_iter().next()) {
                    Some(pair) => {
                        let index = pair.modify_index;
                        Ok((decode(service, &value(pair)), index))
                    }
                    None => Ok((Ok(History::default()), 0)),
                }
            }
            Place::Folder(folder) => {
                Ok((read_file(&file(folder, service)).map(Option::unwrap_or_default), 0))
            }
        }
    }

    /// What is kept, as it is set.
    ///
    /// # Errors
    /// When the place can't be watched.
    pub(super) fn follow(&self) -> Result<BoxStream<'static, Histories>, Error> {
        match &self.place {
            Place::Consul(consul) => {
                let consul = consul.clone();
                let query = move |since| all_keys(consul.clone(), Some(since));
                let follow = Follow::new(KEYS, query, |pairs: &Option<Vec<_>>| pairs.is_none());
                Ok(Box::pin(stream::unfold(follow, async |mut follow| {
                    let pairs = follow.next().await.unwrap_or_default();
                    Some((histories(pairs), follow))
                })))
            }
            Place::Folder(folder) => {
                let watched = (folder.clone(), files::watch(folder)?, true);
                Ok(Box::pin(stream::unfold(watched, async |(folder, mut changes, mut first)| {
                    loop {
                        if !std::mem::take(&mut first) {
                            changes.changed().await;
                        }
                        match read_folder(&folder) {
                            Ok(all) => return Some((all, (folder, changes, false))),
                            Err(why) => tracing::warn!(%why, "the rules of versions stay"),
                        }
                    }
                })))
            }
        }
    }
}

/// The keys of all services, at once or after `since`.
async fn all_keys(
    consul: Arc<Consul>,
    since: Option<Since>,
) -> Result<Answer<Option<Vec<KVPair>>>, Error> {
    let request = ReadKeyRequest {
        key: KEYS.to_owned(),
        recurse: Some(true),
        features: since.and_then(|since| consul.blocking(since)),
        ..ReadKeyRequest::default()
    };
    consul.find_whole(request).await
}

/// What `pairs` hold, by service.
fn histories(pairs: Vec<KVPair>) -> Histories {
    let named = pairs.into_iter().filter_map(|pair| {
        let service = pair.key.strip_prefix(KEYS).filter(|name| is_name(name))?.to_owned();
        let history = decode(&service, &value(pair)).map_err(|why| why.to_string());
        Some((service, history))
    });
    named.collect()
}

fn read_folder(folder: &Path) -> Result<Histories, Error> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(Error::file(folder))? {
        let path = entry.map_err(Error::file(folder))?.path();
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let Some(service) = stem.filter(|name| is_json && is_name(name)) else { continue };
        // Gone since the folder was read is as if it had never been there.
        let Some(history) = read_file(&path).transpose() else { continue };
        all.insert(service.to_owned(), history.map_err(|why| why.to_string()));
    }
    Ok(all)
}

/// What was kept; nothing where it can't be read, for who sets rules mends that.
fn readable(service: &str, history: Result<History, Error>) -> History {
    history.unwrap_or_else(|why| {
        tracing::warn!(service, %why, "its history begins anew");
        History::default()
    })
}

fn file(folder: &Path, service: &str) -> PathBuf {
    folder.join(format!("{service}.json"))
}

fn read_file(path: &Path) -> Result<Option<History>, Error> {
    match std::fs::read(path) {
        Ok(json) => decode(&path.display().to_string(), &json).map(Some),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(Error::file(path)(why)),
    }
}

fn value(pair: KVPair) -> Vec<u8> {
    // What isn't base64 isn't JSON either, and is refused as such.
    pair.value.and_then(|base64| base64.try_into().ok()).unwrap_or_default()
}

fn encode(history: &History) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(history).map_err(|why| Error::Policy(why.to_string()))
}

fn decode(what: &str, json: &[u8]) -> Result<History, Error> {
    serde_json::from_slice(json)
        .map_err(|why| Error::Policy(format!("the rules of {what} can't be read: {why}")))
}

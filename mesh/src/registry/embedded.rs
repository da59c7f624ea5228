//! The registry for one machine: a locked file per instance under the data
//! directory. The lock is its owner's life: when a process dies, the system
//! drops the lock, and whoever looks next removes the file.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Deregister, Instance, Registration, Registry, Snapshot};
use crate::{Error, config::Config, files};

/// The folder that holds a folder per service.
pub struct EmbeddedRegistry {
    folder: PathBuf,
}

impl EmbeddedRegistry {
    /// Opens the registry under the data directory.
    ///
    /// # Errors
    /// When its folder can't be made.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let folder = config.data.join("registry");
        files::make_folder(&folder)?;
        Ok(Self { folder })
    }
}

#[async_trait]
impl Registry for EmbeddedRegistry {
    async fn register(&self, instance: Instance) -> Result<Registration, Error> {
        let folder = self.folder.join(&instance.service);
        files::make_folder(&folder)?;
        let path = folder.join(format!("{}.json", instance.id));
        let hidden = folder.join(format!(".{}.next", instance.id));
        let json =
            serde_json::to_vec_pretty(&instance).map_err(|why| Error::Registry(why.to_string()))?;
        // Locked before it is seen, so that nobody takes it for a dead one's.
        std::fs::write(&hidden, json).map_err(Error::file(&hidden))?;
        let file = File::options().write(true).open(&hidden).map_err(Error::file(&hidden))?;
        file.lock().map_err(Error::file(&hidden))?;
        std::fs::rename(&hidden, &path).map_err(Error::file(&path))?;
        Ok(Registration::new(Held { path, _lock: file }))
    }

    async fn watch(&self, service: &str) -> Result<watch::Receiver<Snapshot>, Error> {
        let folder = self.folder.join(service);
        files::make_folder(&folder)?;
        let mut changes = files::watch(&folder)?;
        let (snapshots, watched) = watch::channel(read(&folder)?);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = changes.changed() => {}
                    () = snapshots.closed() => return,
                }
                match read(&folder) {
                    Ok(next) => {
                        snapshots.send_if_modified(|now| {
                            let changed = **now != *next;
                            *now = next;
                            changed
                        });
                    }
                    Err(why) => tracing::warn!(%why, "the last snapshot stays in use"),
                }
            }
        });
        Ok(watched)
    }

    async fn services(&self) -> Result<BTreeMap<String, Snapshot>, Error> {
        let mut services = BTreeMap::new();
        for entry in std::fs::read_dir(&self.folder).map_err(Error::file(&self.folder))? {
            let entry = entry.map_err(Error::file(&self.folder))?;
            let instances = read(&entry.path())?;
            if !instances.is_empty() {
                services.insert(entry.file_name().to_string_lossy().into_owned(), instances);
            }
        }
        Ok(services)
    }
}

/// An instance's file and its lock.
struct Held {
    path: PathBuf,
    _lock: File,
}

#[async_trait]
impl Deregister for Held {
    async fn deregister(self: Box<Self>) {
        self.abandon();
    }

    fn abandon(self: Box<Self>) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The living instances in `folder`; the files of dead ones are removed.
fn read(folder: &Path) -> Result<Snapshot, Error> {
    let mut instances: Vec<Instance> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::file(folder))? {
        let path = entry.map_err(Error::file(folder))?.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        match read_instance(&path) {
            Ok(Some(instance)) => instances.push(instance),
            Ok(None) => {
                // Two who see it dead may both remove it.
                let _ = std::fs::remove_file(&path);
            }
            Err(why) => tracing::warn!(file = %path.display(), %why, "passed over"),
        }
    }
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(Arc::from(instances))
}

/// The instance in the file at `path`; `None` when its process is gone.
fn read_instance(path: &Path) -> std::io::Result<Option<Instance>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(why),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let json = std::fs::read(path)?;
            serde_json::from_slice(&json).map(Some).map_err(std::io::Error::other)
        }
        Err(TryLockError::Error(why)) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use super::*;

    fn instance(id: &str) -> Instance {
        Instance {
            id: id.into(),
            service: "echo".into(),
            address: ([127, 0, 0, 1], 1).into(),
            admin: None,
            version: semver::Version::new(1, 2, 3),
            packages: vec!["p.v1".into()],
            capabilities: vec![],
            weight: std::num::NonZeroU16::MIN,
            healthy: true,
        }
    }

    fn open(data: &Path) -> EmbeddedRegistry {
        let flags = [("data", data.display().to_string())];
        EmbeddedRegistry::open(&Config::from_sources(None, HashMap::new(), &flags).unwrap())
            .unwrap()
    }

    async fn until(watched: &mut watch::Receiver<Snapshot>, ids: &[&str]) {
        let there = |s: &Snapshot| s.iter().map(|i| i.id.as_str()).eq(ids.iter().copied());
        tokio::time::timeout(Duration::from_secs(5), watched.wait_for(there))
            .await
            .unwrap_or_else(|_| panic!("{ids:?} are never seen"))
            .unwrap();
    }

    #[tokio::test]
    async fn instances_are_seen_as_they_come_and_go() {
        let data = tempfile::tempdir().unwrap();
        let (one, other) = (open(data.path()), open(data.path()));
        let mut watched = other.watch("echo").await.unwrap();
        assert!(watched.borrow().is_empty());

        let a = one.register(instance("a")).await.unwrap();
        until(&mut watched, &["a"]).await;
        let b = one.register(instance("b")).await.unwrap();
        until(&mut watched, &["a", "b"]).await;
        a.deregister().await;
        until(&mut watched, &["b"]).await;
        assert_eq!(other.services().await.unwrap()["echo"][0], instance("b"));
        drop(b);
        until(&mut watched, &[]).await;
    }

    #[tokio::test]
    async fn the_file_of_a_dead_process_is_not_an_instance() {
        let data = tempfile::tempdir().unwrap();
        let registry = open(data.path());
        let folder = data.path().join("registry/echo");
        std::fs::create_dir_all(&folder).unwrap();
        let left = folder.join("dead.json");
        std::fs::write(&left, serde_json::to_vec(&instance("dead")).unwrap()).unwrap();
        assert!(registry.watch("echo").await.unwrap().borrow().is_empty());
        assert!(!left.exists());
    }
}

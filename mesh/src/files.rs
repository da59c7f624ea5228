//! Folders that several processes share: watching them, and replacing files
//! in them as a whole.

use std::{
    collections::HashMap,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::sync::Notify;

use crate::Error;

/// How often a watched folder is looked at even when the system reports
/// nothing: reports can be lost when many come at once.
pub(crate) const RESCAN: Duration = Duration::from_secs(2);

/// The one watcher of this process, made with the first folder: a user of Linux has 128
/// of them (`fs.inotify.max_user_instances`), for all processes together.
static WATCHER: Mutex<Option<RecommendedWatcher>> = Mutex::new(None);
/// Who is to be told, by folder. Its lock is never held while the watcher is asked for
/// anything: the watcher's thread takes it.
static WATCHED: LazyLock<Mutex<HashMap<PathBuf, Vec<Arc<Notify>>>>> = LazyLock::new(Mutex::default);

/// Tells when something in a folder may have changed.
pub(crate) struct Changes {
    folder: PathBuf,
    notify: Arc<Notify>,
}

impl Changes {
    /// Waits for the next change; returns now and then without one.
    pub(crate) async fn changed(&mut self) {
        // A deadline that passes is a rescan.
        let _ = tokio::time::timeout(RESCAN, self.notify.notified()).await;
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let mut watcher = lock_of(&WATCHER);
        let mut watched = lock_of(&WATCHED);
        let Some(told) = watched.get_mut(&self.folder) else { return };
        told.retain(|other| !Arc::ptr_eq(other, &self.notify));
        if told.is_empty() {
            watched.remove(&self.folder);
            drop(watched);
            // A folder that is gone isn't watched any more, which is as good.
            let _ = watcher.as_mut().map(|watcher| watcher.unwatch(&self.folder));
        }
    }
}

/// Watches the files in `folder`, not those below it. Files that are closed after
/// writing are reported too: that is how the end of the process that held one
/// shows.
///
/// # Errors
/// When the folder can't be watched.
pub(crate) fn watch(folder: &Path) -> Result<Changes, Error> {
    let failed = |why: notify::Error| Error::File {
        path: folder.to_owned(),
        source: std::io::Error::other(why),
    };
    let mut watcher = lock_of(&WATCHER);
    let made = match watcher.take() {
        Some(made) => made,
        None => notify::recommended_watcher(tell).map_err(failed)?,
    };
    let made = watcher.insert(made);
    let changes = Changes {
        folder: std::path::absolute(folder).map_err(Error::file(folder))?,
        notify: Arc::default(),
    };
    // Before it is watched, so that no change is missed.
    let mut watched = lock_of(&WATCHED);
    watched.entry(changes.folder.clone()).or_default().push(changes.notify.clone());
    drop(watched);
    let added = made.watch(&changes.folder, RecursiveMode::NonRecursive).map_err(failed);
    // Dropping the changes takes it too.
    drop(watcher);
    added.map(|()| changes)
}

/// Wakes those who watch where something happened; all of them where that isn't told.
fn tell(event: notify::Result<notify::Event>) {
    let paths = match event {
        Ok(event) if is_read(event.kind) => return,
        Ok(event) => event.paths,
        Err(_) => vec![],
    };
    let is_in = |folder: &Path| {
        paths.is_empty() || paths.iter().any(|path| path == folder || path.parent() == Some(folder))
    };
    let watched = lock_of(&WATCHED);
    for (_, told) in watched.iter().filter(|(folder, _)| is_in(folder)) {
        told.iter().for_each(|notify| notify.notify_one());
    }
}

/// Whether nothing was written.
fn is_read(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
}

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes `folder` and what is above it, for the owner's eyes only.
///
/// # Errors
/// When it can't be made.
pub fn make_folder(folder: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(Error::file(folder))
}

/// Replaces `path` by `content` at once, for the owner's eyes only: a reader
/// sees the old file or the new one, also after a crash.
///
/// # Errors
/// When the file can't be written.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let next = path.with_extension(format!("{}.next", std::process::id()));
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&next, path)
    };
    write().map_err(Error::file(path))
}

/// Holds the lock on `path` until the answer is dropped; waits for it.
///
/// # Errors
/// When the file can't be opened or locked.
pub(crate) fn lock(path: &Path) -> Result<std::fs::File, Error> {
    let file = open_lock(path)?;
    file.lock().map_err(Error::file(path))?;
    Ok(file)
}

/// As [`lock`], but answers `None` where another one holds it.
///
/// # Errors
/// When the file can't be opened or locked.
pub(crate) fn try_lock(path: &Path) -> Result<Option<std::fs::File>, Error> {
    let file = open_lock(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(why)) => Err(Error::file(path)(why)),
    }
}

fn open_lock(path: &Path) -> Result<std::fs::File, Error> {
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::file(path))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// A change is told sooner than the folder would be looked at again.
    async fn is_told(changes: &mut Changes) -> bool {
        tokio::time::timeout(RESCAN / 2, changes.notify.notified()).await.is_ok()
    }

    #[tokio::test]
    async fn one_watcher_tells_those_whose_folder_changed_until_the_last_of_them_leaves() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut first = watch(one.path()).unwrap();
        let mut second = watch(&one.path().join(".")).unwrap();
        let elsewhere = watch(other.path()).unwrap();
        replace(&one.path().join("file"), b"1").unwrap();
        assert!(is_told(&mut first).await && is_told(&mut second).await);
        drop(first);
        // What came of the first change may have been told in parts.
        while is_told(&mut second).await {}
        replace(&one.path().join("file"), b"2").unwrap();
        assert!(is_told(&mut second).await, "one of two still watches");
        assert!(elsewhere.notify.notified().now_or_never().is_none());
        drop(second);
        assert!(!lock_of(&WATCHED).contains_key(one.path()));
        watch(one.path()).unwrap();
    }
}

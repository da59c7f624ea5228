//! Folders that several processes share: watching them, and replacing files
//! in them as a whole.

use std::{io::Write as _, path::Path, sync::Arc, time::Duration};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use crate::Error;

/// How often a watched folder is looked at even when the system reports
/// nothing: reports can be lost when many come at once.
pub(crate) const RESCAN: Duration = Duration::from_secs(2);

/// Tells when something in a folder may have changed.
pub(crate) struct Changes {
    notify: Arc<Notify>,
    _watcher: notify::RecommendedWatcher,
}

impl Changes {
    /// Waits for the next change; returns now and then without one.
    pub(crate) async fn changed(&mut self) {
        // A deadline that passes is a rescan.
        let _ = tokio::time::timeout(RESCAN, self.notify.notified()).await;
    }
}

/// Watches the files in `folder`, not those below it. Files that are closed after
/// writing are reported too: that is how the end of the process that held one
/// shows.
///
/// # Errors
/// When the folder can't be watched.
pub(crate) fn watch(folder: &Path) -> Result<Changes, Error> {
    let notify = Arc::new(Notify::new());
    let wake = notify.clone();
    let failed = |why: notify::Error| Error::File {
        path: folder.to_owned(),
        source: std::io::Error::other(why),
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let read = event.is_ok_and(|e| {
            use notify::event::{AccessKind, AccessMode, EventKind};
            matches!(e.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
        });
        if !read {
            wake.notify_one();
        }
    })
    .map_err(failed)?;
    watcher.watch(folder, RecursiveMode::NonRecursive).map_err(failed)?;
    Ok(Changes { notify, _watcher: watcher })
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

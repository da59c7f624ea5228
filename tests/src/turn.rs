//! Which tests of a program run at the same time: two for each core, for most of the time
//! they wait. There are two other kinds: tests that assert how long something takes, or
//! that need the whole machine, run alone; those on the real backends that the environment
//! names run one after another, for they share these.

use std::{num::NonZeroUsize, sync::LazyLock, thread};

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use crate::Layout;

/// How many run at the same time.
static PLACES: LazyLock<u32> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (2 * cores).try_into().unwrap_or(u32::MAX)
});
static MACHINE: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(*PLACES as usize));
static REAL_BACKENDS: Mutex<()> = Mutex::const_new(());

/// The permission to run now; it ends when it is dropped.
pub struct Turn {
    _places: SemaphorePermit<'static>,
    _backends: Option<MutexGuard<'static, ()>>,
}

impl Turn {
    /// For a test that asserts how long something takes, or needs the whole machine.
    pub async fn alone() -> Self {
        Self::with(*PLACES, None).await
    }

    /// For any other test.
    pub async fn beside_others() -> Self {
        Self::with(1, None).await
    }

    /// For a test on `layout`.
    pub async fn on(layout: Layout) -> Self {
        let backends = match layout {
            Layout::Real | Layout::RealProcesses => Some(REAL_BACKENDS.lock().await),
            _ => None,
        };
        Self::with(1, backends).await
    }

    async fn with(places: u32, _backends: Option<MutexGuard<'static, ()>>) -> Self {
        let _places = MACHINE.acquire_many(places).await.expect("it is never closed");
        Self { _places, _backends }
    }
}

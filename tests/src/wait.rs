//! Waiting for what must come to hold, with a deadline.

use std::{
    fmt::Debug,
    future::Future,
    time::{Duration, Instant},
};

/// How long a test waits for anything.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How often it looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks `probe` until it answers `Ok`, and answers that.
///
/// # Panics
/// When [`DEADLINE`] passes, with what `probe` said last.
pub async fn until<T, E: Debug, F>(what: &str, probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    within(DEADLINE, what, probe).await
}

/// As [`until`], with a deadline of its own.
///
/// # Panics
/// When it passes, with what `probe` said last.
pub async fn within<T, E: Debug, F>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let begun = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(why) if begun.elapsed() > deadline => {
                panic!("{what} doesn't hold after {deadline:?}: {why:?}")
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

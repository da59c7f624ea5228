//! Things that are due at a rate.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

/// Calls `each` with a number from 0 on and when it was due, `rate` times a second
/// for `time`; the calls must not block.
///
/// # Errors
/// That of `each`, which ends it.
pub async fn pace(
    rate: u32,
    time: Duration,
    mut each: impl FnMut(usize, Instant) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    // A thread of its own: the runtime's timers know only whole milliseconds.
    let pacing = tokio::task::spawn_blocking(move || {
        // By default the system joins wakeups that are up to 50 µs apart.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let begun = Instant::now();
        let mut due = begun;
        for number in 0.. {
            if due - begun >= time {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            each(number, due)?;
            due += Duration::from_secs(1) / rate;
        }
        anyhow::Ok(())
    });
    pacing.await?
}

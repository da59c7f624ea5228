//! How often a loop turns at most.

use std::time::Duration;

use tokio::time::Instant;

/// Keeps a loop that is woken by each little thing from turning for each of
/// them: after a pause it turns at once, and then not again before a while is
/// over, so that what comes meanwhile is taken together.
pub(crate) struct Pace {
    least: Duration,
    last: Option<Instant>,
}

impl Pace {
    /// A turn each `least` at most.
    pub(crate) fn new(least: Duration) -> Self {
        Self { least, last: None }
    }

    /// Waits until the next turn may begin, which it then does. Cut off, it
    /// hasn't begun.
    pub(crate) async fn turn(&mut self) {
        if let Some(last) = self.last {
            tokio::time::sleep_until(last + self.least).await;
        }
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_turn_is_at_once_and_the_next_after_a_while() {
        let (begun, least) = (Instant::now(), Duration::from_millis(2));
        let mut pace = Pace::new(least);
        pace.turn().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        pace.turn().await;
        assert_eq!(begun.elapsed(), least);
        tokio::time::sleep(least * 5).await;
        pace.turn().await;
        assert_eq!(begun.elapsed(), least * 6);
    }
}

//! How long to wait before trying again.

use std::time::Duration;

use rand::Rng as _;

/// Between half of `pause` and all of it: many who wait don't come back as one.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// The pause after the failure that follows `failures` others: `first`, doubled
/// each time up to `longest`, and jittered.
pub fn pause(failures: u32, first: Duration, longest: Duration) -> Duration {
    jittered(first.saturating_mul(2u32.saturating_pow(failures)).min(longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(5));
        for (failures, most) in [(0, 1), (1, 2), (2, 4), (3, 5), (u32::MAX, 5)] {
            let (pause, most) = (pause(failures, first, longest), Duration::from_secs(most));
            assert!(pause >= most / 2 && pause <= most, "{failures}: {pause:?}");
        }
    }
}

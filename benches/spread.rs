//! What is said of many measurements in few numbers.

use std::{fmt, time::Duration};

/// The smallest, the middle and the largest of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one; of an even number, the mean of the middle two.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`; `None` where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let lower = (values.len() - 1) / 2;
        Some(Self { min, median: f64::midpoint(values[lower], values[upper]), max })
    }
}

/// How long things took: half of them, all but one in a hundred, all.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50: Duration,
    /// One in a hundred took longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Latency {
    /// That of what `took` so long.
    pub fn of(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(&took, share));
        Self { p50, p99, max }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, max } = self;
        write!(f, "p50 {p50:.2?}, p99 {p99:.2?}, max {max:.2?}")
    }
}

/// The duration that `share` (0 to 1) of `sorted` don't exceed, by nearest rank;
/// zero where there are none.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    // The cast saturates, and a rank is at most the length.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        let odd = Spread { min: 1.0, median: 3.0, max: 9.0 };
        assert_eq!(Spread::of([9.0, 1.0, 3.0]), Some(odd));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_percentile_is_a_measurement_that_was_made() {
        let hundred: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        for (share, expected) in [(0.0, 1), (0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)] {
            assert_eq!(percentile(&hundred, share), Duration::from_millis(expected), "{share}");
        }
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}

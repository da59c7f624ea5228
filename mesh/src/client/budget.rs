//! Keeps retries a small share of the calls, so that they never make an outage
//! worse.
//!
//! Source: Finagle's retry budgets; the numbers are its defaults, with tokens
//! in store instead of a time window.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many retries a call pays for, in hundredths.
const DEPOSIT: u32 = 20;
/// What a retry costs, in the same unit.
const RETRY: u32 = 100;
/// How much can be in store: a hundred retries. A new budget is full.
const FULL: u32 = 100 * RETRY;

/// One service's budget for retries: a fifth of the calls in the long run.
pub(super) struct Budget {
    hundredths: AtomicU32,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { hundredths: AtomicU32::new(FULL) }
    }

    /// A call was made.
    pub(super) fn deposit(&self) {
        let more = |had: u32| (had < FULL).then_some((had + DEPOSIT).min(FULL));
        let _ = self.hundredths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Pays for a retry; whether there is enough.
    pub(super) fn withdraw(&self) -> bool {
        let less = |had: u32| had.checked_sub(RETRY);
        self.hundredths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// How many retries are in store.
    pub(super) fn left(&self) -> u32 {
        self.hundredths.load(Ordering::Relaxed) / RETRY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_never_more_than_a_fifth_of_the_calls_and_the_store() {
        bolero::check!().with_type::<Vec<bool>>().for_each(|steps| {
            let budget = Budget::new();
            let (mut calls, mut retries) = (0_u32, 0_u32);
            // Each step stands for 40, for a full store hides what happens.
            for call in steps.iter().flat_map(|step| [*step; 40]) {
                if call {
                    budget.deposit();
                    calls += 1;
                } else if budget.withdraw() {
                    retries += 1;
                }
                assert!(retries <= FULL / RETRY + calls / 5);
                assert!(budget.left() <= FULL / RETRY);
            }
        });
    }

    #[test]
    fn an_empty_budget_fills_again_by_calls() {
        let budget = Budget::new();
        while budget.withdraw() {}
        assert_eq!(budget.left(), 0);
        for _ in 0..5 {
            budget.deposit();
        }
        assert!(budget.withdraw() && !budget.withdraw());
    }
}

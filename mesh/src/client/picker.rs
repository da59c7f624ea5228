//! Chooses among instances: of two at random the one that costs less.
//!
//! Source: Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing" (2001).

use rand::Rng;

use super::gate::Admission;

/// What can be chosen.
pub(super) trait Candidate {
    /// Whether it may be chosen.
    fn admission(&self) -> Admission;
    /// What choosing it costs; only compared.
    fn cost(&self) -> f64;
}

/// One of `all`, of which `candidate` makes candidates or `None` of those that
/// are out of the question. In the usual case it looks at two of them, however
/// many there are.
pub(super) fn pick<'a, T, C: Candidate>(
    all: &'a [T],
    candidate: impl Fn(&'a T) -> Option<C>,
    rng: &mut impl Rng,
) -> Option<&'a T> {
    let (first, second) = match all.len() {
        0 => return None,
        1 => (0, 0),
        n => {
            let first = rng.random_range(0..n);
            (first, (first + rng.random_range(1..n)) % n)
        }
    };
    // From the first one on, around the ring: the second draw comes next, so
    // that two that may be chosen end the search at once.
    let ring = (1..all.len()).map(|n| (first + n) % all.len()).filter(|n| *n != second);
    let order = [first].into_iter().chain((second != first).then_some(second)).chain(ring);
    let mut best: Option<(&T, f64)> = None;
    for nth in order {
        let Some(candidate) = candidate(&all[nth]) else { continue };
        match candidate.admission() {
            Admission::No => {}
            Admission::Probe => return Some(&all[nth]),
            Admission::Yes => {
                let cost = candidate.cost();
                match best {
                    None => best = Some((&all[nth], cost)),
                    Some((_, other)) if cost < other => return Some(&all[nth]),
                    Some((chosen, _)) => return Some(chosen),
                }
            }
        }
    }
    best.map(|(chosen, _)| chosen)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;

    #[derive(Clone, Copy, Debug)]
    struct Fixed {
        admission: Admission,
        cost: f64,
    }

    impl Candidate for Fixed {
        fn admission(&self) -> Admission {
            self.admission
        }

        fn cost(&self) -> f64 {
            self.cost
        }
    }

    fn yes(cost: f64) -> Fixed {
        Fixed { admission: Admission::Yes, cost }
    }

    #[test]
    fn the_choice_is_one_that_may_be_and_not_the_costliest() {
        let cases = bolero::check!().with_type::<(u64, Vec<(u8, u8)>)>();
        cases.for_each(|(seed, all)| {
            let admission = |n: u8| match n % 3 {
                0 => Admission::Yes,
                1 => Admission::No,
                _ => Admission::Probe,
            };
            let all: Vec<Fixed> = all
                .iter()
                .map(|(what, cost)| Fixed { admission: admission(*what), cost: (*cost).into() })
                .collect();
            let chosen = pick(&all, |one| Some(*one), &mut SmallRng::seed_from_u64(*seed));
            let may: Vec<_> = all.iter().filter(|one| one.admission != Admission::No).collect();
            let Some(chosen) = chosen else { return assert!(may.is_empty()) };
            assert_ne!(chosen.admission, Admission::No);
            let cheapest = may.iter().map(|one| one.cost).fold(f64::MAX, f64::min);
            let costliest = may.iter().filter(|one| one.cost >= chosen.cost).count();
            assert!(
                chosen.cost <= cheapest || costliest > 1 || chosen.admission == Admission::Probe
            );
        });
    }

    #[test]
    fn equal_ones_get_equal_shares_and_a_costly_one_almost_nothing() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut count = |all: &[Fixed]| {
            let mut counts = vec![0_u32; all.len()];
            let places: Vec<usize> = (0..all.len()).collect();
            for _ in 0..10_000 {
                counts[*pick(&places, |n| Some(all[*n]), &mut rng).unwrap()] += 1;
            }
            counts
        };
        // Of equals the first drawn counts.
        assert!(count(&[yes(1.0); 4]).iter().all(|n| (2_300..2_700).contains(n)));
        assert_eq!(count(&[yes(1.0), yes(1.0), yes(2.0)])[2], 0);
        let out = Fixed { admission: Admission::No, cost: 0.0 };
        assert_eq!(count(&[out, yes(1.0), out])[1], 10_000);
    }
}

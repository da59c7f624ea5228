//! What other callers feel of an attack on the service they call, against the
//! same attack aimed at a bare listener beside it: the attackers' own work, and
//! a server's, are in both.
//!
//! Rounds alternate between the targets. The table shows the medians of each
//! round's p99, in milliseconds, and of the ratios of neighbouring rounds, which
//! other work on the machine disturbs least; and this process's memory,
//! attackers and all. `cargo bench -p benches --bench hostile`, or with
//! `-- NAME` for the attacks whose names contain it.

use std::time::Duration;

use hostile::{
    Attack, Site,
    callers::{callers, resident},
};
use tokio_util::sync::CancellationToken;

/// How many rounds each target has, and how long one is; and where only each attack is
/// to be seen to run, as `cargo test` has it.
const ROUNDS: (usize, Duration) = (9, Duration::from_secs(2));
const TRIAL: (usize, Duration) = (1, Duration::from_millis(200));
/// How many calls a second the others make.
const RATE: u32 = 500;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let (flags, chosen): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    let is_bench = flags.iter().any(|flag| flag == "--bench");
    let (rounds, round) = if is_bench { ROUNDS } else { TRIAL };
    let site = Site::start(|_| {}).await;
    println!("{rounds} rounds of {round:?} for each target, {RATE} calls/s by others");
    println!(
        "{:20} {:>8} {:>8} {:>8} {:>6} {:>11} {:>7} {:>9} {:>9}",
        "attack", "quiet", "service", "bare", "ratio", "min–max", "failed", "MB before", "MB after"
    );
    for attack in Attack::ALL {
        if chosen.is_empty() || chosen.iter().any(|name| attack.name().contains(name.as_str())) {
            measure(&site, attack, rounds, round).await;
        }
    }
    site.stop().await;
}

async fn measure(site: &Site, attack: Attack, rounds: usize, time: Duration) {
    let (mut quiet, mut service, mut bare, mut ratios) = (vec![], vec![], vec![], vec![]);
    let mut failed = 0;
    let before = resident();
    for round in 0..rounds {
        let mut p99s = [0.0; 3];
        let mut targets = [(0, None), (1, Some(site.service)), (2, Some(site.bare))];
        // Neither of the two is always the one that follows the quiet.
        if round % 2 == 1 {
            targets.reverse();
        }
        for (place, target) in targets {
            let stop = CancellationToken::new();
            let attacked = async {
                if let Some(target) = target {
                    attack.run(&site.attacker, target, stop.clone()).await;
                }
            };
            let ((), (), fared) = tokio::join!(
                async {
                    tokio::time::sleep(time).await;
                    stop.cancel();
                },
                attacked,
                callers(&site.caller, site.service, RATE, stop.clone()),
            );
            p99s[place] = fared.p99().as_secs_f64() * 1000.0;
            failed += fared.failed.len();
        }
        quiet.push(p99s[0]);
        service.push(p99s[1]);
        bare.push(p99s[2]);
        ratios.push(p99s[1] / p99s[2]);
    }
    let [quiet, service, bare, ratio] =
        [&mut quiet, &mut service, &mut bare, &mut ratios].map(|values| median(values));
    println!(
        "{:20} {quiet:8.2} {service:8.2} {bare:8.2} {ratio:6.2} {:>11} {failed:7} {:9.1} {:9.1}",
        attack.name(),
        format!("{:.2}–{:.2}", ratios[0], ratios[rounds - 1]),
        megabytes(before),
        megabytes(resident()),
    );
}

/// The median of `values`, which are sorted after it.
fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

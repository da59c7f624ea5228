//! What other callers feel of an attack on the service they call, against the
//! same attack aimed at a bare listener beside it: the attackers' own work, and
//! a server's, are in both.
//!
//! Rounds alternate between the two targets; the table shows medians of each
//! round's p99, in milliseconds, and this process's memory at the end of the
//! rounds, everything in it. `cargo bench -p benches --bench hostile`, or with
//! `-- NAME` for the attacks whose names contain it.

use std::time::Duration;

use hostile::{
    Attack, Site,
    callers::{callers, resident},
};
use tokio_util::sync::CancellationToken;

/// How many rounds each target has, and how long one is.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
/// How many calls a second the others make.
const RATE: u32 = 500;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let site = Site::start(|_| {}).await;
    println!("{ROUNDS} rounds of {ROUND:?} for each target, {RATE} calls/s by others");
    println!(
        "{:20} {:>9} {:>9} {:>9} {:>6} {:>7} {:>11} {:>11}",
        "attack", "quiet", "service", "bare", "ratio", "failed", "memory, MB", "after, MB"
    );
    for attack in Attack::ALL {
        if chosen.is_empty() || chosen.iter().any(|name| attack.name().contains(name.as_str())) {
            measure(&site, attack).await;
        }
    }
    site.stop().await;
}

async fn measure(site: &Site, attack: Attack) {
    let (mut quiet, mut service, mut bare) = (vec![], vec![], vec![]);
    let mut failed = 0;
    let before = resident();
    for _ in 0..ROUNDS {
        for (target, p99s) in
            [(None, &mut quiet), (Some(site.service), &mut service), (Some(site.bare), &mut bare)]
        {
            let stop = CancellationToken::new();
            let attacked = async {
                if let Some(target) = target {
                    attack.run(&site.attacker, target, stop.clone()).await;
                }
            };
            let ((), (), fared) = tokio::join!(
                async {
                    tokio::time::sleep(ROUND).await;
                    stop.cancel();
                },
                attacked,
                callers(&site.caller, site.service, RATE, stop.clone()),
            );
            p99s.push(fared.p99());
            failed += fared.failed.len();
        }
    }
    let [quiet, service, bare] = [quiet, service, bare].map(median);
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    println!(
        "{:20} {:9.2} {:9.2} {:9.2} {:6.2} {failed:7} {:11.1} {:11.1}",
        attack.name(),
        millis(quiet),
        millis(service),
        millis(bare),
        service.as_secs_f64() / bare.as_secs_f64(),
        megabytes(before),
        megabytes(resident()),
    );
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

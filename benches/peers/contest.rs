//! All rounds of all contestants, and what is written of them.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use benches::{document, machine::Others};
use clap::Args;

use crate::{
    CONNECTIONS,
    collector::Collector,
    envoy,
    report::{Report, Round},
    turn::{Contestant, Figures, Stage},
};

/// How long the machine has to be calm before a turn.
const LOOK: Duration = Duration::from_secs(1);

/// What can be set.
#[derive(Args)]
pub(crate) struct Settings {
    /// How many rounds to run.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How many seconds each turn keeps up the closed loop.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    closed: u16,
    /// How many seconds each turn keeps up the open loop.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..))]
    open: u16,
    /// How much of the machine others may take, in percent of all cores; above it a
    /// turn waits, or is taken again.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    others: u8,
    /// How many seconds may go, in all, into waiting for others and into turns that
    /// they disturbed; after that, turns count as they come.
    #[arg(long, default_value_t = 600)]
    patience: u16,
    /// The Envoy to run.
    #[arg(long, default_value = "envoy")]
    envoy: PathBuf,
    /// The Markdown file to write the tables to, between `<!-- peers: begin -->` and
    /// `<!-- peers: end -->`.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// Runs all rounds, prints the tables and the ratios, and writes them.
///
/// # Errors
/// When a contestant fails, or the file can't be written.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let seconds = |seconds: u16| Duration::from_secs(seconds.into());
    let envoy_version = envoy::version(&settings.envoy)
        .await
        .context("`compose/backends install envoy` installs it, and `--envoy` says where it is")?;
    let data = tempfile::tempdir()?;
    let collector = Collector::start().await?;
    let stage = Stage {
        envoy: &settings.envoy,
        data: data.path(),
        traces: &collector.url,
        closed: seconds(settings.closed),
        open: seconds(settings.open),
        warm_up: Duration::from_secs(1),
    };
    let mut calm =
        Calm { limit: f64::from(settings.others) / 100.0, patience: seconds(settings.patience) };
    let mut rounds: Vec<Round> = Vec::new();
    for number in 0..usize::from(settings.rounds) {
        let mut round = Round::default();
        for place in 0..Contestant::ALL.len() {
            // Each begins a round in turn, so that none is always the first.
            let contestant = Contestant::ALL[(number + place) % Contestant::ALL.len()];
            let figures = calm.turn(&stage, contestant).await?;
            print_turn(number + 1, contestant, &figures)?;
            round.set(contestant, figures);
        }
        rounds.push(round);
    }
    ensure!(collector.spans() > 0, "no span of the sampled calls was ever exported");

    let report = Report { rounds: &rounds, envoy: &envoy_version, stage: &stage };
    println!("\n{CONNECTIONS} connections for each\n\n{}", report.tables()?);
    if let Some(file) = &settings.write {
        let text = tokio::fs::read_to_string(file).await?;
        let part = report.markdown()?;
        let text = document::replace(&text, "peers", &part)
            .with_context(|| format!("{} has no place for the tables", file.display()))?;
        tokio::fs::write(file, text).await?;
    }
    for (name, median) in report.ratios() {
        match median {
            Some(median) => println!("ratio {name} {median:.3}"),
            None => println!("ratio {name} unknown: in no round did Envoy's hop add anything"),
        }
    }
    Ok(())
}

/// Sees to it that others don't disturb, as long as its patience lasts.
struct Calm {
    /// How much of the machine they may take, 0 to 1.
    limit: f64,
    patience: Duration,
}

impl Calm {
    /// A turn that others left alone; the least disturbed one where none was.
    async fn turn(&mut self, stage: &Stage<'_>, contestant: Contestant) -> anyhow::Result<Figures> {
        let mut best: Option<Figures> = None;
        loop {
            self.wait().await?;
            let begun = Instant::now();
            let figures = stage.turn(contestant).await?;
            let best = best.get_or_insert(figures);
            if figures.others < best.others {
                *best = figures;
            }
            if best.others <= self.limit || self.patience.is_zero() {
                return Ok(*best);
            }
            self.patience = self.patience.saturating_sub(begun.elapsed());
        }
    }

    /// Waits until others leave the machine alone.
    async fn wait(&mut self) -> anyhow::Result<()> {
        while !self.patience.is_zero() {
            let others = Others::watch(vec![])?;
            tokio::time::sleep(LOOK).await;
            if others.share()? <= self.limit {
                break;
            }
            self.patience = self.patience.saturating_sub(LOOK);
        }
        Ok(())
    }
}

fn print_turn(round: usize, contestant: Contestant, figures: &Figures) -> anyhow::Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    println!(
        "round {round:2}  {:27}{:8.0}/s  {:6.1} µs a call ({:.1} client, {:.1} server, {:.1} hops)  \
         p50 {:.3}  p99 {:.3}  p999 {:.3} ms  {:5.1} µs a call  {:5.1} MiB  others {:.1} %  load {load}",
        contestant.name(),
        figures.throughput,
        figures.cpu_closed.sum(),
        figures.cpu_closed.client,
        figures.cpu_closed.server,
        figures.cpu_closed.hops,
        figures.p50,
        figures.p99,
        figures.p999,
        figures.cpu_open.sum(),
        figures.resident.sum(),
        figures.others * 100.0,
    );
    Ok(())
}

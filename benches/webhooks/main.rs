//! What an acknowledged webhook costs: `omni up`, which answers when it is synced
//! to disk, beside a bare axum handler that checks the same signature and keeps
//! nothing. `just webhooks` runs it.
//!
//! In reading order: [`load`], [`bare`], [`omni`].

mod bare;
mod load;
mod omni;

use std::{
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use benches::{machine, spread::Spread};
use clap::{Parser, Subcommand};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use self::{load::Sender, omni::Omni};

/// What both check signatures with where `omni up` hasn't made it.
const SECRET: &str = "a secret of the bench";

/// Runs `omni up` side by side with a bare axum handler.
#[derive(Parser)]
#[command(name = "webhooks")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// How many rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How many seconds of closed loop `omni up` has a round.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many seconds of closed loop the bare handler has, and the open loop of both.
    #[arg(long, default_value_t = 10)]
    others: u64,
    /// How many webhooks a second the open loop sends.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// How many connections the sender keeps.
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// How many bytes a body has.
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
}

#[derive(Subcommand)]
enum Role {
    /// The bare handler.
    #[command(hide = true)]
    Bare,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match args.role {
        Some(Role::Bare) => bare::serve(SECRET.to_owned()).await,
        None => run(args).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("webhooks: error: {why:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "no rounds");
    println!("{}", machine::description()?);
    let (mut ratios, mut p99s) = (vec![], vec![]);
    for round in 1..=args.rounds {
        let bare = bare_round(&args).await?;
        println!("round {round}: bare {bare:.0}/s");
        let (omni, p99) = omni_round(&args, round).await?;
        ratios.push(omni / bare);
        p99s.push(p99.as_secs_f64() * 1000.0);
        println!("round {round}: ratio {:.3}", omni / bare);
    }
    let show = |values: Vec<f64>| {
        let Spread { min, median, max } = Spread::of(values).context("rounds were run")?;
        anyhow::Ok((format!("{min:.3} / {median:.3} / {max:.3}"), median))
    };
    let (ratios, ratio) = show(ratios)?;
    println!("webhooks_vs_axum_throughput {ratios}, p99 at {}/s {} ms", args.rate, show(p99s)?.0);
    println!("ratio webhooks_vs_axum_throughput {ratio:.3}");
    Ok(())
}

async fn bare_round(args: &Args) -> anyhow::Result<f64> {
    let mut process: Child = Command::new(std::env::current_exe()?)
        .arg("bare")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = process.stdout.take().context("its output is piped")?;
    let address = BufReader::new(output).lines().next_line().await?.context("it ended")?;
    let sender =
        Sender::new(address.parse()?, SECRET.as_bytes(), args.bytes, args.connections, "bare");
    sender.closed(Duration::from_secs(1)).await?;
    let (sent, took) = sender.closed(Duration::from_secs(args.others)).await?;
    let latency = sender.open(args.rate, Duration::from_secs(args.others)).await?;
    println!("  bare at {}/s: {latency}", args.rate);
    Ok(sent as f64 / took.as_secs_f64())
}

async fn omni_round(args: &Args, round: u32) -> anyhow::Result<(f64, Duration)> {
    let omni = Omni::start().await?;
    let sender =
        |run: &str| Sender::new(omni.gateway, &omni.secret, args.bytes, args.connections, run);
    let (warm, _) = sender("warm").closed(Duration::from_secs(1)).await?;
    omni.catch_up(warm).await?;
    let before = machine::cpu_of(omni.pid)?;
    let (sent, took) = sender("closed").closed(Duration::from_secs(args.seconds)).await?;
    let behind = omni.catch_up(warm + sent).await?;
    let cpu = machine::cpu_of(omni.pid)? - before;
    let all = took + behind;
    println!(
        "round {round}: omni {:.0}/s over {took:.1?}, consumed {behind:.2?} later, {:.1} µs of CPU each, {} MiB",
        sent as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / sent as f64,
        machine::resident_of(omni.pid)? >> 20,
    );
    let latency = sender("open").open(args.rate, Duration::from_secs(args.others)).await?;
    println!("  omni at {}/s: {latency}", args.rate);
    Ok((sent as f64 / all.as_secs_f64(), latency.p99))
}

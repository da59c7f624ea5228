//! `just chaos MINUTES`: see [`tests::chaos`].

use std::{process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use tests::{Layout, chaos::Chaos, fault::Fault};

/// Kills the gateway, hook-receiver and audit again and again, each a process of
/// its own, or has the broker fail, while webhooks come in; counts what was lost,
/// doubled or out of order.
#[derive(Parser)]
#[command(name = "chaos")]
struct Args {
    /// For how many minutes.
    #[arg(default_value_t = 15.0)]
    minutes: f64,
    /// On which backends; the real ones must run, and their `env` be loaded.
    #[arg(long, value_enum, default_value_t = On::Embedded)]
    on: On,
    /// What goes wrong.
    #[arg(long, value_enum, default_value_t = Fault::Kills)]
    fault: Fault,
    /// How many webhooks are sent a second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
}

/// The backends.
#[derive(Clone, Copy, ValueEnum)]
enum On {
    /// SQLite, and the broker on it.
    Embedded,
    /// PostgreSQL, Kafka and Consul, as `compose/backends start` told.
    Real,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { minutes, on, fault, rate } = Args::parse();
    let layout = match on {
        On::Embedded => Layout::Serve,
        On::Real => Layout::Real,
    };
    let time = Duration::from_secs_f64(minutes * 60.0);
    let verdict = Chaos { layout, fault, time, rate }.run().await;
    println!("{verdict}");
    if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

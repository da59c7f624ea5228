//! What an event costs from the transaction that it happened in to its consumer's,
//! on the embedded broker and on Kafka, beside a bare producer and consumer of
//! Kafka's; and whether that grows with what is stored. `just events` runs it.
//!
//! In reading order: [`journey`], [`omni`], [`bare`].

mod bare;
mod journey;
mod omni;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use benches::{machine, spread::Spread};
use clap::Parser;

use self::{bare::Bare, journey::Figures, omni::Omni};

/// Sends events through outbox, broker and inbox.
#[derive(Parser)]
#[command(name = "events")]
pub(crate) struct Args {
    /// Kafka, as the setting `events` has it; without it only the embedded broker runs.
    #[arg(long, value_name = "kafka://HOST:PORT")]
    kafka: Option<String>,
    /// How many rounds at each number of stored events.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How many events have gone before, in turn, each more than the last.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    stored: Vec<u64>,
    /// How many events a second the open loop sends.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// How many seconds the open loop takes.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many events are sent at once, to see how many go in a second.
    #[arg(long, default_value_t = 50_000)]
    flood: u64,
    /// How many bytes an event's body has, 8 or more.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("events: error: {why:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    println!("{}", machine::description()?);
    let embedded = Omni::start("embedded:", args.bytes).await?;
    let on_kafka = match &args.kafka {
        None => None,
        Some(kafka) => {
            let omni = Omni::start(kafka, args.bytes).await?;
            Some((omni, Bare::start(kafka, args.bytes).await?))
        }
    };
    for stored in &args.stored {
        embedded.fill(*stored).await?;
        if let Some((omni, _)) = &on_kafka {
            omni.fill(*stored).await?;
        }
        let (mut of_embedded, mut of_kafka, mut of_bare) = (vec![], vec![], vec![]);
        for _ in 0..args.rounds {
            of_embedded.push(Figures::of(&embedded, &args).await?);
            if let Some((omni, bare)) = &on_kafka {
                of_kafka.push(Figures::of(omni, &args).await?);
                of_bare.push(Figures::of(bare, &args).await?);
            }
        }
        show("embedded", *stored, &of_embedded)?;
        if on_kafka.is_some() {
            show("kafka", *stored, &of_kafka)?;
            show("kafka, bare", 0, &of_bare)?;
            let more = of_kafka.iter().zip(&of_bare).map(|(omni, bare)| omni.p99 - bare.p99);
            let more = Spread::of(more).context("rounds were run")?;
            println!("events_kafka_p99_over_bare_ms {}", spread(more));
        }
    }
    embedded.stop().await;
    if let Some((omni, _)) = on_kafka {
        omni.stop().await;
    }
    Ok(())
}

fn show(what: &str, stored: u64, figures: &[Figures]) -> anyhow::Result<()> {
    let of = |value: fn(&Figures) -> f64| -> anyhow::Result<String> {
        Ok(spread(Spread::of(figures.iter().map(value)).context("rounds were run")?))
    };
    println!(
        "{what}, {stored} stored: p50 {} ms, p99 {} ms; {} events/s",
        of(|of| of.p50)?,
        of(|of| of.p99)?,
        of(|of| of.per_second)?,
    );
    Ok(())
}

fn spread(Spread { min, median, max }: Spread) -> String {
    format!("{min:.2} / {median:.2} / {max:.2}")
}

impl Args {
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

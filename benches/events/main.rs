//! What an event costs from the transaction that it happened in to its consumer's,
//! on the embedded broker beside the bare disk, and on Kafka beside a bare producer
//! and consumer of Kafka's; and whether that grows with what is stored. `just
//! events` runs it.
//!
//! In reading order: [`journey`], [`omni`], [`disk`], [`direct`], [`bare`].

mod bare;
mod direct;
mod disk;
mod journey;
mod omni;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use benches::{machine, spread::Spread};
use clap::Parser;

use self::{bare::Bare, direct::Direct, disk::Disk, journey::Figures, omni::Omni};

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
    println!("milliseconds and events a second: min / median / max of {} rounds", args.rounds);
    let embedded = Omni::start("embedded:", args.bytes).await?;
    let disk = Disk::start(args.bytes)?;
    let kafka = match &args.kafka {
        Some(kafka) => Some(Kafka::start(kafka, args.bytes).await?),
        None => None,
    };
    for stored in &args.stored {
        embedded.fill(*stored).await?;
        if let Some(kafka) = &kafka {
            kafka.omni.fill(*stored).await?;
        }
        let (mut of_embedded, mut of_disk, mut of_kafka) = (vec![], vec![], vec![]);
        for _ in 0..args.rounds {
            of_embedded.push(Figures::of(&embedded, &args).await?);
            of_disk.push(Figures::of(&disk, &args).await?);
            if let Some(kafka) = &kafka {
                of_kafka.push(kafka.figures(&args).await?);
            }
        }
        show(&format!("embedded, {stored} stored"), of_embedded.iter())?;
        show("the bare disk", of_disk.iter())?;
        if kafka.is_some() {
            show(&format!("kafka, {stored} stored"), of_kafka.iter().map(|of| &of.omni))?;
            show("kafka, without outbox and inbox", of_kafka.iter().map(|of| &of.direct))?;
            show("kafka, its own clients", of_kafka.iter().map(|of| &of.bare))?;
            let more = Spread::of(of_kafka.iter().map(|of| of.direct.p99 - of.bare.p99));
            let more = spread(more.context("rounds were run")?);
            println!("events_kafka_p99_over_bare {more} ms");
        }
    }
    embedded.stop().await;
    if let Some(kafka) = kafka {
        kafka.omni.stop().await;
    }
    Ok(())
}

/// The ways over Kafka.
struct Kafka {
    omni: Omni,
    direct: Direct,
    bare: Bare,
}

struct OfKafka {
    omni: Figures,
    direct: Figures,
    bare: Figures,
}

impl Kafka {
    async fn start(kafka: &str, bytes: usize) -> anyhow::Result<Self> {
        Ok(Self {
            omni: Omni::start(kafka, bytes).await?,
            direct: Direct::start(kafka, bytes).await?,
            bare: Bare::start(kafka, bytes).await?,
        })
    }

    async fn figures(&self, args: &Args) -> anyhow::Result<OfKafka> {
        Ok(OfKafka {
            omni: Figures::of(&self.omni, args).await?,
            direct: Figures::of(&self.direct, args).await?,
            bare: Figures::of(&self.bare, args).await?,
        })
    }
}

fn show<'a>(what: &str, figures: impl Iterator<Item = &'a Figures> + Clone) -> anyhow::Result<()> {
    let of = |value: fn(&Figures) -> f64| {
        anyhow::Ok(spread(Spread::of(figures.clone().map(value)).context("rounds were run")?))
    };
    println!(
        "{what}: p50 {}, p99 {}; {}/s",
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

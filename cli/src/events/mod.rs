//! `omni events`: topics and their events.

mod dlq;
mod letters;
mod publish;
mod replay;
mod show;
mod story;

use mesh::events::{
    Attributes,
    broker::{self, Delivery, From},
};

use crate::{
    args::{Common, DlqCommand, EventFilter, EventsCommand, EventsTail, Listing},
    config,
    output::{self, Table},
};

/// How many deliveries are read at once.
const BATCH: usize = 100;

/// Runs one of the commands.
pub(crate) async fn run(common: &Common, command: &EventsCommand) -> anyhow::Result<()> {
    match command {
        EventsCommand::Tail(args) => tail(common, args).await,
        EventsCommand::Topics(args) => topics(common, args).await,
        EventsCommand::Groups(args) => groups(common, args).await,
        EventsCommand::Trace(args) => story::run(common, args).await,
        EventsCommand::Dlq(DlqCommand::List(args)) => dlq::list(common, args).await,
        EventsCommand::Dlq(DlqCommand::Show(args)) => dlq::show(common, args).await,
        EventsCommand::Dlq(DlqCommand::Replay(args)) => dlq::replay(common, args).await,
        EventsCommand::Dlq(DlqCommand::Discard(args)) => dlq::discard(common, args).await,
        EventsCommand::Replay(args) => replay::run(common, args).await,
    }
}

/// Prints the events of a topic as they come.
async fn tail(common: &Common, args: &EventsTail) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let broker = broker::broker(&config).await?;
    let from = match args.offset {
        Some(offset) => From::At { partition: args.partition, offset },
        None if args.from_beginning || args.since.is_some() => From::Beginning,
        None => From::Now,
    };
    let mut consumer = broker.tail(&args.topic, from).await?;
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let deliveries = tokio::select! {
            deliveries = consumer.next(BATCH) => deliveries?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        let shown = deliveries.iter().filter(|delivery| wanted(args, delivery));
        for delivery in shown.take(usize::try_from(left).unwrap_or(usize::MAX)) {
            output::line(&if args.json { show::machine(delivery) } else { show::human(delivery) })?;
            left -= 1;
        }
    }
    Ok(())
}

fn wanted(args: &EventsTail, delivery: &Delivery) -> bool {
    match &delivery.event {
        Ok(event) => {
            let recent = args.since.is_none_or(|since| event.attributes.time >= since);
            recent && args.filter.admits(&event.attributes)
        }
        Err(_) => args.filter.is_empty(),
    }
}

impl EventFilter {
    fn is_empty(&self) -> bool {
        self.kind.is_none() && self.source.is_none() && self.correlation_id.is_none()
    }

    fn admits(&self, attributes: &Attributes) -> bool {
        let is = |wanted: &Option<String>, value| wanted.as_deref().is_none_or(|w| w == value);
        is(&self.kind, &*attributes.kind)
            && is(&self.source, &*attributes.source)
            && is(&self.correlation_id, &*attributes.correlationid)
    }
}

/// Lists the topics.
async fn topics(common: &Common, args: &Listing) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let topics = broker::broker(&config).await?.topics().await?;
    if args.json {
        return output::json(&topics);
    }
    let mut table = Table::new(["TOPIC", "PARTITIONS", "EVENTS"]);
    for topic in topics {
        table.row([topic.name, topic.partitions.to_string(), topic.events.to_string()]);
    }
    table.print()
}

/// Shows how far each group has got.
async fn groups(common: &Common, args: &Listing) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let groups = broker::broker(&config).await?.groups().await?;
    if args.json {
        return output::json(&groups);
    }
    let mut table = Table::new(["GROUP", "TOPIC", "PARTITION", "POSITION", "LAG"]);
    for of in groups {
        let numbers = [i64::from(of.partition), of.position, of.lag].map(|n| n.to_string());
        let [partition, position, lag] = numbers;
        table.row([of.group, of.topic, partition, position, lag]);
    }
    table.print()
}

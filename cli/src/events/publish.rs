//! Publishing what operators replay, and writing down that they did.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::Context as _;
use indicatif::ProgressBar;
use mesh::messages::audit::v1::{AuditEvent, Outcome};
use mesh::{
    config::Config,
    events::{
        AUDIT, Event,
        broker::{Broker, Record},
    },
    identity,
};
use tokio::time::Instant;

use crate::args::Rate;

/// How long one publish may take.
const PUBLISH: Duration = Duration::from_secs(30);
/// How many are published at once: a tenth of a second's, or this many.
const BATCH: u32 = 500;

/// Publishes at a rate, and shows how far it has got.
pub(super) struct Publisher<'b> {
    broker: &'b dyn Broker,
    rate: u32,
    /// When the next ones may go out.
    due: Instant,
    bar: ProgressBar,
    done: usize,
}

impl<'b> Publisher<'b> {
    /// Is to publish `count` records.
    pub(super) fn new(broker: &'b dyn Broker, rate: &Rate, count: usize) -> Self {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(count as u64),
            false => ProgressBar::hidden(),
        };
        Self { broker, rate: rate.rate, due: Instant::now(), bar, done: 0 }
    }

    /// Publishes `records`, in their order.
    pub(super) async fn publish(&mut self, records: &[Record]) -> anyhow::Result<()> {
        for batch in records.chunks(self.rate.div_ceil(10).min(BATCH) as usize) {
            tokio::time::sleep_until(self.due).await;
            self.due = Instant::now()
                + Duration::from_secs(1).mul_f64(batch.len() as f64 / f64::from(self.rate));
            publish(self.broker, batch.to_vec()).await.with_context(|| {
                format!(
                    "{} were replayed; once more, without `--again`, replays the rest",
                    self.done
                )
            })?;
            self.done += batch.len();
            self.bar.set_position(self.done as u64);
        }
        Ok(())
    }

    /// How many were published.
    pub(super) fn end(self) -> usize {
        self.bar.finish_and_clear();
        self.done
    }
}

/// Publishes `records` at once.
pub(super) async fn publish(broker: &dyn Broker, records: Vec<Record>) -> anyhow::Result<()> {
    for published in broker.publish(records, PUBLISH).await {
        published?;
    }
    Ok(())
}

/// Who does what to how many events of a topic is in the trail before it happens.
pub(super) async fn audit(
    config: &Config,
    broker: &dyn Broker,
    action: &str,
    (topic, count): (&str, usize),
    reason: String,
) -> anyhow::Result<()> {
    let operator = identity::authority(config)?.identity("operator").await?;
    let message = AuditEvent {
        actor: operator.id().to_string(),
        on_behalf_of: String::new(),
        action: action.to_owned(),
        resource: topic.to_owned(),
        outcome: Outcome::Allowed.into(),
        reason,
        count: i64::try_from(count)?,
    };
    let event = Event::typed("/operators", &message.actor, &message)?;
    publish(broker, vec![Record { topic: AUDIT.to_owned(), event }]).await
}

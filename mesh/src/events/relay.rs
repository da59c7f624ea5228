//! Empties the outbox to the broker, in order. It is a task of the service's
//! own process; of several processes on one database one relays at a time.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    KERNEL_TOPICS,
    broker::Broker,
    outbox::{Outbox, Pending},
};
use crate::{
    Error,
    telemetry::trace::{self, Kind},
};

/// How many events one publish takes.
const BATCH: u64 = 500;
/// How often the outbox is looked at without a sign: for what another process
/// wrote.
const LOOK: Duration = Duration::from_millis(200);
/// How often a process that doesn't lead tries to.
const TRY_TO_LEAD: Duration = Duration::from_millis(500);
/// How long one publish may take before it is tried again.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after a first failure, and after many.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The relay of one service.
pub struct Relay {
    service: Arc<str>,
    outbox: Outbox,
    broker: Arc<dyn Broker>,
    known: HashSet<String>,
}

impl Relay {
    /// A relay from `outbox` to `broker`, as a part of `service`.
    pub fn new(service: &str, outbox: Outbox, broker: Arc<dyn Broker>) -> Self {
        Self { service: service.into(), outbox, broker, known: HashSet::new() }
    }

    /// Relays until `stop`; then goes on until the outbox is empty or `grace` is
    /// over.
    pub async fn run(mut self, stop: CancellationToken, grace: Duration) {
        let mut commits = self.outbox.store().commits();
        let mut pause = FIRST_PAUSE;
        let mut leadership = None;
        let mut last_look = None;
        loop {
            let deadline = match (&mut last_look, stop.is_cancelled()) {
                (_, false) => None,
                (last, true) => Some(*last.get_or_insert_with(|| Instant::now() + grace)),
            };
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                tracing::warn!(
                    pending = self.outbox.pending(),
                    "stopped with a full outbox; it is relayed after the next start"
                );
                return;
            }
            match self.step(&mut leadership).await {
                Ok(Step::Relayed) => pause = FIRST_PAUSE,
                Ok(Step::Empty) if deadline.is_some() => return,
                Ok(Step::Empty) => {
                    pause = FIRST_PAUSE;
                    tokio::select! {
                        // The writer lives as long as the outbox.
                        _ = commits.changed() => {}
                        () = tokio::time::sleep(LOOK) => {}
                        () = stop.cancelled() => {}
                    }
                }
                // Whoever leads relays what is here as well.
                Ok(Step::Follows) if deadline.is_some() => return,
                Ok(Step::Follows) => {
                    tokio::select! {
                        () = tokio::time::sleep(TRY_TO_LEAD) => {}
                        () = stop.cancelled() => {}
                    }
                }
                Err(why) => {
                    tracing::warn!(service = %self.service, %why, pending = self.outbox.pending(), "events wait in the outbox");
                    leadership = leadership.filter(|_| !matches!(why, Error::Database(_)));
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn step(
        &mut self,
        leadership: &mut Option<crate::store::Leadership>,
    ) -> Result<Step, Error> {
        if let Some(held) = leadership
            && !held.holds().await
        {
            *leadership = None;
        }
        if leadership.is_none() {
            *leadership = self.outbox.store().try_lead().await?;
            if leadership.is_none() {
                self.outbox.count().await?;
                return Ok(Step::Follows);
            }
            tracing::debug!(service = %self.service, "relaying");
        }
        let pending = self.outbox.oldest(BATCH).await?;
        if pending.is_empty() {
            self.outbox.count().await?;
            return Ok(Step::Empty);
        }
        self.publish(pending).await?;
        Ok(Step::Relayed)
    }

    /// Publishes `pending`, and forgets those at its beginning that the broker
    /// has: what stands behind a failure is published again, which consumers
    /// notice, rather than lost.
    async fn publish(&mut self, pending: Vec<Pending>) -> Result<(), Error> {
        let topics = pending.iter().map(|p| p.record.topic.as_str()).chain(KERNEL_TOPICS);
        let new: HashSet<&str> = topics.filter(|topic| !self.known.contains(*topic)).collect();
        if !new.is_empty() {
            let new: Vec<String> = new.into_iter().map(str::to_owned).collect();
            self.broker.ensure(&new).await?;
            self.known.extend(new);
        }
        let mut spans = Vec::new();
        let (mut seqs, mut records) = (Vec::new(), Vec::new());
        for Pending { seq, mut record } in pending {
            let traceparent = &mut record.event.attributes.traceparent;
            let parent = trace::parse(traceparent);
            let name = format!("relay {}", record.topic);
            let span = trace::child(&self.service, Kind::Producer, &name, parent.as_ref());
            if let Some(context) = trace::context(&span) {
                *traceparent = trace::format(&context);
                spans.push(span);
            }
            seqs.push(seq);
            records.push(record);
        }
        let results = self.broker.publish(records, PUBLISH_TIMEOUT).await;
        drop(spans);
        let delivered = results.iter().take_while(|result| result.is_ok()).count();
        if let Some(last) = delivered.checked_sub(1) {
            self.outbox.forget(seqs[last]).await?;
        }
        match results.into_iter().find_map(Result::err) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}

enum Step {
    /// Something went out.
    Relayed,
    /// Nothing waits.
    Empty,
    /// Another process relays.
    Follows,
}

//! Empties the outbox to the broker, in order. It is a task of the service's
//! own process; of several processes on one database one relays at a time.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use opentelemetry::metrics::Gauge;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    KERNEL_TOPICS,
    broker::Broker,
    outbox::{Outbox, Pending},
};
use crate::{
    Error,
    backoff::jittered,
    pace::Pace,
    telemetry::{
        label,
        trace::{self, Kind},
    },
};

/// How many events one publish takes.
const BATCH: u64 = 500;
/// How often the outbox is looked at without a sign: for what another process
/// wrote.
const LOOK: Duration = Duration::from_millis(200);
/// How often events are published at most: what comes meanwhile goes together.
const TURN: Duration = Duration::from_millis(2);
/// How often the outbox forgets what is published: a commit that writers needn't
/// wait for more often. After a crash, this much is published again.
const FORGET: Duration = Duration::from_millis(50);
/// How often a process that doesn't lead tries to.
const TRY_TO_LEAD: Duration = Duration::from_millis(500);
/// How long one publish may take before it is tried again.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);
/// After how many failures in a row the broker is only probed, by one event.
const OPEN_AFTER: u32 = 3;
/// How long such a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often what waits is counted.
const COUNT: Duration = Duration::from_secs(5);
/// How long nothing is published to a topic that the broker didn't take anything for.
const TOPIC_PAUSE: Duration = Duration::from_secs(5);
/// How long to wait after a first failure, and after many.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The relay of one service.
pub struct Relay {
    service: Arc<str>,
    outbox: Outbox,
    broker: Arc<dyn Broker>,
    known: HashSet<String>,
    counted: Option<Instant>,
    /// Up to where all is published, or set aside.
    after: i64,
    /// What is published, and not yet forgotten.
    published: Vec<i64>,
    forgotten: Instant,
    /// Up to where events go out one by one, because the broker refused one of a
    /// batch.
    one_by_one_to: Option<i64>,
    /// Topics that the broker takes nothing for, and until when they aren't tried:
    /// others don't wait behind them.
    held: HashMap<String, Instant>,
    /// How often in a row the broker took nothing.
    failures: u32,
    /// 1 while only probes are sent.
    breaker: Gauge<u64>,
}

impl Relay {
    /// A relay from `outbox` to `broker`, as a part of `service`.
    pub fn new(service: &str, outbox: Outbox, broker: Arc<dyn Broker>) -> Self {
        let breaker = opentelemetry::global::meter("omnibridge")
            .u64_gauge("omni.relay.breaker.open")
            .with_description("1 while the broker takes nothing and is only probed")
            .build();
        let (known, service) = (HashSet::new(), service.into());
        Self {
            service,
            outbox,
            broker,
            known,
            counted: None,
            after: 0,
            published: vec![],
            forgotten: Instant::now(),
            one_by_one_to: None,
            held: HashMap::new(),
            failures: 0,
            breaker,
        }
    }

    /// Relays until `stop`; then goes on until the outbox is empty or `grace` is
    /// over.
    pub async fn run(mut self, stop: CancellationToken, grace: Duration) {
        let mut commits = self.outbox.store().commits();
        let mut pause = FIRST_PAUSE;
        let mut leadership = None;
        let mut last_look = None;
        let mut pace = Pace::new(TURN);
        loop {
            pace.turn().await;
            let deadline = match (&mut last_look, stop.is_cancelled()) {
                (_, false) => None,
                (last, true) => Some(*last.get_or_insert_with(|| Instant::now() + grace)),
            };
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                // What isn't forgotten is published again.
                let _ = self.forget().await;
                tracing::warn!(
                    pending = self.outbox.pending(),
                    "stopped with a full outbox; it is relayed after the next start"
                );
                return;
            }
            self.count().await;
            match self.step(&mut leadership, deadline.is_some()).await {
                Ok(Step::Relayed) => pause = FIRST_PAUSE,
                Ok(Step::Empty) if deadline.is_some() => return,
                Ok(Step::Empty) => {
                    pause = FIRST_PAUSE;
                    let rest = if self.published.is_empty() { LOOK } else { FORGET };
                    tokio::select! {
                        () = self.filled(&mut commits) => {}
                        () = tokio::time::sleep(rest) => {}
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
                    leadership = leadership
                        .filter(|_| !matches!(why, Error::Database(_) | Error::NotCommitted(_)));
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Waits for a commit of this process that brought events.
    async fn filled(&self, commits: &mut watch::Receiver<u64>) {
        // The writer lives as long as the outbox.
        while commits.changed().await.is_ok() && self.outbox.pending() == 0 {}
    }

    /// Counts what waits, now and then: others write too, and what was rolled
    /// back was counted.
    async fn count(&mut self) {
        if self.counted.is_some_and(|at| at.elapsed() < COUNT) {
            return;
        }
        self.counted = Some(Instant::now());
        if let Err(why) = self.outbox.count().await {
            tracing::debug!(service = %self.service, %why, "the outbox isn't counted");
        }
    }

    async fn step(
        &mut self,
        leadership: &mut Option<crate::store::Leadership>,
        stopping: bool,
    ) -> Result<Step, Error> {
        if stopping || self.forgotten.elapsed() >= FORGET {
            self.forget().await?;
        }
        if let Some(held) = leadership
            && !held.holds().await
        {
            *leadership = None;
        }
        if leadership.is_none() {
            let Some(led) = self.outbox.store().try_lead().await? else {
                // What this one found of the broker is of the past.
                self.set_failures(0);
                self.held.clear();
                return Ok(Step::Follows);
            };
            tracing::debug!(service = %self.service, "relaying");
            self.forget().await?;
            self.after = 0;
            self.outbox.take_back().await?;
            *leadership = Some(led);
        }
        self.let_go().await?;
        let is_open = self.failures >= OPEN_AFTER;
        let (batch, deadline) = match is_open {
            true => (1, PROBE_TIMEOUT),
            false if self.one_by_one_to.is_some() => (1, PUBLISH_TIMEOUT),
            false => (BATCH, PUBLISH_TIMEOUT),
        };
        let held = self.held.keys().map(String::as_str);
        let pending = self.outbox.oldest(self.after, held, batch).await?;
        if pending.is_empty() {
            return Ok(Step::Empty);
        }
        match self.publish(pending, deadline).await {
            Ok(()) => {
                if is_open {
                    tracing::info!(service = %self.service, "the broker takes events again");
                }
                self.set_failures(0);
                Ok(Step::Relayed)
            }
            Err(why) => {
                if matches!(why, Error::Broker(_)) {
                    self.set_failures(self.failures.saturating_add(1));
                }
                Err(why)
            }
        }
    }

    /// Has topics tried again whose pause is over, from their oldest event on.
    async fn let_go(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.held.values().any(|until| *until <= now) {
            // Others come from among those that went out.
            self.forget().await?;
            self.after = 0;
            self.held.retain(|_, until| *until > now);
        }
        Ok(())
    }

    fn set_failures(&mut self, failures: u32) {
        self.failures = failures;
        let open = u64::from(failures >= OPEN_AFTER);
        self.breaker.record(open, &[label("service", self.service.to_string())]);
    }

    /// Publishes `pending`, and forgets those that the broker has: what failed is
    /// published again. `Ok` where any went out, or was dealt with otherwise.
    async fn publish(&mut self, pending: Vec<Pending>, deadline: Duration) -> Result<(), Error> {
        let last = pending.last().map_or(self.after, |last| last.seq);
        let (mut seqs, mut records) = (Vec::new(), Vec::new());
        for Pending { seq, record } in pending {
            match record {
                Ok(record) => {
                    seqs.push(seq);
                    records.push(record);
                }
                Err(why) => self.set_aside(seq, &why).await?,
            }
        }
        let topics = records.iter().map(|record| record.topic.as_str()).chain(KERNEL_TOPICS);
        let new: HashSet<&str> = topics.filter(|topic| !self.known.contains(*topic)).collect();
        if !new.is_empty() {
            let new: Vec<String> = new.into_iter().map(str::to_owned).collect();
            self.broker.ensure(&new).await?;
            self.known.extend(new);
        }
        let mut spans = Vec::new();
        for record in &mut records {
            let traceparent = &mut record.event.attributes.traceparent;
            let parent = trace::parse(traceparent);
            let name = format!("relay {}", record.topic);
            let span = trace::child(&self.service, Kind::Producer, &name, parent.as_ref());
            if let Some(context) = trace::context(&span) {
                *traceparent = trace::format(&context);
                spans.push(span);
            }
        }
        let results = self.broker.publish(records, deadline).await;
        drop(spans);
        let (alone, mut refused) = (seqs.len() == 1, false);
        let (mut delivered, mut failure) = (0, None);
        for (seq, result) in seqs.into_iter().zip(results) {
            match result {
                Ok(()) => {
                    delivered += 1;
                    self.published.push(seq);
                }
                // Of a batch that went out together, a broker may mean another one.
                Err(Error::Event(_)) if !alone => {
                    refused = true;
                    self.one_by_one_to = Some(seq);
                }
                Err(why @ Error::Event(_)) => self.set_aside(seq, &why).await?,
                Err(Error::Topic { topic, cause }) => {
                    refused = true;
                    tracing::warn!(service = %self.service, topic, cause, "its events wait in the outbox");
                    // It may have been deleted: it is looked for anew.
                    self.known.remove(&topic);
                    self.held.insert(topic, Instant::now() + TOPIC_PAUSE);
                }
                Err(why) => {
                    failure.get_or_insert(why);
                }
            }
            if alone && self.one_by_one_to.is_some_and(|last| last <= seq) {
                self.one_by_one_to = None;
            }
        }
        if refused || failure.is_some() {
            // Others come from among those that went out.
            self.forget().await?;
        } else {
            self.after = last;
        }
        // One that was refused takes others of its batch along; that some went out
        // shows that the broker is there.
        failure.filter(|_| !refused && delivered == 0).map_or(Ok(()), Err)
    }

    /// Has the outbox forget what is published.
    async fn forget(&mut self) -> Result<(), Error> {
        self.forgotten = Instant::now();
        if !self.published.is_empty() {
            self.outbox.forget(self.published.clone()).await?;
            self.published.clear();
        }
        Ok(())
    }

    /// Others don't wait behind an event that will never go out.
    async fn set_aside(&self, seq: i64, why: &Error) -> Result<(), Error> {
        tracing::error!(
            service = %self.service, seq, %why,
            "an event is set aside in the outbox, and is tried again after the next start",
        );
        self.outbox.set_aside(seq, why.to_string()).await
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

//! OmniBridge's way: outbox, relay, broker, subscriber with its inbox, as in a
//! service, all synced.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use mesh::{
    Error,
    config::Config,
    events::{
        Attributes, Event, Handler, Outbox, Outgoing, Relay, Subscriber,
        broker::{self, Broker, Record},
    },
    store::Store,
};
use sea_orm::DatabaseTransaction;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::journey::{self, Arrivals, Way};

/// How many events are published at once to fill a topic.
const BATCH: u64 = 500;
/// How many of them may wait for the consumer.
const AHEAD: u64 = 20_000;
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Omni {
    topic: Arc<str>,
    outbox: Outbox,
    broker: Arc<dyn Broker>,
    arrivals: Arrivals,
    filled: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: TaskTracker,
    _data: Arc<tempfile::TempDir>,
}

impl Omni {
    /// On the broker that `events` names, with events of so many bytes.
    pub(crate) async fn start(events: &str, bytes: usize) -> anyhow::Result<Self> {
        let data = Arc::new(tempfile::tempdir()?);
        let flags = [
            ("data", data.path().display().to_string()),
            ("events", events.to_owned()),
            ("database", "sqlite:".to_owned()),
        ];
        let config = Config::from_sources(None, HashMap::new(), &flags)?;
        let store = Arc::new(Store::open(&config, "bench", None).await?);
        let outbox = Outbox::open("bench", store, None, config.outbox.clone()).await?;
        let broker = broker::broker(&config).await?;
        let topic = journey::topic(&*broker).await?;
        let (arrivals, stop) = (Arrivals::new(bytes), CancellationToken::new());
        let tasks = TaskTracker::new();
        let relay = Relay::new("bench", outbox.clone(), broker.clone());
        tasks.spawn(relay.run(stop.clone(), Duration::from_secs(5)));
        let arriving = Arc::new(Arriving(arrivals.clone()));
        let subscriber =
            Subscriber::new("bench", &*topic, arriving, outbox.clone(), broker.clone());
        tasks.spawn(subscriber.run(stop.clone()));
        let filled = Arc::default();
        Ok(Self { topic, outbox, broker, arrivals, filled, stop, tasks, _data: data })
    }

    /// Lets events go by until there were `count` of them.
    pub(crate) async fn fill(&self, count: u64) -> anyhow::Result<()> {
        let mut arrived = 0;
        while self.filled.load(Ordering::Relaxed) < count {
            let record = |number| Record {
                topic: self.topic.to_string(),
                event: event(number, vec![0; 256]),
            };
            let records = (0..BATCH).map(record).collect();
            for published in self.broker.publish(records, DEADLINE).await {
                published?;
            }
            self.filled.fetch_add(BATCH, Ordering::Relaxed);
            arrived += BATCH;
            if arrived == AHEAD {
                self.arrivals.all(arrived).await.context("while it is filled")?;
                arrived = 0;
            }
        }
        self.arrivals.all(arrived).await?;
        Ok(())
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[async_trait]
impl Way for Omni {
    async fn send(&self, number: u64, body: Vec<u8>) -> anyhow::Result<()> {
        let (outbox, event) = (self.outbox.clone(), event(number, body));
        let outgoing = Outgoing::new(&*self.topic, event);
        let added = self
            .outbox
            .store()
            .transaction(move |tx| Box::pin(async move { outbox.add(tx, vec![outgoing]).await }));
        Ok(added.await?)
    }

    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }
}

/// The event `number`, with this body.
pub(crate) fn event(number: u64, body: Vec<u8>) -> Event {
    let attributes = Attributes {
        id: uuid::Uuid::now_v7().to_string(),
        source: "/bench".into(),
        kind: "bench".into(),
        subject: String::new(),
        time: chrono::Utc::now(),
        datacontenttype: "application/octet-stream".into(),
        dataschema: String::new(),
        correlationid: journey::key(number),
        causationid: String::new(),
        traceparent: String::new(),
        extensions: BTreeMap::new(),
    };
    Event { attributes, data: body.into() }
}

struct Arriving(Arrivals);

#[async_trait]
impl Handler for Arriving {
    async fn handle(&self, _: &DatabaseTransaction, _: &str, event: &Event) -> Result<(), Error> {
        self.0.note([&event.data[..]].into_iter());
        Ok(())
    }

    fn handles_many(&self) -> bool {
        true
    }

    async fn handle_all(
        &self,
        _: &DatabaseTransaction,
        events: &[(&str, &Event)],
    ) -> Result<(), Error> {
        self.0.note(events.iter().map(|(_, event)| &event.data[..]));
        Ok(())
    }
}

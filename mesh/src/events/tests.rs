//! The way of events through a service, on what is embedded.

mod outbox;
mod subscriber;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use watchdog::Watchdog;

use super::{
    Attributes, Event, Handler, Outbox, Relay, Subscriber,
    broker::{self, Broker, From as Begin, Record},
};
use crate::{
    config::{Config, OutboxConfig},
    store::Store,
};

const TOPIC: &str = "hooks.test";
const LETTERS: &str = "dlq.hooks.test";
const SOON: Duration = Duration::from_secs(30);

/// A service's events, on what is embedded.
struct Bench {
    _data: tempfile::TempDir,
    broker: Arc<dyn Broker>,
    outbox: Outbox,
    stop: CancellationToken,
    tasks: TaskTracker,
    _watchdog: Watchdog,
}

impl Bench {
    async fn start() -> Self {
        Self::start_with(OutboxConfig { limit: 1000, bytes: 1 << 20, drop_oldest: vec![] }).await
    }

    async fn start_with(limits: OutboxConfig) -> Self {
        let bench = Self::quiet(limits).await;
        bench.relay();
        bench
    }

    /// Without a relay.
    async fn quiet(limits: OutboxConfig) -> Self {
        let data = tempfile::tempdir().unwrap();
        let flags = [("data", data.path().display().to_string())];
        let config = Config::from_sources(None, HashMap::new(), &flags).unwrap();
        let store = Store::open(&config, "test", None).await.unwrap();
        let outbox = Outbox::open("test", Arc::new(store), None, limits).await.unwrap();
        let broker = broker::broker(&config).await.unwrap();
        broker.ensure(&[TOPIC.to_owned(), LETTERS.to_owned()]).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let _watchdog = Watchdog::start();
        Self { _data: data, broker, outbox, stop, tasks, _watchdog }
    }

    fn relay(&self) -> CancellationToken {
        let stop = self.stop.child_token();
        let relay = Relay::new("test", self.outbox.clone(), self.broker.clone());
        self.tasks.spawn(relay.run(stop.clone(), Duration::from_secs(1)));
        stop
    }

    fn subscribe(&self, handler: Arc<dyn Handler>) -> CancellationToken {
        let (outbox, broker) = (self.outbox.clone(), self.broker.clone());
        let stop = self.stop.child_token();
        let mut subscriber = Subscriber::new("test", TOPIC, handler, outbox, broker);
        subscriber.effect_limit = Duration::from_secs(1);
        self.tasks.spawn(subscriber.run(stop.clone()));
        stop
    }

    async fn publish(&self, events: Vec<Event>) {
        let record = |event| Record { topic: TOPIC.into(), event };
        let records = events.into_iter().map(record).collect();
        for published in self.broker.publish(records, SOON).await {
            published.unwrap();
        }
    }

    /// The dead letters, of which there must be `count`.
    async fn letters(&self, count: usize) -> Vec<Event> {
        self.events(LETTERS, count).await
    }

    /// The events of `topic`, of which there must be `count`.
    async fn events(&self, topic: &str, count: usize) -> Vec<Event> {
        let mut tail = self.broker.tail(topic, Begin::Beginning).await.unwrap();
        let mut events = Vec::new();
        while events.len() < count {
            let next = tokio::time::timeout(SOON, tail.next(100)).await.expect("one comes");
            events.extend(next.unwrap().into_iter().map(|delivery| delivery.event.unwrap()));
        }
        let more = tokio::time::timeout(Duration::from_millis(300), tail.next(1)).await;
        assert!(more.is_err(), "one too many: {more:?}");
        events
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(SOON, self.tasks.wait()).await.expect("the tasks end");
    }
}

fn event(key: &str, id: &str, data: &'static str) -> Event {
    let attributes = Attributes {
        id: id.into(),
        source: "/tests".into(),
        kind: "t".into(),
        subject: "s".into(),
        time: chrono::Utc::now(),
        datacontenttype: "text/plain".into(),
        dataschema: String::new(),
        correlationid: key.into(),
        causationid: "c".into(),
        traceparent: String::new(),
        extensions: BTreeMap::from([("deliveryid".to_owned(), "d".to_owned())]),
    };
    Event { attributes, data: Bytes::from_static(data.as_bytes()) }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

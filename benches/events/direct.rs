//! The broker alone, without outbox and inbox: what Kafka's own clients are to be
//! compared with.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use mesh::{
    config::Config,
    events::broker::{self, Broker, Record},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    journey::{self, Arrivals, Way},
    omni::event,
};

/// How many events are taken at once.
const BATCH: usize = 256;
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Direct {
    topic: Arc<str>,
    broker: Arc<dyn Broker>,
    arrivals: Arrivals,
    _consuming: Arc<AbortOnDropHandle<()>>,
    _data: Arc<tempfile::TempDir>,
}

impl Direct {
    /// To the broker that `events` names, with events of so many bytes.
    pub(crate) async fn start(events: &str, bytes: usize) -> anyhow::Result<Self> {
        let data = Arc::new(tempfile::tempdir()?);
        let flags = [("data", data.path().display().to_string()), ("events", events.to_owned())];
        let config = Config::from_sources(None, HashMap::new(), &flags)?;
        let broker = broker::broker(&config).await?;
        let topic = journey::topic(&*broker).await?;
        let mut consumer = broker.subscribe(&topic, &topic).await?;
        let arrivals = Arrivals::new(bytes);
        let arriving = arrivals.clone();
        let consuming = tokio::spawn(async move {
            loop {
                let consumed = async {
                    let deliveries = consumer.next(BATCH).await?;
                    let events = deliveries.iter().filter_map(|of| of.event.as_ref().ok());
                    arriving.note(events.map(|event| &event.data[..]));
                    consumer.commit(&deliveries.iter().collect::<Vec<_>>()).await
                };
                if let Err(why) = consumed.await {
                    eprintln!("direct: {why}");
                }
            }
        });
        let _consuming = Arc::new(AbortOnDropHandle::new(consuming));
        Ok(Self { topic, broker, arrivals, _consuming, _data: data })
    }
}

#[async_trait]
impl Way for Direct {
    async fn send(&self, number: u64, body: Vec<u8>) -> anyhow::Result<()> {
        let record = Record { topic: self.topic.to_string(), event: event(number, body) };
        let published = self.broker.publish(vec![record], DEADLINE).await;
        Ok(published.into_iter().collect::<Result<(), _>>()?)
    }

    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }
}

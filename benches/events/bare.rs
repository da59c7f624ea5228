//! Kafka's own way: a producer and a consumer of librdkafka, with nothing behind
//! and nothing kept.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mesh::{config::Config, events::broker};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{Consumer as _, StreamConsumer},
    producer::{FutureProducer, FutureRecord},
};

use crate::journey::{self, Arrivals, Way};

#[derive(Clone)]
pub(crate) struct Bare {
    topic: Arc<str>,
    producer: FutureProducer,
    arrivals: Arrivals,
    _consuming: Arc<tokio_util::task::AbortOnDropHandle<()>>,
}

impl Bare {
    /// On the Kafka that `events` names, with events of so many bytes.
    pub(crate) async fn start(events: &str, bytes: usize) -> anyhow::Result<Self> {
        let config =
            Config::from_sources(None, Default::default(), &[("events", events.to_owned())])?;
        let topic = journey::topic(&*broker::broker(&config).await?).await?;
        let servers = events.trim_start_matches("kafka://").split('?').next().unwrap_or_default();
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", servers);
        // What an event must have on its way, with us as well.
        let mut producing = client.clone();
        producing
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("compression.type", "lz4");
        let producer: FutureProducer = producing.create()?;
        let mut consuming = client;
        consuming
            .set("group.id", &*topic)
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "100");
        let consumer: StreamConsumer = consuming.create()?;
        consumer.subscribe(&[&topic])?;
        let arrivals = Arrivals::new(bytes);
        let arriving = arrivals.clone();
        let consuming = tokio::spawn(async move {
            loop {
                match consumer.recv().await {
                    Ok(message) => arriving.note(message.payload().into_iter()),
                    Err(why) => eprintln!("bare: {why}"),
                }
            }
        });
        let _consuming = Arc::new(tokio_util::task::AbortOnDropHandle::new(consuming));
        Ok(Self { topic, producer, arrivals, _consuming })
    }
}

#[async_trait]
impl Way for Bare {
    async fn send(&self, number: u64, body: Vec<u8>) -> anyhow::Result<()> {
        let key = journey::key(number);
        let record = FutureRecord::to(&self.topic).key(&key).payload(&body);
        let sent = self.producer.send(record, Duration::from_secs(60)).await;
        Ok(sent.map(drop).map_err(|(why, _)| why)?)
    }

    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }
}

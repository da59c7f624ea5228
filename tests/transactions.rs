//! Topics of others on the same Kafka, which write them by transactions.

use std::{collections::HashMap, time::Duration};

use mesh::{
    config::Config,
    events::broker::{self, Scan},
};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use tests::{Layout, mesh::new_id, turn::Turn};
use watchdog::Watchdog;

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_ends_with_a_transaction_is_read_to_its_end() {
    let _turn = Turn::on(Layout::Real).await;
    let _watchdog = Watchdog::start();
    let events = std::env::var("OMNI_EVENTS").expect("`compose/backends start` tells it");
    let servers = events.trim_start_matches("kafka://").split('?').next().unwrap().to_owned();
    let config = Config::from_sources(None, HashMap::new(), &[("events", events)]).unwrap();
    let broker = broker::broker(&config).await.unwrap();
    let topic = format!("foreign.{}", new_id());
    broker.ensure(std::slice::from_ref(&topic)).await.unwrap();

    let to = topic.clone();
    let written = tokio::task::spawn_blocking(move || {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", servers).set("transactional.id", &to);
        let producer: BaseProducer = client.create().unwrap();
        producer.init_transactions(LIMIT).unwrap();
        producer.begin_transaction().unwrap();
        for body in ["1", "2"] {
            producer.send(BaseRecord::to(&to).key("k").payload(body)).unwrap();
        }
        producer.commit_transaction(LIMIT).unwrap();
    });
    written.await.unwrap();
    // A commit is promised before its marker stands behind the events; what isn't
    // committed isn't there.
    let marked = async {
        while broker.bounds(&topic).await.unwrap().values().all(|(first, next)| first == next) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, marked).await.expect("the marker is written");

    let mut scan = Scan::of(&*broker, &topic).await.unwrap();
    let mut read = 0;
    while let Some(deliveries) = scan.next().await.unwrap() {
        read += deliveries.len();
    }
    assert_eq!(read, 2);
}

//! What a broker owes its users.

use super::*;

#[tokio::test]
async fn an_event_arrives_as_it_was_published() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    let mut full = event("c1", 1);
    full.attributes.subject = "a subject, with ümlauts".into();
    full.attributes.dataschema = "omnibridge.hooks.v1.Hook".into();
    full.attributes.causationid = "cause".into();
    full.attributes.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into();
    full.attributes.extensions.insert("sessionid".into(), "s1".into());
    full.data = Bytes::from_static(b"\0\xff bytes");
    let mut bare = event("", 2);
    bare.attributes.datacontenttype = String::new();
    bare.data = Bytes::new();
    let sent = [full, bare];
    let records = sent.iter().map(|event| Record { topic: topic.clone(), event: event.clone() });
    publish(&broker, records.collect()).await;

    let mut consumer = broker.subscribe(&unique("g"), &topic).await.unwrap();
    let deliveries = read(consumer.as_mut(), 2).await;
    for (offset, (delivery, event)) in (0..).zip(deliveries.iter().zip(&sent)) {
        assert_eq!(delivery.event.as_ref(), Ok(event));
        assert_eq!((delivery.partition, delivery.offset), (0, offset));
        assert_eq!(delivery.topic, topic);
    }
}

#[tokio::test]
async fn headers_are_those_of_the_kafka_binding() {
    use rdkafka::{
        Message,
        consumer::{Consumer, StreamConsumer},
        message::Headers,
    };
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    let mut records = records(&topic, &["the key"], 7, 1);
    records[0].event.attributes.traceparent = "00-0-0-01".into();
    publish(&broker, records).await;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.servers());
    config.set("group.id", unique("g"));
    config.set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = config.create().unwrap();
    consumer.subscribe(&[&topic]).unwrap();
    let message = tokio::time::timeout(SOON, consumer.recv()).await.unwrap();
    let message = message.unwrap();
    let headers: BTreeMap<_, _> = message
        .headers()
        .unwrap()
        .iter()
        .map(|h| (h.key, std::str::from_utf8(h.value.unwrap()).unwrap()))
        .collect();
    let expected = [
        ("ce_correlationid", "the key"),
        ("ce_id", "the key-7"),
        ("ce_source", "/tests"),
        ("ce_specversion", "1.0"),
        ("ce_time", "2023-11-14T22:13:20.123456Z"),
        ("ce_traceparent", "00-0-0-01"),
        ("ce_type", "omnibridge.test"),
        ("content-type", "application/json"),
        ("traceparent", "00-0-0-01"),
    ];
    assert_eq!(headers, BTreeMap::from(expected));
    assert_eq!(message.key(), Some(&b"the key"[..]));
    assert_eq!(message.payload(), Some(&b"7"[..]));
}

#[tokio::test]
async fn what_is_no_cloud_event_is_delivered_with_its_bytes_and_stops_nothing() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.servers());
    let foreign: FutureProducer = config.create().unwrap();
    let headers = |pairs: &[(&str, &[u8])]| {
        let add = |all: OwnedHeaders, (key, value): &(&str, &[u8])| {
            all.insert(Header { key, value: Some(*value) })
        };
        pairs.iter().fold(OwnedHeaders::new(), add)
    };
    let id_only: [(&str, &[u8]); 2] = [("ce_specversion", b"1.0"), ("ce_id", b"1")];
    let no_utf8: [(&str, &[u8]); 2] = [("ce_specversion", b"1.0"), ("ce_id", b"\xff")];
    for (body, headers) in [
        (Some("no headers"), None),
        (Some("no type"), Some(headers(&id_only))),
        (Some("no UTF-8"), Some(headers(&no_utf8))),
        (None, None),
    ] {
        let record = FutureRecord::<str, str> {
            topic: &topic,
            partition: None,
            payload: body,
            key: Some("k"),
            timestamp: None,
            headers,
        };
        foreign.send(record, SOON).await.unwrap();
    }
    publish(&broker, records(&topic, &["k"], 0, 1)).await;

    let mut consumer = broker.subscribe(&unique("g"), &topic).await.unwrap();
    let deliveries = read(consumer.as_mut(), 5).await;
    let broken = |n: usize| deliveries[n].event.clone().unwrap_err();
    assert_eq!(&broken(0).data[..], b"no headers");
    assert!(broken(0).why.contains("ce_specversion"), "{:?}", broken(0));
    assert_eq!(&broken(1).data[..], b"no type");
    assert!(broken(1).why.contains("`source`"), "{:?}", broken(1));
    assert!(broken(2).why.contains("`ce_id`"), "{:?}", broken(2));
    assert!(broken(3).data.is_empty());
    assert_eq!(ids(&deliveries[4..]), ["k-0"]);
    consumer.commit(&deliveries.iter().collect::<Vec<_>>()).await.unwrap();
}

#[tokio::test]
async fn what_was_committed_is_not_delivered_again_and_what_was_not_is() {
    let cluster = Cluster::start();
    let (broker, topic, group) = (cluster.broker(), unique("hooks."), unique("g"));
    cluster.create(&topic, 2).await;
    let keys = ["a", "b", "c", "d", "e", "f"];
    publish(&broker, records(&topic, &keys, 0, 10)).await;
    let mut first = broker.subscribe(&group, &topic).await.unwrap();
    let deliveries = read(first.as_mut(), 60).await;
    // Of each partition, the first five.
    let done: Vec<_> = deliveries.into_iter().filter(|d| d.offset < 5).collect();
    assert_eq!(done.len(), 10, "both partitions have keys");
    first.commit(&done.iter().collect::<Vec<_>>()).await.unwrap();
    cluster.committed(&group, &topic, &[5, 5]).await;
    drop(first);

    let begun = Instant::now();
    let mut second = broker.subscribe(&group, &topic).await.unwrap();
    let again = read_all(second.as_mut(), 50).await;
    println!("the second member had its first events after {:?}", begun.elapsed());
    assert_eq!(again.len(), 50);
    assert!(again.iter().all(|d| d.offset >= 5));
    assert_eq!(again.iter().filter(|d| d.offset == 5).count(), 2);
}

#[tokio::test]
async fn next_answers_what_is_there_up_to_the_limit_in_order() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    publish(&broker, records(&topic, &["a"], 0, 100)).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    let mut all = Vec::new();
    while all.len() < 100 {
        let some = tokio::time::timeout(SOON, consumer.next(7)).await;
        let some = some.unwrap().unwrap();
        assert!((1..=7).contains(&some.len()));
        all.extend(some);
    }
    assert_ordered(&all, &["a"], 100);
    assert!(all.is_sorted_by_key(|d| d.offset));
}

#[tokio::test]
async fn a_prefix_sees_a_topic_made_later_from_its_first_event_and_never_dead_letters() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let prefix = unique("t");
    let (old, new) = (format!("{prefix}.old"), format!("{prefix}.new"));
    let dead = format!("dlq.{old}");
    cluster.create(&old, 1).await;
    cluster.create(&dead, 1).await;
    publish(&broker, records(&old, &["old"], 0, 1)).await;
    publish(&broker, records(&dead, &["dead"], 0, 1)).await;
    let mut consumer = broker.subscribe(&unique("g"), &format!("{prefix}.*")).await.unwrap();
    assert_eq!(ids(&read(consumer.as_mut(), 1).await), ["old-0"]);

    // The consumer waits while the topic is made, as a subscriber does.
    let reading = tokio::spawn(async move {
        let deliveries = read(consumer.as_mut(), 1).await;
        (deliveries, Instant::now(), consumer)
    });
    cluster.create(&new, 1).await;
    let made = Instant::now();
    publish(&broker, records(&new, &["new"], 0, 1)).await;
    let (deliveries, seen, mut consumer) = reading.await.unwrap();
    let after = seen.duration_since(made);
    println!("a new topic's first event was read {after:?} after the topic was made");
    assert_eq!(ids(&deliveries), ["new-0"]);
    if matches!(cluster, Cluster::Real(_)) {
        assert!(after < Duration::from_secs(2), "{after:?}");
    }
    publish(&broker, records(&dead, &["dead"], 1, 1)).await;
    publish(&broker, records(&old, &["old"], 1, 1)).await;
    let rest = read_all(consumer.as_mut(), 1).await;
    assert_eq!(ids(&rest), ["old-1"]);
}

#[tokio::test]
async fn a_consumer_waits_for_its_first_topic() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let prefix = unique("t");
    for (pattern, topic) in [
        (format!("{prefix}.*"), format!("{prefix}.x")),
        (format!("{prefix}-y"), format!("{prefix}-y")),
    ] {
        let mut consumer = broker.subscribe(&unique("g"), &pattern).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_secs(1), consumer.next(1)).await;
        assert!(waiting.is_err(), "{waiting:?}");
        cluster.create(&topic, 1).await;
        let made = Instant::now();
        publish(&broker, records(&topic, &["k"], 0, 1)).await;
        assert_eq!(ids(&read(consumer.as_mut(), 1).await), ["k-0"]);
        println!("`{pattern}` had its first topic's first event after {:?}", made.elapsed());
    }
}

#[tokio::test]
async fn a_second_member_shares_the_work_and_nothing_is_lost() {
    let cluster = Cluster::start();
    let (broker, topic, group) = (cluster.broker(), unique("hooks."), unique("g"));
    cluster.create(&topic, 4).await;
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let (found, mut all) = tokio::sync::mpsc::channel(10_000);
    let mut by_member = [0, 0];
    let (mut members, mut deliveries) = (Vec::new(), Vec::new());
    for member in 0..2 {
        let mut consumer = broker.subscribe(&group, &topic).await.unwrap();
        let found = found.clone();
        members.push(tokio::spawn(async move {
            loop {
                let deliveries = consumer.next(50).await.unwrap();
                consumer.commit(&deliveries.iter().collect::<Vec<_>>()).await.unwrap();
                for delivery in deliveries {
                    found.send((member, delivery)).await.unwrap();
                }
            }
        }));
        publish(&broker, records(&topic, &keys, member * 10, 10)).await;
        // The first has the group to itself before the second one joins.
        let found = tokio::time::timeout(SOON, all.recv()).await.expect("it is read").unwrap();
        by_member[found.0] += 1;
        deliveries.push(found.1);
    }
    let mut first = 20;
    let deadline = Instant::now() + SOON;
    // Go on publishing until both have had a share.
    while by_member.contains(&0) {
        assert!(Instant::now() < deadline, "{by_member:?}");
        publish(&broker, records(&topic, &keys, first, 5)).await;
        first += 5;
        while let Ok(Some((member, delivery))) =
            tokio::time::timeout(Duration::from_millis(300), all.recv()).await
        {
            by_member[member] += 1;
            deliveries.push(delivery);
        }
    }
    println!("the members had {by_member:?}");
    assert_ordered(&deliveries, &keys, first);
    members.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_tail_begins_where_it_was_told_and_says_when_there_is_no_topic() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let Err(error) = broker.tail(&topic, From::Now).await else {
        panic!("there is no such topic");
    };
    assert!(error.to_string().contains("omni events topics"), "{error}");
    cluster.create(&topic, 3).await;
    publish(&broker, records(&topic, &["a", "b", "c", "d"], 0, 1)).await;
    let mut now = broker.tail(&topic, From::Now).await.unwrap();
    let mut beginning = broker.tail(&topic, From::Beginning).await.unwrap();
    publish(&broker, records(&topic, &["a"], 1, 1)).await;
    let now = read_all(now.as_mut(), 1).await;
    assert_eq!(ids(&now), ["a-1"]);
    assert_eq!(read_all(beginning.as_mut(), 5).await.len(), 5);
    let Delivery { partition, offset, .. } = now[0];
    let mut at = broker.tail(&topic, From::At { partition, offset }).await.unwrap();
    assert_eq!(ids(&read_all(at.as_mut(), 1).await), ["a-1"]);
    let beyond = broker.tail(&topic, From::At { partition, offset: offset + 2 }).await;
    assert!(beyond.err().unwrap().to_string().contains("from 0 to before"));
    let elsewhere = broker.tail(&topic, From::At { partition: 3, offset: 0 }).await;
    assert!(elsewhere.err().unwrap().to_string().contains("no partition 3"));
}

#[tokio::test]
async fn how_far_a_group_is_behind_is_told() {
    let cluster = Cluster::start();
    let (broker, topic, group) = (cluster.broker(), unique("hooks."), unique("g"));
    cluster.create(&topic, 2).await;
    publish(&broker, records(&topic, &["a", "b", "c", "d"], 0, 5)).await;
    let unbegun = broker.group(&group, &topic).await.unwrap();
    assert_eq!(unbegun.iter().map(|of| of.position).collect::<Vec<_>>(), [0, 0]);
    assert_eq!(unbegun.iter().map(|of| of.lag).sum::<i64>(), 20, "{unbegun:?}");
    let mut member = broker.subscribe(&group, &topic).await.unwrap();
    let deliveries = read(member.as_mut(), 20).await;
    member.commit(&deliveries.iter().collect::<Vec<_>>()).await.unwrap();
    let bounds = broker.bounds(&topic).await.unwrap();
    let ends: Vec<i64> = bounds.values().map(|(_, next)| *next).collect();
    cluster.committed(&group, &topic, &ends).await;
    publish(&broker, records(&topic, &["a"], 5, 3)).await;
    let behind = broker.group(&group, &topic).await.unwrap();
    assert_eq!(behind.iter().map(|of| of.position).collect::<Vec<_>>(), ends);
    assert_eq!(behind.iter().map(|of| of.lag).sum::<i64>(), 3, "{behind:?}");
}

#[tokio::test]
async fn topics_are_listed_with_their_partitions_and_events() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 3).await;
    publish(&broker, records(&topic, &["a", "b", "c"], 0, 4)).await;
    let topics = broker.topics().await.unwrap();
    let found: Vec<_> = topics.iter().filter(|t| t.name == topic).collect();
    let expected = TopicStatus { name: topic, partitions: 3, events: 12 };
    assert_eq!(found, [&expected]);
    assert!(topics.iter().all(|t| !t.name.starts_with("__")));
}

#[tokio::test]
async fn ensure_makes_what_is_missing_or_warns_of_a_broker_that_cannot() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let other = unique("hooks.");
    cluster.create(&other, 3).await;
    let both = [topic.clone(), other.clone()];
    broker.ensure(&both).await.unwrap();
    let topics = broker.topics().await.unwrap();
    let partitions = |name: &str| topics.iter().find(|t| t.name == name).map(|t| t.partitions);
    assert_eq!(partitions(&other), Some(3), "what is there stays as it is");
    if let Cluster::Mock(_) = cluster {
        // The mock has no call to make topics.
        assert_eq!(partitions(&topic), None);
        return;
    }
    assert_eq!(partitions(&topic), Some(8));
    broker.ensure(&both).await.unwrap();
    let resource = ResourceSpecifier::Topic(&topic);
    let configs = cluster
        .admin()
        .describe_configs([&resource], &AdminOptions::new())
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    let config = |name: &str| configs.get(name).unwrap().value.clone().unwrap();
    assert_eq!(config("retention.ms"), "2592000000");
    assert_eq!(config("cleanup.policy"), "delete");
    // What the gateway takes, a topic takes.
    let mut large = records(&topic, &["large"], 0, 1);
    large[0].event.data = Bytes::from(vec![b'x'; 6 << 20]);
    publish(&broker, large).await;
    let mut consumer = broker.subscribe(&unique("g"), &topic).await.unwrap();
    let large = read(consumer.as_mut(), 1).await;
    assert_eq!(large[0].event.as_ref().unwrap().data.len(), 6 << 20);
}

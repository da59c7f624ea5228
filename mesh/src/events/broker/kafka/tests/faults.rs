//! What goes wrong: with a record, with the broker, with who waits for it.

use super::*;

#[tokio::test]
async fn a_record_that_is_too_large_is_named_and_holds_up_its_key_only_until_it_is_dealt_with() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    let mut batch = records(&topic, &["a"], 0, 4);
    batch[2].event.data = Bytes::from(vec![b'x'; 9 << 20]);
    let answers = broker.publish(batch.clone(), SOON).await;
    assert!(answers[0].is_ok() && answers[1].is_ok(), "{answers:?}");
    assert!(matches!(&answers[2], Err(Error::Event(why)) if why.contains("a-2")), "{answers:?}");
    assert!(matches!(&answers[3], Err(Error::Broker(_))), "{answers:?}");
    publish(&broker, batch.split_off(3)).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    assert_eq!(ids(&read_all(consumer.as_mut(), 3).await), ["a-0", "a-1", "a-3"]);
}

#[tokio::test]
async fn nothing_overtakes_a_record_that_the_broker_refuses() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    // Two of these don't fit into one request.
    let mut batch = records(&topic, &["a"], 0, 8);
    for (number, record) in batch.iter_mut().enumerate() {
        record.event.data = Bytes::from("0".repeat(600_000) + &number.to_string());
    }
    match &cluster {
        // It checks no sequence numbers, so it is the first round's test.
        Cluster::Mock(mock) => {
            cluster.create(&topic, 1).await;
            let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
            mock.request_errors(RDKafkaApiKey::Produce, &[refusal]);
            let answers = broker.publish(batch.clone(), SOON).await;
            assert!(matches!(answers[0], Err(Error::Event(_))), "{answers:?}");
            assert!(answers.iter().all(Result::is_err), "{answers:?}");
        }
        Cluster::Real(_) => {
            let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
            let new = new.set("max.message.bytes", "700000");
            let admin = cluster.admin();
            let made = admin.create_topics([&new], &AdminOptions::new());
            made.await.unwrap().pop().unwrap().unwrap();
            let good = batch[2].event.data.clone();
            // Its size counts compressed, and noise can't be.
            batch[2].event.data = (0..800_000).map(|_| rand::random::<u8>()).collect();
            let answers = broker.publish(batch.clone(), SOON).await;
            assert!(answers[0].is_ok() && answers[1].is_ok(), "{answers:?}");
            assert!(matches!(answers[2], Err(Error::Event(_))), "{answers:?}");
            assert!(answers[3..].iter().all(Result::is_err), "{answers:?}");
            batch[2].event.data = good;
        }
    }
    publish(&broker, batch).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    assert_ordered(&read_all(consumer.as_mut(), 8).await, &["a"], 8);
}

#[tokio::test]
async fn a_broker_that_is_down_costs_an_error_by_the_deadline_and_no_order() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let keys = ["a", "b", "c"];
    cluster.create(&topic, 4).await;
    publish(&broker, records(&topic, &keys, 0, 5)).await;
    cluster.as_mock().broker_down(-1).unwrap();
    let batch = records(&topic, &keys, 5, 20);
    for _ in 0..3 {
        let begun = Instant::now();
        let answers = broker.publish(batch.clone(), Duration::from_secs(1)).await;
        println!("the broker is down: answered after {:?}", begun.elapsed());
        assert!(answers.iter().all(Result::is_err));
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
    cluster.as_mock().broker_up(-1).unwrap();
    let begun = Instant::now();
    publish(&broker, batch).await;
    println!("the broker is up: delivered after {:?}", begun.elapsed());
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    assert_ordered(&read_all(consumer.as_mut(), 75).await, &keys, 25);
}

#[tokio::test]
async fn records_on_their_way_at_the_deadline_come_twice_but_not_out_of_order() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let keys = ["a", "b", "c"];
    cluster.create(&topic, 2).await;
    publish(&broker, records(&topic, &keys, 0, 1)).await;
    cluster.as_mock().broker_round_trip_time(-1, Duration::from_secs(2)).unwrap();
    let batch = records(&topic, &keys, 1, 50);
    let answers = broker.publish(batch.clone(), Duration::from_millis(500)).await;
    assert!(answers.iter().all(Result::is_err));
    cluster.as_mock().broker_round_trip_time(-1, Duration::ZERO).unwrap();
    publish(&broker, batch).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    let all = read_all(consumer.as_mut(), 153).await;
    println!("{} records for 153 events", all.len());
    assert_ordered(&all, &keys, 51);
}

/// What the relay does: publishes from the first event without an answer.
#[tokio::test]
async fn order_and_every_event_survive_a_broker_that_comes_and_goes() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let keys = ["a", "b", "c", "d", "e"];
    cluster.create(&topic, 3).await;
    let all = records(&topic, &keys, 0, 400);
    let (mut cursor, mut failed, mut turn) = (0, 0, 0_u64);
    let deadline = Instant::now() + Duration::from_secs(120);
    while cursor < all.len() {
        assert!(Instant::now() < deadline, "{cursor} of {}", all.len());
        let batch = all[cursor..all.len().min(cursor + 100)].to_vec();
        let publishing = broker.publish(batch, Duration::from_millis(700));
        let meddling = async {
            turn += 1;
            tokio::time::sleep(Duration::from_millis(turn * 7 % 40)).await;
            let mock = cluster.as_mock();
            match turn % 6 {
                1 => mock.broker_down(-1),
                2 => mock.broker_up(-1),
                3 => mock.broker_round_trip_time(-1, Duration::from_millis(300)),
                4 => mock.broker_round_trip_time(-1, Duration::ZERO),
                _ => Ok(()),
            }
        };
        let (answers, meddled) = tokio::join!(publishing, meddling);
        meddled.unwrap();
        let delivered = answers.iter().take_while(|a| a.is_ok()).count();
        failed += answers.len() - delivered;
        cursor += delivered;
    }
    cluster.as_mock().broker_up(-1).unwrap();
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    let read = read_all(consumer.as_mut(), all.len()).await;
    println!("{turn} publishes, {failed} errors, {} records for {} events", read.len(), all.len());
    assert_ordered(&read, &keys, 400);
}

#[tokio::test]
async fn a_cancelled_publish_leaves_nothing_behind_that_comes_later() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    cluster.as_mock().broker_down(-1).unwrap();
    let publishing = broker.publish(records(&topic, &["a"], 0, 5), SOON);
    let cancelled = tokio::time::timeout(Duration::from_millis(300), publishing).await;
    assert!(cancelled.is_err());
    cluster.as_mock().broker_up(-1).unwrap();
    publish(&broker, records(&topic, &["b"], 0, 1)).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    assert_eq!(ids(&read_all(consumer.as_mut(), 1).await), ["b-0"]);
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_named_before_the_deadline() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    cluster.create(&topic, 1).await;
    cluster.as_mock().topic_error(&topic, unknown).unwrap();
    let answers = broker.publish(records(&topic, &["a"], 0, 2), SOON).await;
    let error = answers[0].as_ref().unwrap_err().to_string();
    assert!(error.contains(&topic) && error.contains("create"), "{error}");
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_is_an_error_that_says_where() {
    let events = "kafka://127.0.0.1:1".to_owned();
    let config = Config::from_sources(None, HashMap::new(), &[("events", events)]).unwrap();
    let broker = KafkaBroker::connect(&config).unwrap();
    for error in
        [broker.ensure(&["t".to_owned()]).await.unwrap_err(), broker.topics().await.unwrap_err()]
    {
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }
    let mut consumer = broker.subscribe("g", "t").await.unwrap();
    let next = tokio::time::timeout(SOON, consumer.next(1)).await.unwrap();
    assert!(next.unwrap_err().to_string().contains("`events`"));
}

#[tokio::test]
async fn a_reader_whose_broker_does_not_answer_begins_again_where_it_was() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    publish(&broker, records(&topic, &["a"], 0, 3)).await;
    let group = unique("g");
    let mut member = broker.subscribe(&group, &topic).await.unwrap();
    let mut tail = broker.tail(&topic, From::Beginning).await.unwrap();
    let deliveries = read(member.as_mut(), 3).await;
    member.commit(&deliveries.iter().collect::<Vec<_>>()).await.unwrap();
    read(tail.as_mut(), 3).await;
    cluster.committed(&group, &topic, &[3]).await;
    cluster.as_mock().broker_down(-1).unwrap();
    for reader in [&mut member, &mut tail] {
        let error = async {
            loop {
                match reader.next(1).await {
                    Ok(end) => assert!(ids(&end).is_empty(), "a tail says that it is at its end"),
                    Err(why) if why.to_string().contains("no broker answers") => break,
                    Err(_) => {}
                }
            }
        };
        tokio::time::timeout(SOON, error).await.unwrap();
    }
    cluster.as_mock().broker_up(-1).unwrap();
    publish(&broker, records(&topic, &["a"], 3, 1)).await;
    for reader in [&mut member, &mut tail] {
        let read = async {
            loop {
                match reader.next(10).await {
                    Ok(deliveries) if !deliveries.is_empty() => break deliveries,
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        };
        let deliveries = tokio::time::timeout(SOON, read).await.unwrap();
        assert_eq!(ids(&deliveries), ["a-3"]);
    }
}

#[test]
fn a_runtime_that_ends_while_the_broker_is_down_waits_only_so_long() {
    let cluster = Cluster::mock();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (broker, topic) = (cluster.broker(), unique("hooks."));
        cluster.create(&topic, 1).await;
        publish(&broker, records(&topic, &["a"], 0, 10)).await;
        let mut consumer = broker.subscribe(&unique("g"), &topic).await.unwrap();
        let deliveries = read(consumer.as_mut(), 10).await;
        cluster.as_mock().broker_down(-1).unwrap();
        consumer.commit(&deliveries.iter().collect::<Vec<_>>()).await.unwrap();
    });
    let begun = Instant::now();
    drop(runtime);
    println!("the runtime ended after {:?}", begun.elapsed());
    assert!(begun.elapsed() < CLOSE_LIMIT + Duration::from_secs(1));
}

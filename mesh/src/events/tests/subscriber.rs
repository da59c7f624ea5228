//! What consumers do with what comes, and with what goes wrong.

use std::sync::Mutex;

use async_trait::async_trait;
use sea_orm::{ActiveValue, DatabaseTransaction, EntityTrait as _, PaginatorTrait as _};

use super::*;
use crate::{
    Error,
    events::{
        Outgoing,
        broker::Delivery,
        inbox::{forget, mark, mark_buried, mark_handled, place},
    },
};

type Fate = Box<dyn Fn(&Event, usize) -> Result<(), Error> + Send + Sync>;

/// Has seen what; `fate` decides, by the event and how often it was tried.
struct Seen {
    tries: Mutex<Vec<String>>,
    fate: Fate,
    /// An event whose effect hangs the first so many times.
    hangs: Option<(&'static str, usize)>,
}

impl Seen {
    fn new(fate: impl Fn(&Event, usize) -> Result<(), Error> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { tries: Mutex::default(), fate: Box::new(fate), hangs: None })
    }

    fn tries(&self) -> Vec<String> {
        self.tries.lock().unwrap().clone()
    }
}

#[async_trait]
impl Handler for Seen {
    async fn handle(&self, _: &DatabaseTransaction, _: &str, event: &Event) -> Result<(), Error> {
        let id = event.attributes.id.clone();
        let nth = {
            let mut tries = self.tries.lock().unwrap();
            tries.push(id.clone());
            tries.iter().filter(|tried| **tried == id).count()
        };
        if self.hangs.is_some_and(|(hangs, times)| hangs == id && nth <= times) {
            std::future::pending::<()>().await;
        }
        (self.fate)(event, nth)
    }

    fn handles_many(&self) -> bool {
        true
    }
}

fn poison(event: &Event, _: usize) -> Result<(), Error> {
    if event.data == "poison" { Err(Error::Event("no good".into())) } else { Ok(()) }
}

#[tokio::test]
async fn poison_goes_to_the_dead_letters_and_holds_back_its_own_key_only() {
    let bench = Bench::start().await;
    let seen = Seen::new(poison);
    bench.subscribe(seen.clone());
    let poisonous = event("a", "a1", "poison");
    let (a2, b1) = (event("a", "a2", ""), event("b", "b1", ""));
    bench.publish(vec![poisonous.clone(), a2, b1]).await;
    until("the others are handled", || seen.tries().len() == 8).await;
    assert_eq!(seen.tries(), ["a1", "a1", "b1", "a1", "a1", "a1", "a1", "a2"], "first together");
    let letters = bench.letters(1).await;
    let mut letter = letters[0].clone();
    let said: Vec<_> = ["reason", "topic", "partition", "offset", "group", "attempts"]
        .map(|what| letter.attributes.extensions.remove(&format!("dlq{what}")).unwrap())
        .into();
    assert_eq!(said, ["event: no good", TOPIC, "0", "1", "test.hooks.test", "5"]);
    assert!(letter.attributes.extensions.remove("dlqtime").is_some());
    assert_eq!(letter, poisonous, "otherwise it is as it was");
    bench.end().await;
}

#[tokio::test]
async fn a_version_that_cant_be_read_is_given_up_on_at_once() {
    let bench = Bench::start().await;
    let schema = |name: &str| Error::Schema { found: name.into(), expected: "t.v1.T".into() };
    let seen = Seen::new(move |event, _| match &*event.attributes.dataschema {
        "t.v2.T" => Err(schema("t.v2.T")),
        _ => Ok(()),
    });
    bench.subscribe(seen.clone());
    let mut newer = event("a", "a1", "");
    newer.attributes.dataschema = "t.v2.T".into();
    bench.publish(vec![newer, event("a", "a2", "")]).await;
    until("the next one is handled", || seen.tries().last().is_some_and(|id| id == "a2")).await;
    let letter = bench.letters(1).await.remove(0);
    let said = &letter.attributes.extensions;
    assert_eq!(said["dlqattempts"], "1");
    assert!(said["dlqreason"].contains("it holds `t.v2.T`"), "{said:?}");
    bench.end().await;
}

#[tokio::test]
async fn a_handler_that_panics_fails_its_event_and_nothing_else() {
    let bench = Bench::start().await;
    let seen = Seen::new(|event, _| {
        assert!(event.data != "poison", "no\0good");
        Ok(())
    });
    bench.subscribe(seen.clone());
    bench
        .publish(vec![event("a", "a1", "poison"), event("a", "a2", ""), event("b", "b1", "")])
        .await;
    until("the others are handled", || seen.tries().last().is_some_and(|id| id == "a2")).await;
    let letter = bench.letters(1).await.remove(0);
    let said = &letter.attributes.extensions["dlqreason"];
    assert_eq!(said, "event: its handler panicked: no\u{fffd}good", "as a header can have it");
    assert_eq!(letter.attributes.extensions["dlqattempts"], "5");
    bench.end().await;
}

#[tokio::test]
async fn what_can_not_be_buried_yet_is_not_passed_over() {
    let limits = OutboxConfig { limit: 1, bytes: 1 << 20, drop_oldest: vec![] };
    let bench = Bench::quiet(limits).await;
    let (inside, full) = (bench.outbox.clone(), Outgoing::new("other", event("k", "1", "")));
    let fill = bench
        .outbox
        .store()
        .transaction(move |tx| Box::pin(async move { inside.add(tx, vec![full]).await }));
    fill.await.unwrap();
    let seen = Seen::new(poison);
    bench.subscribe(seen.clone());
    bench.publish(vec![event("a", "a1", "poison"), event("a", "a2", "")]).await;
    until("its last try is over", || seen.tries().len() > 6).await;
    assert!(!seen.tries().contains(&"a2".to_owned()), "it keeps its place: {:?}", seen.tries());
    bench.letters(0).await;
    bench.relay();
    assert_eq!(bench.letters(1).await[0].attributes.id, "a1");
    until("the next one is handled", || seen.tries().contains(&"a2".to_owned())).await;
    bench.end().await;
}

#[tokio::test]
async fn a_replay_is_handled_once_and_a_second_one_changes_nothing() {
    let bench = Bench::start().await;
    let seen = Seen::new(poison);
    let first = bench.subscribe(seen.clone());
    bench.publish(vec![event("a", "a1", "poison")]).await;
    bench.letters(1).await;
    bench.publish(vec![event("a", "a1", "poison")]).await;
    bench.letters(2).await;
    assert_eq!(seen.tries().len(), 11, "a replay that fails is buried again");
    first.cancel();

    let well = Seen::new(|_, _| Ok(()));
    bench.subscribe(well.clone());
    bench.publish(vec![event("a", "a1", "poison")]).await;
    until("the replay is handled", || well.tries().len() == 1).await;
    bench.publish(vec![event("a", "a1", "poison"), event("a", "a2", "")]).await;
    until("what comes behind it is", || well.tries().len() >= 2).await;
    assert_eq!(well.tries(), ["a1", "a2"]);
    bench.letters(2).await;
    bench.end().await;
}

#[tokio::test]
async fn what_was_buried_is_not_handled_when_its_own_record_comes_again() {
    let bench = Bench::start().await;
    let at = |offset| {
        let event = Ok(event("a", "a1", ""));
        Delivery { topic: TOPIC.into(), partition: 0, offset, event }
    };
    let attributes = event("a", "a1", "").attributes;
    let work = bench.outbox.store().transaction(move |tx| {
        Box::pin(async move {
            assert!(mark_buried(tx, "g", &attributes, place(&at(1))).await?);
            assert!(
                !mark_buried(tx, "g", &attributes, place(&at(1))).await?,
                "one letter is enough"
            );
            assert!(
                !mark_handled(tx, "g", &attributes, &at(1)).await?,
                "a crash before the commit"
            );
            assert!(mark_handled(tx, "g", &attributes, &at(2)).await?, "a replay");
            assert!(!mark_handled(tx, "g", &attributes, &at(3)).await?, "it was handled");
            assert!(!mark_buried(tx, "g", &attributes, place(&at(3))).await?, "so it isn't buried");
            Ok::<_, Error>(())
        })
    });
    work.await.unwrap();
    assert_eq!(mark::Entity::find().count(bench.outbox.store().read()).await.unwrap(), 1);
    bench.end().await;
}

#[tokio::test]
async fn a_database_or_broker_that_is_away_is_waited_for_and_buries_nothing() {
    let bench = Bench::start().await;
    let away = |_: &Event, nth| {
        if nth <= 6 { Err(Error::Broker("away".into())) } else { Ok(()) }
    };
    let seen = Seen::new(away);
    bench.subscribe(seen.clone());
    bench.publish(vec![event("a", "a1", ""), event("b", "b1", "")]).await;
    until("both are handled", || {
        seen.tries().ends_with(&["b1".to_owned()]) && seen.tries().len() > 12
    })
    .await;
    bench.letters(0).await;
    bench.end().await;
}

#[tokio::test]
async fn an_effect_that_hangs_is_cut_off_and_others_go_on() {
    let bench = Bench::start().await;
    let hangs =
        Seen { tries: Mutex::default(), fate: Box::new(|_, _| Ok(())), hangs: Some(("a1", 2)) };
    let seen = Arc::new(hangs);
    bench.subscribe(seen.clone());
    bench.publish(vec![event("a", "a1", ""), event("b", "b1", "")]).await;
    until("both are handled", || seen.tries().len() == 4).await;
    assert_eq!(seen.tries(), ["a1", "a1", "b1", "a1"], "together, alone, and again");
    bench.letters(0).await;
    bench.end().await;
}

#[tokio::test]
async fn marks_that_no_topic_can_bring_again_are_forgotten() {
    let bench = Bench::start().await;
    let marks = |ago: i64, ids: std::ops::Range<u32>| {
        let at = chrono::Utc::now() - chrono::TimeDelta::days(ago);
        ids.map(move |id| mark::ActiveModel {
            consumer: ActiveValue::Set("g".into()),
            source: ActiveValue::Set("/tests".into()),
            event_id: ActiveValue::Set(id.to_string()),
            handled_at: ActiveValue::Set(at + chrono::TimeDelta::milliseconds(id.into())),
            buried_at: ActiveValue::Set(None),
        })
    };
    let old: Vec<_> = marks(70, 0..3).chain(marks(60, 3..5)).collect();
    let work = bench.outbox.store().transaction(move |tx| {
        Box::pin(async move {
            mark::Entity::insert_many(old).exec_without_returning(tx).await?;
            forget(tx, 2).await?;
            assert_eq!(mark::Entity::find().count(tx).await?, 3, "two at a time");
            forget(tx, 2).await?;
            forget(tx, 2).await?;
            assert_eq!(mark::Entity::find().count(tx).await?, 2, "what is young enough stays");
            Ok::<_, Error>(())
        })
    });
    work.await.unwrap();
    bench.end().await;
}

#[tokio::test]
async fn an_effect_that_always_hangs_is_buried_and_those_before_it_keep_theirs() {
    let bench = Bench::start().await;
    let tries = Mutex::default();
    let seen = Arc::new(Seen { tries, fate: Box::new(|_, _| Ok(())), hangs: Some(("a2", 99)) });
    bench.subscribe(seen.clone());
    let large = Event { data: vec![b'x'; 1000].into(), ..event("a", "a2", "") };
    bench.publish(vec![event("a", "a1", ""), large, event("a", "a3", "")]).await;
    let letters = bench.letters(1).await;
    assert_eq!(letters[0].attributes.id, "a2");
    until("what stood behind it is handled", || seen.tries().last().unwrap() == "a3").await;
    let done = bench.outbox.store().read();
    assert_eq!(mark::Entity::find().count(done).await.unwrap(), 3, "a1 and a3, and a2 as buried");
    until_committed(&bench, 3).await;
    bench.end().await;
}

/// `OMNI_TEST_EVENTS` is how many there are (3,000 unless set).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_poison_and_nothing_else_is_dead_and_comes_back_as_it_was() {
    let count = std::env::var("OMNI_TEST_EVENTS").map_or(3000, |count| count.parse().unwrap());
    let bench = Bench::start().await;
    let is_poison = |number: usize| number.is_multiple_of(100);
    let all: Vec<Event> = (0..count)
        .map(|number| {
            let mut event = event(&number.to_string(), &number.to_string(), "");
            let data = if is_poison(number) { "poison" } else { "" };
            event.data = format!("{data} {number} \u{0} é").into();
            event
        })
        .collect();
    let poisonous: HashMap<String, Event> = (0..count)
        .filter(|number| is_poison(*number))
        .map(|number| (number.to_string(), all[number].clone()))
        .collect();
    let seen = Seen::new(|event, _| match event.data.starts_with(b"poison") {
        true => Err(Error::Event("no good".into())),
        false => Ok(()),
    });
    let first = bench.subscribe(seen.clone());
    for some in all.chunks(1000) {
        bench.publish(some.to_vec()).await;
    }
    let letters = bench.letters(poisonous.len()).await;
    until_committed(&bench, count.try_into().unwrap()).await;
    let handled: std::collections::HashSet<String> = seen.tries().into_iter().collect();
    assert_eq!(handled.len(), count);
    first.cancel();

    let originals: Vec<Event> = letters
        .into_iter()
        .map(|mut letter| {
            letter.attributes.extensions.retain(|name, _| !name.starts_with("dlq"));
            letter
        })
        .collect();
    for original in &originals {
        assert_eq!(Some(original), poisonous.get(&original.attributes.id), "byte for byte");
    }
    let well = Seen::new(|_, _| Ok(()));
    bench.subscribe(well.clone());
    bench.publish(originals.clone()).await;
    until("the replay is handled", || well.tries().len() == poisonous.len()).await;
    bench.publish(originals).await;
    bench.publish(vec![event("last", "last", "")]).await;
    until("what comes behind the second one is", || well.tries().contains(&"last".into())).await;
    assert_eq!(well.tries().len(), poisonous.len() + 1, "it changes nothing");
    bench.letters(poisonous.len()).await;
    bench.end().await;
}

/// Waits until the group is done with the first `count` events of the topic.
async fn until_committed(bench: &Bench, count: i64) {
    let begun = Instant::now();
    loop {
        let groups = bench.broker.group("test.hooks.test", TOPIC).await.unwrap();
        if groups.iter().any(|of| of.topic == TOPIC && of.position > count) {
            return;
        }
        assert!(begun.elapsed() < SOON, "{groups:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

//! The client against a fake agent, and the rules of following against a
//! script, with time paused.

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
};

use fake_consul::FakeConsul;
use futures::future::BoxFuture;
use tokio::{sync::watch, time::Instant};

use super::{
    endpoints::{CaRoots, CatalogServices, HealthConnect},
    follow::Follow,
    *,
};

fn config(url: &str, token: Option<&str>) -> Config {
    let mut flags = vec![("registry", url.to_owned())];
    flags.extend(token.map(|token| ("consul.token", token.to_owned())));
    Config::from_sources(None, HashMap::new(), &flags).unwrap()
}

#[test]
fn an_address_that_is_none_is_refused_with_its_setting() {
    for url in ["consul:", "consul://", "consul://h/x", "consul://u:p@h", "consuls://h:1"] {
        let error = Consul::from_config(&config(url, None)).unwrap_err().to_string();
        assert!(error.contains("`registry`"), "{error}");
    }
    let consul = Consul::from_config(&config("consul://[::1]", None)).unwrap();
    assert_eq!(consul.address, "http://[::1]:8500");
}

#[tokio::test]
async fn the_token_is_sent_and_never_shown() {
    let agent = FakeConsul::start().await;
    agent.require_token("s3cret");
    let without = Consul::from_config(&config(&agent.url(), None)).unwrap();
    let error = without.get(CatalogServices { features: None }).await.unwrap_err();
    assert!(error.to_string().contains("consul.token"), "{error}");

    let with = Consul::from_config(&config(&agent.url(), Some("s3cret"))).unwrap();
    with.get(CatalogServices { features: None }).await.unwrap();
    agent.fail_with(500);
    let error = with.get(CatalogServices { features: None }).await.unwrap_err();
    assert!(!format!("{with:?} {:?} {error:?}", with.http).contains("s3cret"));
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_named_with_what_to_do() {
    let mut agent = FakeConsul::start().await;
    agent.stop().await;
    let consul = Consul::from_config(&config(&agent.url(), None)).unwrap();
    let error = consul.get(CaRoots { features: None }).await.unwrap_err().to_string();
    for said in ["agent/connect/ca/roots", "refused", "`registry`"] {
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[tokio::test]
async fn a_blocking_query_that_hangs_ends_by_its_own_deadline() {
    let agent = FakeConsul::start().await;
    agent.hang();
    let consul = Consul {
        http: reqwest::Client::builder().tls_certs_only([]).build().expect("it needs nothing"),
        address: agent.url().replace("consul:", "http:"),
        wait: Duration::from_millis(200),
    };
    let since = Since { index: 1, wait: None };
    let began = Instant::now();
    let request = HealthConnect { service: "a".into(), features: consul.blocking(since) };
    let ended = tokio::time::timeout(WAIT, consul.get(request)).await;
    ended.expect("by its own deadline").unwrap_err();
    assert!(began.elapsed() >= consul.wait, "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_answer_without_end_is_given_up_on() {
    let agent = FakeConsul::start().await;
    agent.set_key("large", &"x".repeat(MAX_ANSWER_BYTES));
    let consul = Consul::from_config(&config(&agent.url(), None)).unwrap();
    let request =
        consulrs::api::kv::requests::ReadKeyRequest { key: "large".into(), ..Default::default() };
    let error = consul.get(request).await.unwrap_err().to_string();
    assert!(error.contains("larger than"), "{error}");
}

/// What the script answers: the index and the value, or an error.
type Step = Result<(u64, &'static str), ()>;

type Script = Box<dyn FnMut(Since) -> BoxFuture<'static, Scripted> + Send>;
type Scripted = Result<Answer<&'static str>, Error>;
/// What was asked for, and when.
type Asked = Arc<Mutex<Vec<(Instant, Since)>>>;

/// A follow of `steps`; after the last one nothing is answered.
fn script(steps: impl IntoIterator<Item = Step>) -> (Follow<Script, &'static str>, Asked) {
    let asked = Asked::default();
    let log = asked.clone();
    let mut steps: VecDeque<Step> = steps.into_iter().collect();
    let query = move |since: Since| -> BoxFuture<'static, Scripted> {
        log.lock().unwrap().push((Instant::now(), since));
        let step = steps.pop_front();
        Box::pin(async move {
            match step {
                Some(Ok((index, value))) => {
                    if since.index == index {
                        // As the agent does, holds what is known already.
                        tokio::time::sleep(since.wait.unwrap_or(WAIT)).await;
                    }
                    Ok(Answer { value, index })
                }
                Some(Err(())) => Err(Error::Registry("scripted".into())),
                None => std::future::pending().await,
            }
        })
    };
    let follow = Follow::new("script", Box::new(query) as Script, |value| value.is_empty());
    (follow, asked)
}

fn indexes(asked: &Asked) -> Vec<u64> {
    asked.lock().unwrap().iter().map(|(_, since)| since.index).collect()
}

#[tokio::test(start_paused = true)]
async fn each_change_is_answered_once_and_asked_for_from_its_index() {
    let (mut follow, asked) = script([Ok((5, "a")), Ok((5, "a")), Ok((7, "b"))]);
    assert_eq!(follow.next().await, "a");
    assert_eq!(follow.next().await, "b");
    assert_eq!(indexes(&asked), [0, 5, 5]);
}

#[tokio::test(start_paused = true)]
async fn an_index_of_zero_is_never_asked_from() {
    let (mut follow, asked) = script([Ok((0, "a")), Ok((0, "b"))]);
    assert_eq!(follow.next().await, "a");
    assert_eq!(follow.next().await, "b");
    assert_eq!(indexes(&asked), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_index_that_goes_backwards_begins_again_at_zero() {
    let (mut follow, asked) = script([Ok((9, "a")), Ok((3, "b")), Ok((3, "b")), Ok((4, "c"))]);
    for value in ["a", "b", "c"] {
        assert_eq!(follow.next().await, value);
    }
    assert_eq!(indexes(&asked), [0, 9, 0, 3]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_is_believed_when_the_index_advanced() {
    let (mut follow, _) = script([Ok((5, "a")), Ok((6, ""))]);
    assert_eq!(follow.next().await, "a");
    let began = Instant::now();
    assert_eq!(follow.next().await, "");
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_after_an_index_reset_must_hold_for_sixty_seconds() {
    // The index moves on meanwhile: other services register.
    let empties = (1..100).map(|n| Ok((2 + n / 4, "")));
    let (mut follow, _) = script([Ok((50, "a"))].into_iter().chain(empties));
    assert_eq!(follow.next().await, "a");
    let began = Instant::now();
    assert_eq!(follow.next().await, "");
    let held = began.elapsed().as_secs();
    assert!((60..70).contains(&held), "{held} s");
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_within_sixty_seconds_is_never_missed() {
    let (mut follow, _) =
        script([Ok((50, "a")), Ok((2, "")), Ok((2, "")), Ok((3, "b")), Ok((4, ""))]);
    assert_eq!(follow.next().await, "a");
    assert_eq!(follow.next().await, "b");
    // The doubt is over with the first answer that isn't empty.
    assert_eq!(follow.next().await, "");
}

#[tokio::test(start_paused = true)]
async fn after_an_error_the_last_value_stays_and_pauses_grow_to_a_limit() {
    let errors = std::iter::repeat_n(Err(()), 12);
    let (follow, asked) = script([Ok((5, "a"))].into_iter().chain(errors).chain([Ok((6, "b"))]));
    let (values, mut watched) = watch::channel("");
    tokio::spawn(async move { follow.publish(values).await });
    watched.wait_for(|value| *value == "a").await.unwrap();
    watched.changed().await.unwrap();
    assert_eq!(*watched.borrow(), "b");

    let asked = asked.lock().unwrap().clone();
    let pauses: Vec<_> = asked.windows(2).map(|w| (w[1].0 - w[0].0).as_millis()).collect();
    assert!((50..=110).contains(&pauses[1]), "{pauses:?}");
    assert!(pauses[9..].iter().all(|pause| (2500..=5010).contains(pause)), "{pauses:?}");
    // Not held: a Consul that lost its index would hold it for the whole wait.
    assert!(asked[2..].iter().all(|(_, since)| since.index == 0));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_hold_queries_is_asked_once_a_second() {
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let query = move |_| {
        *count.lock().unwrap() += 1;
        async { Ok(Answer { value: "a", index: 5 }) }
    };
    let mut follow = Follow::new("unheld", query, |value: &&str| value.is_empty());
    let _ = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            follow.next().await;
        }
    })
    .await;
    assert!((9..=13).contains(&*asked.lock().unwrap()), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_after_an_outage_must_hold_for_fifteen_seconds() {
    // Its index advanced: the agent took its services out of the catalog.
    let empties = (1..20).map(|n| Ok((60 + n, "")));
    let (mut follow, _) = script([Ok((50, "a")), Err(())].into_iter().chain(empties.clone()));
    assert_eq!(follow.next().await, "a");
    let began = Instant::now();
    // Answers come as they do while other services register again.
    let next = tokio::time::timeout(Duration::from_secs(14), follow.next());
    assert!(next.await.is_err(), "believed after {:?}", began.elapsed());

    let back = [Ok((61, "")), Ok((62, "")), Ok((63, "b")), Ok((64, ""))];
    let (mut follow, _) = script([Ok((50, "a")), Err(())].into_iter().chain(back));
    for value in ["a", "b", ""] {
        assert_eq!(follow.next().await, value);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_comes_again_begins_the_doubt_again() {
    let outage = [Err(()), Ok((60, ""))];
    let flapping = std::iter::repeat_n(outage, 100).flatten();
    let (mut follow, asked) = script([Ok((50, "a"))].into_iter().chain(flapping));
    assert_eq!(follow.next().await, "a");
    let next = tokio::time::timeout(Duration::from_secs(3600), follow.next());
    assert!(next.await.is_err(), "what flaps is never believed");
    assert_eq!(asked.lock().unwrap().len(), 202);
}

#[tokio::test(start_paused = true)]
async fn after_an_hour_without_consul_the_last_value_stays_and_the_next_comes_within_seconds() {
    let back = Instant::now() + Duration::from_secs(3600);
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let query = move |since: Since| {
        *count.lock().unwrap() += 1;
        async move {
            if Instant::now() < back && Instant::now() > back - Duration::from_secs(3599) {
                return Err(Error::Registry("scripted".into()));
            }
            let index = if Instant::now() < back { 5 } else { 9 };
            if since.index == index {
                tokio::time::sleep(since.wait.unwrap_or(WAIT)).await;
            }
            Ok(Answer { value: if index == 5 { "a" } else { "b" }, index })
        }
    };
    let follow = Follow::new("script", query, |value: &&str| value.is_empty());
    let (values, mut watched) = watch::channel("");
    tokio::spawn(async move { follow.publish(values).await });
    watched.wait_for(|value| *value == "a").await.unwrap();
    watched.changed().await.unwrap();
    assert_eq!(*watched.borrow(), "b");
    let late = Instant::now() - back;
    assert!(late <= Duration::from_secs(5), "{late:?} after Consul's return");
    // One question in 2.5 to 5 s, and some more at first.
    let asked = *asked.lock().unwrap();
    assert!((700..1500).contains(&asked), "{asked} questions");
}

#[tokio::test(start_paused = true)]
async fn a_consul_that_answers_everything_at_once_is_asked_twenty_times_a_second() {
    let changing = |n: u64| n + 1;
    // Two servers behind one address, each with an index of its own.
    let alternating = |n: u64| if n.is_multiple_of(2) { 100 } else { 7 };
    let indexes: [fn(u64) -> u64; 2] = [changing, alternating];
    for index in indexes {
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let query = move |_| {
            let mut asked = count.lock().unwrap();
            *asked += 1;
            let index = index(*asked);
            async move { Ok(Answer { value: "a", index }) }
        };
        let mut follow = Follow::new("restless", query, |value: &&str| value.is_empty());
        let minute = async {
            loop {
                follow.next().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(60), minute).await;
        let asked = *asked.lock().unwrap();
        assert!(asked <= 60 * 20 + 100 + 1, "{asked} questions in a minute");
    }
}

#[tokio::test(start_paused = true)]
async fn a_consul_that_fails_every_other_time_is_asked_twenty_times_a_second_at_most() {
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let query = move |_| {
        let mut asked = count.lock().unwrap();
        *asked += 1;
        let failing = *asked % 2 == 0;
        async move {
            match failing {
                true => Err(Error::Registry("scripted".into())),
                false => Ok(Answer { value: "a", index: 5 }),
            }
        }
    };
    let mut follow = Follow::new("flapping", query, |value: &&str| value.is_empty());
    let minute = async {
        loop {
            follow.next().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(60), minute).await;
    let asked = *asked.lock().unwrap();
    assert!(asked <= 60 * 20 + 100 + 1, "{asked} questions in a minute");
}

#[tokio::test(start_paused = true)]
async fn it_stops_when_nobody_listens() {
    let (follow, _) = script([Ok((5, "a"))]);
    let (values, watched) = watch::channel("");
    let following = tokio::spawn(async move { follow.publish(values).await });
    drop(watched);
    tokio::time::timeout(Duration::from_secs(1), following).await.unwrap().unwrap();
}

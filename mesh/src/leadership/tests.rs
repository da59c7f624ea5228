//! Leadership by files and against a fake agent, through the door that services
//! take. Wherever two stand, no moment is seen in which both lead.

use std::{collections::HashMap, path::Path, time::Duration};

use fake_consul::FakeConsul;

use super::{consul::BELIEF, *};
use crate::{
    files,
    registry::{Registration, registry},
};

const NAME: &str = "scheduler";
/// Longer than all that a lead takes to change hands.
const DEADLINE: Duration = Duration::from_secs(15);

/// Sooner than what was told lapses by itself, after [`BELIEF`].
const AT_ONCE: Duration = Duration::from_secs(1);

fn config(key: &str, value: String) -> Config {
    Config::from_sources(None, HashMap::new(), &[(key, value)]).unwrap()
}

fn on_disk(data: &Path) -> Arc<dyn Leadership> {
    leadership(&config("data", data.display().to_string())).unwrap()
}

fn in_consul(agent: &FakeConsul) -> Arc<dyn Leadership> {
    leadership(&config("registry", agent.url())).unwrap()
}

fn instance(id: &str) -> Instance {
    Instance {
        id: id.into(),
        service: "echo".into(),
        address: ([127, 0, 0, 1], 7000).into(),
        admin: Some(([127, 0, 0, 1], 7001).into()),
        version: semver::Version::new(1, 2, 3),
        packages: vec![],
        capabilities: vec![],
        weight: std::num::NonZeroU16::MIN,
        healthy: true,
    }
}

async fn register(agent: &FakeConsul, id: &str) -> Registration {
    let registry = registry(&config("registry", agent.url())).unwrap();
    registry.register(instance(id)).await.unwrap()
}

async fn stand(leadership: &Arc<dyn Leadership>, id: &str) -> (Candidacy, Standing) {
    let candidacy = leadership.stand(NAME, &instance(id)).await.unwrap();
    let standing = candidacy.standing();
    (candidacy, standing)
}

/// Waits until `holds`, while at most one of `all` leads; how long it took.
async fn until(what: &str, all: &[&Standing], holds: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        let leaders = all.iter().filter(|standing| standing.is_leader()).count();
        assert!(leaders <= 1, "{leaders} lead, before: {what}");
        assert!(began.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

fn leads(standing: &Standing, id: &str) -> bool {
    standing.leader().is_some_and(|leader| leader.id == id)
}

async fn seen(watched: &mut watch::Receiver<Option<Leader>>, id: Option<&str>) {
    let there = |now: &Option<Leader>| now.as_ref().map(|leader| leader.id.as_str()) == id;
    let seen = tokio::time::timeout(DEADLINE, watched.wait_for(there)).await;
    seen.unwrap_or_else(|_| panic!("{id:?} is never seen")).unwrap();
}

/// One leads, and when it ends another does; all see who.
async fn one_leads_at_a_time(leadership: &Arc<dyn Leadership>) {
    let mut watched = leadership.watch(NAME).await.unwrap();
    assert_eq!(*watched.borrow(), None);
    let (a, of_a) = stand(leadership, "a").await;
    until("a leads", &[&of_a], || of_a.is_leader()).await;
    let first = of_a.term().unwrap();
    let (b, of_b) = stand(leadership, "b").await;
    until("b sees a", &[&of_a, &of_b], || leads(&of_b, "a")).await;
    assert_eq!(of_b.leader(), of_a.leader());
    assert_eq!(of_b.term(), None);
    seen(&mut watched, Some("a")).await;

    a.resign().await;
    assert!(!of_a.is_leader() && of_a.leader().is_none());
    let took = until("b leads", &[&of_a, &of_b], || of_b.is_leader()).await;
    assert!(took < AT_ONCE, "{took:?} after a resigned");
    let second = of_b.term().unwrap();
    assert!(second > first, "{second} after {first}");
    seen(&mut watched, Some("b")).await;

    let (c, of_c) = stand(leadership, "c").await;
    until("c sees b", &[&of_b, &of_c], || leads(&of_c, "b")).await;
    drop(b);
    until("c leads", &[&of_b, &of_c], || of_c.is_leader()).await;
    assert!(of_c.term().unwrap() > second);
    c.resign().await;
    seen(&mut watched, None).await;
}

#[tokio::test]
async fn on_disk_one_leads_until_it_resigns_or_is_dropped() {
    let data = tempfile::tempdir().unwrap();
    one_leads_at_a_time(&on_disk(data.path())).await;
}

#[tokio::test]
async fn in_consul_one_leads_until_it_resigns_or_is_dropped() {
    let agent = FakeConsul::start().await;
    let _registered =
        (register(&agent, "a").await, register(&agent, "b").await, register(&agent, "c").await);
    one_leads_at_a_time(&in_consul(&agent)).await;
    until("each one ended its own session", &[], || agent.sessions().is_empty()).await;
}

#[tokio::test]
async fn names_have_leaders_of_their_own() {
    let data = tempfile::tempdir().unwrap();
    let leadership = on_disk(data.path());
    let one = leadership.stand("one", &instance("a")).await.unwrap();
    let other = leadership.stand("other", &instance("b")).await.unwrap();
    let (of_one, of_other) = (one.standing(), other.standing());
    until("both lead", &[], || of_one.is_leader() && of_other.is_leader()).await;

    for name in ["", "../x", "A", "a/b"] {
        let error = leadership.stand(name, &instance("a")).await.err().unwrap().to_string();
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
}

#[tokio::test]
async fn the_lock_of_a_dead_process_is_taken_over_with_a_higher_term() {
    let data = tempfile::tempdir().unwrap();
    let leadership = on_disk(data.path());
    let folder = data.path().join("leaders");
    let dead = Candidate::new(&instance("dead")).leading(7);
    std::fs::write(folder.join("scheduler.json"), serde_json::to_vec(&dead).unwrap()).unwrap();
    let lock = files::try_lock(&folder.join("scheduler.lock")).unwrap().unwrap();
    let (_a, of_a) = stand(&leadership, "a").await;
    until("the other is seen", &[&of_a], || of_a.leader() == Some(dead.clone())).await;
    assert!(!of_a.is_leader());
    // As the system does when its process dies.
    drop(lock);
    until("a leads", &[&of_a], || of_a.term() == Some(8)).await;
}

#[tokio::test]
async fn who_waits_is_told_of_each_change_and_of_the_end() {
    let data = tempfile::tempdir().unwrap();
    let (a, mut of_a) = stand(&on_disk(data.path()), "a").await;
    let changed = tokio::time::timeout(DEADLINE, of_a.changed()).await;
    changed.unwrap().unwrap();
    assert!(of_a.is_leader());
    a.resign().await;
    of_a.changed().await.unwrap();
    assert!(!of_a.is_leader());
    of_a.changed().await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_claim_lapses_by_the_clock_and_ends_with_its_task() {
    let (sender, seen) = watch::channel(Seen::default());
    let standing = Standing { seen };
    let leader = Some(Candidate::new(&instance("a")).leading(3));
    let claim = Some(Claim::Until(Instant::now() + BELIEF));
    Seen::tell(&sender, Seen { leader: leader.clone(), claim });
    tokio::time::advance(BELIEF - Duration::from_millis(1)).await;
    assert_eq!((standing.term(), standing.leader()), (Some(3), leader.clone()));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!((standing.term(), standing.leader()), (None, None));

    Seen::tell(&sender, Seen { leader: leader.clone(), claim: Some(Claim::Held) });
    assert!(standing.is_leader());
    drop(sender);
    assert_eq!((standing.term(), standing.leader()), (None, None));
}

#[tokio::test]
async fn consul_is_told_by_which_checks_a_leader_lives() {
    let agent = FakeConsul::start().await;
    let _registered = register(&agent, "a").await;
    let (_a, of_a) = stand(&in_consul(&agent), "a").await;
    until("a leads", &[&of_a], || of_a.is_leader()).await;
    let told = agent.sessions().remove(0);
    assert_eq!(told["ServiceChecks"][0]["ID"], "service:a");
    assert_eq!(told["NodeChecks"][0], "serfHealth");
    assert_eq!(told["Behavior"], "release");
    assert_eq!(told["LockDelay"], 1_000_000_000);
    assert_eq!(told.get("TTL"), None);
}

#[tokio::test]
async fn an_instance_that_consul_does_not_check_is_refused() {
    let agent = FakeConsul::start().await;
    let unchecked = Instance { admin: None, ..instance("a") };
    let error = in_consul(&agent).stand(NAME, &unchecked).await.err().unwrap().to_string();
    assert!(error.contains("admin address"), "{error}");
}

#[tokio::test]
async fn a_leader_that_fails_its_check_is_followed_by_another_within_seconds() {
    let agent = FakeConsul::start().await;
    let _registered = (register(&agent, "a").await, register(&agent, "b").await);
    let leadership = in_consul(&agent);
    let (_a, of_a) = stand(&leadership, "a").await;
    until("a leads", &[&of_a], || of_a.is_leader()).await;
    let (b, of_b) = stand(&leadership, "b").await;
    until("b sees a", &[&of_a, &of_b], || leads(&of_b, "a")).await;

    let both = [&of_a, &of_b];
    agent.set_health("a", "critical");
    let took = until("a knows", &both, || !of_a.is_leader()).await;
    assert!(took < AT_ONCE, "{took:?} until the leader knew");
    let took = until("b leads", &both, || of_b.is_leader()).await;
    assert!(took < Duration::from_secs(4), "{took:?} until another led");
    until("a sees b", &both, || leads(&of_a, "b")).await;

    // It stands on, and leads when it is well again.
    agent.set_health("a", "passing");
    b.resign().await;
    until("a leads again", &both, || of_a.is_leader()).await;
}

#[tokio::test]
async fn a_leader_whose_session_or_key_is_gone_stands_again() {
    let agent = FakeConsul::start().await;
    let _registered = register(&agent, "a").await;
    let (_a, of_a) = stand(&in_consul(&agent), "a").await;
    type Fault = fn(&FakeConsul);
    let faults: [(&str, Fault); 3] = [
        ("destroyed", FakeConsul::destroy_sessions),
        ("deleted", |agent| agent.delete_key("omnibridge/leaders/scheduler")),
        ("forgotten", |agent| agent.forget_service("a")),
    ];
    for (fault, strike) in faults {
        until("a leads", &[&of_a], || of_a.is_leader()).await;
        let term = of_a.term().unwrap();
        strike(&agent);
        let took = until(fault, &[&of_a], || of_a.term() != Some(term)).await;
        assert!(took < AT_ONCE, "{took:?} until it knew: {fault}");
        until(fault, &[&of_a], || of_a.term().is_some_and(|now| now > term)).await;
    }
}

#[tokio::test]
async fn a_consul_that_refuses_the_session_is_asked_until_it_takes_it() {
    let agent = FakeConsul::start().await;
    let (_a, of_a) = stand(&in_consul(&agent), "a").await;
    for critical in [false, true] {
        if critical {
            let check = serde_json::json!({ "Status": "critical" });
            agent.register(serde_json::json!({ "ID": "a", "Name": "echo", "Check": check }));
        }
        let early = tokio::time::timeout(
            Duration::from_millis(500),
            until("it leads", &[&of_a], || of_a.is_leader()),
        )
        .await;
        assert!(early.is_err(), "it leads without a check, or with one that is critical");
    }
    agent.set_health("a", "passing");
    until("a leads", &[&of_a], || of_a.is_leader()).await;
}

#[tokio::test]
async fn a_leader_that_consul_does_not_answer_stops_believing_it_in_time() {
    let mut agent = FakeConsul::start().await;
    let _registered = register(&agent, "a").await;
    let (_a, of_a) = stand(&in_consul(&agent), "a").await;
    until("a leads", &[&of_a], || of_a.is_leader()).await;
    let term = of_a.term();

    agent.hang();
    // What it was told before it believes for so long, and no longer.
    tokio::time::sleep(BELIEF).await;
    assert!(!of_a.is_leader(), "it doubts: hanging");
    assert_eq!(of_a.leader(), None);
    agent.recover();
    // Its session lives: nobody else led.
    until("it leads again", &[], || of_a.term() == term).await;

    agent.fail_with(500);
    let took = until("it doubts: failing", &[], || !of_a.is_leader()).await;
    assert!(took < AT_ONCE, "{took:?}");
    agent.recover();
    until("it leads again", &[], || of_a.term() == term).await;

    agent.stop().await;
    let took = until("it doubts: gone", &[], || !of_a.is_leader()).await;
    assert!(took < AT_ONCE, "{took:?}");
    agent.restart().await;
    until("it leads again", &[], || of_a.term() == term).await;
}

#[tokio::test]
async fn a_leader_that_was_cut_off_follows_who_led_meanwhile() {
    let mut agent = FakeConsul::start().await;
    let _registered = register(&agent, "a").await;
    let (_a, of_a) = stand(&in_consul(&agent), "a").await;
    until("a leads", &[&of_a], || of_a.is_leader()).await;
    agent.stop().await;
    until("it doubts", &[], || !of_a.is_leader()).await;
    agent.destroy_sessions();
    agent.register(serde_json::json!({
        "ID": "b", "Name": "echo", "Check": { "Status": "passing" }
    }));
    agent.restart().await;
    let (_b, of_b) = stand(&in_consul(&agent), "b").await;
    let both = [&of_a, &of_b];
    until("one leads", &both, || of_a.is_leader() || of_b.is_leader()).await;
    let led = if of_a.is_leader() { "a" } else { "b" };
    until("both see it", &both, || both.iter().all(|standing| leads(standing, led))).await;
}

#[tokio::test]
async fn resigning_ends_also_when_consul_hangs() {
    let agent = FakeConsul::start().await;
    let _registered = register(&agent, "a").await;
    let (a, of_a) = stand(&in_consul(&agent), "a").await;
    until("a leads", &[&of_a], || of_a.is_leader()).await;
    agent.hang();
    tokio::time::timeout(DEADLINE, a.resign()).await.unwrap();
    assert!(!of_a.is_leader());
}

//! The registry against a fake agent.

use std::collections::HashMap;

use fake_consul::FakeConsul;

use super::*;

/// Longer than the agent takes to be looked at, and asked again after errors.
const DEADLINE: Duration = Duration::from_secs(15);

fn registry(agent: &FakeConsul) -> ConsulRegistry {
    let flags = [("registry", agent.url())];
    ConsulRegistry::new(&Config::from_sources(None, HashMap::new(), &flags).unwrap()).unwrap()
}

fn instance(id: &str) -> Instance {
    Instance {
        id: id.into(),
        service: "echo".into(),
        address: ([127, 0, 0, 1], 7000).into(),
        admin: Some(([127, 0, 0, 1], 7001).into()),
        version: semver::Version::new(1, 2, 3),
        packages: vec!["p.v1".into(), "q.v2".into()],
        capabilities: vec!["x".into()],
        weight: std::num::NonZeroU16::new(3).unwrap(),
        healthy: true,
    }
}

async fn until(watched: &mut watch::Receiver<Snapshot>, ids: &[&str]) {
    let there = |s: &Snapshot| s.iter().map(|i| i.id.as_str()).eq(ids.iter().copied());
    tokio::time::timeout(DEADLINE, watched.wait_for(there))
        .await
        .unwrap_or_else(|_| panic!("{ids:?} are never seen"))
        .unwrap();
}

/// Waits until `holds`.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn instances_are_seen_as_they_come_and_go() {
    let agent = FakeConsul::start().await;
    let (one, other) = (registry(&agent), registry(&agent));
    let mut watched = other.watch("echo").await.unwrap();
    assert!(watched.borrow().is_empty());

    let a = one.register(instance("a")).await.unwrap();
    until(&mut watched, &["a"]).await;
    assert_eq!(watched.borrow()[0], instance("a"));
    let b = one.register(instance("b")).await.unwrap();
    until(&mut watched, &["a", "b"]).await;
    a.deregister().await;
    assert_eq!(agent.services(), ["b"]);
    until(&mut watched, &["b"]).await;
    assert_eq!(*other.services().await.unwrap()["echo"], [instance("b")]);
    drop(b);
    until(&mut watched, &[]).await;
    assert!(other.services().await.unwrap().is_empty());
}

#[tokio::test]
async fn consul_is_told_all_it_needs_to_check_an_instance() {
    let agent = FakeConsul::start().await;
    let _a = registry(&agent).register(instance("a")).await.unwrap();
    let told = agent.service("a").unwrap();
    assert_eq!(told["Connect"]["Native"], true);
    let check = &told["Check"];
    assert_eq!(check["GRPC"], "127.0.0.1:7001/echo");
    assert_eq!(check["Interval"], "10000ms");
    assert_eq!(check["DeregisterCriticalServiceAfter"], "60000ms");
    assert_eq!(check["Status"], "passing");
}

#[tokio::test]
async fn an_instance_that_fails_its_check_is_seen_as_unhealthy_and_stays() {
    let agent = FakeConsul::start().await;
    let registry = registry(&agent);
    let _a = registry.register(instance("a")).await.unwrap();
    let mut watched = registry.watch("echo").await.unwrap();
    for (status, healthy) in [("critical", false), ("warning", true)] {
        agent.set_health("a", status);
        let seen = watched.wait_for(|s| s.len() == 1 && s[0].healthy == healthy);
        tokio::time::timeout(DEADLINE, seen).await.expect(status).unwrap();
    }
}

#[tokio::test]
async fn an_instance_that_the_agent_forgot_is_registered_again() {
    let agent = FakeConsul::start().await;
    let registry = registry(&agent);
    let _a = registry.register(instance("a")).await.unwrap();
    // The second time, it is asked by the hash of what was answered before.
    for _ in 0..2 {
        let forgotten = Instant::now();
        agent.forget_service("a");
        eventually("registered again", || agent.service("a").is_some()).await;
        let took = forgotten.elapsed();
        // A slow machine has as long as it takes to ask the agent some more times.
        let asked = Instant::now();
        snapshot(registry.consul.clone(), "echo".into(), None).await.unwrap();
        let most = Duration::from_secs(1).max(20 * asked.elapsed());
        assert!(took < most, "{took:?}, an answer alone {:?}", asked.elapsed());
        // Until it asks again, by the new hash: nothing tells when.
        tokio::time::sleep(2 * LOOK_PAUSE).await;
    }
}

#[tokio::test]
async fn what_the_token_may_not_see_is_not_taken_for_gone() {
    let agent = FakeConsul::start().await;
    let registry = registry(&agent);
    let _a = registry.register(instance("a")).await.unwrap();
    let watched = registry.watch("echo").await.unwrap();
    agent.hide_service("echo");
    // Until the answer was there, and refused: then it is asked again at once.
    let error = snapshot(registry.consul.clone(), "echo".into(), None).await.unwrap_err();
    assert!(error.to_string().contains("consul.token"), "{error}");
    // It has been refused itself by then, several times; nothing tells when.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(watched.borrow().len(), 1, "the last good snapshot stays");
}

#[tokio::test]
async fn the_last_snapshot_stays_while_consul_is_down_and_moves_on_when_it_is_back() {
    let mut agent = FakeConsul::start().await;
    let registry = registry(&agent);
    let _a = registry.register(instance("a")).await.unwrap();
    let mut watched = registry.watch("echo").await.unwrap();
    watched.mark_unchanged();
    agent.stop().await;
    let changed = tokio::time::timeout(Duration::from_millis(300), watched.changed());
    assert!(changed.await.is_err(), "an outage is no change");
    assert_eq!(watched.borrow().len(), 1);
    agent.restart().await;
    let _b = registry.register(instance("b")).await.unwrap();
    until(&mut watched, &["a", "b"]).await;
}

#[tokio::test]
async fn instances_stay_known_when_consul_comes_back_without_its_data() {
    let mut agent = FakeConsul::start().await;
    let registry = registry(&agent);
    let _a = registry.register(instance("a")).await.unwrap();
    let watched = registry.watch("echo").await.unwrap();
    agent.stop().await;
    agent.lose_services();
    agent.restart().await;
    eventually("registered again", || agent.service("a").is_some()).await;
    assert!(!watched.has_changed().unwrap(), "its absence was never believed");
}

#[tokio::test]
async fn a_long_list_of_packages_survives_consuls_limit_on_values() {
    let agent = FakeConsul::start().await;
    let registry = registry(&agent);
    let packages: Vec<String> = (0..80).map(|n| format!("company.product{n}.v1")).collect();
    let long = Instance { packages: packages.clone(), ..instance("a") };
    let _a = registry.register(long).await.unwrap();
    assert_eq!(registry.watch("echo").await.unwrap().borrow()[0].packages, packages);

    let endless = Instance { capabilities: vec!["x".repeat(513)], ..instance("b") };
    let error = registry.register(endless).await.err().unwrap().to_string();
    assert!(error.contains("capabilities"), "{error}");
}

#[tokio::test]
async fn a_watch_begins_empty_when_consul_is_down() {
    let mut agent = FakeConsul::start().await;
    let registry = registry(&agent);
    agent.stop().await;
    let mut watched = registry.watch("echo").await.unwrap();
    assert!(watched.borrow().is_empty());
    assert!(registry.register(instance("a")).await.is_err());
    agent.restart().await;
    let _a = registry.register(instance("a")).await.unwrap();
    until(&mut watched, &["a"]).await;
}

#[tokio::test]
async fn deregistering_ends_also_when_consul_hangs() {
    let agent = FakeConsul::start().await;
    let a = registry(&agent).register(instance("a")).await.unwrap();
    agent.hang();
    tokio::time::timeout(DEADLINE, a.deregister()).await.unwrap();
}

#[test]
fn any_answer_is_instances_or_an_error() {
    let sound = serde_json::json!([{
        "Node": { "Address": "127.0.0.1" },
        "Service": {
            "ID": "a-1", "Address": "", "Port": 7000,
            "Meta": { "version": "1.2.3", "admin": "127.0.0.1:1", "packages": "p.v1,q.v1" },
        },
        "Checks": [{ "Status": "passing" }],
    }]);
    let read = |bytes: &[u8]| {
        let Ok(entries) = serde_json::from_slice::<Vec<Entry>>(bytes) else { return };
        for entry in entries {
            let id = entry.service.id.clone();
            assert!(super::instance("a", entry).is_none_or(|instance| instance.id == id));
        }
    };
    bolero::check!().with_iterations(1000).for_each(|bytes: &[u8]| read(bytes));
    bolero::check!().with_iterations(1000).with_type::<Vec<crate::fuzz::Change>>().for_each(
        |changes| {
            let mut answer = sound.clone();
            changes.iter().for_each(|change| change.apply(&mut answer));
            read(answer.to_string().as_bytes());
        },
    );
}

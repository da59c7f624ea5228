//! Events, as operators look at them.

use std::time::Duration;

use api::audit::v1::AuditEvent;
use mesh::events::{
    Event,
    broker::{self, Record},
};
use serde_json::{Value, json};
use tests::{Layout, Mesh, mesh::new_id, until};

pub async fn what_a_consumer_gives_up_on_is_listed_and_replayed(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    // Poison: it says what it isn't.
    let mut poison = Event::typed("/tests", new_id(), &AuditEvent::default()).unwrap();
    poison.data = "[]".into();
    let id = poison.attributes.id.clone();
    let broker = broker::broker(&mesh.config()).await.unwrap();
    let record = Record { topic: "audit.events".to_owned(), event: poison };
    for published in broker.publish(vec![record], Duration::from_secs(30)).await {
        published.unwrap();
    }
    let json = |args: &[&str]| {
        let output = mesh.omni(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice::<Value>(&output.stdout).map_err(|why| format!("{why}: {said}"))
    };
    let letters = || -> Result<Vec<Value>, String> {
        let all = json(&["events", "dlq", "list", "--topic", "audit.events", "--json"])?;
        let all = all.as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().filter(|letter| letter["id"] == *id).collect())
    };
    let expected = async |count: usize| {
        until("it is in the dead letters", || async {
            let letters = letters()?;
            if letters.len() == count { Ok(letters) } else { Err(format!("{letters:?}")) }
        })
        .await
    };
    let letter = expected(1).await.remove(0);
    assert_eq!(letter["dlqgroup"], "audit.audit.events", "{letter}");
    assert_eq!(letter["dlqattempts"], "5", "{letter}");

    let replay = ["events", "dlq", "replay", &id];
    let asked = mesh.omni(&replay);
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(!asked.status.success() && said.contains("pass --yes"), "{said}");
    let dry = mesh.omni(&[&replay[..], &["--dry-run"]].concat());
    assert_eq!(String::from_utf8_lossy(&dry.stdout), "1 to audit.events\n");
    let replayed = mesh.omni(&[&replay[..], &["--yes"]].concat());
    let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
    assert!(said.ends_with("1 replayed\n"), "{replayed:?}");
    expected(2).await;
    let unknown = mesh.omni(&["events", "dlq", "replay", "nobody", "--yes"]);
    assert_eq!(unknown.status.code(), Some(1));

    until("who replayed is in the trail", || async {
        let entries = mesh.call("omnibridge.audit.v1.Audit/ListEntries", &json!({})).unwrap();
        let found = entries["entries"].as_array().cloned().unwrap_or_default();
        let found = found.into_iter().find(|entry| entry["action"] == "events.dlq.replay");
        found.filter(|entry| entry["resource"] == "audit.events").ok_or(entries)
    })
    .await;
    // librdkafka's mock of a broker can't list groups.
    if layout != Layout::Fakes {
        the_group_has_caught_up(&mesh).await;
    }
    mesh.stop().await;
}

async fn the_group_has_caught_up(mesh: &Mesh) {
    until("the group has nothing left to do", || async {
        let output = mesh.omni(&["events", "groups", "--json"]);
        let groups: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let all = groups.as_array().cloned().unwrap_or_default();
        let mut of_trail = all.iter().filter(|of| of["group"] == "audit.audit.events");
        if of_trail.clone().count() > 0 && of_trail.all(|of| of["lag"] == 0) {
            Ok(())
        } else {
            Err(groups.to_string())
        }
    })
    .await;
}

pub async fn the_story_of_a_correlation_is_told_over_all_topics(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let answer = mesh.post(&new_id(), b"{}").await;
    let (id, correlation) = (&answer.body["id"], answer.body["correlation_id"].as_str().unwrap());
    let told = until("it is told", || async {
        let output = mesh.omni(&["events", "trace", correlation]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(said) } else { Err(output) }
    })
    .await;
    assert!(told.contains("hooks.demo /hooks/demo push id"), "{told}");
    assert!(told.contains(id.as_str().unwrap()), "{told}");
    let nobody = mesh.omni(&["events", "trace", "nobody"]);
    assert_eq!(nobody.status.code(), Some(1));
    mesh.stop().await;
}

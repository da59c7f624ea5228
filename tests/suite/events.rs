//! Events, as operators look at them.

use std::time::Duration;

use mesh::events::{
    Event,
    broker::{self, Record},
};
use mesh::messages::audit::v1::AuditEvent;
use serde_json::{Value, json};
use tests::{Layout, Mesh, mesh::new_id, until};

/// Publishes what no consumer can handle, and answers its id.
pub async fn publish_poison(mesh: &Mesh) -> String {
    // It says what it isn't.
    let mut poison = Event::typed("/tests", new_id(), &AuditEvent::default()).unwrap();
    poison.data = "[]".into();
    let id = poison.attributes.id.clone();
    let broker = broker::broker(&mesh.config()).await.unwrap();
    let record = Record { topic: "audit.events".to_owned(), event: poison };
    for published in broker.publish(vec![record], Duration::from_secs(30)).await {
        published.unwrap();
    }
    id
}

pub async fn what_a_consumer_gives_up_on_is_listed_replayed_and_discarded(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let id = publish_poison(&mesh).await;
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
    let first = expected(1).await.remove(0);
    let letter = &first;
    assert_eq!(letter["dlqgroup"], "audit.audit.events", "{letter}");
    assert_eq!(letter["dlqattempts"], "5", "{letter}");

    let replay = ["events", "dlq", "replay", &id];
    let asked = mesh.omni(&replay);
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(!asked.status.success() && said.contains("pass --yes"), "{said}");
    let dry = mesh.omni(&[&replay[..], &["--dry-run"]].concat());
    assert_eq!(String::from_utf8_lossy(&dry.stdout), "1 of audit.events\n");
    let replayed = mesh.omni(&[&replay[..], &["--yes"]].concat());
    let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
    assert!(said.ends_with("1 replayed\n"), "{replayed:?}");
    until("it is a letter again, and the first one is dealt with", || async {
        let letters = letters()?;
        let other = letters.len() == 1 && letters[0]["omnibridge"] != first["omnibridge"];
        if other { Ok(()) } else { Err(format!("{letters:?}")) }
    })
    .await;
    let discard = ["events", "dlq", "discard", &id];
    let asked = mesh.omni(&discard);
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(!asked.status.success() && said.contains("pass --yes"), "{said}");
    let discarded = mesh.omni(&[&discard[..], &["--yes"]].concat());
    let said = String::from_utf8_lossy(&discarded.stdout).into_owned();
    assert!(said.ends_with("1 discarded\n"), "{discarded:?}");
    assert_eq!(letters(), Ok(vec![]));
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

pub async fn a_topic_is_replayed_for_a_group_that_lacks_some_of_it(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    // Other tests may have used the topic before.
    let begun = chrono::Utc::now().to_rfc3339();
    let id = mesh.post(&new_id(), b"{}").await.body["id"].as_str().unwrap().to_owned();
    let entries = || -> Result<usize, String> {
        let entries = mesh.call("omnibridge.audit.v1.Audit/ListEntries", &json!({}))?;
        let all = entries["entries"].as_array().cloned().unwrap_or_default();
        Ok(all.iter().filter(|entry| entry["eventId"] == *id).count())
    };
    let count = async |expected: usize| {
        until("the trail has it", || async {
            let entries = entries()?;
            if entries == expected { Ok(()) } else { Err(format!("{entries} entries")) }
        })
        .await;
    };
    count(1).await;
    let replay = |more: &[&str]| {
        let replay = ["events", "replay", "hooks.demo", "--group", "audit.hooks", "--yes"];
        let output = mesh.omni(&[&replay[..], &["--from", &begun], more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(replay(&[]).ends_with("nothing to replay\n"), "it lacks none");
    assert!(replay(&["--again", "--to", "1h"]).ends_with("nothing to replay\n"), "none is so old");
    assert!(replay(&["--again", "--dry-run"]).ends_with("1 of hooks.demo\n"));
    assert!(replay(&["--again"]).ends_with("1 replayed\n"));
    count(2).await;
    assert!(replay(&[]).ends_with("nothing to replay\n"), "it has all again");
    let nobody = mesh.omni(&["events", "replay", "hooks.demo", "--group", "nobody.hooks"]);
    assert_eq!(nobody.status.code(), Some(1));
    mesh.stop().await;
}

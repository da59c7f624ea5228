//! The API, as operators use it.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Layout, Mesh, mesh::new_id, until};

const HOOK_RECEIVER: &str = "omnibridge.hooks.v1.HookReceiver";

fn receive(mesh: &Mesh, hook: Value) -> Value {
    mesh.call(&format!("{HOOK_RECEIVER}/Receive"), &json!({ "hook": hook })).unwrap()
}

pub async fn hooks_are_filtered_paged_and_watched(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let session = new_id();
    let ids: Vec<Value> = (0..5)
        .map(|n| {
            let kind = if n % 2 == 0 { "even" } else { "odd" };
            let hook = json!({
                "source": "tests", "type": kind, "deliveryId": new_id(), "sessionId": session,
                "kind": "HOOK_KIND_PRE_EXECUTION",
            });
            receive(&mesh, hook)["receipt"]["id"].clone()
        })
        .collect();

    let list = format!("{HOOK_RECEIVER}/ListHooks");
    let filter = json!({ "sessionId": session, "type": "even" });
    let page = mesh.call(&list, &json!({ "filter": filter, "pageSize": 2 })).unwrap();
    let id_of = |hook: &Value| hook["id"].clone();
    let page_ids = |page: &Value| page["hooks"].as_array().unwrap().iter().map(id_of).collect();
    let (first, token): (Vec<Value>, &Value) = (page_ids(&page), &page["nextPageToken"]);
    assert_eq!(first, [ids[4].clone(), ids[2].clone()], "newest first");
    let rest = json!({ "filter": filter, "pageSize": 2, "pageToken": token });
    let page = mesh.call(&list, &rest).unwrap();
    let second: Vec<Value> = page_ids(&page);
    assert_eq!(second, [ids[0].clone()]);
    assert!(page["nextPageToken"].is_null());
    let hook = mesh.call(&format!("{HOOK_RECEIVER}/GetHook"), &json!({ "id": ids[1] })).unwrap();
    assert_eq!(hook["hook"]["kind"], "HOOK_KIND_PRE_EXECUTION");
    let missing = mesh.call(&format!("{HOOK_RECEIVER}/GetHook"), &json!({ "id": "x" }));
    assert!(missing.unwrap_err().contains("NOT_FOUND"));

    // From the place behind the first of them on, a stream shows the others and
    // what comes after.
    let watch = |token: &str, seconds: &str| {
        let request = json!({ "filter": { "sessionId": session }, "resumeToken": token });
        let method = format!("{HOOK_RECEIVER}/WatchHooks");
        let output =
            mesh.omni(&["call", "--json", "--timeout", seconds, &method, &request.to_string()]);
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
    };
    // Base64 of the number 0: before the first hook there is.
    let seen = watch("MA", "2");
    let seen_ids: Vec<Value> = seen.iter().map(|answer| answer["hook"]["id"].clone()).collect();
    assert_eq!(seen_ids, ids);
    let resumed = watch(seen[2]["resumeToken"].as_str().unwrap(), "2");
    let resumed: Vec<Value> = resumed.iter().map(|answer| answer["hook"]["id"].clone()).collect();
    assert_eq!(resumed, ids[3..]);
    mesh.stop().await;
}

pub async fn hooks_of_one_conversation_are_one_session(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let (session, correlation) = (new_id(), new_id());
    let hook = |more: Value| {
        let mut hook = json!({ "source": "tests", "type": "t", "deliveryId": new_id() });
        hook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        receive(&mesh, hook)["receipt"]["sessionId"].clone()
    };
    assert_eq!(hook(json!({ "sessionId": session })), session.as_str());
    assert_eq!(
        hook(json!({ "sessionId": session, "correlationId": correlation })),
        session.as_str()
    );
    assert_eq!(hook(json!({ "correlationId": correlation })), correlation.as_str());

    let get = format!("{HOOK_RECEIVER}/GetSession");
    let answer = mesh.call(&get, &json!({ "id": session })).unwrap();
    assert_eq!(answer["session"]["hookCount"], "2");
    let list = format!("{HOOK_RECEIVER}/ListSessions");
    let answer = mesh.call(&list, &json!({ "pageSize": 1 })).unwrap();
    assert_eq!(answer["sessions"][0]["id"], correlation.as_str(), "the latest first");
    let next = json!({ "pageSize": 1, "pageToken": answer["nextPageToken"] });
    let answer = mesh.call(&list, &next).unwrap();
    assert_eq!(answer["sessions"][0]["id"], session.as_str());
    mesh.stop().await;
}

pub async fn every_service_tells_its_life(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let services = mesh.services();
    for service in ["hook-receiver", "audit", "gateway"] {
        let all = services.as_array().unwrap();
        let healthy = |s: &&Value| s["service"] == service && s["health"] == "passing";
        let instance = all.iter().find(healthy).unwrap()["id"].as_str().unwrap();
        let states = until("it told that it is ready", || async {
            let events = mesh.events("services.lifecycle", instance);
            let states: Vec<Value> = events.iter().map(|e| e["data"]["state"].clone()).collect();
            if states.len() >= 2 { Ok(states) } else { Err(states) }
        })
        .await;
        assert_eq!(states, ["SERVICE_STATE_STARTED", "SERVICE_STATE_READY"], "{service}");
    }
    let receiver = mesh.services();
    let receiver = receiver
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["service"] == "hook-receiver" && s["health"] == "passing");
    let id = receiver.unwrap()["id"].as_str().unwrap().to_owned();
    let process = mesh.take_process("hook-receiver");
    let stopped = tokio::task::spawn_blocking(move || process.stop());
    assert!(
        tokio::time::timeout(Duration::from_secs(30), stopped).await.unwrap().unwrap().success()
    );
    let events = mesh.events("services.lifecycle", &id);
    let states: Vec<&Value> = events.iter().map(|event| &event["data"]["state"]).collect();
    assert_eq!(
        states,
        [
            "SERVICE_STATE_STARTED",
            "SERVICE_STATE_READY",
            "SERVICE_STATE_DRAINING",
            "SERVICE_STATE_STOPPED"
        ],
        "flushed before the end",
    );
    mesh.stop().await;
}

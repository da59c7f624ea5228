//! What a source declares sensitive, and credentials, are kept nowhere.

use std::{collections::HashMap, path::Path};

use http::StatusCode;
use serde_json::{Value, json};
use tests::{
    Layout, Mesh,
    mesh::{API_KEY, new_id},
    until,
};

/// What is sent and must not be found again, each in a place of its own.
const SECRETS: [&str; 8] = [
    "planted-in-the-query",
    "planted-in-a-declared-header",
    "planted-in-authorization",
    "planted-in-a-wrong-key",
    "planted-4111-1111",
    "planted@example.org",
    "planted-deep-password",
    "planted-in-what-is-refused",
];
/// What is sent beside them and is kept: it shows that the search finds things.
const KEPT: &str = "planted-for-keeps";

pub async fn what_is_sensitive_is_kept_nowhere(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let [query, header, authorization, wrong_key, number, email, password, refused] = SECRETS;
    let url = format!("http://{}/hooks/shop?token={query}", mesh.address("gateway"));
    let post = async |key: &str, body: &str| {
        let headers = HashMap::from([
            ("content-type", "application/json".to_owned()),
            ("x-api-key", key.to_owned()),
            ("x-delivery-id", new_id()),
            ("x-customer", header.to_owned()),
            ("authorization", format!("Bearer {authorization}")),
        ]);
        mesh.send(&url, headers, body.as_bytes()).await
    };
    let body = json!({
        "card": { "number": number },
        "customer": { "email": email, "name": KEPT },
        "all": [{ "password": password }],
    });
    let answer = post(API_KEY, &body.to_string()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let mut told = vec![];
    for (key, body, status) in [
        (wrong_key, "{}".to_owned(), 401),
        (API_KEY, refused.to_owned(), 400),
        (API_KEY, format!(r#"{{"{refused}":1,"{refused}":2}}"#), 400),
    ] {
        let answer = post(key, &body).await;
        assert_eq!(answer.status.as_u16(), status, "{answer:?}");
        told.push(answer.body.to_string());
    }

    let correlation = answer.body["correlation_id"].as_str().unwrap();
    let event = until("the event is in its topic", || async {
        mesh.events("hooks.shop", correlation).first().cloned().ok_or(())
    })
    .await;
    assert_eq!(event["data"]["card"]["number"], "[redacted]");
    let email_now = event["data"]["customer"]["email"].as_str().unwrap();
    assert!(email_now.starts_with("hmac-sha256:"), "{event}");
    told.push(event.to_string());
    let hook = json!({ "id": event["id"] });
    let hook = mesh.call("omnibridge.hooks.v1.HookReceiver/GetHook", &hook).unwrap();
    told.push(decoded(&hook));
    let trace_id = event["traceparent"].as_str().unwrap().split('-').nth(1).unwrap().to_owned();
    let spans = until("the trace is whole", || async {
        let spans = mesh.traces.of(&trace_id).await;
        if spans.iter().any(|span| span.service == "audit") { Ok(spans) } else { Err(spans) }
    })
    .await;
    told.extend(spans.into_iter().map(|span| span.whole));
    for topic in ["hooks.shop", "audit.events", "services.lifecycle"] {
        told.extend(mesh.topic(topic).iter().map(Value::to_string));
    }
    if layout == Layout::Real {
        let rows = mesh.backends.rows().await.unwrap().join("\n");
        assert!(rows.contains(&hex::encode(KEPT)), "tables are searched, bodies among them");
        told.push(rows);
    }

    let told = told.join("\n");
    assert!(told.contains(KEPT));
    for secret in SECRETS {
        assert!(!told.contains(secret), "{secret} is told");
        assert!(!told.contains(&hex::encode(secret)), "{secret} is told, in hexadecimals");
        assert_eq!(found(mesh.data(), secret), Vec::<String>::new(), "{secret} is in a file");
    }
    assert!(!found(mesh.data(), "the hashes' key").is_empty(), "files are searched");
    mesh.stop().await;
}

/// A hook with its body as text.
fn decoded(hook: &Value) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body = STANDARD.decode(hook["hook"]["body"].as_str().unwrap()).unwrap();
    format!("{hook} {}", String::from_utf8(body).unwrap())
}

/// The files in `folder`, and below it, in which `text` stands.
fn found(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(self::found(&path, text));
            continue;
        }
        // A file may be gone by now, as a lock.
        let bytes = std::fs::read(&path).unwrap_or_default();
        if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

//! The gateway through its front door: real HTTP in, and behind it a
//! hook-receiver of the tests' own on the real mesh.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod mesh_of_two;
mod spans;

use std::time::Duration;

use futures::future::join_all;
use mesh::{status::Reason, telemetry::trace};
use serde_json::Value;
use tokio::net::TcpStream;

use self::{
    mesh_of_two::{DEADLINE, MeshOfTwo, until},
    spans::Spans,
};

// GitHub's published example: "Validating webhook deliveries".
const BODY: &str = "Hello, World!";
const SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

fn github(mesh: &MeshOfTwo, delivery: &str) -> reqwest::RequestBuilder {
    mesh.post("/hooks/github")
        .header("x-github-delivery", delivery)
        .header("x-github-event", "push")
        .header("x-hub-signature-256", SIGNATURE)
        .header("content-type", "application/json")
        .body(BODY)
}

fn own(mesh: &MeshOfTwo, delivery: &str) -> reqwest::RequestBuilder {
    mesh.post("/hooks/own").header("x-api-key", "k-123").header("x-delivery-id", delivery)
}

async fn json(response: reqwest::Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

/// Checks that `response` is a problem document of this status and code.
async fn assert_problem(response: reqwest::Response, status: u16, code: &str) -> Value {
    let headers = response.headers().clone();
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(headers["content-type"], "application/problem+json");
    let document = json(response).await;
    assert_eq!(document["type"], "about:blank", "{document}");
    assert_eq!(document["status"], status, "{document}");
    assert_eq!(document["code"], code, "{document}");
    assert!(!document["title"].as_str().unwrap().is_empty(), "{document}");
    assert!(!document["detail"].as_str().unwrap().is_empty(), "{document}");
    let trace_id = document["trace_id"].as_str().unwrap();
    assert!(trace_id.len() == 32 && trace_id.bytes().all(|b| b.is_ascii_hexdigit()), "{document}");
    if status == 503 {
        let after: u32 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(after >= 1);
    }
    document
}

#[tokio::test]
async fn a_webhook_is_handed_on_as_it_came_and_answered_with_its_receipt() {
    let mesh = MeshOfTwo::start("").await;
    let response = github(&mesh, "d-1")
        .header("x-correlation-id", "order-7")
        .header("x-session-id", "s-1")
        .header("x-causation-id", "not an id")
        .header("authorization", "Bearer hunter2")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 202);
    let answer = response.text().await.unwrap();
    assert_eq!(answer, r#"{"id":"hook-d-1","correlation_id":"order-7","duplicate":false}"#);

    let hook = mesh.receiver.received().pop().unwrap();
    assert_eq!(hook.body, BODY);
    assert_eq!(
        (&*hook.source, &*hook.r#type, &*hook.delivery_id, &*hook.content_type),
        ("github", "push", "d-1", "application/json")
    );
    assert_eq!((&*hook.session_id, &*hook.causation_id), ("s-1", ""));
    let header = |name: &str| hook.headers.iter().find(|h| h.name == name).map(|h| &*h.value);
    assert_eq!(header("authorization"), Some("[redacted]"));
    assert_eq!(header("x-hub-signature-256"), Some("[redacted]"));
    assert_eq!(header("x-github-event"), Some("push"));
    mesh.stop().await;
}

#[tokio::test]
async fn the_same_delivery_again_is_answered_as_a_duplicate() {
    let mesh = MeshOfTwo::start("").await;
    for duplicate in [false, true] {
        let response = own(&mesh, "d-1").body("{}").send().await.unwrap();
        assert_eq!(response.status(), 202);
        assert_eq!(json(response).await["duplicate"], duplicate);
    }
    mesh.stop().await;
}

#[tokio::test]
async fn what_comes_in_parallel_goes_together() {
    let mesh = MeshOfTwo::start("").await;
    // Long enough for the others to come while the first calls are in flight.
    mesh.receiver.take_for(Duration::from_millis(500));
    let all = join_all((0..64).map(|i| own(&mesh, &i.to_string()).body("{}").send()));
    let answers = all.await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().status() == 202));
    let calls = mesh.receiver.calls();
    assert_eq!(calls.iter().sum::<usize>(), 64);
    assert!(calls.len() < 32, "{calls:?}");
    mesh.stop().await;
}

#[tokio::test]
async fn a_request_that_cant_be_taken_is_a_problem_of_its_own_status() {
    let mesh = MeshOfTwo::start("body_limit = 100").await;
    let sent = |request: reqwest::RequestBuilder| async { request.send().await.unwrap() };

    assert_problem(sent(mesh.post("/hooks/nobody")).await, 404, "NOT_FOUND").await;
    assert_problem(sent(mesh.post("/hooks/%ff")).await, 404, "NOT_FOUND").await;
    assert_problem(sent(mesh.post("/nothing")).await, 404, "NOT_FOUND").await;
    let response = sent(mesh.get("/hooks/github")).await;
    assert_eq!(response.headers()["allow"], "POST");
    assert_problem(response, 405, "INVALID_REQUEST").await;

    let unsigned = mesh.post("/hooks/github").body(BODY);
    let response = sent(unsigned).await;
    assert!(response.headers().contains_key("www-authenticate"));
    assert_problem(response, 401, "DENIED").await;
    assert_problem(sent(github(&mesh, "1").body("other")).await, 401, "DENIED").await;
    let wrong_key = mesh.post("/hooks/own").header("x-api-key", "k-124").body("{}");
    assert_problem(sent(wrong_key).await, 401, "DENIED").await;

    let image = own(&mesh, "1").header("content-type", "image/png").body("{}");
    assert_problem(sent(image).await, 415, "INVALID_REQUEST").await;
    let packed = own(&mesh, "1").header("content-encoding", "gzip").body("{}");
    assert_problem(sent(packed).await, 415, "INVALID_REQUEST").await;
    let anonymous = mesh.post("/hooks/github").header("x-hub-signature-256", SIGNATURE).body(BODY);
    assert_problem(sent(anonymous).await, 400, "INVALID_REQUEST").await;
    let large = own(&mesh, "1").header("x-large", "x".repeat(17 * 1024)).body("{}");
    assert_problem(sent(large).await, 431, "INVALID_REQUEST").await;
    let many = (0..130).fold(own(&mesh, "1"), |request, i| request.header(format!("x-{i}"), "1"));
    assert_problem(sent(many.body("{}")).await, 431, "INVALID_REQUEST").await;
    assert!(mesh.receiver.received().is_empty());

    let response = sent(mesh.get("/")).await;
    assert_eq!(response.status(), 200);
    assert!(response.text().await.unwrap().contains("/hooks/{source}"));
    mesh.stop().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_announced_or_not() {
    let mesh = MeshOfTwo::start("body_limit = 100").await;
    let head = "POST /hooks/own HTTP/1.1\r\nhost: x\r\nx-api-key: k-123\r\n";
    // Not a byte of it is sent, and none waited for.
    let announced = mesh.raw(&format!("{head}content-length: 101\r\n\r\n")).await;
    assert!(announced.starts_with("HTTP/1.1 413"), "{announced}");
    assert!(announced.contains("application/problem+json"), "{announced}");
    let chunk = "x".repeat(101);
    let chunked =
        mesh.raw(&format!("{head}transfer-encoding: chunked\r\n\r\n65\r\n{chunk}\r\n")).await;
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");
    let fits = own(&mesh, "1").body("x".repeat(100)).send().await.unwrap();
    assert_eq!(fits.status(), 202);
    mesh.stop().await;
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up() {
    let mesh = MeshOfTwo::start("body_timeout = \"300ms\"").await;
    let answer = mesh
        .raw(
            "POST /hooks/own HTTP/1.1\r\nhost: x\r\nx-api-key: k-123\r\ncontent-length: 9\r\n\r\nx",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("DEADLINE_EXCEEDED"), "{answer}");
    mesh.stop().await;
}

#[tokio::test]
async fn who_sends_half_a_header_or_nothing_is_cut_off() {
    let mesh = MeshOfTwo::start("").await;
    for sent in ["POST /hooks/own HTTP/1.1\r\nhost: x\r\nx-a", ""] {
        // Returns when the gateway closes the connection.
        let answer = mesh.raw(sent).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_refusal_inside_is_the_same_problem_outside() {
    let mesh = MeshOfTwo::start("").await;
    for (reason, status) in [
        (Reason::InvalidRequest, 422),
        (Reason::Denied, 403),
        (Reason::OutboxFull, 503),
        (Reason::Overloaded, 503),
        (Reason::StorageUnavailable, 503),
        (Reason::Draining, 503),
        (Reason::DeadlineExceeded, 504),
        (Reason::Internal, 500),
    ] {
        // One of its own in the batch, and the whole call's.
        for kind in [format!("refuse {}", reason.as_str()), format!("fail {}", reason.as_str())] {
            let request = own(&mesh, "1").header("x-event-type", &kind).body("{}");
            let document =
                assert_problem(request.send().await.unwrap(), status, reason.as_str()).await;
            let told = document["detail"].as_str().unwrap().contains("the fake's words");
            assert_eq!(told, reason == Reason::InvalidRequest, "{document}");
        }
    }
    mesh.stop().await;
}

#[tokio::test]
async fn without_hook_receiver_a_webhook_is_503_and_is_taken_when_it_is_back() {
    let mut mesh = MeshOfTwo::start("").await;
    mesh.stop_receiver().await;
    let response = own(&mesh, "1").body("{}").send().await.unwrap();
    assert_problem(response, 503, "NO_INSTANCE").await;
    mesh.start_receiver().await;
    let response = own(&mesh, "1").body("{}").send().await.unwrap();
    assert_eq!(response.status(), 202);
    mesh.stop().await;
}

#[tokio::test]
async fn a_sender_that_goes_away_takes_nobody_along() {
    let mesh = MeshOfTwo::start("").await;
    mesh.receiver.hold();
    let gone = tokio::spawn(own(&mesh, "gone").body("{}").send());
    let stays = tokio::spawn(own(&mesh, "stays").body("{}").send());
    until(|| mesh.receiver.calls().iter().sum::<usize>() == 2).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    mesh.receiver.release();
    assert_eq!(stays.await.unwrap().unwrap().status(), 202);
    mesh.stop().await;
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_takes_nothing_new() {
    let mut mesh = MeshOfTwo::start("").await;
    mesh.receiver.hold();
    let in_flight = tokio::spawn(own(&mesh, "1").body("{}").send());
    until(|| mesh.receiver.calls().len() == 1).await;
    let draining = mesh.drain_gateway();
    let address = mesh.gateway;
    tokio::time::timeout(DEADLINE, async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    mesh.receiver.release();
    assert_eq!(in_flight.await.unwrap().unwrap().status(), 202);
    draining.await.unwrap().unwrap();
    mesh.stop().await;
}

#[tokio::test]
async fn webhooks_are_counted_by_configured_source_and_class_of_status() {
    let mesh = MeshOfTwo::start("").await;
    for path in ["/hooks/zoo", "/hooks/nobody-1", "/hooks/nobody-2"] {
        mesh.post(path).header("x-api-key", "k-123").body("{}").send().await.unwrap();
    }
    let metrics = mesh.metrics().await;
    let counted = |source: &str, status: &str| {
        let labels = [format!("source=\"{source}\""), format!("status=\"{status}\"")];
        metrics.lines().any(|line| {
            line.starts_with("omni_webhooks") && labels.iter().all(|l| line.contains(l))
        })
    };
    assert!(counted("zoo", "2xx") && counted("unknown", "4xx"), "{metrics}");
    assert!(!metrics.contains("nobody"), "{metrics}");
    mesh.stop().await;
}

#[tokio::test]
async fn a_webhook_begins_a_trace_of_its_own_that_links_to_its_senders() {
    let mesh = MeshOfTwo::start("").await;
    // Theirs isn't sampled, which is no order for us.
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let webhook = own(&mesh, "1").header("traceparent", theirs).body("{}");
    assert_eq!(webhook.send().await.unwrap().status(), 202);
    let handed_on = trace::parse(&mesh.receiver.traceparents()[0]).unwrap();
    let theirs = trace::parse(theirs).unwrap();
    assert!(handed_on.is_sampled());
    assert_ne!(handed_on.trace_id(), theirs.trace_id());

    let span = Spans::of_trace(&handed_on.trace_id().to_string()).await;
    assert_eq!(span.name, "POST /hooks/{source}");
    assert_eq!(span.span_id, handed_on.span_id().to_bytes());
    assert!(span.parent_span_id.is_empty());
    assert_eq!(span.links.len(), 1);
    assert_eq!(span.links[0].trace_id, theirs.trace_id().to_bytes());
    mesh.stop().await;
}

#[tokio::test]
async fn a_problem_names_its_webhooks_trace() {
    let mesh = MeshOfTwo::start("").await;
    let response = mesh.post("/hooks/nobody").send().await.unwrap();
    let document = assert_problem(response, 404, "NOT_FOUND").await;
    let span = Spans::of_trace(document["trace_id"].as_str().unwrap()).await;
    let status = span.attributes.iter().find(|a| a.key == "http.response.status_code").unwrap();
    assert!(format!("{:?}", status.value).contains("404"), "{status:?}");
    mesh.stop().await;
}

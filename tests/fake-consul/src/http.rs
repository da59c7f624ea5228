//! The agent's HTTP API: its routes, and blocking queries.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, Request, State as Extract},
    http::{HeaderValue, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};

use crate::{
    Mood, Shared,
    state::{State, Topic},
};

/// How long a query is held that doesn't say it.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
/// The lock-delay of a session that doesn't say it.
const DEFAULT_LOCK_DELAY: Duration = Duration::from_secs(15);

/// Serves `listener`. Aborting this cuts all connections, as the end of a
/// process does.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let router = router(shared);
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            // A client that goes away is no concern of the agent's.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/agent/service/register", put(register))
        .route("/v1/agent/service/deregister/{id}", put(deregister))
        .route("/v1/agent/service/{id}", get(service))
        .route("/v1/health/connect/{name}", get(health_connect))
        .route("/v1/health/service/{name}", get(health_service))
        .route("/v1/catalog/services", get(catalog))
        .route("/v1/agent/connect/ca/leaf/{name}", get(leaf))
        .route("/v1/agent/connect/ca/roots", get(roots))
        .route("/v1/connect/intentions", get(intentions))
        .route("/v1/kv/{*key}", get(read_key).put(write_key).delete(delete_key))
        .route("/v1/session/create", put(create_session))
        .route("/v1/session/destroy/{id}", put(destroy_session))
        .route("/v1/session/info/{id}", get(session))
        .layer(middleware::from_fn_with_state(shared.clone(), behave))
        .with_state(shared)
}

/// Answers as the agent's mood is, and refuses other tokens than the one
/// required.
async fn behave(Extract(shared): Extract<Arc<Shared>>, request: Request, next: Next) -> Response {
    let required = shared.state().token.clone();
    let given = request.headers().get("X-Consul-Token");
    if required.is_some_and(|token| given.is_none_or(|given| given != token.as_str())) {
        return (StatusCode::FORBIDDEN, "Permission denied").into_response();
    }
    let mut mood = shared.mood.subscribe();
    let answer = next.run(request);
    tokio::pin!(answer);
    loop {
        let now = *mood.borrow_and_update();
        match now {
            Mood::Well => {}
            // Until the client gives up, even when the agent is well again.
            Mood::Hanging => std::future::pending().await,
            Mood::Failing(status) => {
                let status = StatusCode::from_u16(status).unwrap_or_default();
                return (status, "rpc error: No cluster leader").into_response();
            }
        }
        tokio::select! {
            answer = &mut answer => return answer,
            Ok(()) = mood.changed() => {}
        }
    }
}

/// What makes a request a blocking query.
#[derive(Default, Deserialize)]
struct Blocking {
    #[serde(default)]
    index: u64,
    wait: Option<String>,
}

/// Holds the request until `topic` changes after the index it names, then
/// answers what `read` finds.
async fn block(
    shared: Arc<Shared>,
    Query(since): Query<Blocking>,
    topic: Topic,
    read: impl FnOnce(&mut State) -> Option<Value>,
) -> Response {
    let wait = since.wait.map_or(Some(DEFAULT_WAIT), |wait| parse_duration(&wait));
    let Some(wait) = wait else {
        return (StatusCode::BAD_REQUEST, "Invalid wait time").into_response();
    };
    let end = Instant::now() + wait + wait / 16;
    let mut changes = shared.changes.subscribe();
    let epoch = shared.state().epoch;
    while since.index > 0 && Instant::now() < end {
        {
            let state = shared.state();
            if state.index(topic) > since.index || state.epoch != epoch {
                break;
            }
        }
        // The end of the wait is an answer too.
        let _ = tokio::time::timeout_at(end, changes.changed()).await;
    }
    let (found, index) = {
        let mut state = shared.state();
        let found = read(&mut state);
        (found, state.index(topic))
    };
    let headers = [("X-Consul-Index", index.to_string())];
    match found {
        Some(value) => (headers, Json(value)).into_response(),
        None => (StatusCode::NOT_FOUND, headers).into_response(),
    }
}

/// A duration of one number and one unit, as clients write it.
fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..unit].parse().ok()?;
    match &text[unit..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(60 * number)),
        _ => None,
    }
}

type Agent = Extract<Arc<Shared>>;

/// Consul doesn't ask for a content type.
async fn register(Extract(shared): Agent, body: Bytes) -> Response {
    let service = match serde_json::from_slice::<Value>(&body) {
        Ok(service) => service,
        Err(why) => return (StatusCode::BAD_REQUEST, why.to_string()).into_response(),
    };
    let meta = service["Meta"].as_object();
    let invalid = meta.is_some_and(|meta| {
        let long = |value: &Value| value.as_str().is_none_or(|v| v.len() > 512);
        meta.len() > 64 || meta.values().any(long)
    });
    if invalid {
        return (StatusCode::BAD_REQUEST, "Invalid Service Meta").into_response();
    }
    shared.change(|state| state.register(service));
    StatusCode::OK.into_response()
}

async fn deregister(Extract(shared): Agent, Path(id): Path<String>) -> Response {
    if shared.state().services.contains_key(&id) {
        shared.change(|state| state.deregister(&id));
        return StatusCode::OK.into_response();
    }
    (StatusCode::NOT_FOUND, format!("Unknown service ID {id:?}")).into_response()
}

/// A query that blocks by the hash of what it answered before.
#[derive(Default, Deserialize)]
struct Hashed {
    #[serde(default)]
    hash: String,
    wait: Option<String>,
}

async fn service(
    Extract(shared): Agent,
    Query(since): Query<Hashed>,
    Path(id): Path<String>,
) -> Response {
    let wait = since.wait.and_then(|wait| parse_duration(&wait)).unwrap_or(DEFAULT_WAIT);
    let end = Instant::now() + wait;
    let mut changes = shared.changes.subscribe();
    loop {
        let known = shared.state().known(&id);
        let Some(known) = known else {
            return (StatusCode::NOT_FOUND, format!("unknown service ID: {id}")).into_response();
        };
        if known["ContentHash"] != since.hash || Instant::now() >= end {
            return Json(known).into_response();
        }
        // The end of the wait is an answer too.
        let _ = tokio::time::timeout_at(end, changes.changed()).await;
    }
}

async fn health_connect(
    Extract(shared): Agent,
    since: Query<Blocking>,
    Path(name): Path<String>,
) -> Response {
    let hidden = shared.state().hidden.contains(&name);
    let read = move |state: &mut State| Some(state.health(&name, true));
    let mut answer = block(shared, since, Topic::Services, read).await;
    if hidden {
        let filtered = HeaderValue::from_static("true");
        answer.headers_mut().insert("X-Consul-Results-Filtered-By-ACLs", filtered);
    }
    answer
}

async fn health_service(
    Extract(shared): Agent,
    since: Query<Blocking>,
    Path(name): Path<String>,
) -> Response {
    let read = move |state: &mut State| Some(state.health(&name, false));
    block(shared, since, Topic::Services, read).await
}

async fn catalog(Extract(shared): Agent, since: Query<Blocking>) -> Response {
    block(shared, since, Topic::Services, |state| Some(state.catalog())).await
}

async fn leaf(
    Extract(shared): Agent,
    since: Query<Blocking>,
    Path(name): Path<String>,
) -> Response {
    let read = move |state: &mut State| Some(state.leaf(&name));
    block(shared, since, Topic::Leafs, read).await
}

async fn roots(Extract(shared): Agent, since: Query<Blocking>) -> Response {
    block(shared, since, Topic::Roots, |state| Some(state.ca.describe_roots())).await
}

async fn intentions(Extract(shared): Agent, since: Query<Blocking>) -> Response {
    block(shared, since, Topic::Intentions, |state| {
        Some(state.intentions.values().cloned().collect())
    })
    .await
}

async fn read_key(
    Extract(shared): Agent,
    since: Query<Blocking>,
    Query(KeyQuery { recurse, .. }): Query<KeyQuery>,
    Path(key): Path<String>,
) -> Response {
    let read = move |state: &mut State| match recurse.as_deref() {
        Some("true" | "") => state.keys(&key),
        _ => state.key(&key),
    };
    block(shared, since, Topic::Keys, read).await
}

/// What is asked of a key, or of all that begin with it.
#[derive(Default, Deserialize)]
struct KeyQuery {
    recurse: Option<String>,
    cas: Option<u64>,
    /// The session that locks it, or lets go of it.
    acquire: Option<String>,
    release: Option<String>,
}

async fn write_key(
    Extract(shared): Agent,
    Query(KeyQuery { cas, acquire, release, .. }): Query<KeyQuery>,
    Path(key): Path<String>,
    value: Bytes,
) -> Response {
    let set = shared.change(|state| match (cas, acquire, release) {
        (_, Some(session), _) => state.acquire_key(&key, &value, &session),
        (_, _, Some(session)) => Ok(state.release_key(&key, &value, &session)),
        (Some(index), ..) => Ok(state.check_and_set(&key, &value, index)),
        _ => {
            state.set_key(&key, &value);
            Ok(true)
        }
    });
    match set {
        Ok(set) => Json(set).into_response(),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, why).into_response(),
    }
}

async fn delete_key(Extract(shared): Agent, Path(key): Path<String>) -> Response {
    shared.change(|state| state.delete_key(&key));
    Json(true).into_response()
}

async fn create_session(Extract(shared): Agent, body: Bytes) -> Response {
    let session = match serde_json::from_slice::<Value>(&body) {
        Ok(session) => session,
        Err(why) => return (StatusCode::BAD_REQUEST, why.to_string()).into_response(),
    };
    let delay = match session["LockDelay"].as_str() {
        Some(delay) => parse_duration(delay),
        None => Some(DEFAULT_LOCK_DELAY),
    };
    let Some(delay) = delay else {
        return (StatusCode::BAD_REQUEST, "Request decode failed: LockDelay").into_response();
    };
    match shared.change(|state| state.create_session(session, delay)) {
        Ok(created) => Json(created).into_response(),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, why).into_response(),
    }
}

/// Says that it did, whether there was such a session or not.
async fn destroy_session(Extract(shared): Agent, Path(id): Path<String>) -> Response {
    shared.change(|state| state.destroy_session(&id));
    Json(true).into_response()
}

async fn session(Extract(shared): Agent, Path(id): Path<String>) -> Response {
    Json(shared.state().session(&id)).into_response()
}

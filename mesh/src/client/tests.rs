//! The whole outbound stack against real servers of the mesh, scripted.

mod versions;

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    num::NonZeroU16,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use rustls::crypto::aws_lc_rs;
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, sync::oneshot, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tower::util::BoxCloneSyncService;
use watchdog::Watchdog;

use super::*;
use crate::{
    config::Config,
    identity::{Authority, dev::DevAuthority},
    registry::{Deregister, Instance, Registration, Snapshot},
    server::{self, Security},
    status::{Reason, reason, status, status_after},
};

/// A method that may be asked twice, by its `idempotency_level`.
const IDEMPOTENT: &str = "/test.v1.Test/Get";
/// One of which nothing is known.
const UNKNOWN: &str = "/test.v1.Test/Do";
/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(10);

type Answer = BoxFuture<'static, Response<Body>>;

/// A CA, and a registry that says what the test wants.
struct Mesh {
    authority: DevAuthority,
    config: Config,
    instances: watch::Sender<Snapshot>,
    policy: watch::Sender<Arc<Policy>>,
    _data: TempDir,
    _watchdog: Watchdog,
}

impl Mesh {
    fn new(toml: &str) -> Self {
        // Another test may have been first.
        let _ = aws_lc_rs::default_provider().install_default();
        crate::descriptors::add_test_service();
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("omni.toml");
        std::fs::write(&file, toml).unwrap();
        let flags = [("data", data.path().display().to_string())];
        let config = Config::from_sources(Some(&file), HashMap::new(), &flags).unwrap();
        let policy = Policy { routes: config.routes.clone(), ..Policy::default() };
        Self {
            authority: DevAuthority::open(&config).unwrap(),
            config,
            instances: watch::channel(Snapshot::default()).0,
            policy: watch::channel(Arc::new(policy)).0,
            _data: data,
            _watchdog: Watchdog::start(),
        }
    }

    async fn client(&self) -> Client {
        let identity = self.authority.identity("caller").await.unwrap();
        let registry = Arc::new(Told(self.instances.subscribe()));
        Client::new(identity, registry, self.policy.subscribe(), Interceptors::default())
    }

    async fn channel(&self) -> Channel {
        self.client().await.channel("called").await.unwrap()
    }

    /// Says that these are the instances now.
    fn are(&self, instances: &[&Server]) {
        let instances = instances.iter().map(|server| server.instance.clone()).collect();
        self.instances.send_replace(instances);
    }

    async fn server<F, A>(&self, name: &str, answer: F) -> Server
    where
        F: Fn(u32, Request<Body>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        self.server_at("127.0.0.1:0".parse().unwrap(), name, answer).await
    }

    /// A server that is `name` and answers its nth request as `answer` says.
    async fn server_at<F, A>(&self, address: SocketAddr, name: &str, answer: F) -> Server
    where
        F: Fn(u32, Request<Body>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let identity = self.authority.identity(name).await.unwrap();
        // Of its own, so that all of it can be ended at once.
        let runtime = Runtime::new().unwrap();
        let listener = runtime.spawn(TcpListener::bind(address)).await.unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let counted = asked.clone();
        let app = BoxCloneSyncService::new(tower::service_fn(move |request| {
            let nth = counted.fetch_add(1, Ordering::Relaxed);
            let answer = answer(nth, request);
            async move { Ok::<_, Infallible>(answer.await) }
        }));
        let (limits, stop) = (self.config.limits.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let security = Security::Mesh { identity, in_place: false };
        let serving = runtime.spawn(async move {
            server::serve(listener, security, &limits, app, stopped, DEADLINE).await;
        });
        let instance = Instance {
            id: format!("called@{address}"),
            service: "called".to_owned(),
            address,
            admin: None,
            version: semver::Version::new(1, 0, 0),
            packages: vec![],
            capabilities: vec![],
            weight: NonZeroU16::MIN,
            healthy: true,
        };
        Server { instance, asked, stop, serving, runtime: Some(runtime) }
    }
}

/// A registry that says what it is told.
struct Told(watch::Receiver<Snapshot>);

#[async_trait::async_trait]
impl Registry for Told {
    async fn register(&self, _: Instance) -> Result<Registration, Error> {
        Ok(Registration::new(Nothing))
    }

    async fn watch(&self, service: &str) -> Result<watch::Receiver<Snapshot>, Error> {
        let (mut all, service) = (self.0.clone(), service.to_owned());
        let of = move |all: &Snapshot| -> Snapshot {
            all.iter().filter(|instance| instance.service == service).cloned().collect()
        };
        let (told, watched) = watch::channel(of(&all.borrow_and_update()));
        tokio::spawn(async move {
            while all.changed().await.is_ok() {
                told.send_replace(of(&all.borrow_and_update()));
            }
        });
        Ok(watched)
    }

    async fn services(&self) -> Result<std::collections::BTreeMap<String, Snapshot>, Error> {
        Ok(std::collections::BTreeMap::new())
    }
}

struct Nothing;

#[async_trait::async_trait]
impl Deregister for Nothing {
    async fn deregister(self: Box<Self>) {}
    fn abandon(self: Box<Self>) {}
}

struct Server {
    instance: Instance,
    asked: Arc<AtomicU32>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Server {
    fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Ends it when what is in flight is answered.
    async fn drain(mut self) {
        self.stop.cancel();
        (&mut self.serving).await.unwrap();
    }
}

impl Drop for Server {
    /// Ends it at once, with all its connections.
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn ok() -> Response<Body> {
    let mut response = tonic::Status::ok("").into_http();
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

/// An answer that breaks off.
fn lose() -> Response<Body> {
    let broken = futures::stream::once(async { Err::<http_body::Frame<bytes::Bytes>, _>("lost") });
    Response::new(Body::new(http_body_util::StreamBody::new(broken).map_err(std::io::Error::other)))
}

async fn call(channel: &Channel, path: &str) -> Result<Response<Body>, Status> {
    let request = Request::builder().method("POST").uri(path);
    let request = request.header("te", "trailers").body(Body::empty()).unwrap();
    let answer = tower::ServiceExt::oneshot(channel.clone(), request);
    let response = tokio::time::timeout(DEADLINE, answer).await.expect("it is answered")?;
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(response),
    }
}

/// Waits until the channel has connections to so many instances.
async fn connected(client: &Client, instances: usize) {
    let wait = async {
        loop {
            let upstreams = client.upstreams().await;
            let ready = upstreams.iter().flat_map(|upstream| &upstream.instances);
            if ready.filter(|i| i.state == InstanceState::Ready).count() == instances {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("all are connected");
}

async fn always_ok(_: u32, _: Request<Body>) -> Response<Body> {
    ok()
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_of_another_instance_if_that_is_safe() {
    let mesh = Mesh::new("");
    let loses = mesh.server("called", |_, _| async { lose() }).await;
    let answers = mesh.server("called", always_ok).await;
    mesh.are(&[&loses, &answers]);
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    connected(&client, 2).await;
    for _ in 0..20 {
        call(&channel, IDEMPOTENT).await.unwrap();
    }
    assert!(loses.asked() > 0 && answers.asked() >= 20);

    mesh.are(&[&loses]);
    connected(&client, 1).await;
    let before = loses.asked();
    let answered = match call(&channel, UNKNOWN).await {
        Ok(answer) => answer.into_body().collect().await.is_ok_and(|all| all.trailers().is_some()),
        Err(_) => false,
    };
    assert!(!answered);
    assert_eq!(loses.asked(), before + 1, "nobody knows whether it may be asked twice");
}

#[tokio::test]
async fn an_instance_that_can_not_answer_now_sends_the_call_to_another() {
    let mesh = Mesh::new("");
    let full = status(Reason::StorageUnavailable, "full");
    let full = status_after(reason(&full), "full", Duration::from_millis(1));
    let full =
        mesh.server("called", move |_, _| std::future::ready(full.clone().into_http())).await;
    let answers = mesh.server("called", always_ok).await;
    mesh.are(&[&full, &answers]);
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    connected(&client, 2).await;
    for _ in 0..20 {
        call(&channel, IDEMPOTENT).await.unwrap();
    }
    assert!(full.asked() < 20, "it is chosen less and less");
}

#[tokio::test]
async fn a_pause_that_is_asked_for_is_kept_and_a_full_outbox_is_not_asked_again() {
    let mesh = Mesh::new("");
    let pause = Duration::from_millis(300);
    let busy = mesh
        .server("called", move |nth, _| async move {
            match nth {
                0 => status_after(Reason::Overloaded, "busy", pause).into_http(),
                1 => ok(),
                _ => status(Reason::OutboxFull, "full").into_http(),
            }
        })
        .await;
    mesh.are(&[&busy]);
    let channel = mesh.channel().await;
    let begun = Instant::now();
    call(&channel, IDEMPOTENT).await.unwrap();
    assert!(begun.elapsed() >= pause);
    let refused = call(&channel, IDEMPOTENT).await.unwrap_err();
    assert_eq!((reason(&refused), busy.asked()), (Reason::OutboxFull, 3));
}

#[tokio::test]
async fn a_second_try_has_the_time_that_is_left_and_no_more() {
    let mesh =
        Mesh::new(&format!("[routes.\"{IDEMPOTENT}\"]\ntimeout = \"2s\"\nbackoff = \"200ms\""));
    let (told, mut tells) = tokio::sync::mpsc::channel(8);
    let server = mesh
        .server("called", move |nth, request| {
            let left = deadline::parse(request.headers()).unwrap();
            let told = told.clone();
            async move {
                told.send(left).await.unwrap();
                if nth == 0 { Status::unavailable("not now").into_http() } else { ok() }
            }
        })
        .await;
    mesh.are(&[&server]);
    call(&mesh.channel().await, IDEMPOTENT).await.unwrap();
    let (first, second) = (tells.recv().await.unwrap(), tells.recv().await.unwrap());
    assert!(first <= Duration::from_secs(2));
    assert!(second + Duration::from_millis(100) <= first, "{first:?} then {second:?}");
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_followed_by_one_elsewhere() {
    let mesh = Mesh::new("[routes.\"*\"]\ntry_timeout = \"150ms\"");
    let hangs = mesh.server("called", |_, _| std::future::pending()).await;
    let answers = mesh.server("called", always_ok).await;
    mesh.are(&[&hangs, &answers]);
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    connected(&client, 2).await;
    for _ in 0..10 {
        call(&channel, IDEMPOTENT).await.unwrap();
    }
    assert!(hangs.asked() <= 3, "who hangs has calls in flight and is slow: {}", hangs.asked());
}

#[tokio::test]
async fn a_method_that_fails_opens_its_breaker_and_no_other() {
    let mesh = Mesh::new("[routes.\"*\"]\ntries = 1\nbreaker_open = \"2s\"");
    let fails = mesh
        .server("called", |nth, request| {
            let fails = request.uri().path() == IDEMPOTENT && nth < 7;
            async move { if fails { Status::unavailable("no").into_http() } else { ok() } }
        })
        .await;
    mesh.are(&[&fails]);
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    for _ in 0..5 {
        assert_eq!(call(&channel, IDEMPOTENT).await.unwrap_err().message(), "no");
    }
    let refused = call(&channel, IDEMPOTENT).await.unwrap_err();
    assert_eq!((reason(&refused), fails.asked()), (Reason::CircuitOpen, 5));
    let shown = &client.upstreams().await[0].breakers;
    assert_eq!(*shown, [(IDEMPOTENT.to_owned(), BreakerState::Open)]);
    call(&channel, "/test.v1.Test/List").await.unwrap();

    let probe = async || loop {
        match call(&channel, IDEMPOTENT).await {
            Err(refused) if reason(&refused) == Reason::CircuitOpen => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answered => return answered,
        }
    };
    assert_eq!(probe().await.unwrap_err().message(), "no", "a failed probe");
    assert_eq!(reason(&call(&channel, IDEMPOTENT).await.unwrap_err()), Reason::CircuitOpen);
    probe().await.unwrap();
    call(&channel, IDEMPOTENT).await.unwrap();
}

#[tokio::test]
async fn routes_change_while_calls_are_made() {
    let mesh = Mesh::new("");
    let server =
        mesh.server("called", |_, _| async { Status::unavailable("never").into_http() }).await;
    mesh.are(&[&server]);
    let channel = mesh.channel().await;
    call(&channel, IDEMPOTENT).await.unwrap_err();
    assert_eq!(server.asked(), 3);
    let routes = toml::from_str("\"*\" = { tries = 1 }").unwrap();
    mesh.policy.send_replace(Arc::new(Policy { routes, ..Policy::default() }));
    call(&channel, IDEMPOTENT).await.unwrap_err();
    assert_eq!(server.asked(), 4);
}

#[tokio::test]
async fn another_service_at_a_known_address_gets_no_call() {
    let mesh = Mesh::new("");
    let other = mesh.server("other", always_ok).await;
    mesh.are(&[&other]);
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    let refused = call(&channel, IDEMPOTENT).await.unwrap_err();
    assert_eq!((reason(&refused), other.asked()), (Reason::NoInstance, 0));
    assert!(refused.message().contains("called"), "{}", refused.message());

    let right = mesh.server("called", always_ok).await;
    mesh.are(&[&other, &right]);
    for _ in 0..10 {
        call(&channel, IDEMPOTENT).await.unwrap();
    }
    assert_eq!(other.asked(), 0);
    let upstream = &client.upstreams().await[0];
    let states: Vec<_> = upstream.instances.iter().map(|i| i.state).collect();
    assert_eq!(states, [InstanceState::Unconnected, InstanceState::Ready]);
}

#[tokio::test]
async fn an_instance_that_falls_ill_and_recovers_keeps_its_connection() {
    let mesh = Mesh::new("");
    let server = mesh.server("called", always_ok).await;
    mesh.are(&[&server]);
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    let peer = |answer: Response<Body>| answer.extensions().get::<Arc<Peer>>().cloned().unwrap();
    let before = peer(call(&channel, IDEMPOTENT).await.unwrap());
    for healthy in [false, true] {
        let told = Instance { healthy, ..server.instance.clone() };
        mesh.instances.send_replace(Arc::from([told]));
        let seen = async {
            let state = if healthy { InstanceState::Ready } else { InstanceState::Unhealthy };
            while client.upstreams().await[0].instances[0].state != state {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(DEADLINE, seen).await.unwrap();
        let now = peer(call(&channel, IDEMPOTENT).await.unwrap());
        assert!(Arc::ptr_eq(&before, &now), "another connection");
    }
}

#[tokio::test]
async fn an_idle_client_finds_an_instance_that_came_back() {
    let mesh = Mesh::new("");
    let server = mesh.server("called", always_ok).await;
    mesh.are(&[&server]);
    let channel = mesh.channel().await;
    call(&channel, IDEMPOTENT).await.unwrap();
    let (address, kept) = (server.instance.address, server.instance.clone());
    drop(server);
    let gone = call(&channel, IDEMPOTENT).await.unwrap_err();
    assert_eq!(reason(&gone), Reason::NoInstance);
    let back = mesh.server_at(address, "called", always_ok).await;
    assert_eq!(back.instance, kept);
    let found = async { while call(&channel, IDEMPOTENT).await.is_err() {} };
    tokio::time::timeout(DEADLINE, found).await.unwrap();
}

#[tokio::test]
async fn who_drains_answers_what_it_has_and_gets_nothing_more() {
    let mesh = Mesh::new("");
    let (hold, held) = oneshot::channel::<()>();
    let held = Arc::new(Mutex::new(Some(held)));
    let goes = mesh
        .server("called", move |_, _| -> Answer {
            let held = held.clone();
            Box::pin(async move {
                let held = held.lock().await.take();
                if let Some(held) = held {
                    let _ = held.await;
                }
                ok()
            })
        })
        .await;
    mesh.are(&[&goes]);
    let channel = mesh.channel().await;
    let first = tokio::spawn({
        let channel = channel.clone();
        async move { call(&channel, IDEMPOTENT).await }
    });
    while goes.asked() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stays = mesh.server("called", always_ok).await;
    mesh.are(&[&goes, &stays]);
    let asked = goes.asked.clone();
    let draining = tokio::spawn(goes.drain());
    while stays.asked() < 20 {
        call(&channel, IDEMPOTENT).await.unwrap();
        call(&channel, UNKNOWN).await.unwrap();
    }
    hold.send(()).unwrap();
    first.await.unwrap().unwrap();
    draining.await.unwrap();
    assert!(asked.load(Ordering::Relaxed) < 20);
}

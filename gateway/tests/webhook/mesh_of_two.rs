//! A mesh of two services in this process: the gateway, and a hook-receiver
//! that stores nothing and does as it is told.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use crate::spans::Spans;
use api::hooks::v1::{
    self as pb, NewHook, Receipt, ReceiveBatchRequest, ReceiveBatchResponse, ReceiveBatchResult,
    Refusal,
    hook_receiver_server::{HookReceiver, HookReceiverServer, SERVICE_NAME},
    receive_batch_result::Outcome,
};
use gateway::Gateway;
use mesh::{
    Error,
    config::Config,
    service::{Context, Descriptor, Phase, Process, Role, Service, Surface},
    status::{Reason, status},
    telemetry::Telemetry,
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};
use watchdog::Watchdog;

/// How long anything here may take before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// The gateway and a hook-receiver, running.
pub struct MeshOfTwo {
    pub gateway: SocketAddr,
    pub receiver: Arc<Fake>,
    http: reqwest::Client,
    process: Arc<Process>,
    gateway_runs: Option<Running>,
    receiver_runs: Option<Running>,
    _folder: TempDir,
    _watchdog: Watchdog,
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl MeshOfTwo {
    /// Starts both, with `hooks` as additional lines of the section `[hooks]`.
    pub async fn start(hooks: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let key = hex::encode(Sha256::digest("k-123"));
        let toml = format!(
            r#"
            data = "{data}"
            drain_timeout = "8s"
            limits.handshake_timeout = "1s"
            limits.first_byte_timeout = "1s"
            services.gateway.port = 0
            services.hook-receiver.port = 0
            [hooks]
            {hooks}
            sources.github = {{ scheme = "github", secret = "It's a Secret to Everybody" }}
            sources.own = {{ scheme = "api-key", key_sha256 = "{key}" }}
            sources.zoo = {{ scheme = "api-key", key_sha256 = "{key}" }}
            "#,
            data = folder.path().join("data").display(),
        );
        let file = folder.path().join("omni.toml");
        std::fs::write(&file, toml).unwrap();
        let config = Config::from_sources(Some(&file), HashMap::new(), &[]).unwrap();
        let telemetry = telemetry(&config);
        let declared = mesh::service::declared(&[Gateway.descriptor()]);
        let process = Process::start(Arc::new(config), telemetry, &declared, 0).await.unwrap();
        let process = Arc::new(process);

        let receiver = Arc::new(Fake::default());
        let (receiver_runs, _) = run(&process, Arc::new(FakeService(receiver.clone()))).await;
        let (gateway_runs, gateway) = run(&process, Arc::new(Gateway)).await;
        Self {
            gateway,
            receiver,
            http: reqwest::Client::builder().tls_certs_only([]).build().expect("it needs nothing"),
            process,
            gateway_runs: Some(gateway_runs),
            receiver_runs: Some(receiver_runs),
            _folder: folder,
            _watchdog: Watchdog::start(),
        }
    }

    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("http://{}{path}", self.gateway))
    }

    pub fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.post(format!("http://{}{path}", self.gateway))
    }

    /// Sends `bytes` and reads until the gateway closes the connection.
    pub async fn raw(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.gateway).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        // A reset is an end as well.
        let _ = closed.expect("the gateway holds the connection");
        String::from_utf8(answer).unwrap()
    }

    /// What the admin port says of the metrics.
    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.process.admin_address());
        self.http.get(url).send().await.unwrap().text().await.unwrap()
    }

    pub async fn stop_receiver(&mut self) {
        stop(self.receiver_runs.take()).await;
    }

    pub async fn start_receiver(&mut self) {
        let service = Arc::new(FakeService(self.receiver.clone()));
        self.receiver_runs = Some(run(&self.process, service).await.0);
    }

    /// Lets the gateway drain; the answer ends when it has.
    pub fn drain_gateway(&mut self) -> JoinHandle<Result<(), Error>> {
        let running = self.gateway_runs.take().unwrap();
        running.stop.cancel();
        running.task
    }

    pub async fn stop(mut self) {
        stop(self.gateway_runs.take()).await;
        stop(self.receiver_runs.take()).await;
        self.process.stop().await;
    }
}

/// One telemetry for all tests, and its own runtime: it is a process's own, and
/// outlives each test's.
fn telemetry(config: &Config) -> Arc<Telemetry> {
    static TELEMETRY: OnceLock<(Arc<Telemetry>, tokio::runtime::Runtime)> = OnceLock::new();
    let mut config = config.clone();
    let start = move || {
        // As `omni` does, first of all.
        rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let telemetry = runtime.block_on(async {
            config.telemetry.endpoint = Some(Spans::collect().await);
            Telemetry::start(&config).unwrap()
        });
        (Arc::new(telemetry), runtime)
    };
    // A runtime can't be entered from within the test's.
    let started = || std::thread::spawn(start).join().unwrap();
    TELEMETRY.get_or_init(started).0.clone()
}

/// Runs `service` and waits until it is ready.
async fn run(process: &Arc<Process>, service: Arc<dyn Service>) -> (Running, SocketAddr) {
    let (ready, is_ready) = oneshot::channel();
    let stop = CancellationToken::new();
    let (process, stopped) = (process.clone(), stop.clone());
    let task = tokio::spawn(async move { process.run(service, ready, stopped).await });
    match tokio::time::timeout(DEADLINE, is_ready).await.unwrap() {
        Ok(address) => (Running { stop, task }, address),
        Err(_) => panic!("{:?}", task.await),
    }
}

async fn stop(running: Option<Running>) {
    if let Some(Running { stop, task }) = running {
        stop.cancel();
        tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap().unwrap();
    }
}

/// Waits until `condition` holds.
pub async fn until(condition: impl Fn() -> bool) {
    let held = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, held).await.expect("the condition never held");
}

/// What the tests' hook-receiver saw, and what it is to do.
pub struct Fake {
    hooks: Mutex<Vec<NewHook>>,
    calls: Mutex<Vec<usize>>,
    traceparents: Mutex<Vec<String>>,
    takes: Mutex<Duration>,
    held: watch::Sender<bool>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            hooks: Mutex::default(),
            calls: Mutex::default(),
            traceparents: Mutex::default(),
            takes: Mutex::default(),
            held: watch::Sender::new(false),
        }
    }
}

impl Fake {
    /// The hooks it took, in order.
    pub fn received(&self) -> Vec<NewHook> {
        self.hooks.lock().unwrap().clone()
    }

    /// The trace contexts of the items it took, in order.
    pub fn traceparents(&self) -> Vec<String> {
        self.traceparents.lock().unwrap().clone()
    }

    /// How many items each call had that has begun.
    pub fn calls(&self) -> Vec<usize> {
        self.calls.lock().unwrap().clone()
    }

    /// Lets each call take this long.
    pub fn take_for(&self, time: Duration) {
        *self.takes.lock().unwrap() = time;
    }

    /// Answers no call until [`Fake::release`].
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    pub fn release(&self) {
        self.held.send_replace(false);
    }

    fn receive(&self, hook: NewHook) -> Result<ReceiveBatchResult, Status> {
        let named = |prefix: &str| Reason::named(hook.r#type.strip_prefix(prefix)?);
        let words = "the fake's words";
        if let Some(reason) = named("fail ") {
            return Err(status(reason, words));
        }
        let outcome = match named("refuse ") {
            Some(reason) => Outcome::Refusal(Refusal {
                code: reason.code().into(),
                message: words.to_owned(),
                reason: reason.as_str().to_owned(),
            }),
            None => {
                let mut hooks = self.hooks.lock().unwrap();
                let seen: HashSet<_> = hooks.iter().map(|h| (&h.source, &h.delivery_id)).collect();
                let duplicate = seen.contains(&(&hook.source, &hook.delivery_id));
                let receipt = Receipt {
                    id: format!("hook-{}", hook.delivery_id),
                    correlation_id: hook.correlation_id.clone(),
                    session_id: hook.session_id.clone(),
                    duplicate,
                };
                hooks.push(hook);
                Outcome::Receipt(receipt)
            }
        };
        Ok(ReceiveBatchResult { outcome: Some(outcome), trace: None })
    }
}

struct FakeService(Arc<Fake>);

#[tonic::async_trait]
impl Service for FakeService {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            name: "hook-receiver",
            version: "0.1.0",
            port: None,
            section: None,
            phase: Phase::Services,
            role: Role::Ordinary,
            dependencies: &[],
            optional: &[],
            descriptors: api::DESCRIPTORS,
            grpc_services: &[SERVICE_NAME],
            capabilities: &[],
            migrations: None,
            bodies: None,
        }
    }

    async fn start(&self, _: &Context) -> Result<Surface, Error> {
        Ok(Surface::Grpc(Routes::new(HookReceiverServer::from_arc(self.0.clone()))))
    }
}

#[tonic::async_trait]
impl HookReceiver for Fake {
    async fn receive_batch(
        &self,
        request: Request<ReceiveBatchRequest>,
    ) -> Result<Response<ReceiveBatchResponse>, Status> {
        let items = request.into_inner().items;
        self.calls.lock().unwrap().push(items.len());
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        let takes = *self.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        let traces = items.iter().filter_map(|item| item.trace.clone());
        self.traceparents.lock().unwrap().extend(traces.map(|trace| trace.traceparent));
        let hooks = items.into_iter().filter_map(|item| item.hook);
        let results = hooks.map(|hook| self.receive(hook)).collect::<Result<_, _>>()?;
        Ok(Response::new(ReceiveBatchResponse { results }))
    }

    async fn receive(
        &self,
        _: Request<pb::ReceiveRequest>,
    ) -> Result<Response<pb::ReceiveResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_hook(
        &self,
        _: Request<pb::GetHookRequest>,
    ) -> Result<Response<pb::GetHookResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_hooks(
        &self,
        _: Request<pb::ListHooksRequest>,
    ) -> Result<Response<pb::ListHooksResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchHooksStream = futures::stream::Pending<Result<pb::WatchHooksResponse, Status>>;

    async fn watch_hooks(
        &self,
        _: Request<pb::WatchHooksRequest>,
    ) -> Result<Response<Self::WatchHooksStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_session(
        &self,
        _: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_sessions(
        &self,
        _: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

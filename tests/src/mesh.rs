//! A running mesh, and what an operator can do with it; in `webhook`, what a sender can.

mod webhook;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use mesh::{
    client::{Channel, Client},
    config::Config,
    identity::Identity,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use self::webhook::{Answer, signature};
use crate::{
    Layout,
    backends::Backends,
    process::{self, Offspring, Process},
    traces::Traces,
    until,
};

/// The secret of the source `demo`, and the key of the source `robot`.
pub const SECRET: &str = "It's a Secret to Everybody";
/// The key of the sources `robot` and `shop`.
pub const API_KEY: &str = "robot-key";

/// What is in the configuration's file beside the policy: the source `shop`, whose
/// webhooks hold what must not be kept.
const SOURCES: &str = r#"
[hooks]
hash_secret = "the hashes' key"

[hooks.sources.shop.sensitive]
redact = ["$.card.number", "$..password"]
hash = ["$.customer.email"]
headers = ["x-customer"]
"#;

/// Three services on one of the layouts. It ends with its test.
pub struct Mesh {
    /// How it is laid out.
    pub layout: Layout,
    /// Its backends.
    pub backends: Backends,
    /// Its traces.
    pub traces: Traces,
    settings: HashMap<String, String>,
    processes: Mutex<HashMap<&'static str, Process>>,
    /// Where the gateway is, until one is started or taken.
    gateway: Mutex<Option<SocketAddr>>,
    /// Behind the processes, whose logs are in it.
    data: tempfile::TempDir,
    http: reqwest::Client,
}

impl Mesh {
    /// Starts a mesh, and waits until every service is healthy.
    ///
    /// # Panics
    /// When it doesn't start.
    pub async fn start(layout: Layout) -> Self {
        Self::start_with(layout, &[]).await
    }

    /// As [`Mesh::start`], with further settings by their variables.
    ///
    /// # Panics
    /// When it doesn't start.
    pub async fn start_with(layout: Layout, more: &[(&str, String)]) -> Self {
        let mesh = Self::begin(layout, more).await;
        mesh.healthy().await;
        mesh
    }

    /// As [`Mesh::start_with`], but waits for nothing.
    ///
    /// # Panics
    /// When a process can't be started.
    pub async fn begin(layout: Layout, more: &[(&str, String)]) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        mesh::descriptors::add(api::DESCRIPTORS).expect("they are ours");
        let data = tempfile::tempdir().expect("there is room");
        let backends = Backends::start(layout, data.path()).await;
        let http = reqwest::Client::builder().tls_certs_only([]).build().expect("it needs nothing");
        let (traces, otlp) = match &backends {
            Backends::Real(told) => (
                Traces::Jaeger(told["JAEGER_QUERY"].clone(), http.clone()),
                told["OTEL_EXPORTER_OTLP_ENDPOINT"].clone(),
            ),
            _ => Traces::collect().await,
        };
        let mut settings: HashMap<String, String> = backends.settings().into_iter().collect();
        let key = hex::encode(Sha256::digest(API_KEY));
        for (name, value) in [
            ("OMNI_DATA", data.path().to_str().expect("a path in UTF-8")),
            ("OMNI_TELEMETRY__ENDPOINT", &otlp),
            ("OMNI_DRAIN_TIMEOUT", "8s"),
            ("OMNI_CONSUL__CHECK_INTERVAL", "2s"),
            ("OMNI_SERVICES__GATEWAY__PORT", "0"),
            ("OMNI_SERVICES__GATEWAY__ADMIN_PORT", "0"),
            ("OMNI_SERVICES__HOOK_RECEIVER__PORT", "0"),
            ("OMNI_SERVICES__HOOK_RECEIVER__ADMIN_PORT", "0"),
            ("OMNI_SERVICES__AUDIT__PORT", "0"),
            ("OMNI_SERVICES__AUDIT__ADMIN_PORT", "0"),
            ("OMNI_SERVICES__SERVICE_COORDINATOR__PORT", "0"),
            ("OMNI_SERVICES__SERVICE_COORDINATOR__ADMIN_PORT", "0"),
            ("OMNI_SERVICES__VERSION_BRIDGE__PORT", "0"),
            ("OMNI_SERVICES__VERSION_BRIDGE__ADMIN_PORT", "0"),
            ("OMNI_HOOKS__SOURCES__DEMO__SCHEME", "github"),
            ("OMNI_HOOKS__SOURCES__DEMO__SECRET", SECRET),
            ("OMNI_HOOKS__SOURCES__ROBOT__SCHEME", "api-key"),
            ("OMNI_HOOKS__SOURCES__ROBOT__KEY_SHA256", &key),
            ("OMNI_HOOKS__SOURCES__SHOP__SCHEME", "api-key"),
            ("OMNI_HOOKS__SOURCES__SHOP__KEY_SHA256", &key),
        ] {
            settings.insert(name.to_owned(), value.to_owned());
        }
        settings.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let mesh = Self {
            layout,
            backends,
            traces,
            settings,
            processes: Mutex::default(),
            gateway: Mutex::default(),
            data,
            http,
        };
        mesh.write_policy("");
        for process in layout.processes() {
            mesh.start_process(process);
        }
        mesh
    }

    fn command(&self) -> Command {
        // A process whose files are limited is told by a signal, too, and dies of it.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(process::binary());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(&self.settings).current_dir(self.data.path());
        command.arg("--config").arg(self.data.path().join("omni.toml"));
        command
    }

    /// Starts the process `name` of the layout.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start_process(&self, name: &'static str) {
        let mut command = self.command();
        if name == "up" {
            command.args(["up", "--admin-port", "0"]);
            if matches!(self.layout, Layout::Processes | Layout::RealProcesses) {
                command.arg("--processes");
            }
        } else {
            command.args(["serve", name, "--with-parent"]);
        }
        let process = Process::start(command, self.data.path().join(format!("{name}.log")));
        self.forget_gateway();
        self.processes.lock().expect("no test panics here").insert(name, process);
    }

    /// What the process that runs `service` has logged.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn log(&self, service: &'static str) -> String {
        let processes = self.processes.lock().expect("no test panics here");
        processes[self.layout.process_of(service)].log()
    }

    /// Waits until no webhook's event waits for the broker, or for `patience`.
    pub async fn outbox_is_empty(&self, patience: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < patience && !matches!(self.backends.pending().await, Ok(0)) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// A way to call `service` as the service `party`.
    ///
    /// # Panics
    /// When it can't be had.
    pub async fn channel_as(&self, party: &str, service: &str) -> Channel {
        let config = self.config();
        let authority = mesh::identity::authority(&config).expect("there is one");
        let identity = authority.identity(party).await.expect("it is given");
        let registry = mesh::registry::registry(&config).expect("there is one");
        let policy =
            mesh::policy::policy(&config, &Default::default()).await.expect("there is one");
        let client = Client::new(identity, registry, policy, Default::default());
        client.channel(service).await.expect("the registry can be watched")
    }

    /// The processes that the one that runs `service` started.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn children(&self, service: &'static str) -> Vec<Offspring> {
        let processes = self.processes.lock().expect("no test panics here");
        processes[self.layout.process_of(service)].children()
    }

    /// Lets the process that runs `service` write no file beyond `bytes`; `None` lets
    /// it again.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn limit_files(&self, service: &'static str, bytes: Option<u64>) {
        let processes = self.processes.lock().expect("no test panics here");
        processes[self.layout.process_of(service)].limit_files(bytes);
    }

    /// Takes the process that runs `service`, to be ended by the test.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn take_process(&self, service: &'static str) -> Process {
        self.forget_gateway();
        let mut processes = self.processes.lock().expect("no test panics here");
        processes.remove(self.layout.process_of(service)).expect("it runs")
    }

    /// Starts the process that runs `service` again, and waits for it.
    pub async fn restart(&self, service: &'static str) {
        self.start_process(self.layout.process_of(service));
        self.healthy().await;
    }

    /// Drains and ends every process.
    ///
    /// # Panics
    /// When one doesn't end with success.
    pub async fn stop(self) {
        let processes: Vec<_> =
            self.processes.lock().expect("no test panics here").drain().collect();
        for (_, process) in &processes {
            process.terminate();
        }
        for (name, process) in processes {
            let status = tokio::task::spawn_blocking(move || process.wait()).await;
            assert!(status.expect("it ends").success(), "{name}");
        }
    }

    /// Waits until one instance of each service is healthy.
    pub async fn healthy(&self) {
        until("every service is healthy", || async {
            let services = self.services();
            let healthy = |name: &str| {
                let all = services.as_array().map(Vec::as_slice).unwrap_or_default();
                all.iter().any(|s| s["service"] == name && s["health"] == "passing")
            };
            match ["hook-receiver", "audit", "gateway"].iter().all(|name| healthy(name)) {
                true => Ok(()),
                false => Err(services),
            }
        })
        .await;
    }

    /// What `omni services` shows.
    pub fn services(&self) -> Value {
        let output = self.omni(&["services", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Where a healthy instance of `service` is.
    ///
    /// # Panics
    /// When there is none.
    pub fn address(&self, service: &str) -> SocketAddr {
        let services = self.services();
        let all = services.as_array().expect("a list");
        let healthy = all.iter().find(|s| s["service"] == service && s["health"] == "passing");
        let healthy = healthy.unwrap_or_else(|| panic!("no healthy {service}: {services}"));
        healthy["address"].as_str().and_then(|a| a.parse().ok()).expect("an address")
    }

    /// Where the gateway is, asked of the registry once.
    ///
    /// # Panics
    /// When there is no healthy one.
    pub fn gateway(&self) -> SocketAddr {
        let mut known = self.gateway.lock().unwrap_or_else(PoisonError::into_inner);
        *known.get_or_insert_with(|| self.address("gateway"))
    }

    fn forget_gateway(&self) {
        // A test may have panicked in asking for it.
        *self.gateway.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A shell that does as `script` says, and finds `omni`.
    ///
    /// # Panics
    /// When `omni` is nowhere.
    pub fn shell(&self, script: &str) -> Command {
        let folder = self.data.path().join("bin");
        std::fs::create_dir_all(&folder).expect("there is room");
        // Another shell of this mesh may have made it.
        let _ = std::os::unix::fs::symlink(process::binary(), folder.join("omni"));
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command.args(["-c", script]).env_clear().envs(&self.settings).current_dir(self.data.path());
        command.env("PATH", format!("{}:{path}", folder.display()));
        command
    }

    /// `omni` with `args`, ready to be started.
    pub fn command_of(&self, args: &[&str]) -> Command {
        let mut command = self.command();
        command.args(args);
        command
    }

    /// Runs `omni` as a user would.
    ///
    /// # Panics
    /// When it can't be run.
    pub fn omni(&self, args: &[&str]) -> Output {
        self.command_of(args).output().expect("omni runs")
    }

    /// Calls a method by `omni call`; the error is what it prints.
    ///
    /// # Errors
    /// When the call fails.
    pub fn call(&self, method: &str, request: &Value) -> Result<Value, String> {
        self.call_with(&[], method, request)
    }

    /// As [`Mesh::call`], with further flags.
    ///
    /// # Errors
    /// When the call fails.
    pub fn call_with(
        &self,
        flags: &[&str],
        method: &str,
        request: &Value,
    ) -> Result<Value, String> {
        let request = request.to_string();
        let output = self.omni(&[&["call", "--json"], flags, &[method, &request]].concat());
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|why| why.to_string())
    }

    /// The events of `topic` with this correlation id by now.
    pub fn events(&self, topic: &str, correlation_id: &str) -> Vec<Value> {
        let mut events = self.topic(topic);
        events.retain(|event| event["correlationid"] == correlation_id);
        events
    }

    /// All events of `topic` by now.
    pub fn topic(&self, topic: &str) -> Vec<Value> {
        let count = self.events_in(topic);
        if count == 0 {
            return vec![];
        }
        let limit = count.to_string();
        let output =
            self.omni(&["events", "tail", topic, "--from-beginning", "--json", "-n", &limit]);
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn events_in(&self, topic: &str) -> i64 {
        let output = self.omni(&["events", "topics", "--json"]);
        let topics: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let topics = topics.as_array().cloned().unwrap_or_default();
        let found = topics.iter().find(|t| t["name"] == topic);
        found.and_then(|t| t["events"].as_i64()).unwrap_or_default()
    }

    /// The entries of the trail with this correlation id by now.
    pub fn entries(&self, correlation_id: &str) -> Vec<Value> {
        let request = json!({ "correlationId": correlation_id });
        let answer = self.call("omnibridge.audit.v1.Audit/ListEntries", &request);
        let answer = answer.unwrap_or_default();
        answer["entries"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the trail has one entry of each correlation.
    ///
    /// # Panics
    /// When it hasn't in time.
    pub async fn each_is_in_the_trail(&self, correlations: &[String]) {
        for correlation in correlations {
            until("it is in the trail", || async {
                let entries = self.entries(correlation);
                if entries.len() == 1 { Ok(()) } else { Err(entries) }
            })
            .await;
        }
    }

    /// The configuration that this mesh's processes have.
    ///
    /// # Panics
    /// When it can't be read.
    pub fn config(&self) -> Config {
        let settings = self.settings.clone();
        Config::from_sources(Some(&self.data.path().join("omni.toml")), settings, &[])
            .expect("the processes read it as well")
    }

    /// An operator's identity in this mesh.
    ///
    /// # Panics
    /// When it can't be had.
    pub async fn operator(&self) -> Identity {
        let authority = mesh::identity::authority(&self.config()).expect("there is one");
        authority.identity("operator").await.expect("it is given")
    }

    /// Denies calls from `source` to `destination`, where intentions are kept.
    ///
    /// # Panics
    /// When Consul refuses.
    pub async fn deny(&self, source: &str, destination: &str) {
        match &self.backends {
            Backends::Embedded { .. } => self.write_policy(&format!(
                "[[intentions]]\nsource = \"{source}\"\ndestination = \"{destination}\"\n\
                 action = \"deny\"\n"
            )),
            Backends::Fakes { consul, .. } => consul.set_intention(source, destination, "deny"),
            Backends::Real(told) => {
                let url = format!("{}/v1/config", told["CONSUL_HTTP_ADDR"]);
                let entry = json!({
                    "Kind": "service-intentions", "Name": destination,
                    "Sources": [{ "Name": source, "Action": "deny" }],
                });
                let put = self.http.put(url).body(entry.to_string()).send().await;
                assert!(put.expect("Consul answers").status().is_success());
            }
        }
    }

    /// Takes back the denial of calls from `source` to `destination`.
    ///
    /// # Panics
    /// When Consul refuses.
    pub async fn undo_denial(&self, source: &str, destination: &str) {
        match &self.backends {
            Backends::Embedded { .. } => self.write_policy(""),
            Backends::Fakes { consul, .. } => consul.delete_intention(source, destination),
            Backends::Real(told) => {
                let consul = &told["CONSUL_HTTP_ADDR"];
                let url = format!("{consul}/v1/config/service-intentions/{destination}");
                let deleted = self.http.delete(url).send().await;
                assert!(deleted.expect("Consul answers").status().is_success());
            }
        }
    }

    /// Sets intentions and routes, where they are kept in the configuration's file.
    ///
    /// # Panics
    /// When there is no room.
    pub fn write_policy(&self, policy: &str) {
        let file = self.data.path().join("omni.toml");
        std::fs::write(file, format!("{policy}{SOURCES}")).expect("there is room");
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        self.data.path()
    }
}

/// A new id, so that tests on shared backends don't meet.
pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

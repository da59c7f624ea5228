//! The backends of a mesh: what the processes are told, and what a test can do
//! to them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    time::Duration,
};

use fake_consul::FakeConsul;
use rdkafka::mocking::MockCluster;
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, DbErr,
    QueryResult, Statement,
};
use serde_json::json;
use tokio::net::TcpSocket;

use crate::Layout;

/// The backends of one mesh.
pub enum Backends {
    /// What is embedded, under a data directory.
    Embedded {
        /// The data directory.
        data: PathBuf,
        /// Holds the broker's write lock while it is `Some`: the broker is away.
        held: tokio::sync::Mutex<Option<WriteLock>>,
    },
    /// Fakes in this process that speak the real protocols.
    Fakes {
        /// The data directory, for SQLite.
        data: PathBuf,
        /// A Consul agent.
        consul: Box<FakeConsul>,
        /// A Kafka broker.
        kafka: MockKafka,
    },
    /// The real ones, as `compose/backends start` told the environment.
    Real(HashMap<String, String>),
}

impl Backends {
    /// Starts the backends of `layout`; the real ones run already.
    ///
    /// # Panics
    /// When the real ones aren't told.
    pub async fn start(layout: Layout, data: &Path) -> Self {
        let data = data.to_owned();
        match layout {
            Layout::Up | Layout::Serve | Layout::Processes => {
                Self::Embedded { data, held: Default::default() }
            }
            Layout::Fakes => {
                let consul = Box::new(FakeConsul::start().await);
                Self::Fakes { data, consul, kafka: MockKafka::start() }
            }
            Layout::Real | Layout::RealProcesses => {
                let names = [
                    "OMNI_REGISTRY",
                    "OMNI_IDENTITY",
                    "OMNI_EVENTS",
                    "OMNI_DATABASE",
                    "OTEL_EXPORTER_OTLP_ENDPOINT",
                    "JAEGER_QUERY",
                    "CONSUL_HTTP_ADDR",
                    "OMNI_TEST_BIN_DIR",
                    "OMNI_TEST_BACKENDS_DIR",
                ];
                let told = names.map(|name| {
                    let value = std::env::var(name).unwrap_or_else(|_| {
                        panic!("{name} isn't set: `compose/backends start` and load its env")
                    });
                    (name.to_owned(), value)
                });
                Self::Real(told.into())
            }
        }
    }

    /// What the processes are told of them.
    pub fn settings(&self) -> Vec<(String, String)> {
        let own = |pairs: &[(&str, String)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
        };
        match self {
            Self::Embedded { .. } => vec![],
            Self::Fakes { consul, kafka, .. } => own(&[
                ("OMNI_REGISTRY", consul.url()),
                ("OMNI_IDENTITY", "consul:".to_owned()),
                ("OMNI_EVENTS", format!("kafka://{}", kafka.address)),
            ]),
            Self::Real(told) => {
                let ours =
                    |name: &&String| name.starts_with("OMNI_") && !name.starts_with("OMNI_TEST_");
                told.iter().filter(|(n, _)| ours(n)).map(|(n, v)| (n.clone(), v.clone())).collect()
            }
        }
    }

    /// Takes the broker away.
    ///
    /// # Panics
    /// When it can't.
    pub async fn stop_broker(&self) {
        match self {
            Self::Embedded { data, held } => {
                *held.lock().await = Some(WriteLock::take(&data.join("events/broker.db")).await);
            }
            Self::Fakes { kafka, .. } => kafka.set_up(false),
            Self::Real(told) => backend(told, "stop", "kafka"),
        }
    }

    /// Brings the broker back.
    ///
    /// # Panics
    /// When it can't.
    pub async fn start_broker(&self) {
        match self {
            Self::Embedded { held, .. } => {
                held.lock().await.take().expect("it was stopped").give_back().await;
            }
            Self::Fakes { kafka, .. } => kafka.set_up(true),
            Self::Real(told) => backend(told, "start", "kafka"),
        }
    }

    /// Has the broker hang, as far as it can: what is embedded is stopped.
    ///
    /// # Panics
    /// When it can't.
    pub async fn pause_broker(&self) {
        match self {
            Self::Real(told) => backend(told, "pause", "kafka"),
            _ => self.stop_broker().await,
        }
    }

    /// Has it go on.
    ///
    /// # Panics
    /// When it can't.
    pub async fn resume_broker(&self) {
        match self {
            Self::Real(told) => backend(told, "resume", "kafka"),
            _ => self.start_broker().await,
        }
    }

    /// SIGKILL to the broker, as far as it is a process: what is embedded is stopped.
    /// It comes back by [`Self::start_broker`].
    ///
    /// # Panics
    /// When it can't.
    pub async fn kill_broker(&self) {
        match self {
            Self::Real(told) => backend(told, "kill", "kafka"),
            _ => self.stop_broker().await,
        }
    }

    /// Takes the database away, where it is a process.
    ///
    /// # Panics
    /// When it can't.
    pub fn stop_database(&self) {
        self.database("stop");
    }

    /// Brings it back.
    ///
    /// # Panics
    /// When it can't.
    pub fn start_database(&self) {
        self.database("start");
    }

    fn database(&self, verb: &str) {
        match self {
            Self::Real(told) => backend(told, verb, "postgres"),
            _ => panic!("SQLite is never away"),
        }
    }

    /// How many events wait in hook-receiver's outbox, by its own table.
    ///
    /// # Errors
    /// When the table can't be read.
    pub async fn pending(&self) -> Result<i64, DbErr> {
        let topics = "SELECT count(*) FROM outbox WHERE topic LIKE 'hooks.%'";
        let rows = self.query("hook-receiver", topics).await?;
        let count = rows.first().map(|row| row.try_get_by_index(0)).transpose()?;
        Ok(count.unwrap_or_default())
    }

    /// The ids of the events of webhooks whose correlation id begins with
    /// `prefix`, in the order of their entries in the trail, by its own table.
    ///
    /// # Errors
    /// When the table can't be read.
    pub async fn trail(&self, prefix: &str) -> Result<Vec<String>, DbErr> {
        let entries = format!(
            "SELECT event_id FROM entries WHERE topic LIKE 'hooks.%' AND correlation_id LIKE \
             '{prefix}%' ORDER BY seq"
        );
        let rows = self.query("audit", &entries).await?;
        rows.iter().map(|row| row.try_get_by_index(0)).collect()
    }

    /// All that PostgreSQL keeps, a row a line, bytes in hexadecimals; nothing on
    /// SQLite, whose files can be read.
    ///
    /// # Errors
    /// When a table can't be read.
    pub async fn rows(&self) -> Result<Vec<String>, DbErr> {
        let mut all = Vec::new();
        let Self::Real(_) = self else { return Ok(all) };
        for service in ["gateway", "hook-receiver", "audit"] {
            let tables = "SELECT table_name::text FROM information_schema.tables WHERE \
                          table_schema = current_schema()";
            for table in self.query(service, tables).await? {
                let table: String = table.try_get_by_index(0)?;
                let rows = self.query(service, &format!("SELECT t::text FROM {table} t")).await?;
                for row in rows {
                    all.push(row.try_get_by_index(0)?);
                }
            }
        }
        Ok(all)
    }

    /// Asks the database of `service` itself.
    async fn query(&self, service: &str, query: &str) -> Result<Vec<QueryResult>, DbErr> {
        let (mut options, backend) = match self {
            Self::Embedded { data, .. } | Self::Fakes { data, .. } => {
                let file = data.join(format!("db/{service}.db"));
                let url = format!("sqlite://{}?mode=ro", file.display());
                (ConnectOptions::new(url), DbBackend::Sqlite)
            }
            Self::Real(told) => {
                let mut options = ConnectOptions::new(&told["OMNI_DATABASE"]);
                options.set_schema_search_path(service.replace('-', "_"));
                (options, DbBackend::Postgres)
            }
        };
        options.max_connections(1).sqlx_logging(false);
        let connection = Database::connect(options).await?;
        let rows = connection.query_all_raw(Statement::from_string(backend, query)).await?;
        connection.close().await?;
        Ok(rows)
    }

    /// Lets the authority make a new root.
    ///
    /// # Panics
    /// When it can't.
    pub async fn rotate_root(&self, omni: impl FnOnce(&[&str]) -> std::process::Output) {
        match self {
            Self::Embedded { .. } => assert!(omni(&["certs", "rotate"]).status.success()),
            Self::Fakes { consul, .. } => consul.rotate_root(),
            Self::Real(told) => {
                let address = &told["CONSUL_HTTP_ADDR"];
                let url = format!("{address}/v1/connect/ca/configuration");
                let client = reqwest::Client::builder()
                    .use_rustls_tls()
                    .build()
                    .expect("rustls is built in");
                let now = client.get(&url).send().await.expect("Consul answers");
                let now: serde_json::Value =
                    serde_json::from_slice(&now.bytes().await.expect("the answer is whole"))
                        .expect("Consul answers JSON");
                // Another size of key is a change that makes a new root.
                let bits = if now["Config"]["PrivateKeyBits"] == json!(384) { 256 } else { 384 };
                let config = json!({
                    "Provider": "consul",
                    "Config": {
                        "PrivateKeyType": "ec", "PrivateKeyBits": bits,
                        "LeafCertTTL": "72h", "IntermediateCertTTL": "8760h",
                    },
                });
                let changed = client.put(&url).body(config.to_string()).send().await;
                let changed = changed.expect("Consul answers");
                assert!(
                    changed.status().is_success(),
                    "{}",
                    changed.text().await.unwrap_or_default()
                );
            }
        }
    }
}

/// The write lock of an SQLite database: nobody else writes to it.
pub struct WriteLock(DatabaseConnection);

impl WriteLock {
    /// Takes the one of `file`.
    ///
    /// # Panics
    /// When it can't be had.
    pub async fn take(file: &Path) -> Self {
        let mut options = ConnectOptions::new(format!("sqlite://{}?mode=rw", file.display()));
        options.max_connections(1);
        let connection = Database::connect(options).await.expect("the file opens");
        connection.execute_unprepared("BEGIN IMMEDIATE").await.expect("its lock is free");
        Self(connection)
    }

    /// Lets others write again.
    ///
    /// # Panics
    /// When the connection is lost.
    pub async fn give_back(self) {
        self.0.execute_unprepared("ROLLBACK").await.expect("it is ours");
        self.0.close().await.expect("it is ours");
    }
}

/// Runs `compose/backends VERB NAME`.
fn backend(told: &HashMap<String, String>, verb: &str, name: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/backends");
    let dir = &told["OMNI_TEST_BACKENDS_DIR"];
    let mut command = Command::new(script);
    command.args([verb, name, "--dir", dir]);
    let ran = tokio::task::block_in_place(|| command.output()).expect("it runs");
    assert!(ran.status.success(), "{verb} {name}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// The topics that the suite uses.
const TOPICS: [&str; 7] = [
    "services.lifecycle",
    "audit.events",
    "dlq.audit.events",
    "hooks.demo",
    "hooks.robot",
    "hooks.shop",
    "hooks.tests",
];

/// librdkafka's mock of a Kafka broker. It isn't for several threads, so it has
/// one of its own.
pub struct MockKafka {
    /// Its bootstrap address.
    pub address: String,
    commands: mpsc::Sender<bool>,
    done: std::sync::Mutex<mpsc::Receiver<()>>,
}

impl MockKafka {
    fn start() -> Self {
        let (commands, received) = mpsc::channel();
        let (told, done) = mpsc::channel();
        let (ready, address) = mpsc::channel();
        std::thread::spawn(move || {
            let cluster = MockCluster::new(1).expect("the mock starts");
            // The mock has no admin API: what services would make is made here.
            for topic in TOPICS {
                cluster.create_topic(topic, 4, 1).expect("the mock obeys");
            }
            let address = cluster.bootstrap_servers();
            ready.send(address.clone()).expect("the test waits");
            let address = address.parse().expect("its address");
            let mut held = None;
            // Ends with its sender, and the cluster with it.
            while let Ok(up) = received.recv() {
                let changed = if up { cluster.broker_up(1) } else { cluster.broker_down(1) };
                changed.expect("the mock obeys");
                drop(held.take());
                held = (!up).then(|| hold(address));
                if told.send(()).is_err() {
                    return;
                }
            }
        });
        let address = address.recv_timeout(Duration::from_secs(10)).expect("the mock starts");
        Self { address, commands, done: done.into() }
    }

    fn set_up(&self, up: bool) {
        self.commands.send(up).expect("the mock's thread lives");
        let done = self.done.lock().expect("one test at a time");
        done.recv_timeout(Duration::from_secs(10)).expect("the mock obeys");
    }
}

/// Keeps `address` from other processes without listening there: the mock, which
/// shares it, is to find it free when it is back.
fn hold(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("there is room");
    socket.set_reuseaddr(true).expect("it can be shared");
    socket.bind(address).expect("nobody was faster");
    socket
}

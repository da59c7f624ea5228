//! The backends of a mesh: what the processes are told, and what a test can do
//! to them.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use fake_consul::FakeConsul;
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, DbErr,
    QueryResult, Statement,
};
use serde_json::json;

use crate::{Layout, process::binary_named};

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
                    .tls_certs_only([])
                    .build()
                    .expect("it needs nothing");
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

/// librdkafka's mock of a Kafka broker, in a process of its own: while another thread of
/// its process starts a child, the child has a copy of the mock's listening socket, and the
/// mock, taken down meanwhile, would find its own port taken.
pub struct MockKafka {
    /// Its bootstrap address.
    pub address: String,
    process: Mutex<(Child, BufReader<ChildStdout>)>,
}

impl MockKafka {
    fn start() -> Self {
        let mut command = Command::new(binary_named("mock-kafka"));
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the mock starts");
        let mut said = BufReader::new(child.stdout.take().expect("it is piped"));
        let address = line(&mut said);
        Self { address, process: Mutex::new((child, said)) }
    }

    fn set_up(&self, up: bool) {
        let mut process = self.process.lock().expect("no test panics here");
        let (child, said) = &mut *process;
        let command: &[u8] = if up { b"up\n" } else { b"down\n" };
        child.stdin.as_mut().expect("it is piped").write_all(command).expect("the mock listens");
        assert_eq!(line(said), "done");
    }
}

impl Drop for MockKafka {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Ended already is as good.
        let _ = process.0.kill();
        let _ = process.0.wait();
    }
}

/// What the mock says next.
fn line(said: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    let read = said.read_line(&mut line).expect("the mock's output can be read");
    assert!(read > 0, "the mock has ended");
    line.trim_end().to_owned()
}

//! `omni up` on an empty folder, and what it has made of the webhooks it took.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use mesh::{
    config::Config,
    events::broker::{self, Broker},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

/// How long a start may take.
const START: Duration = Duration::from_secs(20);
/// How long the consumer may be behind at the end.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often is asked whether it isn't any more.
const LOOK: Duration = Duration::from_millis(50);
/// The topic of the source `demo`, and the group that consumes it.
const TOPIC: &str = "hooks.demo";
const GROUP: &str = "audit.hooks";

/// A running `omni up`; it ends with this.
pub(crate) struct Omni {
    pub(crate) gateway: SocketAddr,
    pub(crate) secret: Vec<u8>,
    pub(crate) pid: u32,
    broker: std::sync::Arc<dyn Broker>,
    _process: Child,
    _data: tempfile::TempDir,
}

impl Omni {
    /// Starts it.
    ///
    /// # Errors
    /// When it isn't ready in time.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let log = std::fs::File::create(data.path().join("omni.log"))?;
        let any = |name: &str| (format!("OMNI_SERVICES__{name}__PORT"), "0".to_owned());
        let mut settings: HashMap<String, String> =
            ["GATEWAY", "HOOK_RECEIVER", "AUDIT"].map(any).into();
        settings.insert("OMNI_DATA".to_owned(), data.path().display().to_string());
        let mut process = Command::new(binary()?)
            .args(["up", "--admin-port", "0"])
            .env_clear()
            .envs(&settings)
            .current_dir(data.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().context("its output is piped")?;
        let ready = tokio::time::timeout(START, gateway(output)).await;
        let gateway = ready.context("it isn't ready in time")??;
        let secret = std::fs::read(data.path().join("hooks/demo.secret"))?;
        let config = Config::from_sources(None, settings, &[])?;
        let broker = broker::broker(&config).await?;
        let pid = process.id().context("it runs")?;
        Ok(Self { gateway, secret, pid, broker, _process: process, _data: data })
    }

    /// Waits until `acknowledged` events were published and consumed; answers how
    /// long that took.
    ///
    /// # Errors
    /// When it takes too long.
    pub(crate) async fn catch_up(&self, acknowledged: i64) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            let published = self.broker.topics().await?;
            let published = published.iter().find(|topic| topic.name == TOPIC).map(|t| t.events);
            let groups = self.broker.group(GROUP, TOPIC).await?;
            let lag: i64 = groups.iter().filter(|g| g.topic == TOPIC).map(|g| g.lag).sum();
            if published >= Some(acknowledged) && lag == 0 {
                return Ok(begun.elapsed());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "{acknowledged} acknowledged, {published:?} published, lag {lag}",
            );
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The `omni` that was built with this program.
fn binary() -> anyhow::Result<PathBuf> {
    let omni = std::env::current_exe()?.with_file_name("omni");
    ensure!(omni.is_file(), "{} isn't there; build it first", omni.display());
    Ok(omni)
}

/// Where its gateway listens, by what it prints; the rest is read and dropped, so
/// that it never waits to print.
async fn gateway(output: tokio::process::ChildStdout) -> anyhow::Result<SocketAddr> {
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        let mut words = line.split_whitespace();
        if words.next() == Some("gateway") {
            let address = words.next().context("no address")?.parse()?;
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(address);
        }
    }
    anyhow::bail!("it ended; is a port taken?")
}

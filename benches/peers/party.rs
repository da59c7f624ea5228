//! The processes of a contestant: each ends with the turn, says a line when it is
//! ready, and one for each that it is asked.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines, Stdin},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// How long a process may take to start, or to answer beyond what it was asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that this one started and can talk to; killed when dropped.
pub(crate) struct Party {
    name: String,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// What is between a client and its server.
pub(crate) struct Hops {
    /// Whom the client calls.
    pub(crate) address: SocketAddr,
    /// The processes, if there are any.
    pub(crate) parties: Vec<Party>,
}

impl Party {
    /// Starts `program`, whose errors go where ours go.
    ///
    /// # Errors
    /// When it can't be started.
    pub(crate) fn start(program: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let name = format!("{} {}", program.display(), args.first().unwrap_or(&""));
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't start {name}"))?;
        let input = child.stdin.take().context("it has no input")?;
        let output = child.stdout.take().context("it has no output")?;
        Ok(Self { name, child, input, output: BufReader::new(output).lines() })
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().with_context(|| format!("{} is gone", self.name))
    }

    /// The next line it says.
    ///
    /// # Errors
    /// When it ends, says something else, or nothing in time.
    pub(crate) async fn heard<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        self.heard_within(PATIENCE).await
    }

    /// What it answers to `question`, for which it needs `time`.
    ///
    /// # Errors
    /// As [`Party::heard`].
    pub(crate) async fn ask<T: DeserializeOwned>(
        &mut self,
        question: &impl Serialize,
        time: Duration,
    ) -> anyhow::Result<T> {
        let line = serde_json::to_string(question)? + "\n";
        self.input.write_all(line.as_bytes()).await?;
        self.heard_within(time + PATIENCE).await
    }

    async fn heard_within<T: DeserializeOwned>(&mut self, time: Duration) -> anyhow::Result<T> {
        let name = &self.name;
        match tokio::time::timeout(time, self.output.next_line()).await {
            Ok(Ok(Some(line))) => {
                serde_json::from_str(&line).with_context(|| format!("{name} said `{line}`"))
            }
            Ok(Ok(None)) => bail!("{name} ended; what it wrote above may say why"),
            Ok(Err(why)) => Err(why).with_context(|| format!("{name} can't be heard")),
            Err(_) => bail!("{name} said nothing within {time:?}"),
        }
    }

    /// Ends it, and returns when it is gone.
    ///
    /// # Errors
    /// When it can't be ended.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("can't end {}", self.name))
    }
}

/// Logs nothing. Where nobody says who listens, tracing hands what it has to another
/// logger, should one of the crates used ask for that: about half a microsecond a
/// call that a program with its logs in order doesn't pay.
///
/// # Errors
/// When somebody listens already.
pub(crate) fn no_logs() -> anyhow::Result<()> {
    Ok(tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new())?)
}

/// Says one line to the process that started this one.
///
/// # Errors
/// When it doesn't listen any more.
pub(crate) fn tell(what: &impl Serialize) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

/// What the process that started this one asks, line by line.
pub(crate) struct Asked(Lines<BufReader<Stdin>>);

impl Asked {
    pub(crate) fn new() -> Self {
        Self(BufReader::new(tokio::io::stdin()).lines())
    }

    /// The next question; `None` when there are no more.
    ///
    /// # Errors
    /// When it isn't one.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        let Some(line) = self.0.next_line().await? else { return Ok(None) };
        serde_json::from_str(&line).map(Some).with_context(|| format!("asked for `{line}`"))
    }

    /// Waits until nobody asks any more, also because whoever asked was killed.
    pub(crate) async fn end(mut self) {
        while let Ok(Some(_)) = self.0.next_line().await {}
    }
}

//! Webhooks as a sender makes them: signed, by HTTP/1.1 on connections that are
//! kept, each with an id of its own.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use benches::{pace::pace, spread::Latency};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};

/// How late an answer may be before the run is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many digits tell one delivery from another.
const DIGITS: usize = 12;

/// Who sends what to whom.
pub(crate) struct Sender {
    to: SocketAddr,
    connections: usize,
    /// A request up to the delivery's digits, and after them.
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Sender {
    /// A sender of bodies of `bytes` bytes, signed with `secret`, on so many
    /// connections; `run` is a part of its deliveries' ids.
    pub(crate) fn new(
        to: SocketAddr,
        secret: &[u8],
        bytes: usize,
        connections: usize,
        run: &str,
    ) -> Self {
        let around = r#"{"fill":""}"#.len();
        let body = format!(r#"{{"fill":"{}"}}"#, "x".repeat(bytes.saturating_sub(around)));
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
        mac.update(body.as_bytes());
        let signature = hex::encode(mac.finalize().into_bytes());
        let head = format!(
            "POST /hooks/demo HTTP/1.1\r\nhost: {to}\r\nuser-agent: webhooks\r\naccept: */*\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nx-github-event: push\r\n\
             x-hub-signature-256: sha256={signature}\r\nx-github-delivery: {run}-",
            body.len(),
        );
        Self {
            to,
            connections,
            head: head.into_bytes(),
            tail: format!("\r\n\r\n{body}").into_bytes(),
        }
    }

    /// As many as go, one at a time on each connection, for `time`; answers how
    /// many were acknowledged, and in what time.
    ///
    /// # Errors
    /// When one isn't.
    pub(crate) async fn closed(&self, time: Duration) -> anyhow::Result<(i64, Duration)> {
        let mut connections = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            connections.push(self.connect().await?);
        }
        let (begun, step) = (Instant::now(), self.connections);
        let mut all = JoinSet::new();
        for (nth, mut connection) in connections.into_iter().enumerate() {
            all.spawn(async move {
                let mut sent = 0;
                while begun.elapsed() < time {
                    connection.send(nth + sent * step).await?;
                    sent += 1;
                }
                anyhow::Ok(sent)
            });
        }
        let mut sent = 0;
        while let Some(ended) = all.join_next().await {
            sent += ended??;
        }
        Ok((i64::try_from(sent)?, begun.elapsed()))
    }

    /// `rate` a second for `time`, each when it is due.
    ///
    /// # Errors
    /// When one isn't acknowledged.
    pub(crate) async fn open(&self, rate: u32, time: Duration) -> anyhow::Result<Latency> {
        let mut queues = Vec::new();
        let mut all = JoinSet::new();
        for _ in 0..self.connections {
            let mut connection = self.connect().await?;
            let (queue, mut due) = mpsc::unbounded_channel::<(usize, Instant)>();
            queues.push(queue);
            all.spawn(async move {
                let mut took = Vec::new();
                while let Some((number, due)) = due.recv().await {
                    connection.send(number).await?;
                    took.push(due.elapsed());
                }
                anyhow::Ok(took)
            });
        }
        let connections = queues.len();
        pace(rate, time, move |number, due| {
            let queue = &queues[number % connections];
            queue.send((number, due)).context("a connection has ended")
        })
        .await?;
        let mut took = Vec::new();
        while let Some(ended) = all.join_next().await {
            took.extend(ended??);
        }
        Ok(Latency::of(took))
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(self.to).await.context("no connection")?;
        stream.set_nodelay(true)?;
        let digits = self.head.len();
        let mut request = self.head.clone();
        request.resize(digits + DIGITS, b'0');
        request.extend(&self.tail);
        Ok(Connection { stream, request, digits, answer: Vec::with_capacity(4096) })
    }
}

struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    /// Where the delivery's digits begin.
    digits: usize,
    answer: Vec<u8>,
}

impl Connection {
    /// Sends delivery `number`, and waits until it is acknowledged.
    async fn send(&mut self, number: usize) -> anyhow::Result<()> {
        let digits = format!("{number:0DIGITS$}");
        self.request[self.digits..self.digits + DIGITS].copy_from_slice(digits.as_bytes());
        self.stream.write_all(&self.request).await?;
        tokio::time::timeout(PATIENCE, self.answer()).await.context("no answer in time")?
    }

    async fn answer(&mut self) -> anyhow::Result<()> {
        self.answer.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the connection ended");
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut answer = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head) = answer.parse(&self.answer)? else { continue };
            let length =
                answer.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
            let length: usize = std::str::from_utf8(length.context("no length")?.value)?.parse()?;
            if self.answer.len() >= head + length {
                match answer.code {
                    Some(200..=299) => return Ok(()),
                    _ => bail!("{}", String::from_utf8_lossy(&self.answer)),
                }
            }
        }
    }
}

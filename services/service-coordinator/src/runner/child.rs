//! Services in processes of their own, which never outlive this one.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use command_fds::{CommandFdExt as _, FdMapping};
use mesh::config::variable;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::{Child as Process, ChildStdin, Command},
    sync::oneshot,
    task::JoinHandle,
};

use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::supervisor::Running;

/// What a process says its admin port's address behind.
pub const ADMIN: &str = "the admin port is ";
/// How often a child is asked whether it is there, how long it may take to answer, and how
/// many times in a row it may not.
const INTERVAL: Duration = Duration::from_secs(5);
const MISSES: u32 = 3;
/// The descriptor of the first socket that a process is handed.
const FIRST_SOCKET: i32 = 3;
/// How much longer than its drain may take a child is waited for.
const GRACE: Duration = Duration::from_secs(5);
/// How long what a dead child wrote last may take to come.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How many of the last lines of its standard error tell why it ended, how much of each
/// of them, and how many bytes a line has at most: a longer one becomes several.
const LAST_LINES: usize = 3;
const LAST_CHARS: usize = 200;
const LINE_BYTES: u64 = 16 * 1024;

/// Is told each line that a child writes, with its service and its number.
pub type Listener = Arc<dyn Fn(&str, u32, &str) + Send + Sync>;

/// How children are started: `program arguments… serve NAME --with-parent`.
pub struct Children {
    /// The program.
    pub program: PathBuf,
    /// What it is given before the command.
    pub arguments: Vec<OsString>,
    /// What its environment has more than ours.
    pub environment: Vec<(String, String)>,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// What listens in their place, by service: instances of it take over from each
    /// other, and who connects meanwhile waits.
    pub doors: BTreeMap<String, TcpListener>,
    /// Hears them.
    pub told: Listener,
}

/// A child that is ready.
struct Child {
    process: Process,
    address: String,
    /// Where it is asked whether it still answers.
    admin: Option<String>,
    /// The system closes it when this process dies, however that happens, and the child
    /// drains then. So it is held.
    _lifeline: Option<ChildStdin>,
    output: Output,
    drain_timeout: Duration,
}

/// Where a child is, once it says so.
struct Ready {
    address: String,
    admin: Option<String>,
}

/// What a child writes, from when it starts until it is gone.
struct Output {
    tasks: Vec<JoinHandle<()>>,
    last: Arc<Mutex<VecDeque<String>>>,
}

impl Children {
    /// Starts instance `number` of `service`, and returns when it is ready. The first
    /// one has the ports that are configured, and the others have free ones.
    pub(super) async fn start(
        &self,
        service: &str,
        number: u32,
    ) -> Result<Box<dyn Running>, String> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(["serve", service, "--with-parent"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if number > 0 {
            for port in ["port", "admin_port"] {
                command.env(variable(&format!("services.{service}.{port}")), "0");
            }
        }
        // What was handed to us isn't theirs.
        command.env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        if let Some(door) = self.doors.get(service) {
            let door = door.try_clone().map_err(|why| format!("its port is lost: {why}"))?;
            // As systemd hands on its sockets: sd_listen_fds(3).
            let mappings = vec![FdMapping { parent_fd: door.into(), child_fd: FIRST_SOCKET }];
            let given = command.env("LISTEN_FDS", "1").fd_mappings(mappings);
            given.map_err(|why| format!("it can't be given its port: {why}"))?;
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A Ctrl-C is for this process, which ends its children in order.
        command.process_group(0).kill_on_drop(true);
        let mut process =
            command.spawn().map_err(|why| format!("{}: {why}", self.program.display()))?;
        let lifeline = process.stdin.take();
        let (ready, is_ready) = oneshot::channel();
        let mut output = self.listen(&mut process, service, number, ready);
        let Ready { address, admin } = tokio::select! {
            Ok(ready) = is_ready => ready,
            ended = process.wait() => return Err(output.end(ended).await),
        };
        let drain_timeout = self.drain_timeout;
        Ok(Box::new(Child { process, address, admin, _lifeline: lifeline, output, drain_timeout }))
    }

    /// Hears all that a child writes, and when it says that it is ready.
    fn listen(
        &self,
        process: &mut Process,
        service: &str,
        number: u32,
        ready: oneshot::Sender<Ready>,
    ) -> Output {
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let for_err = last.clone();
        let (told, again) = (self.told.clone(), self.told.clone());
        let (of_out, of_err) = (service.to_owned(), service.to_owned());
        let (says, mut ready) = (format!("{service} is ready at "), Some(ready));
        let mut admin = None;
        let out = process.stdout.take().map(|out| {
            tokio::spawn(lines(out, move |line| {
                if let Some(address) = line.strip_prefix(ADMIN) {
                    admin = Some(address.to_owned());
                } else if let Some(address) = line.strip_prefix(&says)
                    && let Some(ready) = ready.take()
                {
                    // Who started it may have given up.
                    let _ = ready.send(Ready { address: address.to_owned(), admin: admin.take() });
                }
                told(&of_out, number, line);
            }))
        });
        let err = process.stderr.take().map(|err| {
            tokio::spawn(lines(err, move |line| {
                keep(&for_err, line);
                again(&of_err, number, line);
            }))
        });
        Output { tasks: out.into_iter().chain(err).collect(), last }
    }
}

#[async_trait]
impl Running for Child {
    fn note(&self) -> String {
        self.address.clone()
    }

    async fn ended(&mut self) -> String {
        let ended = tokio::select! {
            ended = self.process.wait() => ended,
            () = hangs(self.admin.as_deref()) => {
                return format!("it hasn't answered for {:?}", MISSES * INTERVAL);
            }
        };
        self.output.end(ended).await
    }

    async fn drain(mut self: Box<Self>) {
        let pid = self.process.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        if let Some(pid) = pid {
            // Not there any more is as good.
            let _ = kill_process(pid, Signal::TERM);
        }
        let timeout = self.drain_timeout + GRACE;
        if tokio::time::timeout(timeout, self.process.wait()).await.is_err() {
            tracing::warn!("a child is killed: it hasn't drained after {timeout:?}");
            // Not there any more is as good.
            let _ = self.process.kill().await;
        }
        self.output.silence().await;
    }
}

impl Output {
    /// Why a child has ended: how, and what it said last.
    async fn end(&mut self, ended: std::io::Result<ExitStatus>) -> String {
        self.silence().await;
        let how = match ended {
            // Somebody else's decision: it had nothing to say.
            Ok(status) if status.signal() == Some(Signal::KILL.as_raw()) => {
                return "it was killed".to_owned();
            }
            Ok(status) => format!("it ended with {status}"),
            Err(why) => format!("it is lost: {why}"),
        };
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.iter().map(String::as_str).collect::<Vec<_>>().join(" | ") {
            said if said.is_empty() => how,
            said => format!("{how}: {said}"),
        }
    }

    /// Waits for its last words.
    async fn silence(&mut self) {
        let all = futures::future::join_all(&mut self.tasks);
        // A child of the child may hold the pipe.
        let _ = tokio::time::timeout(LAST_WORDS, all).await;
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

/// Calls `hear` with each line of `stream` until it ends.
async fn lines(stream: impl AsyncRead + Unpin, mut hear: impl FnMut(&str)) {
    let (mut stream, mut line) = (BufReader::new(stream), Vec::new());
    loop {
        line.clear();
        match (&mut stream).take(LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(1..) => hear(String::from_utf8_lossy(&line).trim_end()),
            Ok(0) | Err(_) => return,
        }
    }
}

/// Returns when the process whose admin port is at `admin` hasn't answered a few times in
/// a row, whatever it would have said.
async fn hangs(admin: Option<&str>) {
    let Some(endpoint) = admin.and_then(|at| Endpoint::from_shared(format!("http://{at}")).ok())
    else {
        return std::future::pending().await;
    };
    let mut misses = 0;
    while misses < MISSES {
        tokio::time::sleep(INTERVAL).await;
        let ask = async {
            let channel = endpoint.connect().await.ok()?;
            HealthClient::new(channel).check(HealthCheckRequest::default()).await.ok()
        };
        let answer = tokio::time::timeout(INTERVAL, ask).await;
        misses = if matches!(answer, Ok(Some(_))) { 0 } else { misses + 1 };
    }
}

fn keep(last: &Mutex<VecDeque<String>>, line: &str) {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(line.chars().take(LAST_CHARS).collect());
}

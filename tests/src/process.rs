//! One `omni` process, ended when its test ends.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// How long a process may take to drain.
const DRAIN: Duration = Duration::from_secs(30);

/// The `omni` that was built with this program.
///
/// # Panics
/// As [`binary_named`].
pub fn binary() -> PathBuf {
    binary_named("omni-under-test")
}

/// The binary `name` of this package. Cargo builds it before its tests run.
///
/// # Panics
/// When it isn't there: this program was moved, or not built by Cargo.
pub fn binary_named(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a program has a path");
    // `target/<profile>/deps/<test>`, or `target/<profile>/chaos`.
    let mut found = this.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let found = found.find(|binary| binary.is_file());
    found.unwrap_or_else(|| panic!("{name} isn't beside {}", this.display()))
}

/// A process that an `omni` started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offspring {
    pid: Pid,
    /// The service it runs.
    pub service: String,
}

impl Offspring {
    /// The children of the process `parent`. Those that have ended aren't.
    fn of(parent: u32) -> Vec<Self> {
        let numbers = std::fs::read_dir("/proc").expect("this is Linux").flatten();
        let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let child = |pid: i32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
            let is_ours = of("PPid:")?.trim() == parent.to_string();
            let lives = !of("State:")?.trim().starts_with('Z');
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let service = command.split('\0').skip_while(|word| *word != "serve").nth(1)?;
            let service = service.to_owned();
            Pid::from_raw(pid).filter(|_| is_ours && lives).map(|pid| Self { pid, service })
        };
        pids.filter_map(child).collect()
    }

    /// SIGKILL: nothing can be flushed.
    pub fn kill(&self) {
        // Gone already is as good.
        let _ = kill_process(self.pid, Signal::KILL);
    }

    /// SIGSTOP: it hangs, and its connections stay open.
    pub fn pause(&self) {
        // Gone already is as good.
        let _ = kill_process(self.pid, Signal::STOP);
    }

    /// Whether it is still there.
    pub fn lives(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_pid()));
        stat.is_ok_and(|stat| !stat.contains("State:\tZ"))
    }
}

/// A running `omni`.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, its output to the file `log`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let out = File::options().create(true).append(true).open(&log).expect("the log opens");
        let err = out.try_clone().expect("the log opens twice");
        // Should this program abort, its input ends, and those that heed it drain.
        let child = command.stdin(Stdio::piped()).stdout(out).stderr(err).spawn();
        Self { child: child.expect("omni starts"), log }
    }

    /// The processes that it started.
    pub fn children(&self) -> Vec<Offspring> {
        Offspring::of(self.child.id())
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Lets it write no file beyond `bytes`, as if the disk were full; `None` lets
    /// it again. It must ignore SIGXFSZ.
    ///
    /// # Panics
    /// When it isn't there any more.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(pid, Resource::Fsize, limit).expect("it is ours");
    }

    /// SIGKILL: nothing can be flushed.
    ///
    /// # Panics
    /// When it can't be signalled.
    pub fn kill(mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// When it can't be signalled.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// SIGSTOP: it hangs, and its connections stay open.
    ///
    /// # Panics
    /// When it can't be signalled.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT, after [`Process::pause`].
    ///
    /// # Panics
    /// When it can't be signalled.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// SIGTERM, and the exit status after the drain.
    ///
    /// # Panics
    /// When it doesn't end in time.
    pub fn stop(self) -> ExitStatus {
        self.terminate();
        self.wait()
    }

    /// The exit status, once it is there.
    ///
    /// # Panics
    /// When it doesn't end in time.
    pub fn wait(mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status;
            }
            assert!(begun.elapsed() < DRAIN, "it doesn't drain:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

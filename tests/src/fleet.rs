//! Several instances of one service, each a process, and a client of theirs in
//! this process.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh::{
    client::{Channel, Client},
    config::Config,
    identity::{self, Identity},
    intercept::Interceptors,
    policy::{self, Declared},
    registry::{self, Registry},
};
use watchdog::Watchdog;

use crate::{
    ground::{Consul, Ground},
    load::Load,
    process::{self, Process},
    proxy::Proxy,
    turn::Turn,
    until,
};

/// The service that fleets are of.
pub const SERVICE: &str = "hook-receiver";

/// Instances of [`SERVICE`] on embedded storage and events. They end with their
/// test.
pub struct Fleet {
    /// The Consul it stands on, where it does.
    pub consul: Option<Consul>,
    /// What is between Consul and everybody who asks it.
    pub link: Option<Proxy>,
    settings: HashMap<String, String>,
    members: Vec<Member>,
    started: usize,
    /// Behind the processes, whose logs are in it.
    data: tempfile::TempDir,
    _watchdog: Watchdog,
    _turn: Turn,
}

/// One instance.
struct Member {
    /// Where it listens.
    address: SocketAddr,
    process: Process,
}

impl Fleet {
    /// Starts `size` instances, and waits until all are ready.
    ///
    /// # Panics
    /// When one doesn't start.
    pub async fn start(ground: Ground, size: usize) -> Self {
        Self::start_with(ground, size, &[]).await
    }

    /// As [`Fleet::start`], for a test that asserts how long something takes, or makes as
    /// many calls as a machine can answer: nothing else runs meanwhile.
    ///
    /// # Panics
    /// When one doesn't start.
    pub async fn start_alone(ground: Ground, size: usize) -> Self {
        Self::start_in(Turn::alone().await, ground, size, &[]).await
    }

    /// As [`Fleet::start`], with further settings.
    ///
    /// # Panics
    /// When one doesn't start.
    pub async fn start_with(ground: Ground, size: usize, more: &[(&str, &str)]) -> Self {
        Self::start_in(Turn::beside_others().await, ground, size, more).await
    }

    /// As [`Fleet::start_with`], in a turn that was taken.
    ///
    /// # Panics
    /// When one doesn't start.
    pub async fn start_in(turn: Turn, ground: Ground, size: usize, more: &[(&str, &str)]) -> Self {
        let consul = Consul::start(ground).await;
        let mut fleet = Self::empty(turn, consul, more).await;
        // All are started before the first one is waited for.
        let starting: Vec<_> = (0..size).map(|_| fleet.spawn(SERVICE, &[])).collect();
        for process in starting {
            let address = ready(&process, SERVICE).await;
            fleet.members.push(Member { address, process });
        }
        fleet
    }

    /// A fleet on this Consul, or on none, that has no instance yet. The turn is taken
    /// before the Consul is started.
    ///
    /// # Panics
    /// When there is no room for its files.
    pub async fn empty(_turn: Turn, consul: Option<Consul>, more: &[(&str, &str)]) -> Self {
        let _watchdog = Watchdog::start();
        // Another test of this process may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        mesh::descriptors::add(api::DESCRIPTORS).expect("they are ours");
        let data = tempfile::tempdir().expect("there is room");
        let folder = data.path().to_str().expect("a path in UTF-8").to_owned();
        let mut settings: HashMap<String, String> = [
            ("OMNI_DATA", folder.as_str()),
            ("OMNI_DRAIN_TIMEOUT", "8s"),
            ("OMNI_CONSUL__CHECK_INTERVAL", "2s"),
            ("OMNI_SERVICES__HOOK_RECEIVER__PORT", "0"),
            ("OMNI_SERVICES__HOOK_RECEIVER__ADMIN_PORT", "0"),
            ("OMNI_SERVICES__AUDIT__ADMIN_PORT", "0"),
            ("OMNI_SERVICES__SERVICE_COORDINATOR__PORT", "0"),
            ("OMNI_SERVICES__SERVICE_COORDINATOR__ADMIN_PORT", "0"),
            ("OMNI_SERVICES__VERSION_BRIDGE__PORT", "0"),
            ("OMNI_SERVICES__VERSION_BRIDGE__ADMIN_PORT", "0"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let link = match &consul {
            Some(consul) => Some(Proxy::start(consul.address()).await),
            None => None,
        };
        if let Some(link) = &link {
            settings.insert("OMNI_REGISTRY".to_owned(), format!("consul://{}", link.address));
            settings.insert("OMNI_IDENTITY".to_owned(), "consul:".to_owned());
        }
        settings.extend(more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
        Self { consul, link, settings, members: vec![], started: 0, data, _watchdog, _turn }
    }

    /// Starts one more instance, and waits until it is ready.
    ///
    /// # Panics
    /// When it doesn't start.
    pub async fn add(&mut self) {
        let (process, address) = self.serve(SERVICE, &[]).await;
        self.members.push(Member { address, process });
    }

    /// Starts a process that serves `service`, which may be another one than the
    /// fleet's, with further settings; answers where it listens.
    ///
    /// # Panics
    /// When it doesn't start.
    pub async fn serve(&mut self, service: &str, more: &[(&str, &str)]) -> (Process, SocketAddr) {
        let process = self.spawn(service, more);
        let address = ready(&process, service).await;
        (process, address)
    }

    /// Starts the tests' own service in a version, or one that hears of it: `which`
    /// is as [`crate::shop::serve`] takes it, and `name` the service's name.
    ///
    /// # Panics
    /// When it doesn't start.
    pub async fn shop(&mut self, name: &str, which: &str) -> Process {
        let mut command = self.command(&process::binary_named("shop"));
        command.arg(which);
        let process = self.start_process(command, name);
        ready(&process, name).await;
        process
    }

    fn spawn(&mut self, service: &str, more: &[(&str, &str)]) -> Process {
        let mut command = self.command(&process::binary());
        command.envs(more.iter().copied()).args(["serve", service, "--with-parent"]);
        self.start_process(command, service)
    }

    /// `binary` with the settings of its processes.
    pub fn command(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(&self.settings).current_dir(self.data.path());
        command
    }

    fn start_process(&mut self, command: Command, name: &str) -> Process {
        self.started += 1;
        let log = self.data.path().join(format!("{name}-{}.log", self.started));
        Process::start(command, log)
    }

    /// How many instances there are.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Where instance `n` listens.
    pub fn address(&self, n: usize) -> SocketAddr {
        self.members[n].address
    }

    /// What instance `n` has logged.
    pub fn log(&self, n: usize) -> String {
        self.members[n].process.log()
    }

    /// SIGKILL to instance `n`, which is no more; answers when.
    pub fn kill(&mut self, n: usize) -> Instant {
        let member = self.members.remove(n);
        let now = Instant::now();
        member.process.kill();
        now
    }

    /// SIGSTOP to instance `n`; answers when.
    pub fn pause(&self, n: usize) -> Instant {
        let now = Instant::now();
        self.members[n].process.pause();
        now
    }

    /// SIGCONT to instance `n`.
    pub fn resume(&self, n: usize) {
        self.members[n].process.resume();
    }

    /// SIGTERM to instance `n`, which is no more; answers when it was told, and
    /// returns when it has drained.
    ///
    /// # Panics
    /// When it doesn't end with success.
    pub async fn drain(&mut self, n: usize) -> Instant {
        let process = self.members.remove(n).process;
        let now = Instant::now();
        let status = tokio::task::spawn_blocking(move || (process.terminate(), process.wait()).1);
        let status = status.await.expect("it ends in time");
        assert!(status.success(), "{status}");
        now
    }

    /// Drains the oldest instance, and starts another one, as often as there are
    /// instances.
    ///
    /// # Panics
    /// When one doesn't end or start.
    pub async fn roll(&mut self) {
        for _ in 0..self.members.len() {
            self.drain(0).await;
            self.add().await;
        }
    }

    /// Drains and ends all.
    ///
    /// # Panics
    /// When one doesn't end with success.
    pub async fn stop(mut self) {
        for member in &self.members {
            member.process.terminate();
        }
        for member in std::mem::take(&mut self.members) {
            let status = tokio::task::spawn_blocking(move || member.process.wait()).await;
            assert!(status.expect("it ends in time").success());
        }
    }

    /// The configuration of its processes.
    ///
    /// # Panics
    /// When it can't be read.
    pub fn config(&self) -> Config {
        Config::from_sources(None, self.settings.clone(), &[]).expect("the processes read it too")
    }

    /// As [`Fleet::config`], with other settings by key.
    ///
    /// # Panics
    /// When they don't fit.
    pub fn config_with(&self, settings: &[(&str, String)]) -> Config {
        Config::from_sources(None, self.settings.clone(), settings).expect("they fit")
    }

    /// A way to call it, as an operator.
    ///
    /// # Panics
    /// When it can't be had.
    pub async fn channel(&self) -> Channel {
        self.channel_with(&self.config()).await
    }

    /// As [`Fleet::channel`], with this configuration.
    ///
    /// # Panics
    /// When it can't be had.
    pub async fn channel_with(&self, config: &Config) -> Channel {
        let registry = registry::registry(config).expect("it names one");
        self.channel_by(config, registry).await
    }

    /// An operator's identity.
    ///
    /// # Panics
    /// When it can't be had.
    pub async fn operator(&self) -> Identity {
        let authority = identity::authority(&self.config()).expect("the processes use it too");
        authority.identity("operator").await.expect("it is given")
    }

    /// As [`Fleet::channel`], but its instances are found by `registry`.
    ///
    /// # Panics
    /// When it can't be had.
    pub async fn channel_by(&self, config: &Config, registry: Arc<dyn Registry>) -> Channel {
        let authority = identity::authority(config).expect("the processes use it too");
        let operator = authority.identity("operator").await.expect("it is given");
        let policy = policy::policy(config, &Declared::default()).await;
        let policy = policy.expect("the processes use it too");
        let client = Client::new(operator, registry, policy, Interceptors::default());
        client.channel(SERVICE).await.expect("it can be watched")
    }

    /// Calls it `rate` times a second, a second ahead of what the test does.
    pub async fn load(&self, rate: u32) -> Load {
        let load = Load::start(&self.channel().await, rate);
        load.run(Duration::from_secs(1)).await;
        load
    }
}

/// Where `process` says that `service` is ready.
async fn ready(process: &Process, service: &str) -> SocketAddr {
    let ready = format!("{service} is ready at ");
    until("an instance is ready", || async {
        let log = process.log();
        let line = log.lines().find_map(|line| line.strip_prefix(&ready));
        line.and_then(|address| address.trim().parse().ok()).ok_or(log)
    })
    .await
}

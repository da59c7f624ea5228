//! `omni up`: everything, with something to try.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{SocketAddr, TcpListener},
    path::Path,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mesh::{
    config::{Config, variable},
    files,
    identity::dev,
    service::{Descriptor, HTTP},
};
use service_coordinator::{
    runner::{Children, Retries},
    supervisor::{State, Status},
};

use crate::{
    args::{Common, Up},
    catalogue, certs, config,
    host::{self, Place, Statuses},
    output::{say, whisper},
};

/// The demo source.
const DEMO: &str = "demo";

/// Runs everything until it is told to stop.
pub(crate) async fn run(common: &Common, args: &Up) -> anyhow::Result<()> {
    let begun = Instant::now();
    let (config, demo) = with_demo(common)?;
    // Of whoever has one in this process.
    let whose = if args.processes { service_coordinator::NAME } else { "gateway" };
    let admin_port = args.admin_port.unwrap_or_else(|| config.admin_port(whose));
    let place = match args.processes {
        true => Place::Processes(children(common, &config, demo)?),
        false => Place::Here { names: None, retries: Retries::Passing },
    };
    let mut shown = Shown::new(&config, begun);
    let data = config.data.clone();
    let authority = config.identity.starts_with("dev:").then(|| dev::DevAuthority::open(&config));
    let authority = authority.transpose()?;
    let certificate = async {
        match &authority {
            Some(authority) => {
                authority.keep_issued(certs::OPERATOR, &data.join(certs::OPERATOR)).await
            }
            None => std::future::pending().await,
        }
    };
    let stop = host::stop_signal()?;
    let services = host::run(config, place, admin_port, stop, |statuses, admin| {
        shown.show(statuses, admin);
    });
    let mut services = pin!(services);
    let ended = tokio::select! {
        // It is polled first, so that the certificate is there before all is up.
        biased;
        failed = certificate => {
            if let Err(why) = failed {
                tracing::error!(%why, "the operator's certificate isn't kept any more");
            }
            services.await
        }
        ended = &mut services => ended,
    };
    say("stopped");
    ended
}

/// How services are started in processes of their own, with the settings `demo` too.
fn children(
    common: &Common,
    config: &Config,
    demo: Vec<(String, String)>,
) -> anyhow::Result<Children> {
    let mut arguments: Vec<OsString> = Vec::new();
    for (flag, path) in [("--data", &common.data), ("--config", &common.config)] {
        if let Some(path) = path {
            arguments.extend([flag.into(), path.into()]);
        }
    }
    let mut doors = BTreeMap::new();
    for Descriptor { name, capabilities, port, .. } in catalogue::descriptors() {
        if capabilities.contains(&HTTP) {
            let address = (config.bind, config.port(name).or(port).unwrap_or(0));
            let door = TcpListener::bind(address);
            let door = door.with_context(|| {
                let setting = format!("services.{name}.port");
                format!("{name} can't listen on port {}; set `{setting}` to another", address.1)
            })?;
            doors.insert(name.to_owned(), door);
        }
    }
    Ok(Children {
        program: std::env::current_exe().context("the program's own path")?,
        arguments,
        environment: demo.into_iter().map(|(key, value)| (variable(&key), value)).collect(),
        drain_timeout: config.drain_timeout,
        doors,
        told: Arc::new(|service, number, line| {
            whisper(&format!("{service}-{number} | {line}"));
        }),
    })
}

/// The configuration, with a source `demo` unless there is one; and the settings that
/// were added for that.
fn with_demo(common: &Common) -> anyhow::Result<(Config, Vec<(String, String)>)> {
    let config = config::load(common, &[])?;
    let key = format!("hooks.sources.{DEMO}.");
    if config.effective().iter().any(|setting| setting.key.starts_with(&key)) {
        return Ok((config, vec![]));
    }
    let file = config.data.join("hooks").join(format!("{DEMO}.secret"));
    if !file.exists() {
        files::make_folder(&config.data.join("hooks"))?;
        files::replace(&file, hex::encode(rand::random::<[u8; 32]>()).as_bytes())?;
    }
    let demo = vec![
        (format!("{key}scheme"), "github".to_owned()),
        (format!("{key}secret_file"), file.display().to_string()),
    ];
    let flags: Vec<_> = demo.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    Ok((config::load(common, &flags)?, demo))
}

/// What is shown while services start, and when all are ready.
struct Shown {
    bars: MultiProgress,
    /// Of those that aren't healthy yet.
    waiting: BTreeMap<String, ProgressBar>,
    /// What has to be healthy.
    services: Vec<String>,
    begun: Instant,
    data: std::path::PathBuf,
    dev_identity: bool,
    is_up: bool,
}

impl Shown {
    fn new(config: &Config, begun: Instant) -> Self {
        Self {
            bars: MultiProgress::new(),
            waiting: BTreeMap::new(),
            services: catalogue::descriptors().iter().map(|d| d.name.to_owned()).collect(),
            begun,
            data: config.data.clone(),
            dev_identity: config.identity.starts_with("dev:"),
            is_up: false,
        }
    }

    fn show(&mut self, statuses: &Statuses, admin: Option<SocketAddr>) {
        if !self.is_up {
            for (name, status) in statuses {
                self.progress(name, status);
            }
            let works = |name: &String| statuses.get(name).is_some_and(|s| s.state.is_healthy());
            if self.services.iter().all(works) {
                self.is_up = true;
                for bar in std::mem::take(&mut self.waiting).into_values() {
                    bar.finish_and_clear();
                }

                self.summary(statuses, admin);
            }
        }
    }

    fn progress(&mut self, name: &str, status: &Status) {
        let doing = match status.state {
            State::Waiting if status.reason.is_empty() => return,
            State::Waiting => status.reason.clone(),
            State::Starting => "starting".to_owned(),
            State::Failed => format!("failed, and is tried again: {}", status.reason),
            State::CrashLooping => status.reason.clone(),
            State::Ready | State::Degraded | State::Draining | State::Stopped => {
                if let Some(bar) = self.waiting.remove(name) {
                    bar.finish_and_clear();
                }
                return;
            }
        };
        let bar = self.waiting.entry(name.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix:19} {msg}");
            let bar = self.bars.add(ProgressBar::new_spinner());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.set_message(doing);
    }

    fn summary(&self, statuses: &Statuses, admin: Option<SocketAddr>) {
        let ready = statuses.values().all(|status| status.state == State::Ready);
        let how = if ready { "all healthy" } else { "degraded," };
        say(&format!("OmniBridge is up, {how} after {:.2?}\n", self.begun.elapsed()));
        // A backend has no address of ours.
        for (name, status) in statuses.iter().filter(|(_, status)| status.notes.concat() != "") {
            let scheme = if name == "gateway" { "http" } else { "grpc, mTLS" };
            let degraded = match status.state {
                State::Degraded => format!(", {}", status.reason),
                _ => String::new(),
            };
            say(&format!("  {name:19} {}  ({scheme}{degraded})", status.notes.join(", ")));
        }
        if let Some(admin) = admin {
            say(&format!("  {:19} {admin}  (/readyz, /metrics)", "admin"));
        }
        let data = if self.data == Path::new(".omni") {
            String::new()
        } else {
            format!(" --data {}", self.data.display())
        };
        say(&format!(
            "\nThe source `{DEMO}` takes webhooks signed as GitHub does; its secret is in\n\
             {}. Try:\n\n\
             \x20 echo '{{\"hello\":\"mesh\"}}' | omni{data} hook send {DEMO} -\n\
             \x20 omni{data} events tail hooks.{DEMO} --from-beginning\n\
             \x20 {}\n\n\
             Ctrl-C stops it.",
            self.data.join("hooks").join(format!("{DEMO}.secret")).display(),
            self.call(statuses, &data),
        ));
    }

    /// A call to try: by grpcurl where its certificate lies in files, else by
    /// `omni call`.
    fn call(&self, statuses: &Statuses, data: &str) -> String {
        let method = "omnibridge.hooks.v1.HookReceiver/ListHooks";
        let address = statuses.get("hook-receiver").and_then(|status| status.notes.first());
        match address.filter(|_| self.dev_identity) {
            Some(address) => {
                let folder = self.data.join(certs::OPERATOR);
                let folder = folder.display();
                format!(
                    "grpcurl -cacert {folder}/roots.pem -cert {folder}/cert.pem \\\n    \
                     -key {folder}/key.pem {address} {method}"
                )
            }
            None => format!("omni{data} call {method}"),
        }
    }
}

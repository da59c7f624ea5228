//! `omni up`: everything in one process, with something to try.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mesh::{config::Config, files, identity::dev, service::Stage};

use crate::{
    args::{Common, Up},
    catalogue, certs, config, host,
    output::line,
};

/// The demo source.
const DEMO: &str = "demo";

/// Runs everything until it is told to stop.
pub(crate) async fn run(common: &Common, args: &Up) -> anyhow::Result<()> {
    let begun = Instant::now();
    let config = with_demo(common)?;
    let admin_port = args.admin_port.unwrap_or_else(|| config.admin_port("gateway"));
    let services = catalogue::all();
    let shown = Arc::new(Shown::new(&config, services.len(), begun));
    let (for_progress, for_admin) = (shown.clone(), shown);
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
    let services = host::run(
        config,
        services,
        admin_port,
        Arc::new(move |name, stage| for_progress.stage(name, stage)),
        |process| {
            for_admin.admin(process.admin_address());
            Ok(())
        },
    );
    tokio::pin!(services);
    tokio::select! {
        // It is polled first, so that the certificate is there before all is up.
        biased;
        failed = certificate => {
            if let Err(why) = failed {
                tracing::error!(%why, "the operator's certificate isn't kept any more");
            }
            services.await
        }
        ended = &mut services => ended,
    }
}

/// The configuration, with a source `demo` unless there is one.
fn with_demo(common: &Common) -> anyhow::Result<Config> {
    let config = config::load(common, &[])?;
    let key = format!("hooks.sources.{DEMO}.");
    if config.effective().iter().any(|setting| setting.key.starts_with(&key)) {
        return Ok(config);
    }
    let file = config.data.join("hooks").join(format!("{DEMO}.secret"));
    if !file.exists() {
        files::make_folder(&config.data.join("hooks"))?;
        files::replace(&file, hex::encode(rand::random::<[u8; 32]>()).as_bytes())?;
    }
    let (scheme, secret) = (format!("{key}scheme"), format!("{key}secret_file"));
    let flags =
        [(scheme.as_str(), "github".to_owned()), (secret.as_str(), file.display().to_string())];
    config::load(common, &flags)
}

/// What is shown while services start, and when all are ready.
struct Shown {
    bars: MultiProgress,
    services: usize,
    begun: Instant,
    data: std::path::PathBuf,
    dev_identity: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bars: BTreeMap<String, ProgressBar>,
    ready: BTreeMap<String, SocketAddr>,
    admin: Option<SocketAddr>,
}

impl Shown {
    fn new(config: &Config, services: usize, begun: Instant) -> Self {
        Self {
            bars: MultiProgress::new(),
            services,
            begun,
            data: config.data.clone(),
            dev_identity: config.identity.starts_with("dev:"),
            state: Mutex::default(),
        }
    }

    fn admin(&self, address: SocketAddr) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).admin = Some(address);
    }

    fn stage(&self, name: &str, stage: Stage) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match stage {
            Stage::Starting => {
                let style = ProgressStyle::with_template("{spinner} {prefix:14} {msg}");
                let bar = self.bars.add(ProgressBar::new_spinner());
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
                bar.set_prefix(name.to_owned());
                bar.set_message("starting");
                bar.enable_steady_tick(Duration::from_millis(100));
                state.bars.insert(name.to_owned(), bar);
            }
            Stage::Ready(address) => {
                if let Some(bar) = state.bars.remove(name) {
                    bar.finish_and_clear();
                }
                state.ready.insert(name.to_owned(), address);
                if state.ready.len() == self.services {
                    // A terminal that is gone doesn't stop the services.
                    let _ = self.summary(&state);
                }
            }
            Stage::Draining => {}
            Stage::Stopped => {
                state.ready.remove(name);
                if state.ready.is_empty() {
                    let _ = line("stopped");
                }
            }
        }
    }

    fn summary(&self, state: &State) -> anyhow::Result<()> {
        line(&format!("OmniBridge is up, all healthy after {:.2?}\n", self.begun.elapsed()))?;
        for (name, address) in &state.ready {
            let scheme = if name == "gateway" { "http" } else { "grpc, mTLS" };
            line(&format!("  {name:14} {address}  ({scheme})"))?;
        }
        if let Some(admin) = state.admin {
            line(&format!("  {:14} {admin}  (/readyz, /metrics)", "admin"))?;
        }
        let data = if self.data == Path::new(".omni") {
            String::new()
        } else {
            format!(" --data {}", self.data.display())
        };
        line(&format!(
            "\nThe source `{DEMO}` takes webhooks signed as GitHub does; its secret is in\n\
             {}. Try:\n\n\
             \x20 echo '{{\"hello\":\"mesh\"}}' | omni{data} hook send {DEMO} -\n\
             \x20 omni{data} events tail hooks.{DEMO} --from-beginning\n\
             \x20 {}\n\n\
             Ctrl-C stops it.",
            self.data.join("hooks").join(format!("{DEMO}.secret")).display(),
            self.call(state, &data),
        ))
    }

    /// A call to try: by grpcurl where its certificate lies in files, else by
    /// `omni call`.
    fn call(&self, state: &State, data: &str) -> String {
        let method = "omnibridge.hooks.v1.HookReceiver/ListHooks";
        match state.ready.get("hook-receiver").filter(|_| self.dev_identity) {
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

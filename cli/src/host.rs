//! Running services in this process, for `up` and `serve`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use mesh::{config::Config, telemetry::Telemetry};
use service_coordinator::{
    Supervisor,
    runner::{ADMIN, Children, Local, Processes, Retries},
    supervisor::{Runner, Status},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    args::{Common, Serve},
    catalogue, config,
    output::{say, whisper},
};

/// How much longer than its drain may take a process stays without its parent.
const AFTER_DRAIN: Duration = Duration::from_secs(5);

/// How all units are, by name.
pub(crate) type Statuses = BTreeMap<String, Status>;

/// `omni serve`.
pub(crate) async fn serve(common: &Common, args: &Serve) -> anyhow::Result<()> {
    let all: BTreeSet<String> =
        catalogue::descriptors().into_iter().map(|d| d.name.to_owned()).collect();
    let names: BTreeSet<String> = args.names.iter().cloned().collect();
    if let Some(name) = names.iter().find(|name| !all.contains(*name)) {
        let all: Vec<String> = all.into_iter().collect();
        bail!("there is no service `{name}`; there are {}", all.join(", "));
    }
    let config = config::load(common, &[])?;
    let admin_port = args.admin_port.unwrap_or_else(|| config.admin_port(&args.names[0]));
    let stop = stop_signal()?;
    if args.with_parent {
        until_input_ends(stop.clone(), config.drain_timeout + AFTER_DRAIN);
    }
    let mut told = BTreeSet::new();
    let shown = |statuses: &Statuses, admin: Option<SocketAddr>| {
        if let Some(admin) = admin.filter(|_| told.is_empty()) {
            say(&format!("{ADMIN}{admin}"));
            told.insert(String::new());
        }
        for (name, status) in statuses.iter().filter(|(_, status)| status.state.is_healthy()) {
            if told.insert(name.clone()) {
                say(&format!("{name} is ready at {}", status.notes.concat()));
            }
        }
    };
    let place = Place::Here { names: Some(&names), retries: Retries::Nothing };
    run(config, place, admin_port, stop, shown).await
}

/// Where services run.
pub(crate) enum Place<'n> {
    /// In this process: those of these names, or all.
    Here {
        /// Which.
        names: Option<&'n BTreeSet<String>>,
        /// What is tried again.
        retries: Retries,
    },
    /// All, in processes of their own.
    Processes(Children),
}

/// Runs services until `stop`, then drains them. `shown` is called with how they are
/// and the address of the admin port, whenever that changes.
pub(crate) async fn run(
    config: Config,
    place: Place<'_>,
    admin_port: u16,
    stop: CancellationToken,
    mut shown: impl FnMut(&Statuses, Option<SocketAddr>),
) -> anyhow::Result<()> {
    let whole = Arc::new(catalogue::plan(&config)?);
    let (plan, retries) = match &place {
        Place::Here { names: Some(names), retries } => (Arc::new(whole.only(names)), *retries),
        Place::Here { names: None, retries } => (whole.clone(), *retries),
        Place::Processes(_) => (whole.clone(), Retries::Passing),
    };
    let telemetry = Telemetry::start(&config)?;
    let supervisor = Supervisor::new(plan);
    let services = catalogue::all(whole, supervisor.control());
    let declared = catalogue::declared();
    let local = Local::new(Arc::new(config), telemetry, services, declared, admin_port, retries);
    let local = Arc::new(local);
    let runner: Arc<dyn Runner> = match place {
        Place::Here { .. } => local.clone(),
        Place::Processes(children) => Arc::new(Processes { local: local.clone(), children }),
    };
    let mut statuses = supervisor.control().statuses();
    let outcome = {
        let mut running = pin!(supervisor.run(runner, stop));
        loop {
            let ended = tokio::select! {
                ended = &mut running => Some(ended),
                // The one who tells is the one who runs.
                _ = statuses.changed() => None,
            };
            shown(&statuses.borrow_and_update(), local.admin_address());
            if let Some(ended) = ended {
                break ended;
            }
        }
    };
    if let Some(local) = Arc::into_inner(local) {
        local.stop().await;
    }
    Ok(outcome?)
}

/// Cancels `stop` when standard input ends, as it does when the parent dies that holds
/// the other end; and ends this process where it is still there after `patience`, as the
/// parent would.
fn until_input_ends(stop: CancellationToken, patience: Duration) {
    // Reading can't be given up, and a task that reads would hold up the end.
    std::thread::spawn(move || {
        // However it ends, nobody is there any more.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        stop.cancel();
        std::thread::sleep(patience);
        std::process::exit(1);
    });
}

/// Cancelled at the first SIGTERM or Ctrl-C; a second one ends the process at once.
pub(crate) fn stop_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let first = stop.clone();
    tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if again {
                whisper("stopped at once; what was acknowledged is on disk");
                std::process::exit(1);
            }
            first.cancel();
        }
    });
    Ok(stop)
}

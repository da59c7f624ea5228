//! Running services in this process, for `up` and `serve`.

use std::{io::Write as _, sync::Arc};

use anyhow::Context as _;
use mesh::{
    config::Config,
    service::{Process, Progress, Service, Stage},
    telemetry::Telemetry,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    args::{Common, Serve},
    catalogue, config,
};

/// `omni serve`.
pub(crate) async fn serve(common: &Common, args: &Serve) -> anyhow::Result<()> {
    let all = catalogue::all();
    let services = args
        .names
        .iter()
        .map(|name| {
            let found = all.iter().find(|service| service.descriptor().name == name).cloned();
            found.with_context(|| {
                let names: Vec<&str> = all.iter().map(|s| s.descriptor().name).collect();
                format!("there is no service `{name}`; there are {}", names.join(", "))
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let config = config::load(common, &[])?;
    let admin_port = args.admin_port.unwrap_or_else(|| config.admin_port(&args.names[0]));
    let progress: Progress = Arc::new(|name, stage| {
        if let Stage::Ready(address) = stage {
            // A reader that is gone doesn't stop the services.
            let _ = writeln!(std::io::stdout(), "{name} is ready at {address}");
        }
    });
    run(config, services, admin_port, progress, |_| Ok(())).await
}

/// Runs `services` until SIGTERM or Ctrl-C, then drains them; a second signal
/// ends the process at once. `started` is called when the backends are open.
pub(crate) async fn run(
    config: Config,
    services: Vec<Arc<dyn Service>>,
    admin_port: u16,
    progress: Progress,
    started: impl FnOnce(&Process) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let telemetry = Telemetry::start(&config)?;
    let stop = stop_signal()?;
    let dependencies = catalogue::dependencies();
    let process = Process::start(Arc::new(config), telemetry, &dependencies, admin_port).await?;
    let process = Arc::new(process);
    started(&process)?;
    let outcome = process.run(services, progress, stop).await;
    process.stop().await;
    Ok(outcome?)
}

/// Cancelled at the first SIGTERM or Ctrl-C.
fn stop_signal() -> anyhow::Result<CancellationToken> {
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
                eprintln!("stopped at once; what was acknowledged is on disk");
                std::process::exit(1);
            }
            first.cancel();
        }
    });
    Ok(stop)
}

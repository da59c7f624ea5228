//! version-bridge as the hop: the service in a process of its own, as `omni serve`
//! runs it, with the mapping of the older package. It finds the server by the
//! registry, calls it over mutual TLS, and has on what the mesh has on.

use std::{path::Path, sync::Arc};

use mesh::{service::Process, telemetry::Telemetry};
use tokio::sync::oneshot;

use tokio_util::sync::CancellationToken;
use version_bridge::VersionBridge;

use crate::{meshed, older, party};

/// Serves on a free port, says which, and ends when standard input does.
///
/// # Errors
/// When the mesh can't be entered, or the mapping isn't proven.
pub(crate) async fn run(data: &Path, traces: &str) -> anyhow::Result<()> {
    let mut config = meshed::config(data, traces)?;
    config.mappings = Some(older::FOLDER.into());
    let telemetry = Telemetry::start(&config)?.into();
    let process = Process::start(Arc::new(config), telemetry, &meshed::declared(), 0).await?;
    let process = Arc::new(process);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        party::Asked::new().end().await;
        stopped.cancel();
    });
    let (ready, is_ready) = oneshot::channel();
    let told = async {
        if let Ok(address) = is_ready.await {
            // Where nobody listens any more, our input has ended, too.
            let _ = party::tell(&address);
        }
    };
    let service = Arc::new(VersionBridge);
    let (outcome, ()) = tokio::join!(process.run(service, ready, stop), told);

    process.stop().await;
    Ok(outcome?)
}

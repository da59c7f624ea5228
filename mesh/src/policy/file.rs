//! Policy from the configuration file, read again when it changes.

use std::{path::Path, sync::Arc};

use tokio::sync::watch;

use super::{Intention, Intentions, Policy, Routes};
use crate::{Error, config::Config, files};

/// The part of `omni.toml` that can change while the process runs.
#[derive(Default, serde::Deserialize)]
struct Live {
    #[serde(default)]
    intentions: Vec<Intention>,
    #[serde(default)]
    routes: Routes,
}

/// Watches `[[intentions]]` and `[routes]` of the file that `config` was
/// loaded from. A file that can't be read or is wrong changes nothing and is
/// logged.
///
/// # Errors
/// When the file's folder can't be watched.
pub fn watch_file(
    config: &Config,
    declared: &[(String, String)],
) -> Result<watch::Receiver<Arc<Policy>>, Error> {
    let first = Policy {
        intentions: Intentions::compile(config.intentions.clone(), declared),
        routes: config.routes.clone(),
    };
    let (policy, watched) = watch::channel(Arc::new(first));
    let Some(file) = config.file().map(Path::to_owned) else {
        // Nothing can change; the sender lives as long as somebody listens.
        tokio::spawn(async move { policy.closed().await });
        return Ok(watched);
    };
    let mut changes = files::watch(
        file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
    )?;
    let declared = declared.to_vec();
    tokio::spawn(async move {
        // Neighbours of the file change more often than it does.
        let mut last = None;
        loop {
            tokio::select! {
                () = changes.changed() => {}
                () = policy.closed() => return,
            }
            let read = tokio::fs::read_to_string(&file).await.map_err(|e| e.to_string());
            if last.as_ref() == Some(&read) {
                continue;
            }
            last = Some(read.clone());
            match read.and_then(|text| toml::from_str::<Live>(&text).map_err(|e| e.to_string())) {
                Ok(live) => {
                    policy.send_replace(Arc::new(Policy {
                        intentions: Intentions::compile(live.intentions, &declared),
                        routes: live.routes,
                    }));
                }
                Err(why) => {
                    tracing::warn!(file = %file.display(), %why, "the policy stays as it was");
                }
            }
        }
    });
    Ok(watched)
}

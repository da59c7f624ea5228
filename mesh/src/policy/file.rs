//! Policy from the configuration file, read again when it changes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use super::{Declared, Intentions, Policy, versions};
use crate::{
    Error,
    config::{Config, Live},
    files,
};

/// Watches `[[intentions]]`, `[routes]` and `[trust]` of the file that `config` was
/// loaded from. A file that can't be read or is wrong changes nothing and is
/// logged.
///
/// # Errors
/// When the file's folder, or that of the rules of versions, can't be watched.
pub async fn watch_file(
    config: &Config,
    declared: &Declared,
) -> Result<watch::Receiver<Arc<Policy>>, Error> {
    let mut versions = versions::follow(config).await?;
    let mut now = Policy {
        intentions: Intentions::compile(config.intentions.clone(), &declared.calls),
        routes: config.routes.clone(),
        trust: declared.trust.union(&config.trust),
        versions: versions.borrow_and_update().clone(),
    };
    let (policy, watched) = watch::channel(Arc::new(now.clone()));
    let mut file = match config.file() {
        Some(file) => Some(Watched::new(file, config)?),
        None => None,
    };
    let declared = declared.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                live = next(&mut file) => {
                    now.intentions = Intentions::compile(live.intentions, &declared.calls);
                    now.routes = live.routes;
                    now.trust = declared.trust.union(&live.trust);
                }
                Ok(()) = versions.changed() => {
                    now.versions = versions.borrow_and_update().clone();
                }
                () = policy.closed() => return,
            }
            policy.send_replace(Arc::new(now.clone()));
        }
    });
    Ok(watched)
}

/// The file, as it changes.
struct Watched {
    file: PathBuf,
    config: Config,
    changes: files::Changes,
    /// Neighbours of the file change more often than it does.
    last: Option<Result<String, String>>,
}

impl Watched {
    fn new(file: &Path, config: &Config) -> Result<Self, Error> {
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty());
        let changes = files::watch(folder.unwrap_or(Path::new(".")))?;
        Ok(Self { file: file.to_owned(), config: config.clone(), changes, last: None })
    }

    /// What the file says next.
    async fn next(&mut self) -> Live {
        loop {
            self.changes.changed().await;
            let read = tokio::fs::read_to_string(&self.file).await.map_err(|e| e.to_string());
            if self.last.as_ref() == Some(&read) {
                continue;
            }
            self.last = Some(read.clone());
            match read.and_then(|text| self.config.live(&text).map_err(|e| e.to_string())) {
                Ok(live) => return live,
                Err(why) => {
                    let file = self.file.display();
                    tracing::warn!(%file, %why, "the policy stays as it was");
                }
            }
        }
    }
}

/// What the file says next, if there is one.
async fn next(file: &mut Option<Watched>) -> Live {
    match file {
        Some(file) => file.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use super::{super::Trust, *};
    use crate::identity::SpiffeId;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn allows(policy: &Policy, source: &str) -> bool {
        let source = SpiffeId::of_service("d", source).unwrap();
        let request = http::Request::post("/p.S/M").body(()).unwrap();
        policy.decide(&source, "b", &request).is_allowed()
    }

    #[tokio::test]
    async fn a_change_of_the_file_counts_and_one_that_is_wrong_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("omni.toml");
        let allow = |source: &str, more: &str| {
            let intention = format!("source = '{source}'\ndestination = 'b'\n{more}");
            files::replace(&file, format!("[[intentions]]\n{intention}").as_bytes()).unwrap();
        };
        allow("a", "action = 'allow'");
        let flags = [("data", folder.path().join("data").display().to_string())];
        let config = Config::from_sources(Some(&file), HashMap::new(), &flags).unwrap();
        let mut watched = watch_file(&config, &Declared::default()).await.unwrap();
        assert!(allows(&watched.borrow(), "a"));

        // Not known, not compiled, not TOML: each would allow `c`.
        for wrong in [
            "action = 'allow'\njwt = { providers = ['okta'] }",
            "permissions = [{ action = 'allow', path_regex = '(' }]",
            "action = 'allow'\n[",
        ] {
            allow("c", wrong);
            let why = Config::from_sources(Some(&file), HashMap::new(), &[]);
            assert!(why.is_err(), "nothing starts with it either");
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(config.live(&text).is_err(), "nor goes on with it: {wrong}");
            assert!(allows(&watched.borrow(), "a") && !allows(&watched.borrow(), "c"), "{wrong}");
        }
        allow("d", "permissions = [{ action = 'allow', path_regex = '/p[.]S/.' }]");
        tokio::time::timeout(DEADLINE, watched.wait_for(|policy| allows(policy, "d")))
            .await
            .expect("the change is seen")
            .unwrap();
        assert!(!allows(&watched.borrow(), "a"));
    }

    #[tokio::test]
    async fn what_the_environment_trusts_counts_over_the_file_whatever_changes_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("omni.toml");
        let write = |text: &str| files::replace(&file, text.as_bytes()).unwrap();
        write("trust = { proxies = ['x'], converters = ['v'] }");
        let env = [("OMNI_TRUST__PROXIES".to_owned(), "y,z".to_owned())].into();
        let config = Config::from_sources(Some(&file), env, &[]).unwrap();
        let ours = Declared {
            trust: Trust { proxies: ["ours".into()].into(), ..Trust::default() },
            ..Declared::default()
        };
        let mut watched = watch_file(&config, &ours).await.unwrap();
        let forward =
            |policy: &Policy| ["ours", "x", "y", "v", "w"].map(|name| policy.trust.forwards(name));
        assert_eq!(forward(&watched.borrow()), [true, false, true, true, false]);
        // An empty file is one that isn't written yet: it changes nothing.
        write("");
        write("trust = { proxies = ['x'], converters = ['w'] }");
        let changed = watched.wait_for(|policy| policy.trust.forwards("w"));
        tokio::time::timeout(DEADLINE, changed).await.expect("the change is seen").unwrap();
        assert_eq!(forward(&watched.borrow()), [true, false, true, false, true]);
    }
}

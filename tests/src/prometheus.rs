//! A real Prometheus of a test's own, with the rules of `compose/`.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::{agent::free_ports, process::Process, until};

/// Often enough for rules in which a minute is a second.
const CONFIG: &str = r#"
global: { scrape_interval: 250ms, evaluation_interval: 250ms }
rule_files: [alerts.yaml, marker.yaml]
scrape_configs:
  - job_name: omnibridge
    static_configs: [{ targets: TARGETS }]
"#;

/// What fires when every target has been well for longer than any alert waits: minutes
/// are seconds here, and the longest wait is five.
const MARKER: &str = r#"
groups:
  - name: marker
    rules: [{ alert: Marker, expr: min(up) == 1, for: 8s }]
"#;
/// Its name.
const MARKER_NAME: &str = "Marker";

/// A running Prometheus; it ends when this is dropped.
pub struct Prometheus {
    address: SocketAddr,
    http: reqwest::Client,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that reads the metrics of `targets`, with the alerts of
    /// `compose/prometheus`: every minute in them is a second.
    ///
    /// # Panics
    /// When it doesn't start.
    pub async fn start(targets: &[SocketAddr]) -> Self {
        let tools = std::env::var("OMNI_TEST_BIN_DIR")
            .expect("OMNI_TEST_BIN_DIR isn't set: `compose/backends start` and load its env");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/prometheus/alerts.yaml");
        let rules = std::fs::read_to_string(rules).expect("they are there");
        let minutes = regex::Regex::new(r"\b(\d+)m\b").expect("it is one");
        let folder = tempfile::tempdir().expect("there is room");
        let write = |name, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("there is room");
        };
        write("alerts.yaml", &minutes.replace_all(&rules, "${1}s"));
        write("marker.yaml", MARKER);
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        write("prometheus.yaml", &CONFIG.replace("TARGETS", &format!("{targets:?}")));
        let [port] = free_ports();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = Command::new(Path::new(&tools).join("prometheus"));
        command.current_dir(folder.path()).args([
            "--config.file=prometheus.yaml".to_owned(),
            "--storage.tsdb.path=kept".to_owned(),
            format!("--web.listen-address={address}"),
        ]);
        let process = Process::start(command, folder.path().join("prometheus.log"));
        let http = reqwest::Client::builder().tls_certs_only([]).build().expect("it needs nothing");
        let started = Self { address, http, _process: process, _folder: folder };
        until("Prometheus has asked every target", || async {
            let up = started.ask("query?query=sum(up)").await?;
            match up["result"][0]["value"][1].as_str() {
                Some(count) if count == targets.len().to_string() => Ok(()),
                _ => Err(up.to_string()),
            }
        })
        .await;
        started
    }

    /// The names of all alerts, the marker apart.
    ///
    /// # Errors
    /// When Prometheus can't be asked.
    pub async fn alerts(&self) -> Result<BTreeSet<String>, String> {
        let rules = self.ask("rules?type=alert").await?;
        let rules = rules["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        Ok(alerts_of(rules.iter().filter_map(|rule| rule["name"].as_str())))
    }

    /// The names of the alerts that have fired.
    ///
    /// # Errors
    /// When Prometheus can't be asked.
    pub async fn fired(&self) -> Result<BTreeSet<String>, String> {
        let fired = "query?query=last_over_time(ALERTS{alertstate=\"firing\"}[1h])";
        let fired = self.ask(fired).await?;
        let fired = fired["result"].as_array().cloned().unwrap_or_default();
        Ok(alerts_of(fired.iter().filter_map(|of| of["metric"]["alertname"].as_str())))
    }

    /// The names of the alerts that fire by now.
    ///
    /// # Errors
    /// When Prometheus can't be asked.
    pub async fn firing(&self) -> Result<BTreeSet<String>, String> {
        Ok(alerts_of(self.all_firing().await?.iter().map(String::as_str)))
    }

    /// Whether every target has been well for longer than any alert waits, since one of
    /// them last wasn't.
    ///
    /// # Errors
    /// When Prometheus can't be asked.
    pub async fn is_marked(&self) -> Result<bool, String> {
        Ok(self.all_firing().await?.iter().any(|name| name == MARKER_NAME))
    }

    async fn all_firing(&self) -> Result<Vec<String>, String> {
        let alerts = self.ask("alerts").await?;
        let alerts = alerts["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing
            .filter_map(|alert| alert["labels"]["alertname"].as_str())
            .map(str::to_owned)
            .collect())
    }

    async fn ask(&self, what: &str) -> Result<Value, String> {
        let url = format!("http://{}/api/v1/{what}", self.address);
        let answer = self.http.get(url).send().await.map_err(|why| why.to_string())?;
        let answer = answer.bytes().await.map_err(|why| why.to_string())?;
        let mut answer: Value = serde_json::from_slice(&answer).map_err(|why| why.to_string())?;
        Ok(answer["data"].take())
    }
}

/// `names` without the marker's.
fn alerts_of<'n>(names: impl Iterator<Item = &'n str>) -> BTreeSet<String> {
    names.filter(|name| *name != MARKER_NAME).map(str::to_owned).collect()
}

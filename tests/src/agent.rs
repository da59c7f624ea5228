//! A real Consul agent of a test's own, which may be killed, paused and robbed
//! of what it knows: a server with the Connect CA, as in `compose/`.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    sync::{LazyLock, Mutex, PoisonError},
};

use serde_json::{Value, json};

use crate::{mesh::new_id, process::Process, until};

/// Where ports are looked for: below those that the system gives to
/// connections, so that none takes it while the agent is away.
const PORTS: std::ops::Range<u16> = 10_000..20_000;

/// A running Consul; it ends when this is dropped.
pub struct ConsulAgent {
    /// Where its HTTP API is.
    pub address: SocketAddr,
    ports: [u16; 4],
    /// The token that may do everything, where ACLs are on.
    token: Option<String>,
    process: Option<Process>,
    folder: tempfile::TempDir,
    http: reqwest::Client,
}

impl ConsulAgent {
    /// Starts a Consul without ACLs.
    pub async fn start() -> Self {
        Self::launch(None).await
    }

    /// Starts a Consul whose ACLs deny by default.
    pub async fn start_with_acls() -> Self {
        Self::launch(Some(new_id())).await
    }

    async fn launch(token: Option<String>) -> Self {
        let ports = free_ports();
        let mut agent = Self {
            address: (Ipv4Addr::LOCALHOST, ports[0]).into(),
            ports,
            token,
            process: None,
            folder: tempfile::tempdir().expect("there is room"),
            http: reqwest::Client::builder().tls_certs_only([]).build().expect("it needs nothing"),
        };
        if let Some(token) = &agent.token {
            let acl = format!(
                "acl {{\n  enabled = true\n  default_policy = \"deny\"\n  tokens {{\n    \
                 initial_management = \"{token}\"\n    agent = \"{token}\"\n  }}\n}}\n"
            );
            std::fs::write(agent.folder.path().join("acl.hcl"), acl).expect("there is room");
        }
        agent.restart().await;
        agent
    }

    /// A new token that may do what `rules` say, in the form of Consul's ACL
    /// rules; its name is `name`.
    ///
    /// # Panics
    /// When it can't be made.
    pub async fn token(&self, name: &str, rules: &str) -> String {
        let policy = json!({ "Name": name, "Rules": rules }).to_string();
        self.request("PUT", "acl/policy", &policy).await.expect("the rules are right");
        let token = json!({ "Description": name, "Policies": [{ "Name": name }] }).to_string();
        let token = self.request("PUT", "acl/token", &token).await.expect("the policy is there");
        token["SecretID"].as_str().expect("a token has a secret").to_owned()
    }

    /// Takes the rules of [`ConsulAgent::token`] back: its token may do nothing.
    ///
    /// # Panics
    /// When there is no such token.
    pub async fn take_rules(&self, name: &str) {
        let policy = self.request("GET", &format!("acl/policy/name/{name}"), "").await;
        let id = policy.expect("it was made")["ID"].as_str().expect("it has an id").to_owned();
        self.request("DELETE", &format!("acl/policy/{id}"), "").await.expect("it is there");
    }

    /// Starts it where it was stopped or killed, on the same ports and with
    /// what it kept, and waits until it gives certificates.
    ///
    /// # Panics
    /// When it doesn't start.
    pub async fn restart(&mut self) {
        let tools = std::env::var("OMNI_TEST_BIN_DIR")
            .expect("OMNI_TEST_BIN_DIR isn't set: `compose/backends start` and load its env");
        let [http, grpc, server, serf] = self.ports;
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../consul/agent.hcl");
        let mut command = Command::new(Path::new(&tools).join("consul"));
        command.arg("agent").arg("-config-file").arg(config);
        if self.token.is_some() {
            command.arg("-config-file").arg(self.folder.path().join("acl.hcl"));
        }
        command.arg("-data-dir").arg(self.folder.path().join("kept")).args([
            format!("-http-port={http}"),
            format!("-grpc-port={grpc}"),
            format!("-server-port={server}"),
            format!("-serf-lan-port={serf}"),
        ]);
        self.process = Some(Process::start(command, self.folder.path().join("consul.log")));
        until("Consul gives certificates", || async {
            let roots = self.request("GET", "agent/connect/ca/roots", "").await;
            match roots {
                Ok(roots) if roots["Roots"][0]["RootCert"].is_string() => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    /// SIGKILL; what it kept on disk stays.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// SIGSTOP: it takes connections and answers nothing.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn pause(&self) {
        self.process.as_ref().expect("it runs").pause();
    }

    /// SIGCONT.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn resume(&self) {
        self.process.as_ref().expect("it runs").resume();
    }

    /// Kills it and lets it come back without the services it knew; the CA and
    /// everything else that its servers keep stays.
    ///
    /// # Panics
    /// When its files can't be removed.
    pub async fn lose_services(&mut self) {
        self.kill();
        for what in ["services", "checks"] {
            let folder = self.folder.path().join("kept").join(what);
            if folder.exists() {
                std::fs::remove_dir_all(folder).expect("it is ours");
            }
        }
        self.restart().await;
    }

    /// Sends a request of the HTTP API as one who may do everything.
    ///
    /// # Errors
    /// When it isn't answered with success: what was answered.
    pub async fn request(&self, verb: &str, path: &str, body: &str) -> Result<Value, String> {
        let url = format!("http://{}/v1/{path}", self.address);
        let verb = verb.parse().expect("a verb of HTTP");
        let mut request = self.http.request(verb, url).body(body.to_owned());
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token);
        }
        let answer = request.send().await.map_err(|why| why.to_string())?;
        let status = answer.status();
        let text = answer.text().await.map_err(|why| why.to_string())?;
        if !status.is_success() {
            return Err(format!("{status}: {text}"));
        }
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}

/// Different ports of loopback that nobody has, and that no other test of this program is
/// given.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: LazyLock<Mutex<u16>> =
        LazyLock::new(|| Mutex::new(PORTS.start + (uuid::Uuid::now_v7().as_u128() % 5000) as u16));
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut free = (*next..PORTS.end).filter(|port| {
        // The gossip is by UDP as well.
        TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
            && std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
    });
    let ports = std::array::from_fn(|_| free.next().expect("some port is free"));
    *next = ports.last().map_or(*next, |last| last + 1);
    ports
}

//! What a fleet stands on: how its instances find each other, and what a test
//! can do to that.

use fake_consul::FakeConsul;
use mesh::registry::Instance;
use serde_json::json;

use crate::agent::ConsulAgent;

/// How instances are found, and who vouches for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Files in a data directory; the `dev` authority.
    Embedded,
    /// A fake Consul in this process; its Connect CA.
    FakeConsul,
    /// A real Consul of the test's own; its Connect CA.
    RealConsul,
}

/// The Consul that a fleet stands on.
pub enum Consul {
    /// A fake one.
    Fake(Box<FakeConsul>),
    /// A real one.
    Real(Box<ConsulAgent>),
}

impl Consul {
    /// Starts the one of `ground`; `None` where it has none.
    pub async fn start(ground: Ground) -> Option<Self> {
        match ground {
            Ground::Embedded => None,
            Ground::FakeConsul => Some(Self::Fake(Box::new(FakeConsul::start().await))),
            Ground::RealConsul => Some(Self::Real(Box::new(ConsulAgent::start().await))),
        }
    }

    /// Where its HTTP API is.
    pub fn address(&self) -> std::net::SocketAddr {
        match self {
            Self::Fake(fake) => fake.address(),
            Self::Real(agent) => agent.address,
        }
    }

    /// Ends it without warning; what it kept stays for [`Consul::restart`].
    pub async fn kill(&mut self) {
        match self {
            Self::Fake(fake) => fake.stop().await,
            Self::Real(agent) => agent.kill(),
        }
    }

    /// Starts it again, after [`Consul::kill`].
    pub async fn restart(&mut self) {
        match self {
            Self::Fake(fake) => fake.restart().await,
            Self::Real(agent) => agent.restart().await,
        }
    }

    /// It takes requests from now on and answers none.
    pub fn hang(&self) {
        match self {
            Self::Fake(fake) => fake.hang(),
            Self::Real(agent) => agent.pause(),
        }
    }

    /// It goes on after [`Consul::hang`].
    pub fn recover(&self) {
        match self {
            Self::Fake(fake) => fake.recover(),
            Self::Real(agent) => agent.resume(),
        }
    }

    /// Restarts it without the services it knew; the CA stays.
    pub async fn lose_services(&mut self) {
        match self {
            Self::Fake(fake) => {
                fake.stop().await;
                fake.lose_services();
                fake.restart().await;
            }
            Self::Real(agent) => agent.lose_services().await,
        }
    }

    /// The agent forgets the instance `id`, and others see it.
    ///
    /// # Panics
    /// When it doesn't know it.
    pub async fn forget(&self, id: &str) {
        match self {
            Self::Fake(fake) => fake.forget_service(id),
            Self::Real(agent) => {
                let path = format!("agent/service/deregister/{id}");
                agent.request("PUT", &path, "").await.expect("it is registered");
            }
        }
    }

    /// Makes a new root and signs with it from now on.
    ///
    /// # Panics
    /// When it refuses.
    pub async fn rotate_root(&self) {
        match self {
            Self::Fake(fake) => fake.rotate_root(),
            Self::Real(agent) => {
                let path = "connect/ca/configuration";
                let now = agent.request("GET", path, "").await.expect("it answers");
                // Another size of key is a change that makes a new root.
                let bits = if now["Config"]["PrivateKeyBits"] == json!(384) { 256 } else { 384 };
                let config = json!({
                    "Provider": "consul",
                    "Config": {
                        "PrivateKeyType": "ec", "PrivateKeyBits": bits,
                        "LeafCertTTL": "72h", "IntermediateCertTTL": "8760h",
                    },
                });
                agent.request("PUT", path, &config.to_string()).await.expect("it obeys");
            }
        }
    }

    /// Registers `instance` as somebody else would, or changes the one with its
    /// id.
    ///
    /// # Panics
    /// When it refuses.
    pub async fn register(&self, instance: &Instance) {
        let service = json!({
            "ID": instance.id, "Name": instance.service,
            "Address": instance.address.ip(), "Port": instance.address.port(),
            "Connect": { "Native": true },
        });
        match self {
            Self::Fake(fake) => fake.register(service),
            Self::Real(agent) => {
                let body = service.to_string();
                agent.request("PUT", "agent/service/register", &body).await.expect("it obeys");
            }
        }
    }
}

//! Who I am and who you are.
//!
//! An [`Authority`] gives each party of the mesh an [`Identity`]: a leaf
//! certificate with one SPIFFE id, its key, and the roots to judge others by.
//! Leaf and roots change while the process runs; the rustls configurations
//! made here look them up at each handshake, so nothing restarts.

pub mod consul;
pub mod dev;
mod material;
mod spiffe;
#[cfg(test)]
mod tests;
mod trust;
mod verify;

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use rustls::{
    ClientConfig, ServerConfig,
    client::{ResolvesClientCert, Resumption},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;

pub use self::{
    material::Material,
    spiffe::{InvalidSpiffeId, SpiffeId, is_name, is_operator_name},
    trust::Trust,
    verify::{InvalidPeer, peer_id},
};
use crate::{Error, config::Config, telemetry::label};

/// Gives identities, and keeps them fresh.
#[async_trait]
pub trait Authority: Send + Sync + 'static {
    /// The identity of the service or operator `name`, kept fresh as long as
    /// the answer or a clone of it lives.
    ///
    /// # Errors
    /// When no leaf can be had; nothing is served without one.
    async fn identity(&self, name: &str) -> Result<Identity, Error>;
}

/// The authority that the setting `identity` names: `dev:` or `consul:`.
///
/// # Errors
/// When the setting names neither, or `consul:` without a Consul registry.
pub fn authority(config: &Config) -> Result<Arc<dyn Authority>, Error> {
    match config.identity.split_once(':').map(|(scheme, _)| scheme) {
        Some("consul") => Ok(Arc::new(consul::ConnectAuthority::new(config)?)),
        Some("dev") => Ok(Arc::new(dev::DevAuthority::open(config)?)),
        _ => Err(Error::setting("identity", &config.identity, "expected `dev:` or `consul:`")),
    }
}

/// One party's leaf and roots, as they are now and as they change.
#[derive(Clone)]
pub struct Identity {
    material: watch::Receiver<Arc<Material>>,
}

impl Identity {
    /// An identity whose material comes by `material`.
    pub fn new(material: watch::Receiver<Arc<Material>>) -> Self {
        Self { material }
    }

    /// The leaf and roots of this moment.
    pub fn current(&self) -> Arc<Material> {
        self.material.borrow().clone()
    }

    /// This party's id.
    pub fn id(&self) -> SpiffeId {
        self.material.borrow().id.clone()
    }

    /// Takes the leaf and roots of this moment for known: only what comes after
    /// them is a change.
    pub fn seen(&mut self) {
        self.material.mark_unchanged();
    }

    /// What a handshake that begins now is judged by, and from then on its peer.
    pub fn trust(&self) -> Trust {
        Trust::of(self)
    }

    /// Reports when the leaf of `service` begins and ends being valid, as long as
    /// the answer lives.
    pub(crate) fn report(&self, service: &'static str) -> Arc<Self> {
        let reported = Arc::new(self.clone());
        let meter = opentelemetry::global::meter("omnibridge");
        for (name, about, at) in [
            (
                "omni.certificate.not_before",
                "When the certificate begins to be valid, in Unix time",
                (|leaf| leaf.not_before) as fn(&Material) -> SystemTime,
            ),
            (
                "omni.certificate.not_after",
                "When the certificate ends being valid, in Unix time",
                |leaf| leaf.not_after,
            ),
        ] {
            // What held it any firmer would have it renewed for ever.
            let identity = Arc::downgrade(&reported);
            meter
                .f64_observable_gauge(name)
                .with_unit("s")
                .with_description(about)
                .with_callback(move |observer| {
                    if let Some(identity) = identity.upgrade() {
                        let time = at(&identity.current()).duration_since(SystemTime::UNIX_EPOCH);
                        let time = time.unwrap_or_default().as_secs_f64();
                        observer.observe(time, &[label("service", service)]);
                    }
                })
                .build();
        }
        reported
    }

    /// Waits until leaf or roots change; never returns when they can't any more.
    pub async fn changed(&mut self) {
        if self.material.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// For accepting: TLS 1.3, HTTP/2 only, a client certificate required, no
    /// resumption (a resumed session would outlive its certificate).
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(Arc::new(verify::PeerVerifier::any(self.clone())))
            .with_cert_resolver(Arc::new(Resolver(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// For connecting to an instance of `service` and to nobody else.
    pub fn client_config(&self, service: &str) -> Arc<ClientConfig> {
        let verifier = verify::PeerVerifier::named(self.clone(), service);
        let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Resolver(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        // Names are no part of the identity: the SPIFFE id is.
        config.enable_sni = false;
        Arc::new(config)
    }
}

/// Answers each handshake with the leaf of that moment.
#[derive(Debug)]
struct Resolver(Identity);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.id()).finish()
    }
}

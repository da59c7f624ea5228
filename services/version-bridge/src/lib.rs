//! Answers calls that nobody answers in the version they are made in: it converts
//! them to a version that is spoken, by mappings that were proven, and the answers
//! back. Clients come here by themselves, and any gRPC client can be pointed here.
//!
//! It owns no data of its own; its mappings are files, named by the setting
//! `mappings`. Of a stream no more is held than the message that is coming.
//!
//! In reading order: `directory`, who can be called; `proxy`, one call; `ends`, its
//! request and its answer; `frames`, their messages.

mod directory;
mod ends;
mod frames;
mod proxy;

use async_trait::async_trait;
use axum::Router;
use mesh::service::{Context, Descriptor, Phase, Role, Service, Surface};
use tonic::service::Routes;

use self::{directory::Directory, proxy::Proxy};

/// Its name.
const NAME: &str = "version-bridge";

/// The service `version-bridge`.
pub struct VersionBridge;

#[async_trait]
impl Service for VersionBridge {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            name: NAME,
            version: env!("CARGO_PKG_VERSION"),
            port: Some(8005),
            section: None,
            phase: Phase::Infrastructure,
            role: Role::Converter,
            dependencies: &[],
            optional: &[],
            descriptors: &[],
            grpc_services: &[],
            capabilities: &["convert"],
            migrations: None,
            bodies: None,
        }
    }

    async fn start(&self, context: &Context) -> Result<Surface, mesh::Error> {
        let mappings = context.mappings();
        for loss in mappings.lossy() {
            tracing::info!(loss, "a mapping is lossy");
        }
        let (descriptors, differ) = mappings.descriptors();
        for file in differ {
            tracing::warn!(file, "reflection tells only one of the files of this name");
        }
        let services = mappings.services();
        let directory = Directory::new(context)?;
        let limit = context.config().limits.message_bytes;
        let proxy = Proxy::new(mappings.clone(), directory, limit);
        let mut routes = Routes::default();
        *routes.axum_router_mut() = Router::new().fallback_service(proxy);
        Ok(Surface::Dynamic { routes, descriptors, services })
    }
}

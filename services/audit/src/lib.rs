//! The trail of who did what: every hook, and every event on `audit.events`,
//! denied calls among them.
//!
//! It owns the table `entries`. An entry and the mark that its event was
//! handled are one transaction, so each event is in the trail once.
//!
//! In reading order: [`entry`], `trail`, `store`, `handler`.

pub mod entry;
mod error;
mod handler;
mod store;
mod trail;

use std::sync::Arc;

use api::audit::v1::audit_server::{AuditServer, SERVICE_NAME};
use async_trait::async_trait;
use mesh::service::{Context, Descriptor, Phase, Role, Service, Surface};
use tonic::service::Routes;

pub use self::error::Error;
use self::{handler::Handler, store::Entries, trail::Trail};

/// What the trail is written from.
const TOPICS: [&str; 2] = ["hooks.*", "audit.events"];

/// The service `audit`.
pub struct Audit;

#[async_trait]
impl Service for Audit {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            name: "audit",
            version: env!("CARGO_PKG_VERSION"),
            port: Some(8004),
            section: None,
            phase: Phase::Services,
            role: Role::Ordinary,
            dependencies: &[],
            optional: &[],
            descriptors: api::DESCRIPTORS,
            grpc_services: &[SERVICE_NAME],
            capabilities: &[],
            migrations: Some(migrations::audit::migrations),
            bodies: None,
        }
    }

    async fn start(&self, context: &Context) -> Result<Surface, mesh::Error> {
        for topics in TOPICS {
            context.subscribe(topics, Arc::new(Trail))?;
        }
        let handler = Handler::new(Entries::new(context.store()?.clone()));
        let limit = context.config().limits.message_bytes;
        let server = AuditServer::new(handler).max_decoding_message_size(limit);
        Ok(Surface::Grpc(Routes::new(server)))
    }
}

//! Takes in webhooks and pre- and post-execution hooks, correlates them to
//! sessions, and publishes each as an event on `hooks.<source>`.
//!
//! It owns the tables `hooks` and `sessions`. A hook, its session and its event
//! are one transaction; the body is stored once, with the hook, and the relay
//! reads it from there.
//!
//! In reading order: [`hook`], [`session`], `store`, `watch`, `handler`.

mod error;
mod handler;
pub mod hook;
pub mod session;
mod store;
mod watch;

use api::hooks::v1::hook_receiver_server::{HookReceiverServer, SERVICE_NAME};
use async_trait::async_trait;
use mesh::{
    events::Bodies,
    service::{Context, Descriptor, Phase, Role, Service, Surface},
};
use tonic::service::Routes;

pub use self::error::Error;
use self::{handler::Handler, store::Hooks};

/// The service `hook-receiver`.
pub struct HookReceiver;

#[async_trait]
impl Service for HookReceiver {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            name: "hook-receiver",
            version: env!("CARGO_PKG_VERSION"),
            port: Some(8001),
            section: None,
            phase: Phase::Services,
            role: Role::Ordinary,
            dependencies: &[],
            optional: &[],
            descriptors: api::DESCRIPTORS,
            grpc_services: &[SERVICE_NAME],
            capabilities: &[],
            migrations: Some(migrations::hook_receiver::migrations),
            bodies: Some(Bodies { table: "hooks", id: "id", body: "body" }),
        }
    }

    async fn start(&self, context: &Context) -> Result<Surface, mesh::Error> {
        let hooks = Hooks::new(context.outbox()?.clone());
        let handler = Handler::new(hooks, context.draining());
        let limit = context.config().limits.message_bytes;
        let server = HookReceiverServer::new(handler).max_decoding_message_size(limit);
        Ok(Surface::Grpc(Routes::new(server)))
    }
}

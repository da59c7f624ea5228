//! The HTTP edge: takes webhooks from the outside, checks that they come from
//! whom they say, and hands them on by gRPC. It owns no data: what it answers
//! with 202 is durable at hook-receiver.
//!
//! In reading order: `config`, `problem`, `source`, `redact`, `sensitive`, `body`, `batch`,
//! `webhook`, `observe`.

mod batch;
mod body;
mod config;
mod observe;
mod problem;
mod redact;
mod sensitive;
mod source;
mod webhook;

use std::sync::Arc;

use api::hooks::v1::hook_receiver_client::HookReceiverClient;
use async_trait::async_trait;
use mesh::service::{Context, Descriptor, HTTP, Phase, Role, Service, Surface};

use self::{body::Bodies, source::Sources, webhook::Webhooks};

/// The service that receives what the gateway takes.
const HOOK_RECEIVER: &str = "hook-receiver";

/// The service `gateway`. Its settings are the section `[hooks]`.
pub struct Gateway;

#[async_trait]
impl Service for Gateway {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            name: "gateway",
            version: env!("CARGO_PKG_VERSION"),
            port: Some(8000),
            section: Some("hooks"),
            phase: Phase::Services,
            role: Role::Proxy,
            dependencies: &[HOOK_RECEIVER],
            optional: &[],
            descriptors: api::DESCRIPTORS,
            grpc_services: &[],
            capabilities: &[HTTP],
            migrations: None,
            bodies: None,
        }
    }

    async fn start(&self, context: &Context) -> Result<Surface, mesh::Error> {
        let settings = config::load(context.config())?;
        let message_bytes = context.config().limits.message_bytes;
        let client = HookReceiverClient::new(context.channel(HOOK_RECEIVER).await?)
            .max_encoding_message_size(message_bytes)
            .max_decoding_message_size(message_bytes);
        let (queue, calls) = batch::queue(batch::receive_with(client), context.stopping());
        context.spawn(calls);
        let webhooks = Webhooks {
            sources: Sources::try_new(&settings.sources, settings.hash_secret.as_ref())?,
            bodies: Bodies::new(settings.body_limit, settings.body_timeout),
            queue,
        };
        let webhooks = Arc::new(webhooks);
        let routes = webhook::router(webhooks.clone());
        Ok(Surface::Http(observe::observed(routes, webhooks)))
    }
}

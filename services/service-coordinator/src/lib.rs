//! Starts services in the order of their dependencies, waits for their health,
//! degrades where an optional one is missing, keeps them up, and drains them in
//! reverse; and the service that tells how all of it is, to people and as events.
//!
//! It owns no data but its outbox. What starts services is a library, for whoever has
//! them in one process or in several: [`Supervisor`], with a [`Runner`](supervisor::Runner).
//!
//! In reading order: [`plan`], the order; [`units`], of what; [`supervisor`], what runs
//! it; [`runner`], how services are started; `board`, how everything is; `lead`, who
//! tells of it in the whole mesh; `tell`, as events; `handler`.

mod board;
mod error;
mod handler;
mod lead;
pub mod plan;
pub mod runner;
pub mod supervisor;
mod tell;
mod units;

use std::sync::{Arc, Mutex, PoisonError};

use api::coordinator::v1::service_coordinator_server::{SERVICE_NAME, ServiceCoordinatorServer};
use async_trait::async_trait;
use mesh::{
    leadership,
    service::{Context, Descriptor, Phase, Role, Service, Surface},
};
use tokio::sync::{broadcast, mpsc};
use tonic::service::Routes;

use self::{
    board::Board,
    handler::Handler,
    plan::Plan,
    supervisor::{Control, Transition},
    tell::Teller,
};
pub use self::{supervisor::Supervisor, units::units};

/// How many changes that were seen wait to be told.
const SEEN: usize = 1024;

/// Its name, as a service and as a unit.
pub const NAME: &str = "service-coordinator";

/// The service `service-coordinator`.
pub struct ServiceCoordinator {
    plan: Arc<Plan>,
    control: Control,
    /// What changed before it was started the first time is told, too.
    transitions: Mutex<Option<broadcast::Receiver<Transition>>>,
}

impl ServiceCoordinator {
    /// A coordinator that tells how what is planned is. What `control` runs, it can be
    /// told to restart, to drain and to scale; the rest it only sees.
    pub fn new(plan: Arc<Plan>, control: Control) -> Self {
        let transitions = Mutex::new(Some(control.transitions()));
        Self { plan, control, transitions }
    }

    /// What it is, for who plans it.
    pub fn descriptor() -> Descriptor {
        Descriptor {
            name: NAME,
            version: env!("CARGO_PKG_VERSION"),
            port: Some(8006),
            section: None,
            phase: Phase::Coordination,
            role: Role::Ordinary,
            dependencies: &[],
            optional: &[],
            descriptors: api::DESCRIPTORS,
            grpc_services: &[SERVICE_NAME],
            capabilities: &[],
            migrations: None,
            bodies: None,
        }
    }
}

#[async_trait]
impl Service for ServiceCoordinator {
    fn descriptor(&self) -> Descriptor {
        Self::descriptor()
    }

    async fn start(&self, context: &Context) -> Result<Surface, mesh::Error> {
        let known = lead::Known::default();
        let stands = lead::stand(
            context.registered(),
            leadership::leadership(context.config())?,
            known.clone(),
            context.leaving(),
        );
        context.spawn_leaver(stands);
        let (seen, is_seen) = mpsc::channel(SEEN);
        let board = Board::new(self.plan.clone(), self.control.clone(), known, seen);
        board.watch(context).await?;
        let kept = self.transitions.lock().unwrap_or_else(PoisonError::into_inner).take();
        let teller = Teller {
            coordinator: context.instance().to_owned(),
            outbox: context.outbox()?.clone(),
            supervised: kept.unwrap_or_else(|| self.control.transitions()),
            seen: is_seen,
        };
        context.spawn(teller.run(context.stopping()));
        let handler = Handler::new(board, context.draining());
        let limit = context.config().limits.message_bytes;
        let server = ServiceCoordinatorServer::new(handler).max_decoding_message_size(limit);
        Ok(Surface::Grpc(Routes::new(server)))
    }
}

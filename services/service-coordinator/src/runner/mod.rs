//! How units are started: backends are looked at, services run in this process or in
//! processes of their own.

mod backend;
mod child;
mod in_process;

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use mesh::{
    Error,
    config::Config,
    policy::Declared,
    service::{Process, Service},
    telemetry::Telemetry,
};
use tokio::sync::OnceCell;

pub use self::child::{ADMIN, Children};
use crate::{
    NAME,
    plan::{Kind, Unit},
    supervisor::{Failure, Runner, Running},
    units::Backend,
};

/// Runs services in this process, whose backends are opened for the first of them.
pub struct Local {
    config: Arc<Config>,
    telemetry: Arc<Telemetry>,
    services: Vec<Arc<dyn Service>>,
    declared: Declared,
    admin_port: u16,
    retries: Retries,
    process: OnceCell<Arc<Process>>,
}

/// What is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// What may work later.
    Passing,
    /// Nothing: who started this process starts it again.
    Nothing,
}

impl Local {
    /// Runs `services`. `declared` is what all services known declare, wherever they run.
    pub fn new(
        config: Arc<Config>,
        telemetry: Telemetry,
        services: Vec<Arc<dyn Service>>,
        declared: Declared,
        admin_port: u16,
        retries: Retries,
    ) -> Self {
        let (telemetry, process) = (Arc::new(telemetry), OnceCell::new());
        Self { config, telemetry, services, declared, admin_port, retries, process }
    }

    /// Where the admin port is, once a service was started.
    pub fn admin_address(&self) -> Option<std::net::SocketAddr> {
        self.process.get().map(|process| process.admin_address())
    }

    /// Closes the admin port and sends the last telemetry, when everything is drained.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Self { telemetry, process, .. } = self;
            match process.into_inner() {
                Some(process) => {
                    drop(telemetry);
                    process.stop().await;
                }
                None => {
                    if let Some(telemetry) = Arc::into_inner(telemetry) {
                        telemetry.stop().await;
                    }
                }
            }
        })
    }

    async fn process(&self) -> Result<Arc<Process>, Error> {
        let open = || async {
            let (config, telemetry) = (self.config.clone(), self.telemetry.clone());
            Process::start(config, telemetry, &self.declared, self.admin_port).await.map(Arc::new)
        };
        self.process.get_or_try_init(open).await.cloned()
    }

    async fn serve(&self, unit: &Unit) -> Result<Box<dyn Running>, Error> {
        let service = self.services.iter().find(|service| service.descriptor().name == unit.name);
        match service {
            Some(service) => in_process::start(self.process().await?, service.clone()).await,
            None => Err(Error::Registry(format!("there is no service `{}`", unit.name))),
        }
    }
}

#[async_trait]
impl Runner for Local {
    async fn start(&self, unit: &Unit, _: u32) -> Result<Box<dyn Running>, Failure> {
        let backend = Backend::of(&self.config).into_iter().find(|b| b.name() == unit.name);
        if let Some(backend) = backend {
            let answers = backend::start(backend, self.config.clone()).await;
            return answers.map_err(Failure::Passing);
        }
        self.serve(unit).await.map_err(|why| match self.retries {
            Retries::Passing if !is_a_mistake(&why) => Failure::Passing(why.to_string()),
            Retries::Passing | Retries::Nothing => Failure::Final(why),
        })
    }

    fn is_many(&self, _: &Unit) -> bool {
        false
    }
}

/// Runs each service in processes of its own, and only the coordinator in this one.
pub struct Processes {
    /// Runs the coordinator.
    pub local: Arc<Local>,
    /// Runs the others.
    pub children: Children,
}

#[async_trait]
impl Runner for Processes {
    async fn start(&self, unit: &Unit, number: u32) -> Result<Box<dyn Running>, Failure> {
        if unit.kind == Kind::Backend || unit.name == NAME {
            return self.local.start(unit, number).await;
        }
        self.children.start(&unit.name, number).await.map_err(Failure::Passing)
    }

    fn is_many(&self, unit: &Unit) -> bool {
        unit.name != NAME
    }
}

/// Whether somebody has to change a setting before it can work.
fn is_a_mistake(why: &Error) -> bool {
    matches!(why, Error::Setting { .. } | Error::Config(_) | Error::Bind { .. })
}

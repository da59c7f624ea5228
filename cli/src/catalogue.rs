//! Every service there is. A new service is one line here.

use std::sync::Arc;

use anyhow::bail;
use mesh::{
    config::Config,
    policy::Declared,
    service::{Descriptor, Service},
};
use service_coordinator::{ServiceCoordinator, plan::Plan, supervisor::Control};

/// The services that stand alone.
fn services() -> Vec<Arc<dyn Service>> {
    vec![
        Arc::new(hook_receiver::HookReceiver),
        Arc::new(audit::Audit),
        Arc::new(version_bridge::VersionBridge),
        Arc::new(gateway::Gateway),
    ]
}

/// All services; the coordinator tells of `plan`, and has what `control` runs do as
/// it is told.
pub(crate) fn all(plan: Arc<Plan>, control: Control) -> Vec<Arc<dyn Service>> {
    let mut all = services();
    all.push(Arc::new(ServiceCoordinator::new(plan, control)));
    all
}

/// The sections of the configuration that belong to services.
pub(crate) const SECTIONS: [&str; 1] = ["hooks"];

/// What all services are.
pub(crate) fn descriptors() -> Vec<Descriptor> {
    let mut all: Vec<Descriptor> = services().iter().map(|s| s.descriptor()).collect();
    all.push(ServiceCoordinator::descriptor());
    all
}

/// In which order all services start, and the backends of `config` before them.
///
/// # Errors
/// All that is wrong with what they declare.
pub(crate) fn plan(config: &Config) -> anyhow::Result<Plan> {
    match Plan::of(service_coordinator::units(&descriptors(), config)) {
        Ok(plan) => Ok(plan),
        Err(flaws) => {
            let flaws: Vec<String> = flaws.iter().map(|flaw| format!("\n  {flaw}")).collect();
            bail!("there is no order in which the services can start:{}", flaws.concat())
        }
    }
}

/// What they declare: whom they call, and for whom they speak.
pub(crate) fn declared() -> Declared {
    mesh::service::declared(&descriptors())
}

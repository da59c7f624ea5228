//! Every service there is. A new service is one line here.

use std::sync::Arc;

use mesh::service::Service;

/// The services, in the order they are shown.
pub(crate) fn all() -> Vec<Arc<dyn Service>> {
    vec![
        Arc::new(hook_receiver::HookReceiver),
        Arc::new(audit::Audit),
        Arc::new(version_bridge::VersionBridge),
        Arc::new(gateway::Gateway),
    ]
}

/// The sections of the configuration that belong to services.
pub(crate) const SECTIONS: [&str; 1] = ["hooks"];

/// Whom services call, as (caller, called): what they declare.
pub(crate) fn dependencies() -> Vec<(String, String)> {
    let descriptors = all().into_iter().map(|service| service.descriptor());
    let pairs = descriptors.flat_map(|descriptor| {
        descriptor.dependencies.iter().map(move |called| (descriptor.name, *called))
    });
    pairs.map(|(caller, called)| (caller.to_owned(), called.to_owned())).collect()
}

//! `omni versions`: which versions of each service are there.

use std::collections::BTreeMap;

use mesh::registry;
use serde::Serialize;

use crate::{
    args::{Common, Listing},
    config,
    output::{self, Table},
};

/// Instances of one version of a service.
#[derive(Serialize)]
struct Shown<'a> {
    service: &'a str,
    version: &'a semver::Version,
    packages: &'a [String],
    instances: usize,
    healthy: usize,
}

/// Shows them, the newest first.
pub(crate) async fn run(common: &Common, args: &Listing) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let services = registry::registry(&config)?.services().await?;
    let mut all = BTreeMap::new();
    for instance in services.values().flat_map(|instances| instances.iter()) {
        let key = (instance.service.as_str(), std::cmp::Reverse(&instance.version));
        let (count, healthy) = all.entry((key, instance.packages.as_slice())).or_insert((0, 0));
        *count += 1;
        *healthy += usize::from(instance.healthy);
    }
    let shown = all.into_iter().map(|(((service, version), packages), (instances, healthy))| {
        Shown { service, version: version.0, packages, instances, healthy }
    });
    if args.json {
        return output::json(&shown.collect::<Vec<_>>());
    }
    let mut table = Table::new(["SERVICE", "VERSION", "PACKAGES", "INSTANCES", "HEALTHY"]);
    for Shown { service, version, packages, instances, healthy } in shown {
        table.row([
            service.to_owned(),
            version.to_string(),
            packages.join(", "),
            instances.to_string(),
            healthy.to_string(),
        ]);
    }
    table.print()
}

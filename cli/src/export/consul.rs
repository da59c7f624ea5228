//! Config entries of Consul: which protocol a service speaks, and who may call it.

use std::path::PathBuf;

use mesh::service::{self, Descriptor, Role};
use serde::Serialize;

use super::{Wanted, is_http};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Intentions<'a> {
    kind: &'a str,
    name: &'a str,
    sources: Vec<Source<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Source<'a> {
    name: &'a str,
    action: &'a str,
    description: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Defaults<'a> {
    kind: &'a str,
    name: &'a str,
    protocol: &'a str,
}

/// The entries of all services, a file each. Nobody in the mesh calls one that serves HTTP.
pub(super) fn entries(services: &[Descriptor]) -> anyhow::Result<Vec<Wanted>> {
    let calls = service::declared(services).calls;
    let converters: Vec<&str> =
        services.iter().filter(|s| s.role == Role::Converter).map(|s| s.name).collect();
    let mut files = Vec::new();
    for one in services {
        let protocol = if is_http(one) { "http" } else { "grpc" };
        let defaults = Defaults { kind: "service-defaults", name: one.name, protocol };
        files.push(file("consul/service-defaults", one.name, &defaults)?);
        if is_http(one) {
            continue;
        }
        let source = |name, action, description| Source { name, action, description };
        let everybody = || source("*", "allow", "It converts calls for whoever asks.".to_owned());
        let sources = if one.role == Role::Converter {
            vec![everybody()]
        } else {
            let callers = calls.iter().filter(|(_, called)| called == one.name);
            let callers = callers.map(|(caller, _)| {
                source(caller, "allow", format!("{caller} declares that it calls {}.", one.name))
            });
            let converters = converters.iter().map(|name| {
                source(
                    name,
                    "allow",
                    "It converts calls, and its callers are decided on, too.".to_owned(),
                )
            });
            let operator =
                source("operator", "allow", "Operators look into every service.".to_owned());
            let others = "Nobody else, whatever this Consul's default is.".to_owned();
            callers.chain(converters).chain([operator, source("*", "deny", others)]).collect()
        };
        let intentions = Intentions { kind: "service-intentions", name: one.name, sources };
        files.push(file("consul/intentions", one.name, &intentions)?);
    }
    Ok(files)
}

/// The file `name` in `folder`.
fn file(folder: &str, name: &str, value: &impl Serialize) -> anyhow::Result<Wanted> {
    let path = PathBuf::from(folder).join(format!("{name}.json"));
    Ok(Wanted::Whole(path, serde_json::to_string_pretty(value)? + "\n"))
}

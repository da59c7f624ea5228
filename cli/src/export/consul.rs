//! Config entries of Consul: which protocol a service speaks, and who may call it.

use std::{collections::BTreeSet, path::PathBuf};

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

/// The entries of all services, a file each; gateway has nobody in the mesh who calls it.
pub(super) fn entries(services: &[Descriptor]) -> anyhow::Result<Vec<Wanted>> {
    let calls = service::declared(services).calls;
    let converters: Vec<&str> =
        services.iter().filter(|s| s.role == Role::Converter).map(|s| s.name).collect();
    let mut files = Files::default();
    for one in services {
        let protocol = if is_http(one) { "http" } else { "grpc" };
        let defaults = Defaults { kind: "service-defaults", name: one.name, protocol };
        files.add("consul/service-defaults", one.name, &defaults)?;
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
        files.add("consul/intentions", one.name, &intentions)?;
    }
    Ok(files.wanted())
}

/// Files of JSON, and the folders that have no others.
#[derive(Default)]
struct Files(Vec<(&'static str, PathBuf, String)>);

impl Files {
    fn add(
        &mut self,
        folder: &'static str,
        name: &str,
        value: &impl Serialize,
    ) -> anyhow::Result<()> {
        let path = PathBuf::from(folder).join(format!("{name}.json"));
        self.0.push((folder, path, serde_json::to_string_pretty(value)? + "\n"));
        Ok(())
    }

    fn wanted(self) -> Vec<Wanted> {
        let folders: BTreeSet<&str> = self.0.iter().map(|(folder, ..)| *folder).collect();
        let only = folders.into_iter().map(|folder| {
            let inside = self.0.iter().filter(|(of, ..)| *of == folder);
            Wanted::Only(folder.into(), inside.map(|(_, path, _)| path.clone()).collect())
        });
        let only: Vec<_> = only.collect();
        let whole = self.0.into_iter().map(|(_, path, text)| Wanted::Whole(path, text));
        whole.chain(only).collect()
    }
}

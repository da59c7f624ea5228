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

/// What all services are.
pub(crate) fn descriptors() -> Vec<Descriptor> {
    let mut all: Vec<Descriptor> = services().iter().map(|s| s.descriptor()).collect();
    all.push(ServiceCoordinator::descriptor());
    all
}

/// Which names there are, for the help.
pub(crate) fn help() -> String {
    let names: Vec<&str> = descriptors().iter().map(|service| service.name).collect();
    format!("The services: {}", names.join(", "))
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

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        ffi::OsStr,
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    #[test]
    fn each_service_has_its_own_name_port_and_section() {
        let all = descriptors();
        let names: BTreeSet<_> = all.iter().map(|service| service.name).collect();
        let ports: BTreeSet<_> = all.iter().map(|service| service.port).collect();
        assert_eq!((names.len(), ports.len()), (all.len(), all.len()));
        assert!(!ports.contains(&None), "who operates them opens the ports ahead");
        let sections: Vec<_> = all.iter().filter_map(|service| service.section).collect();
        assert_eq!(sections.iter().collect::<BTreeSet<_>>().len(), sections.len());
    }

    #[test]
    fn who_has_a_database_starts_after_it() {
        let flags = [("database", "postgres://a@127.0.0.1/b".to_owned())];
        let config = Config::from_sources(None, Default::default(), &flags).unwrap();
        let plan = plan(&config).unwrap();
        for service in descriptors() {
            let waits = plan.units()[service.name].requires.contains("postgres");
            assert_eq!(waits, service.has_database(), "{}", service.name);
            assert_eq!(service.has_database(), service.name != "gateway");
        }
    }

    #[test]
    fn the_kernel_knows_no_service() {
        let named = all_named(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh/src"));
        assert_eq!(named, Vec::<String>::new(), "in mesh/src, outside of its tests");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.rs");
        for (code, names) in [
            ("// \"audit\"\nlet a = 1;\n#[cfg(test)]\nmod tests {\n\"audit\" }", false),
            ("use crate::messages::audit::v1::AuditEvent;\nlet a = \"audits\";", false),
            ("if name == \"version-bridge\" {}", true),
            ("use api::hooks::v1::Hook;", true),
            ("use api::audit::v1::audit_client::AuditClient;", true),
        ] {
            fs::write(&file, code).unwrap();
            assert_eq!(!all_named(folder.path()).is_empty(), names, "{code}");
        }
    }

    /// The lines of the sources below `folder`, but for tests and comments, that name a
    /// service or its API.
    fn all_named(folder: &Path) -> Vec<String> {
        let services = descriptors();
        let mut words: Vec<String> =
            services.iter().map(|service| format!("\"{}\"", service.name)).collect();
        words.extend(services.iter().map(|service| format!("services.{}", service.name)));
        for grpc in services.iter().flat_map(|service| service.grpc_services) {
            let parts: Vec<&str> = grpc.split('.').collect();
            words.push(format!("api::{}::", parts[1]));
            let module: String = parts[3]
                .char_indices()
                .flat_map(|(at, c)| [(at > 0 && c.is_uppercase()).then_some('_'), Some(c)])
                .flatten()
                .collect();
            words.extend(["client", "server"].map(|of| format!("{}_{of}", module.to_lowercase())));
        }
        let mut named = Vec::new();
        for file in sources(folder) {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            let lines = code.filter(|line| words.iter().any(|word| line.contains(word)));
            named.extend(lines.map(|line| format!("{}: {line}", file.display())));
        }
        named
    }

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let of_tests =
            |path: &PathBuf| ["tests", "fuzz"].map(OsStr::new).contains(&path.file_stem().unwrap());
        let is_source = |path: &PathBuf| path.extension().is_some_and(|e| e == "rs" || e == "toml");
        let paths = paths.filter(|path| !of_tests(path));
        let all = paths.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
        all.filter(is_source).collect()
    }
}

//! The tables of `docs/` that list services.

use mesh::{config::variable, service::Descriptor};

use super::{Wanted, is_http};

/// The ports, in the table of `docs/configuration.md`.
pub(super) fn tables(services: &[Descriptor]) -> Vec<Wanted> {
    let rows = services.iter().filter_map(|service| {
        let key = format!("services.{}.port", service.name);
        let what = if is_http(service) { "HTTP; 0 picks a free port" } else { "gRPC" };
        Some(format!("| `{key}` | {} | `{}` | {what} |\n", service.port?, variable(&key)))
    });
    let head = "| key | default | environment | what |\n| --- | --- | --- | --- |\n";
    let part = format!("\n{head}{}\n", rows.collect::<String>());
    vec![Wanted::Part("docs/configuration.md".into(), part)]
}

//! Which method of one version is which of the other.

use std::collections::BTreeSet;

use prost_reflect::{MethodDescriptor, ServiceDescriptor};

use crate::{
    mapping::Mapping,
    pairs::Pairs,
    planner::{NO_COUNTERPART, Planner},
    report::{Direction, Finding},
};

/// The methods of both versions, as they are found.
#[derive(Default)]
pub(crate) struct Methods {
    pub(crate) pairs: Vec<MethodPair>,
    pub(crate) problems: BTreeSet<Finding>,
    pub(crate) losses: Vec<Finding>,
}

/// A method and its counterpart.
pub(crate) struct MethodPair {
    pub(crate) old: MethodDescriptor,
    pub(crate) new: MethodDescriptor,
}

impl Methods {
    /// Finds the counterparts, and has their requests and answers planned.
    pub(crate) fn pair(
        &mut self,
        mapping: &Mapping,
        pairs: &Pairs<'_>,
        upgrade: &mut Planner<'_>,
        downgrade: &mut Planner<'_>,
    ) {
        for direction in [Direction::Upgrade, Direction::Downgrade] {
            for service in pairs.lone_services(direction) {
                let (of, what) = (service.full_name().to_owned(), NO_COUNTERPART.to_owned());
                self.losses.push(Finding { direction, of, what });
            }
        }
        for (old, new) in pairs.services() {
            let mut found = BTreeSet::new();
            for method in old.methods() {
                let Some(other) = pairs.method(&method, &new) else {
                    self.lose(Direction::Upgrade, &method);
                    continue;
                };
                if !found.insert(other.name().to_owned()) {
                    let what = format!("`{}` is the counterpart of two methods", other.name());
                    self.problem(Direction::Downgrade, &new, what);
                }
                if let Err(what) = fit_methods(&method, &other, upgrade, downgrade) {
                    self.problem(Direction::Upgrade, &old, format!("`{}`: {what}", method.name()));
                }
                self.pairs.push(MethodPair { old: method, new: other });
            }
            for method in new.methods().filter(|method| !found.contains(method.name())) {
                self.lose(Direction::Downgrade, &method);
            }
            if let Some(mapping) = mapping.services.get(old.name()) {
                let olds = mapping.methods.keys().chain(&mapping.apart);
                self.unknown(Direction::Upgrade, &old, olds);
                self.unknown(Direction::Downgrade, &new, mapping.methods.values());
            }
        }
    }

    /// Tells of methods that are named and aren't there.
    fn unknown<'n>(
        &mut self,
        direction: Direction,
        service: &ServiceDescriptor,
        names: impl Iterator<Item = &'n String>,
    ) {
        for name in names {
            if !service.methods().any(|method| method.name() == name) {
                let what = format!("it has no method `{name}`, which the mapping names");
                self.problem(direction, service, what);
            }
        }
    }

    fn problem(&mut self, direction: Direction, service: &ServiceDescriptor, what: String) {
        self.problems.insert(Finding { direction, of: service.full_name().to_owned(), what });
    }

    fn lose(&mut self, direction: Direction, method: &MethodDescriptor) {
        let what = format!("the method `{}` has no counterpart", method.name());
        let of = method.parent_service().full_name().to_owned();
        self.losses.push(Finding { direction, of, what });
    }
}

/// Has calls of `old` planned as calls of `new`, and the reverse.
fn fit_methods(
    old: &MethodDescriptor,
    new: &MethodDescriptor,
    upgrade: &mut Planner<'_>,
    downgrade: &mut Planner<'_>,
) -> Result<(), String> {
    let streams = |of: &MethodDescriptor| (of.is_client_streaming(), of.is_server_streaming());
    if streams(old) != streams(new) {
        return Err(format!("`{}` streams otherwise; set it apart", new.name()));
    }
    for (old, new) in [(old.input(), new.input()), (old.output(), new.output())] {
        upgrade.fit_messages(&old, &new)?;
        downgrade.fit_messages(&new, &old)?;
    }
    Ok(())
}

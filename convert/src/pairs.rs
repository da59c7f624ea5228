//! Which message, enum and service of one version is which of the other.

use std::collections::HashMap;

use prost_reflect::{
    DescriptorPool, EnumDescriptor, MessageDescriptor, MethodDescriptor, ServiceDescriptor,
};

use crate::{
    mapping::Mapping,
    report::{Direction, Finding},
};

/// The counterparts.
pub(crate) struct Pairs<'m> {
    mapping: &'m Mapping,
    old: &'m DescriptorPool,
    new: &'m DescriptorPool,
    /// New full names by old ones, and the reverse.
    forth: HashMap<String, String>,
    back: HashMap<String, String>,
    /// What the mapping names that isn't there.
    pub(crate) wrong: Vec<Finding>,
}

impl<'m> Pairs<'m> {
    /// The counterparts by `mapping`.
    pub(crate) fn find(
        mapping: &'m Mapping,
        old: &'m DescriptorPool,
        new: &'m DescriptorPool,
    ) -> Self {
        let mut pairs =
            Self { mapping, old, new, forth: HashMap::new(), back: HashMap::new(), wrong: vec![] };
        pairs.check_names();
        let messages = old.all_messages().filter(|message| !message.is_map_entry());
        let names = messages
            .map(|message| message.full_name().to_owned())
            .chain(old.all_enums().map(|of| of.full_name().to_owned()))
            .chain(old.services().map(|service| service.full_name().to_owned()));
        for name in names.collect::<Vec<_>>() {
            let Some(counterpart) = pairs.counterpart(&name) else { continue };
            if let Some(other) = pairs.back.insert(counterpart.clone(), name.clone()) {
                let what = format!("it is the counterpart of both `{other}` and `{name}`");
                let (direction, of) = (Direction::Upgrade, counterpart.clone());
                pairs.wrong.push(Finding { direction, of, what });
            }
            pairs.forth.insert(name, counterpart);
        }
        pairs
    }

    /// What the older `name` is called in the newer descriptors, if it is there.
    fn counterpart(&self, name: &str) -> Option<String> {
        let Mapping { old, new, apart, .. } = self.mapping;
        let Some(relative) = within(name, old) else {
            // What both use, such as a common package or Google's types.
            let is_shared = within(name, new).is_none() && has(self.new, name);
            return is_shared.then(|| name.to_owned());
        };
        let renamed = format!("{new}.{}", self.renamed(relative));
        (!apart.contains(relative) && has(self.new, &renamed)).then_some(renamed)
    }

    fn check_names(&mut self) {
        let Mapping { old, new, services, messages, enums, apart } = self.mapping;
        for (pool, package, direction) in
            [(self.old, old, Direction::Upgrade), (self.new, new, Direction::Downgrade)]
        {
            if !pool.files().any(|file| file.package_name() == package) {
                let what = format!("no file of these descriptors has the package `{package}`");
                self.wrong.push(Finding { direction, of: package.clone(), what });
            }
        }
        for name in apart {
            let full_name = format!("{old}.{name}");
            if !has(self.old, &full_name) {
                let what = format!("it isn't there; the mapping sets `{name}` apart");
                let direction = Direction::Upgrade;
                self.wrong.push(Finding { direction, of: full_name, what });
            }
        }
        let named = services
            .iter()
            .map(|(name, of)| (name, &of.name))
            .chain(messages.iter().map(|(name, of)| (name, &of.name)))
            .chain(enums.iter().map(|(name, of)| (name, &of.name)));
        for (name, other) in named {
            let old = format!("{old}.{name}");
            let new = format!("{new}.{}", self.renamed(name));
            for (pool, full_name, direction) in
                [(self.old, old, Direction::Upgrade), (self.new, new, Direction::Downgrade)]
            {
                if !has(pool, &full_name) {
                    let what = match other {
                        Some(other) => format!("the mapping pairs `{name}` with `{other}`"),
                        None => format!("the mapping names `{name}`"),
                    };
                    let what = format!("it isn't there; {what}");
                    self.wrong.push(Finding { direction, of: full_name, what });
                }
            }
        }
    }

    /// The new name of what has the old name `relative`: its own, or within that
    /// of the message it is in.
    fn renamed(&self, relative: &str) -> String {
        let Mapping { services, messages, enums, .. } = self.mapping;
        let own = messages
            .get(relative)
            .and_then(|of| of.name.as_ref())
            .or_else(|| enums.get(relative).and_then(|of| of.name.as_ref()))
            .or_else(|| services.get(relative).and_then(|of| of.name.as_ref()));
        match (own, relative.rsplit_once('.')) {
            (Some(name), _) => name.clone(),
            (None, Some((outer, name))) => format!("{}.{name}", self.renamed(outer)),
            (None, None) => relative.to_owned(),
        }
    }

    fn other(&self, direction: Direction, full_name: &str) -> Option<&str> {
        let names = match direction {
            Direction::Upgrade => &self.forth,
            Direction::Downgrade => &self.back,
        };
        names.get(full_name).map(String::as_str)
    }

    fn pool(&self, direction: Direction) -> &DescriptorPool {
        match direction {
            Direction::Upgrade => self.new,
            Direction::Downgrade => self.old,
        }
    }

    /// All messages of `direction`'s package, by name.
    pub(crate) fn messages(&self, direction: Direction) -> Vec<MessageDescriptor> {
        let (pool, package) = self.source(direction);
        let mut messages: Vec<_> = pool
            .all_messages()
            .filter(|of| within(of.full_name(), package).is_some() && !of.is_map_entry())
            .collect();
        messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
        messages
    }

    /// All enums of `direction`'s package, by name.
    pub(crate) fn enums(&self, direction: Direction) -> Vec<EnumDescriptor> {
        let (pool, package) = self.source(direction);
        let mut enums: Vec<_> =
            pool.all_enums().filter(|of| within(of.full_name(), package).is_some()).collect();
        enums.sort_by(|a, b| a.full_name().cmp(b.full_name()));
        enums
    }

    /// The services of `direction`'s package that have no counterpart.
    pub(crate) fn lone_services(&self, direction: Direction) -> Vec<ServiceDescriptor> {
        let (pool, package) = self.source(direction);
        let services = pool.services().filter(|service| service.package_name() == package);
        services.filter(|of| self.other(direction, of.full_name()).is_none()).collect()
    }

    fn source(&self, direction: Direction) -> (&DescriptorPool, &str) {
        match direction {
            Direction::Upgrade => (self.old, &self.mapping.old),
            Direction::Downgrade => (self.new, &self.mapping.new),
        }
    }

    /// The counterpart of `source`.
    pub(crate) fn message(
        &self,
        direction: Direction,
        source: &MessageDescriptor,
    ) -> Option<MessageDescriptor> {
        let name = self.other(direction, source.full_name())?;
        self.pool(direction).get_message_by_name(name)
    }

    /// The counterpart of `source`.
    pub(crate) fn of_enum(
        &self,
        direction: Direction,
        source: &EnumDescriptor,
    ) -> Option<EnumDescriptor> {
        let name = self.other(direction, source.full_name())?;
        self.pool(direction).get_enum_by_name(name)
    }

    /// The services of the older package that have a counterpart, with it.
    pub(crate) fn services(&self) -> Vec<(ServiceDescriptor, ServiceDescriptor)> {
        let services =
            self.old.services().filter(|service| service.package_name() == self.mapping.old);
        services
            .filter_map(|old| {
                let name = self.other(Direction::Upgrade, old.full_name())?;
                let new = self.new.services().find(|new| new.full_name() == name)?;
                Some((old, new))
            })
            .collect()
    }

    /// The counterpart in `new` of a method of an older service.
    pub(crate) fn method(
        &self,
        old: &MethodDescriptor,
        new: &ServiceDescriptor,
    ) -> Option<MethodDescriptor> {
        let service = old.parent_service();
        let mapping = self.mapping.services.get(service.name());
        if mapping.is_some_and(|of| of.apart.contains(old.name())) {
            return None;
        }
        let renamed = mapping.and_then(|of| of.methods.get(old.name()));
        let name = renamed.map_or(old.name(), String::as_str);
        new.methods().find(|method| method.name() == name)
    }

    /// The name within the older package of the older one of a message and its
    /// counterpart.
    pub(crate) fn old_name(&self, direction: Direction, full_name: &str) -> Option<&str> {
        let old = match direction {
            Direction::Upgrade => self.forth.get_key_value(full_name)?.0,
            Direction::Downgrade => self.back.get(full_name)?,
        };
        within(old, &self.mapping.old)
    }
}

/// The rest of `full_name` behind `package`.
fn within<'n>(full_name: &'n str, package: &str) -> Option<&'n str> {
    full_name.strip_prefix(package)?.strip_prefix('.')
}

fn has(pool: &DescriptorPool, full_name: &str) -> bool {
    pool.get_message_by_name(full_name).is_some()
        || pool.get_enum_by_name(full_name).is_some()
        || pool.services().any(|service| service.full_name() == full_name)
}

//! A first mapping, from two versions alone.
//!
//! What is found by number, by place or by the calls it is part of is a guess, and
//! says so: a person reads it before it is used.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ServiceDescriptor,
};

use crate::{
    fit,
    mapping::{EnumMapping, Mapping, MessageMapping, ServiceMapping},
};

/// A first mapping, and what it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proposal {
    /// Every change that a caller of the older version would notice, or that the
    /// mapping had to guess about.
    pub changes: Vec<Change>,
    /// The mapping.
    pub mapping: Mapping,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Change {
    /// The full name of the older message, enum or service.
    pub of: String,
    /// What changed.
    pub what: String,
}

impl Proposal {
    /// The mapping's file, with the changes as comments.
    pub fn to_toml(&self) -> String {
        let mut file = String::new();
        for Change { of, what } in &self.changes {
            file.push_str(&format!("# {of}: {what}\n"));
        }
        if !self.changes.is_empty() {
            file.push('\n');
        }
        file.push_str(
            &toml::to_string_pretty(&self.mapping).expect("a mapping is strings and tables"),
        );
        file
    }
}

/// Compares the package `old` of one set of descriptors with `new` of another.
pub fn propose(
    (old_pool, old): (&DescriptorPool, &str),
    (new_pool, new): (&DescriptorPool, &str),
) -> Proposal {
    let mut guess = Guess {
        new_pool,
        old,
        new,
        proposal: Proposal::default(),
        messages: BTreeMap::new(),
        enums: BTreeMap::new(),
    };
    guess.proposal.mapping = Mapping { old: old.into(), new: new.into(), ..Mapping::default() };
    guess.pair_types(old_pool);
    for service in old_pool.services().filter(|service| service.package_name() == old) {
        guess.service(&service);
    }
    for (old, new) in guess.messages.clone().into_values() {
        guess.message(&old, &new);
    }
    for (old, new) in guess.enums.clone().into_values() {
        guess.of_enum(&old, &new);
    }
    guess.proposal.changes.sort();
    guess.proposal
}

struct Guess<'p> {
    new_pool: &'p DescriptorPool,
    old: &'p str,
    new: &'p str,
    proposal: Proposal,
    /// Which is which, by the older names within the package.
    messages: BTreeMap<String, (MessageDescriptor, MessageDescriptor)>,
    enums: BTreeMap<String, (EnumDescriptor, EnumDescriptor)>,
}

impl Guess<'_> {
    fn change(&mut self, of: &str, what: String) {
        self.proposal.changes.push(Change { of: of.to_owned(), what });
    }

    /// Finds which message and enum is which: by name, else by what calls and fields
    /// have in the same place.
    fn pair_types(&mut self, old_pool: &DescriptorPool) {
        let inside = |full_name: &str| relative(full_name, self.old).map(str::to_owned);
        let named = |name: &str| format!("{}.{name}", self.new);
        let messages: Vec<_> = old_pool
            .all_messages()
            .filter(|message| !message.is_map_entry())
            .filter_map(|message| Some((inside(message.full_name())?, message)))
            .collect();
        for (name, old) in &messages {
            if let Some(new) = self.new_pool.get_message_by_name(&named(name)) {
                self.messages.insert(name.clone(), (old.clone(), new));
            }
        }
        let enums: Vec<_> =
            old_pool.all_enums().filter_map(|of| Some((inside(of.full_name())?, of))).collect();
        for (name, old) in &enums {
            if let Some(new) = self.new_pool.get_enum_by_name(&named(name)) {
                self.enums.insert(name.clone(), (old.clone(), new));
            }
        }
        for (old, new) in self.services(old_pool) {
            for method in old.methods() {
                let Some(other) = new.methods().find(|other| other.name() == method.name()) else {
                    continue;
                };
                self.pair_message(&method.input(), &other.input());
                self.pair_message(&method.output(), &other.output());
            }
        }
        // What is paired by its place can lead to others.
        let mut looked = BTreeSet::new();
        while let Some((name, (old, new))) = self
            .messages
            .iter()
            .find(|(name, _)| !looked.contains(*name))
            .map(|(name, pair)| (name.clone(), pair.clone()))
        {
            looked.insert(name);
            for field in old.fields() {
                let Some(other) = new.get_field_by_name(field.name()) else { continue };
                match (field.kind(), other.kind()) {
                    (Kind::Message(a), Kind::Message(b)) => self.pair_message(&a, &b),
                    (Kind::Enum(a), Kind::Enum(b)) => self.pair_enum(&a, &b),
                    _ => {}
                }
            }
        }
        for (name, old) in messages {
            if !self.messages.contains_key(&name) {
                self.change(old.full_name(), "the message is gone".into());
            }
        }
        for (name, old) in enums {
            if !self.enums.contains_key(&name) {
                self.change(old.full_name(), "the enum is gone".into());
            }
        }
    }

    fn services(&self, old_pool: &DescriptorPool) -> Vec<(ServiceDescriptor, ServiceDescriptor)> {
        let services = old_pool.services().filter(|service| service.package_name() == self.old);
        services.filter_map(|old| Some((old.clone(), self.new_service(&old)?))).collect()
    }

    fn new_service(&self, old: &ServiceDescriptor) -> Option<ServiceDescriptor> {
        let mut services = self.new_pool.services();
        services.find(|new| new.package_name() == self.new && new.name() == old.name())
    }

    fn pair_message(&mut self, old: &MessageDescriptor, new: &MessageDescriptor) {
        let names = (relative(old.full_name(), self.old), relative(new.full_name(), self.new));
        let (Some(old_name), Some(new_name)) = names else { return };
        let taken = self.messages.values().any(|(_, taken)| taken == new);
        if taken || self.messages.contains_key(old_name) || old.is_map_entry() || new.is_map_entry()
        {
            return;
        }
        let mapping = self.proposal.mapping.messages.entry(old_name.to_owned()).or_default();
        mapping.name = Some(new_name.to_owned());
        self.messages.insert(old_name.to_owned(), (old.clone(), new.clone()));
        self.change(old.full_name(), format!("its name is now `{new_name}` (a guess)"));
    }

    fn pair_enum(&mut self, old: &EnumDescriptor, new: &EnumDescriptor) {
        let names = (relative(old.full_name(), self.old), relative(new.full_name(), self.new));
        let (Some(old_name), Some(new_name)) = names else { return };
        let taken = self.enums.values().any(|(_, taken)| taken == new);
        if taken || self.enums.contains_key(old_name) {
            return;
        }
        let mapping = self.proposal.mapping.enums.entry(old_name.to_owned()).or_default();
        mapping.name = Some(new_name.to_owned());
        self.enums.insert(old_name.to_owned(), (old.clone(), new.clone()));
        self.change(old.full_name(), format!("its name is now `{new_name}` (a guess)"));
    }

    fn service(&mut self, old: &ServiceDescriptor) {
        let Some(new) = self.new_service(old) else {
            return self.change(old.full_name(), "the service is gone".into());
        };
        let is_there = |of: &ServiceDescriptor, name: &str| of.methods().any(|m| m.name() == name);
        let mut methods = BTreeMap::new();
        for method in old.methods() {
            let name = method.name();
            let other = new.methods().find(|other| other.name() == name).or_else(|| {
                // The only new method that takes and gives the same.
                let mut alike = new.methods().filter(|other| {
                    let (asked, given) = (other.input(), other.output());
                    !is_there(old, other.name())
                        && self.is_pair(&method.input(), &asked)
                        && self.is_pair(&method.output(), &given)
                });
                let only = alike.next();
                only.filter(|_| alike.next().is_none())
            });
            let Some(other) = other else {
                self.change(old.full_name(), format!("the method `{name}` is gone"));
                continue;
            };
            let streams = |of: &prost_reflect::MethodDescriptor| {
                (of.is_client_streaming(), of.is_server_streaming())
            };
            if streams(&method) != streams(&other) {
                self.change(old.full_name(), format!("the method `{name}` streams otherwise"));
            }
            if other.name() != name {
                let what = format!("the method `{name}` is now `{}` (a guess)", other.name());
                self.change(old.full_name(), what);
                methods.insert(name.to_owned(), other.name().to_owned());
            }
        }
        if !methods.is_empty() {
            let mapping = ServiceMapping { methods, ..ServiceMapping::default() };
            self.proposal.mapping.services.insert(old.name().to_owned(), mapping);
        }
    }

    fn is_pair(&self, old: &MessageDescriptor, new: &MessageDescriptor) -> bool {
        old.full_name() == new.full_name()
            || self.messages.values().any(|(a, b)| a == old && b == new)
    }

    fn message(&mut self, old: &MessageDescriptor, new: &MessageDescriptor) {
        let name = relative(old.full_name(), self.old).unwrap_or(old.full_name()).to_owned();
        let mut mapping = self.proposal.mapping.messages.remove(&name).unwrap_or_default();
        let of = old.full_name();
        let mut found = BTreeSet::new();
        for field in old.fields() {
            match self.counterpart(&field, old, new) {
                Some(other) => {
                    found.insert(other.name().to_owned());
                    self.field(of, &mut mapping, &field, &other);
                }
                None => {
                    self.change(of, format!("the field `{}` is gone", field.name()));
                    mapping.upgrade.drop.insert(field.name().to_owned());
                    mapping.downgrade.unset.insert(field.name().to_owned());
                }
            }
        }
        for field in new.fields().filter(|field| !found.contains(field.name())) {
            mapping.upgrade.unset.insert(field.name().to_owned());
            mapping.downgrade.drop.insert(field.name().to_owned());
        }
        if mapping != MessageMapping::default() {
            self.proposal.mapping.messages.insert(name, mapping);
        }
    }

    /// The field of the same name, else a new one of the same number that it fits.
    fn counterpart(
        &self,
        field: &FieldDescriptor,
        old: &MessageDescriptor,
        new: &MessageDescriptor,
    ) -> Option<FieldDescriptor> {
        new.get_field_by_name(field.name()).or_else(|| {
            let other = new.get_field(field.number())?;
            let is_new = old.get_field_by_name(other.name()).is_none();
            (is_new && self.fits(field, &other) && self.fits_back(field, &other)).then_some(other)
        })
    }

    fn field(
        &mut self,
        of: &str,
        mapping: &mut MessageMapping,
        field: &FieldDescriptor,
        other: &FieldDescriptor,
    ) {
        let (name, new_name) = (field.name(), other.name());
        if name != new_name {
            self.change(of, format!("the field `{name}` is now `{new_name}` (a guess)"));
            mapping.fields.insert(name.to_owned(), new_name.to_owned());
        }
        if field.number() != other.number() {
            let what =
                format!("`{name}` has another number: {}, was {}", other.number(), field.number());
            self.change(of, what);
        }
        if field.supports_presence() != other.supports_presence() {
            self.change(of, format!("whether `{name}` is set can be told in one version only"));
        }
        for (fits, from, to, way, is_upgrade) in [
            (self.fits(field, other), field, other, &mut mapping.upgrade, true),
            (self.fits_back(field, other), other, field, &mut mapping.downgrade, false),
        ] {
            if fits {
                continue;
            }
            if is_upgrade || self.fits(field, other) {
                let what =
                    format!("the type of `{name}` is {}, was {}", shape(other), shape(field));
                self.proposal.changes.push(Change { of: of.to_owned(), what });
            }
            match computed(from, to) {
                Some(expression) => drop(way.set.insert(to.name().to_owned(), expression)),
                None => {
                    way.unset.insert(to.name().to_owned());
                    way.drop.insert(from.name().to_owned());
                }
            }
        }
    }

    fn fits(&self, from: &FieldDescriptor, to: &FieldDescriptor) -> bool {
        self.fits_by(from, to, |a, b| self.kinds_fit(a, b, false))
    }

    fn fits_back(&self, from: &FieldDescriptor, to: &FieldDescriptor) -> bool {
        self.fits_by(to, from, |a, b| self.kinds_fit(a, b, true))
    }

    fn fits_by(
        &self,
        from: &FieldDescriptor,
        to: &FieldDescriptor,
        kinds_fit: impl Fn(&Kind, &Kind) -> bool,
    ) -> bool {
        if (from.is_list(), from.is_map()) != (to.is_list(), to.is_map()) {
            return false;
        }
        match (from.kind(), to.kind()) {
            (Kind::Message(a), Kind::Message(b)) if a.is_map_entry() && b.is_map_entry() => {
                fit::scalar(&a.map_entry_key_field().kind(), &b.map_entry_key_field().kind())
                    == Some(crate::plan::How::Keep)
                    && kinds_fit(
                        &a.map_entry_value_field().kind(),
                        &b.map_entry_value_field().kind(),
                    )
            }
            (a, b) => kinds_fit(&a, &b),
        }
    }

    fn kinds_fit(&self, from: &Kind, to: &Kind, back: bool) -> bool {
        match (from, to) {
            (Kind::Message(a), Kind::Message(b)) if back => self.is_pair(b, a),
            (Kind::Message(a), Kind::Message(b)) => self.is_pair(a, b),
            (Kind::Enum(a), Kind::Enum(b)) => {
                let (a, b) = if back { (b, a) } else { (a, b) };
                a.full_name() == b.full_name()
                    || self.enums.values().any(|(old, new)| old == a && new == b)
            }
            (a, b) => fit::scalar(a, b).is_some(),
        }
    }

    fn of_enum(&mut self, old: &EnumDescriptor, new: &EnumDescriptor) {
        let name = relative(old.full_name(), self.old).unwrap_or(old.full_name()).to_owned();
        let mut mapping = self.proposal.mapping.enums.remove(&name).unwrap_or_default();
        let (old_default, new_default) = (old.default_value(), new.default_value());
        for value in old.values() {
            match new.get_value_by_name(value.name()) {
                Some(other) if other.number() != value.number() => {
                    let what = format!(
                        "`{}` has another number: {}, was {}",
                        value.name(),
                        other.number(),
                        value.number()
                    );
                    self.change(old.full_name(), what);
                }
                Some(_) => {}
                None => match new.get_value(value.number()) {
                    Some(other)
                        if old.get_value_by_name(other.name()).is_none()
                            && !mapping.values.values().any(|taken| taken == other.name()) =>
                    {
                        let what = format!(
                            "the value `{}` is now `{}` (a guess)",
                            value.name(),
                            other.name()
                        );
                        self.change(old.full_name(), what);
                        mapping.values.insert(value.name().into(), other.name().into());
                    }
                    _ => {
                        self.change(
                            old.full_name(),
                            format!("the value `{}` is gone", value.name()),
                        );
                        mapping.upgrade.insert(value.name().into(), new_default.name().into());
                    }
                },
            }
        }
        for value in new.values() {
            let is_named = mapping.values.values().any(|named| named == value.name());
            if old.get_value_by_name(value.name()).is_none() && !is_named {
                mapping.downgrade.insert(value.name().into(), old_default.name().into());
            }
        }
        if mapping != EnumMapping::default() {
            self.proposal.mapping.enums.insert(name, mapping);
        }
    }
}

/// The expression that makes a value of `to` of one of `from`, where there is one.
fn computed(from: &FieldDescriptor, to: &FieldDescriptor) -> Option<String> {
    if from.is_list() || to.is_list() || from.is_map() || to.is_map() {
        return None;
    }
    let name = from.name();
    let class = |kind: &Kind| match kind {
        Kind::Int32
        | Kind::Sint32
        | Kind::Sfixed32
        | Kind::Int64
        | Kind::Sint64
        | Kind::Sfixed64 => Some("int"),
        Kind::Uint32 | Kind::Fixed32 | Kind::Uint64 | Kind::Fixed64 => Some("uint"),
        Kind::Float | Kind::Double => Some("double"),
        Kind::String => Some("string"),
        _ => None,
    };
    let (from_class, to_class) = (class(&from.kind())?, class(&to.kind())?);
    let value = match from_class == to_class {
        true => name.to_owned(),
        false => format!("{to_class}({name})"),
    };
    // Unset is `null`, which no function takes.
    let can_be_null = from.supports_presence() && from_class != to_class;
    Some(if can_be_null { format!("{name} == null ? null : {value}") } else { value })
}

fn shape(field: &FieldDescriptor) -> String {
    let kind = match field.kind() {
        Kind::Message(message) if field.is_map() => {
            let (key, value) = (message.map_entry_key_field(), message.map_entry_value_field());
            return format!("map<{}, {}>", shape(&key), shape(&value));
        }
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(values) => values.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    if field.is_list() { format!("repeated {kind}") } else { kind }
}

fn relative<'n>(full_name: &'n str, package: &str) -> Option<&'n str> {
    full_name.strip_prefix(package)?.strip_prefix('.')
}

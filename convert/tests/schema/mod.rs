//! Makes two versions of a package, and the mapping between them.

use std::{collections::BTreeSet, fmt};

use convert::{
    Mapping,
    mapping::{EnumMapping, MessageMapping},
};
use prost_reflect::DescriptorPool;
use protox::file::{File, FileResolver};
use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

const SCALARS: [&str; 15] = [
    "double", "float", "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32",
    "fixed64", "sfixed32", "sfixed64", "bool", "string", "bytes",
];
/// Pairs of scalars that hold the same values.
const SAME: [(&str, &str); 4] =
    [("int32", "sint32"), ("int64", "sfixed64"), ("uint32", "fixed32"), ("uint64", "fixed64")];
/// A scalar, and one that holds more.
const WIDER: [(&str, &str); 4] =
    [("int32", "int64"), ("uint32", "int64"), ("uint32", "uint64"), ("float", "double")];

/// Two versions, and the mapping.
pub struct Versions {
    old: Schema,
    new: Schema,
    pub mapping: Mapping,
}

#[derive(Clone, Default)]
struct Schema {
    package: &'static str,
    messages: Vec<Message>,
    enums: Vec<Enum>,
}

#[derive(Clone)]
struct Message {
    name: String,
    fields: Vec<Field>,
}

#[derive(Clone)]
struct Field {
    name: String,
    number: u32,
    label: Label,
    /// A scalar, or the name of a message or enum.
    kind: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Label {
    Single,
    Optional,
    Repeated,
    Map,
    Oneof,
}

#[derive(Clone)]
struct Enum {
    name: String,
    values: Vec<(String, i32)>,
}

impl Versions {
    /// Two versions of which the newer one is the older one, changed here and there.
    pub fn generate(rng: &mut SmallRng) -> Self {
        let old = Schema::any(rng);
        let mut versions = Self {
            new: Schema { package: "test.v2", ..old.clone() },
            old,
            mapping: Mapping { old: "test.v1".into(), new: "test.v2".into(), ..Mapping::default() },
        };
        for nth in 0..versions.new.enums.len() {
            versions.change_enum(nth, rng);
        }
        for nth in 0..versions.new.messages.len() {
            versions.change_message(nth, rng);
        }
        versions
    }

    /// Both as descriptors.
    pub fn compile(&self) -> (DescriptorPool, DescriptorPool) {
        (compile(&self.old), compile(&self.new))
    }

    /// The older version under the newer one's name.
    pub fn same_as_old(&self) -> DescriptorPool {
        compile(&Schema { package: self.new.package, ..self.old.clone() })
    }

    /// Takes away a rule that is needed; `false` where there is none.
    pub fn forget_a_rule(&mut self, rng: &mut SmallRng) -> bool {
        let mut rules = Vec::new();
        for (name, message) in &self.mapping.messages {
            for (way, of) in [(0, &message.upgrade), (1, &message.downgrade)] {
                rules.extend(of.set.keys().map(|path| (name.clone(), way, 0, path.clone())));
                rules.extend(of.drop.iter().map(|path| (name.clone(), way, 1, path.clone())));
                rules.extend(of.unset.iter().map(|path| (name.clone(), way, 2, path.clone())));
            }
            rules.extend(message.fields.keys().map(|path| (name.clone(), 2, 0, path.clone())));
        }
        let Some((name, way, what, path)) = rules.choose(rng).cloned() else { return false };
        let message = self.mapping.messages.get_mut(&name).expect("it was listed");
        let of = match way {
            0 => &mut message.upgrade,
            1 => &mut message.downgrade,
            _ => return message.fields.remove(&path).is_some(),
        };
        match what {
            0 => of.set.remove(&path).is_some(),
            1 => of.drop.remove(&path),
            _ => of.unset.remove(&path),
        }
    }

    fn change_enum(&mut self, nth: usize, rng: &mut SmallRng) {
        let new = &mut self.new.enums[nth];
        let mut mapping = EnumMapping::default();
        for (place, (value, number)) in new.values.iter_mut().enumerate() {
            if rng.random_ratio(1, 4) {
                let renamed = format!("{value}_NEW");
                mapping.values.insert(value.clone(), renamed.clone());
                *value = renamed;
            }
            // The first one of an open enum is 0.
            if place > 0 && rng.random_ratio(1, 4) {
                *number += 100;
            }
        }
        if rng.random_ratio(1, 4) {
            let to = new.values[0].0.clone();
            let added = format!("{}_ADDED", new.name);
            new.values.push((added.clone(), 77));
            let old = mapping.values.iter().find(|(_, new)| **new == to);
            let old = old.map_or(to.clone(), |(old, _)| old.clone());
            mapping.downgrade.insert(added, old);
        }
        if mapping != EnumMapping::default() {
            self.mapping.enums.insert(self.old.enums[nth].name.clone(), mapping);
        }
    }

    fn change_message(&mut self, nth: usize, rng: &mut SmallRng) {
        let old_name = self.old.messages[nth].name.clone();
        let mut mapping = MessageMapping::default();
        let mut fields = std::mem::take(&mut self.new.messages[nth].fields);
        let mut boxed: Vec<Field> = Vec::new();
        let mut dropped = BTreeSet::new();
        for field in &mut fields {
            let name = field.name.clone();
            match rng.random_range(0..12) {
                0 => {
                    field.name = format!("{name}_renamed");
                    mapping.fields.insert(name, field.name.clone());
                }
                1 => field.number += 1_000,
                2 => {
                    dropped.insert(name.clone());
                    mapping.upgrade.drop.insert(name.clone());
                    mapping.downgrade.unset.insert(name);
                }
                3 => {
                    if let Some((_, same)) = SAME.iter().find(|(kind, _)| field.kind == *kind) {
                        field.kind = (*same).into();
                    }
                }
                4 if [Label::Single, Label::Optional].contains(&field.label) => {
                    if let Some((_, wider)) = WIDER.iter().find(|(kind, _)| field.kind == *kind) {
                        field.kind = (*wider).into();
                        mapping.downgrade.set.insert(name.clone(), name);
                    }
                }
                5 => {
                    field.label = match field.label {
                        Label::Single => Label::Optional,
                        Label::Optional | Label::Oneof => Label::Single,
                        other => other,
                    };
                }
                6 => {
                    mapping.fields.insert(name.clone(), format!("boxed.{name}"));
                    dropped.insert(name);
                    boxed.push(field.clone());
                }
                _ => {}
            }
        }
        fields.retain(|field| !dropped.contains(&field.name));
        if rng.random_ratio(1, 3) {
            let name = "added".to_owned();
            fields.push(Field {
                name: name.clone(),
                number: 5_000,
                label: Label::Single,
                kind: "string".into(),
            });
            mapping.downgrade.drop.insert(name.clone());
            match rng.random_range(0..2) {
                0 => drop(mapping.upgrade.set.insert(name, "'new here'".into())),
                _ => drop(mapping.upgrade.unset.insert(name)),
            }
        }
        if !boxed.is_empty() {
            let name = format!("{old_name}Boxed");
            fields.push(Field {
                name: "boxed".into(),
                number: 6_000,
                label: Label::Single,
                kind: name.clone(),
            });
            self.new.messages.push(Message { name, fields: boxed });
        }
        let new = &mut self.new.messages[nth];
        new.fields = fields;
        if rng.random_ratio(1, 5) {
            let name = format!("{old_name}Renamed");
            mapping.name = Some(name.clone());
            new.name.clone_from(&name);
            for field in self.new.messages.iter_mut().flat_map(|message| &mut message.fields) {
                if field.kind == old_name {
                    field.kind.clone_from(&name);
                }
            }
        }
        if mapping != MessageMapping::default() {
            self.mapping.messages.insert(old_name, mapping);
        }
    }
}

impl Schema {
    fn any(rng: &mut SmallRng) -> Self {
        let enums: Vec<Enum> = (0..rng.random_range(0..3))
            .map(|nth| Enum {
                name: format!("Enum{nth}"),
                values: (0..rng.random_range(1..5)).map(|n| (format!("E{nth}_{n}"), n)).collect(),
            })
            .collect();
        let count = rng.random_range(1..5);
        let messages = (0..count).map(|nth| {
            let fields = (0..rng.random_range(0..9)).map(|n| {
                // Any message, its own included: types that hold themselves are usual.
                let kind = match rng.random_range(0..10) {
                    0 | 1 => format!("Message{}", rng.random_range(0..count)),
                    2 if !enums.is_empty() => format!("Enum{}", rng.random_range(0..enums.len())),
                    _ => (*SCALARS.choose(rng).expect("there are some")).to_owned(),
                };
                let label = match rng.random_range(0..10) {
                    0 => Label::Repeated,
                    1 => Label::Map,
                    2 | 3 => Label::Oneof,
                    4 => Label::Optional,
                    _ => Label::Single,
                };
                Field { name: format!("field_{n}"), number: n + 1, label, kind }
            });
            Message { name: format!("Message{nth}"), fields: fields.collect() }
        });
        Self { package: "test.v1", messages: messages.collect(), enums }
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "syntax = \"proto3\";\npackage {};", self.package)?;
        for Enum { name, values } in &self.enums {
            writeln!(f, "enum {name} {{")?;
            for (value, number) in values {
                writeln!(f, "  {value} = {number};")?;
            }
            writeln!(f, "}}")?;
        }
        for Message { name, fields } in &self.messages {
            writeln!(f, "message {name} {{")?;
            for Field { name, number, label, kind } in fields {
                let label = match label {
                    Label::Single => "",
                    Label::Optional => "optional ",
                    Label::Repeated => "repeated ",
                    Label::Map => {
                        writeln!(f, "  map<string, {kind}> {name} = {number};")?;
                        continue;
                    }
                    Label::Oneof => continue,
                };
                writeln!(f, "  {label}{kind} {name} = {number};")?;
            }
            let members = fields.iter().filter(|field| field.label == Label::Oneof);
            if members.clone().next().is_some() {
                writeln!(f, "  oneof choice {{")?;
                for Field { name, number, kind, .. } in members {
                    writeln!(f, "    {kind} {name} = {number};")?;
                }
                writeln!(f, "  }}")?;
            }
            writeln!(f, "}}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{:#?}", self.old, self.new, self.mapping)
    }
}

/// Resolves the one file there is.
struct InMemory(String);

impl FileResolver for InMemory {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        File::from_source(name, &self.0)
    }
}

fn compile(schema: &Schema) -> DescriptorPool {
    let mut compiler = protox::Compiler::with_file_resolver(InMemory(schema.to_string()));
    compiler.open_file("test.proto").unwrap_or_else(|why| panic!("{why:?}\n{schema}"));
    compiler.descriptor_pool()
}

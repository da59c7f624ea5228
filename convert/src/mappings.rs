//! The mappings of a folder, each proven against the versions that it names.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use prost_reflect::{DescriptorPool, prost_types::FileDescriptorSet};

use crate::{Conversion, Direction, Mapping, Method, Protos, Transform};

/// Why the mappings of a folder can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct InvalidMappings {
    path: PathBuf,
    why: String,
}

/// All that can be converted.
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    /// The packages of each, the older one first.
    pairs: Vec<[String; 2]>,
    conversions: Vec<Conversion>,
    methods: HashMap<String, Vec<Counterpart>>,
    pools: Vec<DescriptorPool>,
    lossy: Vec<String>,
}

/// What calls of a method can become in another version.
#[derive(Clone, Debug)]
pub struct Counterpart {
    /// The package of the other version.
    pub package: String,
    /// The method there.
    pub method: Method,
}

impl Mappings {
    /// The mappings in `folder`, `*.toml`. The versions that they name are in `.proto`
    /// files in it and below, in descriptor sets, `*.binpb`, or in `known`.
    ///
    /// # Errors
    /// When one can't be read or isn't proven, or two are between the same versions.
    pub fn load(folder: &Path, known: DescriptorPool) -> Result<Self, InvalidMappings> {
        let failed = |path: &Path, why: String| InvalidMappings { path: path.to_owned(), why };
        let unread = |path: &Path, why: io::Error| failed(path, why.to_string());
        let (mut files, mut protos) = (Vec::new(), vec![folder.to_owned()]);
        for entry in fs::read_dir(folder).map_err(|why| unread(folder, why))? {
            let path = entry.map_err(|why| unread(folder, why))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("toml") => files.push(path),
                Some("binpb") => protos.push(path),
                _ => {}
            }
        }
        files.sort();
        let protos = Protos::load(&protos).map_err(|why| failed(folder, why.to_string()))?;
        let protos = protos.and(known);
        let mut mappings = Self::default();
        for path in files {
            let text = fs::read_to_string(&path).map_err(|why| unread(&path, why))?;
            let mapping = Mapping::parse(&text).map_err(|why| failed(&path, why.to_string()))?;
            if mappings.partners(&mapping.old).any(|partner| partner == mapping.new) {
                let why = format!("another file maps {} to {}, too", mapping.old, mapping.new);
                return Err(failed(&path, why));
            }
            mappings.add(&mapping, &protos).map_err(|why| failed(&path, why))?;
        }
        Ok(mappings)
    }

    fn add(&mut self, mapping: &Mapping, protos: &Protos) -> Result<(), String> {
        let pool = |package: &str| {
            let missing = || format!("no file in the folder has the package `{package}`");
            protos.of(package).ok_or_else(missing)
        };
        let (old, new) = (pool(&mapping.old)?, pool(&mapping.new)?);
        let (report, conversion) = Conversion::prove(mapping, old, new);
        let Some(conversion) = conversion else {
            let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
            let problems = problems.join("; ");
            return Err(format!("it isn't proven, see `omni bridge check`: {problems}"));
        };
        self.lossy.extend(report.losses.iter().map(ToString::to_string));
        let ways = [(Direction::Upgrade, &mapping.new), (Direction::Downgrade, &mapping.old)];
        for (direction, package) in ways {
            for (path, method) in conversion.methods(direction) {
                let counterpart = Counterpart { package: package.clone(), method: method.clone() };
                self.methods.entry(path.to_owned()).or_default().push(counterpart);
            }
        }
        self.pairs.push([mapping.old.clone(), mapping.new.clone()]);
        self.conversions.push(conversion);
        self.pools.extend([old.clone(), new.clone()]);
        Ok(())
    }

    /// What calls to `path` can become, in the order of the files.
    pub fn of_method(&self, path: &str) -> &[Counterpart] {
        self.methods.get(path).map_or(&[], Vec::as_slice)
    }

    /// The packages that are mapped to `package`, and it to them.
    pub fn partners<'m>(&'m self, package: &'m str) -> impl Iterator<Item = &'m str> {
        let both_ways = self.pairs.iter().flat_map(|[old, new]| [(old, new), (new, old)]);
        both_ways.filter(move |(from, _)| *from == package).map(|(_, to)| to.as_str())
    }

    /// What makes one of the messages `wanted` of one of the type `full_name`; they
    /// are full names, too.
    pub fn of_message(&self, full_name: &str, wanted: &[&str]) -> Option<&Transform> {
        let ways = [Direction::Upgrade, Direction::Downgrade];
        let all = self.conversions.iter().flat_map(|conversion| {
            ways.into_iter().filter_map(|way| conversion.message(way, full_name))
        });
        all.into_iter().find(|transform| wanted.contains(&transform.target().full_name()))
    }

    /// What doesn't come back from a round trip, for people to read.
    pub fn lossy(&self) -> &[String] {
        &self.lossy
    }

    /// The services whose calls can become others, by their full names.
    pub fn services(&self) -> Vec<String> {
        let service = |path: &String| Some(path.strip_prefix('/')?.split_once('/')?.0.to_owned());
        let services: BTreeSet<String> = self.methods.keys().filter_map(service).collect();
        services.into_iter().collect()
    }

    /// The descriptors of all versions, each file once; and the names of files of
    /// which there are several that differ.
    pub fn descriptors(&self) -> (FileDescriptorSet, BTreeSet<String>) {
        let (mut files, mut differ) = (BTreeMap::new(), BTreeSet::new());
        for file in self.pools.iter().flat_map(DescriptorPool::file_descriptor_protos) {
            if *files.entry(file.name()).or_insert(file) != file {
                differ.insert(file.name().to_owned());
            }
        }
        (FileDescriptorSet { file: files.into_values().cloned().collect() }, differ)
    }
}

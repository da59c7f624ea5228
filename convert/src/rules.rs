//! What a mapping says of one message, with its paths resolved.

use prost_reflect::MessageDescriptor;

use crate::{
    mapping::{MessageMapping, OneWay},
    path::Path,
    report::Direction,
};

/// What is said of one message, both ways.
#[derive(Default)]
pub(crate) struct Rules {
    fields: Vec<(Path, Path)>,
    upgrade: Way,
    downgrade: Way,
}

/// What is said for one direction only.
#[derive(Default)]
struct Way {
    set: Vec<(Path, String)>,
    drop: Vec<Path>,
    unset: Vec<Path>,
}

/// The rules as one direction sees them.
pub(crate) struct View<'r> {
    /// What is copied from where to where by the mapping's word.
    pub(crate) pairs: Vec<(&'r Path, &'r Path)>,
    /// What is computed, by which expression.
    pub(crate) set: &'r [(Path, String)],
    /// What of the source is dropped.
    pub(crate) drop: &'r [Path],
    /// What of the target gets no value.
    pub(crate) unset: &'r [Path],
    /// Every path of the source that any direction names.
    sources: Vec<&'r Path>,
    /// Every path of the target that any direction names.
    targets: Vec<&'r Path>,
}

impl Rules {
    /// The rules that `mapping` has for `old` and `new`, and what of it names
    /// nothing.
    pub(crate) fn resolve(
        mapping: &MessageMapping,
        old: &MessageDescriptor,
        new: &MessageDescriptor,
    ) -> (Self, Vec<(Direction, String)>) {
        let mut wrong = Vec::new();
        let mut fields = Vec::new();
        for (from, to) in &mapping.fields {
            match (Path::parse(old, from), Path::parse(new, to)) {
                (Ok(from), Ok(to)) => fields.push((from, to)),
                (from, to) => wrong.extend(
                    [from.err(), to.err()]
                        .into_iter()
                        .flatten()
                        .map(|why| (Direction::Upgrade, why)),
                ),
            }
        }
        let mut way = |of: &OneWay, direction, source, target| {
            let mut paths = |message, names: &mut dyn Iterator<Item = &String>| {
                let mut paths = Vec::new();
                for name in names {
                    match Path::parse(message, name) {
                        Ok(path) => paths.push(path),
                        Err(why) => wrong.push((direction, why)),
                    }
                }
                paths
            };
            let drop = paths(source, &mut of.drop.iter());
            let unset = paths(target, &mut of.unset.iter());
            let mut set = Vec::new();
            for (name, expression) in &of.set {
                let path = paths(target, &mut std::iter::once(name));
                set.extend(path.into_iter().map(|path| (path, expression.clone())));
            }
            Way { set, drop, unset }
        };
        let upgrade = way(&mapping.upgrade, Direction::Upgrade, old, new);
        let downgrade = way(&mapping.downgrade, Direction::Downgrade, new, old);
        (Self { fields, upgrade, downgrade }, wrong)
    }

    /// These as `direction` sees them.
    pub(crate) fn view(&self, direction: Direction) -> View<'_> {
        let (way, back) = match direction {
            Direction::Upgrade => (&self.upgrade, &self.downgrade),
            Direction::Downgrade => (&self.downgrade, &self.upgrade),
        };
        let all = self.fields.iter().map(|(old, new)| match direction {
            Direction::Upgrade => (old, new),
            Direction::Downgrade => (new, old),
        });
        // What one direction computes, drops or leaves out isn't copied in it.
        let set = |path: &Path| way.set.iter().any(|(set, _)| set == path);
        let pairs = all.clone().filter(|(source, target)| {
            !set(target) && !way.unset.contains(target) && !way.drop.contains(source)
        });
        let (mut sources, mut targets): (Vec<_>, Vec<_>) = all.clone().unzip();
        sources.extend(
            way.drop.iter().chain(back.set.iter().map(|(path, _)| path)).chain(&back.unset),
        );
        targets
            .extend(way.unset.iter().chain(way.set.iter().map(|(path, _)| path)).chain(&back.drop));
        View {
            pairs: pairs.collect(),
            set: &way.set,
            drop: &way.drop,
            unset: &way.unset,
            sources,
            targets,
        }
    }
}

impl View<'_> {
    /// Whether anything inside of `path` of the source is named.
    pub(crate) fn source_parts(&self, path: &Path) -> bool {
        self.sources.iter().any(|named| named.is_below(path))
    }

    /// Whether anything inside of `path` of the target is named.
    pub(crate) fn target_parts(&self, path: &Path) -> bool {
        self.targets.iter().any(|named| named.is_below(path))
    }

    /// The paths of the target that are spoken for.
    pub(crate) fn taken(&self) -> Vec<&Path> {
        let set = self.set.iter().map(|(path, _)| path);
        self.pairs.iter().map(|(_, target)| *target).chain(set).chain(self.unset).collect()
    }
}

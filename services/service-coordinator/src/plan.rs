//! In which order units start: by what they need, phase by phase, level by level.
//!
//! A level starts when the one before has settled, and everything in it at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    time::Duration,
};

use mesh::service::Phase;
use petgraph::{
    algo::{tarjan_scc, toposort},
    graphmap::DiGraphMap,
};
use serde::Serialize;

/// What is started: a service, or a backend that has to be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unit {
    /// Its name, unique in the plan.
    pub name: String,
    /// Whether it is a service, or a backend that is only looked at.
    pub kind: Kind,
    /// When, roughly.
    pub phase: Phase,
    /// What it can't work without.
    pub requires: BTreeSet<String>,
    /// What it works better with.
    pub wants: BTreeSet<String>,
    /// How long it may take to be healthy, before it is tried again.
    #[serde(skip)]
    pub timeout: Duration,
}

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something the mesh stands on, which others run.
    Backend,
    /// A service of the mesh.
    Service,
}

/// Why there is no order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Two units have one name.
    #[error("`{0}` is there twice")]
    Twice(String),
    /// A dependency that there isn't.
    #[error("`{unit}` depends on `{missing}`, which isn't there")]
    Unknown {
        /// Who depends.
        unit: String,
        /// On what.
        missing: String,
    },
    /// Units that wait for each other: each requires the next, and the last the first.
    #[error("{} wait for each other: {}", .0.len(), Chain(.0))]
    Cycle(Vec<String>),
    /// A dependency that starts in a later phase.
    #[error("`{unit}` of phase {phase} requires `{later}`, of the later phase {its}")]
    Later {
        /// Who depends.
        unit: String,
        /// Its phase.
        phase: Phase,
        /// On what.
        later: String,
        /// That one's phase.
        its: Phase,
    },
}

struct Chain<'a>(&'a [String]);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in self.0 {
            write!(f, "{name} → ")?;
        }
        f.write_str(self.0.first().map_or("", String::as_str))
    }
}

/// The order of all units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    units: BTreeMap<String, Unit>,
    levels: Vec<Vec<String>>,
}

impl Plan {
    /// The order of `units`.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn of(units: impl IntoIterator<Item = Unit>) -> Result<Self, Vec<Flaw>> {
        let (mut all, mut flaws) = (BTreeMap::new(), Vec::new());
        for unit in units {
            if let Some(twice) = all.insert(unit.name.clone(), unit) {
                flaws.push(Flaw::Twice(twice.name));
            }
        }
        for unit in all.values() {
            for needed in unit.requires.iter().chain(&unit.wants) {
                match all.get(needed) {
                    None => flaws
                        .push(Flaw::Unknown { unit: unit.name.clone(), missing: needed.clone() }),
                    Some(later) if later.phase > unit.phase && unit.requires.contains(needed) => {
                        flaws.push(Flaw::Later {
                            unit: unit.name.clone(),
                            phase: unit.phase,
                            later: needed.clone(),
                            its: later.phase,
                        });
                    }
                    Some(_) => {}
                }
            }
        }
        let required = graph(&all, |_, _| false);
        flaws.extend(tarjan_scc(&required).iter().filter_map(|among| cycle(&required, among)));
        if !flaws.is_empty() {
            return Err(flaws);
        }
        let levels = levels(&all, &ordered(&all));
        Ok(Self { units: all, levels })
    }

    /// The part of it that is `names`: what the others are depended on for is left to
    /// those who run them.
    #[must_use]
    pub fn only(&self, names: &BTreeSet<String>) -> Self {
        let mut units = self.units.clone();
        units.retain(|name, _| names.contains(name));
        for unit in units.values_mut() {
            unit.requires.retain(|needed| names.contains(needed));
            unit.wants.retain(|needed| names.contains(needed));
        }
        let levels = levels(&units, &ordered(&units));
        Self { units, levels }
    }

    /// The units, by name.
    pub fn units(&self) -> &BTreeMap<String, Unit> {
        &self.units
    }

    /// The names of each level, the first one first.
    pub fn levels(&self) -> &[Vec<String>] {
        &self.levels
    }

    /// The level of a unit, from 0.
    pub fn level(&self, name: &str) -> Option<usize> {
        self.levels.iter().position(|level| level.iter().any(|unit| unit == name))
    }

    /// Who depends on `name`, and has to be gone before it goes.
    pub fn dependents(&self, name: &str) -> BTreeSet<&str> {
        let level = self.level(name);
        let needs = |unit: &Unit| unit.requires.contains(name) || unit.wants.contains(name);
        // Of two that want each other, the later one goes first.
        let dependents = self.units.values().filter(|unit| needs(unit));
        dependents.map(|unit| unit.name.as_str()).filter(|who| self.level(who) > level).collect()
    }

    /// As a flowchart of Mermaid: an arrow from what is needed to who needs it, a
    /// dotted one where it isn't required.
    pub fn to_mermaid(&self) -> String {
        let mut text = "flowchart LR\n".to_owned();
        for (number, level) in self.levels.iter().enumerate() {
            text += &format!("  subgraph level{number}[\"level {number}\"]\n");
            for name in level {
                text += &format!("    {name}\n");
            }
            text += "  end\n";
        }
        for unit in self.units.values() {
            for needed in &unit.requires {
                text += &format!("  {needed} --> {}\n", unit.name);
            }
            for needed in &unit.wants {
                text += &format!("  {needed} -.-> {}\n", unit.name);
            }
        }
        text
    }
}

type Graph<'a> = DiGraphMap<&'a str, ()>;

/// From each unit to those it requires, and to those it wants where `also` says so.
fn graph<'a>(units: &'a BTreeMap<String, Unit>, also: impl Fn(&str, &str) -> bool) -> Graph<'a> {
    let mut graph = Graph::new();
    for unit in units.values() {
        graph.add_node(&unit.name);
        let wants = unit.wants.iter().filter(|wanted| also(&unit.name, wanted));
        for needed in unit.requires.iter().chain(wants) {
            if let Some((needed, _)) = units.get_key_value(needed) {
                graph.add_edge(&unit.name, needed, ());
            }
        }
    }
    graph
}

/// As [`graph`] of an order that there is: of those that only want each other, none
/// waits for the other, nor does one that starts earlier anyway.
fn ordered(units: &BTreeMap<String, Unit>) -> Graph<'_> {
    let earlier = |unit: &str, wanted: &str| match (units.get(unit), units.get(wanted)) {
        (Some(unit), Some(wanted)) => wanted.phase <= unit.phase,
        _ => false,
    };
    let all = graph(units, earlier);
    let mut group = HashMap::new();
    for (number, among) in tarjan_scc(&all).into_iter().enumerate() {
        group.extend(among.into_iter().map(|name| (name, number)));
    }
    let apart =
        |unit: &str, wanted: &str| earlier(unit, wanted) && group.get(unit) != group.get(wanted);
    graph(units, apart)
}

/// The shortest way around in `among`, which lead to each other, from the first of
/// them by name; `None` where it is one that doesn't need itself.
fn cycle(graph: &Graph<'_>, among: &[&str]) -> Option<Flaw> {
    let from = *among.iter().min()?;
    let mut came: HashMap<&str, &str> = HashMap::new();
    let mut next = VecDeque::from([from]);
    while let Some(unit) = next.pop_front() {
        for needed in graph.neighbors(unit) {
            if needed == from {
                let back = std::iter::successors(Some(unit), |at| came.get(at).copied());
                let mut way: Vec<String> = back.map(str::to_owned).collect();
                way.reverse();
                return Some(Flaw::Cycle(way));
            }
            if !came.contains_key(needed) {
                came.insert(needed, unit);
                next.push_back(needed);
            }
        }
    }
    None
}

/// Phase by phase; in a phase, whoever needs another is in a later level than it.
fn levels(units: &BTreeMap<String, Unit>, order: &Graph<'_>) -> Vec<Vec<String>> {
    // It leads from those who need to what they need, so the last is the first.
    let mut sorted = toposort(order, None).unwrap_or_default();
    sorted.reverse();
    sorted.sort_by_key(|name| units.get(*name).map(|unit| unit.phase));
    let mut level_of: HashMap<&str, usize> = HashMap::new();
    let mut levels: Vec<Vec<String>> = Vec::new();
    let (mut first, mut phase) = (0, None);
    for name in sorted {
        let its = units.get(name).map(|unit| unit.phase);
        if its != phase {
            (first, phase) = (levels.len(), its);
        }
        let after = order.neighbors(name).filter_map(|needed| level_of.get(needed)).max();
        let level = after.map_or(first, |after| first.max(after + 1));
        level_of.insert(name, level);
        if levels.len() <= level {
            levels.resize(level + 1, vec![]);
        }
        levels[level].push(name.to_owned());
    }
    for level in &mut levels {
        level.sort();
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, requires: &[&str], wants: &[&str]) -> Unit {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Unit {
            name: name.to_owned(),
            kind: Kind::Service,
            phase: Phase::Services,
            requires: names(requires),
            wants: names(wants),
            timeout: Duration::from_secs(1),
        }
    }

    fn of(phase: Phase, unit: Unit) -> Unit {
        Unit { phase, ..unit }
    }

    fn flaws(units: Vec<Unit>) -> Vec<String> {
        let flaws = Plan::of(units).expect_err("it has flaws");
        flaws.iter().map(ToString::to_string).collect()
    }

    fn numbered(count: usize) -> Vec<Unit> {
        let next = |n: usize| format!("u{}", (n + 1) % count);
        (0..count).map(|n| unit(&format!("u{n}"), &[&next(n)], &[])).collect()
    }

    #[test]
    fn who_needs_another_starts_after_it() {
        let plan = Plan::of([
            unit("gateway", &["hooks"], &["audit"]),
            unit("hooks", &["store"], &[]),
            of(Phase::Infrastructure, unit("store", &[], &[])),
            unit("audit", &[], &[]),
            of(Phase::Coordination, unit("watcher", &[], &[])),
        ])
        .unwrap();
        let levels: Vec<String> = plan.levels().iter().map(|level| level.join(" ")).collect();
        assert_eq!(levels, ["store", "audit hooks", "gateway", "watcher"]);
        assert_eq!(plan.dependents("audit"), BTreeSet::from(["gateway"]));
        assert_eq!(plan.level("watcher"), Some(3));
    }

    #[test]
    fn cycles_are_named_from_one_end_to_the_other() {
        for (count, said) in [
            (1, "1 wait for each other: u0 → u0"),
            (2, "2 wait for each other: u0 → u1 → u0"),
            (7, "7 wait for each other: u0 → u1 → u2 → u3 → u4 → u5 → u6 → u0"),
        ] {
            assert_eq!(flaws(numbered(count)), [said]);
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let said = flaws(vec![
            unit("a", &["b"], &["ghost"]),
            unit("b", &["a"], &[]),
            unit("c", &["late"], &[]),
            of(Phase::Coordination, unit("late", &[], &[])),
            unit("c", &["late"], &[]),
        ]);
        assert_eq!(
            said,
            [
                "`c` is there twice",
                "`a` depends on `ghost`, which isn't there",
                "`c` of phase services requires `late`, of the later phase coordination",
                "2 wait for each other: a → b → a",
            ]
        );
    }

    #[test]
    fn those_that_only_want_each_other_do_not_wait_for_each_other() {
        let plan = Plan::of([
            unit("a", &[], &["b"]),
            unit("b", &[], &["a"]),
            unit("c", &["b"], &[]),
            of(Phase::Infrastructure, unit("d", &[], &["c"])),
        ])
        .unwrap();
        let levels: Vec<String> = plan.levels().iter().map(|level| level.join(" ")).collect();
        assert_eq!(levels, ["d", "a b", "c"]);
    }

    #[test]
    fn a_part_of_it_waits_for_nobody_else() {
        let plan = Plan::of([unit("a", &[], &[]), unit("b", &["a"], &[]), unit("c", &["b"], &[])]);
        let plan = plan.unwrap().only(&BTreeSet::from(["b".to_owned(), "c".to_owned()]));
        assert_eq!(plan.levels(), [["b".to_owned()], ["c".to_owned()]]);
        assert!(plan.units()["b"].requires.is_empty());
    }

    #[test]
    fn mermaid_shows_levels_and_both_kinds_of_arrows() {
        let plan = Plan::of([unit("a", &[], &[]), unit("b", &["a"], &[]), unit("c", &[], &["a"])]);
        assert_eq!(
            plan.unwrap().to_mermaid(),
            "flowchart LR\n  subgraph level0[\"level 0\"]\n    a\n  end\n  subgraph \
             level1[\"level 1\"]\n    b\n    c\n  end\n  a --> b\n  a -.-> c\n"
        );
    }

    /// Random graphs of 200 units: what has an order gets one in which everything
    /// comes after what it needs, and what has none is told of a real cycle.
    #[test]
    fn random_graphs_get_an_order_or_a_cycle() {
        const UNITS: usize = 200;
        let phases = [Phase::Infrastructure, Phase::Services, Phase::Coordination];
        bolero::check!()
            .with_type::<(Vec<(u8, u8, bool)>, bool)>()
            .with_iterations(2_000)
            .for_each(|(edges, forward)| {
                let mut units: Vec<Unit> =
                    (0..UNITS).map(|n| unit(&format!("u{n:03}"), &[], &[])).collect();
                for (n, unit) in units.iter_mut().enumerate() {
                    unit.phase = phases[n * phases.len() / UNITS];
                }
                for (from, to, required) in edges {
                    let (mut from, mut to) = (usize::from(*from) % UNITS, usize::from(*to) % UNITS);
                    if *forward {
                        if from == to {
                            continue;
                        }
                        (from, to) = (from.max(to), from.min(to));
                    }
                    let needed = units[to].name.clone();
                    match required {
                        true => units[from].requires.insert(needed),
                        false => units[from].wants.insert(needed),
                    };
                }
                let needs: BTreeMap<String, Unit> =
                    units.iter().map(|unit| (unit.name.clone(), unit.clone())).collect();
                match Plan::of(units) {
                    Ok(plan) => {
                        assert_eq!(plan.levels().concat().len(), UNITS);
                        for unit in needs.values() {
                            for needed in &unit.requires {
                                assert!(plan.level(needed) < plan.level(&unit.name));
                            }
                            for wanted in unit.wants.iter().filter(|_| *forward) {
                                assert!(plan.level(wanted) < plan.level(&unit.name));
                            }
                        }
                    }
                    Err(flaws) => {
                        assert!(!forward, "{flaws:?}");
                        for flaw in flaws {
                            match flaw {
                                Flaw::Cycle(way) => {
                                    for (at, unit) in way.iter().enumerate() {
                                        let next = &way[(at + 1) % way.len()];
                                        assert!(needs[unit].requires.contains(next));
                                    }
                                }
                                Flaw::Later { phase, its, .. } => assert!(its > phase),
                                other => panic!("{other}"),
                            }
                        }
                    }
                }
            });
    }
}

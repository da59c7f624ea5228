//! From a mapping to the plans of one direction, or to what is wrong with it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use prost_reflect::{Cardinality, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use crate::{
    expression::Expression,
    fit,
    mapping::{EnumMapping, Mapping, MessageMapping},
    pairs::Pairs,
    path::{Path, inside_of},
    plan::{How, Numbers, Plan, Step, find_same_bytes},
    report::{Direction, Finding},
    rules::{Rules, View},
};

pub(crate) const NO_COUNTERPART: &str = "it has no counterpart";

/// Makes the plans of one direction.
pub(crate) struct Planner<'m> {
    pub(crate) direction: Direction,
    mapping: &'m Mapping,
    pairs: &'m Pairs<'m>,
    /// Those from `planned` on have no steps yet.
    pub(crate) plans: Vec<Plan>,
    planned: usize,
    pub(crate) places: HashMap<String, usize>,
    numbers: HashMap<String, Arc<Numbers>>,
    pub(crate) problems: BTreeSet<Finding>,
    pub(crate) losses: Vec<Finding>,
}

/// What is known of one message while its plan is made.
struct Draft<'r> {
    of: String,
    view: View<'r>,
    steps: Vec<Step>,
    /// What of the source is read, or said to be dropped.
    covered: Vec<Path>,
}

impl<'m> Planner<'m> {
    pub(crate) fn new(direction: Direction, mapping: &'m Mapping, pairs: &'m Pairs<'m>) -> Self {
        Self {
            direction,
            mapping,
            pairs,
            plans: Vec::new(),
            planned: 0,
            places: HashMap::new(),
            numbers: HashMap::new(),
            problems: BTreeSet::new(),
            losses: Vec::new(),
        }
    }

    /// Plans all messages and enums of the package, and all that these lead to.
    pub(crate) fn plan_all(&mut self) {
        for source in self.pairs.messages(self.direction) {
            match self.pairs.message(self.direction, &source) {
                Some(target) => drop(self.plan(&source, &target)),
                None => self.lone(source.full_name()),
            }
        }
        for source in self.pairs.enums(self.direction) {
            match self.pairs.of_enum(self.direction, &source) {
                Some(target) => drop(self.numbers(&source, &target)),
                None => self.lone(source.full_name()),
            }
        }
        while let Some(plan) = self.plans.get(self.planned) {
            let (source, target) = (plan.source.clone(), plan.target.clone());
            self.plans[self.planned].steps = self.steps(&source, &target);
            self.planned += 1;
        }
        find_same_bytes(&mut self.plans);
    }

    fn lone(&mut self, full_name: &str) {
        let (direction, of) = (self.direction, full_name.to_owned());
        self.losses.push(Finding { direction, of, what: NO_COUNTERPART.to_owned() });
    }

    fn problem(&mut self, of: &str, what: String) {
        let direction = self.direction;
        self.problems.insert(Finding { direction, of: of.to_owned(), what });
    }

    /// The place of the plan that makes `target` of `source`. Its steps come later: a
    /// message can hold its own type.
    fn plan(&mut self, source: &MessageDescriptor, target: &MessageDescriptor) -> usize {
        let next = self.plans.len();
        let place = *self.places.entry(source.full_name().to_owned()).or_insert(next);
        if place == next {
            self.plans.push(Plan {
                source: source.clone(),
                target: target.clone(),
                steps: Vec::new(),
                same_bytes: false,
                is_exact: false,
            });
        }
        place
    }

    fn steps(&mut self, source: &MessageDescriptor, target: &MessageDescriptor) -> Vec<Step> {
        let none = MessageMapping::default();
        let name = self.pairs.old_name(self.direction, source.full_name());
        let mapping = name.and_then(|name| self.mapping.messages.get(name)).unwrap_or(&none);
        let (old, new) = match self.direction {
            Direction::Upgrade => (source, target),
            Direction::Downgrade => (target, source),
        };
        let (rules, wrong) = Rules::resolve(mapping, old, new);
        let of = source.full_name().to_owned();
        for (direction, what) in wrong {
            self.problems.insert(Finding { direction, of: of.clone(), what });
        }
        let view = rules.view(self.direction);
        let covered = view.drop.to_vec();
        let mut draft = Draft { of, view, steps: Vec::new(), covered };
        self.overlaps(&draft);
        for (to, text) in draft.view.set {
            match Expression::compile(text, source, to.field()) {
                Ok(expression) => {
                    draft.covered.extend(expression.reads.iter().cloned());
                    let expression = Arc::new(expression);
                    draft.steps.push(Step::Set { to: to.clone(), expression });
                }
                Err(why) => self.problem(&draft.of, format!("`{to}` = {text:?}: {why}")),
            }
        }
        for (from, to) in draft.view.pairs.clone() {
            self.copy(&mut draft, from, to);
        }
        self.fill(&mut draft, Some((None, source)), None, target);
        self.leftovers(&draft, None, source);
        // From the outside in: what makes a message comes before what is put into it.
        draft.steps.sort_by_key(|step| match step {
            Step::Set { .. } => 0,
            Step::Enter { .. } => 1,
            Step::Copy { .. } => 2,
        });
        draft.steps
    }

    /// Tells of paths that get two values, or are copied twice.
    fn overlaps(&mut self, draft: &Draft<'_>) {
        let meet = |paths: &[&Path]| {
            let mut met = Vec::new();
            for (nth, path) in paths.iter().enumerate() {
                let others = paths[nth + 1..].iter();
                met.extend(
                    others
                        .filter(|other| {
                            path == *other || path.is_below(other) || other.is_below(path)
                        })
                        .map(|other| (path.to_string(), other.to_string())),
                );
            }
            met
        };
        for (a, b) in meet(&draft.view.taken()) {
            self.problem(
                &draft.of,
                format!("`{a}` and `{b}` of the target are both given a value"),
            );
        }
        // A pair whose source is dropped is none; what is inside of one isn't dropped.
        let dropped = draft.view.drop.iter();
        let inside =
            dropped.filter(|one| draft.view.pairs.iter().any(|(from, _)| one.is_below(from)));
        let read: Vec<&Path> =
            draft.view.pairs.iter().map(|(from, _)| *from).chain(inside).collect();
        for (a, b) in meet(&read) {
            self.problem(&draft.of, format!("`{a}` and `{b}` of the source are both mapped"));
        }
    }

    /// One step more: what is at `from` goes to `to`.
    fn copy(&mut self, draft: &mut Draft<'_>, from: &Path, to: &Path) {
        draft.covered.push(from.clone());
        match self.fit(from.field(), to.field()) {
            Ok(how) => draft.steps.push(Step::Copy { from: from.clone(), to: to.clone(), how }),
            Err(why) => self.problem(&draft.of, format!("`{from}` to `{to}`: {why}")),
        }
    }

    /// Fills what is in `target`, at `to` of the whole, from same-named fields of
    /// `source` where there is one, at its path of the whole.
    fn fill(
        &mut self,
        draft: &mut Draft<'_>,
        source: Option<(Option<&Path>, &MessageDescriptor)>,
        to: Option<&Path>,
        target: &MessageDescriptor,
    ) {
        for field in target.fields() {
            let to = Path::within(to, field.clone());
            if draft.view.taken().contains(&&to) {
                continue;
            }
            let same_named = source.and_then(|(at, message)| {
                Some(Path::within(at, message.get_field_by_name(field.name())?))
            });
            let from = same_named.filter(|from| {
                let paired = draft.view.pairs.iter().any(|(paired, _)| *paired == from);
                !paired && !draft.view.drop.contains(from)
            });
            let parts = draft.view.target_parts(&to);
            let into = inside_of(&field);
            match (from, into) {
                (Some(from), Some(into)) if parts || draft.view.source_parts(&from) => {
                    let Some(inside) = inside_of(from.field()) else {
                        self.copy(draft, &from, &to);
                        continue;
                    };
                    draft.steps.push(Step::Enter { from: from.clone(), to: to.clone() });
                    draft.covered.push(from.clone());
                    self.fill(draft, Some((Some(&from), &inside)), Some(&to), &into);
                    self.leftovers(draft, Some(&from), &inside);
                }
                (Some(from), _) => self.copy(draft, &from, &to),
                (None, Some(into)) if parts => self.fill(draft, None, Some(&to), &into),
                (None, _) => {
                    let what = format!(
                        "`{to}` of the target gets no value: map it, set it or name it in `unset`"
                    );
                    self.problem(&draft.of, what);
                }
            }
        }
    }

    /// Tells what of `source`, at `from` of the whole, nothing is made of.
    fn leftovers(&mut self, draft: &Draft<'_>, from: Option<&Path>, source: &MessageDescriptor) {
        for field in source.fields() {
            let path = Path::within(from, field.clone());
            if draft.covered.contains(&path) {
                continue;
            }
            match inside_of(&field) {
                Some(inside) if draft.covered.iter().any(|covered| covered.is_below(&path)) => {
                    self.leftovers(draft, Some(&path), &inside);
                }
                _ => {
                    let what = format!(
                        "`{path}` of the source is read by nothing: map it or name it in `drop`"
                    );
                    self.problem(&draft.of, what);
                }
            }
        }
    }

    /// What makes every value of `to` of values of `from`.
    fn fit(&mut self, from: &FieldDescriptor, to: &FieldDescriptor) -> Result<How, String> {
        for field in [from, to] {
            let name = field.name();
            // Where it is unset it reads as that, and the other version can't tell.
            if field.field_descriptor_proto().default_value.is_some() {
                return Err(format!("`{name}` has a default of its own; set it"));
            }
            if field.cardinality() == Cardinality::Required {
                return Err(format!("`{name}` is required; set it"));
            }
            if matches!(field.kind(), Kind::Enum(of) if of.default_value().number() != 0) {
                return Err(format!("the first value of the enum of `{name}` isn't 0; set it"));
            }
        }
        if (from.is_list(), from.is_map()) != (to.is_list(), to.is_map()) {
            let shape = |field: &FieldDescriptor| match (field.is_map(), field.is_list()) {
                (true, _) => "a map",
                (_, true) => "a list",
                _ => "a single value",
            };
            return Err(format!("{} doesn't fit {}; set it", shape(from), shape(to)));
        }
        let (from_kind, to_kind) = (from.kind(), to.kind());
        if let (Kind::Message(from), Kind::Message(to)) = (&from_kind, &to_kind)
            && from.is_map_entry()
            && to.is_map_entry()
        {
            let key = self
                .fit_kinds(&from.map_entry_key_field().kind(), &to.map_entry_key_field().kind());
            if key != Ok(How::Keep) {
                return Err("the keys' types differ; set it".into());
            }
            let (from, to) = (from.map_entry_value_field(), to.map_entry_value_field());
            let value = self.fit_kinds(&from.kind(), &to.kind())?;
            return Ok(each(value));
        }
        let how = self.fit_kinds(&from_kind, &to_kind)?;
        Ok(if from.is_list() { each(how) } else { how })
    }

    fn fit_kinds(&mut self, from: &Kind, to: &Kind) -> Result<How, String> {
        if let Some(how) = fit::scalar(from, to) {
            return Ok(how);
        }
        match (from, to) {
            (Kind::Message(from), Kind::Message(to)) if from == to => Ok(How::Keep),
            (Kind::Message(from), Kind::Message(to)) => {
                self.fit_messages(from, to).map(How::Message)
            }
            (Kind::Enum(from), Kind::Enum(to)) => {
                if from == to {
                    return Ok(How::Keep);
                }
                match self.pairs.of_enum(self.direction, from) {
                    Some(other) if other == *to => {
                        let numbers = self.numbers(from, to);
                        Ok(if numbers.is_identity() { How::Keep } else { How::Renumber(numbers) })
                    }
                    _ => Err(strangers(from.full_name(), to.full_name())),
                }
            }
            (from, to) => Err(format!("not every {from:?} is a {to:?}; set it")),
        }
    }

    /// The place of the plan that makes `to` of `from`.
    pub(crate) fn fit_messages(
        &mut self,
        from: &MessageDescriptor,
        to: &MessageDescriptor,
    ) -> Result<usize, String> {
        match self.pairs.message(self.direction, from) {
            Some(other) if other == *to => Ok(self.plan(from, to)),
            _ => Err(strangers(from.full_name(), to.full_name())),
        }
    }

    fn numbers(&mut self, from: &EnumDescriptor, to: &EnumDescriptor) -> Arc<Numbers> {
        if let Some(numbers) = self.numbers.get(from.full_name()) {
            return numbers.clone();
        }
        let none = EnumMapping::default();
        let name = self.pairs.old_name(self.direction, from.full_name());
        let mapping = name.and_then(|name| self.mapping.enums.get(name)).unwrap_or(&none);
        let one_way = match self.direction {
            Direction::Upgrade => &mapping.upgrade,
            Direction::Downgrade => &mapping.downgrade,
        };
        let both_ways = |name: &str| match self.direction {
            Direction::Upgrade => mapping.values.get(name).map(String::as_str),
            Direction::Downgrade => {
                let mut values = mapping.values.iter();
                values.find(|(_, new)| *new == name).map(|(old, _)| old.as_str())
            }
        };
        let mut of = HashMap::new();
        let mut wrong = Vec::new();
        for value in from.values() {
            let name = value.name();
            let other =
                one_way.get(name).map(String::as_str).or_else(|| both_ways(name)).unwrap_or(name);
            match to.get_value_by_name(other) {
                // Another name of the same number may have come before.
                Some(other) => drop(of.entry(value.number()).or_insert(other.number())),
                None => wrong.push((value.number(), name.to_owned(), other.to_owned())),
            }
        }
        for (number, name, other) in wrong {
            if !of.contains_key(&number) {
                let what =
                    format!("`{name}` is nothing there: `{}` has no `{other}`", to.full_name());
                self.problem(from.full_name(), what);
            }
        }
        let both_ways = mapping.values.iter().map(|(old, new)| match self.direction {
            Direction::Upgrade => old,
            Direction::Downgrade => new,
        });
        let named = one_way.keys().chain(both_ways);
        let unknown: Vec<String> =
            named.filter(|name| from.get_value_by_name(name).is_none()).cloned().collect();
        for name in unknown {
            self.problem(from.full_name(), format!("it has no `{name}`, which the mapping names"));
        }
        let numbers = Arc::new(Numbers { target: to.clone(), of });
        self.numbers.insert(from.full_name().to_owned(), numbers.clone());
        numbers
    }
}

fn each(how: How) -> How {
    match how {
        How::Keep => How::Keep,
        how => How::Each(Box::new(how)),
    }
}

fn strangers(a: &str, b: &str) -> String {
    format!("`{a}` and `{b}` are no versions of one another; name them as such, or set it")
}

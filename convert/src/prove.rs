//! From a mapping and the descriptors of both versions to plans, or to what is
//! wrong with it.

use std::{collections::HashMap, sync::Arc};

use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor};

use crate::{
    losses,
    mapping::Mapping,
    methods::{MethodPair, Methods},
    pairs::Pairs,
    plan::Plan,
    planner::Planner,
    report::{Direction, Report},
    transform::Transform,
};

/// A mapping that was proven: how messages, requests and answers of one version
/// become those of the other.
#[derive(Clone, Debug)]
pub struct Conversion {
    upgrade: Way,
    downgrade: Way,
}

/// One direction of it.
#[derive(Clone, Debug)]
struct Way {
    messages: HashMap<String, Transform>,
    methods: HashMap<String, Method>,
}

impl Way {
    fn of(Planner { plans, places, .. }: Planner<'_>) -> Self {
        let plans: Arc<[Plan]> = plans.into();
        let transform = |place| Transform { plans: plans.clone(), place };
        let messages = places.into_iter().map(|(name, place)| (name, transform(place)));
        Self { messages: messages.collect(), methods: HashMap::new() }
    }
}

/// What becomes of calls of one method.
#[derive(Clone, Debug)]
pub struct Method {
    /// The path of its counterpart, such as `/shop.v2.Shop/Buy`.
    pub path: String,
    /// Makes the counterpart's requests of its own.
    pub request: Transform,
    /// Makes its own answers of the counterpart's.
    pub answer: Transform,
}

impl Conversion {
    /// The conversion by `mapping`, and what its proof found; `None` where that is
    /// problems.
    pub fn prove(
        mapping: &Mapping,
        old: &DescriptorPool,
        new: &DescriptorPool,
    ) -> (Report, Option<Self>) {
        let pairs = Pairs::find(mapping, old, new);
        let mut upgrade = Planner::new(Direction::Upgrade, mapping, &pairs);
        let mut downgrade = Planner::new(Direction::Downgrade, mapping, &pairs);
        let mut methods = Methods::default();
        methods.pair(mapping, &pairs, &mut upgrade, &mut downgrade);
        for planner in [&mut upgrade, &mut downgrade] {
            planner.plan_all();
        }
        let Methods { pairs: methods, mut problems, mut losses } = methods;
        problems.extend(pairs.wrong.clone());
        for planner in [&mut upgrade, &mut downgrade] {
            problems.append(&mut planner.problems);
            losses.append(&mut planner.losses);
        }
        let mut report = Report { problems: problems.into_iter().collect(), losses: Vec::new() };
        if !report.problems.is_empty() {
            return (report, None);
        }
        losses.append(&mut losses::find(&mut upgrade.plans, &mut downgrade.plans));
        losses.sort();
        report.losses = losses;
        let (mut upgrade, mut downgrade) = (Way::of(upgrade), Way::of(downgrade));
        for MethodPair { old, new } in methods {
            let transform = |way: &Way, message: &MessageDescriptor| {
                way.messages.get(message.full_name()).cloned()
            };
            let of =
                |there: &Way, back: &Way, asked: &MethodDescriptor, served: &MethodDescriptor| {
                    let request = transform(there, &asked.input())?;
                    let answer = transform(back, &served.output())?;
                    Some((path(asked), Method { path: path(served), request, answer }))
                };
            let older = of(&upgrade, &downgrade, &old, &new);
            let newer = of(&downgrade, &upgrade, &new, &old);
            upgrade.methods.extend(older);
            downgrade.methods.extend(newer);
        }
        (report, Some(Self { upgrade, downgrade }))
    }

    /// What converts messages of the type `full_name`.
    pub fn message(&self, direction: Direction, full_name: &str) -> Option<&Transform> {
        self.way(direction).messages.get(full_name)
    }

    /// What becomes of calls to `path`: of the older version where they are
    /// upgraded, of the newer one where they are downgraded.
    pub fn method(&self, direction: Direction, path: &str) -> Option<&Method> {
        self.way(direction).methods.get(path)
    }

    /// All methods of the version that is converted from in `direction`, by their
    /// paths, in no order.
    pub fn methods(&self, direction: Direction) -> impl Iterator<Item = (&str, &Method)> {
        self.way(direction).methods.iter().map(|(path, method)| (path.as_str(), method))
    }

    /// All messages that are converted in `direction`, in no order.
    pub fn messages(&self, direction: Direction) -> impl Iterator<Item = &Transform> {
        self.way(direction).messages.values()
    }

    fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Upgrade => &self.upgrade,
            Direction::Downgrade => &self.downgrade,
        }
    }
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

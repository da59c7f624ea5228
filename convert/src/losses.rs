//! What doesn't come back from a round trip.
//!
//! A field comes back when the way there copies it and the way back copies it from
//! where it went. What is computed may come back, but that isn't proven, so it
//! counts as lost.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use crate::{
    path::{Path, inside_of},
    plan::{How, Plan, Step, close_over},
    report::{Direction, Finding},
};

/// What is lost from each version to the other and back. Marks the plans that lose
/// nothing, with all that they lead to.
pub(crate) fn find(upgrade: &mut [Plan], downgrade: &mut [Plan]) -> Vec<Finding> {
    let (there, back) = (
        of_all(Direction::Upgrade, upgrade, downgrade),
        of_all(Direction::Downgrade, downgrade, upgrade),
    );
    for (plans, losses) in [(upgrade, &there), (downgrade, &back)] {
        let exact = close_over(plans, |place| losses[place].is_empty());
        for (plan, exact) in plans.iter_mut().zip(exact) {
            plan.is_exact = exact;
        }
    }
    there.into_iter().chain(back).flatten().collect()
}

fn of_all(direction: Direction, plans: &[Plan], reverse: &[Plan]) -> Vec<Vec<Finding>> {
    let of = |plan: &Plan| {
        let back = reverse.iter().find(|back| back.source == plan.target);
        let losses = match back {
            Some(back) => of_one(plan, back),
            None => vec!["nothing of it comes back".to_owned()],
        };
        let of = plan.source.full_name();
        losses.into_iter().map(|what| Finding { direction, of: of.to_owned(), what }).collect()
    };
    plans.iter().map(of).collect()
}

fn of_one(plan: &Plan, back: &Plan) -> Vec<String> {
    let mut losses = Vec::new();
    let (mut carried, mut entered) = (Vec::new(), Vec::new());
    for step in &plan.steps {
        match step {
            Step::Set { .. } => {}
            Step::Enter { from, to } => {
                let returns = |step: &Step| matches!(step, Step::Enter { from: there, to: here } if there == to && here == from);
                // What else is put into it makes it, too.
                let only_so = plan.steps.iter().all(|step| match step {
                    Step::Set { to: other, .. } => !other.is_below(to),
                    Step::Enter { from: source, to: other }
                    | Step::Copy { from: source, to: other, .. } => {
                        !other.is_below(to) || source.is_below(from)
                    }
                });
                if only_so && back.steps.iter().any(returns) {
                    entered.push(from);
                } else {
                    losses.push(unentered(from));
                }
            }
            Step::Copy { from, to, how } => {
                let returned = back.steps.iter().find_map(|step| match step {
                    Step::Copy { from: there, to: here, how } if there == to && here == from => {
                        Some(how)
                    }
                    _ => None,
                });
                if let Some(returned) = returned {
                    carried.push((from, to));
                    losses.extend(of_numbers(from, how, returned));
                    losses.extend(of_presence(from, to));
                }
            }
        }
    }
    of_oneofs(&carried, &mut losses);
    let outside = carried.iter().flat_map(|(from, _)| from.prefixes());
    losses.extend(outside.filter(|prefix| !entered.contains(&prefix)).map(|path| unentered(&path)));
    let carried: Vec<&Path> = carried.into_iter().map(|(from, _)| from).collect();
    of_fields(None, &plan.source, &carried, &entered, &mut losses);
    losses.sort();
    losses.dedup();
    losses
}

fn unentered(path: &Path) -> String {
    format!("whether `{path}` is set, where nothing in it is, is lost")
}

/// What of the fields of `message`, at `at` of the whole, isn't carried. Of what is
/// entered each field has to be.
fn of_fields(
    at: Option<&Path>,
    message: &MessageDescriptor,
    carried: &[&Path],
    entered: &[&Path],
    losses: &mut Vec<String>,
) {
    for field in message.fields() {
        let path = Path::within(at, field.clone());
        let parts = entered.contains(&&path) || carried.iter().any(|one| one.is_below(&path));
        match inside_of(&field) {
            Some(inside) if parts => of_fields(Some(&path), &inside, carried, entered, losses),
            _ if carried.contains(&&path) => {}
            _ => losses.push(format!("what `{path}` holds doesn't come back")),
        }
    }
}

fn of_presence(from: &Path, to: &Path) -> Option<String> {
    let (from_field, to_field) = (from.field(), to.field());
    let lost = from_field.supports_presence() && !to_field.supports_presence();
    lost.then(|| format!("whether `{from}` is set to its default, or unset, is lost"))
}

fn of_numbers(from: &Path, how: &How, returned: &How) -> Vec<String> {
    let Some(values) = enum_of(from.field()) else { return Vec::new() };
    let convert = |how: &How, number: i32| match how.numbers() {
        Some(numbers) => numbers.of.get(&number).copied().unwrap_or(number),
        None => number,
    };
    let changed = values.values().filter(|value| {
        let number = value.number();
        convert(returned, convert(how, number)) != number
    });
    changed.map(|value| format!("`{}` of `{from}` comes back as another", value.name())).collect()
}

/// The enum that `field` holds one, a list or a map of.
fn enum_of(field: &FieldDescriptor) -> Option<EnumDescriptor> {
    match field.kind() {
        Kind::Enum(values) => Some(values),
        Kind::Message(entry) if field.is_map() => enum_of(&entry.map_entry_value_field()),
        _ => None,
    }
}

/// What goes to members of one oneof without coming from members of one.
fn of_oneofs(carried: &[(&Path, &Path)], losses: &mut Vec<String>) {
    for (nth, (from, to)) in carried.iter().enumerate() {
        for (other_from, other_to) in &carried[nth + 1..] {
            if to.excludes(other_to) && !from.excludes(other_from) {
                losses.push(format!("only one of `{from}` and `{other_from}` is kept"));
            }
        }
    }
}

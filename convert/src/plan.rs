//! What is done to make a message of one version of one of the other.

use std::{collections::HashMap, sync::Arc};

use prost_reflect::{EnumDescriptor, FieldDescriptor, MessageDescriptor};

use crate::{expression::Expression, path::Path};

/// How messages of one type become messages of another.
pub(crate) struct Plan {
    pub(crate) source: MessageDescriptor,
    pub(crate) target: MessageDescriptor,
    /// In this order: what is computed needs the source while it is whole.
    pub(crate) steps: Vec<Step>,
    /// Whether the bytes of one are the bytes of the other.
    pub(crate) same_bytes: bool,
    /// Whether a round trip gives back what went in.
    pub(crate) is_exact: bool,
}

/// One step.
pub(crate) enum Step {
    /// The value at `to` is computed.
    Set {
        /// Where it goes.
        to: Path,
        /// What gives it.
        expression: Arc<Expression>,
    },
    /// The message at `to` is there where that at `from` is, whatever is in it.
    Enter {
        /// The one looked at.
        from: Path,
        /// The one made.
        to: Path,
    },
    /// What is at `from` goes to `to`.
    Copy {
        /// Where it was.
        from: Path,
        /// Where it goes.
        to: Path,
        /// What is done to it.
        how: How,
    },
}

/// What is done to a value.
#[derive(Clone, PartialEq)]
pub(crate) enum How {
    /// Nothing.
    Keep,
    /// A number becomes one of a wider type.
    Widen(Wide),
    /// An enum's number becomes the other's.
    Renumber(Arc<Numbers>),
    /// A message is made by the plan of this place.
    Message(usize),
    /// This is done to each one of a list, or to each value of a map.
    Each(Box<How>),
}

/// A wider type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wide {
    I64,
    U64,
    F64,
}

/// The numbers of an enum, and what they are in another.
#[derive(PartialEq)]
pub(crate) struct Numbers {
    pub(crate) target: EnumDescriptor,
    pub(crate) of: HashMap<i32, i32>,
}

impl Numbers {
    /// What `number` is in the target. One that neither knows stays; one that
    /// means something else there is an error.
    pub(crate) fn convert(&self, number: i32) -> Result<i32, String> {
        match self.of.get(&number) {
            Some(other) => Ok(*other),
            None if self.target.get_value(number).is_none() => Ok(number),
            None => Err(format!(
                "the number {number} isn't known to the source's enum, and is another's in `{}`",
                self.target.full_name()
            )),
        }
    }

    /// Whether nothing is done, to numbers that aren't known either.
    pub(crate) fn is_identity(&self) -> bool {
        self.of.iter().all(|(from, to)| from == to)
            && self.target.values().all(|value| self.of.contains_key(&value.number()))
    }
}

/// Finds which plans change no byte.
pub(crate) fn find_same_bytes(plans: &mut [Plan]) {
    let same = close_over(plans, |place| plans[place].may_keep_bytes());
    for (plan, same) in plans.iter_mut().zip(same) {
        plan.same_bytes = same;
    }
}

/// For which plans `holds`, and for all that they lead to.
pub(crate) fn close_over(plans: &[Plan], holds: impl Fn(usize) -> bool) -> Vec<bool> {
    let mut all: Vec<bool> = (0..plans.len()).map(holds).collect();
    loop {
        let mut changed = false;
        for (place, plan) in plans.iter().enumerate() {
            if all[place] && !plan.messages().all(|inner| all[inner]) {
                all[place] = false;
                changed = true;
            }
        }
        if !changed {
            return all;
        }
    }
}

impl Plan {
    /// The plans that this one needs.
    pub(crate) fn messages(&self) -> impl Iterator<Item = usize> + '_ {
        self.steps.iter().filter_map(|step| match step {
            Step::Copy { how, .. } => how.message(),
            _ => None,
        })
    }

    /// Whether no step of its own changes a byte: each field is copied as it is to
    /// one of its number and wire type.
    fn may_keep_bytes(&self) -> bool {
        let all = self.source.fields().len();
        let kept = self.steps.iter().all(|step| match step {
            Step::Copy { from, to, how } => {
                let (a, b) = (from.field(), to.field());
                let kinds_agree = match how.innermost() {
                    How::Keep | How::Message(_) => same_wire(&a.kind(), &b.kind()),
                    _ => false,
                };
                from.outer().is_empty()
                    && to.outer().is_empty()
                    && a.number() == b.number()
                    && a.is_group() == b.is_group()
                    && a.supports_presence() == b.supports_presence()
                    && oneof_members(a) == oneof_members(b)
                    && kinds_agree
            }
            _ => false,
        });
        kept && self.steps.len() == all && self.target.fields().len() == all
    }
}

/// The numbers of the fields of which `field` excludes the others.
fn oneof_members(field: &FieldDescriptor) -> Vec<u32> {
    let oneof = field.containing_oneof();
    let mut members: Vec<u32> =
        oneof.iter().flat_map(|oneof| oneof.fields()).map(|field| field.number()).collect();
    members.sort_unstable();
    members
}

fn same_wire(a: &prost_reflect::Kind, b: &prost_reflect::Kind) -> bool {
    use prost_reflect::Kind::{Enum, Message};
    match (a, b) {
        (Enum(_), Enum(_)) => true,
        (Message(a), Message(b)) if a.is_map_entry() && b.is_map_entry() => {
            let fields =
                |of: &MessageDescriptor| (of.map_entry_key_field(), of.map_entry_value_field());
            let ((a_key, a_value), (b_key, b_value)) = (fields(a), fields(b));
            same_wire(&a_key.kind(), &b_key.kind()) && same_wire(&a_value.kind(), &b_value.kind())
        }
        (Message(_), Message(_)) => true,
        _ => a == b,
    }
}

impl How {
    fn innermost(&self) -> &Self {
        match self {
            Self::Each(how) => how.innermost(),
            how => how,
        }
    }

    fn message(&self) -> Option<usize> {
        match self.innermost() {
            Self::Message(place) => Some(*place),
            _ => None,
        }
    }

    /// The numbers it changes, where it changes an enum's.
    pub(crate) fn numbers(&self) -> Option<&Numbers> {
        match self.innermost() {
            Self::Renumber(numbers) => Some(numbers),
            _ => None,
        }
    }
}

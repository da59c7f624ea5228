//! One message becomes another.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{
    DynamicMessage, FieldDescriptor, MessageDescriptor, ReflectMessage as _, Value,
};

use crate::{
    Error,
    path::Path,
    plan::{How, Plan, Step, Wide},
};

/// Makes messages of one type of messages of another.
#[derive(Clone)]
pub struct Transform {
    pub(crate) plans: Arc<[Plan]>,
    pub(crate) place: usize,
}

impl Transform {
    /// The type of what it takes.
    pub fn source(&self) -> &MessageDescriptor {
        &self.plan().source
    }

    /// The type of what it gives.
    pub fn target(&self) -> &MessageDescriptor {
        &self.plan().target
    }

    /// Whether the bytes stay as they are.
    pub fn keeps_bytes(&self) -> bool {
        self.plan().same_bytes
    }

    /// Whether what it makes, converted back, is proven to be what it took: all that
    /// the descriptors know of it, extensions aside. A number that an enum doesn't
    /// know may still be refused.
    pub fn is_exact(&self) -> bool {
        self.plan().is_exact
    }

    /// The encoded `message` in its other version.
    ///
    /// # Errors
    /// When it is no such message, or a value of it has no counterpart.
    pub fn bytes(&self, message: Bytes) -> Result<Bytes, Error> {
        if self.keeps_bytes() {
            return Ok(message);
        }
        let source = self.source();
        let message = DynamicMessage::decode(source.clone(), message).map_err(|why| {
            Error::Decode { message: source.full_name().to_owned(), why: why.to_string() }
        })?;
        Ok(self.message(message)?.encode_to_vec().into())
    }

    /// `message` in its other version. What the descriptors don't know of it isn't
    /// carried over, nor are extensions.
    ///
    /// # Errors
    /// When it is of another type than [`source`](Self::source), or a value of it has
    /// no counterpart.
    pub fn message(&self, message: DynamicMessage) -> Result<DynamicMessage, Error> {
        let (descriptor, source) = (message.descriptor(), self.source());
        if descriptor != *source {
            let message = source.full_name().to_owned();
            let why = format!("it is a `{}` of other descriptors", descriptor.full_name());
            return Err(Error::Decode { message, why });
        }
        convert(&self.plans, self.place, message)
    }

    fn plan(&self) -> &Plan {
        &self.plans[self.place]
    }
}

// By hand: a descriptor's own tells of what it holds, without end where that is itself.
impl fmt::Debug for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transform({} → {})", self.source().full_name(), self.target().full_name())
    }
}

fn convert(
    plans: &[Plan],
    place: usize,
    mut source: DynamicMessage,
) -> Result<DynamicMessage, Error> {
    let plan = &plans[place];
    let mut target = DynamicMessage::new(plan.target.clone());
    for step in &plan.steps {
        match step {
            Step::Set { to, expression } => {
                let value = expression.value(&source, to.field());
                if let Some(value) = value.map_err(|why| of_field(plan, to, why))? {
                    put(&mut target, to, value);
                }
            }
            Step::Enter { from, to } => {
                if inside(&mut source, from.outer()).is_some_and(|at| at.has_field(from.field())) {
                    inside_or_new(&mut target, to.fields());
                }
            }
            Step::Copy { from, to, how } => {
                let within = inside(&mut source, from.outer());
                let is_inside = within.is_some();
                match within.and_then(|within| within.take_field(from.field())) {
                    Some(value) => {
                        let value = carry(plans, plan, to, how, value)?;
                        put(&mut target, to, value);
                    }
                    None if reads_as_a_number(from, to, how, is_inside) => {
                        let value = from.field().default_value();
                        let value = carry(plans, plan, to, how, value)?;
                        let is_told = value.is_default_for_field(to.field());
                        let has_place = is_inside || inside(&mut target, to.outer()).is_some();
                        if !is_told && has_place {
                            put(&mut target, to, value);
                        }
                    }
                    None => {}
                }
            }
        }
    }
    Ok(target)
}

/// Whether nothing at `from` reads as an enum's first value, which may be another
/// one at `to`.
fn reads_as_a_number(from: &Path, to: &Path, how: &How, is_inside: bool) -> bool {
    let is_value = is_inside && !from.field().supports_presence();
    how.numbers().is_some() && (is_value || !to.field().supports_presence())
}

fn carry(plans: &[Plan], plan: &Plan, to: &Path, how: &How, value: Value) -> Result<Value, Error> {
    Ok(match (how, value) {
        (How::Keep, value) => value,
        (How::Widen(Wide::I64), Value::I32(value)) => Value::I64(value.into()),
        (How::Widen(Wide::I64), Value::U32(value)) => Value::I64(value.into()),
        (How::Widen(Wide::U64), Value::U32(value)) => Value::U64(value.into()),
        (How::Widen(Wide::F64), Value::F32(value)) => Value::F64(value.into()),
        (How::Renumber(numbers), Value::EnumNumber(number)) => {
            let number = numbers.convert(number).map_err(|why| of_field(plan, to, why))?;
            Value::EnumNumber(number)
        }
        (How::Message(place), Value::Message(message)) => {
            Value::Message(convert(plans, *place, message)?)
        }
        (How::Each(how), Value::List(values)) => {
            let values = values.into_iter().map(|value| carry(plans, plan, to, how, value));
            Value::List(values.collect::<Result<_, _>>()?)
        }
        (How::Each(how), Value::Map(values)) => {
            let values = values
                .into_iter()
                .map(|(key, value)| Ok((key, carry(plans, plan, to, how, value)?)));
            Value::Map(values.collect::<Result<_, Error>>()?)
        }
        _ => return Err(of_field(plan, to, "its plan doesn't fit its value".into())),
    })
}

/// The message that `outer` leads to, where it is there.
fn inside<'m>(
    message: &'m mut DynamicMessage,
    outer: &[FieldDescriptor],
) -> Option<&'m mut DynamicMessage> {
    let mut at = message;
    for field in outer {
        if !at.has_field(field) {
            return None;
        }
        at = at.get_field_mut(field).as_message_mut()?;
    }
    Some(at)
}

/// The message that `outer` leads to, made where it isn't there.
fn inside_or_new<'m>(
    message: &'m mut DynamicMessage,
    outer: &[FieldDescriptor],
) -> &'m mut DynamicMessage {
    let mut at = message;
    for field in outer {
        let value = at.get_field_mut(field);
        at = value.as_message_mut().expect("paths lead through single messages");
    }
    at
}

fn put(target: &mut DynamicMessage, to: &Path, value: Value) {
    inside_or_new(target, to.outer()).set_field(to.field(), value);
}

fn of_field(plan: &Plan, to: &Path, why: String) -> Error {
    Error::Value { message: plan.target.full_name().to_owned(), field: to.to_string(), why }
}

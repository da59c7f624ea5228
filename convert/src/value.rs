//! Values of Protobuf as values of CEL, and back.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc};

use cel::objects::Key;
use chrono::{DateTime, TimeDelta};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _, Value,
};

const TIMESTAMP: &str = "google.protobuf.Timestamp";
const DURATION: &str = "google.protobuf.Duration";

/// How many values an expression may see at once: each takes some hundred bytes,
/// however few it had in the message.
const MOST: usize = 50_000;

/// What CEL counts as times: the years 1 to 9999, in seconds.
const TIMES: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The field that all of `reads` begin with, as an expression sees it: `null` where
/// it can be unset, and is. Of messages only what is read is there.
pub(crate) fn read(
    message: &DynamicMessage,
    reads: &[&[FieldDescriptor]],
) -> Result<cel::Value, String> {
    let mut reading = Reading { left: MOST };
    reading.field(message, reads)
}

struct Reading {
    left: usize,
}

impl Reading {
    fn field(
        &mut self,
        message: &DynamicMessage,
        reads: &[&[FieldDescriptor]],
    ) -> Result<cel::Value, String> {
        let Some((field, _)) = reads.first().and_then(|read| read.split_first()) else {
            return Ok(cel::Value::Null);
        };
        if field.supports_presence() && !message.has_field(field) {
            return Ok(cel::Value::Null);
        }
        let value = message.get_field(field);
        let inner: Vec<&[FieldDescriptor]> = reads.iter().map(|read| &read[1..]).collect();
        match &*value {
            Value::Message(inside) if inner.iter().all(|rest| !rest.is_empty()) => {
                let mut map = HashMap::new();
                for rest in &inner {
                    let of_same: Vec<_> =
                        inner.iter().copied().filter(|other| other[0] == rest[0]).collect();
                    map.insert(Key::from(rest[0].name()), self.field(inside, &of_same)?);
                }
                Ok(cel::Value::Map(map.into()))
            }
            value => self.whole(value),
        }
    }

    fn whole(&mut self, value: &Value) -> Result<cel::Value, String> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| format!("an expression can see {MOST} values, and here are more"))?;
        Ok(match value {
            Value::Bool(value) => cel::Value::Bool(*value),
            Value::I32(value) | Value::EnumNumber(value) => cel::Value::Int((*value).into()),
            Value::I64(value) => cel::Value::Int(*value),
            Value::U32(value) => cel::Value::UInt((*value).into()),
            Value::U64(value) => cel::Value::UInt(*value),
            Value::F32(value) => cel::Value::Float((*value).into()),
            Value::F64(value) => cel::Value::Float(*value),
            Value::String(value) => cel::Value::String(Arc::new(value.clone())),
            Value::Bytes(value) => cel::Value::Bytes(Arc::new(value.to_vec())),
            Value::Message(message) => self.message(message)?,
            Value::List(values) => {
                let values = values.iter().map(|value| self.whole(value));
                cel::Value::List(Arc::new(values.collect::<Result<_, _>>()?))
            }
            Value::Map(values) => {
                let map = values.iter().map(|(key, value)| Ok((of_key(key), self.whole(value)?)));
                cel::Value::Map(map.collect::<Result<HashMap<_, _>, String>>()?.into())
            }
        })
    }

    fn message(&mut self, message: &DynamicMessage) -> Result<cel::Value, String> {
        let descriptor = message.descriptor();
        match descriptor.full_name() {
            TIMESTAMP => {
                let at = moment(message).ok_or("a time isn't within the years 1 to 9999")?;
                return Ok(cel::Value::Timestamp(at.fixed_offset()));
            }
            DURATION => {
                let span = span(message).ok_or("a duration is too long")?;
                return Ok(cel::Value::Duration(span));
            }
            _ => {}
        }
        let mut map = HashMap::new();
        for field in descriptor.fields() {
            let value = match field.supports_presence() && !message.has_field(&field) {
                true => cel::Value::Null,
                false => self.whole(&message.get_field(&field))?,
            };
            map.insert(Key::from(field.name()), value);
        }
        Ok(cel::Value::Map(map.into()))
    }
}

fn of_key(key: &MapKey) -> Key {
    match key {
        MapKey::Bool(key) => Key::Bool(*key),
        MapKey::I32(key) => Key::Int((*key).into()),
        MapKey::I64(key) => Key::Int(*key),
        MapKey::U32(key) => Key::Uint((*key).into()),
        MapKey::U64(key) => Key::Uint(*key),
        MapKey::String(key) => Key::from(key.clone()),
    }
}

fn moment(message: &DynamicMessage) -> Option<DateTime<chrono::Utc>> {
    let (seconds, nanos) = parts(message).filter(|(seconds, _)| TIMES.contains(seconds))?;
    DateTime::from_timestamp(seconds, u32::try_from(nanos).ok()?)
}

fn span(message: &DynamicMessage) -> Option<TimeDelta> {
    let (seconds, nanos) = parts(message)?;
    TimeDelta::try_seconds(seconds)?.checked_add(&TimeDelta::nanoseconds(nanos.into()))
}

/// Whether `message` is a moment or a span of time, single values in CEL.
pub(crate) fn is_time(message: &MessageDescriptor) -> bool {
    [TIMESTAMP, DURATION].contains(&message.full_name())
}

fn parts(message: &DynamicMessage) -> Option<(i64, i32)> {
    let seconds = message.get_field_by_name("seconds")?.as_i64()?;
    let nanos = message.get_field_by_name("nanos")?.as_i32()?;
    Some((seconds, nanos))
}

/// What `value` is in `field`; `None` where it is `null`.
pub(crate) fn write(field: &FieldDescriptor, value: cel::Value) -> Result<Option<Value>, String> {
    if matches!(value, cel::Value::Null) {
        return Ok(None);
    }
    let kind = field.kind();
    if field.is_list() {
        let cel::Value::List(values) = value else { return Err(misfit(&value, "a list")) };
        let values = values.iter().map(|value| single(&kind, value.clone()));
        return Ok(Some(Value::List(values.collect::<Result<_, _>>()?)));
    }
    if field.is_map()
        && let Kind::Message(entry) = &kind
    {
        let cel::Value::Map(values) = value else { return Err(misfit(&value, "a map")) };
        let (of_key, of_value) =
            (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
        let values = values.map.iter().map(|(key, value)| {
            let key = single(&of_key, cel::Value::from(key))?;
            let key = key.into_map_key().ok_or("that is no key of a map")?;
            Ok::<_, String>((key, single(&of_value, value.clone())?))
        });
        return Ok(Some(Value::Map(values.collect::<Result<_, _>>()?)));
    }
    single(&kind, value).map(Some)
}

fn single(kind: &Kind, value: cel::Value) -> Result<Value, String> {
    use cel::Value::{Bool, Bytes, Float, Int, String, UInt};
    let wide = || format!("{value:?} is too large or too small for {}", name(kind));
    Ok(match (kind, &value) {
        (Kind::Bool, Bool(value)) => Value::Bool(*value),
        (Kind::Int32 | Kind::Sint32 | Kind::Sfixed32, Int(_) | UInt(_)) => {
            Value::I32(integer(&value).ok_or_else(wide)?)
        }
        (Kind::Int64 | Kind::Sint64 | Kind::Sfixed64, Int(_) | UInt(_)) => {
            Value::I64(integer(&value).ok_or_else(wide)?)
        }
        (Kind::Uint32 | Kind::Fixed32, Int(_) | UInt(_)) => {
            Value::U32(integer(&value).ok_or_else(wide)?)
        }
        (Kind::Uint64 | Kind::Fixed64, Int(_) | UInt(_)) => {
            Value::U64(integer(&value).ok_or_else(wide)?)
        }
        // A float's nearest value is what is meant.
        #[allow(clippy::cast_possible_truncation)]
        (Kind::Float, Float(value)) => Value::F32(*value as f32),
        (Kind::Double, Float(value)) => Value::F64(*value),
        (Kind::String, String(value)) => Value::String(value.to_string()),
        (Kind::Bytes, Bytes(value)) => Value::Bytes(value.to_vec().into()),
        (Kind::Enum(_), Int(_) | UInt(_)) => Value::EnumNumber(integer(&value).ok_or_else(wide)?),
        (Kind::Enum(values), String(name)) => {
            let named = values.get_value_by_name(name);
            let named = named.ok_or_else(|| format!("`{}` has no `{name}`", values.full_name()))?;
            Value::EnumNumber(named.number())
        }
        (Kind::Message(message), _) => Value::Message(message_of(message, &value)?),
        _ => return Err(misfit(&value, &name(kind))),
    })
}

fn integer<T: TryFrom<i64> + TryFrom<u64>>(value: &cel::Value) -> Option<T> {
    match value {
        cel::Value::Int(value) => T::try_from(*value).ok(),
        cel::Value::UInt(value) => T::try_from(*value).ok(),
        _ => None,
    }
}

fn message_of(message: &MessageDescriptor, value: &cel::Value) -> Result<DynamicMessage, String> {
    let mut made = DynamicMessage::new(message.clone());
    let mut set = |name: &str, value: Value| made.set_field_by_name(name, value);
    match (message.full_name(), value) {
        (TIMESTAMP, cel::Value::Timestamp(at)) => {
            set("seconds", Value::I64(at.timestamp()));
            set("nanos", Value::I32(at.timestamp_subsec_nanos().try_into().unwrap_or_default()));
        }
        (DURATION, cel::Value::Duration(span)) => {
            set("seconds", Value::I64(span.num_seconds()));
            set("nanos", Value::I32(span.subsec_nanos()));
        }
        (_, cel::Value::Map(fields)) => {
            for (key, value) in fields.map.iter() {
                let Key::String(key) = key else { return Err("a field's name is a string".into()) };
                let field = message
                    .get_field_by_name(key)
                    .ok_or_else(|| format!("`{}` has no field `{key}`", message.full_name()))?;
                if let Some(value) = write(&field, value.clone())? {
                    made.set_field(&field, value);
                }
            }
        }
        (full_name, value) => return Err(misfit(value, full_name)),
    }
    Ok(made)
}

/// What the expression gave, against what is needed.
fn misfit(value: &cel::Value, expected: &str) -> String {
    format!("it gives {}, not {expected}", value.type_of())
}

fn name(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(values) => values.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

//! Which scalar fits which.

use prost_reflect::Kind;

use crate::plan::{How, Wide};

/// What makes a value of `to` of every value of `from`, exactly; `None` where
/// nothing does.
pub(crate) fn scalar(from: &Kind, to: &Kind) -> Option<How> {
    let (from, to) = (Scalar::of(from)?, Scalar::of(to)?);
    Some(match (from, to) {
        (from, to) if from == to => How::Keep,
        (Scalar::I32 | Scalar::U32, Scalar::I64) => How::Widen(Wide::I64),
        (Scalar::U32, Scalar::U64) => How::Widen(Wide::U64),
        (Scalar::F32, Scalar::F64) => How::Widen(Wide::F64),
        _ => return None,
    })
}

/// What a value is, however it is encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scalar {
    I32,
    I64,
    U32,
    U64,
    F32,
    F64,
    Bool,
    String,
    Bytes,
}

impl Scalar {
    fn of(kind: &Kind) -> Option<Self> {
        Some(match kind {
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Self::I32,
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Self::I64,
            Kind::Uint32 | Kind::Fixed32 => Self::U32,
            Kind::Uint64 | Kind::Fixed64 => Self::U64,
            Kind::Float => Self::F32,
            Kind::Double => Self::F64,
            Kind::Bool => Self::Bool,
            Kind::String => Self::String,
            Kind::Bytes => Self::Bytes,
            Kind::Message(_) | Kind::Enum(_) => return None,
        })
    }
}

//! What can go wrong.

/// Why a file is no mapping.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidMapping(pub(crate) String);

/// Why a message could not be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes aren't a message of that type.
    #[error("not a `{message}`: {why}")]
    Decode {
        /// Its full name.
        message: String,
        /// What is wrong.
        why: String,
    },
    /// A value has no counterpart.
    #[error("`{field}` of `{message}`: {why}")]
    Value {
        /// The target's full name.
        message: String,
        /// The path of its field.
        field: String,
        /// What is wrong.
        why: String,
    },
}

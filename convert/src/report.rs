//! What a proof found.

use std::fmt;

use serde::Serialize;

/// From which version to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From old to new.
    Upgrade,
    /// From new to old.
    Downgrade,
}

impl Direction {
    /// The other one.
    pub fn reverse(self) -> Self {
        match self {
            Self::Upgrade => Self::Downgrade,
            Self::Downgrade => Self::Upgrade,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upgrade => "upgrade",
            Self::Downgrade => "downgrade",
        })
    }
}

/// Something about one field, value or method.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// On which way.
    pub direction: Direction,
    /// The full name of the message, enum or service it is about.
    pub of: String,
    /// What is the matter, naming the field, value or method.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, of, what } = self;
        write!(f, "{direction} of {of}: {what}")
    }
}

/// What a proof found, in the order of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Why the mapping can't be used; none where it can.
    pub problems: Vec<Finding>,
    /// What doesn't come back from a round trip.
    pub losses: Vec<Finding>,
}

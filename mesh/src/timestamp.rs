//! Protobuf's timestamps and chrono's.

use chrono::{DateTime, Utc};
use prost_types::Timestamp;

use crate::status::InvalidField;

/// `time` as Protobuf has it.
pub fn to_proto(time: DateTime<Utc>) -> Timestamp {
    // The nanoseconds of one second fit.
    let nanos = time.timestamp_subsec_nanos().try_into().unwrap_or_default();
    Timestamp { seconds: time.timestamp(), nanos }
}

/// The time that a request gives in `field`.
///
/// # Errors
/// [`InvalidField`] when it is no time.
pub fn from_proto(field: &'static str, time: Timestamp) -> Result<DateTime<Utc>, InvalidField> {
    u32::try_from(time.nanos)
        .ok()
        .and_then(|nanos| DateTime::from_timestamp(time.seconds, nanos))
        .ok_or_else(|| InvalidField::new(field, "is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_and_nonsense_is_refused() {
        let time = DateTime::from_timestamp(1_700_000_000, 123_456_789).unwrap();
        assert_eq!(from_proto("t", to_proto(time)), Ok(time));
        let none = |seconds, nanos| from_proto("t", Timestamp { seconds, nanos }).is_err();
        assert!(none(i64::MAX, 0) && none(0, -1));
    }
}

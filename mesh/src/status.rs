//! How calls fail: one closed set of reasons, each with its gRPC code, carried
//! as google.rpc `ErrorInfo` (domain `omnibridge`), with `BadRequest` and
//! `RetryInfo` where they help. The gateway translates them and adds none.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::Error;

/// The domain of every `ErrorInfo` here.
const DOMAIN: &str = "omnibridge";

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field of the request is wrong.
    InvalidRequest,
    /// What was asked for isn't there.
    NotFound,
    /// The caller may not make this call.
    Denied,
    /// As much waits for the broker as may.
    OutboxFull,
    /// The server has as much in flight as it may.
    Overloaded,
    /// The database can't be written or read.
    StorageUnavailable,
    /// No instance of the service answers.
    NoInstance,
    /// The last calls of the method failed; no more are made for a while.
    CircuitOpen,
    /// The instance is stopping; another one will answer.
    Draining,
    /// No instance speaks the asked version, and nothing converts to it.
    VersionUnavailable,
    /// It can't be done as things are.
    NotPossible,
    /// The time the caller gave is over.
    DeadlineExceeded,
    /// A defect.
    Internal,
}

impl Reason {
    const ALL: [Self; 13] = [
        Self::InvalidRequest,
        Self::NotFound,
        Self::Denied,
        Self::OutboxFull,
        Self::Overloaded,
        Self::StorageUnavailable,
        Self::NoInstance,
        Self::CircuitOpen,
        Self::Draining,
        Self::VersionUnavailable,
        Self::NotPossible,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    /// The name in `ErrorInfo` and in problem documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::NotFound => "NOT_FOUND",
            Self::Denied => "DENIED",
            Self::OutboxFull => "OUTBOX_FULL",
            Self::Overloaded => "OVERLOADED",
            Self::StorageUnavailable => "STORAGE_UNAVAILABLE",
            Self::NoInstance => "NO_INSTANCE",
            Self::CircuitOpen => "CIRCUIT_OPEN",
            Self::Draining => "DRAINING",
            Self::VersionUnavailable => "VERSION_UNAVAILABLE",
            Self::NotPossible => "NOT_POSSIBLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Internal => "INTERNAL",
        }
    }

    /// The reason of this name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// The gRPC code.
    pub fn code(self) -> Code {
        match self {
            Self::InvalidRequest => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::Denied => Code::PermissionDenied,
            Self::OutboxFull | Self::Overloaded => Code::ResourceExhausted,
            Self::StorageUnavailable | Self::NoInstance | Self::CircuitOpen | Self::Draining => {
                Code::Unavailable
            }
            Self::VersionUnavailable | Self::NotPossible => Code::FailedPrecondition,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Internal => Code::Internal,
        }
    }

    /// When trying again makes sense, if it does.
    fn retry_after(self) -> Option<Duration> {
        match self {
            Self::OutboxFull => Some(Duration::from_secs(5)),
            Self::Overloaded | Self::StorageUnavailable | Self::NoInstance | Self::CircuitOpen => {
                Some(Duration::from_secs(1))
            }
            Self::Draining => Some(Duration::ZERO),
            _ => None,
        }
    }
}

/// A status for `reason` with its details.
pub fn status(reason: Reason, message: impl Into<String>) -> Status {
    with_retry(reason, message.into(), reason.retry_after())
}

/// A status for `reason` that says when trying again makes sense.
pub fn status_after(reason: Reason, message: impl Into<String>, after: Duration) -> Status {
    with_retry(reason, message.into(), Some(after))
}

/// A status for a call that was `asked` of `service` and that no version of it
/// that is `there` can answer.
pub fn version_unavailable(service: &str, asked: &str, there: &str) -> Status {
    let reason = Reason::VersionUnavailable;
    let pairs = [("service", service), ("asked", asked), ("there", there)];
    let metadata = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, HashMap::from(metadata));
    let message = format!(
        "no instance of {service} answers {asked}, and nothing converts to one that does; there \
         are {there}"
    );
    Status::with_error_details(reason.code(), message, details)
}

fn with_retry(reason: Reason, message: String, after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, HashMap::new());
    if after.is_some() {
        details.set_retry_info(after);
    }
    Status::with_error_details(reason.code(), message, details)
}

/// A field of a request that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {description}")]
pub struct InvalidField {
    /// The field's path in the request.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub description: String,
}

impl InvalidField {
    /// The field at the path `field`, and what would be right.
    pub fn new(field: &'static str, description: impl Into<String>) -> Self {
        Self { field, description: description.into() }
    }
}

impl From<InvalidField> for Status {
    fn from(invalid: InvalidField) -> Self {
        let reason = Reason::InvalidRequest;
        let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, HashMap::new());
        details.add_bad_request_violation(invalid.field, &invalid.description);
        Self::with_error_details(reason.code(), invalid.to_string(), details)
    }
}

/// The reason a status carries; by its code where it carries none of ours.
pub fn reason(status: &Status) -> Reason {
    let details = status.get_error_details();
    let carried = details
        .error_info()
        .filter(|info| info.domain == DOMAIN)
        .and_then(|info| Reason::named(&info.reason));
    carried.unwrap_or(match status.code() {
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
            Reason::InvalidRequest
        }
        Code::NotFound | Code::Unimplemented => Reason::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => Reason::Denied,
        Code::ResourceExhausted => Reason::Overloaded,
        Code::Unavailable | Code::Cancelled => Reason::NoInstance,
        Code::DeadlineExceeded => Reason::DeadlineExceeded,
        _ => Reason::Internal,
    })
}

/// When the one who answered `status` wants to be asked again.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info().and_then(|info| info.retry_delay)
}

impl From<Error> for Status {
    /// The kernel's own errors, met while answering a call.
    fn from(error: Error) -> Self {
        let reason = match &error {
            Error::OutboxFull { .. } => Reason::OutboxFull,
            Error::WriterFull => Reason::Overloaded,
            Error::Database(_) | Error::NotCommitted(_) | Error::WriterStopped => {
                Reason::StorageUnavailable
            }
            Error::Registry(_) => Reason::NoInstance,
            _ => Reason::Internal,
        };
        if reason == Reason::Internal || reason == Reason::StorageUnavailable {
            tracing::error!(%error, "a call failed");
        }
        // What a database says of itself is not for callers.
        let message = match &error {
            Error::Database(_) | Error::NotCommitted(_) => {
                "the database can't be used at the moment".to_owned()
            }
            other => other.to_string(),
        };
        status(reason, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_the_wire_with_its_details() {
        for reason in Reason::ALL {
            let sent = status(reason, "m").into_http::<()>();
            let received = Status::from_header_map(sent.headers()).unwrap();
            assert_eq!(super::reason(&received), reason);
            assert_eq!(retry_after(&received), reason.retry_after());
        }
    }

    #[test]
    fn an_invalid_field_is_named() {
        let status = Status::from(InvalidField::new("hook.source", "is empty"));
        assert_eq!(status.message(), "`hook.source`: is empty");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "hook.source");
    }

    #[test]
    fn a_databases_words_stay_inside() {
        let error = Error::Database(sea_orm::DbErr::Custom("password hunter2".into()));
        let status = Status::from(error);
        assert!(!status.message().contains("hunter2"));
        assert_eq!(reason(&status), Reason::StorageUnavailable);
    }
}

use mesh::status::{self, InvalidField, Reason};
use tonic::Status;

/// What can go wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// There is no such hook or session.
    #[error("there is no {what} `{id}`")]
    NotFound {
        /// What was asked for.
        what: &'static str,
        /// By which id.
        id: String,
    },
    /// The instance is stopping.
    #[error("this instance is stopping; resume on another one")]
    Draining,
    /// The database or the outbox.
    #[error(transparent)]
    Mesh(#[from] mesh::Error),
}

impl Error {
    pub(crate) fn invalid(field: &'static str, description: impl Into<String>) -> Self {
        InvalidField::new(field, description).into()
    }
}

impl From<sea_orm::DbErr> for Error {
    fn from(why: sea_orm::DbErr) -> Self {
        Self::Mesh(why.into())
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(invalid) => invalid.into(),
            Error::NotFound { .. } => status::status(Reason::NotFound, error.to_string()),
            Error::Draining => status::status(Reason::Draining, error.to_string()),
            Error::Mesh(error) => error.into(),
        }
    }
}

use mesh::status::InvalidField;
use tonic::Status;

/// What can go wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// The database.
    #[error(transparent)]
    Mesh(#[from] mesh::Error),
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
            Error::Mesh(error) => error.into(),
        }
    }
}

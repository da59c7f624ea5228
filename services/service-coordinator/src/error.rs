use mesh::status::{self, InvalidField, Reason};
use tonic::Status;

use crate::supervisor::Refused;

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let reason = match &refused {
            Refused::Unknown(_) => Reason::NotFound,
            Refused::NotOurs(..) | Refused::Failed { .. } => Reason::NotPossible,
            Refused::Busy(_) => Reason::Overloaded,
            Refused::Count => return InvalidField::new("instances", refused.to_string()).into(),
        };
        status::status(reason, refused.to_string())
    }
}

//! What an event says to the trail: who, what, on what, and whether it was let
//! through.

use mesh::{
    events::Event,
    messages::audit::v1::{AuditEvent, Outcome},
};

/// The part of an entry that an event decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// On what.
    pub resource: String,
    /// Whether it was let through.
    pub outcome: Outcome,
    /// Why, or empty.
    pub reason: String,
}

/// Reads an event of `hooks.*` or `audit.events`.
///
/// # Errors
/// When an event that says it is an `AuditEvent` isn't one, or one of another
/// version.
pub fn read(event: &Event) -> Result<Said, mesh::Error> {
    if event.is::<AuditEvent>()? {
        let said: AuditEvent = event.decode()?;
        return Ok(Said {
            outcome: said.outcome(),
            actor: said.actor,
            action: said.action,
            resource: said.resource,
            reason: match said.count {
                0 | 1 => said.reason,
                count => format!("{} ({count} times)", said.reason),
            },
        });
    }
    let attributes = &event.attributes;
    let session = attributes.extensions.get("sessionid").unwrap_or(&attributes.subject);
    Ok(Said {
        actor: attributes.source.clone(),
        action: attributes.kind.clone(),
        resource: session.clone(),
        // What was denied never became a hook.
        outcome: Outcome::Allowed,
        reason: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let denied = AuditEvent {
            actor: "spiffe://d/a".into(),
            action: "/p.S/M".into(),
            resource: "audit".into(),
            outcome: Outcome::Denied.into(),
            reason: "no".into(),
            count: 3,
            ..Default::default()
        };
        Event::typed("/services/audit", "c", &denied).unwrap()
    }

    #[test]
    fn an_audit_event_says_all_itself() {
        let said = read(&event()).unwrap();
        assert_eq!((said.actor.as_str(), said.action.as_str()), ("spiffe://d/a", "/p.S/M"));
        assert_eq!(said.outcome, Outcome::Denied);
        assert_eq!(said.reason, "no (3 times)");
    }

    #[test]
    fn a_hook_is_told_by_its_attributes_whatever_its_body() {
        let mut hook = event();
        hook.attributes.dataschema.clear();
        hook.attributes.source = "/hooks/github".into();
        hook.attributes.kind = "push".into();
        hook.attributes.extensions.insert("sessionid".into(), "s".into());
        hook.data = "no JSON at all".into();
        let said = read(&hook).unwrap();
        assert_eq!((said.actor.as_str(), said.resource.as_str()), ("/hooks/github", "s"));
        assert_eq!(said.outcome, Outcome::Allowed);
    }

    #[test]
    fn an_audit_event_of_another_version_is_not_taken_for_a_hook() {
        let mut event = event();
        event.attributes.dataschema = "omnibridge.audit.v2.AuditEvent".into();
        assert!(matches!(read(&event), Err(mesh::Error::Schema { .. })));
    }

    #[test]
    fn what_only_claims_to_be_an_audit_event_is_an_error() {
        let mut event = event();
        event.data = "{".into();
        assert!(read(&event).is_err());
    }
}

//! Sessions: hooks that belong to one conversation.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::hook::Hook;

/// The session of a hook: the one it names, else the one of its correlation id.
pub fn id(named: String, correlation_id: &str) -> String {
    if named.is_empty() { correlation_id.to_owned() } else { named }
}

/// What some hooks add to one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    /// When the first of them was received.
    pub first: DateTime<Utc>,
    /// When the last of them was received.
    pub last: DateTime<Utc>,
    /// How many they are.
    pub count: i64,
}

/// What `hooks` add to their sessions, by session id.
pub fn additions<'h>(hooks: impl IntoIterator<Item = &'h Hook>) -> BTreeMap<&'h str, Addition> {
    let mut all: BTreeMap<&str, Addition> = BTreeMap::new();
    for hook in hooks {
        let at = hook.received_at;
        all.entry(&hook.session_id)
            .and_modify(|session| {
                session.first = session.first.min(at);
                session.last = session.last.max(at);
                session.count += 1;
            })
            .or_insert(Addition { first: at, last: at, count: 1 });
    }
    all
}

#[cfg(test)]
mod tests {
    use api::hooks::v1::NewHook;

    use super::*;

    #[test]
    fn hooks_are_added_up_by_session() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let hook = |session: &str, seconds| {
            let new = NewHook {
                source: "s".into(),
                r#type: "t".into(),
                delivery_id: "d".into(),
                session_id: session.into(),
                ..Default::default()
            };
            Hook::receive(new, at(seconds)).unwrap()
        };
        let hooks = [hook("a", 5), hook("b", 1), hook("a", 3)];
        let added = additions(&hooks);
        assert_eq!(added["a"], Addition { first: at(3), last: at(5), count: 2 });
        assert_eq!(added["b"], Addition { first: at(1), last: at(1), count: 1 });
    }
}

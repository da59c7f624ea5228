//! Sessions, and the keys that they lock, as Consul 1.22.7 was seen to do it.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{State, Topic};

/// The sessions, and what they leave behind.
#[derive(Default)]
pub(super) struct Sessions {
    living: BTreeMap<String, Session>,
    /// Until when a key can't be locked.
    delays: BTreeMap<String, Instant>,
}

struct Session {
    /// In the form of the API.
    told: Value,
    lock_delay: Duration,
}

impl State {
    /// Makes a session, and answers its id; or why it can't live.
    pub(crate) fn create_session(
        &mut self,
        mut session: Value,
        lock_delay: Duration,
    ) -> Result<Value, String> {
        if let Some(why) = self.objection(&session) {
            return Err(format!("apply failed: {why}"));
        }
        let id = uuid::Uuid::now_v7().to_string();
        session["ID"] = id.as_str().into();
        session["LockDelay"] = u64::try_from(lock_delay.as_nanos()).unwrap_or(u64::MAX).into();
        self.sessions.living.insert(id.clone(), Session { told: session, lock_delay });
        Ok(json!({ "ID": id }))
    }

    /// The session `id`, in the form of `session/info`.
    pub(crate) fn session(&self, id: &str) -> Value {
        self.sessions.living.get(id).map(|session| &session.told).into_iter().cloned().collect()
    }

    /// All sessions.
    pub(crate) fn sessions(&self) -> Vec<Value> {
        self.sessions.living.values().map(|session| session.told.clone()).collect()
    }

    /// Ends the session `id`: what it locked is free after the lock-delay.
    pub(crate) fn destroy_session(&mut self, id: &str) {
        let Some(session) = self.sessions.living.remove(id) else { return };
        let locked = self.keys.iter().filter(|(_, pair)| pair["Session"] == id);
        let locked: Vec<String> = locked.map(|(key, _)| key.clone()).collect();
        for key in locked {
            self.touch(Topic::Keys);
            let index = self.index;
            if let Some(pair) = self.keys.get_mut(&key).and_then(Value::as_object_mut) {
                pair.remove("Session");
                pair.insert("ModifyIndex".to_owned(), index.into());
            }
            self.sessions.delays.insert(key, Instant::now() + session.lock_delay);
        }
    }

    /// Ends all sessions.
    pub(crate) fn destroy_sessions(&mut self) {
        let all: Vec<String> = self.sessions.living.keys().cloned().collect();
        all.iter().for_each(|id| self.destroy_session(id));
    }

    /// Ends the sessions that have a check which is critical or gone.
    pub(crate) fn check_sessions(&mut self) {
        let living = self.sessions.living.iter();
        let ended = living.filter(|(_, session)| self.objection(&session.told).is_some());
        let ended: Vec<String> = ended.map(|(id, _)| id.clone()).collect();
        ended.iter().for_each(|id| self.destroy_session(id));
    }

    /// Why `session` can't live. The node's own check always passes.
    fn objection(&self, session: &Value) -> Option<String> {
        let checks = session["ServiceChecks"].as_array().into_iter().flatten();
        let mut ids = checks.map(|check| check["ID"].as_str().unwrap_or_default());
        ids.find_map(|id| {
            let instance = id.strip_prefix("service:").and_then(|id| self.services.get(id));
            let check = instance.map(|instance| &instance["Check"]);
            match check.filter(|check| check.is_object()) {
                None => Some(format!("Missing check '{id}' registration")),
                Some(check) if check["Status"].as_str().is_none_or(|now| now == "critical") => {
                    Some(format!("Check '{id}' is in critical state"))
                }
                Some(_) => None,
            }
        })
    }

    /// Locks `key` for `session`, and sets it; whether it did.
    pub(crate) fn acquire_key(
        &mut self,
        key: &str,
        value: &[u8],
        session: &str,
    ) -> Result<bool, String> {
        if self.sessions.delays.get(key).is_some_and(|end| Instant::now() < *end) {
            return Ok(false);
        }
        if !self.sessions.living.contains_key(session) {
            return Err(format!("raft apply failed: invalid session {session:?}"));
        }
        let pair = self.keys.get(key);
        let locks = pair.and_then(|pair| pair["LockIndex"].as_u64()).unwrap_or(0);
        let locks = match pair.and_then(|pair| pair["Session"].as_str()) {
            Some(holder) if holder != session => return Ok(false),
            Some(_) => locks,
            None => locks + 1,
        };
        self.put_key(key, value, locks, Some(session.into()));
        Ok(true)
    }

    /// Sets `key`, and lets go of it, where `session` holds it; whether it did.
    pub(crate) fn release_key(&mut self, key: &str, value: &[u8], session: &str) -> bool {
        let held = self.keys.get(key).filter(|pair| pair["Session"] == session);
        let Some(pair) = held else { return false };
        let locks = pair["LockIndex"].as_u64().unwrap_or(0);
        self.put_key(key, value, locks, None);
        true
    }
}

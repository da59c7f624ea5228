//! Leadership by Consul: a key is locked by a session, which is bound to the
//! health check of the leader's instance and to its node.
//!
//! A session that is bound to checks has no other end: Consul ends it when one
//! of them is critical or gone, or when it is destroyed, and it needs no renewal.
//! A TTL would add one, but ends a session up to twice as late as it says, begins
//! anew with each new leader of Consul's own, and says nothing that the check
//! doesn't: the process that would renew it is the one that is checked.
//!
//! Consul ends a session whether its holder hears of it or not. So a leader looks
//! at the key all the time, and believes what it saw for 4 s.
//!
//! ```text
//!            the key is free: create a session, acquire
//!  follows ─────────────────────────────────────────────▶ leads ◀──┐
//!     ▲                                                     │  │     │ its session
//!     ├──────────── its session doesn't hold the key ───────┘  ▼     │ holds the key
//!     └──────────────────────────────────────────────────── doubts ──┘
//!                                        (2 failed looks, or 4 s since the last one)
//! ```
//!
//! Source: Consul, "Sessions and distributed locks", "Application leader
//! election"; what isn't said there was seen with Consul 1.22.7.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use consulrs::api::{
    features::{ConsistencyMode, Features},
    kv::{
        common::KVPair,
        requests::{ReadKeyRequest, SetKeyRequest},
    },
    session::{
        common::ServiceCheck,
        requests::{CreateSessionRequest, ReadSessionRequest},
    },
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Candidacy, Candidate, Claim, Leader, Leadership, Seen, check_name};
use crate::{
    Error,
    config::Config,
    consul::{
        Answer, Consul, Since,
        endpoints::SessionDestroy,
        follow::{self, Follow},
        go_duration,
    },
    registry::Instance,
};

/// The keys that are locked, one for each name.
const KEYS: &str = "omnibridge/leaders/";
/// The check of a node's agent, by its neighbours.
const NODE_CHECK: &str = "serfHealth";
/// How long nobody gets the lock of a session that ended. A check of 10 s finds a
/// killed leader within these, and the next one leads a second or two later; with
/// Consul's own 15 s it would take up to half a minute.
const LOCK_DELAY: Duration = Duration::from_secs(1);
/// How long a look at the key is held where nothing changes. It is also how often
/// a free key is tried, for nothing tells that the lock-delay is over.
const LOOK: Duration = Duration::from_secs(1);
/// How long a look may take; Consul adds up to a sixteenth to [`LOOK`].
const LOOK_DEADLINE: Duration = Duration::from_secs(2);
/// How long a leader believes that it leads, from the beginning of the last look
/// that said so. Its session lives longer without it: where its agent is cut off
/// or dead, its neighbours suspect it after a `probe_interval` of 1 s at least, and
/// declare it dead 4 of these later (`suspicion_mult`); then comes [`LOCK_DELAY`].
pub(super) const BELIEF: Duration = Duration::from_secs(4);
/// After how many failed looks in a row it doesn't believe it any longer: an agent
/// that leaves the cluster ends its sessions at once.
const MOST_FAILURES: u32 = 2;
/// The least time from one look to the next, however fast the key changes.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How long resigning may take.
const RESIGN: Duration = Duration::from_secs(3);
/// How long a new watch waits for its first leader.
const FIRST_LEADER: Duration = Duration::from_secs(5);

/// The leadership of a Consul agent's datacenter.
pub struct ConsulLeadership {
    consul: Arc<Consul>,
}

impl ConsulLeadership {
    /// That of the agent which the setting `registry` names.
    ///
    /// # Errors
    /// When the setting names none.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self { consul: Consul::from_config(config)? })
    }
}

#[async_trait]
impl Leadership for ConsulLeadership {
    async fn stand(&self, name: &str, instance: &Instance) -> Result<Candidacy, Error> {
        let key = key(name)?;
        if instance.admin.is_none() {
            return Err(Error::Leadership(format!(
                "`{}` can't lead as `{name}`: it has no admin address, so that Consul doesn't \
                 check it, and wouldn't notice its end",
                instance.id
            )));
        }
        let candidate = Candidate::new(instance);
        let value =
            serde_json::to_vec(&candidate).map_err(|why| Error::Leadership(why.to_string()))?;
        let consul = self.consul.clone();
        Ok(Candidacy::begin(|seen, stop| {
            let session = None;
            Contender { consul, key, candidate, value, session, leads: false, index: 0, seen }
                .run(stop)
        }))
    }

    async fn watch(&self, name: &str) -> Result<watch::Receiver<Option<Leader>>, Error> {
        let key = key(name)?;
        let (consul, looked_at) = (self.consul.clone(), key.clone());
        let query = move |since| leader(consul.clone(), looked_at.clone(), since);
        // That nobody leads is nothing to doubt: it is so whenever one resigns.
        let mut follow = Follow::new(key, query, |_: &Option<Leader>| false);
        let first = tokio::time::timeout(FIRST_LEADER, follow.next()).await;
        let (leaders, watched) = watch::channel(first.unwrap_or_default());
        tokio::spawn(follow.publish(leaders));
        Ok(watched)
    }
}

/// One that stands for a name.
struct Contender {
    consul: Arc<Consul>,
    key: String,
    candidate: Candidate,
    /// What it writes under the key: itself.
    value: Vec<u8>,
    /// Made when the key is free. It may have ended since.
    session: Option<String>,
    /// Whether the last look said that it leads.
    leads: bool,
    /// The index of that look; 0 for a look that is answered at once.
    index: u64,
    seen: watch::Sender<Seen>,
}

impl Contender {
    async fn run(mut self, stop: CancellationToken) {
        let mut failures: u32 = 0;
        loop {
            let end = self.end_of_claim();
            let lapsed = async move {
                match end {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            let turned = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = lapsed => Err(late()),
                turned = self.turn() => turned,
            };
            let next = match turned {
                Ok(next) => {
                    if failures > 0 {
                        tracing::info!(key = %self.key, "consul answers again");
                    }
                    failures = 0;
                    next
                }
                Err(why) => {
                    if failures == 0 {
                        tracing::warn!(key = %self.key, %why, "can't look who leads, or can't lead");
                    }
                    let pause = follow::pause(failures);
                    failures = failures.saturating_add(1);
                    self.doubt(failures);
                    // Not held: a Consul that came back with a lower index
                    // would hold the old one.
                    self.index = 0;
                    Instant::now() + pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = stop.cancelled() => break,
            }
        }
        // Before others may lead.
        Seen::tell(&self.seen, Seen::default());
        let resigned = tokio::time::timeout(RESIGN, self.resign()).await;
        if let Err(why) = resigned.unwrap_or_else(|_| Err(late())) {
            tracing::warn!(key = %self.key, %why, "not resigned; its session ends with its check");
        }
    }

    /// Looks at the key, and tries to lead where nobody does. Answers when the
    /// next turn may begin.
    async fn turn(&mut self) -> Result<Instant, Error> {
        let asked = Instant::now();
        let since = Since { index: self.index, wait: Some(LOOK) };
        // By default a server that the others have left answers as their leader for
        // some more seconds.
        let mode = Some(ConsistencyMode::CONSISTENT);
        let features = self.consul.blocking(since).map(|features| Features { mode, ..features });
        let look = tokio::time::timeout(LOOK_DEADLINE, pair(&self.consul, &self.key, features));
        let Answer { value: pair, index } = look.await.unwrap_or_else(|_| Err(late()))?;
        // An index of 0 would make each look answer at once.
        let index = index.max(1);
        self.index = if index < since.index { 0 } else { index };
        let is_held = index != since.index || asked.elapsed() >= LOOK;
        let next = asked + if is_held { LOOK_PAUSE } else { LOOK };

        let holder = pair.as_ref().and_then(|pair| pair.session.as_deref());
        let leads = holder.is_some() && holder == self.session.as_deref();
        let is_free = holder.is_none();
        let leader = match pair {
            Some(pair) if leads => Some(self.candidate.clone().leading(pair.modify_index)),
            Some(pair) => named(pair),
            None => None,
        };
        let claim = leads.then_some(Claim::Until(asked + BELIEF));
        Seen::tell(&self.seen, Seen { leader, claim });
        match (self.leads, leads) {
            (false, true) => tracing::info!(key = %self.key, id = self.candidate.id, "leads"),
            (true, false) => {
                tracing::warn!(key = %self.key, id = self.candidate.id, "lost the lead");
                // Its session has ended; should it live, it holds nothing.
                self.session = None;
            }
            _ => {}
        }
        self.leads = leads;
        if is_free {
            // Whoever gets it, the next look is answered at once.
            self.acquire().await?;
        }
        Ok(next)
    }

    /// Tries to lock the key. Whether it did is for the next look to say: an
    /// answer may get lost.
    async fn acquire(&mut self) -> Result<(), Error> {
        let session = match self.session.clone() {
            Some(session) => session,
            // Refused while the check isn't known or is critical. One whose
            // answer got lost holds nothing, and ends with the check.
            None => {
                let created = self.consul.get(self.new_session()).await?.value.id;
                self.session.insert(created).clone()
            }
        };
        let request = SetKeyRequest {
            key: self.key.clone(),
            value: self.value.clone(),
            acquire: Some(session.clone()),
            ..SetKeyRequest::default()
        };
        let Err(why) = self.consul.get(request).await else { return Ok(()) };
        // Forgotten only where Consul says that it ended: one that got the lock
        // unheard would keep everybody from leading.
        let request = ReadSessionRequest { uuid: session, ..ReadSessionRequest::default() };
        if self.consul.whole(request).await?.value.is_empty() {
            self.session = None;
        }
        Err(why)
    }

    fn new_session(&self) -> CreateSessionRequest {
        // As Consul names the only check of an instance.
        let check = format!("service:{}", self.candidate.id);
        CreateSessionRequest {
            name: Some(format!("{} by {}", self.key, self.candidate.id)),
            behavior: Some("release".to_owned()),
            lock_delay: Some(go_duration(LOCK_DELAY)),
            node_checks: Some(vec![NODE_CHECK.to_owned()]),
            service_checks: Some(vec![ServiceCheck { id: Some(check), namespace: None }]),
            ..CreateSessionRequest::default()
        }
    }

    /// Lets go of the lock, and ends the session.
    async fn resign(&self) -> Result<(), Error> {
        let Some(session) = self.session.clone() else { return Ok(()) };
        let request = SetKeyRequest {
            key: self.key.clone(),
            value: self.value.clone(),
            release: Some(session.clone()),
            ..SetKeyRequest::default()
        };
        // First the lock: a session that ends with it leaves the lock-delay.
        let released = self.consul.get(request).await;
        // A lock that is still on its way fails then.
        self.consul.get(SessionDestroy { id: session, features: None }).await?;
        released.map(drop)
    }

    /// Takes its claim back where it lapsed, or after enough failures.
    fn doubt(&self, failures: u32) {
        let doubts = self.seen.send_if_modified(|seen| {
            let believes = |claim: Claim| failures < MOST_FAILURES && claim.holds();
            let doubts = seen.claim.is_some_and(|claim| !believes(claim));
            if doubts {
                *seen = Seen::default();
            }
            doubts
        });
        if doubts {
            tracing::warn!(key = %self.key, id = self.candidate.id, "can't tell whether it leads");
        }
    }

    fn end_of_claim(&self) -> Option<Instant> {
        match self.seen.borrow().claim {
            Some(Claim::Until(end)) => Some(end),
            Some(Claim::Held) | None => None,
        }
    }
}

fn key(name: &str) -> Result<String, Error> {
    check_name(name)?;
    Ok(format!("{KEYS}{name}"))
}

async fn leader(
    consul: Arc<Consul>,
    key: String,
    since: Since,
) -> Result<Answer<Option<Leader>>, Error> {
    let Answer { value, index } = pair(&consul, &key, consul.blocking(since)).await?;
    Ok(Answer { value: value.and_then(named), index })
}

/// What is under `key`; `None` where nobody ever led.
async fn pair(
    consul: &Consul,
    key: &str,
    features: Option<Features>,
) -> Result<Answer<Option<KVPair>>, Error> {
    let key = key.to_owned();
    let request = ReadKeyRequest { key, features, ..ReadKeyRequest::default() };
    let Answer { value, index } = consul.find_whole(request).await?;
    Ok(Answer { value: value.and_then(|pairs| pairs.into_iter().next()), index })
}

/// Whom a locked key names. The term is the index at which the key was set last:
/// its count of locks begins anew when somebody else sets or deletes it.
fn named(pair: KVPair) -> Option<Leader> {
    pair.session?;
    let json: Result<Vec<u8>, _> = pair.value?.try_into();
    let candidate: Candidate = serde_json::from_slice(&json.ok()?).ok()?;
    Some(candidate.leading(pair.modify_index))
}

fn late() -> Error {
    Error::Leadership("consul doesn't answer in time".to_owned())
}

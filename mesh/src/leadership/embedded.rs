//! Leadership on one machine: a locked file for each name under the data
//! directory. The lock is its holder's life: when a process dies, the system
//! drops the lock. Who leads is in a file beside it, which stays, for its term.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Candidacy, Candidate, Claim, Leader, Leadership, Seen, check_name};
use crate::{Error, backoff::jittered, config::Config, files, registry::Instance};

/// How often the lock is tried, or looked at. Nothing tells when it is let go that
/// wouldn't also tell of each try.
const LOOK: Duration = Duration::from_millis(250);

/// The folder that holds two files for each name.
pub struct EmbeddedLeadership {
    folder: PathBuf,
}

impl EmbeddedLeadership {
    /// Opens the folder under the data directory.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let folder = config.data.join("leaders");
        files::make_folder(&folder)?;
        Ok(Self { folder })
    }

    fn seat(&self, name: &str) -> Result<Seat, Error> {
        check_name(name)?;
        let file = |extension: &str| self.folder.join(format!("{name}.{extension}"));
        Ok(Seat { lock: file("lock"), leader: file("json") })
    }
}

#[async_trait]
impl Leadership for EmbeddedLeadership {
    async fn stand(&self, name: &str, instance: &Instance) -> Result<Candidacy, Error> {
        let (seat, candidate) = (self.seat(name)?, Candidate::new(instance));
        Ok(Candidacy::begin(|seen, stop| contend(seat, candidate, seen, stop)))
    }

    async fn watch(&self, name: &str) -> Result<watch::Receiver<Option<Leader>>, Error> {
        let seat = self.seat(name)?;
        let (leaders, watched) = watch::channel(seat.leader()?);
        tokio::spawn(async move {
            let mut trouble = Trouble::default();
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = leaders.closed() => return,
                }
                if let Some(next) = trouble.of(&seat, seat.leader()) {
                    leaders.send_if_modified(|now| {
                        let changed = *now != next;
                        *now = next;
                        changed
                    });
                }
            }
        });
        Ok(watched)
    }
}

/// Tries to lead until it does, and leads until `stop`.
async fn contend(
    seat: Seat,
    candidate: Candidate,
    seen: watch::Sender<Seen>,
    stop: CancellationToken,
) {
    let mut trouble = Trouble::default();
    while !stop.is_cancelled() {
        match trouble.of(&seat, seat.take(&candidate)) {
            Some((Some(lock), leader)) => {
                tracing::info!(lock = %seat.lock.display(), id = candidate.id, "leads");
                Seen::tell(&seen, Seen { leader, claim: Some(Claim::Held) });
                stop.cancelled().await;
                // Before others may lead.
                Seen::tell(&seen, Seen::default());
                drop(lock);
            }
            Some((None, leader)) => Seen::tell(&seen, Seen { leader, claim: None }),
            None => {}
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(LOOK)) => {}
            () = stop.cancelled() => {}
        }
    }
    Seen::tell(&seen, Seen::default());
}

/// The files of one name.
struct Seat {
    /// Held by who leads.
    lock: PathBuf,
    /// Who leads, or led last.
    leader: PathBuf,
}

impl Seat {
    /// The lock, where nobody had it, and who leads. For the moment in which
    /// another takes the lock, or looks whether it is free, that is who led last.
    fn take(&self, candidate: &Candidate) -> Result<(Option<File>, Option<Leader>), Error> {
        let Some(lock) = files::try_lock(&self.lock)? else {
            return Ok((None, self.last()?));
        };
        let term = self.last()?.map_or(0, |last| last.term).saturating_add(1);
        let leader = candidate.clone().leading(term);
        let json =
            serde_json::to_vec_pretty(&leader).map_err(|why| Error::Leadership(why.to_string()))?;
        files::replace(&self.leader, &json)?;
        Ok((Some(lock), Some(leader)))
    }

    /// Who leads.
    fn leader(&self) -> Result<Option<Leader>, Error> {
        match is_free(&self.lock).map_err(Error::file(&self.lock))? {
            true => Ok(None),
            false => self.last(),
        }
    }

    /// Who leads, or led last.
    fn last(&self) -> Result<Option<Leader>, Error> {
        match std::fs::read(&self.leader) {
            Ok(json) => serde_json::from_slice(&json)
                .map(Some)
                .map_err(|why| Error::file(&self.leader)(std::io::Error::other(why))),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(Error::file(&self.leader)(why)),
        }
    }
}

fn is_free(lock: &Path) -> std::io::Result<bool> {
    let file = match File::open(lock) {
        Ok(file) => file,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(why) => return Err(why),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(why)) => Err(why),
    }
}

/// Logs what goes wrong when it begins to, and not four times a second.
#[derive(Default)]
struct Trouble {
    goes_on: bool,
}

impl Trouble {
    fn of<T>(&mut self, seat: &Seat, tried: Result<T, Error>) -> Option<T> {
        let began = !std::mem::replace(&mut self.goes_on, tried.is_err());
        match tried {
            Ok(done) => Some(done),
            Err(why) => {
                if began {
                    tracing::warn!(lock = %seat.lock.display(), %why, "can't lead, or see who does");
                }
                None
            }
        }
    }
}

//! Following one thing in Consul by blocking queries: what to ask next, and
//! which answers to believe.
//!
//! Source of the index's rules: Consul, "Blocking queries". The rule for empty
//! answers is ours: a Consul that lost its data, or hasn't read it yet, says
//! that nothing is there, and believing it would cut every connection.
//!
//! ```text
//!              index went backwards: 60 s; answers again: 15 s
//!  believing ───────────────────────────────────────────────────▶ doubting
//!      ▲                                                          │      │
//!      ├────────────── an answer that isn't empty ────────────────┘      │
//!      └────────────── empty for all that time ──────────────────────────┘
//! ```

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use super::{Answer, Since};
use crate::{Error, backoff};

/// How long an empty answer must hold after the index went backwards.
const RESET_DOUBT: Duration = Duration::from_secs(60);
/// How long an empty answer must hold after Consul was away, whatever its index:
/// an agent that came back without its services takes them out of the catalog,
/// and they register again as soon as they reach it, every 5 s at least.
const OUTAGE_DOUBT: Duration = Duration::from_secs(15);
/// The first pause after an error, doubled with each one that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause after an answer that the agent should have held but didn't.
const UNHELD_PAUSE: Duration = Duration::from_secs(1);
/// The least time from one answer to the next question: many changes at once
/// come together then.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// How often a thing is asked for in the long run, at most. It bounds what a
/// Consul costs that answers at once, whatever is wrong with it or however fast
/// it changes.
const INTERVAL: Duration = Duration::from_millis(50);
/// How much sooner than that questions may come, after a time with fewer of
/// them: a hundred at once.
const BURST: Duration = Duration::from_secs(5);

/// A thing in Consul, asked for again and again by `query`.
pub(crate) struct Follow<Q, T> {
    /// For the log.
    subject: String,
    query: Q,
    is_empty: fn(&T) -> bool,
    /// The index of the last answer; 0 before the first.
    index: u64,
    /// Whether the value last believed was not empty.
    holds_something: bool,
    doubt: Option<Doubt>,
    /// Whether the next question is for an answer at once.
    afresh: bool,
    failures: u32,
    /// Why there is no answer, as long as there is none.
    trouble: Option<Error>,
    /// No question is asked before.
    pause_until: Instant,
    /// Where the next question is due that keeps [`INTERVAL`].
    due: Instant,
}

/// Empty answers aren't believed yet.
#[derive(Clone, Copy)]
struct Doubt {
    since: Instant,
    /// How long they must hold.
    hold: Duration,
}

impl<Q, F, T> Follow<Q, T>
where
    Q: FnMut(Since) -> F,
    F: Future<Output = Result<Answer<T>, Error>>,
{
    /// Follows what `query` asks for. `is_empty` says which of its values
    /// stand for nothing.
    pub(crate) fn new(subject: impl Into<String>, query: Q, is_empty: fn(&T) -> bool) -> Self {
        Self {
            subject: subject.into(),
            query,
            is_empty,
            index: 0,
            holds_something: false,
            doubt: None,
            afresh: true,
            failures: 0,
            trouble: None,
            pause_until: Instant::now(),
            due: Instant::now(),
        }
    }

    /// Why nothing was answered last time.
    pub(crate) fn trouble(&self) -> Option<&Error> {
        self.trouble.as_ref()
    }

    /// The next value to be believed: at first the present one, later each
    /// change. It asks until it gets one; dropped while it does, it goes on
    /// from there with the next call.
    pub(crate) async fn next(&mut self) -> T {
        loop {
            let early = self.due.checked_sub(BURST).unwrap_or(self.due);
            tokio::time::sleep_until(self.pause_until.max(early)).await;
            let since = self.since();
            let asked = Instant::now();
            self.due = self.due.max(asked) + INTERVAL;
            match (self.query)(since).await {
                Ok(answer) => {
                    if self.failures > 0 {
                        tracing::info!(subject = %self.subject, "consul answers again");
                        self.doubt(OUTAGE_DOUBT);
                    }
                    self.failures = 0;
                    self.afresh = false;
                    self.trouble = None;
                    let held = since.index == 0 || asked.elapsed() >= UNHELD_PAUSE;
                    let same = answer.index.max(1) == self.index;
                    let pause = if same && !held { UNHELD_PAUSE } else { MIN_PAUSE };
                    self.pause_until = Instant::now() + pause;
                    if let Some(value) = self.believe(answer) {
                        return value;
                    }
                }
                Err(why) => {
                    if self.failures == 0 {
                        tracing::warn!(
                            subject = %self.subject, %why,
                            "consul doesn't answer; what was last known stays in use"
                        );
                    }
                    self.pause_until = Instant::now() + pause(self.failures);
                    self.failures = self.failures.saturating_add(1);
                    // Not held: a Consul that came back with a lower index
                    // would hold the old one for the whole wait.
                    self.afresh = true;
                    self.trouble = Some(why);
                }
            }
        }
    }

    /// Sends each next value that differs to `values`, until nobody listens.
    pub(crate) async fn publish(mut self, values: watch::Sender<T>)
    where
        T: PartialEq,
    {
        loop {
            let next = tokio::select! {
                next = self.next() => next,
                () = values.closed() => return,
            };
            values.send_if_modified(|now| {
                let changed = *now != next;
                *now = next;
                changed
            });
        }
    }

    fn since(&self) -> Since {
        let left = |doubt: Doubt| doubt.hold.saturating_sub(doubt.since.elapsed());
        Since {
            index: if self.afresh { 0 } else { self.index },
            wait: self.doubt.map(|doubt| left(doubt).max(UNHELD_PAUSE)),
        }
    }

    /// Begins to doubt empty answers, where there is something to lose.
    fn doubt(&mut self, hold: Duration) {
        if self.holds_something {
            let before = self.doubt.map_or(Duration::ZERO, |doubt| doubt.hold);
            self.doubt = Some(Doubt { since: Instant::now(), hold: hold.max(before) });
        }
    }

    /// The value of `answer`, where it is new and to be believed.
    fn believe(&mut self, answer: Answer<T>) -> Option<T> {
        // An index of 0 would make each query answer at once, and says nothing
        // about whether something changed.
        let told = answer.index > 0;
        let index = answer.index.max(1);
        let before = std::mem::replace(&mut self.index, index);
        if index < before {
            tracing::info!(subject = %self.subject, before, index, "consul's index went backwards");
            self.afresh = true;
            self.doubt(RESET_DOUBT);
        }
        let empty = (self.is_empty)(&answer.value);
        match self.doubt {
            Some(doubt) if empty && doubt.since.elapsed() < doubt.hold => return None,
            None if told && index == before => return None,
            _ => {}
        }
        self.doubt = None;
        self.holds_something = !empty;
        Some(answer.value)
    }
}

/// The pause after the error that follows `failures` others.
pub(crate) fn pause(failures: u32) -> Duration {
    backoff::pause(failures, FIRST_PAUSE, LONGEST_PAUSE)
}

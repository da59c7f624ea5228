//! A limit of time for a test. The harness that Rust brings waits for ever for a test
//! that hangs; with this, the whole run ends, and says which test it was.
//!
//! What tests stand on (a mesh, a fleet, a database) holds a [`Watchdog`], so that each
//! of them has one without a word of its own.

use std::{
    io::Write as _,
    process,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

/// How long a test may take, unless `OMNI_TEST_LIMIT` gives other seconds: several times
/// what the longest one takes on a slow machine, for only a test that hangs may end here.
const LIMIT: Duration = Duration::from_secs(600);
/// The exit code of a program of tests some of which failed.
const FAILED: i32 = 101;

/// Ends the program when a test takes too long; dropped with what the test stands on.
#[derive(Debug)]
pub struct Watchdog {
    _test: Sender<()>,
}

impl Watchdog {
    /// Watches the test that this thread runs, after which Rust's harness names it.
    ///
    /// # Panics
    /// When `OMNI_TEST_LIMIT` is no number, or there is no thread to be had.
    pub fn start() -> Self {
        let limit = std::env::var("OMNI_TEST_LIMIT").map_or(LIMIT, |seconds| {
            Duration::from_secs(seconds.parse().expect("OMNI_TEST_LIMIT is a number of seconds"))
        });
        let test = thread::current().name().unwrap_or_default().to_owned();
        Self::after(limit, move || {
            let said = format!("\nthe test {test} takes longer than {limit:?}: all ends here\n");
            // Past what the harness keeps of each test's output. Nobody may be left to read.
            let _ = std::io::stderr().write_all(said.as_bytes());
            process::exit(FAILED);
        })
    }

    fn after(limit: Duration, late: impl FnOnce() + Send + 'static) -> Self {
        let (_test, ends) = mpsc::channel::<()>();
        let watch = move || {
            if ends.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                late();
            }
        };
        thread::Builder::new().name("watchdog".to_owned()).spawn(watch).expect("there is a thread");
        Self { _test }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_takes_too_long_is_ended_and_others_are_not() {
        let (barked, bark) = mpsc::channel();
        let slow = barked.clone();
        let _slow = Watchdog::after(Duration::from_millis(1), move || slow.send("slow").unwrap());
        assert_eq!(bark.recv(), Ok("slow"));
        drop(Watchdog::after(Duration::MAX, move || barked.send("quick").unwrap()));
        assert!(bark.recv().is_err(), "its watch has ended without a word");
    }
}

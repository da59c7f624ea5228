//! How far a group may go on after a crash: the end of what is done without a
//! gap.

use std::collections::BTreeMap;

/// The deliveries of one partition that a consumer has handed out, by offset.
/// They may be done in any order.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Whether each is done. Those before the first that isn't are forgotten.
    handed_out: BTreeMap<i64, bool>,
}

impl Progress {
    /// The delivery at `offset` was handed out; perhaps again.
    pub(super) fn hand_out(&mut self, offset: i64) {
        self.handed_out.insert(offset, false);
    }

    /// The delivery at `offset` has had its effect.
    pub(super) fn done(&mut self, offset: i64) {
        if let Some(done) = self.handed_out.get_mut(&offset) {
            *done = true;
        }
    }

    /// The last offset before which nothing is left to do, if it has moved on
    /// since it was last [recorded](Self::recorded).
    pub(super) fn reached(&self) -> Option<i64> {
        self.handed_out.iter().take_while(|(_, done)| **done).last().map(|(offset, _)| *offset)
    }

    /// The broker knows of everything up to `offset`.
    pub(super) fn recorded(&mut self, offset: i64) {
        while let Some(first) = self.handed_out.first_entry().filter(|e| *e.key() <= offset) {
            first.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_up_to_the_first_gap() {
        let mut progress = Progress::default();
        // Offsets needn't follow each other: a broker may have forgotten some.
        [3, 5, 6, 9].into_iter().for_each(|offset| progress.hand_out(offset));
        assert_eq!(progress.reached(), None);
        progress.done(5);
        progress.done(9);
        assert_eq!(progress.reached(), None, "3 is left to do");
        progress.done(3);
        assert_eq!(progress.reached(), Some(5));
        progress.recorded(5);
        assert_eq!(progress.reached(), None, "it hasn't moved since");
        progress.done(6);
        assert_eq!(progress.reached(), Some(9));
        progress.recorded(9);
        progress.done(6);
        assert_eq!(progress.reached(), None, "done twice is done once");
    }

    #[test]
    fn what_is_handed_out_again_is_to_be_done_again() {
        let mut progress = Progress::default();
        progress.hand_out(1);
        progress.hand_out(2);
        progress.done(1);
        progress.hand_out(1);
        progress.done(2);
        assert_eq!(progress.reached(), None);
        progress.done(1);
        assert_eq!(progress.reached(), Some(2));
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How many successes of each function go into the history.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use hearth_protocol::SmallName;

/// So many successes of one function are kept on disk in each [`PERIOD`]: with one busy function the default history
/// reaches eight minutes back, and writing them takes about 2 ms.
pub(super) const SUCCESSES_MAX: u32 = 100;

/// What the limit above counts in.
const PERIOD: Duration = Duration::from_secs(1);

/// Counts the successes of this period.
#[derive(Debug, Default)]
pub(super) struct Share {
    begun: Option<Instant>,
    /// Emptied with each period, so it holds no more functions than ran in one.
    taken: HashMap<SmallName, u32>,
}

impl Share {
    /// Whether one more success of `function` is within its share.
    pub(super) fn take(&mut self, function: &SmallName, now: Instant) -> bool {
        if self
            .begun
            .is_none_or(|begun| PERIOD <= now.saturating_duration_since(begun))
        {
            self.begun = Some(now);
            self.taken.clear();
        }
        // Looked up first: a name is copied once in a period, not once in every call.
        match self.taken.get_mut(function) {
            Some(taken) => {
                *taken += 1;
                *taken <= SUCCESSES_MAX
            }
            None => {
                self.taken.insert(function.clone(), 1);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_function_leaves_a_quiet_one_its_share_and_has_its_own_again_later() {
        let mut share = Share::default();
        let (busy, quiet) = (
            SmallName::new("busy").unwrap(),
            SmallName::new("quiet").unwrap(),
        );
        let now = Instant::now();
        let taken = (0..10 * SUCCESSES_MAX)
            .filter(|_| share.take(&busy, now))
            .count();
        assert_eq!(taken, SUCCESSES_MAX as usize);
        assert!(share.take(&quiet, now));
        assert!(!share.take(&busy, now));
        assert!(share.take(&busy, now + PERIOD));
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! When a child that died is started again, and when that is given up.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The first wait: long enough that a child which dies at once does not burn a core, too short for a client to notice.
const DELAY_MIN: Duration = Duration::from_millis(100);

/// The longest wait: connections wait in the listening sockets meanwhile, and most clients give them 10 s and more.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// More failures than this within [`WINDOW`] are no accident: the service manager shall see it.
const FAILURES_MAX: usize = 10;

/// See [`FAILURES_MAX`]. With the delays above ten failures in a row take about 30 s.
const WINDOW: Duration = Duration::from_secs(60);

/// The failures of one role.
#[derive(Debug, Default)]
pub(super) struct Failures(VecDeque<Instant>);

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Start another at this time.
    StartAt(Instant),
    /// Do not.
    GiveUp,
}

impl Failures {
    /// Counts one more.
    pub(super) fn count(&mut self, now: Instant) -> Verdict {
        while let Some(first) = self.0.front()
            && WINDOW <= now.duration_since(*first)
        {
            self.0.pop_front();
        }
        self.0.push_back(now);
        if FAILURES_MAX <= self.0.len() {
            return Verdict::GiveUp;
        }
        let doublings = u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX);
        let delay = DELAY_MIN.saturating_mul(2_u32.saturating_pow(doublings));
        Verdict::StartAt(now + delay.min(DELAY_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_five_seconds() {
        let mut failures = Failures::default();
        let now = Instant::now();
        let delays: Vec<u128> = (0..8)
            .map(|_| match failures.count(now) {
                Verdict::StartAt(at) => at.duration_since(now).as_millis(),
                Verdict::GiveUp => panic!("gave up early"),
            })
            .collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn ten_failures_within_a_minute_are_given_up() {
        let mut failures = Failures::default();
        let now = Instant::now();
        let verdicts: Vec<Verdict> = (0..10).map(|_| failures.count(now)).collect();
        assert_eq!(verdicts[9], Verdict::GiveUp);
        assert_ne!(verdicts[8], Verdict::GiveUp);
    }

    #[test]
    fn old_failures_are_forgotten() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for minute in 0..100 {
            let at = now + WINDOW * minute;
            assert_eq!(failures.count(at), Verdict::StartAt(at + DELAY_MIN));
        }
    }
}

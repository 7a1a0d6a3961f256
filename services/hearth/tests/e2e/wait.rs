// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Waiting for what no event announces: the condition is looked at again and again, up to a deadline.

use std::fmt::Debug;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

/// Between two looks. Nobody unparks: it only keeps the waiting off the core.
const LOOK: Duration = Duration::from_millis(5);

/// What everything is given that takes milliseconds on an idle machine, and is waited for on a busy one.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Waits until `look` gives something; panics with what it last complained of after `limit`.
pub(crate) fn until<T, E: Debug>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) if deadline <= Instant::now() => {
                panic!("after {limit:?} still not: {what}: {why:?}")
            }
            Err(_) => park_timeout(LOOK),
        }
    }
}

/// As [`until`], for a condition.
pub(crate) fn until_true(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    until(what, limit, || {
        if holds() {
            Ok(())
        } else {
            Err("it does not hold")
        }
    });
}

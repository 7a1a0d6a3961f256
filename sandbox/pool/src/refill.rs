// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sandboxes made ahead of need, at a pace that those who wait do not feel.
//!
//! Making one costs some 2.5 ms of CPU, in stretches of up to a millisecond in which a kernel without preemption lets
//! nothing else run on that core. So it is done one at a time, after whoever is just being served, and with rests.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    Pool,
    sandbox::{Skeleton, StartError},
};

/// How long the maker of skeletons rests after a failure, so that a host that cannot make any is not hammered.
const MAKING_BACKOFF: Duration = Duration::from_millis(500);

/// How long nobody must have needed a new sandbox before one is made ahead: longer than a first call takes, so that it
/// does not meet the making of its own successor.
const QUIET: Duration = Duration::from_millis(10);

/// Under a steady stream of needs there is no such moment: this long after, the next one is made all the same.
const QUIET_WAIT_MAX: Duration = Duration::from_millis(100);

/// As above while some kind of sandbox is scarce: whoever comes when none is left waits for a whole making, which is worse than
/// to be held up by one now and then.
const QUIET_WAIT_SCARCE_MAX: Duration = Duration::from_millis(15);

/// After each sandbox, the rest in multiples of the time that it took to make: on a busy host both grow.
const REST_TIMES: u32 = 4;

/// As above while some kind is scarce.
const REST_TIMES_SCARCE: u32 = 1;

/// The longest rest, where making took so long that something else must have been wrong.
const REST_MAX: Duration = Duration::from_millis(100);

/// The rest while functions are called and nobody needs a new sandbox: what is made is a reserve that nobody waits for, and
/// each making, of some 3 ms with its parts, holds up whoever calls on the same core for half a millisecond at a time.
/// With two in a second that is less than one call in a hundred, even where all of it falls on one core.
const REST_CALLED: Duration = Duration::from_millis(500);

/// So long after a need another one is likely: the reserve is being used up.
const NEEDED_RECENTLY: Duration = Duration::from_millis(200);

/// Between two looks, during a rest, at whether some kind has become scarce.
const REST_LOOK: Duration = Duration::from_millis(20);

/// When somebody last needed a sandbox that had to be made or bound, and whether anybody calls.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    needed: Mutex<Option<Instant>>,
    /// Whether anything was called since the last rest began.
    called: AtomicBool,
}

impl Pace {
    /// Somebody needs one now.
    pub(crate) fn note_need(&self) {
        *self.needed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Somebody calls, with or without need of a new sandbox.
    pub(crate) fn note_call(&self) {
        // Nearly always only read, so that the shards do not take the line from each other.
        if !self.called.load(Ordering::Relaxed) {
            self.called.store(true, Ordering::Relaxed);
        }
    }

    /// The rest after a making that took `making`.
    fn rest(&self, making: Duration, made: Ahead, now: Instant) -> Duration {
        let called = self.called.swap(false, Ordering::Relaxed);
        let needed = *self.needed.lock().unwrap_or_else(PoisonError::into_inner);
        let used = needed.is_some_and(|then| now.duration_since(then) < NEEDED_RECENTLY);
        match made {
            Ahead::Scarce => (making * REST_TIMES_SCARCE).min(REST_MAX),
            Ahead::Reserve if called && !used => REST_CALLED,
            Ahead::Minimum | Ahead::Reserve => (making * REST_TIMES).min(REST_MAX),
        }
    }

    /// Waits for a quiet moment, not for ever.
    async fn quiet(&self, wait_max: Duration) {
        let until = Instant::now() + wait_max;
        while let Some(rest) = self.unquiet(until, Instant::now()) {
            sleep(rest).await;
        }
    }

    /// How long one who waits `until` then at most waits on before another look; none where the moment has come.
    fn unquiet(&self, until: Instant, now: Instant) -> Option<Duration> {
        let needed = *self.needed.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet_at = (needed? + QUIET).min(until);
        let rest = quiet_at.saturating_duration_since(now);
        (!rest.is_zero()).then_some(rest)
    }
}

/// What was made ahead of need.
#[derive(Debug, Clone, Copy)]
enum Ahead {
    /// For a function that is to have so many.
    Minimum,
    /// A skeleton, when some kind was scarce.
    Scarce,
    /// A skeleton beyond that.
    Reserve,
}

/// Makes skeletons and minimums, one after the other so that a bind never waits for more than one creation.
pub(crate) async fn keep_stocked(pool: Arc<Pool>) {
    loop {
        pool.lacking.notified().await;
        loop {
            let wait_max = if pool.stock.is_scarce() {
                QUIET_WAIT_SCARCE_MAX
            } else {
                QUIET_WAIT_MAX
            };
            pool.pace.quiet(wait_max).await;
            let began = Instant::now();
            match make_one(&pool).await {
                None => break,
                Some(Ok(made)) => {
                    let rest = pool.pace.rest(began.elapsed(), made, Instant::now());
                    rest_until_scarce(&pool, rest).await;
                }
                Some(Err(error)) => {
                    tracing::warn!(
                        step = error.step,
                        errno = error.errno,
                        "cannot make a skeleton: {}",
                        error.message
                    );
                    sleep(MAKING_BACKOFF).await;
                }
            }
        }
    }
}

/// Rests; less where a kind becomes scarce meanwhile.
async fn rest_until_scarce(pool: &Pool, rest: Duration) {
    let until = Instant::now() + rest;
    let was_scarce = pool.stock.is_scarce();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || (!was_scarce && pool.stock.is_scarce()) {
            return;
        }
        sleep(left.min(REST_LOOK)).await;
    }
}

/// Makes what is lacking most; none where nothing is.
async fn make_one(pool: &Arc<Pool>) -> Option<Result<Ahead, StartError>> {
    if let Some((roster, place)) = pool.lacking_minimum() {
        // Where the host is full, the minimum waits until something ends.
        let means = pool.means(0, &roster.target)?;
        let made = pool.make(means, 0, &roster.target).await;
        roster.note_minimum(made.as_ref().map(|_| ()));
        return Some(made.map(|made| {
            if let Some(made) = made {
                crate::invoke::enter_idle(&roster, made.sandbox, place, 0);
            }
            Ahead::Minimum
        }));
    }
    let ahead = if pool.stock.is_scarce() {
        Ahead::Scarce
    } else {
        Ahead::Reserve
    };
    let room = pool.room.take()?;
    let order = pool.stock.begin_making(pool.config.skeletons_per_shard)?;
    let made = match pool.link().await {
        Ok(link) => Skeleton::create(&link, &order, room).await,
        Err(error) => Err(error.into()),
    };
    let (made, result) = match made {
        Ok(skeleton) => (Some(skeleton), Ok(ahead)),
        Err(error) => (None, Err(error)),
    };
    pool.stock.end_making(&order.spec, made);
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skeletons_are_made_after_whoever_is_being_served_but_not_never() {
        let pace = Pace::default();
        let began = Instant::now();
        let until = began + QUIET_WAIT_MAX;
        assert_eq!(pace.unquiet(until, began), None, "nobody needs anything");
        pace.note_need();
        let rest = pace.unquiet(until, began).unwrap();
        assert!(rest <= QUIET + began.elapsed());
        assert_eq!(pace.unquiet(until, until), None, "waited long enough");
    }

    #[test]
    fn a_reserve_that_nobody_uses_is_made_slowly_while_functions_are_called() {
        let pace = Pace::default();
        let now = Instant::now();
        let making = Duration::from_millis(3);
        assert_eq!(
            pace.rest(making, Ahead::Reserve, now),
            4 * making,
            "nobody calls"
        );
        pace.note_call();
        assert_eq!(
            pace.rest(making, Ahead::Scarce, now),
            making,
            "it is wanted at once"
        );
        pace.note_call();
        assert_eq!(pace.rest(making, Ahead::Minimum, now), 4 * making);
        pace.note_call();
        assert_eq!(pace.rest(making, Ahead::Reserve, now), REST_CALLED);
        assert_eq!(
            pace.rest(making, Ahead::Reserve, now),
            4 * making,
            "the calls ended"
        );
        pace.note_call();
        pace.note_need();
        let now = Instant::now();
        assert_eq!(
            pace.rest(making, Ahead::Reserve, now),
            4 * making,
            "it is used up"
        );
        pace.note_call();
        let later = now + NEEDED_RECENTLY;
        assert_eq!(pace.rest(making, Ahead::Reserve, later), REST_CALLED);
        let long = Duration::from_secs(3);
        assert_eq!(pace.rest(long, Ahead::Reserve, later), REST_MAX);
    }
}

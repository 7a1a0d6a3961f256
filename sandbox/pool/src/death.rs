// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the spawner tells of a sandbox unasked: the calls that it refused there, and its end.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use hearth_protocol::spawner::{Totals, VIOLATIONS_TOLD_MAX, Violation};
use tokio::sync::Notify;

/// Tells the holder of a sandbox that it is gone.
#[derive(Debug, Default)]
pub(crate) struct Death {
    seen: AtomicBool,
    totals: Mutex<Totals>,
    notify: Notify,
    /// Refused calls that the spawner told of, until they are taken.
    violations: Mutex<Vec<Violation>>,
    violated: AtomicBool,
}

impl Death {
    /// Whether the sandbox is known to be gone.
    pub(crate) fn is_seen(&self) -> bool {
        self.seen.load(Ordering::Acquire)
    }

    /// What its cgroup counted, where the sandbox is known to be gone.
    pub(crate) fn totals(&self) -> Option<Totals> {
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_seen().then_some(*totals)
    }

    /// Waits until the sandbox is gone and gives what its cgroup counted.
    pub(crate) async fn seen(&self) -> Totals {
        loop {
            let notified = self.notify.notified();
            if self.is_seen() {
                return *self.totals.lock().unwrap_or_else(PoisonError::into_inner);
            }
            notified.await;
        }
    }

    /// Whether the spawner told of refused calls that nobody has taken.
    pub(crate) fn has_violations(&self) -> bool {
        self.violated.load(Ordering::Acquire)
    }

    /// Takes the refused calls that the spawner told of, where it told of any.
    pub(crate) fn take_violations(&self) -> Vec<Violation> {
        if !self.violated.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.violations())
    }

    /// Waits until the spawner has told of so many refused calls.
    pub(crate) async fn violations_told(&self, wanted: usize) {
        loop {
            let notified = self.notify.notified();
            if wanted <= self.violations().len() {
                return;
            }
            notified.await;
        }
    }

    /// The spawner tells of a refused call.
    pub(crate) fn tell(&self, violation: Violation) {
        let mut violations = self.violations();
        // The spawner tells of so many between two reads of the counter; a few more may wait for the reader of this.
        if violations.len() < 2 * usize::from(VIOLATIONS_TOLD_MAX) {
            violations.push(violation);
        }
        drop(violations);
        self.violated.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    fn violations(&self) -> MutexGuard<'_, Vec<Violation>> {
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// It is gone.
    pub(crate) fn announce(&self, totals: Totals) {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
        self.seen.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }
}

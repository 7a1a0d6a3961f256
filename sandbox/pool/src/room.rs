// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How many sandboxes the host may hold, and what happens when it holds that many: whoever needs one more waits until
//! one is gone or becomes idle, and an idle one is given up for it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The room for sandboxes on this host.
#[derive(Debug)]
pub(crate) struct Room {
    free: Arc<Semaphore>,
    wanted: AtomicUsize,
    became_idle: Notify,
}

/// What a wait for room ended with.
#[derive(Debug)]
pub(crate) enum Waited {
    /// There is room.
    Room(OwnedSemaphorePermit),
    /// A sandbox became idle: it can be used, or given up.
    Idle,
}

impl Room {
    pub(crate) fn new(sandboxes_max: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(sandboxes_max)),
            wanted: AtomicUsize::new(0),
            became_idle: Notify::new(),
        }
    }

    /// Room for one more, if there is any.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    /// Waits until a sandbox is gone or became idle.
    pub(crate) async fn wait(&self) -> Waited {
        let _wanting = Wanting::new(&self.wanted);
        tokio::select! {
            biased;
            // The semaphore is never closed.
            Ok(room) = Arc::clone(&self.free).acquire_owned() => Waited::Room(room),
            () = self.became_idle.notified() => Waited::Idle,
        }
    }

    /// A sandbox became idle. Wakes one of those that wait: each can give up one.
    pub(crate) fn note_idle(&self) {
        if 0 < self.wanted.load(Ordering::Acquire) {
            self.became_idle.notify_one();
        }
    }
}

/// Counts a waiter for as long as it waits.
struct Wanting<'r>(&'r AtomicUsize);

impl<'r> Wanting<'r> {
    fn new(wanted: &'r AtomicUsize) -> Self {
        wanted.fetch_add(1, Ordering::AcqRel);
        Self(wanted)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sandbox_that_becomes_idle_wakes_one_of_those_that_wait() {
        let room = Room::new(1);
        let taken = room.take();
        assert!(taken.is_some() && room.take().is_none());
        let waiting = room.wait();
        let idle = async {
            tokio::task::yield_now().await;
            room.note_idle();
        };
        let (waited, ()) = tokio::join!(waiting, idle);
        assert!(matches!(waited, Waited::Idle));
    }

    #[tokio::test]
    async fn room_that_is_given_back_goes_to_those_that_wait() {
        let room = Room::new(1);
        let taken = room.take();
        let give_back = async {
            tokio::task::yield_now().await;
            drop(taken);
        };
        let (waited, ()) = tokio::join!(room.wait(), give_back);
        assert!(matches!(waited, Waited::Room(_)));
    }

    #[tokio::test]
    async fn nobody_is_woken_later_for_what_became_idle_before() {
        let room = Room::new(0);
        room.note_idle();
        assert!(futures_pending(room.wait()).await);
    }

    /// Whether a future is pending when first polled.
    async fn futures_pending(future: impl Future) -> bool {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending()))
            .await
    }
}

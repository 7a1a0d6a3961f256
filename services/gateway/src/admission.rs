// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who is let in: the server's state, and the process-wide limits of invocations and of body bytes.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use crate::problem::{Full, RequestError};

/// What the server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Functions are being loaded or compiled again.
    Starting,
    /// Invocations are taken.
    Ready,
    /// What runs is being finished.
    Draining,
}

/// Counts what is inside, and refuses what would be too much.
#[derive(Debug)]
pub(crate) struct Admission {
    stage: watch::Sender<Stage>,
    inflight: Arc<Semaphore>,
    inflight_max: u32,
    body_bytes: Arc<Semaphore>,
    body_bytes_max: u32,
}

/// The right to have one invocation running, and to hold the bytes of its body.
#[derive(Debug)]
pub(crate) struct Permit {
    _inflight: OwnedSemaphorePermit,
    _body: BodyPermit,
}

/// The right to hold some bytes of a body.
#[derive(Debug)]
pub(crate) struct BodyPermit(OwnedSemaphorePermit);

impl Admission {
    pub(crate) fn new(inflight_max: u32, body_bytes_max: u32) -> Self {
        let semaphore = |permits: u32| Arc::new(Semaphore::new(permits as usize));
        Self {
            stage: watch::Sender::new(Stage::Starting),
            inflight: semaphore(inflight_max),
            inflight_max,
            body_bytes: semaphore(body_bytes_max),
            body_bytes_max,
        }
    }

    /// Lets one invocation in, whose body has been read. Also while draining: its request was taken before.
    pub(crate) fn admit(&self, body: BodyPermit) -> Result<Permit, RequestError> {
        match Arc::clone(&self.inflight).try_acquire_owned() {
            Ok(inflight) => Ok(Permit {
                _inflight: inflight,
                _body: body,
            }),
            Err(_) => Err(RequestError::Overloaded(Full::Inflight)),
        }
    }

    /// As [`Self::open`], waiting while the server starts: after a crash of this process the next one takes the
    /// connections that wait, and milliseconds later it knows the functions.
    pub(crate) async fn opened(&self, wait_max: Duration) -> Result<(), RequestError> {
        if self.stage() == Stage::Starting {
            let mut stage = self.stage.subscribe();
            let begun = stage.wait_for(|stage| *stage != Stage::Starting);
            // That the time has passed shows in the stage.
            drop(timeout(wait_max, begun).await);
        }
        self.open()
    }

    /// Whether work is taken at all.
    fn open(&self) -> Result<(), RequestError> {
        match self.stage() {
            Stage::Starting => Err(RequestError::Starting),
            Stage::Ready => Ok(()),
            Stage::Draining => Err(RequestError::Draining),
        }
    }

    /// A permit for no bytes yet.
    pub(crate) fn body(&self) -> Result<BodyPermit, RequestError> {
        let permit = Arc::clone(&self.body_bytes).try_acquire_many_owned(0);
        permit
            .map(BodyPermit)
            .map_err(|_full| RequestError::Overloaded(Full::BodyBytes))
    }

    /// Lets `permit` hold `bytes` more.
    pub(crate) fn grow(&self, permit: &mut BodyPermit, bytes: usize) -> Result<(), RequestError> {
        let full = RequestError::Overloaded(Full::BodyBytes);
        let Ok(bytes) = u32::try_from(bytes) else {
            return Err(full);
        };
        match Arc::clone(&self.body_bytes).try_acquire_many_owned(bytes) {
            Ok(more) => {
                permit.0.merge(more);
                Ok(())
            }
            Err(_) => Err(full),
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Starting → Ready; a server that is already draining stays so.
    pub(crate) fn become_ready(&self) {
        self.stage.send_if_modified(|stage| {
            let starting = *stage == Stage::Starting;
            if starting {
                *stage = Stage::Ready;
            }
            starting
        });
    }

    pub(crate) fn start_draining(&self) {
        self.stage.send_replace(Stage::Draining);
    }

    pub(crate) fn inflight(&self) -> usize {
        (self.inflight_max as usize).saturating_sub(self.inflight.available_permits())
    }

    pub(crate) fn body_bytes(&self) -> usize {
        (self.body_bytes_max as usize).saturating_sub(self.body_bytes.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(inflight_max: u32, body_bytes_max: u32) -> Admission {
        let admission = Admission::new(inflight_max, body_bytes_max);
        admission.become_ready();
        admission
    }

    #[test]
    fn the_invocation_beyond_the_limit_is_refused_and_one_that_ends_makes_room() {
        let admission = ready(1, 0);
        let first = admission.admit(admission.body().unwrap()).unwrap();
        let second = admission.admit(admission.body().unwrap());
        assert!(matches!(
            second,
            Err(RequestError::Overloaded(Full::Inflight))
        ));
        assert_eq!(admission.inflight(), 1);
        drop(first);
        assert!(admission.admit(admission.body().unwrap()).is_ok());
    }

    #[test]
    fn body_bytes_beyond_the_limit_are_refused_and_given_back_with_the_permit() {
        let admission = ready(1, 10);
        let mut permit = admission.body().unwrap();
        admission.grow(&mut permit, 8).unwrap();
        assert!(matches!(
            admission.grow(&mut permit, 3),
            Err(RequestError::Overloaded(Full::BodyBytes))
        ));
        assert_eq!(admission.body_bytes(), 8);
        drop(permit);
        assert_eq!(admission.body_bytes(), 0);
    }

    #[test]
    fn nothing_is_let_in_before_ready_or_while_draining_and_draining_is_final() {
        let admission = Admission::new(1, 1);
        assert!(matches!(admission.open(), Err(RequestError::Starting)));
        admission.become_ready();
        assert!(admission.open().is_ok());
        admission.start_draining();
        admission.become_ready();
        assert!(matches!(admission.open(), Err(RequestError::Draining)));
    }

    #[tokio::test]
    async fn who_comes_while_the_server_starts_waits_for_it_but_not_for_ever() {
        let admission = Admission::new(1, 1);
        let (waited, ()) = tokio::join!(admission.opened(Duration::MAX), async {
            admission.become_ready();
        });
        assert!(waited.is_ok());
        let stuck = Admission::new(1, 1);
        let waited = stuck.opened(Duration::from_millis(1)).await;
        assert!(matches!(waited, Err(RequestError::Starting)));
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Refused system calls: heard on the sandbox's listener (seccomp_unotify(2)), told to the gateway, and refused.
//!
//! The function waits meanwhile, and nobody else does: one question per sandbox and turn of the loop is answered, and a
//! sandbox that asks too much is heard again only when its allowance has grown. No pointer among a question's arguments is
//! followed, and none is answered by letting the call happen, but for those of a sandbox that is observed: it asks about
//! every call, and gets what its profile says (`seccomp/filter.rs`). When this process dies, the kernel answers ENOSYS.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use hearth_protocol::spawner::{
    Cause, Event, SandboxId, VIOLATIONS_TOLD_MAX, Violation, ViolationClass,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use super::{Spawner, events::Source, observe};
use crate::{
    failure::{Failure, at},
    seccomp::{self, Answer, Asks},
    sys,
};

/// Questions that a sandbox may ask at once.
const ALLOWANCE_MAX: u32 = 256;

/// How often its allowance grows by one. An answer costs the spawner some 20 µs: this bounds what one sandbox takes of it
/// to 2 %.
const ALLOWANCE_INTERVAL: Duration = Duration::from_millis(1);

/// As above for a sandbox that is observed, at an operator's wish and for a time: it asks about every call, and may take a
/// fifth of the spawner.
const OBSERVED_ALLOWANCE_MAX: u32 = 4096;
const OBSERVED_ALLOWANCE_INTERVAL: Duration = Duration::from_micros(100);

/// How long one that has used its allowance up is not heard.
const MUTE_MS: u64 = 10;

/// What one sandbox asks.
#[derive(Debug)]
pub(super) struct Violations {
    /// The filter's listener, from the moment at which init has handed it over.
    listener: Option<OwnedFd>,
    /// Counts for the gateway.
    counter: EventFd,
    /// Since the gateway has read the counter.
    told: u16,
    allowance_max: u32,
    allowance_interval: Duration,
    allowance: u32,
    grown: Instant,
}

impl Violations {
    pub(super) fn new(asks: Asks) -> Result<Self, Failure> {
        let (allowance_max, allowance_interval) = match asks {
            Asks::Refusals => (ALLOWANCE_MAX, ALLOWANCE_INTERVAL),
            Asks::Everything(_) => (OBSERVED_ALLOWANCE_MAX, OBSERVED_ALLOWANCE_INTERVAL),
        };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let counter =
            EventFd::from_flags(flags).map_err(at("make the counter of refused calls"))?;
        Ok(Self {
            listener: None,
            counter,
            told: 0,
            allowance_max,
            allowance_interval,
            allowance: allowance_max,
            grown: Instant::now(),
        })
    }

    /// A copy of the counter, for the gateway.
    pub(super) fn counter(&self) -> Result<OwnedFd, Failure> {
        let copy = self.counter.as_fd().try_clone_to_owned();
        copy.map_err(crate::failure::io_at("copy the counter of refused calls"))
    }

    pub(super) fn take_listener(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }

    /// Before a question is taken: taking one where there is none would wait for it, on older kernels even where nobody is
    /// left to ask.
    fn look(&self) -> Heard {
        let Some(listener) = &self.listener else {
            return Heard::Nothing;
        };
        let mut interest = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut interest, PollTimeout::ZERO).is_err() {
            return Heard::Nothing;
        }
        match interest[0].revents() {
            Some(seen) if seen.contains(PollFlags::POLLIN) => Heard::Question,
            Some(seen) if !seen.is_empty() => Heard::End,
            _ => Heard::Nothing,
        }
    }

    /// Counts one; true where it is to be told in full.
    fn note(&mut self) -> bool {
        let mut interest = [PollFd::new(self.counter.as_fd(), PollFlags::POLLIN)];
        if poll(&mut interest, PollTimeout::ZERO) == Ok(0) {
            // The gateway has read it: what comes now belongs to another invocation.
            self.told = 0;
        }
        // EAGAIN: nobody has read it for 2^64 calls.
        let _full = self.counter.write(1);
        let in_full = self.told < VIOLATIONS_TOLD_MAX;
        self.told += u16::from(in_full);
        in_full
    }

    /// Uses one of the allowance up; false where there is none.
    fn spend(&mut self, now: Instant) -> bool {
        let intervals =
            now.duration_since(self.grown).as_micros() / self.allowance_interval.as_micros();
        if 0 < intervals {
            let grown = u32::try_from(intervals).unwrap_or(self.allowance_max);
            self.allowance = self.allowance.saturating_add(grown).min(self.allowance_max);
            self.grown = now;
        }
        let left = self.allowance.checked_sub(1);
        self.allowance = left.unwrap_or(0);
        left.is_some()
    }
}

/// What a listener has to say.
enum Heard {
    /// A call waits.
    Question,
    /// Whoever asked has died.
    Nothing,
    /// Nobody is left behind the filter.
    End,
}

/// Sandboxes that are not heard for a while, in the order in which they are heard again.
#[derive(Debug, Default)]
pub(super) struct Muted(VecDeque<(Instant, SandboxId)>);

impl Muted {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Spawner {
    /// Takes the listener that came with init's first word, and begins to hear it.
    pub(super) fn listen(
        &mut self,
        id: SandboxId,
        listener: Option<OwnedFd>,
    ) -> Result<(), Failure> {
        let heard = self
            .table
            .get(id)
            .map(|it| it.violations.listener.is_some());
        let Some(listener) = listener else {
            if heard == Some(true) {
                // It came as soon as the filter was up.
                return Ok(());
            }
            // Without its filter's listener a sandbox does not come up; only test-only executables have no filter.
            return if self.parts.build.asks {
                Err(crate::failure::broken("hear the system call filter"))
            } else {
                Ok(())
            };
        };
        self.poller
            .watch(listener.as_fd(), Source::Question(id))
            .map_err(at("watch the system call filter"))?;
        match self.table.get_mut(id) {
            Some(sandbox) => sandbox.violations.listener = Some(listener),
            None => return Err(super::requests::unknown()),
        }
        Ok(())
    }

    /// A call waits. One is answered; the next one makes the listener readable again.
    pub(super) fn hear_question(&mut self, id: SandboxId) {
        let Some(sandbox) = self.table.get_mut(id) else {
            return;
        };
        match sandbox.violations.look() {
            Heard::Question => {}
            Heard::Nothing => return,
            Heard::End => return self.stop_listening(id),
        }
        if !sandbox.violations.spend(Instant::now()) {
            return self.mute(id);
        }
        let Some(listener) = &sandbox.violations.listener else {
            return;
        };
        let question = match sys::seccomp::hear(listener.as_fd()) {
            Ok(question) => question,
            // Whoever asked has died, or everybody has.
            Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => return,
            Err(_broken) => return self.destroy(id, Cause::Destroyed),
        };
        let (caller, is_own) = observe::caller(&mut sandbox.launch, sandbox.pid, &question);
        let (number, arguments) = (question.number, &question.arguments);
        let answer = sandbox.filter.answer(number, arguments, caller);
        if let (Asks::Everything(by), true) = (sandbox.filter.asks(), is_own) {
            self.observations.count(by, number, answer);
        }
        // Before the answer: when the function has ended, the gateway finds all of its calls counted. The one that ends
        // the sandbox is always told: without it, its end would look like the platform's fault.
        if let Some(class) = answer.class()
            && (sandbox.violations.note() || class == ViolationClass::Kill)
            && sandbox.announced
        {
            let violation = Violation {
                name: seccomp::name_of(question.number)
                    .unwrap_or_default()
                    .to_owned(),
                number: question.number,
                arguments: question.arguments,
                class,
            };
            let sandbox = id;
            self.link
                .push(&Event::Violation { sandbox, violation }, Vec::new());
        }
        if answer == Answer::Kill {
            return self.destroy(id, Cause::Forbidden);
        }
        if let Some(Some(listener)) = self.table.get(id).map(|it| &it.violations.listener) {
            // Where whoever asked has died meanwhile, nobody is answered anything.
            let _dead = match answer {
                Answer::Continue => sys::seccomp::proceed(listener.as_fd(), question.id),
                Answer::Errno(errno) => sys::seccomp::refuse(listener.as_fd(), question.id, errno),
                Answer::Kill => Ok(()),
            };
        }
    }

    fn mute(&mut self, id: SandboxId) {
        let Some(Some(listener)) = self.table.get(id).map(|it| &it.violations.listener) else {
            return;
        };
        if self.poller.forget(listener.as_fd()).is_ok() {
            let until = Instant::now() + Duration::from_millis(MUTE_MS);
            self.muted.0.push_back((until, id));
        }
    }

    /// Hears those again whose time has come.
    pub(super) fn unmute(&mut self) {
        let now = Instant::now();
        while let Some((until, id)) = self.muted.0.front().copied() {
            if now < until {
                return;
            }
            self.muted.0.pop_front();
            let listener = self.table.get(id).map(|it| &it.violations.listener);
            let Some(Some(listener)) = listener else {
                continue;
            };
            if self
                .poller
                .watch(listener.as_fd(), Source::Question(id))
                .is_err()
            {
                self.destroy(id, Cause::Destroyed);
            }
        }
    }

    /// Stops to hear a sandbox: what still asks is answered ENOSYS by the kernel, and is being killed.
    pub(super) fn stop_listening(&mut self, id: SandboxId) {
        let listener = self
            .table
            .get_mut(id)
            .and_then(|it| it.violations.take_listener());
        if let Some(listener) = listener {
            // Muted ones are not watched. A child that is being cloned may hold a copy for a moment, so closing alone
            // would not end the watch.
            let _unwatched = self.poller.forget(listener.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_calls_after_each_read_are_told_in_full_and_all_are_counted() {
        let mut violations = Violations::new(Asks::Refusals).unwrap();
        let told: Vec<bool> = (0..=VIOLATIONS_TOLD_MAX)
            .map(|_| violations.note())
            .collect();
        assert!(told.iter().take(told.len() - 1).all(|told| *told));
        assert_eq!(told.last(), Some(&false));
        assert_eq!(
            violations.counter.read(),
            Ok(u64::from(VIOLATIONS_TOLD_MAX) + 1)
        );
        assert!(violations.note());
    }

    #[test]
    fn an_allowance_is_used_up_and_grows_with_time() {
        let mut violations = Violations::new(Asks::Refusals).unwrap();
        let now = violations.grown;
        let spent = (0..2 * ALLOWANCE_MAX)
            .filter(|_| violations.spend(now))
            .count();
        assert_eq!(spent, ALLOWANCE_MAX as usize);
        let later = now + 3 * ALLOWANCE_INTERVAL;
        let spent = (0..2 * ALLOWANCE_MAX)
            .filter(|_| violations.spend(later))
            .count();
        assert_eq!(spent, 3);
    }
}

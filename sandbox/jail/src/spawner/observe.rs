// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What functions are seen to do: the calls of observed sandboxes, counted, and names as a learned profile.
//!
//! Init's own calls are not counted, nor are those of its child until that has become the program: every learned
//! profile allows them (`profiles/always.json`).

use std::{collections::BTreeMap, os::fd::OwnedFd};

use hearth_protocol::{
    TreeId,
    profile::{CALLS_MAX, Observation, ObservationId, ObservedCall, Profile, Tier},
    spawner::{Event, OBSERVATIONS_MAX, RequestId},
};
use nix::{errno::Errno, unistd::Pid};

use super::{Spawner, requests::refused};
use crate::{
    failure::Failure,
    seccomp::{self, Answer, Caller},
    sys::seccomp::Question,
};

/// Every observation that goes on.
#[derive(Debug, Default)]
pub(super) struct Observations {
    running: BTreeMap<ObservationId, Counts>,
    last: u64,
}

/// One observation.
#[derive(Debug, Default)]
struct Counts {
    /// By number: allowed, refused.
    calls: BTreeMap<u32, (u64, u64)>,
    uncounted: u64,
}

impl Observations {
    fn begin(&mut self) -> Result<ObservationId, Failure> {
        if OBSERVATIONS_MAX <= self.running.len() {
            return Err(Failure {
                step: "observe one more function".into(),
                errno: Errno::EAGAIN,
            });
        }
        self.last += 1;
        let id = ObservationId(self.last);
        self.running.insert(id, Counts::default());
        Ok(id)
    }

    /// Fails where a sandbox is to be observed for an observation that does not go on.
    pub(super) fn check(&self, profile: Profile) -> Result<(), Failure> {
        match profile {
            Profile::Observed(observed) if !self.running.contains_key(&observed.by) => {
                Err(refused("find the observation"))
            }
            _ => Ok(()),
        }
    }

    /// Counts one call; nothing where the observation has ended.
    pub(super) fn count(&mut self, id: ObservationId, number: u32, answer: Answer) {
        let Some(counts) = self.running.get_mut(&id) else {
            return;
        };
        if counts.calls.len() == CALLS_MAX && !counts.calls.contains_key(&number) {
            counts.uncounted += 1;
            return;
        }
        let (allowed, refused) = counts.calls.entry(number).or_default();
        match answer {
            Answer::Continue => *allowed += 1,
            Answer::Errno(_) | Answer::Kill => *refused += 1,
        }
    }

    fn end(&mut self, id: ObservationId) -> Option<Observation> {
        let Counts { calls, uncounted } = self.running.remove(&id)?;
        let call = |(number, (allowed, refused))| ObservedCall {
            name: seccomp::name_of(number).unwrap_or_default().to_owned(),
            number,
            allowed,
            refused,
        };
        Some(Observation {
            calls: calls.into_iter().map(call).collect(),
            uncounted,
        })
    }
}

/// Where init's start of a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Launch {
    /// None goes on.
    #[default]
    None,
    /// Init has begun one; the next process that is not init is its child: no other is left between two calls.
    Begun,
    /// This is the child, until it executes the program.
    By(Pid),
}

/// Who made a call, and whether it is the function's own.
pub(super) fn caller(launch: &mut Launch, init: Pid, question: &Question) -> (Caller, bool) {
    let name = seccomp::name_of(question.number);
    if question.pid == init {
        if name == Some("clone") {
            *launch = Launch::Begun;
        }
        return (Caller::Init, false);
    }
    let launching = match *launch {
        Launch::None => false,
        Launch::Begun => true,
        Launch::By(pid) => pid == question.pid,
    };
    if launching {
        let executes = matches!(name, Some("execve" | "execveat"));
        *launch = if executes {
            Launch::None
        } else {
            Launch::By(question.pid)
        };
    }
    (Caller::Function, !launching)
}

impl Spawner {
    pub(super) fn observe(&mut self, request: RequestId) {
        let begun = self.observations.begin();
        let answer = |observation| Event::Observing {
            request,
            observation,
        };
        self.answer(request, begun.map(|id| (answer(id), Vec::new())));
    }

    pub(super) fn end_observation(&mut self, request: RequestId, id: ObservationId) {
        let ended = self.observations.end(id);
        let answer = |observation| Event::Observed {
            request,
            observation,
        };
        let outcome = ended.ok_or_else(|| refused("find the observation"));
        self.answer(request, outcome.map(|seen| (answer(seen), Vec::new())));
    }

    pub(super) fn read_profile(&mut self, request: RequestId, of: Tier, names: &[String]) {
        let outcome = if CALLS_MAX < names.len() {
            Err(refused("take so many names of system calls"))
        } else {
            seccomp::read_profile(of, names).map_err(|_not_compiled| refused("compile the profile"))
        };
        let answer = |reading| Event::ProfileRead {
            request,
            reading: Box::new(reading),
        };
        self.answer(request, outcome.map(|read| (answer(read), Vec::new())));
    }

    /// A stored file, for the gateway to read: it had the content when it stored it.
    pub(super) fn open_stored(&self, tree: &TreeId, path: &str) -> Result<OwnedFd, Failure> {
        let step = "open a stored file";
        if !self.parts.store.contains(tree) {
            return Err(Failure {
                step: step.into(),
                errno: Errno::ENOENT,
            });
        }
        let opened = self.parts.store.open_file(tree, path);
        opened.map_err(|error| Failure {
            step: step.into(),
            errno: Errno::from_raw(error.errno()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(pid: i32, name: &str) -> Question {
        Question {
            id: 0,
            pid: Pid::from_raw(pid),
            number: u32::try_from(name.parse::<syscalls::Sysno>().unwrap().id()).unwrap(),
            arguments: [0; 6],
        }
    }

    #[test]
    fn what_init_s_child_does_before_it_is_the_program_is_not_the_function_s() {
        let init = Pid::from_raw(1);
        let mut launch = Launch::default();
        let mut is_function_s = |pid, name| caller(&mut launch, init, &question(pid, name)).1;
        assert!(!is_function_s(1, "recvmsg"));
        assert!(!is_function_s(1, "clone"));
        assert!(!is_function_s(2, "prlimit64"));
        assert!(!is_function_s(2, "execve"));
        assert!(is_function_s(2, "brk"));
        assert!(is_function_s(2, "clone"));
        assert!(is_function_s(3, "execve"));
        assert!(!is_function_s(1, "wait4"));
    }

    #[test]
    fn an_observation_counts_until_it_ends_and_there_are_only_so_many() {
        let mut observations = Observations::default();
        let id = observations.begin().unwrap();
        for number in 0..=u32::try_from(CALLS_MAX).unwrap() {
            observations.count(id, number, Answer::Continue);
        }
        observations.count(id, 0, Answer::Errno(38));
        let seen = observations.end(id).unwrap();
        assert_eq!((seen.calls.len(), seen.uncounted), (CALLS_MAX, 1));
        assert_eq!((seen.calls[0].allowed, seen.calls[0].refused), (1, 1));
        observations.count(id, 0, Answer::Continue);
        assert_eq!(observations.end(id), None);
        let begun = (0..OBSERVATIONS_MAX).all(|_| observations.begin().is_ok());
        assert!(begun && observations.begin().is_err());
    }
}

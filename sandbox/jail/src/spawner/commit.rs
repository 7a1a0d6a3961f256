// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Commits of trees, each in a process of its own: flushing a large tree takes seconds, and the spawner waits for no disk.
//!
//! ```text
//! spawner ── fork ──▶ commit ── the answer, ready to be passed on ──▶ spawner ──▶ gateway
//!                        └ exits, killed with the spawner
//! ```

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
};

use hearth_protocol::{
    frame::{self, PACKET_BYTES_MAX},
    spawner::{Event, RequestId},
};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::Signal,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
};

use super::{Spawner, SpawnerError, at, events::Source, requests::failed, upload::refusal};
use crate::{
    failure::{self, Failure},
    socket,
    sys::{
        self,
        clone::{Cloned, exit_now, fork_into},
    },
    trees::Commit,
};

/// Where the process finds its way back: in the place of a standard input that it does not read.
const ANSWER: i32 = 0;

/// The first descriptor that it does not need.
const FIRST_UNUSED: u32 = 3;

/// Its exit status where it could not say what is wrong.
const EXIT_SPEECHLESS: i32 = 70;

/// One at a time: they would wait for the same disk. How many wait is bounded by the store's limit of uploads.
#[derive(Debug, Default)]
pub(super) struct Commits {
    waiting: VecDeque<(RequestId, Commit)>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    request: RequestId,
    commit: Commit,
    pidfd: OwnedFd,
    answer: OwnedFd,
}

impl Commits {
    pub(super) fn push(&mut self, request: RequestId, commit: Commit) {
        self.waiting.push_back((request, commit));
    }
}

impl Spawner {
    /// Begins the next commit, if none is running.
    pub(super) fn begin_commit(&mut self) {
        while self.commits.running.is_none() {
            let Some((request, commit)) = self.commits.waiting.pop_front() else {
                return;
            };
            match self.start_commit(request, &commit) {
                Ok((pidfd, answer)) => {
                    self.commits.running = Some(Running {
                        request,
                        commit,
                        pidfd,
                        answer,
                    });
                }
                Err(failure) => self.finish_commit(&commit, &failed(request, failure)),
            }
        }
    }

    fn start_commit(
        &self,
        request: RequestId,
        commit: &Commit,
    ) -> Result<(OwnedFd, OwnedFd), Failure> {
        let (ours, theirs) = socket::pair().map_err(failure::at("make a socket"))?;
        match fork_into(0, None).map_err(failure::at("start a process that stores the files"))? {
            Cloned::Child => child(request, commit, &theirs),
            Cloned::Parent { pidfd, .. } => {
                self.poller
                    .watch(pidfd.as_fd(), Source::Commit)
                    // Unwatched, it ends and nobody hears it; its answer is lost, and the gateway is told so.
                    .map_err(failure::at("watch the process that stores the files"))?;
                Ok((pidfd, ours))
            }
        }
    }

    /// The process has ended: what it said goes to the gateway.
    pub(super) fn end_commit(&mut self) -> Result<(), SpawnerError> {
        let Some(running) = self.commits.running.take() else {
            return Ok(());
        };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        let status = waitid(Id::PIDFd(running.pidfd.as_fd()), flags)
            .map_err(at("reap the process that stores the files"))?;
        if status == WaitStatus::StillAlive {
            self.commits.running = Some(running);
            return Ok(());
        }
        self.poller
            .forget(running.pidfd.as_fd())
            .map_err(at("leave a pidfd"))?;
        self.finish_commit(&running.commit, &answer_of(&running));
        self.begin_commit();
        Ok(())
    }

    /// At the spawner's own end: nobody will hear of the rest.
    pub(super) fn abandon_commits(&mut self) {
        self.commits.waiting.clear();
        if let Some(running) = self.commits.running.take() {
            // It has ended already, or has set that it ends with the spawner.
            let _gone = sys::clone::signal(running.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    fn finish_commit(&mut self, commit: &Commit, answer: &Event) {
        // What cannot be moved away now is swept at the next start: it carries an unfinished tree's name.
        let _later = self.parts.store.end_commit(commit);
        self.untidy = true;
        self.link.push(answer, Vec::new());
    }
}

/// Its last words; a failure where it died without any.
fn answer_of(running: &Running) -> Event {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let said = socket::receive(running.answer.as_fd(), &mut packet)
        .ok()
        .and_then(|received| packet.get(..received.bytes));
    said.and_then(|said| frame::decode_bare(said).ok())
        .unwrap_or_else(|| {
            failed(
                running.request,
                Failure {
                    step: "store the files: the process that did it died".into(),
                    errno: Errno::ECHILD,
                },
            )
        })
}

/// The whole life of the process. Never returns: what it shares with the spawner's code, destructors that would delete
/// uploads among it, must not run here.
fn child(request: RequestId, commit: &Commit, theirs: &OwnedFd) -> ! {
    let said = catch_unwind(AssertUnwindSafe(|| say(request, commit, theirs)));
    exit_now(match said {
        Ok(Ok(())) => 0,
        Ok(Err(_)) | Err(_) => EXIT_SPEECHLESS,
    })
}

fn say(request: RequestId, commit: &Commit, theirs: &OwnedFd) -> Result<(), Errno> {
    // Nobody would take the answer after the spawner's end.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Sandboxes' sockets and the gateway's are the spawner's alone: a copy here would hide that it closed them.
    sys::fds::place(theirs.as_fd(), ANSWER)?;
    sys::fds::close_from(FIRST_UNUSED)?;
    let event = match commit.run() {
        Ok(tree) => Event::TreeStored { request, tree },
        Err(error) => refusal(request, &error),
    };
    let mut packet = Vec::new();
    frame::encode(&event, b"", &mut packet).map_err(|_too_long| Errno::EMSGSIZE)?;
    socket::send_waiting(sys::fds::placed(ANSWER), &packet)
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The loop, and who handles what.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use hearth_protocol::spawner::{Cause, Event, Request, RequestId};
use nix::{errno::Errno, sys::epoll::EpollTimeout};

use super::{
    Ended, Spawner, SpawnerError, at,
    audit::AUDIT_INTERVAL_MS,
    events::Source,
    groundwork::GROUNDWORK_QUIET_MS,
    link::Closed,
    table::{Sandbox, State},
};
use crate::{failure::Failure, trees::Chunk};

/// Between two tries to remove a cgroup that the kernel still counts a dying process in, and between two looks at the
/// sandboxes that are not heard for a while.
const RETRY_MS: u8 = 2;

/// Between two looks at the deadlines of sandboxes that are starting.
const DEADLINE_LOOK_MS: u16 = 500;

/// How long the end of everything may take before the rest is left to PDEATHSIG and the next start's sweep.
const END_MS_MAX: u64 = 10_000;

/// What a gateway in one turn may ask before others are looked at: signals, deaths and setups are not starved.
const REQUESTS_PER_TURN_MAX: usize = 16;

impl Spawner {
    /// Serves until the gateway goes or a signal comes; then destroys everything.
    pub(super) fn serve(&mut self) -> Result<Ended, SpawnerError> {
        let ended = loop {
            if let Some(ended) = self.turn()? {
                break ended;
            }
        };
        self.end()?;
        Ok(ended)
    }

    fn turn(&mut self) -> Result<Option<Ended>, SpawnerError> {
        self.poller
            .watch_gateway(self.link.socket(), self.link.interest())
            .map_err(at("watch the gateway's socket"))?;
        let sources = self
            .poller
            .wait(self.timeout())
            .map_err(at("wait for events"))?;
        if sources.is_empty() {
            if self.untidy {
                self.tidy();
            } else if self.is_quiet() {
                self.lay_groundwork();
            }
        }
        for source in sources {
            match source {
                Source::Gateway => self.serve_gateway(),
                Source::Commit => self.end_commit()?,
                Source::Signals => {
                    if self
                        .signals
                        .read_signal()
                        .map_err(at("read a signal"))?
                        .is_some()
                    {
                        return Ok(Some(Ended::Stopped));
                    }
                }
                other => self.serve_sandbox(other)?,
            }
        }
        self.unmute();
        self.look_at_the_dying();
        self.give_up_on_the_late();
        self.create_next();
        self.audit();
        Ok(self.link.closed().map(|closed| match closed {
            Closed::ByPeer | Closed::Broken => Ended::GatewayGone,
        }))
    }

    fn timeout(&self) -> EpollTimeout {
        if self.untidy || self.may_create() {
            return EpollTimeout::ZERO;
        }
        let any = |wanted: fn(&Sandbox) -> bool| self.table.restless().any(|(_, one)| wanted(one));
        if !self.muted.is_empty() || any(|sandbox| matches!(sandbox.state, State::Reaped(..))) {
            return EpollTimeout::from(RETRY_MS);
        }
        if any(|sandbox| matches!(sandbox.state, State::Starting(_))) {
            return EpollTimeout::from(DEADLINE_LOOK_MS);
        }
        if self.lacks_groundwork() {
            return EpollTimeout::from(GROUNDWORK_QUIET_MS);
        }
        if self.parts.build.watchful && !self.table.is_empty() {
            return EpollTimeout::from(AUDIT_INTERVAL_MS);
        }
        EpollTimeout::NONE
    }

    fn serve_sandbox(&mut self, source: Source) -> Result<(), SpawnerError> {
        match source {
            Source::Setup(id) => self.hear_setup(id),
            Source::Exit(id) => self.reap(id)?,
            Source::Oom(id) => self.out_of_memory(id),
            Source::Question(id) => self.hear_question(id),
            Source::Gateway | Source::Signals | Source::Commit => {}
        }
        Ok(())
    }

    fn serve_gateway(&mut self) {
        self.link.flush();
        for _ in 0..REQUESTS_PER_TURN_MAX {
            match self.link.receive() {
                Some((request, fds)) => self.handle(request, fds),
                None => break,
            }
        }
    }

    fn handle(&mut self, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Create {
                request,
                spec,
                limits,
            } => self.queue_create(request, spec, limits),
            Request::Bind {
                request,
                sandbox,
                tree,
                handover,
                limits,
            } => {
                let outcome = self.bind(sandbox, tree, &handover, &limits);
                self.answer(request, outcome.map(|fds| (Event::Bound { request }, fds)));
            }
            Request::Renew { request, sandbox } => {
                let outcome = self.renew(sandbox);
                self.answer(
                    request,
                    outcome.map(|discarded| (Event::Renewed { request, discarded }, Vec::new())),
                );
            }
            Request::Inspect { request, sandbox } => {
                let outcome = self.inspect(sandbox);
                self.answer(
                    request,
                    outcome.map(|memfd| (Event::Inspected { request }, vec![memfd])),
                );
            }
            Request::Destroy { sandbox } => self.destroy(sandbox, Cause::Destroyed),
            Request::TreeBegin { request } => self.tree_begin(request),
            Request::TreeChunk {
                upload,
                path,
                executable,
                offset,
                bytes,
            } => {
                let chunk = Chunk {
                    path: &path,
                    executable,
                    offset,
                    bytes,
                };
                self.tree_chunk(upload, chunk, &fds);
            }
            Request::TreeCommit { request, upload } => self.tree_commit(request, upload),
            Request::TreeAbort { upload } => self.tree_abort(upload),
            Request::TreeRemove { request, tree } => self.tree_remove(request, &tree),
            Request::TreeOpen {
                request,
                tree,
                path,
            } => {
                let outcome = self.open_stored(&tree, &path);
                let answer = outcome.map(|file| (Event::TreeOpened { request }, vec![file]));
                self.answer(request, answer);
            }
            Request::Observe { request } => self.observe(request),
            Request::EndObservation {
                request,
                observation,
            } => self.end_observation(request, observation),
            Request::ReadProfile { request, of, calls } => self.read_profile(request, of, &calls),
        }
    }

    /// One answer per request.
    pub(super) fn answer(
        &mut self,
        request: RequestId,
        outcome: Result<(Event, Vec<OwnedFd>), Failure>,
    ) {
        match outcome {
            Ok((event, fds)) => self.link.push(&event, fds),
            Err(failure) => self.link.push(&failed(request, failure), Vec::new()),
        }
    }

    /// Destroys every sandbox and waits until they are gone.
    fn end(&mut self) -> Result<(), SpawnerError> {
        let deadline = Instant::now() + Duration::from_millis(END_MS_MAX);
        self.abandon_commits();
        self.groundwork.give_up();
        for id in self.table.ids() {
            self.destroy(id, Cause::Destroyed);
        }
        // The gateway may have closed its end: its readiness is of no more interest, and would wake every wait.
        self.poller
            .forget(self.link.socket())
            .map_err(at("leave the gateway's socket"))?;
        while !self.table.is_empty() && Instant::now() < deadline {
            for source in self
                .poller
                .wait(EpollTimeout::from(RETRY_MS))
                .map_err(at("wait for events"))?
            {
                if let Source::Exit(id) = source {
                    self.reap(id)?;
                }
            }
            self.look_at_the_dying();
            self.link.flush();
        }
        Ok(())
    }
}

/// The answer to a request that failed.
pub(super) fn failed(request: RequestId, failure: Failure) -> Event {
    let message = failure.to_string();
    Event::Failed {
        request,
        step: failure.step.into_owned(),
        errno: failure.errno as i32,
        message,
    }
}

/// The request names a sandbox that is not there, or no longer.
pub(super) fn unknown() -> Failure {
    Failure {
        step: "find the sandbox".into(),
        errno: Errno::ESRCH,
    }
}

/// The request does not fit the sandbox's life.
pub(super) fn wrong_state(step: &'static str) -> Failure {
    Failure {
        step: step.into(),
        errno: Errno::EBUSY,
    }
}

/// The request asks for something that is outside its limits.
pub(super) fn refused(step: &'static str) -> Failure {
    Failure {
        step: step.into(),
        errno: Errno::EINVAL,
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One invocation as a fresh process in a warm sandbox, and the cleaning after it.

mod pipes;
mod settle;

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hearth_protocol::{
    init::{Event, ExitStatus, RUN_FDS, Request, ScratchUse},
    spawner::ViolationClass,
};
use nix::sys::signal::Signal;
use tokio::{
    net::unix::pipe,
    time::{sleep_until, timeout, timeout_at},
};

use self::pipes::{Pipes, READ_BYTES_U32, Tap, write_more, write_now};
pub(crate) use self::settle::settle;
use crate::{
    FailureCause, KillCause, Outcome, RefusedCall, Target,
    channel::ChannelError,
    outcome::RETRY_AFTER_S,
    output::Pushed,
    record::{Record, micros},
    reply::HOLD_BYTES,
    roster::Idle,
    violations,
};

/// How long a function runs before the runtime watches its pipes. Most are done by then and have written less than a pipe
/// holds: watching would cost them eight system calls and a wake-up per write. One that writes more stands still until
/// then.
const UNWATCHED_MAX: Duration = Duration::from_millis(2);

/// After the main process's exit its descendants are killed at once, so the pipes end by themselves; a descendant that
/// the kernel is slow to kill must not hold the answer up for longer than this.
const DRAIN_WAIT_MAX: Duration = Duration::from_millis(50);

/// How long to wait for the spawner's word on why a sandbox died.
const DEATH_WAIT_MAX: Duration = Duration::from_secs(1);

/// Init's events are short: a step's name and a number. In bytes.
const EVENT_BYTES_MAX: usize = 1024;

/// How a run ended, before it is judged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(ExitStatus),
    CannotExecute {
        step: String,
        errno: i32,
    },
    TimedOut,
    TooLarge,
    Untaken,
    BadHead(String),
    Cancelled,
    /// The gateway has no descriptors left.
    NoPipes {
        errno: nix::errno::Errno,
    },
    /// Init is gone.
    Lost,
    /// Init was gone before it was told anything: another sandbox may take the invocation.
    NotBegun,
}

impl Ended {
    /// How a run ends for what it wrote; none where it may go on.
    fn of_output(pushed: Pushed) -> Option<Self> {
        match pushed {
            Pushed::Fine => None,
            Pushed::TooLarge => Some(Self::TooLarge),
            Pushed::Untaken => Some(Self::Untaken),
            Pushed::BadHead(problem) => Some(Self::BadHead(problem)),
        }
    }
}

/// What a run leaves behind.
pub(crate) struct Run {
    pub(crate) ended: Ended,
    clean: Option<(u32, ScratchUse)>,
}

impl Run {
    /// Ended so that the sandbox is of no further use.
    fn unclean(ended: Ended) -> Self {
        Self { ended, clean: None }
    }
}

/// Runs the invocation to its end in `idle`, feeding output and log into `record`.
pub(crate) async fn run(idle: &Idle, target: &Target, record: &mut Record) -> Run {
    let Pipes {
        stdin,
        stdout,
        stderr,
        theirs,
    } = match Pipes::new(record.body.len()) {
        Ok(pipes) => pipes,
        Err(errno) => return Run::unclean(Ended::NoPipes { errno }),
    };
    let rest = write_now(&stdin, &mut record.body.clone());
    if let Err(run) = begin(idle, target, record, theirs).await {
        return run;
    }
    record.phases.start_us = micros(record.run_began);
    let feed =
        rest.and_then(|body| Some((pipe::Sender::from_owned_fd_unchecked(stdin).ok()?, body)));
    let mut watch = Watch {
        idle,
        stdout: Tap::Unwatched(stdout),
        stderr: Tap::Unwatched(stderr),
        feed,
        exited: None,
        clean: None,
    };
    let ended = watch.until_end(target, record).await;
    Run {
        ended,
        clean: watch.clean,
    }
}

/// Tells init to run the program with these descriptors. An error is how the run ended without having begun.
async fn begin(
    idle: &Idle,
    target: &Target,
    record: &mut Record,
    theirs: [OwnedFd; RUN_FDS],
) -> Result<(), Run> {
    let request = Request::Run {
        seq: SEQ,
        env: std::mem::take(&mut record.env),
    };
    let fds = [theirs[0].as_fd(), theirs[1].as_fd(), theirs[2].as_fd()];
    let sent = idle.sandbox.channel.send(&request, &[], &fds);
    let deadline = record.run_began + target.limits.timeout;
    match timeout_at(deadline.into(), sent).await {
        Ok(Ok(())) => Ok(()),
        // Init reads no more.
        Err(_elapsed) => Err(Run::unclean(Ended::TimedOut)),
        Ok(Err(ChannelError::Frame(_))) => Err(Run {
            ended: Ended::CannotExecute {
                step: "environment".to_owned(),
                errno: nix::libc::E2BIG,
            },
            clean: Some((0, ScratchUse::default())),
        }),
        Ok(Err(error)) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "an idle sandbox was gone"
            );
            if let Request::Run { env, .. } = request {
                record.env = env;
            }
            Err(Run::unclean(Ended::NotBegun))
        }
    }
}

/// One invocation at a time needs but one number.
const SEQ: u32 = 1;

/// Everything that is waited for while a function runs.
struct Watch<'i> {
    idle: &'i Idle,
    stdout: Tap,
    stderr: Tap,
    feed: Option<(pipe::Sender, Bytes)>,
    exited: Option<(ExitStatus, Instant)>,
    clean: Option<(u32, ScratchUse)>,
}

impl Watch<'_> {
    async fn until_end(&mut self, target: &Target, record: &mut Record) -> Ended {
        let deadline = record.run_began + target.limits.timeout;
        let unwatched_until = deadline.min(record.run_began + UNWATCHED_MAX);
        let mut events = [0; EVENT_BYTES_MAX];
        loop {
            let limit = match self.exited {
                Some((status, _)) if self.stdout.is_ended() && self.stderr.is_ended() => {
                    return Ended::Exited(status);
                }
                Some((_, at)) => at + DRAIN_WAIT_MAX,
                None if self.stdout.is_unwatched() => unwatched_until,
                None => deadline,
            };
            let room = record.output.room(READ_BYTES_U32);
            // In this order: a function that floods its pipes must not starve its own deadline.
            tokio::select! {
                biased;
                event = self.idle.sandbox.channel.recv::<Event>(&mut events) => {
                    let event = event.map(|received| received.message);
                    if let Some(ended) = self.take(event, record) { return ended }
                }
                () = sleep_until(limit.into()) => match self.exited {
                    Some((status, _)) => return self.take_what_is_left(status, record),
                    None if deadline <= Instant::now() => return Ended::TimedOut,
                    None => if let Some(ended) = self.watch() { return ended },
                },
                () = record.output.closed() => return Ended::Cancelled,
                () = async { room.await; self.stdout.readable().await } => {
                    let mut pushed = Pushed::Fine;
                    self.stdout.read(|bytes| pushed = record.push_output(bytes));
                    if let Some(ended) = Ended::of_output(pushed) { return ended }
                }
                () = self.stderr.readable() => self.stderr.read(|bytes| record.log.push(bytes)),
                () = write_more(&mut self.feed) => {}
            }
        }
    }

    /// From now on the runtime says when there is something to read. An end is how the run ended for want of that.
    fn watch(&mut self) -> Option<Ended> {
        let watched = self.stdout.watch().and_then(|()| self.stderr.watch());
        watched.is_err().then_some(Ended::Lost)
    }

    /// What the main process wrote is in the pipes when its exit is announced. If this thread was held up, the drain
    /// limit may have passed before the runtime learnt that they can be read: so they are read past it, directly.
    fn take_what_is_left(&mut self, status: ExitStatus, record: &mut Record) -> Ended {
        let mut pushed = Pushed::Fine;
        self.stdout.drain(|bytes| {
            if pushed == Pushed::Fine {
                pushed = record.push_output(bytes);
            }
        });
        self.stderr.drain(|bytes| record.log.push(bytes));
        Ended::of_output(pushed).unwrap_or(Ended::Exited(status))
    }

    fn take(&mut self, event: Result<Event, ChannelError>, record: &mut Record) -> Option<Ended> {
        match event {
            Ok(Event::Exited { status, clean, .. }) => {
                self.exited = Some((status, Instant::now()));
                // Nobody reads it any more.
                self.feed = None;
                self.clean = clean.map(|scratch| (0, scratch));
                self.take_output(record)
            }
            Ok(Event::Clean {
                killed, scratch, ..
            }) => {
                self.clean = Some((killed, scratch));
                None
            }
            Ok(Event::Failed { step, errno, .. }) => {
                self.clean = Some((0, ScratchUse::default()));
                Some(Ended::CannotExecute { step, errno })
            }
            Ok(Event::Bound) | Err(_) => Some(Ended::Lost),
        }
    }

    /// After the main process's exit: the rest of the output. Where nobody is left to write, it lies in the pipes and is
    /// read at once; else, and where there is more than one read takes or the caller sets the pace, by and by.
    fn take_output(&mut self, record: &mut Record) -> Option<Ended> {
        if self.clean.is_some() && record.output.seen_bytes() <= HOLD_BYTES as u64 {
            let mut pushed = Pushed::Fine;
            self.stdout
                .read_last(|bytes| pushed = record.push_output(bytes));
            self.stderr.read_last(|bytes| record.log.push(bytes));
            if let Some(ended) = Ended::of_output(pushed) {
                return Some(ended);
            }
        }
        self.watch()
    }
}

/// What became of the invocation.
pub(crate) async fn judge(
    ended: Ended,
    idle: &Idle,
    target: &Target,
    record: &mut Record,
) -> Outcome {
    let forbidden = match ended {
        // Init may still have told of its process's end before its own.
        Ended::Lost | Ended::Exited(ExitStatus::Signaled(_)) => {
            forbidden(idle, target, record).await
        }
        _ => None,
    };
    let record = &*record;
    let stderr_tail = || record.log.tail();
    let gauges = &idle.sandbox.gauges;
    let oom = |peak_bytes| KillCause::Oom {
        peak_bytes,
        limit_bytes: target.limits.memory_bytes,
    };
    let killed = |cause| Outcome::FunctionKilled {
        cause,
        stderr_tail: stderr_tail(),
    };
    let failed = |cause| Outcome::FunctionFailed {
        cause,
        stderr_tail: stderr_tail(),
    };
    let seccomp = |call| KillCause::Seccomp {
        profile: target.profile().name().to_owned(),
        call,
    };
    match ended {
        _ if forbidden.is_some() => killed(seccomp(forbidden)),
        Ended::TimedOut => Outcome::timed_out(target.limits.timeout, record.output.seen_bytes()),
        Ended::TooLarge => Outcome::ResponseTooLarge {
            limit_bytes: target.limits.response_bytes,
            seen_bytes: record.output.seen_bytes(),
        },
        Ended::Untaken => Outcome::Overloaded {
            retry_after_s: RETRY_AFTER_S,
        },
        Ended::NoPipes { errno } => Outcome::CannotStart {
            step: "pipes".to_owned(),
            errno: errno as i32,
            message: format!("cannot make the pipes to the function: {errno}"),
        },
        Ended::Cancelled => Outcome::Cancelled,
        Ended::BadHead(problem) => failed(FailureCause::BadOutput { problem }),
        Ended::CannotExecute { step, errno } => failed(FailureCause::CannotExecute { step, errno }),
        Ended::Lost | Ended::NotBegun => {
            // The whole sandbox is killed on its first OOM kill, so memory is the likeliest reason.
            match timeout(DEATH_WAIT_MAX, idle.sandbox.death.seen()).await {
                Ok(totals) if idle.counters.oom_kills < totals.oom_kills => {
                    killed(oom(totals.memory_peak_bytes))
                }
                _ => Outcome::SandboxLost,
            }
        }
        Ended::Exited(_) if idle.counters.oom_kills < gauges.oom_kills() => {
            killed(oom(peak_of(idle).await))
        }
        Ended::Exited(ExitStatus::Exited(0)) => Outcome::Ok,
        Ended::Exited(ExitStatus::Exited(code)) => failed(FailureCause::ExitCode {
            code: u32::from(code),
        }),
        Ended::Exited(ExitStatus::Signaled(signal))
            if i32::from(signal) == Signal::SIGSYS as i32 =>
        {
            killed(seccomp(None))
        }
        Ended::Exited(ExitStatus::Signaled(signal)) => killed(KillCause::Signal { signal }),
    }
}

/// The call for which the sandbox was killed, if it was. What else was refused is noted by the way.
async fn forbidden(idle: &Idle, target: &Target, record: &mut Record) -> Option<RefusedCall> {
    violations::note_last(&idle.sandbox, target, record).await;
    let first = record.violations.iter().flat_map(|noted| &noted.first);
    let mut killing = first.filter(|call| call.class == ViolationClass::Kill);
    killing.next().cloned()
}

/// The most memory that was held. The rest of a sandbox is killed after its first OOM kill, so its cgroup may be gone
/// already: then the spawner read it last.
async fn peak_of(idle: &Idle) -> u64 {
    match idle.sandbox.gauges.memory_peak_bytes() {
        0 => timeout(DEATH_WAIT_MAX, idle.sandbox.death.seen())
            .await
            .map_or(0, |totals| totals.memory_peak_bytes),
        peak_bytes => peak_bytes,
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One invocation as a fresh process in a warm sandbox, and the cleaning after it.

use std::{
    cell::RefCell,
    io::ErrorKind,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use hearth_protocol::init::{Event, ExitStatus, RUN_FDS, Request, ScratchUse};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::Signal,
    unistd::pipe2,
};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe,
    time::{sleep, sleep_until, timeout, timeout_at},
};

use crate::{
    FailureCause, KillCause, LimitHit, Outcome, Residue, Target, Usage, UsageSource,
    channel::ChannelError,
    outcome::RETRY_AFTER_S,
    output::Pushed,
    record::{Record, micros},
    roster::Idle,
    sandbox::scratch_inodes,
};

/// After the main process's exit its descendants are killed at once, so the pipes end by themselves; a descendant that
/// the kernel is slow to kill must not hold the answer up for longer than this.
const DRAIN_WAIT_MAX: Duration = Duration::from_millis(50);

/// How long init may take to kill and reap what is left. More means tasks that the kernel cannot end; the sandbox is
/// then destroyed.
const CLEAN_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long to wait for the spawner's word on why a sandbox died.
const DEATH_WAIT_MAX: Duration = Duration::from_secs(1);

/// Charged bytes within this of the baseline count as none (design.md section 2): the kernel charges in batches of 64
/// pages per core.
const RESIDUE_BYTES_MAX: u64 = 1024 * 1024;

/// How long the kernel may take to give back what a dead process held: stacks and page tables are freed after an RCU grace
/// period, on a busy machine after several. What is charged longer than this is residue.
const RESIDUE_WAIT_MAX: Duration = Duration::from_millis(500);

/// How often the counts are looked at meanwhile.
const RESIDUE_LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What tmpfs counts in: pages.
const SCRATCH_BLOCK_BYTES: u64 = 4096;

/// Init's events are short: a step's name and a number. In bytes.
const EVENT_BYTES_MAX: usize = 1024;

/// One read from a pipe: its default capacity (pipe(7)). In bytes.
const READ_BYTES: usize = READ_BYTES_U32 as usize;
const READ_BYTES_U32: u32 = 64 * 1024;

/// The most that a pipe holds without a privilege (`fs.pipe-max-size`, pipe(7)). In bytes.
const PIPE_BYTES_MAX: usize = 1024 * 1024;

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
    } = match Pipes::new() {
        Ok(pipes) => pipes,
        Err(errno) => return Run::unclean(Ended::NoPipes { errno }),
    };
    let rest = write_now(&stdin, &mut record.body.clone());
    if let Err(run) = begin(idle, target, record, theirs).await {
        return run;
    }
    let feed = rest.and_then(|body| Some((pipe::Sender::from_owned_fd(stdin).ok()?, body)));
    let readers = (
        pipe::Receiver::from_owned_fd(stdout),
        pipe::Receiver::from_owned_fd(stderr),
    );
    let (Ok(stdout), Ok(stderr)) = readers else {
        return Run::unclean(Ended::Lost);
    };
    let mut watch = Watch {
        idle,
        stdout: Some(stdout),
        stderr: Some(stderr),
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
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    feed: Option<(pipe::Sender, Bytes)>,
    exited: Option<(ExitStatus, Instant)>,
    clean: Option<(u32, ScratchUse)>,
}

impl Watch<'_> {
    async fn until_end(&mut self, target: &Target, record: &mut Record) -> Ended {
        let deadline = record.run_began + target.limits.timeout;
        let mut events = [0; EVENT_BYTES_MAX];
        loop {
            let limit = match self.exited {
                Some((status, _)) if self.stdout.is_none() && self.stderr.is_none() => {
                    return Ended::Exited(status);
                }
                Some((_, at)) => at + DRAIN_WAIT_MAX,
                None => deadline,
            };
            let room = record.output.room(READ_BYTES_U32);
            // In this order: a function that floods its pipes must not starve its own deadline.
            tokio::select! {
                biased;
                event = self.idle.sandbox.channel.recv::<Event>(&mut events) => {
                    let event = event.map(|received| received.message);
                    if let Some(ended) = self.take(event) { return ended }
                }
                () = sleep_until(limit.into()) => return match self.exited {
                    Some((status, _)) => self.take_what_is_left(status, record),
                    None => Ended::TimedOut,
                },
                () = record.output.closed() => return Ended::Cancelled,
                _ = async { room.await; readable(self.stdout.as_ref()).await } => {
                    let mut pushed = Pushed::Fine;
                    if !read_now(&mut self.stdout, |bytes| pushed = record.push_output(bytes)) { continue }
                    if let Some(ended) = Ended::of_output(pushed) { return ended }
                }
                _ = readable(self.stderr.as_ref()) => {
                    read_now(&mut self.stderr, |bytes| record.log.push(bytes));
                }
                () = write_more(&mut self.feed) => {}
            }
        }
    }

    /// What the main process wrote is in the pipes when its exit is announced. If this thread was held up, the drain
    /// limit may have passed before the runtime learnt that they can be read: so they are read past it, directly.
    fn take_what_is_left(&mut self, status: ExitStatus, record: &mut Record) -> Ended {
        let mut pushed = Pushed::Fine;
        drain(self.stdout.as_ref(), |bytes| {
            if pushed == Pushed::Fine {
                pushed = record.push_output(bytes);
            }
        });
        drain(self.stderr.as_ref(), |bytes| record.log.push(bytes));
        Ended::of_output(pushed).unwrap_or(Ended::Exited(status))
    }

    fn take(&mut self, event: Result<Event, ChannelError>) -> Option<Ended> {
        match event {
            Ok(Event::Exited { status, clean, .. }) => {
                self.exited = Some((status, Instant::now()));
                self.clean = clean.map(|scratch| (0, scratch));
                // Nobody reads it any more.
                self.feed = None;
                None
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
}

/// What became of the invocation.
pub(crate) async fn judge(ended: Ended, idle: &Idle, target: &Target, record: &Record) -> Outcome {
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
    match ended {
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
            killed(KillCause::Seccomp {
                profile: "default".to_owned(),
            })
        }
        Ended::Exited(ExitStatus::Signaled(signal)) => killed(KillCause::Signal { signal }),
    }
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

/// After the answer: waits until the sandbox is clean, notes what it used, and gives it back. A sandbox whose
/// invocation did not end by itself, or that does not come clean, is dropped here, and thereby destroyed.
pub(crate) async fn settle(
    idle: Idle,
    run: Run,
    outcome: &Outcome,
    target: &Target,
    record: &mut Record,
) -> Option<Idle> {
    let began = Instant::now();
    note_usage(&idle, record);
    let reusable = match outcome {
        Outcome::Ok => true,
        Outcome::FunctionFailed { cause, .. } => {
            !matches!(cause, FailureCause::BadOutput { .. }) || run.clean.is_some()
        }
        _ => false,
    };
    if !reusable {
        return None;
    }
    let (killed, scratch) = match run.clean {
        Some(clean) => clean,
        None => wait_for_clean(&idle).await?,
    };
    if is_full(scratch, target) {
        record.hit(LimitHit::Scratch);
    }
    if !scratch.is_empty() {
        idle.sandbox.renew().await.ok()?;
    }
    let idle = note_residue(idle, killed, scratch, record).await;
    idle.sandbox.gauges.reset_memory_peak();
    record.phases.reset_us = micros(began);
    idle_if_clean(idle, record)
}

/// Whether the scratch was left without a free block or without a free inode.
fn is_full(scratch: ScratchUse, target: &Target) -> bool {
    let blocks_max = target.limits.scratch_bytes / SCRATCH_BLOCK_BYTES;
    // The root of an empty mount is not counted in `scratch`, but against the limit.
    let inodes_max = scratch_inodes(target) - 1;
    blocks_max <= scratch.blocks || inodes_max <= scratch.inodes
}

fn idle_if_clean(mut idle: Idle, record: &Record) -> Option<Idle> {
    idle.since = Instant::now();
    record
        .residue
        .is_some_and(|residue| residue.none)
        .then_some(idle)
}

async fn wait_for_clean(idle: &Idle) -> Option<(u32, ScratchUse)> {
    let mut buffer = [0; EVENT_BYTES_MAX];
    let event = timeout(
        CLEAN_WAIT_MAX,
        idle.sandbox.channel.recv::<Event>(&mut buffer),
    )
    .await
    .ok()?
    .ok()?;
    match event.message {
        Event::Clean {
            killed, scratch, ..
        } => Some((killed, scratch)),
        Event::Bound | Event::Exited { .. } | Event::Failed { .. } => None,
    }
}

fn note_usage(idle: &Idle, record: &mut Record) {
    let gauges = &idle.sandbox.gauges;
    let now = gauges.counters();
    // Of a sandbox that is gone the spawner read it last; the files of its cgroup read as 0.
    let (cpu_us, memory_peak_bytes) = match idle.sandbox.death.totals() {
        Some(totals) => (totals.cpu_us, totals.memory_peak_bytes),
        None => (now.cpu_us, gauges.memory_peak_bytes()),
    };
    if idle.counters.cpu_us <= cpu_us && 0 < cpu_us {
        let source = if gauges.peak_resets() {
            UsageSource::Cgroup
        } else {
            UsageSource::CgroupLifetimePeak
        };
        record.usage = Some(Usage {
            cpu_us: cpu_us - idle.counters.cpu_us,
            memory_peak_bytes,
            source,
        });
    }
    if idle.counters.throttled < now.throttled {
        record.hit(LimitHit::Cpu);
    }
    if idle.counters.forks_refused < now.forks_refused {
        record.hit(LimitHit::Pids);
    }
}

async fn note_residue(
    mut idle: Idle,
    killed: u32,
    scratch: ScratchUse,
    record: &mut Record,
) -> Idle {
    idle.counters = idle.sandbox.gauges.counters();
    let deadline = Instant::now() + RESIDUE_WAIT_MAX;
    let residue = loop {
        let residue = residue_now(&mut idle, killed, scratch);
        if residue.none || deadline <= Instant::now() {
            break residue;
        }
        sleep(RESIDUE_LOOK_INTERVAL).await;
    };
    record.residue = Some(residue);
    idle
}

fn residue_now(idle: &mut Idle, processes_killed: u32, scratch: ScratchUse) -> Residue {
    let gauges = &idle.sandbox.gauges;
    let charged = gauges.memory_bytes();
    // The first invocation pays for the page cache of the program's files; what comes after it must come back to it.
    let baseline = *idle.baseline_bytes.get_or_insert(charged);
    let memory_left_bytes = charged.saturating_sub(baseline);
    let processes_left = gauges.pids();
    Residue {
        processes_killed,
        scratch_blocks: scratch.blocks,
        scratch_inodes: scratch.inodes,
        processes_left,
        memory_left_bytes,
        none: processes_left == 1 && memory_left_bytes <= RESIDUE_BYTES_MAX,
    }
}

/// The pipes of one invocation: our ends do not block, the function's do.
struct Pipes {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    theirs: [OwnedFd; RUN_FDS],
}

impl Pipes {
    fn new() -> nix::Result<Self> {
        let (their_stdin, stdin) = pipe2(OFlag::O_CLOEXEC)?;
        let (stdout, their_stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, their_stderr) = pipe2(OFlag::O_CLOEXEC)?;
        for ours in [&stdin, &stdout, &stderr] {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            stdin,
            stdout,
            stderr,
            theirs: [their_stdin, their_stdout, their_stderr],
        })
    }
}

/// Writes what the pipe takes at once. What is left, if anything.
fn write_now(stdin: &OwnedFd, body: &mut Bytes) -> Option<Bytes> {
    while !body.is_empty() {
        match nix::unistd::write(stdin, body) {
            Ok(written) => body.advance(written),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    (!body.is_empty()).then(|| body.clone())
}

/// Goes on writing; ends for ever once everything is written or nobody reads.
async fn write_more(feed: &mut Option<(pipe::Sender, Bytes)>) {
    let Some((sender, body)) = feed else {
        return std::future::pending().await;
    };
    let more = match sender.write(body).await {
        Ok(written) => {
            body.advance(written);
            !body.is_empty()
        }
        Err(_) => false,
    };
    if !more {
        *feed = None;
    }
}

async fn readable(pipe: Option<&pipe::Receiver>) {
    match pipe {
        // An error shows in the read that follows.
        Some(pipe) => drop(pipe.readable().await),
        None => std::future::pending().await,
    }
}

/// Reads what lies in a pipe, without asking the runtime whether there is anything. A descendant that the kernel has not
/// killed yet may go on writing, so the number of reads is bounded by what a pipe can hold.
fn drain(pipe: Option<&pipe::Receiver>, mut take: impl FnMut(&[u8])) {
    let Some(pipe) = pipe else { return };
    let mut buffer = vec![0; READ_BYTES];
    for _ in 0..PIPE_BYTES_MAX / READ_BYTES {
        match nix::unistd::read(pipe, &mut buffer) {
            Ok(length) if 0 < length => take(&buffer[..length]),
            Err(nix::errno::Errno::EINTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Reads once without waiting; at the end of the pipe, forgets it. True where something was read.
fn read_now(pipe: &mut Option<pipe::Receiver>, take: impl FnOnce(&[u8])) -> bool {
    thread_local! {
        /// One per shard: nothing waits while it is borrowed.
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        match pipe.as_ref().map(|pipe| pipe.try_read(buffer)) {
            Some(Ok(length)) if 0 < length => {
                take(&buffer[..length]);
                return true;
            }
            Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {}
            _ => *pipe = None,
        }
        false
    })
}

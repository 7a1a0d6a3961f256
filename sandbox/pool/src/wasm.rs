// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One invocation as a fresh instance in a wasm worker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hearth_protocol::{
    frame::PAYLOAD_BYTES_MAX,
    spawner::ViolationClass,
    worker::{Ending, Request, Stream, Usage as WorkerUsage},
};
use tokio::time::{sleep_until, timeout};

use crate::{
    FailureCause, KillCause, LimitHit, Outcome, Target, Usage, UsageSource,
    outcome::RETRY_AFTER_S,
    output::Pushed,
    record::{Record, micros, millis},
    violations,
    worker::{CallEnd, CallEvent, Told, Worker},
};

/// In thousandths of a core.
const ONE_CORE_MILLIS: u32 = 1000;

/// The worker keeps the time limit itself; one that has said nothing this long after it is stuck, and is destroyed.
const WORKER_GRACE: Duration = Duration::from_millis(250);

/// How long a worker may take to confirm that it cancelled an invocation.
const CANCEL_WAIT_MAX: Duration = Duration::from_millis(250);

/// How long to wait for the spawner's word on why a worker died.
const DEATH_WAIT_MAX: Duration = Duration::from_secs(1);

/// How a run ended, before it is judged.
#[derive(Debug)]
pub(crate) enum Ended {
    Done(Ending, WorkerUsage),
    TooLarge,
    Untaken,
    BadHead(String),
    Cancelled,
    /// The worker did not keep the time limit.
    Stuck,
    /// The worker is gone.
    Lost,
    /// The worker was gone before it was told anything: another may take the invocation.
    NotBegun,
}

/// Runs the invocation to its end, feeding output and log into `record`.
pub(crate) async fn run(worker: &Arc<Worker>, target: &Target, record: &mut Record) -> Ended {
    let throttled_before = throttled(worker, target);
    let ended = run_to_end(worker, target, record).await;
    if throttled_before < throttled(worker, target) {
        record.hit(LimitHit::Cpu);
    }
    ended
}

/// How often the kernel held the worker back for its CPU share, which all its invocations have together. Not read where
/// it cannot be: a worker computes on one thread, and a whole core is enough for that.
fn throttled(worker: &Worker, target: &Target) -> u64 {
    if target.limits.cpu_millis < ONE_CORE_MILLIS {
        worker.sandbox.gauges.throttled()
    } else {
        0
    }
}

async fn run_to_end(worker: &Arc<Worker>, target: &Target, record: &mut Record) -> Ended {
    let body = record.body.clone();
    // Beside the header of a Run with its variables there is always room for this much.
    let first = body.slice(..body.len().min(PAYLOAD_BYTES_MAX / 4));
    let env = record.env.clone();
    let request = |seq| Request::Run {
        seq,
        args: vec![target.function.to_string()],
        env,
        body_bytes: body.len() as u64,
        timeout_ms: millis(target.limits.timeout),
    };
    let deadline = record.run_began + target.limits.timeout + WORKER_GRACE;
    let Ok(mut call) = worker.call(request, first.clone()) else {
        return Ended::NotBegun;
    };
    record.phases.start_us = micros(record.run_began);
    let ended = {
        let mut sending = std::pin::pin!(send_rest(worker, call.seq, body.slice(first.len()..)));
        let mut sent = false;
        loop {
            tokio::select! {
                biased;
                event = call.next() => match event {
                    None if call.told() == Told::Nothing => return Ended::NotBegun,
                    None => return Ended::Lost,
                    Some(CallEvent::Output(Stream::Stderr, bytes)) => record.log.push(&bytes),
                    Some(CallEvent::Output(Stream::Stdout, bytes)) => match record.push_output(&bytes) {
                        Pushed::Fine => {}
                        Pushed::TooLarge => break Ended::TooLarge,
                        Pushed::Untaken => break Ended::Untaken,
                        Pushed::BadHead(problem) => break Ended::BadHead(problem),
                    },
                    Some(CallEvent::Done { ending, usage, rest }) => match record.push_output(&rest) {
                        Pushed::Fine => return Ended::Done(ending, usage),
                        Pushed::TooLarge => return Ended::TooLarge,
                        Pushed::Untaken => return Ended::Untaken,
                        Pushed::BadHead(problem) => return Ended::BadHead(problem),
                    },
                },
                () = sleep_until(deadline.into()) => return Ended::Stuck,
                () = record.output.closed() => break Ended::Cancelled,
                () = &mut sending, if !sent => sent = true,
            }
        }
    };
    if cancel(worker, &mut call).await {
        ended
    } else {
        Ended::Stuck
    }
}

async fn send_rest(worker: &Worker, seq: u32, mut rest: Bytes) {
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(PAYLOAD_BYTES_MAX));
        if worker.send_body(seq, piece).await.is_err() {
            // The events end too, and say so.
            return;
        }
    }
}

/// Has the worker drop the instance. True once it said so.
async fn cancel(worker: &Worker, call: &mut CallEnd) -> bool {
    let done = async {
        if worker.cancel(call.seq).is_err() {
            return false;
        }
        while let Some(event) = call.next().await {
            if matches!(event, CallEvent::Done { .. }) {
                return true;
            }
        }
        false
    };
    timeout(CANCEL_WAIT_MAX, done).await.unwrap_or(false)
}

/// What became of the invocation.
pub(crate) async fn judge(
    ended: Ended,
    worker: &Worker,
    target: &Target,
    record: &mut Record,
) -> Outcome {
    violations::note_shared(&worker.sandbox, target, record);
    let timed_out = Outcome::timed_out(target.limits.timeout, record.output.seen_bytes());
    let too_large = Outcome::ResponseTooLarge {
        limit_bytes: target.limits.response_bytes,
        seen_bytes: record.output.seen_bytes(),
    };
    let (ending, usage) = match ended {
        Ended::Done(ending, usage) => (ending, usage),
        Ended::TooLarge => return too_large,
        Ended::BadHead(problem) => return failed(FailureCause::BadOutput { problem }, record),
        Ended::Untaken => {
            return Outcome::Overloaded {
                retry_after_s: RETRY_AFTER_S,
            };
        }
        Ended::Cancelled => return Outcome::Cancelled,
        Ended::Stuck => {
            // Its other invocations are as stuck as this one: they are told by its death.
            worker.sandbox.destroy();
            return timed_out;
        }
        Ended::Lost | Ended::NotBegun => return lost(worker, target, record).await,
    };
    record.usage = Some(Usage {
        cpu_us: usage.cpu_us,
        memory_peak_bytes: usage.memory_peak_bytes,
        source: UsageSource::Worker,
    });
    if 0 < usage.memory_refusals {
        record.hit(LimitHit::Memory);
    }
    // A guest that was refused memory and then gave up ran out of memory, whichever way it gave up.
    let out_of_memory = KillCause::Oom {
        peak_bytes: usage.memory_peak_bytes,
        limit_bytes: target.limits.memory_bytes,
    };
    let or_oom = |cause| match usage.memory_refusals {
        0 => failed(cause, record),
        _ => Outcome::FunctionKilled {
            cause: out_of_memory,
            stderr_tail: record.log.tail(),
        },
    };
    match ending {
        Ending::Exited(0) => Outcome::Ok,
        Ending::Exited(code) => or_oom(FailureCause::ExitCode { code }),
        Ending::Trap { text } => or_oom(FailureCause::Trap { text }),
        Ending::TimedOut => timed_out,
        Ending::OutputLimit => too_large,
        Ending::Cancelled => Outcome::Cancelled,
        Ending::NoInstance { message } => Outcome::CannotStart {
            step: "instance".to_owned(),
            errno: 0,
            message,
        },
    }
}

/// Whether the worker may take more invocations: only where the guest ended by itself.
pub(crate) fn is_clean(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Ok => true,
        Outcome::FunctionFailed { cause, .. } => !matches!(cause, FailureCause::Trap { .. }),
        _ => false,
    }
}

fn failed(cause: FailureCause, record: &Record) -> Outcome {
    Outcome::FunctionFailed {
        cause,
        stderr_tail: record.log.tail(),
    }
}

async fn lost(worker: &Worker, target: &Target, record: &mut Record) -> Outcome {
    let began = Instant::now();
    let totals = timeout(DEATH_WAIT_MAX, worker.sandbox.death.seen()).await;
    if record.violations.is_none() {
        violations::note_shared(&worker.sandbox, target, record);
    }
    let noted = record.violations.iter().flat_map(|noted| &noted.first);
    let mut killing = noted.filter(|call| call.class == ViolationClass::Kill);
    let killed = |cause| Outcome::FunctionKilled {
        cause,
        stderr_tail: record.log.tail(),
    };
    match (killing.next(), totals) {
        (Some(call), _) => killed(KillCause::Seccomp {
            profile: target.profile().name().to_owned(),
            call: Some(call.clone()),
        }),
        (None, Ok(totals)) if 0 < totals.oom_kills => killed(KillCause::Oom {
            peak_bytes: totals.memory_peak_bytes,
            limit_bytes: target.limits.memory_bytes,
        }),
        _ => {
            tracing::warn!(invocation = %record.id, waited = ?began.elapsed(), "a wasm worker was lost");
            Outcome::SandboxLost
        }
    }
}

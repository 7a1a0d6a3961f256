// SPDX-License-Identifier: Apache-2.0 OR MIT
//! After the answer: what an invocation used and left, and whether its sandbox may serve another.

use std::time::{Duration, Instant};

use hearth_protocol::{
    init::{Event, ScratchUse},
    spawner::Root,
};
use tokio::time::{sleep, timeout};

use super::{EVENT_BYTES_MAX, Run};
use crate::{
    FailureCause, LimitHit, Outcome, Residue, Target, Usage, UsageSource,
    gauges::Counters,
    record::{Record, micros},
    roster::Idle,
    sandbox::scratch_inodes,
    violations,
};

/// How long init may take to kill and reap what is left. More means tasks that the kernel cannot end; the sandbox is
/// then destroyed.
const CLEAN_WAIT_MAX: Duration = Duration::from_secs(1);

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

/// After the answer: waits until the sandbox is clean, notes what it used, and gives it back. A sandbox whose
/// invocation did not end by itself, or that does not come clean, is dropped here, and thereby destroyed.
pub(crate) async fn settle(
    mut idle: Idle,
    run: Run,
    outcome: &Outcome,
    target: &Target,
    record: &mut Record,
) -> Option<Idle> {
    let began = Instant::now();
    let counters = note_usage(&idle, record);
    if record.violations.is_none() {
        violations::note(&idle.sandbox, target, record).await;
    }
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
    let ((killed, scratch), counters) = match run.clean {
        // Nobody was left to count for when the counters were read.
        Some(clean) => (clean, counters),
        None => (wait_for_clean(&idle).await?, idle.sandbox.gauges.counters()),
    };
    idle.counters = counters;
    if is_full(scratch, target) {
        record.hit(LimitHit::Scratch);
    }
    if target.root() == Root::Writable {
        // What was written cannot be told from what was there, nor be taken away without the root itself.
        return None;
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

/// Gives what the counters stand at.
fn note_usage(idle: &Idle, record: &mut Record) -> Counters {
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
    now
}

async fn note_residue(
    mut idle: Idle,
    killed: u32,
    scratch: ScratchUse,
    record: &mut Record,
) -> Idle {
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

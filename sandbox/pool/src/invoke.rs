// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The life of one invocation in the pool, from the queue to the receipt.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{sleep_until, timeout_at},
};

use crate::{
    Outcome, Start, Target, ThrottleLimit, native,
    outcome::RETRY_AFTER_S,
    pool::{InspectError, Made, Means, NO_ROOM, Pool},
    record::{Record, micros},
    room::Waited,
    roster::{Claim, Grant, Idle, Place, Roster, Turn},
    sandbox::{SPAWNER_GONE, Sandbox, StartError},
    wasm,
    worker::Worker,
};

/// How often an invocation, or a report, may meet a sandbox that died before it was told anything. More in a row is no bad luck.
const BEGIN_TRIES_MAX: u32 = 3;

/// What an invocation runs in.
enum Seat {
    Native(Box<Idle>),
    Wasm(Turn),
}

/// Runs one invocation and records it.
pub(crate) async fn drive(pool: Arc<Pool>, shard: usize, roster: Arc<Roster>, mut record: Record) {
    pool.pace.note_call();
    let mut tries_left = BEGIN_TRIES_MAX;
    let outcome = loop {
        tries_left -= 1;
        let seat = match acquire(&pool, shard, &roster, &mut record).await {
            Ok(seat) => seat,
            Err(outcome) => break record.answer(outcome),
        };
        record.begin_run(&roster.target);
        let finished = match seat {
            Seat::Native(idle) => {
                Box::pin(run_native(&pool, *idle, &roster, &mut record, tries_left)).await
            }
            Seat::Wasm(turn) => run_wasm(&pool, turn, &roster, &mut record, tries_left).await,
        };
        if let Some(outcome) = finished {
            break outcome;
        }
    };
    (pool.config.recorder)(record.into_receipt(&roster.target, outcome));
}

/// Waits for a turn and gets a sandbox for it.
async fn acquire(
    pool: &Pool,
    shard: usize,
    roster: &Arc<Roster>,
    record: &mut Record,
) -> Result<Seat, Outcome> {
    let grant = queue(pool, shard, roster, record).await?;
    record.phases.queue_us = micros(record.received);
    let began = Instant::now();
    let (seat, start) = match grant {
        Grant::Idle(idle) => (Seat::Native(idle), Start::Warm),
        Grant::Turn(turn) => (Seat::Wasm(turn), Start::Warm),
        Grant::Place(place) => tokio::select! {
            // Boxed, as the native run is: every invocation's task would else carry the room of the longest path.
            made = Box::pin(make(pool, shard, roster, place)) => {
                let (seat, start, bind_us) = made.map_err(not_started)?;
                record.phases.bind_us = bind_us;
                (seat, start)
            }
            () = record.output.closed() => return Err(Outcome::Cancelled),
        },
    };
    record.phases.acquire_us = micros(began);
    record.start = Some(start);
    Ok(seat)
}

async fn queue(
    pool: &Pool,
    shard: usize,
    roster: &Arc<Roster>,
    record: &mut Record,
) -> Result<Grant, Outcome> {
    let throttled = |limit| Outcome::Throttled {
        limit,
        retry_after_s: RETRY_AFTER_S,
    };
    let turn = match roster.claim(shard, pool.config.queue_len_max) {
        Claim::Granted(grant) => return Ok(grant),
        Claim::QueueFull => return Err(throttled(ThrottleLimit::QueueLength)),
        Claim::Wait(turn) => turn,
    };
    tokio::select! {
        grant = turn => grant.map_err(|_dropped| Outcome::Overloaded { retry_after_s: RETRY_AFTER_S }),
        () = sleep_until((record.received + pool.config.queue_wait_max).into()) => {
            Err(throttled(ThrottleLimit::QueueWait))
        }
        () = record.output.closed() => Err(Outcome::Cancelled),
    }
}

/// Makes a sandbox, or takes one that became free while the host was full; with the microseconds that binding took.
async fn make(
    pool: &Pool,
    shard: usize,
    roster: &Arc<Roster>,
    place: Place,
) -> Result<(Seat, Start, u64), StartError> {
    let target = &roster.target;
    let mut tries_left = BEGIN_TRIES_MAX;
    loop {
        let means = match pool.means(shard, target) {
            Some(means) => means,
            None => match wait_for_room(pool, shard, roster).await? {
                Room::Own(seat) => return Ok((seat, Start::Warm, 0)),
                Room::Room(room) => Means::Room(room),
            },
        };
        tries_left -= 1;
        match pool.make(means, shard, target).await {
            Ok(Some(Made {
                sandbox,
                start,
                bind_us,
            })) => return Ok((seat(roster, sandbox, place, shard), start, bind_us)),
            // It died before it was bound: another may do.
            Ok(None) => tries_left += 1,
            // Asked again, the pool waits for the next spawner.
            Err(error) if error.step == SPAWNER_GONE && 0 < tries_left => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a full host came to give.
enum Room {
    /// A sandbox of this target that became free.
    Own(Seat),
    /// Room for one more.
    Room(OwnedSemaphorePermit),
}

/// Gives up an idle sandbox of others for one of this target, as soon as there is one; uses its own where that comes
/// first.
async fn wait_for_room(
    pool: &Pool,
    shard: usize,
    roster: &Arc<Roster>,
) -> Result<Room, StartError> {
    let deadline = Instant::now() + pool.config.queue_wait_max;
    loop {
        match roster.reclaim(shard) {
            Some(Grant::Idle(idle)) => return Ok(Room::Own(Seat::Native(idle))),
            Some(Grant::Turn(turn)) => return Ok(Room::Own(Seat::Wasm(turn))),
            Some(Grant::Place(_)) | None => {}
        }
        pool.shed();
        match timeout_at(deadline.into(), pool.room.wait()).await {
            Ok(Waited::Room(room)) => return Ok(Room::Room(room)),
            Ok(Waited::Idle) => {}
            Err(_elapsed) => {
                let sandboxes_max = pool.config.sandboxes_max;
                let message = format!("all {sandboxes_max} sandboxes are in use");
                return Err(StartError::new(NO_ROOM, message));
            }
        }
    }
}

fn seat(roster: &Arc<Roster>, sandbox: Sandbox, place: Place, shard: usize) -> Seat {
    match roster.target.kind() {
        crate::Kind::Native => Seat::Native(Box::new(fresh(sandbox, place, shard))),
        crate::Kind::Wasm => {
            let worker = Worker::start(sandbox, place, shard, roster.target.scaling.inflight_max);
            Seat::Wasm(roster.enter_worker(worker))
        }
    }
}

fn fresh(sandbox: Sandbox, place: Place, shard: usize) -> Idle {
    let counters = sandbox.gauges.counters();
    Idle {
        sandbox,
        _place: place,
        shard,
        since: Instant::now(),
        counters,
        baseline_bytes: None,
    }
}

/// Enters a bound sandbox that no invocation asked for.
pub(crate) fn enter_idle(roster: &Arc<Roster>, sandbox: Sandbox, place: Place, shard: usize) {
    match seat(roster, sandbox, place, shard) {
        Seat::Native(idle) => roster.give_back(*idle),
        Seat::Wasm(turn) => drop(turn),
    }
}

/// None where nothing began and another sandbox may be tried.
async fn run_native(
    pool: &Pool,
    idle: Idle,
    roster: &Roster,
    record: &mut Record,
    tries_left: u32,
) -> Option<Outcome> {
    let target = &roster.target;
    let mut run = native::run(&idle, target, record).await;
    if 0 < tries_left && run.ended == native::Ended::NotBegun {
        return None;
    }
    let ended = std::mem::replace(&mut run.ended, native::Ended::Lost);
    let outcome = native::judge(ended, &idle, target, record).await;
    let outcome = record.answer(outcome);
    record.replied().await;
    if let Some(idle) = native::settle(idle, run, &outcome, target, record).await {
        roster.give_back(idle);
        pool.room.note_idle();
    }
    Some(outcome)
}

/// None where nothing began and another worker may be tried.
async fn run_wasm(
    pool: &Pool,
    mut turn: Turn,
    roster: &Roster,
    record: &mut Record,
    tries_left: u32,
) -> Option<Outcome> {
    let target = &roster.target;
    let worker = turn.begin()?;
    let ended = wasm::run(&worker, target, record).await;
    if 0 < tries_left && matches!(ended, wasm::Ended::NotBegun) {
        return None;
    }
    let outcome = wasm::judge(ended, &worker, target, record).await;
    let outcome = record.answer(outcome);
    if wasm::is_clean(&outcome) {
        turn.settle_clean();
        pool.room.note_idle();
    }
    record.replied().await;
    Some(outcome)
}

/// Makes a sandbox and throws it away.
pub(crate) async fn try_start(pool: &Pool, shard: usize, target: &Target) -> Result<(), Outcome> {
    // A roster of its own: it is seen by nobody, and what it makes counts against no function.
    let roster = Roster::new(Arc::new(target.clone()));
    let Some(place) = roster.try_place() else {
        return Err(Outcome::Overloaded {
            retry_after_s: RETRY_AFTER_S,
        });
    };
    let made = make(pool, shard, &roster, place).await.map_err(not_started);
    roster.retire();
    made.map(drop)
}

fn not_started(error: StartError) -> Outcome {
    if error.step == NO_ROOM {
        return Outcome::Overloaded {
            retry_after_s: RETRY_AFTER_S,
        };
    }
    if error.step == SPAWNER_GONE {
        return Outcome::SandboxLost;
    }
    tracing::error!(
        step = error.step,
        errno = error.errno,
        "cannot start a sandbox: {}",
        error.message
    );
    Outcome::CannotStart {
        step: error.step,
        errno: error.errno,
        message: error.message,
    }
}

/// The isolation report of an idle sandbox, else of one that is made for it. One that has just died is not known to have
/// died until it is asked: another one is then looked at.
pub(crate) async fn inspect(
    pool: &Pool,
    shard: usize,
    roster: &Arc<Roster>,
) -> Result<OwnedFd, InspectError> {
    let mut tries_left = BEGIN_TRIES_MAX;
    loop {
        tries_left -= 1;
        match inspect_one(pool, shard, roster).await {
            Err(InspectError::Spawner(_) | InspectError::Unreadable) if 0 < tries_left => {}
            result => return result,
        }
    }
}

async fn inspect_one(
    pool: &Pool,
    shard: usize,
    roster: &Arc<Roster>,
) -> Result<OwnedFd, InspectError> {
    let grant = match roster.claim(shard, pool.config.queue_len_max) {
        Claim::Granted(grant) => grant,
        Claim::QueueFull => {
            let limit = ThrottleLimit::QueueLength;
            return Err(InspectError::NoSandbox(Outcome::Throttled {
                limit,
                retry_after_s: RETRY_AFTER_S,
            }));
        }
        Claim::Wait(turn) => turn.await.map_err(|_dropped| {
            InspectError::NoSandbox(Outcome::Overloaded {
                retry_after_s: RETRY_AFTER_S,
            })
        })?,
    };
    let seat = match grant {
        Grant::Idle(idle) => Seat::Native(idle),
        Grant::Turn(turn) => Seat::Wasm(turn),
        Grant::Place(place) => {
            make(pool, shard, roster, place)
                .await
                .map_err(|error| InspectError::NoSandbox(not_started(error)))?
                .0
        }
    };
    match seat {
        Seat::Native(idle) => {
            let report = idle.sandbox.inspect().await?;
            roster.give_back(*idle);
            Ok(report)
        }
        Seat::Wasm(mut turn) => {
            let worker = turn.begin().ok_or(InspectError::Unreadable)?;
            let report = worker.sandbox.inspect().await?;
            turn.settle_clean();
            Ok(report)
        }
    }
}

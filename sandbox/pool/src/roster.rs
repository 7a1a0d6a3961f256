// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One target's sandboxes and the invocations that wait for one.
//!
//! Everything that is taken out of here is a guard: a [`Place`] counts against `instances_max` until it is dropped, a
//! [`Turn`] against its worker's `inflight_max`, and an idle sandbox is destroyed when it is dropped. A waiter that
//! gives up between being given something and taking it loses nothing: what it was given is dropped, and the next one
//! is served.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    Target,
    gauges::Counters,
    sandbox::{Sandbox, StartError},
    worker::Worker,
};

/// How long a target whose sandbox could not be made ahead of need waits for the next try, doubling each time.
const MINIMUM_BACKOFF: Duration = Duration::from_secs(1);

/// The longest such wait: what is wrong may have been put right outside.
const MINIMUM_BACKOFF_MAX: Duration = Duration::from_secs(60);

/// One target's sandboxes and queue.
#[derive(Debug)]
pub(crate) struct Roster {
    pub(crate) target: Arc<Target>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Native sandboxes between two invocations, the youngest last.
    idle: Vec<Idle>,
    /// Wasm workers that take invocations.
    workers: Vec<Arc<Worker>>,
    /// Places given out.
    instances: u32,
    /// Places given out for wasm workers that are not entered yet.
    making: u32,
    waiting: VecDeque<oneshot::Sender<Grant>>,
    retired: bool,
    /// Failures in a row to make a sandbox of the minimum, and when the next try may be.
    failures: u32,
    not_before: Option<Instant>,
}

/// The right to have one sandbox of a target.
#[derive(Debug)]
pub(crate) struct Place {
    roster: Option<Arc<Roster>>,
    /// 1 while it is for a wasm worker that is not entered yet, else 0.
    making: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(roster) = self.roster.take() {
            roster.take_back_place(self.making);
        }
    }
}

/// A native sandbox between two invocations.
#[derive(Debug)]
pub(crate) struct Idle {
    // Dropped first: the sandbox is on its way out when its place goes to another.
    pub(crate) sandbox: Sandbox,
    pub(crate) _place: Place,
    pub(crate) shard: usize,
    pub(crate) since: Instant,
    /// What the counters stood at when it became clean.
    pub(crate) counters: Counters,
    /// Charged bytes after its first invocation; none before.
    pub(crate) baseline_bytes: Option<u64>,
}

/// One invocation's turn in a wasm worker. Dropping one that has begun and was not settled retires the worker.
#[derive(Debug)]
pub(crate) struct Turn {
    worker: Option<Arc<Worker>>,
    roster: Arc<Roster>,
    state: TurnState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TurnState {
    Unused,
    Running,
    Clean,
}

impl Turn {
    /// The invocation is about to be sent.
    pub(crate) fn begin(&mut self) -> Option<Arc<Worker>> {
        self.state = TurnState::Running;
        self.worker.clone()
    }

    /// The invocation ended by itself: the worker may go on.
    pub(crate) fn settle_clean(mut self) {
        self.state = TurnState::Clean;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.roster.end_turn(worker, self.state);
        }
    }
}

/// Whether a target may have one more sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    Possible,
    Full,
}

/// What an invocation gets.
#[derive(Debug)]
pub(crate) enum Grant {
    /// A clean sandbox of this target.
    Idle(Box<Idle>),
    /// A turn in a wasm worker of this target.
    Turn(Turn),
    /// The right to make a sandbox.
    Place(Place),
}

/// What there is right now.
pub(crate) enum Claim {
    /// This.
    Granted(Grant),
    /// Nothing; wait for it.
    Wait(oneshot::Receiver<Grant>),
    /// Nothing, and too many wait.
    QueueFull,
}

impl Roster {
    pub(crate) fn new(target: Arc<Target>) -> Arc<Self> {
        Arc::new(Self {
            target,
            state: Mutex::default(),
        })
    }

    /// What there is for one more invocation.
    pub(crate) fn claim(self: &Arc<Self>, shard: usize, queue_len_max: u32) -> Claim {
        let mut state = self.state();
        let (idle, dead) = state.take_idle(shard);
        let claim = match idle {
            Some(idle) => Claim::Granted(Grant::Idle(Box::new(idle))),
            None => self.claim_other(&mut state, shard, queue_len_max),
        };
        drop(state);
        // Each of the dead gives its place back: to the invocation that was just queued, if it is the first.
        drop(dead);
        claim
    }

    fn claim_other(self: &Arc<Self>, state: &mut State, shard: usize, queue_len_max: u32) -> Claim {
        let may_grow = state.instances < self.target.scaling.instances_max
            && !state.enough_making(&self.target);
        if let Some(worker) = state.free_worker(
            shard,
            if may_grow {
                Growth::Possible
            } else {
                Growth::Full
            },
        ) {
            return Claim::Granted(Grant::Turn(self.turn(worker)));
        }
        if may_grow {
            return Claim::Granted(Grant::Place(self.place(state)));
        }
        state.waiting.retain(|waiter| !waiter.is_closed());
        if queue_len_max as usize <= state.waiting.len() {
            return Claim::QueueFull;
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting.push_back(sender);
        Claim::Wait(receiver)
    }

    /// A sandbox of this target that is free, for an invocation that has a place but no room for another.
    pub(crate) fn reclaim(self: &Arc<Self>, shard: usize) -> Option<Grant> {
        let mut state = self.state();
        let (idle, dead) = state.take_idle(shard);
        let worker = match idle {
            Some(_) => None,
            None => state.free_worker(shard, Growth::Full),
        };
        drop(state);
        drop(dead);
        let turn = worker.map(|worker| Grant::Turn(self.turn(worker)));
        idle.map(|idle| Grant::Idle(Box::new(idle))).or(turn)
    }

    /// Takes back a clean sandbox: for the first that waits, else to be idle.
    pub(crate) fn give_back(&self, idle: Idle) {
        let mut grant = Grant::Idle(Box::new(idle));
        let mut state = self.state();
        if state.retired {
            drop(state);
            return;
        }
        while let Some(waiter) = state.waiting.pop_front() {
            match waiter.send(grant) {
                Ok(()) => return,
                Err(back) => grant = back,
            }
        }
        if let Grant::Idle(idle) = grant {
            state.idle.push(*idle);
        }
    }

    /// Enters a new wasm worker, gives its free turns to those that wait, and one to the caller.
    pub(crate) fn enter_worker(self: &Arc<Self>, mut worker: Worker) -> Turn {
        worker.place.making = 0;
        let worker = Arc::new(worker);
        // A worker that nobody has seen has a free turn: `inflight_max` is at least 1.
        worker.begin_turn();
        let turn = self.turn(Arc::clone(&worker));
        let mut state = self.state();
        state.making = state.making.saturating_sub(1);
        if !state.retired {
            state.workers.push(worker);
            self.serve_waiting(&mut state);
        }
        turn
    }

    /// No new sandboxes; idle ones are destroyed, running ones when they are done.
    pub(crate) fn retire(&self) {
        let mut state = self.state();
        state.retired = true;
        let idle = std::mem::take(&mut state.idle);
        let workers = std::mem::take(&mut state.workers);
        drop(state);
        drop((idle, workers));
    }

    /// Drops the sandboxes that died, and those that have been idle for too long beyond the minimum.
    pub(crate) fn prune(&self, now: Instant) {
        let mut state = self.state();
        let spare = state.instances.saturating_sub(self.target.scaling.warm_min);
        let timeout = self.target.scaling.idle_timeout;
        let dropped = state.prune(now, timeout, spare as usize);
        drop(state);
        drop(dropped);
    }

    /// Since when the sandbox that has been idle for longest is idle.
    pub(crate) fn oldest_idle(&self) -> Option<Instant> {
        let state = self.state();
        let natives = state.idle.iter().map(|idle| idle.since);
        let workers = state
            .workers
            .iter()
            .filter_map(|worker| worker.idle_since());
        natives.chain(workers).min()
    }

    /// Drops the sandbox that has been idle for longest. True where there was one.
    pub(crate) fn shed(&self) -> bool {
        let mut state = self.state();
        let native = (0..state.idle.len()).min_by_key(|&index| state.idle[index].since);
        let native = native.map(|index| state.idle.remove(index));
        let quiet = state
            .workers
            .iter()
            .position(|worker| worker.idle_since().is_some());
        let worker = quiet
            .filter(|_| native.is_none())
            .map(|index| state.workers.remove(index));
        drop(state);
        native.is_some() || worker.is_some()
    }

    /// Idle and other sandboxes.
    pub(crate) fn counts(&self) -> (u32, u32) {
        let state = self.state();
        let quiet = state
            .workers
            .iter()
            .filter(|worker| worker.idle_since().is_some())
            .count();
        let idle = u32::try_from(state.idle.len() + quiet).unwrap_or(u32::MAX);
        (idle, state.instances.saturating_sub(idle))
    }

    /// A place, if one is free.
    pub(crate) fn try_place(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state();
        (state.instances < self.target.scaling.instances_max).then(|| self.place(&mut state))
    }

    /// A place, where the minimum of warm sandboxes is not reached.
    pub(crate) fn claim_for_minimum(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state();
        let wanted = self
            .target
            .scaling
            .warm_min
            .min(self.target.scaling.instances_max);
        let may_try = state.not_before.is_none_or(|at| at <= Instant::now());
        (!state.retired && may_try && state.instances < wanted).then(|| self.place(&mut state))
    }

    /// Tells how making a sandbox of the minimum went: a function that cannot start is tried ever more rarely.
    pub(crate) fn note_minimum(&self, made: Result<(), &StartError>) {
        let mut state = self.state();
        match made {
            Ok(()) => (state.failures, state.not_before) = (0, None),
            Err(_) => {
                let wait = MINIMUM_BACKOFF * 2_u32.saturating_pow(state.failures);
                state.failures = state.failures.saturating_add(1);
                state.not_before = Some(Instant::now() + wait.min(MINIMUM_BACKOFF_MAX));
            }
        }
    }

    fn place(self: &Arc<Self>, state: &mut State) -> Place {
        state.instances += 1;
        let making = u32::from(1 < self.target.scaling.inflight_max);
        state.making += making;
        Place {
            roster: Some(Arc::clone(self)),
            making,
        }
    }

    fn take_back_place(self: &Arc<Self>, making: u32) {
        let mut state = self.state();
        state.making -= making;
        state.instances -= 1;
        while let Some(waiter) = state.waiting.pop_front() {
            let Err(back) = waiter.send(Grant::Place(self.place(&mut state))) else {
                return;
            };
            // Undone by hand: its drop would come back here under the lock.
            if let Grant::Place(mut place) = back {
                place.roster = None;
                state.instances -= 1;
                state.making -= place.making;
            }
        }
    }

    fn turn(self: &Arc<Self>, worker: Arc<Worker>) -> Turn {
        Turn {
            worker: Some(worker),
            roster: Arc::clone(self),
            state: TurnState::Unused,
        }
    }

    /// An unclean end retires the worker, which then dies with the last of its turns.
    fn end_turn(self: &Arc<Self>, worker: Arc<Worker>, ended: TurnState) {
        let mut state = self.state();
        worker.end_turn();
        let goes = ended == TurnState::Running || worker.sandbox.death.is_seen();
        let removed = goes.then(|| state.remove_worker(&worker));
        self.serve_waiting(&mut state);
        drop(state);
        drop((removed, worker));
    }

    /// Gives free turns to those that wait.
    fn serve_waiting(self: &Arc<Self>, state: &mut State) {
        state.waiting.retain(|waiter| !waiter.is_closed());
        while !state.waiting.is_empty() {
            let Some(worker) = state.free_worker(usize::MAX, Growth::Full) else {
                return;
            };
            let Some(waiter) = state.waiting.pop_front() else {
                return;
            };
            if let Err(Grant::Turn(mut turn)) = waiter.send(Grant::Turn(self.turn(worker))) {
                // Undone by hand: its drop would come back here under the lock.
                if let Some(worker) = turn.worker.take() {
                    worker.end_turn();
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the workers that are being made will serve everyone who waits and one more: a burst of first calls must
    /// not make a worker each.
    fn enough_making(&self, target: &Target) -> bool {
        self.waiting.len()
            < self.making as usize * usize::from(target.scaling.inflight_max.saturating_sub(1))
    }

    /// A worker with a free turn, which is then taken: this shard's, else a quiet one of another shard, and a busy one
    /// of another shard only where this shard may not get its own.
    fn free_worker(&self, shard: usize, growth: Growth) -> Option<Arc<Worker>> {
        let living = || {
            self.workers
                .iter()
                .filter(|worker| !worker.sandbox.death.is_seen())
        };
        let near = living().filter(|worker| worker.shard == shard);
        let far = living().filter(|worker| {
            worker.shard != shard && (growth == Growth::Full || worker.idle_since().is_some())
        });
        near.chain(far).find(|worker| worker.begin_turn()).cloned()
    }

    /// The youngest idle sandbox, of this shard if there is one; and the dead ones that were found on the way.
    fn take_idle(&mut self, shard: usize) -> (Option<Idle>, Vec<Idle>) {
        let mut dead = Vec::new();
        while !self.idle.is_empty() {
            let near = self.idle.iter().rposition(|idle| idle.shard == shard);
            let idle = self.idle.remove(near.unwrap_or(self.idle.len() - 1));
            if !idle.sandbox.death.is_seen() {
                return (Some(idle), dead);
            }
            dead.push(idle);
        }
        (None, dead)
    }

    fn remove_worker(&mut self, worker: &Arc<Worker>) -> Option<Arc<Worker>> {
        let index = self
            .workers
            .iter()
            .position(|entered| Arc::ptr_eq(entered, worker))?;
        Some(self.workers.remove(index))
    }

    fn prune(
        &mut self,
        now: Instant,
        timeout: Duration,
        spare: usize,
    ) -> (Vec<Idle>, Vec<Arc<Worker>>) {
        let mut left = spare;
        let mut goes = |dead: bool, since: Option<Instant>| {
            let expired = since
                .is_some_and(|since| timeout <= now.saturating_duration_since(since))
                && 0 < left;
            left -= usize::from(expired);
            dead || expired
        };
        let idle = self
            .idle
            .extract_if(.., |idle| {
                goes(idle.sandbox.death.is_seen(), Some(idle.since))
            })
            .collect();
        let workers = self
            .workers
            .extract_if(.., |worker| {
                goes(worker.sandbox.death.is_seen(), worker.idle_since())
            })
            .collect();
        (idle, workers)
    }
}

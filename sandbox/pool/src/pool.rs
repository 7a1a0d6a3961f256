// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The pool itself: what a gateway shard calls.

use std::{
    collections::HashMap,
    io::Read,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use hearth_protocol::spawner::{Host, Worker as WorkerKind};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::timeout,
};

use crate::{
    Call, Kind, Outcome, PoolConfig, Reply, Start, Target,
    invoke::drive,
    link::{Breach, Link, LinkError},
    record::{Record, micros},
    refill::{Pace, keep_stocked},
    room::Room,
    roster::{Place, Roster},
    sandbox::{Sandbox, Skeleton, StartError, order, skeleton_spec},
    stock::Stock,
};

/// How often idle sandboxes are looked over.
const PRUNE_INTERVAL: Duration = Duration::from_secs(1);

/// How large an isolation report may be. In bytes.
const REPORT_BYTES_MAX: u64 = 1024 * 1024;

/// All sandboxes of this gateway.
#[derive(Debug)]
pub struct Pool {
    pub(crate) config: PoolConfig,
    link: watch::Sender<Option<Arc<Link>>>,
    pub(crate) room: Room,
    /// Bytes of streamed output that callers have not taken.
    untaken: Arc<Semaphore>,
    pub(crate) stock: Stock,
    rosters: Mutex<HashMap<usize, Arc<Roster>>>,
    /// Targets that are retired while somebody may still invoke them.
    retired: Mutex<Vec<Weak<Target>>>,
    pub(crate) lacking: Notify,
    pub(crate) pace: Pace,
}

/// What a sandbox is doing, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PoolState {
    /// Being made ahead of need.
    Starting,
    /// Ready to be bound.
    Skeleton,
    /// Bound and clean.
    Idle,
    /// Being bound, running, or being cleaned.
    Leased,
}

impl PoolState {
    /// Every state, for registering metric children.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Skeleton, Self::Idle, Self::Leased];

    /// The stable name, as a metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Skeleton => "skeleton",
            Self::Idle => "idle",
            Self::Leased => "leased",
        }
    }
}

/// Why a target's sandbox could not be inspected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// There was none and none could be had.
    #[error("no sandbox to inspect: {}", .0.kind().as_str())]
    NoSandbox(Outcome),
    /// The spawner could not read it.
    #[error(transparent)]
    Spawner(#[from] LinkError),
    /// The report could not be taken over.
    #[error("the report is not readable")]
    Unreadable,
}

impl Pool {
    /// A pool without a spawner yet. Must be called inside a runtime that lives as long as the pool: its housekeeping
    /// runs there.
    #[must_use]
    pub fn new(config: PoolConfig) -> Arc<Self> {
        let pool = Arc::new(Self {
            room: Room::new(config.sandboxes_max as usize),
            untaken: Arc::new(Semaphore::new(config.stream_bytes_max)),
            config,
            link: watch::Sender::new(None),
            stock: Stock::default(),
            rosters: Mutex::default(),
            retired: Mutex::default(),
            lacking: Notify::new(),
            pace: Pace::default(),
        });
        tokio::spawn(keep_stocked(Arc::clone(&pool)));
        tokio::spawn(keep_pruned(Arc::clone(&pool)));
        pool
    }

    /// Takes a new spawner's socket. Sandboxes of an earlier one are gone.
    ///
    /// # Errors
    /// [`LinkError`] where the spawner does not say `Hello`.
    pub async fn attach(self: &Arc<Self>, socket: OwnedFd) -> Result<Host, LinkError> {
        let (dead, down) = (Arc::downgrade(self), Arc::downgrade(self));
        let on_death = move |_cause| {
            if let Some(pool) = dead.upgrade() {
                pool.prune();
                pool.lacking.notify_one();
            }
        };
        let on_down = move || {
            if let Some(pool) = down.upgrade() {
                tracing::error!("the spawner is gone, and every sandbox with it");
                pool.stock.clear();
                pool.prune();
            }
        };
        let link = Link::open(socket, on_death, on_down).await?;
        let host = link.host.clone();
        self.link.send_replace(Some(link));
        self.lacking.notify_one();
        Ok(host)
    }

    /// Makes a target known: skeletons of its kind are kept, and its minimum of warm sandboxes.
    pub fn adopt(&self, target: &Arc<Target>) {
        let mut new = false;
        // A skeleton that only one function can use would be one more per deploy; such a function's first sandbox is made
        // on demand, and the others are warm.
        let shared = target.profile().is_shared();
        for shard in self.config.shards.iter().filter(|_| shared) {
            new |= self.stock.want(order(target, shard.core));
        }
        self.roster(target);
        if new || 0 < target.scaling.warm_min {
            self.lacking.notify_one();
        }
    }

    /// Runs one invocation. Dropping the future, or the stream of a streaming reply, cancels it and destroys its
    /// sandbox. The recorder gets the receipt when the sandbox is clean again or destroyed.
    pub async fn invoke(self: &Arc<Self>, shard: usize, target: &Arc<Target>, call: Call) -> Reply {
        let (sender, reply) = oneshot::channel();
        let record = Record::new(call, target, sender, Arc::clone(&self.untaken));
        let facts = record.facts();
        // In a task of its own: what follows the answer must not depend on the caller's patience.
        tokio::spawn(drive(Arc::clone(self), shard, self.roster(target), record));
        let lost = Reply::Whole {
            outcome: Outcome::SandboxLost,
            facts,
            output: bytes::Bytes::new(),
        };
        reply.await.unwrap_or(lost)
    }

    /// Makes a sandbox of this target and throws it away: whether it can start, before anybody depends on it.
    ///
    /// # Errors
    /// The [`Outcome`] that an invocation would have.
    pub async fn try_start(&self, shard: usize, target: &Target) -> Result<(), Outcome> {
        crate::invoke::try_start(self, shard, target).await
    }

    /// The isolation report (JSON) of a sandbox of this target: an idle one, else one that is made for it.
    ///
    /// # Errors
    /// [`InspectError`] where there is none to be had, or it cannot be read.
    pub async fn inspect(
        self: &Arc<Self>,
        shard: usize,
        target: &Arc<Target>,
    ) -> Result<Vec<u8>, InspectError> {
        let report = crate::invoke::inspect(self, shard, &self.roster(target)).await?;
        let mut json = Vec::new();
        let read = std::fs::File::from(report)
            .take(REPORT_BYTES_MAX)
            .read_to_end(&mut json);
        read.map(|_| json)
            .map_err(|_unreadable| InspectError::Unreadable)
    }

    /// Ends a target: idle sandboxes are destroyed now, running ones when they are done.
    pub fn retire(&self, target: &Arc<Target>) {
        self.retired().push(Arc::downgrade(target));
        let roster = self.rosters().remove(&key(target));
        if let Some(roster) = roster {
            roster.retire();
        }
    }

    /// Whether there is a spawner.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.link
            .borrow()
            .as_ref()
            .is_some_and(|link| !link.is_down())
    }

    /// The sandbox that was not as it was made, if there was one since the spawner was started: nobody should rely on
    /// this host's walls until somebody has looked.
    #[must_use]
    pub fn breach(&self) -> Option<Breach> {
        self.link.borrow().as_ref()?.breach().cloned()
    }

    /// How many sandboxes are in which state; every kind and state is there, so that none keeps an old number where it
    /// is shown.
    #[must_use]
    pub fn counts(&self) -> Vec<(Kind, PoolState, u64)> {
        let mut counts: HashMap<(Kind, PoolState), u64> = [Kind::Native, Kind::Wasm]
            .into_iter()
            .flat_map(|kind| PoolState::ALL.map(|state| ((kind, state), 0)))
            .collect();
        let mut add = |kind, state, number| *counts.entry((kind, state)).or_default() += number;
        for (spec, ready, making) in self.stock.counts() {
            let kind = if spec.worker == WorkerKind::Resident {
                Kind::Wasm
            } else {
                Kind::Native
            };
            add(kind, PoolState::Skeleton, ready as u64);
            add(kind, PoolState::Starting, u64::from(making));
        }
        for roster in self.rosters().values() {
            let (idle, leased) = roster.counts();
            add(roster.target.kind(), PoolState::Idle, u64::from(idle));
            add(roster.target.kind(), PoolState::Leased, u64::from(leased));
        }
        counts
            .into_iter()
            .map(|((kind, state), number)| (kind, state, number))
            .collect()
    }

    /// Destroys every sandbox that is not running an invocation, and waits until no sandbox is left on the host.
    pub async fn drain(&self) {
        self.stock.close();
        for roster in self.rosters().values() {
            roster.retire();
        }
        let link = self.link.send_replace(None);
        if let Some(link) = link {
            link.emptied().await;
        }
    }

    /// The spawner, waiting for the next one if there is none.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, LinkError> {
        let mut watch = self.link.subscribe();
        let up = watch.wait_for(|link| link.as_ref().is_some_and(|link| !link.is_down()));
        match timeout(self.config.queue_wait_max, up).await {
            Ok(Ok(link)) => link.as_ref().map(Arc::clone).ok_or(LinkError::Down),
            Ok(Err(_)) | Err(_) => Err(LinkError::Down),
        }
    }

    /// What a sandbox of this target on this shard can be made from right now.
    pub(crate) fn means(&self, shard: usize, target: &Target) -> Option<Means> {
        self.pace.note_need();
        let skeleton = self.stock.take(&skeleton_spec(target, self.core(shard)));
        match skeleton {
            Some(skeleton) => {
                self.lacking.notify_one();
                Some(Means::Skeleton(skeleton))
            }
            None => self.room.take().map(Means::Room),
        }
    }

    /// Makes a sandbox of this target on this shard. None where the skeleton had died in stock, which is nobody's
    /// failure.
    pub(crate) async fn make(
        &self,
        means: Means,
        shard: usize,
        target: &Target,
    ) -> Result<Option<Made>, StartError> {
        let core = self.core(shard);
        let (skeleton, start) = match means {
            Means::Skeleton(skeleton) => (skeleton, Start::Bound),
            Means::Room(room) => {
                let link = self.link().await?;
                let skeleton = Skeleton::create(&link, &order(target, core), room).await?;
                (skeleton, Start::Created)
            }
        };
        let death = Arc::clone(&skeleton.death);
        let began = Instant::now();
        match skeleton.bind(target, core).await {
            Ok(sandbox) => Ok(Some(Made {
                sandbox,
                start,
                bind_us: micros(began),
            })),
            Err(_) if start == Start::Bound && death.is_seen() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn core(&self, shard: usize) -> Option<u16> {
        self.config.shards.get(shard).and_then(|shard| shard.core)
    }

    /// Gives up the sandbox that has been idle for longest, else a skeleton.
    pub(crate) fn shed(&self) {
        let oldest = {
            let rosters = self.rosters();
            let dated = rosters
                .values()
                .filter_map(|roster| Some((roster.oldest_idle()?, Arc::clone(roster))));
            dated
                .min_by_key(|(since, _)| *since)
                .map(|(_, roster)| roster)
        };
        if !oldest.is_some_and(|roster| roster.shed()) {
            drop(self.stock.shed());
        }
    }

    fn roster(&self, target: &Arc<Target>) -> Arc<Roster> {
        let mut rosters = self.rosters();
        if let Some(roster) = rosters.get(&key(target)) {
            return Arc::clone(roster);
        }
        let roster = Roster::new(Arc::clone(target));
        if self.is_retired(target) {
            // Found by its caller just before it was retired: it runs, and its sandbox goes with it.
            roster.retire();
        } else {
            rosters.insert(key(target), Arc::clone(&roster));
        }
        roster
    }

    fn is_retired(&self, target: &Arc<Target>) -> bool {
        let weak = Arc::downgrade(target);
        self.retired().iter().any(|retired| retired.ptr_eq(&weak))
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Weak<Target>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prune(&self) {
        let rosters: Vec<_> = self.rosters().values().cloned().collect();
        let now = Instant::now();
        for roster in rosters {
            roster.prune(now);
        }
        self.retired().retain(|target| 0 < target.strong_count());
    }

    fn rosters(&self) -> MutexGuard<'_, HashMap<usize, Arc<Roster>>> {
        self.rosters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place that a minimum asks for.
    pub(crate) fn lacking_minimum(&self) -> Option<(Arc<Roster>, Place)> {
        self.rosters()
            .values()
            .find_map(|roster| Some((Arc::clone(roster), roster.claim_for_minimum()?)))
    }
}

/// A sandbox that was bound just now.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) sandbox: Sandbox,
    pub(crate) start: Start,
    /// How long binding took.
    pub(crate) bind_us: u64,
}

/// What a sandbox can be made from.
#[derive(Debug)]
pub(crate) enum Means {
    /// A ready skeleton.
    Skeleton(Skeleton),
    /// The right to one more sandbox on this host.
    Room(OwnedSemaphorePermit),
}

/// The step of a [`StartError`] that means the host is full.
pub(crate) const NO_ROOM: &str = "room";

/// Targets are told apart by their address: a roster keeps its target alive, so no other can have it meanwhile.
fn key(target: &Arc<Target>) -> usize {
    Arc::as_ptr(target).addr()
}

async fn keep_pruned(pool: Arc<Pool>) {
    let mut ticks = tokio::time::interval(PRUNE_INTERVAL);
    loop {
        ticks.tick().await;
        pool.prune();
        // A minimum that could not be made is tried again; where nothing is lacking this costs a look.
        pool.lacking.notify_one();
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Learning a function's profile: its events run under an observing filter, and so does whatever else calls it meanwhile;
//! then the same events run again under the profile that was made of it, in sandboxes that nobody else has.
//!
//! ```text
//! begin ─▶ swap the function for an observed one ─▶ events, time ─▶ swap back ─▶ profile ─▶ events again ─▶ answer
//! ```
//!
//! What is begun is a guard: a client that goes away ends the observation, and the function is as it was.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hearth_pool::{Call, InvocationId, Observing, Outcome, Program, Reply, StoreError, Target};
use hearth_protocol::{
    SmallName,
    profile::{Observation, Profile, ProfileReading},
};
use sha2::{Digest as _, Sha256};

use crate::{
    app::{App, Shard},
    deploy,
    learned::{self, LearnedProfile},
    problem::{Full, RequestError},
    registry::Function,
};

/// Functions that are learned at once: each takes up to a fifth of the spawner.
const LEARNERS_MAX: usize = 2;

/// An observed function may take this much longer: each of its calls waits for the spawner.
const OBSERVED_TIMEOUT_TIMES: u32 = 10;

/// As the longest time limit of a manifest.
const OBSERVED_TIMEOUT_MAX: Duration = Duration::from_secs(900);

/// What is to be done.
pub(crate) struct Wish<F> {
    /// What the function is called with, one after the other.
    pub(crate) events: Vec<Bytes>,
    /// How often they all are repeated while it is observed.
    pub(crate) rounds: u32,
    /// How long it is observed at least.
    pub(crate) time: Duration,
    /// An event as a call.
    pub(crate) call: F,
}

/// What was learned.
pub(crate) struct Lesson {
    pub(crate) profile: LearnedProfile,
    pub(crate) reading: ProfileReading,
    /// Each event under observation, and under the profile.
    pub(crate) events: Vec<(Ran, Ran)>,
}

/// What became of an event.
pub(crate) struct Ran {
    pub(crate) id: InvocationId,
    pub(crate) outcome: Outcome,
    /// The SHA-256 of what it wrote.
    pub(crate) output: [u8; 32],
}

/// The functions that are being learned.
#[derive(Debug, Default)]
pub(crate) struct Learners(Mutex<BTreeSet<SmallName>>);

/// One of them, until it is dropped.
struct Learner<'a>(&'a Learners, SmallName);

impl Learners {
    fn begin(&self, name: &SmallName) -> Result<Learner<'_>, RequestError> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(name) {
            return Err(RequestError::Learning);
        }
        if LEARNERS_MAX <= names.len() {
            return Err(RequestError::Overloaded(Full::Learners));
        }
        names.insert(name.clone());
        Ok(Learner(self, name.clone()))
    }
}

impl Drop for Learner<'_> {
    fn drop(&mut self) {
        let mut names = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&self.1);
    }
}

/// A function that is observed in the place of what it was.
struct Session {
    app: Arc<App>,
    original: Arc<Function>,
    observed: Arc<Function>,
    observing: Option<Observing>,
}

impl Session {
    fn begin(app: &Arc<App>, original: Arc<Function>, observing: Observing) -> Option<Self> {
        let profile = original.target.profile().observed(observing.id())?;
        let observed = original.changed(|target| {
            set_profile(target, profile);
            let timeout = target.limits.timeout.saturating_mul(OBSERVED_TIMEOUT_TIMES);
            target.limits.timeout = timeout.min(OBSERVED_TIMEOUT_MAX);
        });
        let observed = Arc::new(observed);
        let swapped = app.registry.swap(&original, Arc::clone(&observed));
        swapped.then(|| Self {
            app: Arc::clone(app),
            original,
            observed,
            observing: Some(observing),
        })
    }

    /// What was seen.
    async fn end(mut self) -> Result<Observation, RequestError> {
        let observing = self.observing.take();
        // First, so that nobody is observed who is not counted.
        drop(self);
        match observing {
            Some(observing) => Ok(observing.end().await.map_err(StoreError::from)?),
            None => Ok(Observation::default()),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let app = Arc::clone(&self.app);
        let back = app
            .registry
            .swap(&self.observed, Arc::clone(&self.original));
        let mut ended = vec![Arc::clone(&self.observed)];
        if !back {
            // Deployed or removed meanwhile: what it was before is not to come back.
            ended.push(Arc::clone(&self.original));
        }
        for function in &ended {
            app.pool.retire(&function.target);
        }
        // The trees' lock is to be waited for. Outside of a runtime the gateway is ending.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let mut trees = app.trees.lock().await;
                for function in ended {
                    deploy::retire(&app, &mut trees, &function);
                }
                deploy::sweep(&app, &mut trees).await;
            });
        }
    }
}

/// Observes, learns, and tries what was learned.
pub(crate) async fn learn<F>(
    shard: &Shard,
    function: Arc<Function>,
    wish: Wish<F>,
) -> Result<Lesson, RequestError>
where
    F: Fn(InvocationId, Bytes) -> Result<Call, RequestError>,
{
    let app = &shard.app;
    let Some(tier) = function.target.profile().tier() else {
        return Err(RequestError::WasmHasOneProfile);
    };
    let _learner = app.learners.begin(function.name())?;
    let observing = app.pool.observe().await.map_err(StoreError::from)?;
    let until = Instant::now() + wish.time;
    let session = Session::begin(app, Arc::clone(&function), observing);
    let session = session.ok_or(RequestError::UnknownFunction)?;
    let observed = Arc::clone(&session.observed.target);
    let before = run_all(shard, &observed, &wish).await?;
    for _ in 1..wish.rounds {
        run_all(shard, &observed, &wish).await?;
    }
    tokio::time::sleep_until(until.into()).await;
    let seen = session.end().await?;
    let profile = LearnedProfile::of(about(&function, &wish), tier, &seen);
    if profile.calls.is_empty() {
        let problem = "nobody called the function while it was observed".to_owned();
        return Err(RequestError::BadRequest { problem });
    }
    let reading = learned::resolve(&app.pool, &profile).await?;
    let tried = function.changed(|target| set_profile(target, Profile::Learned(reading.learned)));
    let tried = Tried(Arc::clone(app), tried.target);
    let after = run_all(shard, &tried.1, &wish).await?;
    Ok(Lesson {
        profile,
        reading,
        events: before.into_iter().zip(after).collect(),
    })
}

/// A target that only this module calls; its sandboxes end with it.
struct Tried(Arc<App>, Arc<Target>);

impl Drop for Tried {
    fn drop(&mut self) {
        self.0.pool.retire(&self.1);
    }
}

fn set_profile(target: &mut Target, wanted: Profile) {
    if let Program::Native { profile, .. } = &mut target.program {
        *profile = wanted;
    }
}

fn about<F>(function: &Function, wish: &Wish<F>) -> String {
    format!(
        "What `hearth learn` saw {} do in {} rounds of {} events, and for whoever else called it within {} s. Beside \
         these every learned profile allows what init needs and what is a matter of timing; everything else is refused.",
        function.name(),
        wish.rounds,
        wish.events.len(),
        wish.time.as_secs_f64(),
    )
}

async fn run_all<F>(
    shard: &Shard,
    target: &Arc<Target>,
    wish: &Wish<F>,
) -> Result<Vec<Ran>, RequestError>
where
    F: Fn(InvocationId, Bytes) -> Result<Call, RequestError>,
{
    let mut all = Vec::with_capacity(wish.events.len());
    for event in &wish.events {
        let id = InvocationId::new();
        let call = (wish.call)(id, event.clone())?;
        let reply = shard.app.pool.invoke(shard.index, target, call).await;
        all.push(ended(id, reply).await);
    }
    Ok(all)
}

/// Takes all that is written.
async fn ended(id: InvocationId, reply: Reply) -> Ran {
    let mut written = Sha256::new();
    let outcome = match reply {
        Reply::Whole {
            outcome, output, ..
        } => {
            written.update(&output);
            outcome
        }
        Reply::Streaming { mut output, .. } => loop {
            match poll_fn(|cx| output.poll_next(cx)).await {
                Some(Ok(piece)) => written.update(&piece),
                Some(Err(outcome)) => break outcome,
                None => break Outcome::Ok,
            }
        },
    };
    Ran {
        id,
        outcome,
        output: written.finalize().into(),
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What all shards share, and a shard's view of it.

use std::{
    sync::{Arc, PoisonError, RwLock, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use hearth_pool::{Pool, Target};
use hearth_protocol::{SmallName, TreeId};
use tokio::sync::{Mutex, Semaphore};

use crate::{
    GatewayLimits,
    access::Access,
    admission::Admission,
    config::EdgeTimeouts,
    edge::Edge,
    learn::Learners,
    metrics::Metrics,
    problem::RequestError,
    receipts::Receipts,
    registry::Registry,
    store::{StateError, Store},
};

/// What all shards share.
pub(crate) struct App {
    pub(crate) pool: Arc<Pool>,
    pub(crate) registry: Registry,
    pub(crate) store: Arc<Store>,
    pub(crate) receipts: Arc<Receipts>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admission: Admission,
    pub(crate) access: Access,
    pub(crate) edge: Edge,
    pub(crate) learners: Learners,
    pub(crate) limits: GatewayLimits,
    pub(crate) timeouts: EdgeTimeouts,
    /// The jailed compiler.
    pub(crate) compiler: Arc<Target>,
    /// What compiled code depends on beside the compiler.
    pub(crate) cpu: TreeId,
    /// Bounds the archives and compilations that are in progress.
    pub(crate) deploys: Semaphore,
    /// Held while trees are stored, referred to or removed, so that none is removed that has just been stored again.
    pub(crate) trees: Mutex<Trees>,
    /// The bases that the host has.
    pub(crate) bases: RwLock<Vec<SmallName>>,
}

/// Trees of targets that were retired while invocations may still have held them.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    pub(crate) retired: Vec<Weak<Target>>,
}

/// A shard's view.
#[derive(Clone)]
pub(crate) struct Shard {
    pub(crate) app: Arc<App>,
    pub(crate) index: usize,
}

impl App {
    pub(crate) fn bases(&self) -> Vec<SmallName> {
        self.bases
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_bases(&self, bases: Vec<SmallName>) {
        *self.bases.write().unwrap_or_else(PoisonError::into_inner) = bases;
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl From<StateError> for RequestError {
    /// The client learns that it failed; why is in the log.
    fn from(error: StateError) -> Self {
        match error {
            StateError::Full => Self::StorageFull,
            other => internal(&other),
        }
    }
}

impl From<hearth_pool::StoreError> for RequestError {
    fn from(error: hearth_pool::StoreError) -> Self {
        use hearth_pool::{LinkError, StoreError};
        match error {
            StoreError::Spawner(LinkError::Failed { errno, .. }) if errno == nix::libc::ENOSPC => {
                Self::StorageFull
            }
            other => internal(&other),
        }
    }
}

/// Logs the whole chain of an error that no client is to see.
pub(crate) fn internal(error: &dyn std::error::Error) -> RequestError {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain = format!("{chain}: {cause}");
        source = cause.source();
    }
    tracing::error!(error = %chain, "a request failed");
    RequestError::Internal
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What became of every invocation: the newest receipts in memory, all of them; the history on disk, written off every
//! request's path.
//!
//! ```text
//! Receipts::add ─┬─▶ recent   every one, until newer ones take its place
//!                └─▶ writer ─▶ store   every failure, and each function's share of successes
//! ```
//!
//! Not every success on disk: the history is bounded in number, and a trivial function alone would go through all of it
//! in seconds, at the price of a third of a core. With shares it reaches minutes back, and a busy function leaves the
//! receipts of a quiet one where they are.

mod recent;
mod share;
mod writer;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use hearth_pool::{InvocationId, Outcome, Receipt};

use crate::{
    metrics::Metrics,
    store::{LOGGED_BYTES_MAX, LogQuery, ReceiptLimits, StateError, Store, blocking},
};

use recent::Recent;
use share::Share;
use writer::Writer;

/// All receipts. Dropping it ends the writing thread, once all is written.
#[derive(Debug)]
pub(crate) struct Receipts {
    newest: Mutex<Newest>,
    writer: Writer,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Newest {
    recent: Recent,
    share: Share,
}

impl Receipts {
    /// Starts the writing thread.
    pub(crate) fn start(
        store: Arc<Store>,
        limits: ReceiptLimits,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, JoinHandle<()>), StateError> {
        let (writer, thread) = Writer::start(store.history(limits)?)?;
        let receipts = Self {
            newest: Mutex::default(),
            writer,
            store,
            metrics,
        };
        Ok((receipts, thread))
    }

    /// Takes one receipt; never waits.
    pub(crate) fn add(&self, receipt: Receipt) {
        let receipt = Arc::new(receipt);
        let stays = {
            let mut newest = self.newest();
            newest.recent.push(Arc::clone(&receipt));
            receipt.outcome != Outcome::Ok || newest.share.take(&receipt.function, Instant::now())
        };
        if !stays {
            self.metrics.receipt_thinned();
        } else if !self.writer.write(receipt) {
            self.metrics.receipt_dropped();
        }
    }

    /// One receipt's JSON.
    pub(crate) async fn find(&self, id: InvocationId) -> Result<Option<String>, StateError> {
        let recent = self.newest().recent.find(id);
        if let Some(receipt) = recent {
            let json = serde_json::to_string(&*receipt);
            return json
                .map(Some)
                .map_err(|_bad| StateError::Corrupt { what: "receipt" });
        }
        // The store alone goes to the blocking thread: one that hangs must not hold the writer.
        let store = Arc::clone(&self.store);
        blocking(move || store.receipt(id)).await
    }

    /// The receipts whose logs are wanted, oldest first.
    pub(crate) async fn logged(&self, wanted: LogQuery) -> Result<Vec<Arc<Receipt>>, StateError> {
        let recent = self.newest().recent.logged(&wanted);
        let invocations_max = wanted.invocations_max as usize;
        let store = Arc::clone(&self.store);
        let stored = blocking(move || store.logged(&wanted)).await?;
        let both: BTreeMap<InvocationId, Arc<Receipt>> = stored
            .into_iter()
            .map(Arc::new)
            .chain(recent)
            .map(|receipt| (receipt.invocation, receipt))
            .collect();
        let mut bytes = 0;
        let mut newest: Vec<Arc<Receipt>> = both
            .into_values()
            .rev()
            .take(invocations_max)
            .take_while(|receipt| {
                // One alone is given however large it is.
                let is_first = bytes == 0;
                bytes += receipt.held_bytes();
                is_first || bytes <= LOGGED_BYTES_MAX
            })
            .collect();
        newest.reverse();
        Ok(newest)
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests;

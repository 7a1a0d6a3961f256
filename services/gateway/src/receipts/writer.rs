// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The thread that writes receipts, and the way to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hearth_pool::Receipt;

use crate::store::{History, StateError};

/// Receipts that wait for the writer, which takes all that wait into one transaction.
const WAITING_MAX: usize = 4096;

/// Bytes of them: reached by long logs only.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long the first of a batch waits for others: a transaction costs far more than a row.
const GATHER: Duration = Duration::from_millis(50);

/// The way to the thread that writes receipts. Dropping it ends the thread, once all is written.
#[derive(Debug)]
pub(super) struct Writer {
    sender: SyncSender<Arc<Receipt>>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl Writer {
    pub(super) fn start(mut history: History) -> Result<(Self, JoinHandle<()>), StateError> {
        let (sender, receiver) = mpsc::sync_channel(WAITING_MAX);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&waiting_bytes);
        let thread = thread::Builder::new()
            .name("receipts".to_owned())
            .spawn(move || write_all(&mut history, &receiver, &counted))
            .map_err(|_refused| StateError::Thread)?;
        let writer = Self {
            sender,
            waiting_bytes,
        };
        Ok((writer, thread))
    }

    /// Hands a receipt over; never waits. False where the writer is behind and the receipt is lost to the history.
    pub(super) fn write(&self, receipt: Arc<Receipt>) -> bool {
        let bytes = receipt.held_bytes();
        // Entered before it is sent, so that the thread never takes off what was not yet added.
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let sent = waiting <= WAITING_BYTES_MAX && self.sender.try_send(receipt).is_ok();
        if !sent {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        sent
    }
}

/// The first and what comes within [`GATHER`] of it. Not by waiting on the channel meanwhile: whoever sends would wake
/// this thread each time, at the price of a system call between two requests, and of this thread's turn on a core.
fn gather(first: Arc<Receipt>, receiver: &Receiver<Arc<Receipt>>) -> Vec<Arc<Receipt>> {
    let deadline = Instant::now() + GATHER;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        // Nobody unparks it.
        thread::park_timeout(left);
    }
    let mut batch = vec![first];
    batch.extend(receiver.try_iter().take(WAITING_MAX));
    batch
}

fn write_all(
    history: &mut History,
    receiver: &Receiver<Arc<Receipt>>,
    waiting_bytes: &AtomicUsize,
) {
    while let Ok(first) = receiver.recv() {
        let batch = gather(first, receiver);
        if let Err(source) = history.write_batch(&batch) {
            tracing::error!(error = %source, receipts = batch.len(), "cannot write receipts");
        }
        let bytes = batch.iter().map(|receipt| receipt.held_bytes()).sum();
        waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The newest receipts, in memory.

use std::{collections::VecDeque, sync::Arc};

use hearth_pool::{InvocationId, Receipt};

use crate::store::LogQuery;

/// So many receipts at most: far more than come in between an answer and the question for its receipt, and than the
/// writer gathers for one transaction.
const RECENT_MAX: usize = 4096;

/// So many bytes of them at most: reached by long logs only.
const RECENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The newest receipts, oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// With the id beside the pointer: looking for one runs through ids alone.
    receipts: VecDeque<(InvocationId, Arc<Receipt>)>,
    bytes: usize,
}

impl Recent {
    /// Enters one, and lets go of the oldest beyond the bounds.
    pub(super) fn push(&mut self, receipt: Arc<Receipt>) {
        self.bytes += receipt.held_bytes();
        self.receipts.push_back((receipt.invocation, receipt));
        while RECENT_MAX < self.receipts.len() || RECENT_BYTES_MAX < self.bytes {
            let Some((_, oldest)) = self.receipts.pop_front() else {
                return;
            };
            self.bytes -= oldest.held_bytes();
        }
    }

    pub(super) fn find(&self, id: InvocationId) -> Option<Arc<Receipt>> {
        let mut newest_first = self.receipts.iter().rev();
        newest_first
            .find(|(known, _)| *known == id)
            .map(|(_, receipt)| Arc::clone(receipt))
    }

    /// The receipts whose logs are wanted, newest first.
    pub(super) fn logged(&self, wanted: &LogQuery) -> Vec<Arc<Receipt>> {
        self.receipts
            .iter()
            .rev()
            .map(|(_, receipt)| receipt)
            .filter(|receipt| {
                receipt.function == wanted.function
                    && !receipt.log.is_empty()
                    && wanted.invocation.is_none_or(|id| id == receipt.invocation)
            })
            .take(wanted.invocations_max as usize)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use hearth_pool::LogLine;

    use super::super::tests::receipt;
    use super::*;

    #[test]
    fn the_newest_stay_and_the_oldest_go_at_the_limit_of_number() {
        let mut recent = Recent::default();
        let ids: Vec<InvocationId> = (0..=RECENT_MAX)
            .map(|_| {
                let receipt = Arc::new(receipt("a", None));
                recent.push(Arc::clone(&receipt));
                receipt.invocation
            })
            .collect();
        assert!(recent.find(ids[0]).is_none());
        assert!(ids[1..].iter().all(|id| recent.find(*id).is_some()));
    }

    #[test]
    fn long_logs_are_bounded_by_their_bytes_and_what_goes_gives_its_bytes_back() {
        let mut recent = Recent::default();
        for _ in 0..100 {
            let mut long = receipt("a", None);
            long.log.push(LogLine {
                at_ms: 0,
                text: "x".repeat(RECENT_BYTES_MAX / 10),
                cut: false,
            });
            recent.push(Arc::new(long));
            assert!(recent.bytes <= RECENT_BYTES_MAX);
        }
        assert_eq!(recent.receipts.len(), 9);
        for _ in 0..RECENT_MAX {
            recent.push(Arc::new(receipt("a", None)));
        }
        let small = receipt("a", None).held_bytes();
        assert_eq!(recent.bytes, RECENT_MAX * small);
    }
}

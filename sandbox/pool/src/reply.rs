// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What an invocation gives its caller.

use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{Outcome, Phases, Start};

/// Output up to this many bytes is held back until the function has ended, so that a failure can still change the
/// status; beyond it the answer streams. In bytes.
pub const HOLD_BYTES: usize = 64 * 1024;

/// What is known when the answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Where the sandbox came from; none where the invocation never got one.
    pub start: Option<Start>,
    /// `reset` is not known yet; `run` is up to now for a streaming reply.
    pub phases: Phases,
}

/// What an invocation gives its caller.
#[derive(Debug)]
pub enum Reply {
    /// It is over.
    Whole {
        /// What became of it; `output` counts only where it is [`Outcome::Ok`].
        outcome: Outcome,
        /// For the answer's headers.
        facts: Facts,
        /// All of stdout.
        output: Bytes,
    },
    /// It has written more than [`HOLD_BYTES`] and goes on.
    Streaming {
        /// For the answer's headers.
        facts: Facts,
        /// All of stdout, from its first byte. Dropping it cancels the invocation.
        output: OutputStream,
    },
}

/// A piece of streamed output, counted against the pool's limit until its caller takes it; or the failure that ends it.
pub(crate) type Piece = Result<(Bytes, OwnedSemaphorePermit), Outcome>;

/// The output of an invocation that is still running. The sandbox is always read, so that a slow caller never holds a
/// function up; what waits for the caller is bounded by the function's response limit and by the pool's limit for all.
#[derive(Debug)]
pub struct OutputStream {
    pieces: mpsc::UnboundedReceiver<Piece>,
}

impl OutputStream {
    pub(crate) fn new(pieces: mpsc::UnboundedReceiver<Piece>) -> Self {
        Self { pieces }
    }

    /// The next piece: an `Err` is the outcome of a function that failed after its answer had begun, and the last item.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Outcome>>> {
        // The permit ends here: from now on the bytes are the caller's.
        self.pieces
            .poll_recv(cx)
            .map(|piece| piece.map(|piece| piece.map(|(bytes, _permit)| bytes)))
    }
}
